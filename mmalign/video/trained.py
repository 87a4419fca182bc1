"""Models of video as they are used after training, or without any: a base model, or what a run made of it."""

import importlib
import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmalign.devices import best_device
from mmalign.errors import ConfigError, explain
from mmalign.train.config import ModelConfig, RunConfig
from mmalign.train.run_folders import locate_run, read_run_config
from mmalign.train.trained import LoadedModel, away_from_training, inference_dtype
from mmalign.train.video_sections import VideoConfig
from mmalign.video import families
from mmalign.video.family import VideoFamily, VideoModel

__all__ = ["TrainedVideo", "load_base", "load_trained", "recognise"]


class TrainedVideo(LoadedModel[VideoModel, RunConfig]):
    """A model of video, and how to see it without its training."""

    @property
    def num_steps(self) -> int:
        """Sampler steps: the run's, else what suits the model."""
        return self.config.samples.num_steps if self.config else self.model.sampler_defaults[0]

    @property
    def guidance_scale(self) -> float:
        """Guidance: the run's, else what suits the model."""
        return self.config.samples.guidance_scale if self.config else self.model.sampler_defaults[1]


def load_base(
    source: str,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    video: Mapping[str, Any] | None = None,
) -> TrainedVideo:
    """A base model of whatever family it is.

    Args:
        source: hub id or pipeline folder.
        device: where to load it; default the best there is.
        dtype: of all parts but the VAE; default the family's half precision on CUDA, else float32.
        video: settings of its clips, as in the `video` section; default the family's.

    Raises:
        ConfigError: nothing is there, or no family of video reads it.
    """
    family = recognise(source)
    chosen = best_device(device)
    if dtype is None:
        dtype = inference_dtype(chosen, family.model.half_dtype)
    settings = ModelConfig(family=family.name, source=source)
    return TrainedVideo(family.load(settings, VideoConfig(**(video or {})), device=chosen, dtype=dtype))


def recognise(source: str) -> VideoFamily:
    """The family of video that reads a folder or hub id.

    Raises:
        ConfigError: none does.
    """
    known = _families()
    wanted = _pipeline_class(source)
    for family in known.values():
        if wanted in family.pipelines:
            return family
    classes = ", ".join(sorted(name for family in known.values() for name in family.pipelines))
    got = "[no model of video]" if wanted is None else wanted
    raise ConfigError(explain(f"--model {source}", got=got, expected=f"a folder of {classes}"))


def _families() -> dict[str, VideoFamily]:
    names = [module.name for module in pkgutil.iter_modules(families.__path__)]
    found = [
        importlib.import_module(f"{families.__name__}.{name}").FAMILY
        for name in names
        if not name.startswith("_")
    ]
    return {family.name: family for family in found}


def _pipeline_class(source: str) -> str | None:
    """What `model_index.json` of a folder, or of a hub id, names; None where there is none."""
    path = Path(source) / "model_index.json"
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError

        try:
            path = Path(hf_hub_download(source, path.name))
        except (OSError, ValueError, HFValidationError):  # no network, no such id or file, no id at all
            return None
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("_class_name")
    return None if found is None else str(found)


def load_trained(
    run: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None
) -> TrainedVideo:
    """What a run trained: its base model with the newest weights, the average where the run kept one.

    Args:
        run: run folder, or one of its checkpoints.
        device: where to load it; default the best there is.
        dtype: of the frozen weights; default as `load_base`, for runs in mixed precision.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint yet.
        ConfigError: it is a run of another kind, or the base model cannot be loaded.
    """
    folder, checkpoint_folder = locate_run(Path(run))
    config = read_run_config(folder)
    video = getattr(config, "video", None)
    known = _families()
    family = known.get(config.model.family)
    if family is None or not isinstance(video, VideoConfig):
        expected = f"a run of {' or '.join(known)}"
        raise ConfigError(explain(str(run), got=f"a run of {config.model.family}", expected=expected))
    chosen = best_device(device)
    if dtype is None:
        mixed = config.train.mixed_precision != "no"
        dtype = inference_dtype(chosen, family.model.half_dtype, mixed=mixed)
    full = config.adapter.kind == "none"
    model = family.load(
        away_from_training(config.model, None),
        video.model_copy(update={"cache": None}),  # it need not be here, either
        device=chosen,
        dtype=dtype,
        network_dtype=torch.float32 if full else None,
    )
    loaded = TrainedVideo(model, config, folder=folder)
    loaded.restore(checkpoint_folder)
    return loaded
