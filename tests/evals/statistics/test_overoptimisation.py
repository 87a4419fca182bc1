"""Over-optimisation reports and drift."""

import json
import math

import numpy as np
import pytest

from mmalign.errors import ConfigError, ShapeError
from mmalign.evals.statistics import (
    best_of_n_kl,
    kl_estimates,
    overoptimisation_report,
    path_kl,
    standardised_gain,
)

BASE = np.array([0.0, 1.0, 2.0, 3.0, 4.0])


def run(*gains: float, scale: float = 1.0) -> np.ndarray:
    """Scores of checkpoints that gain so much over the base model on every prompt."""
    return np.stack([BASE, *(BASE + gain for gain in gains)]) * scale


def held_out(*gains: float) -> dict[str, np.ndarray]:
    return {name: run(*gains) for name in ("clip", "blip", "vlm")}


def test_an_alarm_is_raised_when_only_the_proxy_grows_for_two_checkpoints():
    found = overoptimisation_report(
        run(1, 2, 3, 4),
        held_out(1, 2, 1.5, 0.5),
        checkpoints=["base", "1k", "2k", "3k", "4k"],
        proxy="pickscore",
    )
    assert (found.alarm, found.alarm_from, found.best) == (True, "2k", "2k")
    deviation = BASE.std(ddof=1)
    assert found.fall.value == pytest.approx(-1.5 / deviation)
    assert found.fall.high < 0
    (warning,) = found.warnings
    assert warning.startswith("Over-optimisation: from 2k on, pickscore rose from +1.26 to +2.53 standard")
    assert warning.endswith("fell from +1.26 to +0.32. Use 2k, which they rate highest.")
    assert "Use 2k" in str(found)


@pytest.mark.parametrize(
    ("proxy", "others"),
    [
        ((1, 2, 3, 4), (1, 2, 1.5, 1.6)),  # falls once
        ((1, 2, 3, 4), (1, 0.5, 0.7, 0.6)),  # falls twice, not in a row
        ((4, 3, 2, 1), (4, 3, 2, 1)),  # the proxy falls too
        ((1, 2, 2, 3), (1, 2, 1.5, 1)),  # the proxy stands still
        ((1, 2, 3, 4), (1, 2, 2, 2)),  # the others stand still
    ],
)
def test_no_alarm_is_raised_otherwise(proxy, others):
    found = overoptimisation_report(run(*proxy), held_out(*others))
    assert (found.alarm, found.alarm_from, found.fall, found.warnings) == (False, "", None, ())
    assert str(found).endswith("No sign of over-optimisation.")


def test_a_fall_within_the_noise_says_so():
    generator = np.random.default_rng(0)
    noisy = {name: table + generator.normal(0, 3, table.shape) for name, table in held_out(0, 0, 0).items()}
    falls = [noisy["clip"][0], noisy["clip"][1]]
    tables = {"clip": np.stack([falls[0], falls[1], falls[1] - 1e-3, falls[1] + [-9, 8.9, 0, 0, 0]])}
    found = overoptimisation_report(run(1, 2, 3), tables)
    assert found.alarm
    assert "That fall is within the noise of these prompts." in found.warnings[0]


def test_units_of_rewards_do_not_matter():
    plain = overoptimisation_report(run(1, 2, 3), held_out(1, 0.5, 0.25))
    scaled = overoptimisation_report(
        run(1, 2, 3, scale=100.0) + 7.0,
        {name: 0.01 * table for name, table in held_out(1, 0.5, 0.25).items()},
    )
    assert scaled.proxy_gain == pytest.approx(plain.proxy_gain)
    assert scaled.gap == pytest.approx(plain.gap)


def test_what_else_is_wrong_is_said_in_words():
    found = overoptimisation_report(
        run(1, 2),
        {"clip": run(1, -0.5), "blip": run(1, 2)},
        symptoms={
            "saturation": run(0.1, 2),
            "sharpness": run(0, -2),
            "diversity": run(0, -0.1),
            "moons": run(0, 3),
        },
        drift=[0.0, 0.5, 2.5],
    )
    assert not found.alarm
    text = "\n".join(found.warnings)
    assert "2 is better than the base model by the training reward (+1.26) and worse by clip (-0.32)." in text
    assert "2: colours are getting stronger (saturation +1.26 sd of the base)." in text
    assert "2: pictures are getting blurred" in text
    assert "2: moons is growing" in text
    assert "becoming alike" not in text  # moved too little to be worth a word
    assert "Only 2 held-out rewards: use three of different families" in text
    assert "2.5" in str(found).splitlines()[3]
    assert json.dumps(found.as_dict(), allow_nan=False)


def test_failed_items_are_left_out_in_pairs_and_failed_checkpoints_are_named():
    table = run(1, 2)
    table[1, 0] = math.nan
    assert standardised_gain(table) == pytest.approx(standardised_gain(run(1, 2)))
    table[2] = math.nan
    found = overoptimisation_report(run(1, 2), {"clip": table, "blip": run(1, 2), "vlm": run(1, 2)})
    assert math.isnan(found.held_out["clip"][2])
    assert found.best == "1"
    assert any("no scores at all by clip" in warning for warning in found.warnings)


def test_impossible_reports_are_refused():
    with pytest.raises(ConfigError, match="got '0 held-out rewards, 2 checkpoints'"):
        overoptimisation_report(run(1), {})
    with pytest.raises(ConfigError, match="1 held-out rewards, 1 checkpoints"):
        overoptimisation_report(run(), {"clip": run()})
    with pytest.raises(ShapeError, match="overoptimisation clip: got 3, expected 2 checkpoints"):
        overoptimisation_report(run(1), {"clip": run(1, 2)})
    with pytest.raises(ShapeError, match="overoptimisation drift: got 1"):
        overoptimisation_report(run(1), {"clip": run(1)}, drift=[0.0])
    with pytest.raises(ConfigError, match="at least two prompts on which the base model scores differently"):
        standardised_gain([[1.0, 1.0], [2.0, 3.0]])
    with pytest.raises(ConfigError, match="got '1 base scores"):
        standardised_gain([[1.0], [2.0]])


# ------------------------------------------------------------------------------------------------ drift


def test_the_best_of_one_has_not_moved_and_more_choice_moves_more():
    found = best_of_n_kl([1, 2, 3, 5])
    assert found[0] == 0.0
    assert found[1] == pytest.approx(math.log(2) - 0.5)
    assert (np.diff(found) > 0).all()
    with pytest.raises(ConfigError, match=r"best_of_n_kl: got 0\.5, expected n >= 1"):
        best_of_n_kl([0.5])


def test_kl_estimates_find_the_divergence_of_two_normal_distributions():
    # KL(N(m, 1) || N(0, 1)) = m^2 / 2
    samples = np.random.default_rng(0).normal(0.3, 1.0, 200_003)
    found = kl_estimates(-0.5 * (samples - 0.3) ** 2, -0.5 * samples**2)
    assert found.k1 == pytest.approx(0.045, abs=0.003)
    assert found.k3 == pytest.approx(0.045, abs=4 * found.standard_error)
    assert found.standard_error < 0.0005
    assert math.isnan(kl_estimates([-1.0], [-1.0]).standard_error)
    assert str(kl_estimates([-1.0], [-1.0])) == "KL 0.000 (k3), 0.000 (k1) over 1 samples"


def test_equal_models_have_no_divergence_and_k3_is_never_negative():
    values = np.random.default_rng(1).normal(size=(2, 31))
    assert kl_estimates(values[0], values[0]).k3 == 0.0
    assert kl_estimates(values[0], values[1]).k3 > 0.0


def test_the_divergence_of_paths_adds_up_over_steps():
    gaps, variance = [[2.0, 4.0, 0.0], [6.0, 4.0, 2.0]], [1.0, 2.0, 0.5]
    total, bins = path_kl(gaps, variance, num_bins=2)
    assert total == pytest.approx(2.0 + 1.0 + 1.0)
    assert bins.tolist() == pytest.approx([3.0, 1.0])
    with pytest.raises(ShapeError, match="got '2 variances', expected one per step"):
        path_kl(gaps, [1.0, 1.0])
    with pytest.raises(ConfigError, match="expected variances > 0"):
        path_kl(gaps, [1.0, 0.0, 1.0])
    with pytest.raises(ShapeError, match="got '1 reference'"):
        kl_estimates([1.0, 2.0], [1.0])
