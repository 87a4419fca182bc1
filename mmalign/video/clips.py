"""From a row of a data set to clips on the CPU: what a loader worker does for a video family.

Frames are resized, keeping their aspect, until they cover the model's size, and the centre is cut out. All
candidates of a row show the same stretch of time, so that labels in time mean the same in each of them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from mmalign.batch import Media, PreferenceRow
from mmalign.data.config import ImageLimits, VideoLimits
from mmalign.data.media import decode_image, read_media
from mmalign.data.video_media import decode_clips
from mmalign.data.video_stills import check_clip_files, clip_contents
from mmalign.diffusion.clip_reader import ClipReader
from mmalign.errors import RowError, explain
from mmalign.seeding import derive_seed

__all__ = [
    "CLIP_RULE",
    "IMAGE",
    "Clip",
    "ClipLoader",
    "Clips",
    "RowPicture",
    "VideoReader",
    "covering",
    "picture_tensor",
]

CLIP_RULE = "nearest-time-bicubic-antialias-centre"
"""Names everything between file and clip that no setting names; it is part of every cache key."""

IMAGE = "image."
"""Before the names of conditioning that pictures give, in examples."""

Start = Literal["first", "random", "middle"]


class RowPicture(bytes):
    """The encoded picture that a row's clips go on from, told from its clips."""


class RowRate(bytes):
    """Frames per second, in words, of a row's clips that lie as images; told from its clips."""


@dataclass(frozen=True)
class Clip:
    """A clip as it is shown.

    Args:
        frames: from 0 to 255.
        fps: frames per second.
    """

    frames: UInt8[Tensor, "frame 3 height width"]
    fps: float

    @classmethod
    def of(cls, pixels: Float[Tensor, "frame 3 height width"], fps: float) -> "Clip":
        """The clip of pixels in [0, 1]."""
        return cls((pixels.detach() * 255).round().clamp(0, 255).to(torch.uint8).cpu(), fps)


@dataclass(frozen=True)
class Clips:
    """The clips of one row.

    Args:
        inputs: frames from 0 to 255; where a model goes on from a picture, that comes first.
        geometry: per candidate (height and width in the file, the first frame's time in milliseconds, 0,
            height and width of the clip).
    """

    inputs: UInt8[Tensor, "candidate frame 3 height width"]
    geometry: Tensor


def picture_tensor(image: Any) -> UInt8[Tensor, "3 height width"]:
    """A PIL image as bytes of three channels."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def covering(
    frames: UInt8[Tensor, "frame 3 source_height source_width"], size: tuple[int, int]
) -> UInt8[Tensor, "frame 3 height width"]:
    """Frames resized (bicubic, antialiased) until they cover a size (height, width), its centre cut out."""
    height, width = frames.shape[-2:]
    if (height, width) == size:
        return frames
    scale = max(size[0] / height, size[1] / width)
    inner = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
    parts = []
    for part in frames.split(8):  # float32 frames of a whole clip at once would fill memory
        resized = F.interpolate(part.float(), inner, mode="bicubic", antialias=True, align_corners=False)
        cut = resized[..., top : top + size[0], left : left + size[1]]
        parts.append(cut.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


@dataclass(frozen=True)
class ClipLoader:
    """How the clips of rows become tensors; holds settings only, so that it travels to loader workers.

    Args:
        num_frames: of every clip.
        fps: at which they are sampled.
        size: (height, width).
        start: which part of longer clips.
        with_image: put the picture that a clip goes on from before it: the row's own, else its first frame.
        limits: clips that are refused.
    """

    num_frames: int
    fps: float
    size: tuple[int, int]
    start: Start = "first"
    with_image: bool = False
    limits: VideoLimits = field(default_factory=VideoLimits)

    @property
    def rule(self) -> str:
        """Everything that is done between file and clip, in words."""
        image = "|with the picture" if self.with_image else ""
        size = f"{self.size[1]}x{self.size[0]}"
        return f"{CLIP_RULE}|{self.num_frames} frames at {self.fps:g} fps|{size}|{self.start}{image}"

    def encoded(self, row: PreferenceRow) -> list[Media]:
        """The encoded bytes or the path of each candidate, and behind them what the row says of all.

        That is the rate of clips that lie as images, where it is not the model's, and the picture that clips
        go on from, if one is wanted.

        Raises:
            RowError: missing, empty or too large; or the row's picture is where a clip begins, and clips are
                cut elsewhere (reason `picture_and_start`).
        """
        found: list[Media] = []
        for number, candidate in enumerate(row.candidates):
            where = _where(row, number)
            if candidate.video is None:
                message = f"{where}: got no video. Is the source's `media` set to what the rows hold?"
                raise RowError(message, reason="missing_video")
            found.append(candidate.video)
        rate = _stored_rate(row) or self.limits.frames_fps or self.fps
        if rate != self.fps and any(_is_images(media) for media in found):
            found.append(RowRate(f"|images at {rate:g} fps".encode()))
        if self.with_image and row.images:
            if self.start != "first":
                message = explain(
                    f"{_picture(row)} with video.start",
                    got=self.start,
                    expected="first: the row's picture is what its clips begin with",
                    do="Set video.start to first, or leave the column of pictures out.",
                )
                raise RowError(message, reason="picture_and_start")
            picture = read_media(row.images[0], where=_picture(row), max_bytes=ImageLimits().max_bytes)
            found.append(RowPicture(picture))
        return found

    def keys(self, encoded: list[Media], *, flipped: bool = False) -> list[str]:
        """Name of each candidate's entry in a cache: a hash of its content and of all that was done.

        Raises:
            RowError: a file cannot be read.
        """
        del flipped
        clips, picture, rate = _split(encoded)
        names = []
        for data in clips:
            digest = hashlib.blake2b(digest_size=16, person=b"mmalign-video")
            check_clip_files(data, where=str(data)[:200], max_bytes=2**62)
            for part in chain(clip_contents(data), clip_contents(picture)):
                digest.update(part)
            digest.update(f"|{self.rule}".encode() + (rate if _is_images(data) else b""))
            names.append(digest.hexdigest())
        return names

    def load(self, row: PreferenceRow, *, key: int = 0) -> Clips:
        """The clips of a row; `key` decides a random start.

        Raises:
            RowError: one is missing, unreadable or refused.
        """
        return self.centered(row, self.encoded(row), key=key)

    def centered(
        self, row: PreferenceRow, encoded: list[Media], *, flipped: bool = False, key: int = 0
    ) -> Clips:
        """The clips of a row whose media were found.

        Raises:
            RowError: one cannot be decoded, or is refused.
        """
        del flipped
        clips, picture, _ = _split(encoded)

        def cut(frame: UInt8[Tensor, "3 source_height source_width"]) -> UInt8[Tensor, "3 height width"]:
            return covering(frame.unsqueeze(0), self.size).squeeze(0)

        inputs, facts = [], []
        decoded = decode_clips(
            clips,
            where=[_where(row, number) for number in range(len(clips))],
            limits=self.limits,
            fps=self.fps,
            num_frames=self.num_frames,
            place=self._place(key),
            stored_fps=_stored_rate(row),
            each=cut,
        )
        for clip in decoded:
            size, frames = clip.shown_size or clip.size, clip.frames
            if self.with_image:
                first = self._shown(picture, row) if picture else frames[:1]
                frames = torch.cat([first, frames])
            inputs.append(frames)
            facts.append([*size, round(1000 * (clip.moments[0] if clip.moments else 0.0)), 0, *self.size])
        return Clips(inputs=torch.stack(inputs), geometry=torch.tensor(facts, dtype=torch.int64))

    def _place(self, key: int) -> float:
        """Which part of longer clips, from 0 (the beginning) to 1 (the end)."""
        if self.start == "random":
            return (key & 0xFFFFFF) / 2**24
        return 0.5 if self.start == "middle" else 0.0

    def _shown(self, picture: bytes, row: PreferenceRow) -> UInt8[Tensor, "1 3 height width"]:
        """The row's own picture, at the clips' size."""
        image = decode_image(picture, where=_picture(row), limits=ImageLimits()).image
        return covering(picture_tensor(image).unsqueeze(0), self.size)


def _split(encoded: list[Media]) -> tuple[list[Media], bytes, bytes]:
    """(clips, the row's picture, what its rate adds to names) of what `encoded` gave; b"" for none."""
    clips = [part for part in encoded if not isinstance(part, RowPicture | RowRate)]
    picture = next((part for part in encoded if isinstance(part, RowPicture)), b"")
    rate = next((part for part in encoded if isinstance(part, RowRate)), b"")
    return clips, picture, rate


def _stored_rate(row: PreferenceRow) -> float | None:
    """Frames per second that the row's own column says."""
    stored = row.extras.get("fps")
    return float(stored) if isinstance(stored, int | float) and stored > 0 else None


def _is_images(media: Media) -> bool:
    """Whether a clip lies as images, whose rate no file says."""
    return isinstance(media, tuple) or (isinstance(media, str) and Path(media).is_dir())


def _picture(row: PreferenceRow) -> str:
    return f"{row.source or row.id or f'row {row.index}'} image"


def _where(row: PreferenceRow, number: int) -> str:
    """File, row and candidate, for messages."""
    role = ""
    if row.kind == "pairs":
        role = " (chosen)" if number == 0 else " (rejected)"
    return f"{row.source or row.id or f'row {row.index}'} candidate {number}{role}"


@dataclass(frozen=True, kw_only=True)
class VideoReader(ClipReader):
    """Turns rows into examples, and examples into micro-batches.

    Args:
        clips: decodes, samples, resizes and cuts.
        cleaned: unescape HTML in prompts and join their white space, as some pipelines do.
    """

    clips: ClipLoader
    cleaned: bool = False
    media: ClassVar[str] = "clips"

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """Prompts as the pipeline gives them to its tokenizer."""
        if not self.cleaned:
            return super().texts(prompts)
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        return [prompt_clean(prompt) for prompt in prompts]

    def __call__(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """As every clip; from the cache with what it holds of the pictures that clips go on from, too."""
        found = super().__call__(row, key=key)
        if self.cache is None or not self.clips.with_image:
            return found
        states = self.cache.more(row, self.clips)
        return {**found, **{f"{IMAGE}{name}": value for name, value in states.items()}}

    def decoded(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """Frames [candidate frame 3 height width]; the key decides which part of longer clips.

        Raises:
            RowError: a clip cannot be read.
        """
        loaded = self.clips.load(row, key=derive_seed(key, "start"))
        return {self.media: loaded.inputs, "geometry": loaded.geometry}
