"""Judges with a known weakness show it under the probe that aims at it, and under no other."""

import pytest
import torch

from mmalign.errors import ConfigError, ShapeError, UnknownNameError
from mmalign.evals.judge_bias import PROBES, Comparison, Probe, probe_judge
from mmalign.evals.shares import clustered_mean, clustered_share

PAIRS = [
    Comparison(f"p{i}", f"question {i}", "good" if i % 3 else "bad", "bad" if i % 3 else "good")
    for i in range(47)
]


def fair(questions):
    """Finds the good answer whatever is said around it."""
    return ["one" if str(q.first).startswith("good") else "two" for q in questions]


def swayed_by(word):
    """A judge that follows a sentence with this word, wherever it stands, and is fair otherwise."""

    def judge(questions):
        answers = []
        for q in questions:
            named = "two" if "Answer 2" in q.note or word in str(q.second) else "one"
            moved = word in q.note or word in str(q.first) + str(q.second)
            answers.append(named if moved else fair([q])[0])
        return answers

    return judge


def rates(report):
    return {result.probe: result.flip_rate.value for result in report.probes}


def test_a_fair_judge_flips_under_no_probe_and_favours_no_position():
    report = probe_judge(fair, PAIRS)
    assert rates(report) == dict.fromkeys(PROBES, 0.0)
    assert report.consistency.value == 1.0
    assert report.first_position.value == 0.5
    assert all(result.flip_rate.high < 0.1 for result in report.probes)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("survey", "bandwagon"),
        ("Recommended", "authority"),
        ("Wait", "reflection"),
        ("chairs", "distraction"),
    ],
)
def test_a_swayed_judge_flips_under_its_own_probe_alone(word, name):
    report = probe_judge(swayed_by(word), PAIRS)
    assert rates(report) == {**dict.fromkeys(PROBES, 0.0), name: 1.0}
    (result,) = [result for result in report.probes if result.probe == name]
    assert result.above_repeat.low > 0
    assert result.num_questions == result.num_flipped == 2 * len(PAIRS)


def test_a_judge_of_positions_is_seen_in_the_order_alone():
    report = probe_judge(lambda questions: ["one"] * len(questions), PAIRS)
    assert report.first_position.value == 1.0
    assert report.first_position.low > 0.5
    assert report.consistency.value == 0.0
    assert rates(report) == dict.fromkeys(PROBES, 0.0)


def test_a_random_judge_flips_no_more_than_when_it_is_asked_again(make_generator):
    held = []
    for seed in range(41):
        generator = make_generator(seed)

        def coin(questions, generator=generator):
            heads = torch.randint(2, (len(questions),), generator=generator).tolist()
            return ["one" if head else "two" for head in heads]

        report = probe_judge(coin, PAIRS, probes=["bandwagon"])
        assert 0.2 < rates(report)["bandwagon"] < 0.8
        held.append(report.probes[-1].above_repeat.holds(0.0))
    assert sum(held) >= 35  # 95 % of 41 are 39; fewer than 35 come once in 300 such tests


def test_unreadable_answers_and_ties_are_counted_and_flip_nothing():
    def judge(questions):
        plain = fair(questions)
        return [
            None if "survey" in q.note else "tie" if "chairs" in f"{q.first}{q.second}" else choice
            for q, choice in zip(questions, plain, strict=True)
        ]

    report = probe_judge(judge, PAIRS, probes=["bandwagon", "distraction"])
    found = {result.probe: result for result in report.probes}
    assert list(found) == ["repeat", "bandwagon", "distraction"]
    assert (found["bandwagon"].num_invalid, found["bandwagon"].num_flipped) == (94, 0)
    assert found["bandwagon"].as_dict()["flip_rate"]["value"] is None
    assert found["distraction"].num_tied == 94


def test_pairs_without_a_choice_are_not_probed():
    report = probe_judge(lambda questions: ["tie" if q.id == "p0" else None for q in questions], PAIRS[:5])
    assert report.records == ()
    assert report.position.invalid_rate == pytest.approx(4 / 5)
    assert report.first_position.low is None


def test_sentences_speak_for_the_candidate_that_was_not_chosen():
    seen = []

    def judge(questions):
        seen.extend(questions)
        return ["one"] * len(questions)

    probe_judge(
        judge,
        [Comparison("a", "q", object(), object(), note="Be brief.")],
        probes=["bandwagon"],
        noun="Image",
    )
    assert seen[-1].note == "Be brief.\nIn a survey, 90 % of the people asked preferred Image 2."


def test_media_get_the_sentence_beside_the_question_and_texts_inside_them():
    probe = PROBES["authority"]
    text = probe.apply(Comparison("a", "q", "left", "right"), "two")
    assert (text.first, text.note) == ("left", "")
    assert text.second.startswith("right\n\n(Recommended in")
    media = probe.apply(Comparison("a", "q", b"1", b"2"), "one", noun="Image")
    assert (media.first, media.second) == (b"1", b"2")
    assert "on Image 1" in media.note


def test_reports_print_their_numbers_and_store_plain_values():
    report = probe_judge(swayed_by("survey"), PAIRS, probes=["bandwagon"])
    assert "bandwagon: 1.000 (" in str(report)
    assert report.as_dict()["position"]["consistency_rate"] == 1.0
    assert "records" not in report.as_dict()


def test_what_cannot_be_probed_is_refused():
    with pytest.raises(ConfigError, match="probe_judge pairs: got 'none', expected at least one pair"):
        probe_judge(fair, [])
    with pytest.raises(ConfigError, match="probe_judge pairs: got 'id p0 twice', expected different ids"):
        probe_judge(fair, [PAIRS[0], PAIRS[0]])
    with pytest.raises(UnknownNameError, match=r"unknown probe 'bandwagn'. Did you mean bandwagon"):
        probe_judge(fair, PAIRS, probes=["bandwagn"])
    with pytest.raises(ShapeError, match="judge: got '3 answers', expected one per question, 47"):
        probe_judge(lambda questions: ["one"] * 3, PAIRS)
    with pytest.raises(ConfigError, match=r"probe mine sentence: got 'I like {that}', expected only {this}"):
        Probe("mine", "I like {that}")


def test_shares_and_means_leave_failures_out_and_follow_clusters():
    wide = clustered_share([1, 1, 1, 0, 0, 0], ["a", "a", "a", "b", "b", "b"])
    narrow = clustered_share([1, 1, 1, 0, 0, 0], range(6))
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > narrow.high - narrow.low
    assert clustered_share([1, float("nan")], ["a", "b"]).value == 1.0
    assert clustered_mean([2, float("nan"), 5], ["a", "b", "c"]).value == 3.5
    with pytest.raises(ShapeError, match="clusters: got 2, expected one per value, 3"):
        clustered_share([1, 0, 1], ["a", "b"])
