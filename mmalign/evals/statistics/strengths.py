"""One scale for many models from pairwise games: Bradley-Terry, Davidson and Rao-Kupper.

All three log-likelihoods are concave; Newton's method with a halved step where it overshoots finds the
maximum. Strengths are natural logarithms and sum to zero; `elo_scale` turns them into familiar numbers.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.evals.statistics.elo import elo_scale
from mmalign.evals.statistics.game_likelihoods import MODELS, GameLikelihood, maximum
from mmalign.evals.statistics.games import count_games, require_games, unconnected_groups
from mmalign.evals.statistics.inputs import Matrix, Values, as_vector, group_numbers
from mmalign.evals.statistics.proportions import normal_quantile
from mmalign.evals.statistics.results import Interval, Result, shown

__all__ = ["Strengths", "bradley_terry", "bradley_terry_games", "davidson", "rao_kupper"]

Square = Float64[np.ndarray, "model model"]


@dataclass(frozen=True)
class Strengths(Result):
    """Fitted strengths of models.

    Args:
        kind: `bradley_terry`, `davidson` or `rao_kupper`.
        names: of the models, in the order of everything below.
        strength: natural logarithms, sum 0.
        standard_error: of each strength under the sum-to-zero constraint.
        covariance: of the strengths; what differences need.
        elo: 400 / ln 10 * strength + 1000.
        win_probability: [i, j] = P(i beats j); ties, where the model has them, are apart.
        tie_probability: [i, j]; None for Bradley-Terry, which counts a tie as half a win for both.
        tie_parameter: Davidson's nu (0 = no ties) or Rao-Kupper's threshold (1 = no ties); None for
            Bradley-Terry.
        log_likelihood: in nats, without the ridge.
        ridge: penalty that was needed for a finite answer, 0 where none was.
        games: games of each model.
    """

    kind: str
    names: tuple[str, ...]
    strength: Float64[np.ndarray, " model"]
    standard_error: Float64[np.ndarray, " model"]
    covariance: Square
    elo: Float64[np.ndarray, " model"]
    win_probability: Square
    tie_probability: Square | None
    tie_parameter: float | None
    log_likelihood: float
    ridge: float
    games: Float64[np.ndarray, " model"]

    def difference(self, first: int, second: int, *, confidence: float = 0.95) -> Interval:
        """Strength of one model minus that of another, with its normal interval."""
        value = float(self.strength[first] - self.strength[second])
        cov = self.covariance
        variance = cov[first, first] + cov[second, second] - 2.0 * cov[first, second]
        half = normal_quantile(0.5 + confidence / 2) * math.sqrt(max(float(variance), 0.0))
        return Interval(value, value - half, value + half, confidence, "normal")

    def describe(self) -> str:
        """A table from strongest to weakest, on the Elo scale."""
        width = max(len(name) for name in self.names)
        scale = 400.0 / math.log(10.0)
        half = 1.96 * scale * self.standard_error
        lines = [
            f"{self.names[place]:<{width}}  {self.elo[place]:7.1f} +- {half[place]:.1f}"
            f"  ({self.games[place]:g} games)"
            for place in np.argsort(-self.strength, kind="stable")
        ]
        if self.tie_parameter is not None:
            lines.append(f"tie parameter {shown(self.tie_parameter)}")
        if self.ridge:
            lines.append(f"ridge {self.ridge:g}: some models never lost to, or never beat, others")
        return "\n".join(lines)


def bradley_terry(
    wins: Matrix, ties: Matrix | None = None, *, names: Sequence[str] | None = None, ridge: float | int = 0.0
) -> Strengths:
    """Maximum-likelihood Bradley-Terry strengths, a tie being half a win for both.

    P(i beats j) = sigmoid(s_i - s_j); maximise sum_ij (W_ij + T_ij / 2) log P(i beats j), sum s = 0

    Standard errors are the roots of the diagonal of the pseudo-inverse of the Fisher information.

    Args:
        wins: [i, j] = games that i won against j.
        ties: [i, j] = [j, i] = tied games of i and j.
        names: of the models; numbers where not given.
        ridge: penalty ridge / 2 * |s|^2 that is used only where the games have no finite answer, because
            some models never took a point from others; 1e-6 ranks them far apart. 0 refuses such games.

    Raises:
        ShapeError: a table that is not square, or two of different size.
        ConfigError: negative counts, ties that differ between [i, j] and [j, i], no games, or games without a
            finite answer and no ridge.

    Source: Bradley and Terry 1952; Hunter 2004 for when a finite answer exists.
    """
    won, tied = require_games("bradley_terry", wins, ties)
    points = won + 0.5 * tied
    return _fit("bradley_terry", points, np.zeros_like(points), names, ridge)


def davidson(
    wins: Matrix, ties: Matrix, *, names: Sequence[str] | None = None, ridge: float | int = 0.0
) -> Strengths:
    """Strengths and a tie parameter: how likely two equal models are to tie.

    P(i beats j) = e^a / Z, P(tie) = nu e^((a + b) / 2) / Z, Z = e^a + e^b + nu e^((a + b) / 2)

    Args:
        wins: as in `bradley_terry`.
        ties: as in `bradley_terry`.
        names: of the models.
        ridge: as in `bradley_terry`.

    Raises:
        ShapeError: as in `bradley_terry`.
        ConfigError: as in `bradley_terry`; nothing but ties, which has no finite answer either.

    Source: Davidson 1970, "On extending the Bradley-Terry model to accommodate ties".
    """
    return _with_ties("davidson", wins, ties, names, ridge)


def rao_kupper(
    wins: Matrix, ties: Matrix, *, names: Sequence[str] | None = None, ridge: float | int = 0.0
) -> Strengths:
    """Strengths and a threshold below which a difference is a tie.

    P(i beats j) = e^a / (e^a + k e^b), P(tie) = (k^2 - 1) e^(a + b) / ((e^a + k e^b) (e^b + k e^a)), k >= 1

    Args:
        wins: as in `bradley_terry`.
        ties: as in `bradley_terry`.
        names: of the models.
        ridge: as in `bradley_terry`.

    Raises:
        ShapeError: as in `bradley_terry`.
        ConfigError: as in `davidson`.

    Source: Rao and Kupper 1967, "Ties in paired-comparison experiments".
    """
    return _with_ties("rao_kupper", wins, ties, names, ridge)


def bradley_terry_games(
    first: Sequence[str],
    second: Sequence[str],
    score: Values,
    *,
    prompts: Sequence[Hashable] | None = None,
    ridge: float | int = 0.0,
) -> Strengths:
    """`bradley_terry` from a list of games, with standard errors that allow for prompts.

    Games on one prompt are not independent. With `prompts` the covariance is the sandwich
    F^+ (sum over prompts g g^T) F^+ * C / (C - 1), g = sum over the prompt's games (score - P) (e_i - e_j).

    Args:
        first: name of one model of each game.
        second: name of the other.
        score: 1 where the first won, 0 where the second did, 0.5 for a tie; NaN (no verdict) is left out.
        prompts: of each game.
        ridge: as in `bradley_terry`.

    Raises:
        ShapeError: lists of different length.
        ConfigError: a score that is none of these, a model that plays itself; one prompt only; and as in
            `bradley_terry`.
    """
    counted = count_games(first, second, score)
    fitted = bradley_terry(counted.wins, counted.ties, names=counted.names, ridge=ridge)
    if prompts is None:
        return fitted
    points = as_vector("bradley_terry_games score", score, missing_ok=True)
    if len(prompts) != len(points):
        got = f"{len(prompts)} prompts"
        raise ShapeError(explain("bradley_terry_games", got=got, expected=f"one per game ({len(points)})"))
    there = ~np.isnan(points)
    number = {name: place for place, name in enumerate(fitted.names)}
    one, other = (np.array([number[name] for name in side])[there] for side in (first, second))
    places, groups = group_numbers([prompt for prompt, known in zip(prompts, there, strict=True) if known])
    if len(groups) < 2:
        message = explain("bradley_terry_games prompts", got="one prompt", expected="at least two")
        raise ConfigError(message)
    residual = points[there] - fitted.win_probability[one, other]
    gradient = np.zeros((len(groups), len(fitted.names)))
    np.add.at(gradient, (places, one), residual)
    np.add.at(gradient, (places, other), -residual)
    outer = gradient.T @ gradient * (len(groups) / (len(groups) - 1))
    covariance = fitted.covariance @ outer @ fitted.covariance
    error = np.sqrt(np.clip(np.diag(covariance), 0.0, None))
    return replace(fitted, covariance=covariance, standard_error=error)


# ------------------------------------------------------------------------------------------------ fitting


def _with_ties(
    kind: str, wins: Matrix, ties: Matrix, names: Sequence[str] | None, ridge: float | int
) -> Strengths:
    won, tied = require_games(kind, wins, ties)
    if not won.any():
        do = "A tie parameter needs games that somebody won."
        raise ConfigError(explain(kind, got="ties only", expected="at least one decided game", do=do))
    if not tied.any():
        fitted = _fit("bradley_terry", won, tied, names, ridge)
        limit = 0.0 if kind == "davidson" else 1.0
        never = np.zeros_like(won)
        return replace(fitted, kind=kind, tie_parameter=limit, tie_probability=never)
    return _fit(kind, won, tied, names, ridge)


def _fit(kind: str, won: Square, ties: Square, names: Sequence[str] | None, ridge: float | int) -> Strengths:
    """The maximum of one of the log-likelihoods, with everything that follows from it."""
    num = len(won)
    labels = tuple(names) if names is not None else tuple(str(place) for place in range(num))
    if len(labels) != num or len(set(labels)) != num:
        raise ConfigError(explain(f"{kind} names", got=str(labels), expected=f"{num} different names"))
    used = _needed_ridge(kind, won + 0.5 * ties, labels, ridge)
    likelihood = GameLikelihood(MODELS[kind], won, ties, used, has_ties=kind != "bradley_terry")
    best = maximum(likelihood)
    covariance = np.linalg.pinv(likelihood.information(best), hermitian=True)[:num, :num]
    strength = best[:num]
    log_won, log_tied = likelihood.outcomes(best)
    return Strengths(
        kind=kind,
        names=labels,
        strength=strength,
        standard_error=np.sqrt(np.clip(np.diag(covariance), 0.0, None)),
        covariance=covariance,
        elo=elo_scale(strength),
        win_probability=np.exp(log_won.value),
        tie_probability=np.exp(log_tied.value) if likelihood.has_ties else None,
        tie_parameter=math.exp(best[-1]) if likelihood.has_ties else None,
        log_likelihood=likelihood.value(best),
        ridge=used,
        games=(won + won.T + ties).sum(axis=1),
    )


def _needed_ridge(kind: str, points: Square, names: tuple[str, ...], ridge: float | int) -> float:
    """0 where the games have a finite answer, otherwise `ridge`; refuses where that is 0."""
    if not 0.0 <= ridge < math.inf:
        raise ConfigError(explain(f"{kind} ridge", got=ridge, expected="a number >= 0", do="1e-6 is usual."))
    groups = unconnected_groups(points)
    if len(groups) == 1:
        return 0.0
    if ridge == 0.0:
        shown_groups = " | ".join(", ".join(names[place] for place in group) for group in groups)
        message = explain(
            kind,
            got=f"games in which these groups do not both win and lose against each other: {shown_groups}",
            expected="every model to be linked to every other by wins in both directions",
            do="Play more games, or pass ridge=1e-6 and say so.",
        )
        raise ConfigError(message)
    return float(ridge)
