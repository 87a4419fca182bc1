"""Encoded media to pixels: one place that opens files from data sets, and believes nothing about them.

Everything a data set can get wrong ends in a `RowError` with a reason: missing and empty files, truncated
images, decompression bombs, files that are no images, paths that leave their folder. Exotic but valid images
(CMYK, 16-bit, palette, alpha, EXIF rotation) come out as plain 8-bit RGB.
"""

import contextlib
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmalign.data.config import ImageLimits
from mmalign.errors import RowError

__all__ = [
    "DecodedImage",
    "check_bytes",
    "damage_reported",
    "decode_image",
    "image_ending",
    "read_media",
    "safe_path",
    "to_rgb",
]

# Raster formats only: Pillow would hand PostScript to an external interpreter.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# Given a list of formats, Pillow looks them up without loading the plug-ins that provide them.
Image.init()

# What Pillow's decoders raise on damaged input, besides OSError; seen by flipping bytes in valid files.
_DAMAGED = (
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)

_ORIENTATION_TAG = 0x0112


@cache
def _readable_formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this build of Pillow reads; a name it does not know would fail every image."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright 8-bit RGB image.

    Args:
        image: mode RGB; smaller than the file's when decoding could skip detail that resizing would remove.
        original_size: (height, width) in pixels of the upright image in the file.
    """

    image: Image.Image
    original_size: tuple[int, int]


def safe_path(path: str, *, root: Path, where: str, allow_outside: bool = False) -> str:
    """The absolute path of a file that a row names, if it stays in the data set's folder.

    Args:
        path: as written in the row; relative paths start at `root`.
        root: folder of the data set.
        where: file, row and field, for the message.
        allow_outside: accept any path.

    Raises:
        RowError: reason `path_outside` (absolute, `..` or a symbolic link leads out of `root`), `remote_path`
            (an address) or `bad_path`.
    """
    if "://" in path:
        message = (
            f"{where}: got the address {path!r}, expected a file. Download the media first; rows are never "
            "fetched."
        )
        raise RowError(message, reason="remote_path")
    if "\0" in path or not path.strip():
        message = f"{where}: got the path {path!r}, expected the name of a file."
        raise RowError(message, reason="bad_path")
    try:
        path.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
    except UnicodeEncodeError as error:  # half a surrogate pair, cut out of an emoji
        message = f"{where}: got the path {path!r}, expected a name the file system can hold."
        raise RowError(message, reason="bad_path") from error
    full = os.path.join(root, path)
    if allow_outside:
        return os.path.abspath(full)
    resolved, folder = os.path.realpath(full), os.path.realpath(root)
    if os.path.commonpath([resolved, folder]) != folder:
        message = (
            f"{where}: got the path {path!r}, which leads to {resolved}, expected a file inside {folder}. "
            "Set root to the folder that holds the media, or allow_outside: true if you trust the data set."
        )
        raise RowError(message, reason="path_outside")
    return resolved


def read_media(
    media: bytes | str, *, where: str, max_bytes: int, kind: Literal["image", "audio", "video"] = "image"
) -> bytes:
    """The encoded bytes of a candidate.

    Args:
        media: the bytes themselves, or a path (see `safe_path`).
        where: file, row and field, for the message.
        max_bytes: largest size that is read.
        kind: what it should be, for messages.

    Raises:
        RowError: reason `missing_file`, `empty_file`, `too_many_bytes` or `unreadable_file`.
    """
    check_bytes(media, where=where, max_bytes=max_bytes, kind=kind)
    if isinstance(media, bytes):
        return media
    try:
        return Path(media).read_bytes()
    except OSError as error:
        raise _unreadable(media, where, error) from error


def check_bytes(
    media: bytes | str, *, where: str, max_bytes: int, kind: Literal["image", "audio", "video"]
) -> int:
    """How many encoded bytes a candidate has, without reading them.

    Raises:
        RowError: as `read_media`.
    """
    if isinstance(media, bytes):
        name, size = "the row's bytes", len(media)
    else:
        name = media
        try:
            size = os.stat(media).st_size
        except FileNotFoundError as error:
            message = f"{where}: no such file: {media}. Is it relative to another folder? Set root."
            raise RowError(message, reason="missing_file") from error
        except OSError as error:
            raise _unreadable(media, where, error) from error
        if not os.path.isfile(media):
            message = f"{where}: got {media}, expected a file. Is the column's path relative to another root?"
            raise RowError(message, reason="missing_file")
    if size > max_bytes:
        message = (
            f"{where}: got {size} bytes in {name}, expected at most {max_bytes}. "
            f"Raise data.{kind}{'s' * (kind == 'image')}.max_bytes if this is no accident."
        )
        raise RowError(message, reason="too_many_bytes")
    if not size:
        message = f"{where}: got 0 bytes in {name}, expected an encoded {kind}. Copy or download it again."
        raise RowError(message, reason="empty_file")
    return size


def _unreadable(path: str, where: str, error: OSError) -> RowError:
    message = f"{where}: {path} cannot be read ({error.strerror or error})."
    return RowError(message, reason="unreadable_file")


@contextlib.contextmanager
def damage_reported(where: str, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a `RowError` that says what kind of damage it met."""
    try:
        yield
    except RowError:
        raise
    except UnidentifiedImageError as error:
        message = f"{where}: got {kind}, expected an image ({', '.join(_FORMATS)})."
        raise RowError(message, reason="not_an_image") from error
    except Image.DecompressionBombError as error:
        message = f"{where}: {error}"
        raise RowError(message, reason="too_many_pixels") from error
    except MemoryError as error:
        message = f"{where}: not enough memory to decode this image. Lower data.images.max_pixels."
        raise RowError(message, reason="too_many_pixels") from error
    except OSError as error:
        truncated = "truncated" in str(error)
        message = (
            f"{where}: the image is {'truncated' if truncated else 'damaged'} ({error}). Copy or download "
            "it again."
        )
        raise RowError(message, reason="truncated_image" if truncated else "damaged_image") from error
    except _DAMAGED as error:
        message = (
            f"{where}: the image is damaged ({type(error).__name__}: {error}). Copy or download it again."
        )
        raise RowError(message, reason="damaged_image") from error


def _check_size(size: tuple[int, int], limits: ImageLimits, where: str) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        message = (
            f"{where}: got {width} x {height} = {width * height} pixels, expected at most "
            f"{limits.max_pixels} "
            "(a decompression bomb looks like this). Raise data.images.max_pixels if the image is real."
        )
        raise RowError(message, reason="too_many_pixels")
    if min(size) < limits.min_side:
        message = (
            f"{where}: got {width} x {height} pixels, expected at least {limits.min_side} on the shorter "
            "side."
        )
        raise RowError(message, reason="too_small")
    if max(size) > limits.max_aspect_ratio * min(size):
        message = (
            f"{where}: got {width} x {height} pixels, expected a longer side of at most "
            f"{limits.max_aspect_ratio:g} times the shorter one. Raise data.images.max_aspect_ratio to "
            "accept it."
        )
        raise RowError(message, reason="extreme_aspect")


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: alpha over white, 16-bit scaled down, palette and CMYK expanded."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _from_wide(image)
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        upright = image.convert("RGBA")
        white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, upright).convert("RGB")
    return image.convert("RGB")


def _from_wide(image: Image.Image) -> Image.Image:
    """Grey images of 16 or 32 bits and floating point; Pillow's own conversion would clip them to white."""
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    highest = float(values.max(initial=0.0))
    if image.mode == "F" and highest <= 1.0:
        values = values * 255.0
    elif image.mode.startswith("I;16") or highest > 255.0:
        values = values / 257.0  # 65535 -> 255
    grey = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return grey.convert("RGB")


def decode_image(
    data: bytes, *, where: str, limits: ImageLimits, shorter_side: int | None = None
) -> DecodedImage:
    """The upright RGB image in some bytes.

    EXIF orientation is applied; alpha is laid over white; the first frame of an animation is taken. Colour
    profiles are not applied (the official training codes do not either).

    Args:
        data: encoded image.
        where: file, row and field, for messages.
        limits: sizes that are refused before anything is decoded.
        shorter_side: pixels; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size when that is still no smaller
            than this, which is several times faster.

    Raises:
        RowError: reason `not_an_image`, `truncated_image`, `damaged_image`, `too_many_pixels`, `too_small` or
            `extreme_aspect`.
    """
    kind = "a file that starts with " + repr(bytes(data[:8]))
    with damage_reported(where, kind), warnings.catch_warnings():
        # Pillow warns about sizes that `limits` decides on.
        warnings.simplefilter("ignore")
        with Image.open(BytesIO(data), formats=_readable_formats()) as image:
            _check_size(image.size, limits, where)
            width, height = image.size
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
            if (
                shorter_side is not None
                and image.format in ("JPEG", "MPO")
                and min(image.size) > shorter_side
            ):
                scale = shorter_side / min(image.size)
                image.draft(None, (-int(-width * scale // 1), -int(-height * scale // 1)))
            image.load()
            upright = ImageOps.exif_transpose(image) if orientation in range(2, 9) else image
        rgb = to_rgb(upright)
    return DecodedImage(
        image=rgb, original_size=(width, height) if orientation in (5, 6, 7, 8) else (height, width)
    )


_SIGNATURES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def image_ending(data: bytes | str | None) -> str:
    """The file ending that fits some encoded bytes; `.img` when they say nothing."""
    if not isinstance(data, bytes):
        return ".img"
    if data[8:12] == b"WEBP":
        return ".webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    return next((ending for start, ending in _SIGNATURES if data.startswith(start)), ".img")
