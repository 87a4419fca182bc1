"""Images and videos of rows as their processor takes them: decoded, upright, sampled, spoilt on purpose.

Every distinct picture is processed once per row; what its processor gave and what it writes into the prompt
travel together as a `Medium`.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmalign.batch import Media
from mmalign.data.config import ImageLimits
from mmalign.data.media import decode_image, read_media
from mmalign.errors import RowError, explain
from mmalign.vlm.inputs import MediaKind, Medium
from mmalign.vlm.traits import Settings, VlmTraits

__all__ = ["Clip", "FrameChoice", "MediaReader", "Picture", "process"]

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image and what identifies it."""

    image: Image.Image
    digest: str

    @classmethod
    def of(cls, image: Image.Image) -> "Picture":
        """A picture, identified by its pixels."""
        content = hashlib.blake2b(image.tobytes(), digest_size=16)
        content.update(str(image.size).encode())
        return cls(image, content.hexdigest())


@dataclass(frozen=True, eq=False)
class Clip:
    """Chosen frames of a video.

    Args:
        frames: of one size.
        indices: where they lie among the frames of the file.
        rate: frames of the file per second.
        total: frames of the file.
        digest: identifies them.
    """

    frames: tuple[Image.Image, ...]
    indices: tuple[int, ...]
    rate: float
    total: int
    digest: str


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video are shown.

    Args:
        num_frames: evenly spaced; None: by `fps`.
        fps: frames per second.
        max_frames: at most so many.
    """

    num_frames: int | None = None
    fps: float = 2.0
    max_frames: int = 64

    def __call__(self, total: int, rate: float) -> list[int]:
        """Indices of the frames, evenly spaced from the first to the last."""
        wanted = self.num_frames or max(1, round(total / rate * self.fps))
        number = min(wanted, self.max_frames, total)
        return [round(place) for place in np.linspace(0, total - 1, number)]


@dataclass(frozen=True)
class MediaReader:
    """Opens media of rows.

    Args:
        limits: sizes beyond which a picture is refused.
        choice: of frames.
    """

    limits: ImageLimits
    choice: FrameChoice

    def picture(self, media: bytes | str, *, where: str) -> Picture:
        """An upright RGB image.

        Raises:
            RowError: it cannot be read, or is too large.
        """
        data = read_media(media, where=where, max_bytes=self.limits.max_bytes)
        return Picture.of(decode_image(data, where=where, limits=self.limits).image)

    def clip(self, media: Media, *, where: str) -> Clip:
        """Chosen frames of a video file, of encoded bytes, of a folder of frames or of a list of them.

        Frames without a file have no rate of their own: they count as taken at `choice.fps`.

        Raises:
            RowError: it cannot be read, holds no frames, or frames of several sizes.
            MissingExtraError: a file, and PyAV is not installed.
        """
        if isinstance(media, tuple) or (isinstance(media, str) and Path(media).is_dir()):
            return self._from_frames(media, where)
        if isinstance(media, bytes):
            with tempfile.NamedTemporaryFile(suffix=".video") as file:
                file.write(media)
                file.flush()
                return self._from_file(file.name)
        return self._from_file(media)

    def _from_frames(self, media: tuple[bytes | str, ...] | str, where: str) -> Clip:
        if isinstance(media, str):
            files = sorted(path for path in Path(media).iterdir() if path.suffix.lower() in _PICTURES)
            media = tuple(str(path) for path in files)
        if not media:
            message = explain(where, got="[a video without frames]", expected="at least one")
            raise RowError(message, reason="empty_video")
        rate = self.choice.fps
        places = self.choice(len(media), rate)
        return _clip(
            [self.picture(media[place], where=where).image for place in places],
            places,
            rate,
            len(media),
            where,
        )

    def _from_file(self, path: str) -> Clip:
        from mmalign.rewards.video_files import read_frames

        told: list[tuple[list[int], float, int]] = []

        def choose(total: int, rate: float) -> Sequence[int]:
            told.append((self.choice(total, rate), rate, total))
            return told[-1][0]

        frames = read_frames(path, choose).permute(0, 2, 3, 1).numpy()
        places, rate, total = told[-1]
        return _clip([Image.fromarray(frame) for frame in frames], places, rate, total, path)


def _clip(frames: Sequence[Image.Image], places: Sequence[int], rate: float, total: int, where: str) -> Clip:
    if len({frame.size for frame in frames}) > 1:
        message = explain(where, got="[frames of several sizes]", expected="one size")
        raise RowError(message, reason="unequal_frames")
    digest = hashlib.blake2b(repr((frames[0].size, tuple(places), rate, total)).encode(), digest_size=16)
    for frame in frames:
        digest.update(frame.tobytes())
    return Clip(tuple(frames), tuple(places), rate, total, digest.hexdigest())


# --- processing ---------------------------------------------------------------------------------------------


def process(traits: VlmTraits, shown: Sequence[Picture | Clip], settings: Settings) -> list[Medium]:
    """Every medium of a prompt as its processor gives it, in the order shown."""
    number = sum(isinstance(item, Picture) for item in shown)
    if number and not traits.alone(number):
        pictures = [item for item in shown if isinstance(item, Picture)]
        several = iter(_pictures(traits, pictures, settings))
        return [
            next(several) if isinstance(item, Picture) else _video(traits, item, settings) for item in shown
        ]
    made: dict[str, Medium] = {}
    for item in shown:
        if item.digest not in made:
            made[item.digest] = (
                _pictures(traits, [item], settings)[0]
                if isinstance(item, Picture)
                else _video(traits, item, settings)
            )
    return [made[item.digest] for item in shown]


_NOT_MEDIA = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels"})


def _pictures(traits: VlmTraits, pictures: Sequence[Picture], settings: Settings) -> list[Medium]:
    """Pictures processed together, apart again."""
    max_pixels = None if "size" in settings else settings.get("max_pixels")
    given = {name: value for name, value in settings.items() if name != "max_pixels"}
    images = [_at_most(item.image, max_pixels) for item in pictures]
    text, tensors = _call(traits, "image", {"images": [images], "images_kwargs": given}, len(images))
    counts = [_count(traits, "image", part) for part in text]
    made = []
    for place, (item, part, count) in enumerate(zip(pictures, text, counts, strict=True)):
        own = tensors if len(pictures) == 1 else traits.one_of(tensors, place, count)
        digest = f"{item.digest}:{sorted(settings.items())}:{len(pictures) > 1}"
        made.append(Medium("image", own, count, digest, part))
    return made


def _video(traits: VlmTraits, clip: Clip, settings: Settings) -> Medium:
    from transformers.video_utils import VideoMetadata

    max_pixels = settings.get("max_pixels")

    frames = np.stack([np.asarray(_at_most(frame, max_pixels)) for frame in clip.frames])
    metadata = VideoMetadata(
        total_num_frames=clip.total,
        fps=clip.rate,
        duration=clip.total / clip.rate,
        frames_indices=list(clip.indices),
        height=frames.shape[1],
        width=frames.shape[2],
    )
    given = {
        "videos": [torch.from_numpy(frames).permute(0, 3, 1, 2)],
        "videos_kwargs": {"do_sample_frames": False, "video_metadata": [metadata]},
    }
    (text,), tensors = _call(traits, "video", given, 1)
    return Medium(
        traits.feature_kind("video"),
        tensors,
        _count(traits, "video", text),
        f"{clip.digest}:{max_pixels}",
        text,
    )


def _call(
    traits: VlmTraits, kind: MediaKind, given: dict[str, Any], number: int
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """What the processor writes for each of some media, and their tensors."""
    output = traits.processor(
        text=[traits.placeholder(kind) * number],
        return_tensors="pt",
        return_text_replacement_offsets=True,
        **given,
    )
    found = [item["replacement"] for sample in output["text_replacement_offsets"] for item in sample]
    tensors = {
        name: value
        for name, value in output.items()
        if name not in _NOT_MEDIA and isinstance(value, torch.Tensor)
    }
    return found, traits.cleaned(kind, tensors)


def _count(traits: VlmTraits, kind: MediaKind, text: str) -> int:
    """Placeholders in what stands for a medium."""
    ids = traits.tokenizer(text, add_special_tokens=False)["input_ids"]
    return sum(token == traits.media_ids[traits.feature_kind(kind)] for token in ids)


def _at_most(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The picture with at most so many pixels, its sides in proportion."""
    width, height = image.size
    if max_pixels is None or width * height <= max_pixels:
        return image
    shrink = (max_pixels / (width * height)) ** 0.5
    size = (max(1, int(width * shrink)), max(1, int(height * shrink)))
    return image.resize(size, Image.Resampling.BICUBIC)
