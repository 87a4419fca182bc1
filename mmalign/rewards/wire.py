"""Samples and scores as JSON, for rewards that run on another machine. No paths, no pickle, no code.

Every JSON object carries one tag, so nothing a user writes can be mistaken for media:

    {"bytes": base64, "ending": "mp4"}                        an encoded file
    {"array" | "tensor": base64, "dtype": "float32", "shape": [3, 5, 7]}   values in memory, little-endian
    {"mapping": {...}}                                        a dictionary of Sample.extras
"""

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from mmalign.data.media import read_media
from mmalign.errors import MmalignError, RowError, explain
from mmalign.rewards.base import Scored
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Media, Sample, to_image

__all__ = [
    "PROTOCOL",
    "ProtocolError",
    "card_from_json",
    "card_to_json",
    "sample_from_json",
    "sample_to_json",
    "scored_from_json",
    "scored_to_json",
]

PROTOCOL = 1
"""Raised when the format changes; client and server must agree."""

_DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_FIELDS = frozenset({"prompt", "text", "id", "image", "frames", "video", "audio", "extras"})
_ENDING = re.compile(r"[a-z0-9]{1,5}")
_DEEPEST = 16
"""Levels of lists and mappings in extras."""


class ProtocolError(MmalignError, ValueError):
    """What came over the wire is not what client and server agreed on."""


# ------------------------------------------------------------------------------------------------ samples


def sample_to_json(sample: Sample, *, max_bytes: int) -> dict[str, Any]:
    """One sample as JSON types; files are read, pictures in memory keep their exact pixels.

    Args:
        sample: what is sent.
        max_bytes: largest file that is read.

    Raises:
        RowError: a file is missing, empty or too large; extras hold what JSON and media do not cover.
    """
    found: dict[str, Any] = {"prompt": sample.prompt, "text": sample.text, "id": sample.id}
    for name in ("image", "video", "audio"):
        media = getattr(sample, name)
        found[name] = None if media is None else _media_to_json(media, f"Sample.{name}", max_bytes)
    found["frames"] = (
        None
        if sample.frames is None
        else [
            _media_to_json(frame, f"Sample.frames[{place}]", max_bytes)
            for place, frame in enumerate(sample.frames)
        ]
    )
    extras = dict(sample.extras)
    found["extras"] = {
        name: _extra_to_json(extras[name], f"Sample.extras[{name!r}]", max_bytes) for name in extras
    }
    return found


def _media_to_json(media: Media, where: str, max_bytes: int) -> dict[str, Any]:
    if isinstance(media, (Tensor, np.ndarray)):
        return _array_to_json(media)
    if isinstance(media, Image.Image):
        from io import BytesIO

        stored = BytesIO()
        to_image(media).save(stored, format="PNG", compress_level=1)  # lossless: the pixels that are scored
        data, ending = stored.getvalue(), "png"
    else:
        data = read_media(media if isinstance(media, bytes) else str(media), where=where, max_bytes=max_bytes)
        ending = "" if isinstance(media, bytes) else Path(media).suffix.lower().lstrip(".")
    kept = ending if _ENDING.fullmatch(ending) else ""
    return {"bytes": base64.b64encode(data).decode("ascii"), "ending": kept}


def _array_to_json(media: Tensor | np.ndarray) -> dict[str, Any]:
    if isinstance(media, Tensor):
        plain = media.detach().cpu()
        kind, values = "tensor", (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    else:
        kind, values = "array", media
    if values.dtype.name not in _DTYPES:
        message = explain("Sample array", got=values.dtype.name, expected=f"one of {', '.join(_DTYPES)}")
        raise RowError(message, reason="unsendable")
    ordered = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    data = base64.b64encode(ordered.tobytes()).decode("ascii")
    return {kind: data, "dtype": values.dtype.name, "shape": list(values.shape)}


def _extra_to_json(value: Any, where: str, max_bytes: int, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise RowError(
            explain(where, got="[deeper nesting]", expected=f"{_DEEPEST} levels"), reason="unsendable"
        )
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Path, bytes, Image.Image, np.ndarray, Tensor)):
        return _media_to_json(value, where, max_bytes)
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise RowError(explain(where, got="[other keys]", expected="text as keys"), reason="unsendable")
        return {
            "mapping": {name: _extra_to_json(one, where, max_bytes, depth + 1) for name, one in value.items()}
        }
    if isinstance(value, Sequence):
        return [_extra_to_json(one, where, max_bytes, depth + 1) for one in value]
    message = explain(where, got=type(value).__name__, expected="text, numbers, lists, mappings or media")
    raise RowError(message, reason="unsendable")


def sample_from_json(value: Any, *, folder: Path) -> Sample:
    """The sample some JSON describes. Nothing it says is opened: a path is text, and text is no media.

    Args:
        value: parsed JSON of one sample.
        folder: empty folder for its video and audio files, which rewards read from a disk; the caller
            removes it.

    Raises:
        RowError: reason `malformed`: it is no sample.
    """
    if not isinstance(value, dict) or set(value) - _FIELDS:
        unknown = sorted(set(value) - _FIELDS) if isinstance(value, dict) else [type(value).__name__]
        raise _malformed("sample", unknown, f"an object with {', '.join(sorted(_FIELDS))}")
    texts = {}
    for name in ("prompt", "text", "id"):
        given = value.get(name)
        if given is not None and not isinstance(given, str):
            raise _malformed(name, given, "text")
        texts[name] = given
    image = value.get("image")
    frames = value.get("frames")
    if frames is not None and not isinstance(frames, list):
        raise _malformed("frames", frames, "a list of media")
    extras = value.get("extras") or {}
    if not isinstance(extras, dict):
        raise _malformed("extras", extras, "an object")
    return Sample(
        prompt=texts["prompt"] or "",
        text=texts["text"],
        id=texts["id"] or "",
        image=None if image is None else _media_from_json(image, "image"),
        frames=None if frames is None else [_media_from_json(one, "frames") for one in frames],
        video=_file_from_json(value.get("video"), "video", folder),
        audio=_file_from_json(value.get("audio"), "audio", folder),
        extras={str(name): _extra_from_json(one, f"extras[{name!r}]") for name, one in extras.items()},
    )


def _media_from_json(value: Any, where: str) -> bytes | Tensor | np.ndarray:
    if isinstance(value, dict) and "bytes" in value:
        return _decoded(value["bytes"], where)
    if isinstance(value, dict) and ("array" in value or "tensor" in value):
        return _array_from_json(value, where)
    raise _malformed(where, value, "media bytes or an array; paths are not opened")


def _decoded(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise _malformed(where, "text that is no base64", "base64") from error


def _array_from_json(value: dict[str, Any], where: str) -> Tensor | np.ndarray:
    kind = "tensor" if "tensor" in value else "array"
    dtype, shape = value.get("dtype"), value.get("shape")
    plain = (
        isinstance(shape, list) and len(shape) <= 8 and all(type(one) is int and one >= 0 for one in shape)
    )
    if dtype not in _DTYPES or not plain:
        raise _malformed(where, [dtype, shape], f"a dtype of {', '.join(_DTYPES)} and a shape")
    data = _decoded(value[kind], where)
    order = np.dtype(dtype).newbyteorder("<")
    if len(data) != math.prod(shape or ()) * order.itemsize:
        raise _malformed(where, f"{len(data)} bytes", f"{dtype} of shape {shape}")
    values = np.frombuffer(data, dtype=order).astype(dtype).reshape(shape)
    return torch.from_numpy(values) if kind == "tensor" else values


def _file_from_json(value: Any, name: str, folder: Path) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, dict) or "bytes" not in value:
        raise _malformed(name, value, "media bytes; paths are not opened")
    ending = value.get("ending", "")
    kept = f".{ending}" if isinstance(ending, str) and _ENDING.fullmatch(ending) else ""
    path = folder / f"{name}{kept}"
    path.write_bytes(_decoded(value["bytes"], name))
    return path


def _extra_from_json(value: Any, where: str, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise _malformed(where, "deeper nesting", f"{_DEEPEST} levels")
    if isinstance(value, list):
        return [_extra_from_json(one, where, depth + 1) for one in value]
    if isinstance(value, dict):
        inner = value.get("mapping")
        if isinstance(inner, dict):
            return {name: _extra_from_json(one, where, depth + 1) for name, one in inner.items()}
        return _media_from_json(value, where)
    return value


def _malformed(where: str, got: Any, expected: str) -> RowError:
    shown = repr(got)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    return RowError(f"{where}: got {shown}, expected {expected}.", reason="malformed")


# ------------------------------------------------------------------------------------------------ scores


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)  # other keys (fingerprint, protocol) are read elsewhere

    outputs: list[str]
    values: list[list[float | None]]
    errors: list[str | None]
    truncated: list[bool]
    raw: list[str | None]


_CARD = TypeAdapter(Card)


def scored_to_json(scored: Scored) -> dict[str, Any]:
    """Scores as JSON types: what is no finite number is null, and every float is exact."""
    return {
        "outputs": list(scored.outputs),
        "values": [[one if math.isfinite(one) else None for one in row] for row in scored.values.tolist()],
        "errors": list(scored.errors),
        "truncated": list(scored.truncated),
        "raw": list(scored.raw),
    }


def scored_from_json(value: Any, *, count: int, outputs: tuple[str, ...], where: str) -> Scored:
    """Scores out of an answer, checked against what was asked for.

    Raises:
        ProtocolError: another number of samples or outputs, or other types.
    """
    try:
        found = _Answer.model_validate(value)
    except ValidationError as error:
        message = f"{where}: the answer holds no scores ({error.error_count()} faults in it)."
        raise ProtocolError(message) from error
    rows = found.values
    lengths = {len(rows), len(found.errors), len(found.truncated), len(found.raw)}
    if lengths != {count} or tuple(found.outputs) != outputs or any(len(row) != len(outputs) for row in rows):
        message = explain(
            where,
            got=f"[{len(rows)} rows of {', '.join(found.outputs)}]",
            expected=f"{count} rows of {', '.join(outputs)}",
        )
        raise ProtocolError(message)
    numbers = [[math.nan if one is None else float(one) for one in row] for row in rows]
    values = torch.tensor(numbers, dtype=torch.float64).reshape(count, len(outputs))
    errors = tuple(
        error if error is not None or all(map(math.isfinite, row)) else f"{where}: the value is not finite"
        for error, row in zip(found.errors, numbers, strict=True)
    )
    return Scored(values, outputs, errors, tuple(found.truncated), tuple(found.raw))


def card_to_json(card: Card) -> dict[str, Any]:
    """A card as JSON types."""
    found: dict[str, Any] = _CARD.dump_python(card, mode="json")
    return found


def card_from_json(value: Any, *, where: str) -> Card:
    """The card some JSON describes.

    Raises:
        ProtocolError: it describes none.
    """
    try:
        return _CARD.validate_python(value)
    except ValidationError as error:
        message = f"{where}: the answer holds no reward card ({error.error_count()} faults in it)."
        raise ProtocolError(message) from error
