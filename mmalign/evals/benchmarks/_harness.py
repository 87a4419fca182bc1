"""Between the harness's answers and the plain records the scorers read."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmalign.errors import ConfigError, explain
from mmalign.evals.base import Answer, Metric
from mmalign.evals.benchmarks._records import Record, mean

__all__ = ["averaged", "media_folder", "metric", "official_file", "records_of"]


def official_file(folder: Path, *names: str) -> Path:
    """The first of some relative names that exists in a folder.

    Raises:
        ConfigError: none does; the message lists them.
    """
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        message = explain(
            str(folder),
            got="[none of the files]",
            expected=" or ".join(names),
            do="Put the benchmark's official files there; none are shipped.",
        )
        raise ConfigError(message)
    return found


def media_folder(folder: Path, given: str | Path | None) -> Path:
    """Where pictures or clips lie: what was given, relative to the benchmark's folder; else its `images`."""
    return folder / (given if given is not None else "images")


def records_of(answers: Sequence[Answer]) -> list[Record]:
    """Answers as records: the item's annotations with `id`, `question`, `answer` and `error`."""
    return [
        Record(
            {
                **answer.item.expected,
                "id": answer.item.id,
                "question": answer.item.prompt,
                "answer": answer.text,
                "error": answer.error,
            },
            f"answer to {answer.item.id}",
        )
        for answer in answers
    ]


def averaged(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Item id to the mean of its values; several answers to one item are one entry, NaN where none counts."""
    gathered: dict[str, list[float]] = {}
    for name, value in pairs:
        gathered.setdefault(name, []).append(value)
    return {name: mean(values) for name, values in gathered.items()}


def metric(
    name: str,
    value: float,
    unit: str,
    *,
    higher_is_better: bool | None = True,
    per_item: Iterable[tuple[str, float]] | Mapping[str, float] = (),
    beside: tuple[str, ...] = (),
) -> Metric:
    """A `Metric` whose parts by item come as (id, value) pairs, one per answer."""
    parts = per_item.items() if isinstance(per_item, Mapping) else per_item
    return Metric(
        name=name,
        value=value,
        unit=unit,
        higher_is_better=higher_is_better,
        per_item=averaged(parts),
        beside=beside,
    )
