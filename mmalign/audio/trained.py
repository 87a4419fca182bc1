"""Models of sound as they are used after training, or without any: a base model, or what a run made of it."""

from pathlib import Path

import torch

from mmalign.audio import families
from mmalign.audio.family import AudioFamily, AudioModel
from mmalign.diffusion.reopening import ReopenedModel, families_in, file_of, open_base, pipeline_class, reopen
from mmalign.errors import ConfigError, explain
from mmalign.train.audio_sections import AudioConfig

__all__ = ["TrainedSound", "load_base", "load_trained", "recognise"]

_OFFICIAL = {"main_config.json": "tango", "tangoflux.safetensors": "tangoflux"}
"""Files that tell official repositories, and the families that read them."""


class TrainedSound(ReopenedModel[AudioModel]):
    """A model of sound, and how to hear it without its training."""


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
    section = AudioConfig(duration=duration)
    return open_base(TrainedSound, recognise(source), source, section, device=device, dtype=dtype)


def recognise(source: str) -> AudioFamily:
    """The family of sound that reads a folder or hub id.

    Raises:
        ConfigError: none does.
    """
    known: dict[str, AudioFamily] = families_in(families)
    for name, family_name in _OFFICIAL.items():
        if file_of(source, name) is not None:
            return known[family_name]
    wanted = pipeline_class(source)
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


def load_trained(
    run: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    quantised: bool = True,
) -> TrainedSound:
    """What a run trained: its base model with the newest weights, the average where the run kept one.

    Args:
        run: run folder, or one of its checkpoints.
        device: where to load it; default the best there is.
        dtype: of the frozen weights; default as `load_base`, for runs in mixed precision.
        quantised: whether weights that the run quantised are so here.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint yet.
        ConfigError: it is a run of another kind, or the base model cannot be loaded.
    """
    known = families_in(families)
    return reopen(TrainedSound, run, known, AudioConfig, device=device, dtype=dtype, quantised=quantised)
