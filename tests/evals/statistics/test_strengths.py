"""Strengths from games: known strengths come back, impossible games are refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mmalign.errors import ConfigError, ShapeError
from mmalign.evals.statistics import (
    bradley_terry,
    bradley_terry_games,
    count_games,
    davidson,
    elo_ratings,
    elo_scale,
    rao_kupper,
    sequential_elo,
)
from mmalign.evals.statistics.game_likelihoods import MODELS, GameLikelihood
from mmalign.evals.statistics.games import unconnected_groups

CASE = Path(__file__).parents[2] / "parity" / "cases" / "eval_bradley_terry_elo.json"
TRUE = np.array([0.9, 0.4, -0.1, -0.5, -0.7])


def probabilities(kind: str, tie: float) -> tuple[np.ndarray, np.ndarray]:
    """P(i beats j) and P(tie) straight from the papers' formulas."""
    a, b = np.exp(TRUE)[:, None], np.exp(TRUE)[None]
    if kind == "bradley_terry":
        return a / (a + b), np.zeros((5, 5))
    if kind == "davidson":
        total = a + b + tie * np.sqrt(a * b)
        return a / total, tie * np.sqrt(a * b) / total
    return a / (a + tie * b), (tie**2 - 1) * a * b / ((a + tie * b) * (b + tie * a))


def tables(kind: str, tie: float, num: int, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Expected (no seed) or drawn win and tie tables of `num` games per pair."""
    won, tied = probabilities(kind, tie)
    wins, ties = np.zeros((5, 5)), np.zeros((5, 5))
    generator = np.random.default_rng(seed)
    for i in range(5):
        for j in range(i + 1, 5):
            shares = [won[i, j], won[j, i], tied[i, j]]
            counts = np.array(shares) * num if seed is None else generator.multinomial(num, shares)
            wins[i, j], wins[j, i], ties[i, j] = counts
            ties[j, i] = ties[i, j]
    return wins, ties


FITS = {"bradley_terry": (bradley_terry, 1.0), "davidson": (davidson, 0.7), "rao_kupper": (rao_kupper, 1.6)}


@pytest.mark.parametrize("kind", FITS)
def test_expected_counts_give_the_true_strengths_back_exactly(kind):
    fit, tie = FITS[kind]
    found = fit(*tables(kind, tie, 100, None))
    assert found.strength == pytest.approx(TRUE, abs=1e-9)
    assert found.win_probability == pytest.approx(probabilities(kind, tie)[0], abs=1e-9)
    if kind != "bradley_terry":
        assert found.tie_parameter == pytest.approx(tie, abs=1e-9)
        assert found.tie_probability == pytest.approx(probabilities(kind, tie)[1], abs=1e-9)


@pytest.mark.parametrize("kind", FITS)
def test_standard_errors_are_the_spread_of_fits_to_drawn_games(kind):
    fit, tie = FITS[kind]
    fits = [fit(*tables(kind, tie, 60, seed)) for seed in range(101)]
    spread = np.std([found.strength for found in fits], axis=0, ddof=1)
    stated = np.mean([found.standard_error for found in fits], axis=0)
    assert spread == pytest.approx(stated, rel=4 / math.sqrt(2 * 100))
    held = [found.difference(0, 3).holds(TRUE[0] - TRUE[3]) for found in fits]
    assert np.mean(held) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 101))


@pytest.mark.parametrize("kind", FITS)
def test_derivatives_of_the_likelihoods_are_those_of_finite_differences(kind):
    wins, ties = tables(kind, FITS[kind][1], 30, 2)
    likelihood = GameLikelihood(MODELS[kind], wins, ties, 0.3, has_ties=kind != "bradley_terry")
    place = np.array([0.3, -0.2, 0.5, 0.1, -0.4, 0.6])[: 5 + likelihood.has_ties]
    steps = 1e-5 * np.eye(len(place))
    gradient = [(likelihood.penalised(place + h) - likelihood.penalised(place - h)) / 2e-5 for h in steps]
    assert likelihood.gradient(place) == pytest.approx(np.array(gradient), rel=1e-6, abs=1e-6)
    bend = np.array([(likelihood.gradient(place - h) - likelihood.gradient(place + h)) / 2e-5 for h in steps])
    assert likelihood.information(place) == pytest.approx(bend, rel=1e-6, abs=1e-6)


def test_bradley_terry_equals_the_recorded_numbers_to_nine_digits():
    case = json.loads(CASE.read_text())
    found = bradley_terry(case["inputs"]["wins"], case["inputs"]["ties"])
    for name, value in (
        ("bt_strength", found.strength),
        ("bt_standard_error", found.standard_error),
        ("bt_elo_scale", found.elo),
        ("bt_log_likelihood", found.log_likelihood),
    ):
        assert value == pytest.approx(np.array(case["outputs"][name]), rel=1e-9)
    tied = davidson(case["inputs"]["wins"], case["inputs"]["ties"])
    assert tied.log_likelihood >= case["outputs"]["davidson_log_likelihood"]  # the maximum, not near it


def test_two_models_have_the_log_odds_of_their_games():
    found = bradley_terry([[0, 30], [10, 0]])
    difference = found.difference(0, 1)
    assert difference.value == pytest.approx(math.log(3))
    error = math.sqrt(1 / 30 + 1 / 10)
    assert difference.high - difference.value == pytest.approx(1.959963984540054 * error)
    assert found.elo[0] - found.elo[1] == pytest.approx(400 * math.log10(3))


def test_relabelling_models_relabels_strengths():
    wins, ties = tables("davidson", 0.7, 30, 3)
    order = np.array([3, 1, 4, 0, 2])
    for fit in (bradley_terry, davidson, rao_kupper):
        found = fit(wins, ties)
        again = fit(wins[np.ix_(order, order)], ties[np.ix_(order, order)])
        assert again.strength == pytest.approx(found.strength[order], abs=1e-9)
        assert again.standard_error == pytest.approx(found.standard_error[order], abs=1e-9)


def test_games_without_ties_have_the_limit_of_the_tie_parameter():
    wins, _ = tables("bradley_terry", 1.0, 30, 5)
    plain = bradley_terry(wins)
    for fit, limit in ((davidson, 0.0), (rao_kupper, 1.0)):
        found = fit(wins, np.zeros((5, 5)))
        assert found.tie_parameter == limit
        assert found.strength == pytest.approx(plain.strength)
        assert not found.tie_probability.any()


def test_games_without_a_finite_answer_are_refused_by_group_or_ridged_on_request():
    wins = np.array([[0, 2, 3], [1, 0, 5], [0, 0, 0]])
    with pytest.raises(ConfigError, match=r"against each other: a, b \| c'.*ridge=1e-6"):
        bradley_terry(wins, names=["a", "b", "c"])
    found = bradley_terry(wins, names=["a", "b", "c"], ridge=1e-6)
    assert found.ridge == 1e-6
    assert found.strength.argmin() == 2
    assert np.isfinite(found.strength).all()
    assert "ridge 1e-06: some models never lost to, or never beat, others" in str(found)


def test_a_ridge_is_not_used_where_it_is_not_needed():
    wins, _ = tables("bradley_terry", 1.0, 30, 7)
    assert bradley_terry(wins, ridge=1.0).ridge == 0.0
    assert bradley_terry(wins, ridge=1.0).strength.tolist() == bradley_terry(wins).strength.tolist()


def test_groups_are_linked_by_points_in_both_directions():
    points = np.zeros((5, 5))
    points[0, 1] = points[1, 2] = points[2, 0] = points[2, 3] = points[3, 4] = points[4, 3] = 0.5
    assert unconnected_groups(points) == [[0, 1, 2], [3, 4]]
    points[4, 0] = 0.5
    assert unconnected_groups(points) == [[0, 1, 2, 3, 4]]


def test_games_on_one_prompt_widen_the_errors():
    generator = np.random.default_rng(11)
    games = []
    for prompt in range(70):
        favours = generator.uniform() < 0.6
        games += [("base", "tuned", 0.0 if favours else 1.0, prompt)] * 5
    first, second, score, prompts = (list(column) for column in zip(*games, strict=True))
    alone = bradley_terry_games(first, second, score)
    clustered = bradley_terry_games(first, second, score, prompts=prompts)
    assert clustered.strength.tolist() == alone.strength.tolist()
    assert clustered.standard_error == pytest.approx(alone.standard_error * math.sqrt(5), rel=0.02)
    apart = bradley_terry_games(first, second, score, prompts=range(350))
    assert apart.standard_error == pytest.approx(alone.standard_error, rel=0.02)


def test_the_order_of_games_and_of_their_sides_changes_nothing():
    first, second = ["b", "a", "c", "a", "b"], ["a", "b", "a", "c", "c"]
    score = [1.0, 0.5, 0.0, 0.0, math.nan]
    counted = count_games(first, second, score)
    swapped = count_games(second[::-1], first[::-1], [1 - value for value in score[::-1]])
    assert counted.names == swapped.names == ("a", "b", "c")
    assert counted.wins.tolist() == swapped.wins.tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 0]]
    assert counted.ties.tolist() == swapped.ties.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert str(counted) == "4 games of 3 models, 1 tied, 1 without a verdict"


def test_a_table_of_strengths_is_sorted():
    found = bradley_terry([[0, 3], [5, 0]], names=["base", "tuned"])
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["tuned", "base"]
    assert "(8 games)" in lines[0]
    assert json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("wins", "ties", "error", "match"),
    [
        ([[0, 1, 2], [1, 0, 2]], None, ShapeError, "expected square tables of one size"),
        ([[0]], None, ShapeError, "two models at least"),
        ([[0, 1], [1, 0]], [[0]], ShapeError, r"ties \[1, 1\]"),
        ([[0, -1], [1, 0]], None, ConfigError, "got 'a negative count'"),
        ([[1, 1], [1, 0]], None, ConfigError, "got 'games of a model against itself'"),
        ([[0, 1], [1, 0]], [[0, 1], [2, 0]], ConfigError, "got 'ties that differ"),
        ([[0, 0], [0, 0]], None, ConfigError, "got 'no games'"),
        ([[0, math.nan], [1, 0]], None, ConfigError, "NaN"),
    ],
)
def test_impossible_tables_are_refused(wins, ties, error, match):
    with pytest.raises(error, match=match):
        bradley_terry(wins, ties)


def test_impossible_arguments_are_refused():
    wins = [[0, 1], [1, 0]]
    with pytest.raises(ConfigError, match="expected 2 different names"):
        bradley_terry(wins, names=["a", "a"])
    with pytest.raises(ConfigError, match="ridge: got -1"):
        bradley_terry(wins, ridge=-1)
    with pytest.raises(ConfigError, match="got 'ties only', expected at least one decided game"):
        davidson([[0, 0], [0, 0]], [[0, 1], [1, 0]])
    with pytest.raises(ConfigError, match=r"count_games score 1: got 0\.3, expected 1"):
        count_games(["a", "a"], ["b", "b"], [1.0, 0.3])
    with pytest.raises(ConfigError, match="game 1: got 'b', expected two different models"):
        count_games(["a", "b"], ["b", "b"], [1.0, 0.0])
    with pytest.raises(ShapeError, match="got '1 second', expected 2"):
        count_games(["a", "b"], ["b"], [1.0, 0.0])
    games = (["a", "b"], ["b", "a"], [1.0, 1.0])
    with pytest.raises(ConfigError, match="got 'one prompt', expected at least two"):
        bradley_terry_games(*games, prompts=["p", "p"])
    with pytest.raises(ShapeError, match="got '1 prompts'"):
        bradley_terry_games(*games, prompts=["p"])


# ------------------------------------------------------------------------------------------------ Elo


def test_the_elo_scale_puts_ten_to_one_400_apart():
    assert elo_scale([math.log(10.0), 0.0]).tolist() == pytest.approx([1400.0, 1000.0])


def test_elo_moves_half_of_k_between_equals_and_depends_on_the_order():
    assert sequential_elo([[0, 1, 1]], 3).tolist() == [1016.0, 984.0, 1000.0]
    there, back = ([[0, 1, 1], [0, 1, 0]], [[0, 1, 0], [0, 1, 1]])
    assert sequential_elo(there, 2)[0] < 1000 < sequential_elo(back, 2)[0]


def test_averaged_elo_does_not_depend_on_the_order_listed_and_finds_the_ranking():
    generator = np.random.default_rng(0)
    games = []
    for _ in range(500):
        i, j = generator.choice(5, size=2, replace=False)
        games.append([int(i), int(j), float(generator.uniform() < 1 / (1 + math.exp(TRUE[j] - TRUE[i])))])
    found = elo_ratings(games, 5, num_orders=100)
    again = elo_ratings(games[::-1], 5, num_orders=100)
    assert found.rating.tolist() == again.rating.tolist()
    assert found.rating.sum() == pytest.approx(5000)
    assert found.rating.argmax() == 0
    assert np.corrcoef(found.rating, TRUE)[0, 1] > 0.95
    assert (found.spread > 5).all()
    assert "order moves it by" in str(found)


def test_impossible_elo_games_are_refused():
    for games in ([[0, 2, 1]], [[0, 0, 1]], [[0, 1, 2]], [[0.5, 1, 1]], [[0, 1]]):
        with pytest.raises(ConfigError, match=r"models in \[0, 2\)"):
            sequential_elo(games, 2)
    with pytest.raises(ConfigError, match="num_orders: got 99, expected at least 100"):
        elo_ratings([[0, 1, 1]], 2, num_orders=99)
