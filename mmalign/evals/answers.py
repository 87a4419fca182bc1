"""Files of stored answers, in the layouts official scripts write, joined to a benchmark's items.

Every record finds its item by what it carries: `id`, `question_id` (with the split named by the record or the
file), `image_id`, a pair of VideoHallucer with `basic` and `hallucination`; or by its place, where a file has
one record per item and no ids. What has no record is an answer that is missing, what has no item is counted:
nothing is guessed and nothing leaves silently.
"""

import csv
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.base import Answer, Benchmark, Item
from mmalign.evals.benchmarks._records import (
    Record,
    answer_field,
    image_key,
    locate,
    read_json_records,
    read_lines,
    read_value,
)
from mmalign.evals.benchmarks.videohallucer import SUBSETS

__all__ = ["StoredAnswers", "read_answers"]

_TEXTS = ("answer", "response", "caption", "model_answer", "text", "predict", "output")
_PICTURES = ("image", "picture", "path")
_IDS = ("id", "item_id", "question_id", "image_id")
_SIDES = ("basic", "hallucination")

# What a judge or a tagger wrote earlier about an answer; scorers read it beside the item's annotations.
_BESIDE_ANSWERS = ("judgement", "extraction", "extract_objs", "nouns")


@dataclass(frozen=True)
class StoredAnswers:
    """Answers of one model.

    Args:
        answers: in the order of the items; an item without a record has one with an error.
        missing: items without a record.
        unused: records of no item.
    """

    answers: tuple[Answer, ...]
    missing: int
    unused: int


@dataclass(frozen=True)
class _Found:
    """A record with the name of its item, before the two are joined."""

    name: str
    record: Record
    text: str | None = None
    error: str | None = None
    media: tuple[Path, ...] = ()


def read_answers(benchmark: Benchmark, paths: Sequence[str | Path], items: Sequence[Item]) -> StoredAnswers:
    """Stored answers of one model to the items of a benchmark.

    Args:
        benchmark: where it asks for pictures or clips, a record names a file (`image`, relative to its own)
            and no text.
        paths: one file of all items, or one per split or subset: JSON lines, a JSON list, one JSON object
            with `imgToEval`, or CSV with a header.
        items: the benchmark's.

    Raises:
        ConfigError: a file cannot be read or is empty.
        RowError: a record is malformed, names an item a second time, or no record belongs to any item.
    """
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        for name in _names(item):
            places.setdefault(name, []).append(place)
    taken: dict[tuple[int, int], Record] = {}
    answers: dict[tuple[int, int], Answer] = {}
    unused: list[_Found] = []
    for found in (entry for path in paths for entry in _read(benchmark, Path(path), items, places)):
        copy = _copy(found.record)
        candidates = places.get(found.name, [])
        free = [one for one in candidates if (one, copy) not in taken]
        if candidates and not free:
            first = taken[candidates[-1], copy].where
            message = explain(
                f"{found.record.where} {found.name}",
                got="[a second answer]",
                expected=f"one to each item; {first} has it",
                do="Several answers to one item are told apart by a field copy: 0, 1, ...",
            )
            raise RowError(message, "duplicate_answer")
        if not free:
            unused.append(found)
            continue
        place = free[0]
        taken[place, copy] = found.record
        answers[place, copy] = _answer(items[place], found, copy)
    if not answers:
        _refuse_strangers(unused, items)
    answered = {place for place, _ in answers}
    names = ", ".join(Path(path).name for path in paths)
    lacking = [place for place in range(len(items)) if place not in answered]
    answers |= {(place, 0): Answer(items[place], error=f"no answer in {names}") for place in lacking}
    ordered = tuple(answers[key] for key in sorted(answers))
    return StoredAnswers(ordered, len(lacking), len(unused))


def _refuse_strangers(unused: Sequence[_Found], items: Sequence[Item]) -> None:
    where = unused[0].record.where if unused else "answers"
    got = unused[0].name if unused else "[no records]"
    known = ", ".join(item.id for item in items[:3])
    do = "Is it the answer file of another benchmark or split?"
    raise RowError(explain(where, got=got, expected=f"ids of items, such as {known}", do=do), "unknown_item")


def _answer(item: Item, found: _Found, copy: int) -> Answer:
    """The answer; what a judge said about it stands where scorers look for annotations."""
    more = {name: found.record[name] for name in _BESIDE_ANSWERS if found.record.get(name) is not None}
    if more:
        item = replace(item, expected={**item.expected, **more})
    return Answer(item, text=found.text, media=found.media, copy=copy, error=found.error)


def _names(item: Item) -> Iterator[str]:
    """What a record may call an item."""
    yield item.id
    image = item.expected.get("image_id")
    if image is not None and image_key(image) != item.id:
        yield image_key(image)


def _copy(record: Record) -> int:
    copy = record.get("copy", 0)
    if isinstance(copy, str) and copy.isdigit():
        copy = int(copy)
    if isinstance(copy, bool) or not isinstance(copy, int) or copy < 0:
        raise record.refuse("copy", "a number counted from 0")
    return copy


# -------------------------------------------------------------------------------------------------- files


def _read(benchmark: Benchmark, path: Path, items: Sequence[Item], known: Container[str]) -> Iterator[_Found]:
    """Records of one file with the names of their items."""
    records = _records(path)
    if all(side in record for record in records for side in _SIDES):
        yield from _pairs(path, records)
        return
    part = _part_of(path, items)
    if any(name in record for record in records for name in _IDS):
        names = [_name(record, part, items) for record in records]
        # Official files may carry ids of their own (MMHal's image_id); order and questions then decide.
        if any(name in known for name in names) or not _questions_fit(records, _asked(items, part)):
            yield from (
                _found(benchmark, name, record, path) for name, record in zip(names, records, strict=True)
            )
            return
    yield from _in_order(benchmark, path, records, part, items)


def _records(path: Path) -> list[Record]:
    """Records of a file, whatever its form.

    Raises:
        ConfigError: it cannot be read, or has none.
        RowError: one is malformed.
    """
    if path.suffix.lower() == ".csv":
        lines = csv.DictReader(f"{line}\n" for line in read_lines(path))
        rows = [
            Record({name: value for name, value in row.items() if name and value is not None}, where)
            for row, where in ((row, f"{path}:{lines.line_num}") for row in lines)
        ]
        return locate(rows, str(path))
    if any('"imgToEval"' in line for line in read_lines(path)):
        images = Record(read_value(path), str(path)).part("imgToEval")
        return locate([images.part(key).with_fields(image_id=key) for key in images], str(path))
    return read_json_records(path)


def _part_of(path: Path, items: Sequence[Item]) -> str | None:
    """The group of items a file's name names (`pope_random_answers.jsonl`); None where it names none."""
    words = re.split(r"[^a-z0-9]+", path.stem.lower())
    groups = {item.group for item in items if item.group}
    named = [group for group in groups if group.lower() in words]
    return named[0] if len(named) == 1 else None


def _name(record: Record, part: str | None, items: Sequence[Item]) -> str:
    """What a record calls its item."""
    key = next((name for name in _IDS if name in record), None)
    if key is None:
        raise record.refuse(_IDS[0], "the item's id, as other records of the file have one")
    name = record.identifier(key)
    if key == "image_id":
        return image_key(name)
    if key == "question_id":
        split = record.optional_text("split") or part
        groups = {item.group for item in items}
        split = split or (next(iter(groups)) if len(groups) == 1 else None)
        if _grouped(items, split):
            return f"{split}/{name}"
    return name


def _grouped(items: Sequence[Item], split: str | None) -> bool:
    """Whether ids of items start with their group, as ids of questions that are unique in a split only do."""
    return split is not None and any(
        item.group == split and item.id.startswith(f"{split}/") for item in items
    )


def _in_order(
    benchmark: Benchmark, path: Path, records: Sequence[Record], part: str | None, items: Sequence[Item]
) -> Iterator[_Found]:
    """Records without ids: one per item, in order; a `question` that is given must be the one asked.

    Raises:
        RowError: another number of records, or another question.
    """
    asked = _asked(items, part)
    if len(records) != len(asked):
        of_part = "" if part is None else f" of {part}"
        message = explain(
            str(path),
            got=f"[{len(records)} answers without ids]",
            expected=f"{len(asked)}, one per item{of_part}",
            do="Give each record the id of its item.",
        )
        raise RowError(message, "missing_answer")
    for record, item in zip(records, asked, strict=True):
        if not _fits(record, item):
            do = "Put the answers in the order of the questions, or give each the id of its item."
            raise record.refuse("question" if "question" in record else "prompt", repr(item.prompt), do)
        yield _found(benchmark, item.id, record, path)


def _asked(items: Sequence[Item], part: str | None) -> list[Item]:
    return [item for item in items if part is None or item.group == part]


def _questions_fit(records: Sequence[Record], asked: Sequence[Item]) -> bool:
    """Whether there is one record per item, each with the question of its item."""
    return len(records) == len(asked) and all(
        ("question" in record or "prompt" in record) and _fits(record, item)
        for record, item in zip(records, asked, strict=True)
    )


def _fits(record: Record, item: Item) -> bool:
    """Whether the question a record carries, if any, is the item's."""
    question = next((record[name] for name in ("question", "prompt") if name in record), None)
    return not isinstance(question, str) or _plain(question) in _plain(item.prompt)


def _plain(text: str) -> str:
    """A question without case, tags of pictures and white space at its ends."""
    return re.sub(r"<[a-z_]+>", "", text.casefold()).strip()


def _found(benchmark: Benchmark, name: str, record: Record, path: Path) -> _Found:
    error = record.optional_text("error") or None
    if benchmark.produces != "text":
        key = next((one for one in _PICTURES if one in record), None)
        if key is None:
            raise record.refuse(_PICTURES[0], "the file of the picture")
        file = record.optional_text(key)
        if file is None:
            return _Found(name, record, error=error or "no picture")
        return _Found(name, record, error=error, media=(path.parent / file,))
    text = answer_field(record, _TEXTS)
    if text is None:
        return _Found(name, record, error=error or "no answer")
    # Not for other benchmarks: their released scripts read answers as they are, white space included.
    cut = text.replace("Assistant:", "").strip() if benchmark.name == "object_halbench" else text
    return _Found(name, record, text=cut)


def _pairs(path: Path, records: Sequence[Record]) -> Iterator[_Found]:
    """Result files of VideoHallucer: both answers of a pair in one record, under `predict`.

    Raises:
        ConfigError: neither records nor the file's name say which subset it is.
    """
    for number, record in enumerate(records):
        subset = record.optional_text("subset") or _subset(path)
        name = record.identifier("id") if "id" in record else f"{subset}/{number}"
        for side in _SIDES:
            part = record.part(side)
            if "predict" not in part:
                raise part.refuse("predict", "what the model said, or null")
            text = part.optional_text("predict")
            error = part.optional_text("error") or record.optional_text("error") or "no answer"
            yield _Found(f"{name}/{side}", part, text=text, error=error if text is None else None)


def _subset(path: Path) -> str:
    stem = path.stem.lower()
    named = [
        short
        for short, name in SUBSETS.items()
        if name in stem or re.search(rf"(?:^|[^a-z]){short}(?:[^a-z]|$)", stem)
    ]
    if len(named) != 1:
        expected = f"one of {', '.join(SUBSETS.values())} in the file's name, or a field subset"
        raise ConfigError(explain(str(path), got=path.name, expected=expected))
    return named[0]
