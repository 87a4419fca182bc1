"""Models of video as painters of rewritten prompts: recipe prompt_writer with `medium: videos`."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mmalign.data.video_writers import encode_clip
from mmalign.errors import ConfigError, explain
from mmalign.evals.model_identity import model_fingerprint, require_models, run_of
from mmalign.evals.suite import ModelSpec
from mmalign.evals.video.generation import SHAPE, loaded_for
from mmalign.vlm.pair_making.scored_sections import PainterConfig

if TYPE_CHECKING:
    from mmalign.video.trained import TrainedVideo

__all__ = ["ClipPainter"]


@dataclass
class ClipPainter:
    """A model of video, or a side of a run; loaded when it paints for the first time, and then kept.

    Args:
        config: source, sampler, and the clips' shape.
        device: where it runs.

    Raises:
        ConfigError: a folder that is not there.
        CheckpointError: a run without a checkpoint.
    """

    config: PainterConfig
    device: torch.device
    _loaded: "TrainedVideo | None" = field(default=None, init=False, repr=False)
    _session: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def __post_init__(self) -> None:
        require_models([self._spec])

    @property
    def _spec(self) -> ModelSpec:
        return ModelSpec(name="painter", source=self.config.source, weights=self.config.weights)

    def identity(self) -> Mapping[str, Any]:
        """The model's fingerprint, the sampler's settings, the clips' shape and how they are written."""
        sampler = self.config.model_dump(mode="json", exclude={"source", "batch_size", "medium"})
        return {"model": model_fingerprint(self._spec), "format": "mp4", **sampler}

    def __call__(self, prompts: Sequence[str], keys: Sequence[str], seed: int) -> Sequence[bytes]:
        """The file of a clip per prompt; equal keys start from equal noise.

        Raises:
            ConfigError: a model that goes on from pictures.
        """
        found = self._model()
        config = self.config
        with ExitStack() as stack:
            if config.weights == "base" and run_of(config.source) is not None:
                stack.enter_context(found.base_weights())
            clips = found.model.sample(
                list(prompts),
                keys=list(keys),
                seed=seed,
                num_steps=config.num_steps or found.num_steps,
                guidance_scale=(
                    found.guidance_scale if config.guidance_scale is None else config.guidance_scale
                ),
                scheduler=config.scheduler,
                batch_size=config.batch_size,
            )
        return [encode_clip(clip.frames, clip.fps) for clip in clips]

    def _model(self) -> "TrainedVideo":
        if self._loaded is None:
            asked = {name: getattr(self.config, name) for name in SHAPE}
            shape = {name: value for name, value in asked.items() if value is not None}
            where = "prompt_writer.painter"
            self._loaded = loaded_for(self._spec, shape, str(self.device), where=where)
            if self._loaded.model.conditioned:
                message = explain(
                    f"{where}.source",
                    got="[a model whose clips go on from a picture]",
                    expected="one that goes by text alone: prompts are what is written",
                )
                raise ConfigError(message)
            self._session.enter_context(self._loaded.model.sampling())
        return self._loaded
