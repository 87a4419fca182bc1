"""Models of video as they are used after training, or without any: a base model, or what a run made of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmalign.diffusion.reopening import ReopenedModel, families_in, open_base, pipeline_class, reopen
from mmalign.errors import ConfigError, explain
from mmalign.train.video_sections import VideoConfig
from mmalign.video import families
from mmalign.video.family import VideoFamily, VideoModel
from mmalign.video.videocrafter_source import is_checkpoint as is_videocrafter

__all__ = ["TrainedVideo", "load_base", "load_trained", "recognise"]


class TrainedVideo(ReopenedModel[VideoModel]):
    """A model of video, and how to see it without its training."""


def load_base(
    source: str,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    video: Mapping[str, Any] | None = None,
) -> TrainedVideo:
    """A base model of whatever family it is.

    Args:
        source: hub id, pipeline folder, or a checkpoint of VideoCrafter2.
        device: where to load it; default the best there is.
        dtype: of all parts but the VAE; default the family's half precision on CUDA, else float32.
        video: settings of its clips, as in the `video` section; default the family's.

    Raises:
        ConfigError: nothing is there, or no family of video reads it.
    """
    section = VideoConfig(**(video or {}))
    return open_base(TrainedVideo, recognise(source), source, section, device=device, dtype=dtype)


def recognise(source: str) -> VideoFamily:
    """The family of video that reads a folder, a hub id, or a file of VideoCrafter2's.

    Raises:
        ConfigError: none does.
    """
    known: dict[str, VideoFamily] = families_in(families)
    wanted = None if Path(source).is_file() else pipeline_class(source)
    for family in known.values():
        if wanted in family.pipelines:
            return family
    if wanted is None and is_videocrafter(source):
        return known["videocrafter"]
    classes = ", ".join(sorted(name for family in known.values() for name in family.pipelines))
    got = "[no model of video]" if wanted is None else wanted
    expected = f"a folder of {classes}, or a checkpoint of VideoCrafter2"
    raise ConfigError(explain(f"--model {source}", got=got, expected=expected))


def load_trained(
    run: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    clip: Mapping[str, Any] | None = None,
    quantised: bool = True,
) -> TrainedVideo:
    """What a run trained: its base model with the newest weights, the average where the run kept one.

    Args:
        run: run folder, or one of its checkpoints.
        device: where to load it; default the best there is.
        dtype: of the frozen weights; default as `load_base`, for runs in mixed precision.
        clip: settings of its clips in the place of the run's.
        quantised: whether weights that the run quantised are so here.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint yet.
        ConfigError: it is a run of another kind, or the base model cannot be loaded.
    """
    known = families_in(families)
    return reopen(
        TrainedVideo, run, known, VideoConfig, device=device, dtype=dtype, changes=clip, quantised=quantised
    )
