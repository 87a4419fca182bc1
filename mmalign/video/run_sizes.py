"""Whether a model can make the clips that a run asks for: their sizes, and pictures that they go on from."""

from typing import TYPE_CHECKING

from mmalign.errors import ConfigError, explain

if TYPE_CHECKING:
    from mmalign.train.video_sections import VideoConfig

__all__ = ["check_clip_size", "goes_on_from_pictures"]


def goes_on_from_pictures(video: "VideoConfig", takes: bool | None, source: str) -> bool:
    """Whether clips go on from a picture in this run.

    Args:
        video: the run's `video` section.
        takes: whether the checkpoint does so: always, never, or None: as one likes.
        source: of the checkpoint.

    Raises:
        ConfigError: the run asks for what the checkpoint is not made for.
    """
    asked = video.conditioning
    if video.image_dropout > 0 and not (takes or asked == "image"):
        expected = "0: clips of this run go on from no picture"
        raise ConfigError(explain("video.image_dropout", got=video.image_dropout, expected=expected))
    if asked is None:
        return bool(takes)
    if takes is not None and takes != (asked == "image"):
        made = "image: clips go on from a picture" if takes else "text alone"
        expected = f"{made}, which {source} is made for"
        raise ConfigError(explain("video.conditioning", got=asked, expected=expected))
    return asked == "image"


def check_clip_size(num_frames: int, size: tuple[int, int], *, step: int, multiple: int) -> None:
    """Raise `ConfigError`, with the nearest that can be, where VAE and network cannot take such clips.

    Args:
        num_frames: of a clip.
        size: (height, width), pixels.
        step: frames per latent frame, the first apart.
        multiple: of both sides, pixels.
    """
    if (num_frames - 1) % step:
        nearest = max(1, round((num_frames - 1) / step)) * step + 1
        message = explain(
            "video.num_frames",
            got=num_frames,
            expected=f"a multiple of {step} plus 1, as the VAE takes them",
            do=f"The nearest is {nearest}.",
        )
        raise ConfigError(message)
    for name, side in zip(("height", "width"), size, strict=True):
        if side % multiple:
            message = explain(
                f"video.{name}",
                got=side,
                expected=f"a multiple of {multiple}, by which VAE and network shrink",
                do=f"The nearest is {max(1, round(side / multiple)) * multiple}.",
            )
            raise ConfigError(message)
