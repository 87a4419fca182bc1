"""Small copies of pictures that travel inside a page, up to a number of bytes; the rest is linked.

Of a clip it is a strip of its first, middle and last frame, of a sound its spectrogram.

Which pictures come first matters once the limit is reached: the two ends of the order of gains, which a
reader opens first, alternate with a fixed random order, from which a fair vote can be drawn.
"""

import base64
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.data.config import ImageLimits
from mmalign.data.media import decode_image, read_media
from mmalign.errors import RowError
from mmalign.evals.adopted_pictures import is_clip, is_sound
from mmalign.evals.sound_previews import spectrogram_picture

__all__ = ["SIDE", "Pictures", "gather", "priority"]

SIDE = 256
"""Pixels of a thumbnail's longer side."""

_LIMITS = ImageLimits(min_side=1, max_aspect_ratio=64.0)
_GAP = 2
"""White pixels between the frames of a clip."""
_LOSSLESS_SIDE = 96
"""Pictures of up to so many pixels keep every one of them: the page enlarges them."""


@dataclass(frozen=True)
class Pictures:
    """Every picture of a run once, however many samples show it.

    Args:
        root: deepest folder that holds all of them.
        files: path below `root` by number, with forward slashes.
        thumbnails: WebP in base64, in the order they were made.
        place: index into `thumbnails` by number, -1 where the picture is only linked.
        problems: why a thumbnail could not be made, by number.
        shown: model to the picture's number of each sample, -1 where it has none.
    """

    root: str
    files: Sequence[str]
    thumbnails: Sequence[str]
    place: Sequence[int]
    problems: Mapping[int, str]
    shown: Mapping[str, Sequence[int]]


def gather(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], order: Iterable[int], *, max_bytes: int
) -> Pictures:
    """The pictures of all samples, thumbnails of those that come first in `order` while they fit.

    Args:
        rows: samples as `sample_rows` writes them.
        names: models.
        order: sample numbers, most important first.
        max_bytes: of all thumbnails together, as WebP; base64 makes them a third larger.
    """
    numbers: dict[str, int] = {}
    paths: list[str] = []
    shown: dict[str, list[int]] = {name: [] for name in names}
    for row in rows:
        for name in names:
            entry = row["models"][name]
            if entry["path"] is None:
                shown[name].append(-1)
                continue
            key = entry["sha256"] or entry["path"]
            if key not in numbers:
                numbers[key] = len(paths)
                paths.append(os.path.abspath(entry["path"]))
            shown[name].append(numbers[key])
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else os.getcwd()
    wanted = dict.fromkeys(
        shown[name][sample] for sample in order for name in names if shown[name][sample] >= 0
    )
    place = [-1] * len(paths)
    thumbnails: list[str] = []
    problems: dict[int, str] = {}
    spent = 0
    for number in wanted:
        try:
            small = thumbnail(paths[number])
        except RowError as error:
            problems[number] = str(error)
            continue
        spent += len(small)
        if spent > max_bytes:
            break
        place[number] = len(thumbnails)
        thumbnails.append(base64.b64encode(small).decode("ascii"))
    files = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    return Pictures(root, files, thumbnails, place, problems, shown)


def thumbnail(path: str | Path) -> bytes:
    """WebP of at most `SIDE` pixels, small pictures unchanged; three frames of a clip, a sound's spectrum.

    Raises:
        RowError: the file is missing, or neither a picture nor a clip nor a sound.
    """
    image = spectrogram_picture(path) if is_sound(path) else _strip(path) if is_clip(path) else _small(path)
    buffer = io.BytesIO()
    if max(image.size) <= _LOSSLESS_SIDE:
        image.save(buffer, format="WEBP", lossless=True, quality=80)
    else:
        image.save(buffer, format="WEBP", quality=80, method=2)
    return buffer.getvalue()


def _small(path: str | Path) -> Image.Image:
    data = read_media(str(path), where=str(path), max_bytes=2**32)
    image = decode_image(data, where=str(path), limits=_LIMITS, shorter_side=SIDE).image
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def _strip(path: str | Path) -> Image.Image:
    """First, middle and last frame from left to right; of a clip of one or two frames those."""
    from mmalign.rewards.video_files import read_frames

    frames = read_frames(path, lambda total, _: sorted({0, (total - 1) // 2, total - 1}))
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    width, height = pictures[0].size
    strip = Image.new("RGB", (len(pictures) * (width + _GAP) - _GAP, height), "white")
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * (width + _GAP), 0))
    return strip


def priority(ids: Sequence[str], gains: Sequence[float | None]) -> Iterator[int]:
    """Sample numbers: the largest gain, the largest loss, the next of a fixed random order, and again.

    Args:
        ids: of the samples; they decide the random order.
        gains: by how much the second model is better, None where a score is missing.
    """
    known = sorted((gain, number) for number, gain in enumerate(gains) if gain is not None)
    losses = [number for _, number in known]
    drawn = sorted(range(len(ids)), key=lambda number: _hash(ids[number]))
    sources = [iter(losses[::-1]), iter(losses), iter(drawn)]
    seen: set[int] = set()
    while sources and len(seen) < len(ids):
        for source in list(sources):
            number = next((number for number in source if number not in seen), None)
            if number is None:
                sources.remove(source)
            else:
                seen.add(number)
                yield number


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
