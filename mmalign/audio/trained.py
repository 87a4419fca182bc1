"""Models of sound as they are used after training, or without any: a base model, or what a run made of it."""

import importlib
import json
import pkgutil
from pathlib import Path

import torch

from mmalign.audio import families
from mmalign.audio.family import AudioFamily, AudioModel
from mmalign.devices import best_device
from mmalign.errors import ConfigError, explain
from mmalign.train.audio_sections import AudioConfig
from mmalign.train.config import ModelConfig, RunConfig
from mmalign.train.run_folders import locate_run, read_run_config
from mmalign.train.trained import LoadedModel, away_from_training, inference_dtype

__all__ = ["TrainedSound", "load_base", "load_trained", "recognise"]

_OFFICIAL = {"main_config.json": "tango", "tangoflux.safetensors": "tangoflux"}
"""Files that tell official repositories, and the families that read them."""
_INDEX = "model_index.json"


class TrainedSound(LoadedModel[AudioModel, RunConfig]):
    """A model of sound, and how to hear it without its training."""

    @property
    def num_steps(self) -> int:
        """Sampler steps: the run's, else what suits the model."""
        return self.config.samples.num_steps if self.config else self.model.sampler_defaults[0]

    @property
    def guidance_scale(self) -> float:
        """Guidance: the run's, else what suits the model."""
        return self.config.samples.guidance_scale if self.config else self.model.sampler_defaults[1]


def load_base(
    source: str, *, device: str | None = None, dtype: torch.dtype | None = None, duration: float | None = None
) -> TrainedSound:
    """A base model of whatever family it is.

    Args:
        source: hub id, official folder or converted folder.
        device: where to load it; default the best there is.
        dtype: of all parts; default the family's half precision on CUDA, else float32.
        duration: seconds of its clips; default the family's.

    Raises:
        ConfigError: nothing is there, or no family of sound reads it.
    """
    family = recognise(source)
    chosen = best_device(device)
    if dtype is None:
        dtype = inference_dtype(chosen, family.model.half_dtype)
    settings = ModelConfig(family=family.name, source=source)
    return TrainedSound(family.load(settings, AudioConfig(duration=duration), device=chosen, dtype=dtype))


def recognise(source: str) -> AudioFamily:
    """The family of sound that reads a folder or hub id.

    Raises:
        ConfigError: none does.
    """
    known = {family.name: family for family in _families()}
    for name, family_name in _OFFICIAL.items():
        if _file(source, name) is not None:
            return known[family_name]
    index = _file(source, _INDEX)
    wanted = None if index is None else json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    for family in known.values():
        if wanted in family.pipelines:
            return family
    classes = ", ".join(sorted(name for family in known.values() for name in family.pipelines))
    message = explain(
        f"--model {source}",
        got="[no model of sound]" if wanted is None else wanted,
        expected=f"an official repository (with {' or '.join(_OFFICIAL)}), or a folder of {classes}",
    )
    raise ConfigError(message)


def _families() -> list[AudioFamily]:
    names = [module.name for module in pkgutil.iter_modules(families.__path__)]
    return [
        importlib.import_module(f"{families.__name__}.{name}").FAMILY
        for name in names
        if not name.startswith("_")
    ]


def _file(source: str, name: str) -> Path | None:
    """A file of a folder, or of a hub id; None where it has none."""
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(source, name))
    except (OSError, ValueError, HFValidationError):  # no network, no such id or file, no id at all
        return None


def load_trained(
    run: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None
) -> TrainedSound:
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
    audio = getattr(config, "audio", None)
    known = {family.name: family for family in _families()}
    family = known.get(config.model.family)
    if family is None or not isinstance(audio, AudioConfig):
        expected = f"a run of {' or '.join(known)}"
        raise ConfigError(explain(str(run), got=f"a run of {config.model.family}", expected=expected))
    chosen = best_device(device)
    if dtype is None:
        mixed = config.train.mixed_precision != "no"
        dtype = inference_dtype(chosen, family.model.half_dtype, mixed=mixed)
    full = config.adapter.kind == "none"
    model = family.load(
        away_from_training(config.model, None),
        audio.model_copy(update={"cache": None}),  # it need not be here, either
        device=chosen,
        dtype=dtype,
        network_dtype=torch.float32 if full else None,
    )
    loaded = TrainedSound(model, config, folder=folder)
    loaded.restore(checkpoint_folder)
    return loaded
