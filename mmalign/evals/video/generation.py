"""Models of video as the first stage of an evaluation uses them: jobs to mp4 files from equal noise."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmalign.data.video_codecs import video_library
from mmalign.data.video_writers import encode_clip
from mmalign.errors import ConfigError, explain
from mmalign.evals.generation import Painter, recipe_of
from mmalign.evals.jobs import Job
from mmalign.evals.model_identity import run_of
from mmalign.evals.suite import GenerationConfig, ModelSpec

if TYPE_CHECKING:
    from mmalign.video.family import VideoModel
    from mmalign.video.trained import TrainedVideo

__all__ = ["SHAPE", "clip_painter", "loaded_for"]

SHAPE = ("num_frames", "height", "width", "fps")
"""Settings of clips, as suites and the `video` section of runs call them."""

_QUALITY = 18
"""x264's constant rate factor of the stored files."""


@contextmanager
def clip_painter(spec: ModelSpec, settings: GenerationConfig, device: str | None) -> Iterator[Painter]:
    """Load a model of clips, or the base side of a run.

    The noise of a clip comes from (seed, prompt id, copy) as that of a picture; files are mp4.

    Args:
        spec: which model.
        settings: seed, steps, guidance; frames, size and rate of all models' clips.
        device: where it runs.

    Raises:
        ConfigError: nothing is there, it makes no clips, or a run was trained on clips of another shape.
        MissingExtraError: PyAV is not installed.
    """
    video_library()  # before hours of sampling, not after the first clip
    if settings.duration is not None:
        expected = "no value: of clips it is generation.num_frames"
        raise ConfigError(explain("generation.duration", got=settings.duration, expected=expected))
    asked = {name: getattr(settings, name) for name in SHAPE if getattr(settings, name) is not None}
    loaded = loaded_for(spec, asked, device, where="generation")
    model = loaded.model
    num_steps = settings.num_steps or loaded.num_steps
    scale = loaded.guidance_scale if settings.guidance_scale is None else settings.guidance_scale

    def film(jobs: Sequence[Job]) -> list[bytes]:
        clips = model.sample(
            [job.item.prompt for job in jobs],
            seed=settings.seed,
            num_steps=num_steps,
            guidance_scale=scale,
            scheduler=settings.scheduler,
            batch_size=len(jobs),
            keys=[job.sample_id for job in jobs],
            images=_pictures(jobs) if model.conditioned else None,
        )
        return [encode_clip(clip.frames, clip.fps, quality=_QUALITY) for clip in clips]

    recipe = recipe_of(settings, num_steps=num_steps, guidance_scale=scale)
    recipe |= {"format": f"mp4, crf {_QUALITY}", **_shape_of(model)}
    if model.conditioned:
        recipe["image"] = "of the prompt"
    recipe["dtype"] = str(model.dtype).removeprefix("torch.")
    painter = Painter(film, recipe, "mp4")
    with model.sampling():  # what sampling alone needs is loaded once, not for every batch
        if run_of(spec.source) is not None and spec.weights == "base":
            with loaded.base_weights():
                yield painter
        else:
            yield painter


def loaded_for(
    spec: ModelSpec, asked: Mapping[str, Any], device: str | None, *, where: str
) -> "TrainedVideo":
    """The model, for clips of a shape.

    Args:
        spec: which model.
        asked: values of `SHAPE`; what is left out is the model's own.
        device: where it runs.
        where: the section that asks, for messages.

    Raises:
        ConfigError: nothing is there, it makes no clips, or a run was trained on clips of another shape.
    """
    from mmalign.video.trained import load_base, load_trained

    if run_of(spec.source) is None:
        return load_base(spec.source, device=device, video=asked)
    loaded = load_trained(spec.source, device=device)
    own = _shape_of(loaded.model)
    for name, value in asked.items():
        if own[name] != value:
            do = "Leave it out, or give all models the run's."
            expected = f"{own[name]}, which the run {spec.source} was trained on"
            raise ConfigError(explain(f"{where}.{name}", got=value, expected=expected, do=do))
    return loaded


def _shape_of(model: "VideoModel") -> Mapping[str, Any]:
    """What sets clips of one protocol apart from those of another."""
    height, width = model.size
    return {"num_frames": model.num_frames, "height": height, "width": width, "fps": model.fps}


def _pictures(jobs: Sequence[Job]) -> list[Any]:
    """The pictures that clips go on from, as the prompts' records name them.

    Raises:
        ConfigError: a prompt names none.
        RowError: one cannot be read.
    """
    from mmalign.train.sample_clips import read_pictures

    for job in jobs:
        if not isinstance(job.item.expected.get("image"), str):
            message = explain(
                f"prompt {job.item.id}: image",
                got=job.item.expected.get("image"),
                expected="a file: this model's clips go on from a picture",
            )
            raise ConfigError(message)
    return read_pictures([job.item.expected["image"] for job in jobs])
