"""What models made of a benchmark: answers with their outcome, and all of it item by item."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.evals.base import Answer, Item, Outcome

__all__ = ["Answered", "item_rows", "plain_values"]


@dataclass(frozen=True)
class Answered:
    """Answers of one model and what they came to.

    Args:
        name: what tables call the model.
        source: files, hub id or folder.
        answers: one or more per item; none where the official script's results were read.
        outcome: their metrics.
        missing: items nobody answered.
        unused: stored records of no item.
        provenance: fingerprint, recipe, hashes of answer files.
        replicates: metrics with each group of pictures left out (`benchmark_jackknife`), for metrics that are
            no mean over items; empty where the rule was not applied again.
    """

    name: str
    source: str
    answers: Sequence[Answer]
    outcome: Outcome
    missing: int = 0
    unused: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    replicates: Sequence[Mapping[str, float]] = ()

    def counts(self) -> dict[str, int]:
        """Answers by what became of them: answered + failed + missing is their number."""
        failed = sum(answer.error is not None for answer in self.answers) - self.missing
        return {
            "answers": len(self.answers),
            "answered": len(self.answers) - failed - self.missing,
            "failed": failed,
            "missing": self.missing,
            "unused records": self.unused,
        }


def item_rows(items: Sequence[Item], models: Sequence[Answered]) -> list[dict[str, Any]]:
    """One record per item: question, what every model made of it, and its parts of the metrics."""
    answers: dict[str, dict[str, list[Answer]]] = {}
    for model in models:
        for answer in model.answers:
            answers.setdefault(answer.item.id, {}).setdefault(model.name, []).append(answer)
    rows = []
    for item in items:
        of_item = answers.get(item.id, {})
        rows.append(
            {
                "id": item.id,
                "prompt": item.prompt,
                "group": item.group,
                "media": [str(one) for one in item.media if isinstance(one, str | Path)],
                "models": {
                    model.name: {
                        "answers": [_answer_record(answer) for answer in of_item.get(model.name, [])],
                        "values": {
                            metric.name: metric.per_item[name]
                            for metric in model.outcome.metrics
                            for name in _part_names(item)
                            if name in metric.per_item
                        },
                    }
                    for model in models
                },
            }
        )
    plain: list[dict[str, Any]] = plain_values(rows)
    return plain


def _part_names(item: Item) -> tuple[str, ...]:
    pair = item.expected.get("pair")
    return (item.id, pair) if isinstance(pair, str) else (item.id,)


def _answer_record(answer: Answer) -> dict[str, Any]:
    media = [str(one) for one in answer.media if isinstance(one, str | Path)]
    return {
        **({"copy": answer.copy} if answer.copy else {}),
        **({"text": answer.text} if answer.text is not None else {}),
        **({"media": media} if media else {}),
        **({"error": answer.error} if answer.error is not None else {}),
    }


def plain_values(value: Any) -> Any:
    """JSON values; what is no finite number becomes None."""
    if isinstance(value, Mapping):
        return {str(name): plain_values(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
