"""VideoHallucer: hits, pairs, subsets, bias, files."""

import json
import math

import pytest

from mmalign.errors import ConfigError, RowError
from mmalign.evals.base import Answer
from mmalign.evals.benchmarks import videohallucer


def pair(basic, hallucination, **more):
    sides = {
        "basic": {"question": "Is there a bird?", "answer": "yes", "predict": basic},
        "hallucination": {"question": "Is there a crow?", "answer": "no", "predict": hallucination},
    }
    return {**sides, **more}


def test_released_hits_are_whole_words_anywhere():
    assert videohallucer.released_hit("I would say: NO!", "no")
    assert not videohallucer.released_hit("nothing, I know", "no")


def test_an_answer_that_says_both_hits_everything_as_released_and_nothing_strictly():
    rows = [pair("Yes and no", "yes and no"), pair("yes", "no"), pair("yes", "yes")]
    exact, strict = videohallucer.score_answers(rows), videohallucer.score_answers(rows, "strict")
    assert exact.accuracy == pytest.approx(2 / 3)
    assert strict.accuracy == pytest.approx(1 / 3)
    assert strict.basic_accuracy == pytest.approx(2 / 3)
    assert strict.unparsed == 2


def test_overall_numbers_are_unweighted_over_subsets():
    rows = [pair("yes", "no", subset="a")] + [pair("yes", "yes", subset="b")] * 3
    result = videohallucer.score_answers(rows)
    assert result.accuracy == 0.5
    assert result.halluc_accuracy == 0.5
    assert result.subsets["b"].pairs == 3


def test_a_pair_without_an_answer_is_counted_and_scored_nowhere():
    rows = [pair("yes", "no"), pair("no", None)]
    rows[1]["hallucination"]["error"] = "no frames"
    result = videohallucer.score_answers(rows)
    assert (result.accuracy, result.basic_accuracy, result.failed) == (1.0, 1.0, 1)
    assert result.items[1].error == "no frames"
    assert math.isnan(result.items[1].both)


def test_a_subset_without_any_answer_leaves_the_overall_number_undefined():
    rows = [pair("yes", "no", subset="a"), pair(None, None, subset="b")]
    assert math.isnan(videohallucer.score_answers(rows).accuracy)


def test_readiness_to_agree_is_reported():
    result = videohallucer.score_answers([pair("yes", "yes"), pair("yes", "yes"), pair("no", "maybe")])
    assert result.yes_difference == pytest.approx(4 / 6 - 3 / 6)
    assert result.false_yes_share == pytest.approx(2 / 3)
    assert result.unparsed == 1


def test_malformed_pairs_are_named():
    with pytest.raises(RowError, match=r"pairs\[0\] basic: .*an object with fields"):
        videohallucer.score_answers([{"hallucination": {}}])
    with pytest.raises(RowError, match=r"pairs\[0\] basic answer: got 'maybe', expected 'yes' or 'no'"):
        videohallucer.score_answers([{"basic": {"answer": "maybe"}}])
    broken = pair("yes", "no")
    del broken["hallucination"]["predict"]
    with pytest.raises(RowError, match=r"pairs\[0\] hallucination predict: .*what the model said, or null"):
        videohallucer.score_answers([broken])


@pytest.fixture
def folder(tmp_path):
    for name in videohallucer.SUBSETS.values():
        rows = [pair("yes", "no"), pair("yes", "yes")]
        for row in rows:
            row["basic"]["video"] = row["hallucination"]["video"] = "clip.mp4"
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def test_result_files_of_the_official_script_are_read(folder):
    rows = videohallucer.read_pairs(folder / "temporal" / "temporal.json", "temporal")
    result = videohallucer.score_answers(rows)
    assert result.subsets["temporal"].accuracy == 0.5
    assert [item.id for item in result.items] == ["temporal/0", "temporal/1"]


def test_the_harness_joins_questions_into_pairs(folder):
    items = videohallucer.BENCHMARK.items(folder, subsets=["temporal", "fact"])
    assert len(items) == 8
    assert items[0].prompt == "Is there a bird?\nAnswer the question using 'yes' or 'no'."
    assert items[0].media == (folder / "temporal" / "videos" / "clip.mp4",)
    said = ["yes", "no", "yes", "yes", "yes", "no", "yes"]
    answers = [Answer(item, text=text) for item, text in zip(items, said, strict=False)]
    answers.append(Answer(items[-1], error="killed"))
    outcome = videohallucer.BENCHMARK.score(answers, mode="strict")
    found = {metric.name: metric for metric in outcome.metrics}
    assert found["accuracy"].value == pytest.approx((0.5 + 1.0) / 2)
    assert found["accuracy"].per_item["temporal/1"] == 0.0
    assert outcome.counts == {"pairs": 4, "failed": 1, "unparsed": 0}


def test_half_a_pair_and_unknown_subsets_are_refused(folder):
    items = videohallucer.BENCHMARK.items(folder, subsets=["fact"])
    with pytest.raises(RowError, match="answers to fact/0 hallucination"):
        videohallucer.BENCHMARK.score([Answer(items[0], text="yes")])
    with pytest.raises(ConfigError, match="subsets: got 'sound', expected obj_rel or"):
        videohallucer.BENCHMARK.items(folder, subsets=["sound"])
