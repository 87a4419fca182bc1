"""The Elo scale, and Elo ratings game by game, averaged over orders because they depend on the order."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from mmalign.errors import ConfigError, explain
from mmalign.evals.statistics.inputs import Matrix, Values, as_matrix, as_vector
from mmalign.evals.statistics.results import Result
from mmalign.seeding import derive_seed

__all__ = ["EloRatings", "elo_ratings", "elo_scale", "sequential_elo"]


def elo_scale(
    strength: Values, *, scale: float | int = 400.0, base: float | int = 1000.0
) -> Float64[np.ndarray, " model"]:
    """Strengths (natural logarithms) on the Elo scale: scale / ln 10 * strength + base.

    A lead of 400 is a win probability of 10 to 1.
    """
    return as_vector("elo_scale", strength) * (scale / math.log(10.0)) + base


def _games(
    games: Matrix, num_models: int
) -> tuple[Int64[np.ndarray, " game"], Int64[np.ndarray, " game"], Float64[np.ndarray, " game"]]:
    table = as_matrix("elo games", games)
    fits = table.shape[1] == 3
    if fits:
        players, score = table[:, :2], table[:, 2]
        fits = bool(
            (players == np.rint(players)).all()
            and (players >= 0).all()
            and (players < num_models).all()
            and (players[:, 0] != players[:, 1]).all()
            and (score >= 0).all()
            and (score <= 1).all()
        )
    if not fits:
        expected = f"rows of (model, other model, score of the first in [0, 1]), models in [0, {num_models})"
        message = explain(
            "elo games", got=f"a table of shape {list(table.shape)} with other rows", expected=expected
        )
        raise ConfigError(message)
    return players[:, 0].astype(np.int64), players[:, 1].astype(np.int64), score


def _play(
    first: Int64[np.ndarray, "order game"],
    second: Int64[np.ndarray, "order game"],
    score: Float64[np.ndarray, "order game"],
    num_models: int,
    k: float | int,
    initial: float | int,
    scale: float | int,
) -> Float64[np.ndarray, "order model"]:
    """Ratings after all games of each order; one step per game, all orders at once."""
    ratings = np.full((len(first), num_models), initial)
    rows = np.arange(len(first))
    for game in range(first.shape[1]):
        one, other = first[:, game], second[:, game]
        lead = ratings[rows, one] - ratings[rows, other]
        change = k * (score[:, game] - 1.0 / (1.0 + 10.0 ** (-lead / scale)))
        ratings[rows, one] += change
        ratings[rows, other] -= change
    return ratings


def sequential_elo(
    games: Matrix,
    num_models: int,
    *,
    k: float | int = 32.0,
    initial: float | int = 1000.0,
    scale: float | int = 400.0,
) -> Float64[np.ndarray, " model"]:
    """Elo ratings after the games in the order given. Another order gives other ratings: see `elo_ratings`.

    R_a <- R_a + k (score - 1 / (1 + 10^((R_b - R_a) / scale))), R_b the opposite

    Args:
        games: rows of (model, other model, score of the first: 1, 0.5 or 0).
        num_models: models are numbered 0 .. num_models - 1.
        k: largest change of one game.
        initial: rating of a model without games.
        scale: lead at which the win probability is 10 to 1.

    Raises:
        ConfigError: rows that are no games.

    Source: Elo 1978, "The rating of chessplayers, past and present".
    """
    first, second, score = _games(games, num_models)
    ratings = _play(first[None], second[None], score[None], num_models, k, initial, scale)
    return np.asarray(ratings[0])


@dataclass(frozen=True)
class EloRatings(Result):
    """Elo ratings averaged over orders of the games.

    Args:
        rating: mean over orders.
        spread: standard deviation over orders: what the order alone does. It is no standard error of the
            rating; `bradley_terry_games` has that.
        num_orders: orders averaged.
        seed: of the orders.
    """

    rating: Float64[np.ndarray, " model"]
    spread: Float64[np.ndarray, " model"]
    num_orders: int
    seed: int

    def describe(self) -> str:
        """One line per model, by number."""
        lines = [
            f"model {place}: {rating:.1f} (order moves it by {spread:.1f})"
            for place, (rating, spread) in enumerate(zip(self.rating, self.spread, strict=True))
        ]
        return "\n".join(lines)


def elo_ratings(
    games: Matrix,
    num_models: int,
    *,
    num_orders: int = 200,
    seed: int = 0,
    k: float | int = 32.0,
    initial: float | int = 1000.0,
    scale: float | int = 400.0,
) -> EloRatings:
    """Elo ratings averaged over random orders of the games.

    Args:
        games: as in `sequential_elo`.
        num_models: number of models.
        num_orders: random orders, at least 100.
        seed: of the orders.
        k: largest change of one game.
        initial: rating of a model without games.
        scale: lead at which the win probability is 10 to 1.

    Raises:
        ConfigError: fewer than 100 orders, or rows that are no games.
    """
    if num_orders < 100:
        do = "Fewer leave the order visible in the ratings."
        raise ConfigError(explain("elo_ratings num_orders", got=num_orders, expected="at least 100", do=do))
    first, second, score = _games(games, num_models)
    # Sorted first: the result depends on which games were played, not on how they are listed.
    listed = np.lexsort((score, second, first))
    generator = np.random.default_rng(derive_seed(seed, "elo_orders"))
    orders = listed[generator.permuted(np.tile(np.arange(len(first)), (num_orders, 1)), axis=1)]
    ratings = _play(first[orders], second[orders], score[orders], num_models, k, initial, scale)
    return EloRatings(ratings.mean(axis=0), ratings.std(axis=0, ddof=1), num_orders, seed)
