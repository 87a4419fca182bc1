"""Plain records with an address: what a malformed one is refused with names file, row and field."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import ConfigError, RowError, explain

__all__ = [
    "Mode",
    "Record",
    "answer_field",
    "check_mode",
    "failure",
    "image_key",
    "index_by",
    "locate",
    "mean",
    "ratio",
    "read_json_records",
    "read_lines",
    "read_value",
    "word_count",
]

Mode = Literal["exact", "strict"]
"""`exact`: the released scorer, quirks included. `strict`: the same quantity with its parsing corrected."""


def check_mode(mode: str) -> None:
    """Refuse a mode that is neither `exact` nor `strict`.

    Raises:
        ConfigError: it is neither.
    """
    if mode not in ("exact", "strict"):
        message = explain("mode", got=mode, expected="'exact' (as released) or 'strict' (corrected parsing)")
        raise ConfigError(message)


@dataclass(frozen=True, eq=False)
class Record(Mapping[str, Any]):
    """One record and where it stands.

    Args:
        fields: the record.
        where: `file:line`, `file[index]`, or `records[index]` for records that were never in a file.
    """

    fields: Mapping[str, Any] = field(repr=False)
    where: str

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def refuse(self, name: str, expected: str, do: str = "") -> RowError:
        """The error for a field that is missing or is not what was expected."""
        got = _shown(self.fields[name]) if name in self.fields else f"[no such field among {sorted(self)}]"
        return RowError(explain(f"{self.where} {name}", got=got, expected=expected, do=do))

    def text(self, name: str) -> str:
        """A field that must be text."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.refuse(name, "text")
        return value

    def optional_text(self, name: str) -> str | None:
        """A field that is text, null or absent."""
        return None if self.get(name) is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that must be a list of texts."""
        value = self.get(name)
        if (
            isinstance(value, str)
            or not isinstance(value, Sequence)
            or not all(isinstance(part, str) for part in value)
        ):
            raise self.refuse(name, "a list of texts")
        return tuple(value)

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """A field that must be one of some words."""
        value = self.get(name)
        if value not in allowed:
            raise self.refuse(name, " or ".join(repr(word) for word in allowed))
        return str(value)

    def identifier(self, name: str) -> str:
        """A field that must be a number or a non-empty text, as text."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise self.refuse(name, "an id: a whole number or a text")
        return str(value)

    def part(self, name: str) -> "Record":
        """A field that must itself be a record."""
        value = self.get(name)
        if not isinstance(value, Mapping):
            raise self.refuse(name, "an object with fields")
        return Record(value, f"{self.where} {name}")

    def with_fields(self, **more: Any) -> "Record":
        """The record with fields added or replaced, at the same address."""
        return Record({**self.fields, **more}, self.where)


def _shown(value: object) -> object:
    """A value short enough for a message."""
    return value if len(repr(value)) <= 120 else f"[{repr(value)[:120]} ...]"


def locate(records: Iterable[Mapping[str, Any]], name: str = "records") -> list[Record]:
    """Records with addresses; those that have one keep it.

    Raises:
        ConfigError: there are none.
        RowError: one is no mapping.
    """
    found: list[Record] = []
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            message = explain(f"{name}[{number}]", got=_shown(record), expected="an object with fields")
            raise RowError(message)
        found.append(record if isinstance(record, Record) else Record(record, f"{name}[{number}]"))
    if not found:
        raise ConfigError(explain(name, got="[no records]", expected="at least one"))
    return found


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file without their line breaks.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        message = explain(str(path), got=f"[{error}]", expected="a readable file in UTF-8")
        raise ConfigError(message) from error


def read_value(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        ConfigError: missing, or not JSON.
    """
    try:
        return json.loads("\n".join(read_lines(path)))
    except ValueError as error:
        raise ConfigError(explain(str(path), got=f"[{error}]", expected="JSON")) from error


def read_json_records(path: str | Path) -> list[Record]:
    """Records of a file: a JSON list, or one JSON object per line whatever the file is called.

    Raises:
        ConfigError: the file cannot be read or holds no records.
        RowError: a line is no JSON object; the message names it.
    """
    lines = read_lines(path)
    if (
        any(line.strip() for line in lines)
        and next(line for line in lines if line.strip()).lstrip()[0] == "["
    ):
        return [
            Record(part.fields, f"{path}{part.where}")
            for part in locate(read_value(path), "")
        ]  # fmt: skip
    found: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            message = explain(f"{path}:{number}", got=f"[{error}]", expected="one JSON object per line")
            raise RowError(message) from error
        if not isinstance(value, dict):
            raise RowError(explain(f"{path}:{number}", got=_shown(value), expected="an object with fields"))
        found.append(Record(value, f"{path}:{number}"))
    return locate(found, str(path))


def index_by(records: Sequence[Record], name: str) -> dict[str, Record]:
    """Records by an id field.

    Raises:
        RowError: an id is missing or occurs twice.
    """
    found: dict[str, Record] = {}
    for record in records:
        key = record.identifier(name)
        if key in found:
            message = explain(
                f"{record.where} {name}", got=key, expected=f"an id used once; {found[key].where} has it too"
            )
            raise RowError(message, "duplicate_id")
        found[key] = record
    return found


def image_key(value: object) -> str:
    """An image id as text: 139, "139" and "000000000139" are one image; other names stay as they are."""
    text = str(value)
    return str(int(text)) if text.isascii() and text.isdigit() else text


def answer_field(record: Record, names: Sequence[str] = ("answer", "text")) -> str | None:
    """The model's answer under the first of some names that exists; None for a failed generation.

    Raises:
        RowError: none of the names exists, or what stands there is no text.
    """
    present = [name for name in names if name in record]
    if not present:
        raise record.refuse(
            names[0], f"the model's answer (or under {' or '.join(names[1:]) or 'no other name'})"
        )
    return record.optional_text(present[0])


def failure(record: Record, answer: str | None) -> str | None:
    """Why an item has no answer, as its `error` field says; None where it has one."""
    if answer is not None:
        return None
    return record.optional_text("error") or "no answer"


def word_count(text: str | None) -> float:
    """Number of words between white space; NaN without a text."""
    return math.nan if text is None else float(len(text.split()))


def ratio(part: int | float, whole: int | float) -> float:
    """`part / whole`; NaN where nothing was counted."""
    return part / whole if whole else math.nan


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are numbers; NaN where there is none."""
    present = [value for value in values if not math.isnan(value)]
    return ratio(math.fsum(present), len(present))
