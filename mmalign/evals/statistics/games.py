"""Tables of games: who beat whom how often, and whether the games can rank everybody."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.statistics.inputs import Matrix, Values, as_matrix, as_vector, require_same_length
from mmalign.evals.statistics.results import Result

__all__ = ["Games", "count_games", "require_games", "unconnected_groups"]

Square = Float64[np.ndarray, "model model"]


@dataclass(frozen=True)
class Games(Result):
    """Counted games.

    Args:
        names: of the models, sorted.
        wins: [i, j] = games that i won against j.
        ties: [i, j] = [j, i] = tied games of i and j.
        undecided: games without a verdict (NaN), left out.
    """

    names: tuple[str, ...]
    wins: Square
    ties: Square
    undecided: int

    def describe(self) -> str:
        """`12 games of 3 models, 2 tied, 1 without a verdict`."""
        tied = self.ties.sum() / 2
        return (
            f"{self.wins.sum() + tied:g} games of {len(self.names)} models, {tied:g} tied, "
            f"{self.undecided} without a verdict"
        )


def count_games(first: Sequence[str], second: Sequence[str], score: Values) -> Games:
    """Win and tie tables from a list of games; the order of the games does not matter.

    Args:
        first: name of one model of each game.
        second: name of the other.
        score: 1 where the first won, 0 where the second did, 0.5 for a tie, NaN without a verdict.

    Raises:
        ShapeError: lists of different length.
        ConfigError: another score, or a model that plays itself.
    """
    points = as_vector("count_games score", score, missing_ok=True)
    require_same_length("count_games", points, first=first, second=second)
    odd = ~np.isnan(points) & ~np.isin(points, (0.0, 0.5, 1.0))
    if odd.any():
        expected = "1 (the first won), 0.5 (tie), 0 or NaN"
        got = float(points[odd][0])
        raise ConfigError(explain(f"count_games score {odd.argmax()}", got=got, expected=expected))
    alone = [place for place, (one, other) in enumerate(zip(first, second, strict=True)) if one == other]
    if alone:
        expected = "two different models"
        message = explain(f"count_games game {alone[0]}", got=first[alone[0]], expected=expected)
        raise ConfigError(message)
    names = tuple(sorted({*first, *second}))
    number = {name: place for place, name in enumerate(names)}
    one, other = (np.array([number[name] for name in side]) for side in (first, second))
    wins, ties = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    np.add.at(wins, (one[points == 1.0], other[points == 1.0]), 1.0)
    np.add.at(wins, (other[points == 0.0], one[points == 0.0]), 1.0)
    np.add.at(ties, (one[points == 0.5], other[points == 0.5]), 1.0)
    return Games(names, wins, ties + ties.T, int(np.isnan(points).sum()))


def require_games(where: str, wins: Matrix, ties: Matrix | None) -> tuple[Square, Square]:
    """Checked tables of wins and ties.

    Raises:
        ShapeError: a table that is not square, or two of different size.
        ConfigError: negative counts, a model against itself, ties that are not symmetric, no games.
    """
    won = as_matrix(f"{where} wins", wins)
    tied = np.zeros_like(won) if ties is None else as_matrix(f"{where} ties", ties)
    if won.shape[0] != won.shape[1] or tied.shape != won.shape or len(won) < 2:
        got = f"wins {list(won.shape)}, ties {list(tied.shape)}"
        raise ShapeError(explain(where, got=got, expected="square tables of one size, two models at least"))
    problem = ""
    if (won < 0).any() or (tied < 0).any():
        problem = "a negative count"
    elif np.diag(won).any() or np.diag(tied).any():
        problem = "games of a model against itself"
    elif (tied != tied.T).any():
        problem = "ties that differ between [i, j] and [j, i]"
    elif not (won.any() or tied.any()):
        problem = "no games"
    if problem:
        expected = "counts >= 0 with an empty diagonal, ties in both places"
        raise ConfigError(explain(where, got=problem, expected=expected))
    return won, tied


def unconnected_groups(points: Square) -> list[list[int]]:
    """Models grouped so that within a group everybody is linked to everybody by points taken, both ways.

    One group = Bradley-Terry has a finite answer.

    Args:
        points: [i, j] > 0 where i took at least half a point from j.
    """
    num = len(points)
    reaches = (points > 0) | np.eye(num, dtype=bool)
    for _ in range(max(1, num.bit_length())):
        reaches = (reaches.astype(np.float64) @ reaches.astype(np.float64)) > 0
    mutual = reaches & reaches.T
    groups: list[list[int]] = []
    for place in range(num):
        if not any(place in group for group in groups):
            groups.append(np.flatnonzero(mutual[place]).tolist())
    return groups
