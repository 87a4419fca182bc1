"""Whether the chosen side of pairs moves less, with an interval and in words."""

import pytest

from mmalign.data.motion_bias import motion_bias


def records(sides, prompts=None):
    return [
        {"prompt": (prompts or range(len(sides)))[place], "motion_chosen": one, "motion_rejected": two}
        for place, (one, two) in enumerate(sides)
    ]


def test_a_calmer_chosen_side_is_warned_of():
    found = motion_bias(records([(0.1, 0.2)] * 29 + [(0.3, 0.2)] * 2))
    assert found.livelier.value == pytest.approx(2 / 31)
    assert found.livelier.high < 0.5
    assert found.difference.value == pytest.approx((29 * -0.1 + 2 * 0.1) / 31)
    assert found.verdict.startswith("warning: the chosen side moves less: it is the livelier one in 0.06 (")
    assert "motion_ratio_min" in found.verdict
    assert found.as_dict()["ratio"] == pytest.approx((2.9 + 0.6) / (31 * 0.2), abs=1e-4)


def test_a_livelier_chosen_side_is_said_and_no_warning():
    found = motion_bias(records([(0.3, 0.2)] * 31))
    assert found.verdict.startswith("the chosen side moves more")


def test_equal_pairs_count_half_and_show_no_bias():
    found = motion_bias(records([(0.2, 0.2)] * 7 + [(0.1, 0.2), (0.2, 0.1)]))
    assert found.livelier.value == 0.5
    assert found.verdict.startswith("no bias to be seen")


def test_pairs_of_one_prompt_tell_nothing():
    found = motion_bias(records([(0.1, 0.2)] * 31, prompts=["x"] * 31))
    assert found.verdict == "too few prompts to say whether the chosen side moves less"
    assert found.as_dict()["difference"][1:] == [None, None]


def test_rows_without_motion_are_left_out():
    assert motion_bias([{"prompt": "x", "motion_chosen": None, "motion_rejected": 0.1}]) is None
    assert motion_bias(records([(0.1, 0.0), (0.2, None)])).pairs == 1


def test_still_rejected_clips_have_no_ratio():
    assert motion_bias(records([(0.1, 0.0)])).as_dict()["ratio"] is None
