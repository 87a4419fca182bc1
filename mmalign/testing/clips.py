"""Small clips in every container, made on the spot: frame i is a flat colour that says i."""

import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["CODECS", "SIZE", "animation", "clip", "frames_of", "numbers", "sound_alone", "tone"]

SIZE = (32, 48)
"""(height, width) in pixels."""


def frames_of(count: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """[frame, height, width, 3]: grey 20 i with a white corner on top left."""
    frames = np.zeros((count, *size, 3), np.uint8)
    frames += (20 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    frames[:, : size[0] // 4, : size[1] // 4] = 255
    return frames


def numbers(frames: UInt8[Tensor, "frame 3 height width"]) -> list[int]:
    """Which of `frames_of` these are."""
    row, column = frames.shape[2] // 2, frames.shape[3] // 2
    return [round(float(frame[:, row, column].float().mean()) / 20) for frame in frames]


CODECS = {
    "mov": ("png", "rgb24"),
    "matroska": ("ffv1", "bgr0"),
    "mp4": ("libx264", "yuv420p"),
    "webm": ("libvpx", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "mpegts": ("libx264", "yuv420p"),
    "h264": ("libx264", "yuv420p"),
}
"""Container to the codec and the pixels that `clip` writes; the first two are lossless."""


def clip(
    container: str = "mov",
    frames: NDArray[np.uint8] | int = 11,
    *,
    rate: int = 10,
    stamps: Sequence[int] | None = None,
    rotate: int = 0,
    mirror: bool = False,
    sound: bool = False,
    index_first: bool = False,
    pixels: str | None = None,
    **settings: Any,
) -> bytes:
    """Bytes of a clip.

    Args:
        container: a key of `CODECS`.
        frames: [frame, height, width, 3 or 4], or how many of `frames_of`.
        rate: frames per second.
        stamps: milliseconds at which the frames are shown; None for one rate.
        rotate: degrees counter-clockwise that players turn it by.
        mirror: whether they then mirror it.
        sound: whether a second of sound lies beside it.
        index_first: of mp4: whether the index stands before the pictures.
        pixels: format of the pixels in the file.
        settings: of the codec's context.
    """
    frames = frames_of(frames) if isinstance(frames, int) else frames
    codec, usual = CODECS[container]
    options = {"movflags": "faststart"} if index_first else {}
    with tempfile.TemporaryDirectory() as folder:  # FFmpeg reads its own file again to put the index first
        path = Path(folder) / "clip"
        with av.open(str(path), "w", format=container, options=options) as output:
            stream: Any = output.add_stream(codec, rate=rate)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pixels or usual
            if stamps is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            if rotate or mirror:
                stream.set_display_rotation(rotate, mirror)
            for name, value in settings.items():
                setattr(stream.codec_context, name, value)
            voice: Any = output.add_stream("aac", rate=16_000) if sound else None
            for place, values in enumerate(frames):
                layout = "rgba" if frames.shape[3] == 4 else "rgb24"
                frame = av.VideoFrame.from_ndarray(values, format=layout)
                if stamps is not None:
                    frame.pts, frame.time_base = stamps[place], stream.codec_context.time_base
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
            if voice is not None:
                output.mux(voice.encode(tone()))
                output.mux(voice.encode())
        return path.read_bytes()


def tone() -> av.AudioFrame:
    """A second of sound."""
    values = (0.1 * np.sin(np.arange(16_000) / 10)).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(values, format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 16_000, 0
    return frame


def sound_alone(container: str = "mp4") -> bytes:
    """A container of video with nothing to see in it."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        voice: Any = output.add_stream("aac", rate=16_000)
        output.mux(voice.encode(tone()))
        output.mux(voice.encode())
    return file.getvalue()


def animation(
    kind: str = "GIF", count: int = 7, *, duration: Any = 100, mode: str = "RGB", **options: Any
) -> bytes:
    """Bytes of an animated GIF, WEBP or PNG as Pillow writes it."""
    images = [Image.fromarray(values).convert(mode) for values in frames_of(count)]
    file = io.BytesIO()
    lossless = {"lossless": True} if kind == "WEBP" else {}
    images[0].save(
        file, kind, save_all=True, append_images=images[1:], duration=duration, loop=0, **lossless, **options
    )
    return file.getvalue()
