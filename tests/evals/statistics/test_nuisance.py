"""Win rates at equal nuisances."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmalign.errors import ConfigError, ShapeError
from mmalign.evals.statistics import controlled_win_rate


def judged(num: int, seed: int, *, quality: float, taste: float) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts of a judge that likes quality and length, on a model that writes more."""
    generator = np.random.default_rng(seed)
    longer = generator.normal(60.0, 80.0, num)
    shares = 1.0 / (1.0 + np.exp(-(quality + taste * longer / 100.0)))
    return (generator.uniform(size=num) < shares).astype(float), longer


def test_a_win_by_length_alone_disappears_at_equal_length():
    verdict, longer = judged(5003, 0, quality=0.0, taste=1.5)
    found = controlled_win_rate(verdict, {"length": longer})
    assert found.raw > 0.66
    assert found.controlled.holds(0.5)
    assert found.controlled.value == pytest.approx(0.5, abs=0.03)
    assert found.effects["length"].low > 0
    assert found.effects["length"].value == pytest.approx(1.5 * found.scales["length"] / 100, rel=0.1)


def test_a_taste_for_length_is_nothing_against_real_quality():
    verdict, longer = judged(5003, 1, quality=0.8, taste=0.0)
    found = controlled_win_rate(verdict, {"length": longer})
    assert found.controlled.holds(1 / (1 + math.exp(-0.8)))
    assert found.effects["length"].holds(0.0)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    truth = 1 / (1 + math.exp(-0.4))
    held = [
        controlled_win_rate(verdict, {"length": longer}).controlled.holds(truth)
        for verdict, longer in (judged(307, seed, quality=0.4, taste=1.0) for seed in range(200))
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 200) + 0.005)


def test_the_fit_is_that_of_scikit_learn():
    verdict, longer = judged(211, 3, quality=0.3, taste=1.0)
    other = np.random.default_rng(4).normal(size=211)
    found = controlled_win_rate(verdict, {"length": longer, "noise": other}, ridge=2.0)
    inputs = np.stack([longer / found.scales["length"], other / found.scales["noise"]], axis=1)
    model = LogisticRegression(C=0.5, tol=1e-12, max_iter=1000).fit(inputs, verdict)
    assert found.controlled.value == pytest.approx(1 / (1 + math.exp(-model.intercept_[0])), rel=1e-6)
    assert [effect.value for effect in found.effects.values()] == pytest.approx(model.coef_[0], rel=1e-5)


def test_swapping_the_models_mirrors_the_rate():
    verdict, longer = judged(211, 5, quality=0.3, taste=1.0)
    there = controlled_win_rate(verdict, {"length": longer})
    back = controlled_win_rate(1 - verdict, {"length": -longer})
    assert back.controlled.value == pytest.approx(1 - there.controlled.value)
    assert back.controlled.low == pytest.approx(1 - there.controlled.high)
    assert back.effects["length"].value == pytest.approx(there.effects["length"].value)


def test_verdicts_on_one_prompt_count_once():
    verdict, longer = judged(211, 7, quality=0.3, taste=1.0)
    once = controlled_win_rate(verdict, {"length": longer})
    again = controlled_win_rate(
        np.repeat(verdict, 5), {"length": np.repeat(longer, 5)}, prompts=np.repeat(np.arange(211), 5)
    )
    assert again.num_prompts == 211
    assert again.controlled.low == pytest.approx(once.controlled.low, rel=1e-6)


def test_verdicts_without_an_answer_or_a_nuisance_are_left_out_and_counted():
    verdict, longer = judged(53, 9, quality=0.3, taste=1.0)
    plain = controlled_win_rate(verdict[2:], {"length": longer[2:]})
    verdict[0], longer[1] = math.nan, math.nan
    found = controlled_win_rate(verdict, {"length": longer})
    assert (found.failed, found.num_verdicts) == (2, 51)
    assert found.controlled.value == pytest.approx(plain.controlled.value)
    assert str(found).startswith(f"win rate {found.raw:.3f}, at equal length 0.")


def test_verdicts_without_a_finite_answer_are_refused_and_a_ridge_allows_them():
    longer = np.array([1.0, 2.0, -1.0, -3.0, 2.0, -2.0, 1.5])
    verdict = (longer > 0).astype(float)
    with pytest.raises(ConfigError, match=r"decide without exception'.*Pass ridge=1"):
        controlled_win_rate(verdict, {"length": longer})
    found = controlled_win_rate(verdict, {"length": longer}, ridge=1.0)
    assert 0.2 < found.controlled.value < 0.8
    with pytest.raises(ConfigError, match="decide without exception"):
        controlled_win_rate(np.ones(7), {"length": longer})


@pytest.mark.parametrize(
    ("verdict", "nuisances", "error", "match"),
    [
        ([1, 0, 1, 0], {}, ConfigError, "nuisances: got 'none'"),
        ([1, 0, 2, 0], {"a": [1, 2, 3, 4]}, ConfigError, r"verdict: got 2\.0, expected 1, 0\.5, 0"),
        ([1, 0, 1], {"a": [1, 2]}, ShapeError, "controlled_win_rate a: got '2 differences', expected 3"),
        ([1, 0], {"a": [1, 2]}, ConfigError, "expected more than 2 verdicts"),
        ([1, 0, 1, 0], {"a": [0, 0, 0, 0]}, ConfigError, "a is 0 everywhere"),
        ([1, 0, 1, 0], {"a": [3, 3, 3, 3]}, ConfigError, "cannot be told from the model"),
        (
            [1, 0, 1, 0, 1],
            {"a": [1, 2, 3, 5, 1], "b": [2, 4, 6, 10, 2]},
            ConfigError,
            "follows from the others",
        ),
        ([math.nan], {"a": [1]}, ConfigError, "got 'no complete verdict'"),
    ],
)
def test_impossible_questions_are_refused(verdict, nuisances, error, match):
    with pytest.raises(error, match=match):
        controlled_win_rate(verdict, nuisances)
