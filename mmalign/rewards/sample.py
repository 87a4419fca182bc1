"""What is scored: a prompt and a picture, clip, sound or answer, in whatever form it is at hand."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmalign.data.config import ImageLimits
from mmalign.data.media import decode_image, read_media
from mmalign.errors import RowError, explain

__all__ = ["Media", "Sample", "media_hash", "to_image", "to_pixels"]

Media = str | Path | bytes | Image.Image | np.ndarray | Tensor
"""A file, encoded bytes, a PIL image, or an array: uint8 or floating point in [0, 1]."""

_ORIENTATION = 0x0112
"""EXIF tag: how the stored picture is to be turned."""

_LIMITS = ImageLimits(min_side=1, max_aspect_ratio=64.0)


@dataclass(frozen=True)
class Sample:
    """One thing to score.

    Args:
        prompt: text it was made for, or the question it answers.
        image: the picture.
        frames: pictures of a clip, in order.
        text: the answer, for rewards of text.
        video: file of a clip.
        audio: a sound: its file, or encoded bytes.
        extras: what some rewards read besides (condition, references, user, ...); values go into the hash.
        id: the caller's name for it; it plays no part in the score.
    """

    prompt: str = ""
    image: Media | None = None
    frames: Sequence[Media] | None = None
    text: str | None = None
    video: str | Path | None = None
    audio: str | Path | bytes | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    def content_hash(self) -> str:
        """Hexadecimal SHA-256 of everything that can change a score, and of nothing else.

        Files count by their bytes: a copy is the same input, a re-encoded picture is another.
        """
        parts: dict[str, Any] = {"prompt": self.prompt, "text": self.text, "extras": dict(self.extras)}
        for name in ("image", "video", "audio"):
            media = getattr(self, name)
            parts[name] = None if media is None else media_hash(media)
        parts["frames"] = None if self.frames is None else [media_hash(frame) for frame in self.frames]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=_hashable)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _hashable(value: Any) -> Any:
    """Extras JSON does not know: media by their content, other things not at all."""
    if isinstance(value, (Path, bytes, Image.Image, np.ndarray, Tensor)):
        return media_hash(value)
    message = explain("Sample.extras", got=type(value).__name__, expected="text, numbers, lists or media")
    raise TypeError(message)


def media_hash(media: Media) -> str:
    """Hexadecimal SHA-256: of a file's bytes, or of type, shape and values of what is in memory.

    Raises:
        RowError: reason `missing_file` or `unreadable_file`.
    """
    if isinstance(media, (str, Path)):
        return hashlib.sha256(_file_bytes(media)).hexdigest()
    if isinstance(media, bytes):
        return hashlib.sha256(media).hexdigest()
    if isinstance(media, Image.Image):
        # Two pictures may share their bytes and differ in palette, transparency or orientation.
        turned = media.getexif().get(_ORIENTATION, 1)
        colours = (media.getpalette(), media.info.get("transparency"), turned)
        head, body = f"pil {media.mode} {media.size} {colours}", media.tobytes()
    elif isinstance(media, Tensor):
        values = media.detach().cpu().contiguous()
        head = f"tensor {values.dtype} {tuple(values.shape)}"
        body = values.view(torch.uint8).numpy().tobytes() if values.ndim else str(values.item()).encode()
    else:
        head, body = f"array {media.dtype} {media.shape}", np.ascontiguousarray(media).tobytes()
    return hashlib.sha256(head.encode() + b"\0" + body).hexdigest()


def _file_bytes(path: str | Path) -> bytes:
    return read_media(str(path), where=str(path), max_bytes=2**36)


def to_image(media: Media, *, where: str = "Sample.image") -> Image.Image:
    """The upright 8-bit RGB picture, whatever it came as.

    Alpha is laid over white and EXIF orientation applied; floating-point tensors are rounded to 8 bits.

    Raises:
        RowError: unreadable files (see `mmalign.data.media`), or an array that is no picture
            (`not_an_image`).
    """
    if isinstance(media, (str, Path)):
        return decode_image(_file_bytes(media), where=str(media), limits=_LIMITS).image
    if isinstance(media, bytes):
        return decode_image(media, where=where, limits=_LIMITS).image
    if isinstance(media, Image.Image):
        return _upright(media)
    if not isinstance(media, (np.ndarray, Tensor)):
        expected = "a path, encoded bytes, a PIL image, an array or a tensor"
        raise RowError(explain(where, got=type(media).__name__, expected=expected), reason="not_an_image")
    pixels = to_pixels(media, where=where)
    return Image.fromarray((pixels * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _upright(image: Image.Image) -> Image.Image:
    """A PIL image as data sets' files come out: one conversion for all."""
    from io import BytesIO

    if image.mode == "RGB" and not image.getexif() and "transparency" not in image.info:
        return image
    stored = BytesIO()
    kept = image if image.mode in ("RGBA", "LA", "L", "P", "RGB", "I;16", "I") else image.convert("RGB")
    kept.save(stored, format="PNG", exif=image.getexif())
    return decode_image(stored.getvalue(), where="Sample.image", limits=_LIMITS).image


def to_pixels(media: Media, *, where: str = "Sample.image") -> Tensor:
    """Float32 [3, height, width] in [0, 1].

    Arrays and tensors say by their type what they hold: uint8 is 0 to 255, floating point is 0 to 1.

    Raises:
        RowError: as `to_image`; a floating-point array outside [0, 1] (it may be [-1, 1] or 0 to 255: nothing
            is guessed) has reason `not_an_image`.
    """
    if isinstance(media, np.ndarray):
        media = torch.from_numpy(np.array(media))
    if not isinstance(media, Tensor):
        array = np.asarray(to_image(media, where=where))
        return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255.0
    pixels = _channels_first(media.detach().cpu())
    if pixels is None or pixels.numel() == 0:
        got = f"[{', '.join(map(str, media.shape))}]"
        message = explain(where, got=got, expected="[3, height, width] or [height, width, 3]")
        raise RowError(message, reason="not_an_image")
    return _over_white(_in_range(pixels, where=where)).expand(3, -1, -1)


def _channels_first(media: Tensor) -> Tensor | None:
    """[1, 3 or 4, height, width] of a picture in either order, alone or in a batch of one; else None."""
    if media.ndim == 4 and media.shape[0] == 1:
        media = media[0]
    if media.ndim != 3:
        return None
    if media.shape[0] in (1, 3):
        return media
    if media.shape[-1] in (1, 3, 4):
        return media.permute(2, 0, 1)
    return media if media.shape[0] == 4 else None


def _in_range(pixels: Tensor, *, where: str) -> Tensor:
    """Float32 in [0, 1].

    Raises:
        RowError: reason `not_an_image`.
    """
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255.0
    known = pixels.is_floating_point()
    lowest, highest = (float(pixels.min()), float(pixels.max())) if known else (torch.nan, torch.nan)
    if not (lowest >= -1e-4 and highest <= 1.0 + 1e-4):  # also where it is not a number
        message = explain(
            where,
            got=f"[{pixels.dtype} from {lowest:g} to {highest:g}]" if known else f"[{pixels.dtype}]",
            expected="uint8 from 0 to 255 or floating point from 0 to 1",
            do="Map [-1, 1] to [0, 1] with (x + 1) / 2.",
        )
        raise RowError(message, reason="not_an_image")
    return pixels.float().clamp(0.0, 1.0)


def _over_white(pixels: Tensor) -> Tensor:
    """Three channels of four, as files with transparency come out."""
    if pixels.shape[0] != 4:
        return pixels
    colours, opacity = pixels[:3], pixels[3:]
    return colours * opacity + (1.0 - opacity)
