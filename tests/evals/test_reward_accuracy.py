"""Rewards held against labelled pairs: every rule by hand, order in the file, resuming, comparisons."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.data.config import DataConfig
from mmalign.errors import ConfigError, RowError, UnknownNameError
from mmalign.evals.accuracy_groups import breakdowns, compare_accuracies
from mmalign.evals.accuracy_run import STORED, data_config, measure_rewards, rate_rows, titled
from mmalign.evals.accuracy_tables import accuracy_markdown, notes_of
from mmalign.evals.labelled_rows import LabelledRow, LabelledRows, Pairs, read_labelled, stored_scores
from mmalign.evals.reward_accuracy import measure_accuracy
from mmalign.evals.statistics import Resampling
from mmalign.evals.tie_rules import Labelled, choices, pair_credits
from mmalign.rewards.functions import FunctionReward
from mmalign.rewards.sample import Sample, to_image

HOW = Resampling(50)


def labelled(
    human: list[int],
    gaps: list[float],
    prompts: list[str] | None = None,
    columns: list[dict[str, str]] | None = None,
) -> Labelled:
    """Pairs with these labels and score differences; the second score is always 0."""
    count = len(human)
    texts = prompts or [f"prompt {place}" for place in range(count)]
    rows = [
        LabelledRow(
            index=place,
            prompt=texts[place],
            relevance=((1 + human[place]) / 2, (1 - human[place]) / 2),
            models=(None, None),
            scores=(math.nan, math.nan),
            columns=(columns or [{}] * count)[place],
            where=f"rows:{place}",
        )
        for place in range(count)
    ]
    values = np.array([value for gap in gaps for value in (gap, 0.0)], dtype=np.float64)
    places = np.arange(count, dtype=np.int64)
    pairs = Pairs(np.array(human, dtype=np.float64), 2 * places, 2 * places + 1, places, tuple(texts))
    return Labelled(pairs, rows, values)


def write_rows(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def paint(folder: Path, name: str, red: int) -> str:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 20), (red, 10, 10)).save(folder / "images" / name)
    return f"images/{name}"


@pytest.fixture
def file_of_pairs(tmp_path: Path) -> Path:
    """Seven pairs whose redder picture people prefer but once, one tie, labels on either side."""
    reds = [(200, 40), (30, 220), (90, 180), (250, 10), (60, 60), (120, 20), (15, 140)]
    labels = [1, 0, 0, 1, 0.5, 0, 0]  # the sixth goes against redness
    rows = [
        {
            "caption": f"a heron {'and a reed ' * number}by the lake",
            "image_a": paint(tmp_path, f"{number}a.png", one),
            "image_b": paint(tmp_path, f"{number}b.png", other),
            "label": label,
            "user_id": f"user {number % 2}",
            "model_a": "old",
            "model_b": "new" if number % 2 else "older",
        }
        for number, ((one, other), label) in enumerate(zip(reds, labels, strict=True))
    ]
    return write_rows(tmp_path, rows)


ASKED: list[str] = []


def red(samples: Sequence[Sample]) -> list[float]:
    ASKED.extend(sample.id for sample in samples)
    return [_red_of(sample) for sample in samples]


def _red_of(sample: Sample) -> float:
    assert sample.image is not None
    return float(np.asarray(to_image(sample.image))[..., 0].mean())


@pytest.fixture
def redness() -> FunctionReward:
    ASKED.clear()
    return FunctionReward(red, name="redness")


# ------------------------------------------------------------------------------------------------- the rules


def test_each_rule_counts_ties_as_its_benchmark_does() -> None:
    # right, wrong, predicted tie on a decided pair, human tie predicted apart, human tie predicted equal.
    test = labelled([1, 1, -1, 0, 0], [2.0, -1.0, 0.0, 3.0, 0.0])
    validation = labelled([1, -1, 0, 1], [2.0, -3.0, 0.5, -0.2])
    found = measure_accuracy("r", test, validation, how=HOW).rules
    values = {name: entry.pooled.value for name, entry in found.items() if entry is not None}
    assert values["half"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert values["imagereward"] == pytest.approx(1 / 3)
    # On validation |gap| <= 0.5 calls the tie and the wrong pair equal: three of four right.
    assert found["with_ties"] is not None
    assert found["with_ties"].thresholds == (0.5,)
    assert values["with_ties"] == pytest.approx((1 + 0 + 0 + 0 + 1) / 5)
    # With the threshold chosen on these pairs themselves, 0 is the best one tried.
    assert values["videoalign"] == pytest.approx(2 / 5)
    # Equal scores keep the file's order, which is wrong for the third pair; human ties are right.
    assert values["hpdv2"] == pytest.approx((1 + 0 + 0 + 1 + 1) / 5)


def test_the_threshold_of_pick_a_pic_is_one_on_probabilities_and_comes_from_validation() -> None:
    test = labelled([1, 0, -1, 0], [2.0, 0.1, 0.3, -2.0])
    validation = labelled([0, 0, 1, -1], [0.3, -0.3, 3.0, -3.0])
    found = measure_accuracy("r", test, validation, rules=("pickapic",), scale=1.0, how=HOW).rules["pickapic"]
    assert found is not None
    # tanh(0.15) = 0.149 is a tie from 0.2 on, tanh(1.5) = 0.905 never before 1.
    assert found.thresholds == (0.2,)
    assert found.chosen_on == "validation"
    assert found.predicted_ties == 2
    assert found.pooled.value == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)


def test_without_validation_no_pair_is_judged_by_a_threshold_it_helped_to_choose() -> None:
    prompts = [f"a {place}" for place in range(40)]
    human = [(1, -1, 0)[place % 3] for place in range(40)]
    rng = np.random.default_rng(0)
    gaps = [side * 1.0 + float(noise) for side, noise in zip(human, rng.normal(0, 0.5, 40), strict=True)]
    test = labelled(human, gaps, prompts)
    learnt, chosen_on = choices(test, None)
    assert chosen_on == "the other half of the prompts"
    first, second = learnt
    assert (first.used_on ^ second.used_on).all()
    # What one half is judged by does not move when its own labels are all turned round.
    turned = labelled(
        [-side if used else side for side, used in zip(human, first.used_on, strict=True)], gaps, prompts
    )
    again = choices(turned, None)[0][0]
    assert (again.with_ties, again.pickapic, again.beta) == (first.with_ties, first.pickapic, first.beta)


def test_pairs_of_one_prompt_stay_in_one_half() -> None:
    prompts = [f"p{place // 3}" for place in range(30)]
    test = labelled([1, -1] * 15, [0.5, -0.4, 1.0] * 10, prompts)
    used = choices(test, None)[0][0].used_on
    for prompt in set(prompts):
        assert len({bool(used[place]) for place in range(30) if prompts[place] == prompt}) == 1


def test_tau_b_is_that_of_the_definition() -> None:
    test = labelled([1, 1, -1, 0, 1], [2.0, -1.0, 0.0, 3.0, 1.0])
    # concordant 2, discordant 1; people decide 4 pairs, the reward 4.
    assert measure_accuracy("r", test, how=HOW).tau_b.value == pytest.approx(1 / 4)


def test_failed_pairs_count_nowhere_and_are_told() -> None:
    test = labelled([1, -1, 1], [1.0, math.nan, 2.0])
    validation = labelled([1, -1], [1.0, -1.0])
    found = measure_accuracy("r", test, validation, how=HOW)
    assert found.failed_pairs == 1
    assert {entry.pairs for entry in found.rules.values() if entry is not None} == {2}
    assert any("1 of 3 pairs lack a score" in note for note in found.notes)


def test_a_reward_without_any_score_is_an_error() -> None:
    with pytest.raises(ConfigError, match="none of 2 pairs has both scores"):
        measure_accuracy("r", labelled([1, -1], [math.nan, math.nan]))


def test_a_constant_reward_has_no_threshold_and_says_so() -> None:
    found = measure_accuracy("r", labelled([1, -1, 0], [0.0, 0.0, 0.0]), how=HOW)
    assert found.rules["pickapic"] is None
    assert found.calibration is None
    assert found.rules["half"] is not None
    assert found.rules["half"].pooled.value == 0.5
    assert any("No threshold and no beta" in note for note in found.notes)


def test_equal_scores_in_a_file_with_the_preferred_one_first_are_told() -> None:
    found = measure_accuracy("r", labelled([1, 1, 1], [1.0, 0.0, 2.0]), how=HOW)
    assert found.rules["hpdv2"] is not None
    assert found.rules["hpdv2"].pooled.value == 1.0
    assert any("breaks 1 equal scores by position" in note for note in found.notes)
    mixed = measure_accuracy("r", labelled([1, -1, 1], [1.0, 0.0, 2.0]), how=HOW)
    assert not any("by position" in note for note in mixed.notes)


def test_calibration_uses_the_scale_of_other_pairs() -> None:
    rng = np.random.default_rng(1)

    def drawn(count: int) -> Labelled:
        gaps = rng.normal(0, 2, count)
        human = np.where(rng.random(count) < 1 / (1 + np.exp(-0.7 * gaps)), 1, -1)
        return labelled(human.tolist(), gaps.tolist())

    found = measure_accuracy("r", drawn(900), drawn(900), how=HOW)
    assert found.betas[0] == pytest.approx(0.7, rel=0.15)
    assert found.calibration is not None
    assert found.calibration.error < 0.06
    assert found.calibration.nll.value < math.log(2)


def test_an_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="tie rule"):
        measure_accuracy("r", labelled([1], [1.0]), rules=("halff",))
    with pytest.raises(UnknownNameError, match="half"):
        pair_credits("halff", labelled([1], [1.0]))


# ------------------------------------------------------------------------------------ groups and comparisons


def test_groups_are_those_of_columns_and_their_mean_counts_each_once() -> None:
    columns = [{"user_id": "u"}] * 3 + [{"user_id": "v"}] * 2
    test = labelled([1, 1, 1, 1, 1], [1.0, 1.0, 1.0, -1.0, 1.0], columns=columns)
    by = {entry.by: entry for entry in breakdowns(test, pair_credits("half", test), how=HOW)}
    users = by["user_id"]
    assert {name: (found.value, count) for name, (found, count) in users.groups.items()} == {
        "u": (1.0, 3),
        "v": (0.5, 2),
    }
    assert users.mean.value == pytest.approx(0.75)
    # Two users tell nothing about the spread between users.
    assert users.mean.low is None
    assert "generators" not in by


def test_beyond_twelve_groups_the_rest_stands_together() -> None:
    columns = [{"user_id": f"u{place % 17}"} for place in range(51)]
    test = labelled([1] * 51, [1.0] * 51, columns=columns)
    (users,) = [e for e in breakdowns(test, pair_credits("half", test), how=HOW) if e.by == "user_id"]
    assert len(users.groups) == 12
    assert users.groups["6 others"][1] == 18
    assert users.num_groups == 17


def test_margin_buckets_stand_in_order_and_hold_all_pairs() -> None:
    gaps = [0.1 * place for place in range(1, 21)]
    test = labelled([1] * 20, gaps)
    (margin,) = [
        e for e in breakdowns(test, pair_credits("half", test), how=HOW) if e.by.startswith("margin")
    ]
    edges = [float(name[1:].split(",")[0]) for name in margin.groups]
    assert edges == sorted(edges)
    assert len(edges) == 4
    assert sum(count for _, count in margin.groups.values()) == 20


def test_two_rewards_are_compared_by_mcnemar_where_prompts_have_one_pair() -> None:
    right, wrong = 1.0, 0.0
    first = np.array([right] * 9 + [wrong] * 2 + [right] * 5 + [math.nan])
    second = np.array([wrong] * 9 + [right] * 2 + [right] * 5 + [right])
    credits = {"a": first, "b": second}
    gaps = {"a": first, "b": second}
    (found,) = compare_accuracies(credits, gaps, [f"p{place}" for place in range(17)], HOW)
    assert found.pairs == 16
    assert found.difference.value == pytest.approx(7 / 16)
    # Exact binomial: 2 P(X >= 9), X ~ B(11, 1/2).
    assert found.test.p_value == pytest.approx(2 * (55 + 11 + 1) / 2**11)
    assert found.adjusted == found.test.p_value
    assert found.same == pytest.approx(5 / 16)


def test_p_values_of_several_comparisons_are_corrected_together() -> None:
    rng = np.random.default_rng(2)
    credits = {
        name: (rng.random(60) < share).astype(float) for name, share in [("a", 0.9), ("b", 0.6), ("c", 0.5)]
    }
    found = compare_accuracies(credits, credits, list(range(60)), HOW)
    raw = sorted(entry.test.p_value for entry in found)
    smallest = min(found, key=lambda entry: entry.test.p_value)
    assert len(found) == 3
    assert smallest.adjusted == pytest.approx(min(1.0, 3 * raw[0]))


# -------------------------------------------------------------------------------------------- from the files


def test_candidates_stand_in_the_file_s_order_whatever_the_label(file_of_pairs: Path) -> None:
    rows = read_labelled(data_config(str(file_of_pairs)))
    assert rows.pairs().human.tolist() == [1, -1, -1, 1, 0, -1, -1]
    names = [Path(str(candidate.image)).name for _, _, candidate in rows.candidates()]
    assert names == [f"{number}{side}.png" for number in range(7) for side in "ab"]


def test_a_run_that_is_started_again_scores_nothing(
    file_of_pairs: Path, redness: FunctionReward, tmp_path: Path
) -> None:
    rows = read_labelled(data_config(str(file_of_pairs)))
    cache = tmp_path / "store"
    first = rate_rows("red", "redness", rows, cache, load=lambda _: redness, batch_size=3)
    asked = len(ASKED)
    again = rate_rows("red", "redness", rows, cache, load=lambda _: redness, batch_size=3)
    # The tie shows the same picture twice: it is scored once.
    assert asked == first.scores.fresh == 13
    assert again.scores.fresh == 0
    assert len(ASKED) == asked
    np.testing.assert_array_equal(first.scores.values["score"], again.scores.values["score"])
    assert first.scores.values["score"][:4].tolist() == [200, 40, 30, 220]


def test_the_report_holds_rules_groups_and_every_pair(
    file_of_pairs: Path, redness: FunctionReward, tmp_path: Path
) -> None:
    rows = read_labelled(data_config(str(file_of_pairs)))
    rated = [rate_rows("red", "redness", rows, tmp_path / "store", load=lambda _: redness)]
    report = measure_rewards(rated, rows, rules=("half", "hpdv2"), how=HOW)
    entry = report.record["rewards"]["red"]
    assert entry["rules"]["half"]["pooled"]["value"] == pytest.approx(5 / 6)
    assert {group["by"] for group in entry["breakdowns"]} == {
        "words of the prompt",
        "margin of the reward",
        "generators",
        "user_id",
    }
    assert report.record["data"]["human_ties"] == 1
    assert report.pairs[5] == {
        "where": report.pairs[5]["where"],
        "candidates": [0, 1],
        "prompt": "a heron " + "and a reed " * 5 + "by the lake",
        "human": -1,
        "difference": {"red": 100.0},
        "credit": {"red": 0.0},
        "errors": {},
    }
    json.dumps(report.record, allow_nan=False)
    page = accuracy_markdown(report.record)
    assert "| red | half | 83.3 % (" in page
    assert "new and old" in page


def test_a_distance_counts_the_other_way_round(file_of_pairs: Path, tmp_path: Path) -> None:
    def paleness(samples: Sequence[Sample]) -> list[float]:
        return [-_red_of(sample) for sample in samples]

    reward = FunctionReward(paleness, name="paleness")
    object.__setattr__(reward._card, "higher_is_better", False)
    rows = read_labelled(data_config(str(file_of_pairs)))
    rated = rate_rows("pale", "paleness", rows, tmp_path / "store", load=lambda _: reward)
    assert rated.scores.values["score"][:2].tolist() == [200, 40]


def test_a_candidate_that_cannot_be_scored_is_counted_with_its_reason(
    file_of_pairs: Path, tmp_path: Path
) -> None:
    (file_of_pairs.parent / "images" / "0b.png").unlink()

    def picky(samples: Sequence[Sample]) -> list[float]:
        if any(sample.prompt.count("reed") == 1 for sample in samples):
            message = "one reed is too few"
            raise RowError(message)
        return [float(len(sample.prompt)) for sample in samples]

    reward = FunctionReward(picky, name="picky")
    rows = read_labelled(data_config(str(file_of_pairs)))
    rated = rate_rows("picky", "picky", rows, tmp_path / "store", load=lambda _: reward)
    assert np.flatnonzero(np.isnan(rated.scores.values["score"])).tolist() == [1, 2, 3]
    assert "no such file" in rated.scores.errors[1]
    assert "one reed" in rated.scores.errors[2]
    report = measure_rewards([rated], rows, rules=("half",), how=HOW)
    assert report.failed == 3
    assert report.record["rewards"]["picky"]["failed_pairs"] == 2
    assert any("could not score 3 candidates" in note for note in notes_of(report.record))


def test_rankings_are_all_their_pairs_and_whole_lists_for_hpdv2(tmp_path: Path) -> None:
    rows = [
        {"prompt": "one", "images": ["a.png", "b.png", "c.png"], "rank": [2, 1, 3]},
        {"prompt": "two", "images": ["d.png", "e.png", "f.png"], "rank": [1, 2, 2]},
    ]
    for name in "abcdef":
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    read = read_labelled(data_config(str(write_rows(tmp_path, rows))))
    pairs = read.pairs()
    assert pairs.human.tolist() == [-1, 1, 1, 1, 1, 0]
    # The first list is ordered a, b, c by the reward: one of its three pairs is inverted.
    test = Labelled(pairs, read.rows, np.array([3.0, 2.0, 1.0, 9.0, 8.0, 7.0]))
    found = measure_accuracy("r", test, rules=("hpdv2", "imagereward"), how=HOW)
    assert found.rules["hpdv2"] is not None
    assert found.rules["hpdv2"].pooled.value == pytest.approx((2 / 3 + 1.0) / 2)
    assert found.rules["imagereward"] is not None
    assert found.rules["imagereward"].pooled.value == pytest.approx(4 / 5)
    assert found.tau_b_of_rankings is not None
    assert found.tau_b_of_rankings.value == pytest.approx((1 / 3 + 2 / math.sqrt(6)) / 2)


def test_scores_in_the_rows_are_a_reward_too(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "image_a": "x.png", "image_b": "y.png", "label": 0, "score_a": 1.0, "score_b": 3.0},
        {"prompt": "b", "image_a": "x.png", "image_b": "y.png", "label": 1, "score_a": 1.0, "score_b": 2.0},
    ]
    read = read_labelled(data_config(str(write_rows(tmp_path, rows))))
    rated = rate_rows("mine", STORED, read, tmp_path / "store")
    assert rated.scores.values["score"].tolist() == [1.0, 3.0, 1.0, 2.0]
    report = measure_rewards([rated], read, rules=("half",), how=HOW)
    assert report.record["rewards"]["mine"]["rules"]["half"]["pooled"]["value"] == 0.5
    assert not (tmp_path / "store").exists()


def test_rows_without_scores_say_how_to_name_the_columns(file_of_pairs: Path) -> None:
    with pytest.raises(ConfigError, match="no scores in the rows"):
        stored_scores(read_labelled(data_config(str(file_of_pairs))))


def test_prompts_that_validation_shares_are_told(
    file_of_pairs: Path, redness: FunctionReward, tmp_path: Path
) -> None:
    rows = read_labelled(data_config(str(file_of_pairs)))
    rated = rate_rows("red", "redness", rows, tmp_path / "store", validation=rows, load=lambda _: redness)
    report = measure_rewards([rated], rows, rows, rules=("half",), how=HOW)
    assert any("7 prompts stand in the validation pairs too" in note for note in report.record["warnings"])


def test_a_judge_of_pairs_is_sent_where_it_is_asked_in_both_orders(
    file_of_pairs: Path, redness: FunctionReward, tmp_path: Path
) -> None:
    object.__setattr__(redness._card, "outputs", ("preference", "in_order", "swapped"))
    rows = read_labelled(data_config(str(file_of_pairs)))
    with pytest.raises(ConfigError, match="mmalign judge bias"):
        rate_rows("judge", "judge", rows, tmp_path / "store", load=lambda _: redness)


def test_rows_of_single_candidates_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    path = write_rows(tmp_path, [{"prompt": "a", "image": "x.png", "label": True}])
    with pytest.raises(ConfigError, match="pairs or rankings"):
        read_labelled(data_config(str(path)))


def test_bad_rows_beyond_the_tolerated_share_end_the_run(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "image_a": "x.png", "image_b": "y.png", "label": label} for label in (1, "seven", 0)
    ]
    path = write_rows(tmp_path, rows)
    with pytest.raises(ConfigError, match="1 bad_label"):
        read_labelled(data_config(str(path)))
    tolerant: LabelledRows = read_labelled(data_config(str(path), max_bad_share=0.5))
    assert len(tolerant.rows) == 2
    assert tolerant.unusable == {"bad_label": 1}


@pytest.mark.parametrize("words", [[], ["=x"], ["a=x", "a=y"], ["x", "x"]])
def test_rewards_need_titles_of_their_own(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--reward"):
        titled(words)


def test_an_address_with_an_equals_sign_is_no_title() -> None:
    assert titled(["http://host:1/x?a=b", "mine=own:score"]) == {
        "http://host:1/x?a=b": "http://host:1/x?a=b",
        "mine": "own:score",
    }


def test_a_setting_of_the_data_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"rows.jsonl source.media"):
        data_config("rows.jsonl", media="smell")
    found: Callable[..., DataConfig] = data_config
    assert found("rows.jsonl", limit=3).all_sources[0].limit == 3
