"""AMBER's annotations: the official files, checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, explain
from mmalign.evals.benchmarks._amber_groups import group_of
from mmalign.evals.benchmarks._amber_words import AmberWords
from mmalign.evals.benchmarks._records import (
    Record,
    index_by,
    locate,
    read_json_records,
    read_lines,
    read_value,
)

__all__ = ["GENERATIVE", "AmberReference", "read_reference"]

GENERATIVE = "generative"
_LABELS = ("yes", "no")


@dataclass(frozen=True)
class AmberReference:
    """The benchmark's annotations.

    Args:
        annotations: id to record: `type`, and `truth` with `hallu` (words) or `truth` ("yes", "no").
        words: the vocabulary with its associations and the globally safe words.
    """

    annotations: Mapping[str, Record] = field(repr=False)
    words: AmberWords = field(repr=False)

    @classmethod
    def of(
        cls,
        annotations: Iterable[Mapping[str, Any]],
        association: Mapping[str, Sequence[str]],
        safe_words: Iterable[str],
    ) -> "AmberReference":
        """Checked annotations.

        Raises:
            RowError: an annotation is malformed, an id occurs twice, or a word has no entry in the
                associations.
        """
        words = AmberWords({word: tuple(kin) for word, kin in association.items()}, frozenset(safe_words))
        records = index_by(locate(annotations, "annotations"), "id")
        for record in records.values():
            if record.text("type") != GENERATIVE:
                group_of(record)
                record.choice("truth", _LABELS)
                continue
            for name in ("truth", "hallu"):
                unknown = [word for word in record.texts(name) if word not in words.association]
                if unknown:
                    raise record.refuse(name, f"words of the associations; {unknown[0]!r} has no entry")
        return cls(records, words)


def read_reference(
    annotations: str | Path, association: str | Path, safe_words: str | Path
) -> AmberReference:
    """Annotations from the official files `annotations.json`, `relation.json` and `safe_words.txt`.

    Raises:
        ConfigError: a file cannot be read, or has another layout.
        RowError: an annotation is malformed; the message names it.
    """
    kin = read_value(association)
    if not isinstance(kin, dict):
        raise ConfigError(
            explain(str(association), got=type(kin).__name__, expected="an object of word lists")
        )
    record = Record(kin, str(association))
    words = {word: record.texts(word) for word in record}
    safe = [line for line in read_lines(safe_words) if line]
    return AmberReference.of(read_json_records(annotations), words, safe)
