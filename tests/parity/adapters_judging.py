"""How the golden cases of judging call the public interface. No formula stands here."""

from collections.abc import Callable
from typing import Any

import torch

from mmalign.rewards import released_verdicts, swaps, verdicts
from mmalign.testing.parity import Case


def eval_judge_parsing(case: Case) -> dict[str, Any]:
    orders = [tuple(verdicts.pair_choice(answer) for answer in pair) for pair in case["pair"]]
    rates = swaps.position_rates(orders)
    pairs = [
        {"forward": forward, "swapped": swapped, "verdict": swaps.both_orders(forward, swapped)}
        for forward, swapped in orders
    ]
    point = case["point"]
    return {
        "point_first_integer": torch.tensor(
            [released_verdicts.released_first_integer(text) for text in point]
        ),
        "point_float_1_to_5": torch.tensor([released_verdicts.released_decimal(text) for text in point]),
        "pairs": pairs,
        "consistency_rate": torch.tensor(rates.consistency_rate, dtype=torch.float64),
        "first_position_rate": torch.tensor(rates.first_position_rate, dtype=torch.float64),
        "prometheus_absolute": numbers(
            [released_verdicts.released_prometheus_score(text) for text in case["pabs"]]
        ),
        "prometheus_relative": [released_verdicts.released_prometheus_choice(text) for text in case["prel"]],
    }


def numbers(values: list[int | None]) -> Any:
    """A tensor where all are numbers, as the case's reader makes of such a list; else the list itself."""
    return values if None in values else torch.tensor(values)


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {"eval_judge_parsing": eval_judge_parsing}

LEFT_OUT: dict[str, dict[str, str]] = {}
