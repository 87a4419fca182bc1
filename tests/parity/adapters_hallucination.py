"""How the golden cases of hallucination benchmarks call the public interface. No formula stands here."""

from collections.abc import Callable
from typing import Any

import torch

from mmalign.evals.benchmarks import pope
from mmalign.testing.parity import Case

Results = dict[str, Any]


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def pope_case(case: Case) -> Results:
    rows = [
        {"answer": answer, "label": label}
        for answer, label in zip(case["answers"], case["labels"], strict=True)
    ]
    found = pope.score_answers(rows)
    cells = {name: number(getattr(found.counts, name.lower())) for name in ("TP", "FP", "TN", "FN")}
    numbers = {name: number(value) for name, value in found.metrics().items() if name in case.outputs}
    return {"parsed": [item.parsed for item in found.items], **cells, **numbers}


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "pope": pope_case,
}

LEFT_OUT: dict[str, dict[str, str]] = {}
