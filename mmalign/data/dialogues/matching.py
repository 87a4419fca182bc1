"""Which format of dialogues some records have: by the names of columns, then by a look at values."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from mmalign.data.dialogues.fields import is_missing
from mmalign.data.dialogues.formats import FORMATS, MAPPED, ROLES, DialogueFormat, format_named
from mmalign.data.kinds import AUDIO_ENDINGS
from mmalign.data.layouts import Layout, Match
from mmalign.data.records import Records
from mmalign.errors import ConfigError, RowError, unknown_name

__all__ = ["match_dialogues"]

_NOT_AUTO = ("temple",)
"""Formats that another one reads alike: they are names to ask for."""


def _fill(entry: DialogueFormat, given: Mapping[str, str], records: Records) -> dict[str, str]:
    """Role to column: as given, else the first known name that is there and means nothing else."""
    by_name: dict[str, str] = {}
    for name in records.columns:
        by_name.setdefault(name.lower(), name)
    found = {role: column for role, column in given.items() if role in entry.roles}
    for role, names in entry.roles.items():
        if role not in found:
            column = next((by_name[name.lower()] for name in names if name.lower() in by_name), None)
            if column is not None and column not in given.values():
                found[role] = column
    return found


def _complete(entry: DialogueFormat, found: Mapping[str, str]) -> bool:
    groups = not entry.one_of or any(all(role in found for role in group) for group in entry.one_of)
    return groups and all(role in found for role in entry.required)


def _first(records: Records, column: str) -> Any:
    """The first value of a column that says something, among the first records."""
    for number in islice(range(len(records)), 16):
        try:
            value = records.read(number, (column,))[column]
        except RowError:
            continue
        if not is_missing(value):
            return value
    return None


_MEDIA_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".mp4",
    ".webm",
    *AUDIO_ENDINGS,
)


def _are_words(value: Any) -> bool:
    """Whether a value is something said: no path, no encoded image."""
    if isinstance(value, str):
        return not value.strip().lower().endswith(_MEDIA_ENDINGS)
    if isinstance(value, dict):
        return not {"bytes", "path"} & value.keys()
    return isinstance(value, list) and bool(value) and _are_words(value[0])


def _looks_like(entry: DialogueFormat, found: Mapping[str, str], records: Records) -> bool:
    """Whether the values fit, where names alone could mean a data set of pictures."""
    role = next((name for name in (entry.words, "completion", "answer_1", "messages") if name in found), None)
    if role is None or found[role] in records.heavy():
        return False
    value = _first(records, found[role])
    fits = isinstance(value, entry.shape) or role != entry.words
    if not fits or not _are_words(value):
        return False
    if entry.name == "rlhf_v":
        return isinstance(value, dict) or value.lstrip().startswith("{")
    if entry.name == "ha_dpo":
        # Lists of variants, or a question that was answered right or wrong.
        return (isinstance(value, list) and isinstance(value[0], str)) or "right" in found
    if entry.name == "chexalign" and "answer_1" not in found:
        seen = (_first(records, found[role]) for role in ("question", "images") if role in found)
        return any(isinstance(cell, str) and ("<img>" in cell or "|" in cell) for cell in seen)
    if entry.name in ("trl", "llama_factory"):
        # Words alone are pairs of texts, which `media: text` reads; a dialogue shows something or has turns.
        shown = "images" in found or "videos" in found
        return shown or any(
            _has_turns(_first(records, found[name]))
            for name in ("question", "messages", role)
            if name in found
        )
    return True


def _has_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and bool({"role", "from"} & value[0].keys())
    )


def match_dialogues(
    records: Records, *, format: str, columns: Mapping[str, str], where: str, forced: bool = False
) -> tuple[DialogueFormat, Match] | None:
    """The dialogue format of some records with the column of each role; None when they are no dialogues.

    Args:
        records: raw records.
        format: `auto` or a name.
        columns: role to column, as configured.
        where: the data set, for messages.
        forced: dialogues were asked for (`media: dialogue`): nothing else will be tried.

    Raises:
        ConfigError: the format was named, or dialogues forced, and columns are missing.
        UnknownNameError: dialogues were forced and the format or a role is unknown.
    """
    named = format_named(format)
    if forced or named is not None or {"images", "videos"} & columns.keys():
        columns = {"question" if role == "prompt" else role: column for role, column in columns.items()}
    if format != "auto" and named is None:
        if forced:
            raise unknown_name(
                "format of dialogues", format, ("auto", *(entry.name for entry in (*FORMATS, MAPPED)))
            )
        return None
    for role in columns if forced or named is not None else ():
        if role not in ROLES:
            raise unknown_name("role in data columns:", role, ROLES)
    if any(role not in ROLES or column not in records.columns for role, column in columns.items()):
        if not forced and named is None:
            return None
        missing = {role: column for role, column in columns.items() if column not in records.columns}
        message = (
            f"{where}: columns maps to {missing}, not there. Columns found: {', '.join(records.columns)}."
        )
        raise ConfigError(message)
    if named is not None:
        found = _fill(named, columns, records)
        if _complete(named, found):
            return named, _match(named, found)
        message = (
            f"{where}: the columns are not those of {named.name} ({named.about}), which needs "
            f"{named.needs()}. "
            f"Columns found: {', '.join(records.columns) or 'none'}."
        )
        raise ConfigError(message)
    for entry in FORMATS:
        found = _fill(entry, columns, records)
        foreign = [role for role in columns if role not in entry.roles]
        if (
            entry.name not in _NOT_AUTO
            and not foreign
            and _complete(entry, found)
            and _looks_like(entry, found, records)
        ):
            return entry, _match(entry, found)
    found = _fill(MAPPED, columns, records)
    asked = forced or any(role in columns for role in ("question", "messages", "images", "videos"))
    if asked and _complete(MAPPED, found):
        return MAPPED, _match(MAPPED, found)
    if forced:
        raise ConfigError(_no_format(records, where))
    return None


def _match(entry: DialogueFormat, found: Mapping[str, str]) -> Match:
    return Match(Layout(entry.name, "dialogue", tuple(entry.roles)), found)


def _no_format(records: Records, where: str) -> str:
    needs = "\n".join(f"  {entry.name}: {entry.needs()}" for entry in FORMATS)
    return (
        f"{where}: the columns fit no format of dialogues.\n"
        f"Columns found: {', '.join(records.columns) or 'none'}.\nFormats and the roles they need:\n{needs}\n"
        "Say what the columns are, for example data.source.columns: {question: caption, chosen: good, "
        "rejected: bad, images: picture}."
    )
