"""Weights of pairs by how rare their scores are in the whole data set, made once, as a column of the data."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from mmalign.batch import PreferenceRow
from mmalign.data.rows import FieldError
from mmalign.errors import explain
from mmalign.objectives.clips import rarity_weights

__all__ = ["WEIGHT_COLUMN", "with_pair_weights"]

WEIGHT_COLUMN = "pair_weight"
"""What the method `videodpo` reads."""


def with_pair_weights(
    rows: Sequence[PreferenceRow], *, exponent: float = 0.72, width: float = 0.01
) -> list[PreferenceRow]:
    """The pairs with the column `pair_weight`: (p_max / p)^exponent of their candidates' rewards.

    Args:
        rows: pairs, a reward of both candidates in each; the whole data set, since shares are of all of it.
        exponent: >= 0; 0.72 in the paper, 0 weighs all alike.
        width: > 0, of a bin of the histogram, in units of the reward; 0.01 in the paper.

    Raises:
        FieldError: a row is no pair, or lacks a reward.
        HyperparameterError: out of range.

    Source: arXiv 2412.14167; see `mmalign.objectives.clips.rarity_weights`.
    """
    scores = []
    for row in rows:
        rewards = [candidate.reward for candidate in row.candidates]
        if row.kind != "pairs" or len(rewards) != 2 or None in rewards:
            message = explain(
                f"{row.source} {WEIGHT_COLUMN}",
                got=f"{row.kind} with rewards {rewards}",
                expected="pairs with a reward of both candidates",
                do="Score the rows first: `mmalign data relabel`.",
            )
            raise FieldError(message, "missing_score", "score_chosen")
        scores.append(rewards)
    if not rows:
        return []
    chosen, rejected = torch.tensor(scores, dtype=torch.float64).unbind(1)
    weights = rarity_weights(chosen, rejected, exponent=exponent, width=width).tolist()
    return [
        replace(row, extras={**row.extras, WEIGHT_COLUMN: weight})
        for row, weight in zip(rows, weights, strict=True)
    ]
