"""Models as painters of rewritten prompts, for `mmalign pairs make` with recipe prompt_writer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmalign.evals.model_identity import model_fingerprint, require_models, run_of
from mmalign.evals.suite import ModelSpec
from mmalign.vlm.pair_making.commands import run_make as run_recipe
from mmalign.vlm.pair_making.painters import Tools
from mmalign.vlm.pair_making.scored_sections import CLIP_SHAPE, PainterConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmalign.diffusion.trained import TrainedModel
    from mmalign.evals.pairs.clip_painter import ClipPainter

__all__ = ["ImagePainter", "model_painter", "run_make"]


@dataclass
class ImagePainter:
    """An image model, or a side of a run; loaded when it paints for the first time.

    Args:
        config: source and sampler.
        device: where it runs.

    Raises:
        ConfigError: a folder that is not there.
        CheckpointError: a run without a checkpoint.
    """

    config: PainterConfig
    device: torch.device
    _loaded: "TrainedModel | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        require_models([self._spec])

    @property
    def _spec(self) -> ModelSpec:
        return ModelSpec(name="painter", source=self.config.source, weights=self.config.weights)

    def identity(self) -> Mapping[str, Any]:
        """The model's fingerprint and the sampler's settings; the batch size moves no more than roundings."""
        sampler = self.config.model_dump(mode="json", exclude={"source", "batch_size", "medium", *CLIP_SHAPE})
        return {"model": model_fingerprint(self._spec), **sampler}

    def __call__(self, prompts: Sequence[str], keys: Sequence[str], seed: int) -> "Sequence[Image]":
        """One picture per prompt; equal keys start from equal noise."""
        from mmalign.diffusion.sampling import generate

        found = self._model()
        config = self.config
        settings: dict[str, Any] = {
            "seed": seed,
            "num_steps": config.num_steps or found.num_steps,
            "guidance_scale": (
                found.guidance_scale if config.guidance_scale is None else config.guidance_scale
            ),
            "scheduler": config.scheduler,
            "batch_size": config.batch_size,
            "keys": list(keys),
        }
        if config.weights == "base" and run_of(config.source) is not None:
            with found.base_weights():
                return generate(found.model, list(prompts), **settings)
        return generate(found.model, list(prompts), **settings)

    def _model(self) -> "TrainedModel":
        from mmalign.diffusion.trained import load_base, load_trained

        if self._loaded is None:
            load = load_base if run_of(self.config.source) is None else load_trained
            self._loaded = load(self.config.source, device=str(self.device))
        return self._loaded


def model_painter(config: PainterConfig, device: torch.device) -> "ImagePainter | ClipPainter":
    """The painter of a plan that names a model: of pictures, or of videos where that is its medium.

    Args:
        config: source, sampler, medium.
        device: where it runs.

    Raises:
        ConfigError: a folder that is not there.
        CheckpointError: a run without a checkpoint.
    """
    if config.medium == "videos":
        from mmalign.evals.pairs.clip_painter import ClipPainter

        return ClipPainter(config, device)
    return ImagePainter(config, device)


def run_make(
    *, plan_path: Path, output: Path, device: str | None = None, overrides: Sequence[str] = ()
) -> int:
    """Make pairs by a plan, with models of pictures and videos as painters. Returns 0.

    Raises:
        ConfigError: the plan, its data or a model does not fit.
    """
    tools = Tools(models=model_painter)
    return run_recipe(plan_path=plan_path, output=output, device=device, overrides=overrides, tools=tools)
