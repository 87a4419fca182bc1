"""Prompt sets: files of the user's, or the public sets by name; items with stable ids.

An id hangs on the set and on the prompt's place in it: seeds, caches and pairing follow it, whatever part of
the set is run, on however many machines.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, RowError, explain, unknown_name
from mmalign.evals.base import Item

__all__ = ["PUBLIC_SETS", "PublicSet", "prompts_hash", "read_prompts"]

_PROMPT_COLUMNS = ("prompt", "caption", "captions", "Prompt", "Prompts", "text", "TEXT", "question")
_GROUP_COLUMNS = ("group", "category", "Category", "style", "tag")
_ID_COLUMNS = ("id", "item_id", "key")


@dataclass(frozen=True)
class PublicSet:
    """A public list of prompts on the hub.

    Args:
        repository: hub id of the data set.
        prompt: column of the text.
        split: which split.
        group: column that tables are split by, "" for none.
        files: file to group, for sets that are JSON lists and no tables.
        count: prompts it should have; another number is reported.
        licence: as its card says.
        note: what tables in papers differ by.
        unique: drop repeated texts.
    """

    repository: str
    prompt: str = "prompt"
    split: str = "train"
    group: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    count: int = 0
    licence: str = "unknown"
    note: str = ""
    unique: bool = False


PUBLIC_SETS: Mapping[str, PublicSet] = {
    "partiprompts": PublicSet(
        "nateraw/parti-prompts", prompt="Prompt", group="Category", count=1632, licence="apache-2.0"
    ),
    "drawbench": PublicSet("shunk031/DrawBench", prompt="prompts", split="test", group="category", count=200),
    "hpdv2": PublicSet(
        "zhwang/HPDv2",
        files={
            "benchmark/anime.json": "anime",
            "benchmark/concept-art.json": "concept-art",
            "benchmark/paintings.json": "paintings",
            "benchmark/photo.json": "photo",
        },
        count=3200,
        licence="apache-2.0",
    ),
    "pickapic_validation": PublicSet(
        "yuvalkirstain/pickapic_v2_no_images",
        prompt="caption",
        split="validation_unique",
        count=500,
        note="papers write 500; repeated captions are dropped here",
        unique=True,
    ),
    "pickapic_test": PublicSet(
        "yuvalkirstain/pickapic_v2_no_images",
        prompt="caption",
        split="test_unique",
        count=500,
        note="papers write 500 or 487; repeated captions are dropped here",
        unique=True,
    ),
}
"""Public prompt sets. None is shipped: they are read from files of the user's or from the hub."""


def read_prompts(
    source: str, *, folder: Path | None = None, limit: int | None = None, name: str = ""
) -> list[Item]:
    """Items of a prompt set.

    Args:
        source: a file (.txt, .json, .jsonl, .csv, .tsv, .parquet) or a name of `PUBLIC_SETS`.
        folder: relative files start here.
        limit: take the first so many.
        name: of the set in ids; the file's name without ending by default.

    A line of text is a prompt. Records have a prompt (or caption, Prompt, text), and may have an id and a
    group (or category, style); everything else becomes `Item.expected`. A JSON object maps groups to lists.

    Raises:
        UnknownNameError: neither a file nor a known set.
        RowError: a record without prompt, or an id that stands twice; names file and row.
    """
    path = Path(source) if folder is None else folder / source
    if path.suffix in _READERS or path.is_file():
        if not path.is_file():
            raise ConfigError(explain("prompts", got=str(path), expected="a file that is there"))
        records = _READERS.get(path.suffix, _lines)(path)
        return _items(records, name or path.stem, where=str(path), limit=limit)
    if source not in PUBLIC_SETS:
        msg = "prompt set (and no such file)"
        raise unknown_name(msg, source, PUBLIC_SETS)
    return _items(_from_hub(source), name or source, where=source, limit=limit)


def prompts_hash(items: Iterable[Item]) -> str:
    """Hexadecimal SHA-256 over ids, prompts and durations, in order: equal hashes mean the same list."""
    listed = [[item.id, item.prompt, *_durations(item)] for item in items]
    text = json.dumps(listed, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _durations(item: Item) -> list[str]:
    """The seconds that a record asks for, if it does: lists without any keep the hash that they had."""
    given = item.expected.get("duration")
    return [] if given in (None, "") else [str(given)]


def _items(records: Sequence[Mapping[str, Any]], name: str, *, where: str, limit: int | None) -> list[Item]:
    items: list[Item] = []
    taken: dict[str, int] = {}
    for number, record in enumerate(records[:limit]):
        prompt = _first(record, _PROMPT_COLUMNS)
        if not isinstance(prompt, str) or not prompt.strip():
            expected = f"a text under one of {', '.join(_PROMPT_COLUMNS)}"
            message = explain(f"{where}: row {number + 1}", got=_shown(record), expected=expected)
            raise RowError(message, reason="no_prompt")
        given = _first(record, _ID_COLUMNS)
        group = _first(record, _GROUP_COLUMNS)
        _require_text(f"{where}: row {number + 1}", f"{prompt}{given}{group}")
        identity = f"{name}/{number:05d}" if given in (None, "") else f"{name}/{given}"
        if identity in taken:
            message = f"{where}: rows {taken[identity] + 1} and {number + 1} have the same id {given!r}."
            raise RowError(message, reason="repeated_id")
        taken[identity] = number
        used = {_column(record, names) for names in (_PROMPT_COLUMNS, _GROUP_COLUMNS, _ID_COLUMNS)}
        expected_values = {key: value for key, value in record.items() if key not in used}
        items.append(Item(identity, prompt, (), "" if group is None else str(group), expected_values))
    if not items:
        raise RowError(explain(where, got="no prompts", expected="at least one"), reason="empty")
    return items


def _require_text(where: str, text: str) -> None:
    """Half a surrogate pair can be neither stored nor hashed: better said now than after painting.

    Raises:
        RowError: reason `not_text`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"[half a surrogate pair at character {error.start}]"
        raise RowError(explain(where, got=got, expected="Unicode text"), reason="not_text") from error


def _column(record: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def _first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    name = _column(record, names)
    return None if name is None else record[name]


def _shown(record: Mapping[str, Any]) -> str:
    return f"[columns {', '.join(map(str, record)) or 'none'}]"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        message = explain(str(path), got=f"byte {error.start} that is no UTF-8", expected="a UTF-8 file")
        raise RowError(message, reason="not_text") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    text = _text(path)
    return [{"prompt": line.strip()} for line in text.split("\n") if line.strip()]


def _json(path: Path) -> list[dict[str, Any]]:
    try:
        loaded = json.loads(_text(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # an object per line, under the ending of a document
            return _json_lines(path)
        msg = f"{path}: not JSON ({error})."
        raise RowError(msg, reason="not_json") from error
    lists = list(loaded.values()) if isinstance(loaded, Mapping) else [loaded]
    if not all(isinstance(entries, list) for entries in lists):
        expected = "a list of prompts, or groups with lists of prompts"
        raise RowError(explain(str(path), got="other JSON", expected=expected), reason="not_a_list")
    if isinstance(loaded, Mapping):  # group to list of prompts
        grouped = [(group, entry) for group, entries in loaded.items() for entry in entries]
        return [{**_record(entry), "group": group} for group, entry in grouped]
    return [_record(entry) for entry in loaded]


def _record(entry: Any) -> dict[str, Any]:
    return dict(entry) if isinstance(entry, Mapping) else {"prompt": entry}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_record(json.loads(line)))
        except ValueError as error:
            msg = f"{path}:{number}: not JSON ({error})."
            raise RowError(msg, reason="not_json") from error
    return records


def _table(path: Path) -> list[dict[str, Any]]:
    text = io.StringIO(_text(path), newline="")
    return list(csv.DictReader(text, delimiter="\t" if path.suffix == ".tsv" else ","))


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    plain = [field.name for field in schema if not str(field.type).startswith(("struct", "binary", "large"))]
    rows: list[dict[str, Any]] = pq.read_table(path, columns=plain).to_pylist()
    return rows


_READERS = {
    ".txt": _lines,
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}


def _from_hub(name: str) -> list[dict[str, Any]]:
    known = PUBLIC_SETS[name]
    try:
        rows = _hub_files(known) if known.files else _hub_table(known)
    except (OSError, ValueError, ConnectionError) as error:
        message = (
            f"prompt set {name}: {known.repository} is not on this machine and cannot be fetched "
            f"({type(error).__name__}). Give the prompts as a file, or run once where there is a network."
        )
        raise ConfigError(message) from error
    if known.unique:
        first: dict[str, dict[str, Any]] = {}
        for row in rows:
            first.setdefault(row["prompt"], row)
        rows = list(first.values())
    return rows


def _hub_table(known: PublicSet) -> list[dict[str, Any]]:
    import datasets

    table = datasets.load_dataset(known.repository, split=known.split)
    groups = table[known.group] if known.group else [None] * len(table)
    return [
        {"prompt": prompt, "group": group} for prompt, group in zip(table[known.prompt], groups, strict=True)
    ]


def _hub_files(known: PublicSet) -> list[dict[str, Any]]:
    from huggingface_hub import hf_hub_download

    rows = []
    for file, group in known.files.items():
        path = Path(hf_hub_download(known.repository, file, repo_type="dataset"))
        rows += [{**record, "group": group} for record in _json(path)]
    return rows
