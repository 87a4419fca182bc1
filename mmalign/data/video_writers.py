"""Clips to files: mp4 by FFmpeg (PyAV), animated WebP and GIF without it; strips of frames as one picture."""

import io
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from mmalign.data.video_codecs import video_library
from mmalign.data.video_timeline import fraction_of
from mmalign.errors import MissingExtraError, ShapeError, explain
from mmalign.files import atomic_write

__all__ = ["Container", "as_frames", "clip_strip", "encode_clip", "write_clip"]

Container = Literal["mp4", "webp", "gif", "mkv"]
"""mp4 plays everywhere, webp and gif need no extra, mkv (FFV1) is lossless."""

_GAP = 4
"""Pixels between the frames of a strip."""


def as_frames(
    pixels: Float[Tensor, "frame 3 height width"] | UInt8[Tensor, "frame 3 height width"],
) -> UInt8[Tensor, "frame 3 height width"]:
    """Bytes of frames: numbers in [0, 1] are scaled and rounded, bytes stay as they are.

    Raises:
        ShapeError: NaN or infinity among them.
    """
    if pixels.dtype == torch.uint8:
        return pixels.detach().cpu()
    if not bool(pixels.isfinite().all()):
        count = int((~pixels.isfinite()).sum())
        message = explain(
            "frames", got=f"[{count} pixels that are NaN or infinite]", expected="numbers in [0, 1]"
        )
        raise ShapeError(message)
    return (pixels.detach().cpu().float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def encode_clip(
    frames: Float[Tensor, "frame 3 height width"] | UInt8[Tensor, "frame 3 height width"],
    fps: float,
    *,
    container: Container = "mp4",
    quality: int = 18,
) -> bytes:
    """The bytes of a clip; equal frames give equal bytes.

    Sides of odd length get their last row or column twice in mp4, which knows even sides only. GIF knows
    hundredths of a second and 256 colours.

    Args:
        frames: numbers in [0, 1], or bytes.
        fps: frames per second.
        container: see `Container`.
        quality: of mp4: x264's constant rate factor, 0 (lossless) to 51; of webp it is 100 - 2 quality.

    Raises:
        MissingExtraError: mp4 or mkv without PyAV.
        ShapeError: no frames, NaN among them, or a rate that is none.
    """
    if not len(frames) or not 0 < fps < float("inf"):
        message = explain(
            "clip", got=f"[{len(frames)} frames, {fps} a second]", expected="frames and a rate above 0"
        )
        raise ShapeError(message)
    values = as_frames(frames).permute(0, 2, 3, 1).contiguous().numpy()
    if container in ("webp", "gif"):
        return _animated(values, fps, container, quality)
    return _muxed(values, fps, container, quality)


def write_clip(
    path: str | Path,
    frames: Float[Tensor, "frame 3 height width"] | UInt8[Tensor, "frame 3 height width"],
    fps: float,
    *,
    quality: int = 18,
) -> Path:
    """Write a clip in the format of the file's ending; the file appears when it is complete.

    An .mp4 without PyAV becomes a .webp beside it.

    Args:
        path: ending in .mp4, .webp, .gif or .mkv.
        frames: numbers in [0, 1], or bytes.
        fps: frames per second.
        quality: as `encode_clip`.

    Returns:
        The file that was written.

    Raises:
        MissingExtraError: .mkv without PyAV.
        ShapeError: as `encode_clip`, or another ending.
    """
    path = Path(path)
    container = path.suffix.lower().removeprefix(".")
    match container:
        case "mp4":
            try:
                return atomic_write(path, encode_clip(frames, fps, container="mp4", quality=quality))
            except MissingExtraError:
                path = path.with_suffix(".webp")
                return atomic_write(path, encode_clip(frames, fps, container="webp", quality=quality))
        case "webp" | "gif" | "mkv":
            return atomic_write(path, encode_clip(frames, fps, container=container, quality=quality))
    message = explain(str(path), got=path.suffix, expected=".mp4, .webp, .gif or .mkv")
    raise ShapeError(message)


def _animated(values: np.ndarray, fps: float, container: str, quality: int) -> bytes:
    """WebP and GIF by Pillow; durations are rounded so that they add up to the clip's."""
    unit = 10 if container == "gif" else 1  # milliseconds
    ends = [round(1000 * place / (fps * unit)) * unit for place in range(len(values) + 1)]
    lasting = [max(unit, after - before) for before, after in pairwise(ends)]
    images = [Image.fromarray(frame) for frame in values]
    options: dict[str, Any] = (
        {"quality": max(0, 100 - 2 * quality), "method": 4} if container == "webp" else {}
    )
    file = io.BytesIO()
    images[0].save(
        file,
        container.upper(),
        save_all=True,
        append_images=images[1:],
        duration=lasting if len(lasting) > 1 else lasting[0],
        loop=0,
        **options,
    )
    return file.getvalue()


_CODECS = {"mp4": ("libx264", "yuv420p", "mp4"), "mkv": ("ffv1", "bgr0", "matroska")}


def _muxed(values: np.ndarray, fps: float, container: str, quality: int) -> bytes:
    av = video_library()
    codec, pixels, format = _CODECS[container]
    if container == "mp4":
        if codec not in av.codecs_available:
            codec = "mpeg4"  # builds without x264
        odd = tuple((0, side % 2) for side in values.shape[1:3])
        values = np.pad(values, ((0, 0), *odd, (0, 0)), mode="edge")
    file = io.BytesIO()
    # The muxer writes the time and its own name into the head otherwise: equal frames give equal bytes.
    with av.open(file, "w", format=format, container_options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream(codec, rate=fraction_of(fps))
        stream.height, stream.width, stream.pix_fmt = values.shape[1], values.shape[2], pixels
        context = stream.codec_context
        context.thread_count = 1
        if codec == "libx264":
            # x264's macroblock tree reads memory that nobody wrote: equal frames would give other bytes.
            context.options = {"crf": str(quality), "preset": "medium", "x264-params": "mbtree=0"}
        elif codec == "mpeg4":
            context.qmin = context.qmax = max(1, quality // 4)
        context.time_base = 1 / Fraction(fraction_of(fps))
        for place, frame in enumerate(values):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = place, context.time_base
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    return file.getvalue()


def clip_strip(
    frames: Float[Tensor, "frame 3 height width"] | UInt8[Tensor, "frame 3 height width"],
    *,
    count: int = 8,
    height: int | None = None,
    labels: tuple[str, ...] = (),
) -> Image.Image:
    """Frames of a clip beside each other, from the first to the last at even distances.

    Args:
        frames: numbers in [0, 1], or bytes.
        count: how many of them at most.
        height: pixels of the strip's frames; None keeps theirs.
        labels: words written into the frames, one each.

    Raises:
        ShapeError: no frames.
    """
    if not len(frames):
        raise ShapeError(explain("strip", got="[no frames]", expected="at least one"))
    number = min(count, len(frames))
    places = [round(place * (len(frames) - 1) / max(1, number - 1)) for place in range(number)]
    images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in as_frames(frames[places])]
    if height is not None and height != images[0].height:
        width = max(1, round(images[0].width * height / images[0].height))
        images = [image.resize((width, height), Image.Resampling.LANCZOS) for image in images]
    width, tall = images[0].size
    strip = Image.new("RGB", (number * (width + _GAP) - _GAP, tall), "white")
    for place, image in enumerate(images):
        strip.paste(image, (place * (width + _GAP), 0))
    draw = ImageDraw.Draw(strip)
    for place, label in enumerate(labels[:number]):
        draw.text((place * (width + _GAP) + 2, 1), label, fill="white", stroke_width=1, stroke_fill="black")
    return strip
