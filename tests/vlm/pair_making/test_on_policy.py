"""Own answers become pairs by corrections and by scores, and what is left out is counted."""

import math
from functools import partial

import pytest

from mmalign.errors import ConfigError
from mmalign.vlm.pair_making.claims import claims_of, judge_claims, questions_for, refuted_score
from mmalign.vlm.pair_making.on_policy import (
    OwnAnswers,
    all_above,
    corrected,
    extremes,
    given_scores,
    own_answers,
    paired_by_score,
    read_corrections,
    score_answers,
)
from mmalign.vlm.pair_making.requests import Sampling
from mmalign.vlm.pair_making.self_judging import (
    WORDINGS,
    greedy_and_sampled,
    judged,
    mean_likelihood,
    sima_pairs,
)


def test_every_prompt_gets_its_answers_from_one_call_per_block(row, scripted, stages) -> None:
    write = scripted(lambda request, number: f"{request.row.id}{number}")
    answers = own_answers([row("a"), row("b"), row("c")], write, stages, num_answers=2, sampling=Sampling())
    assert [answer.texts for answer in answers] == [("a0", "a1"), ("b2", "b3"), ("c4", "c5")]
    assert len(write.seeds) == 2
    again = own_answers([row("a"), row("b"), row("c")], write, stages, num_answers=2, sampling=Sampling())
    assert [answer.texts for answer in again] == [answer.texts for answer in answers]
    assert len(write.seeds) == 2


def test_a_correction_with_a_report_becomes_a_row_of_opa_dpo(row) -> None:
    report = {"Sentence 1": {"copied content": "a dog", "rewritten content": "a cat", "score": 1}}
    given = read_corrections(
        [{"id": "a", "revised": "a cat", "standard": "it is a cat", "report": report, "author": "me"}]
    )
    pairs, rows, counts = corrected([OwnAnswers(row("a"), ("a dog",))], given)
    assert not pairs
    ((source, columns),) = rows
    assert source.id == "a"
    assert columns["original_generate_response"] == "a dog"
    assert columns["AI_pseudo_response"] == "a cat"
    assert columns["standard_response"] == "it is a cat"
    assert columns["AI_json_report"] == report
    assert counts == {"rows": 1}


def test_a_plain_correction_marks_the_words_that_changed(row) -> None:
    given = read_corrections([{"id": "a", "revised": "one red cat sits"}])
    pairs, _, _ = corrected([OwnAnswers(row("a"), ("one blue cat sits",))], given)
    (pair,) = pairs
    assert (pair.chosen, pair.rejected) == ("one red cat sits", "one blue cat sits")
    assert pair.columns["spans_chosen"] == [(4, 7, 1.0)]
    assert pair.columns["spans_rejected"] == [(4, 8, 1.0)]


def test_corrections_of_other_words_are_left_out(row) -> None:
    answers = [OwnAnswers(row(name), (text,)) for name, text in zip("abcd", ("x", "y", "z", ""), strict=True)]
    given = read_corrections(
        [{"id": "a", "revised": "n", "own": "old"}, {"id": "b", "revised": "y"}, {"id": "d", "revised": "n"}]
    )
    pairs, rows, counts = corrected(answers, given)
    assert not pairs
    assert not rows
    assert counts == {
        "corrected_another_answer": 1,
        "nothing_to_correct": 1,
        "not_corrected": 1,
        "empty_answer": 1,
        "rows": 0,
    }
    for records in ([{"id": 1, "revised": " "}], [{"id": 1, "revised": "n"}] * 2):
        with pytest.raises(ConfigError, match="correction of row 1"):
            read_corrections(records)


def test_scores_of_a_file_and_of_a_function_make_the_same_pairs(row, stages) -> None:
    answers = [OwnAnswers(row("a"), ("x", "yy", "zzz")), OwnAnswers(row("b"), ("v", "v "))]
    scored = score_answers(answers, lambda rows, texts: [float(len(text)) for text in texts], stages)
    given = given_scores(answers, [{"id": "a", "scores": [1, 2, 3]}, {"id": "b", "scores": [1, 2]}])
    assert scored == given
    pairs, counts = paired_by_score(scored, rule=extremes)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("zzz", "x")]
    assert pairs[0].columns == {"score_chosen": 3.0, "score_rejected": 1.0}
    assert counts == {"rows": 1, "empty_or_equal": 1}
    every, _ = paired_by_score(scored[:1], rule=partial(all_above, difference=1.0, limit=None))
    assert len(every) == 3


def test_a_row_without_scores_is_left_out_and_one_with_too_few_refused(row) -> None:
    answers = [OwnAnswers(row("a"), ("x", "y")), OwnAnswers(row("b"), ("x", "y"))]
    scored = given_scores(answers, [{"id": "b", "scores": [None, 2]}])
    assert math.isnan(scored[1].scores[0])
    assert paired_by_score(scored, rule=extremes)[1] == {"not_scored": 1, "no_difference": 1}
    with pytest.raises(ConfigError, match=r"scores of row a: got \[3 numbers\], expected 2"):
        given_scores(answers, [{"id": "a", "scores": [1, 2, 3]}])


# --- claims -------------------------------------------------------------------------------------------------


def test_claims_are_lines_without_bullets_and_repetitions() -> None:
    assert claims_of("1. A cat.\n- It is red.\n\n(2) A cat.\n* 3 dogs sit.") == [
        "A cat.",
        "It is red.",
        "3 dogs sit.",
    ]


def test_the_score_counts_claims_that_are_not_likelier_true() -> None:
    assert refuted_score([(0.6, 0.2), (0.3, 0.3), (0.1, 0.5)]) == -2.0
    assert math.isnan(refuted_score([]))


def test_lines_that_do_not_match_the_claims_are_not_used() -> None:
    assert questions_for(["It is red."], "1. Is it red?") == ["Is it red?"]
    assert questions_for(["It is red.", "A cat."], "Is it red?") == [
        'Is it true that "It is red"?',
        'Is it true that "A cat"?',
    ]


def test_answers_are_judged_claim_by_claim(row, scripted, stages) -> None:
    def divide(request, number: int) -> str:
        text = request.row.prompt
        assert not request.row.images
        if "Statements:" in text:
            claims = text.split("Statements:\n")[1].split("\n\nQuestions:")[0].splitlines()
            return "\n".join(f"Is there {claim[2:]}?" for claim in claims)
        return text.split("Answer: ")[1].split("\n\nFacts:")[0].replace(" and ", "\n")

    asked = []

    def judge(rows):
        asked.extend(rows)
        return [(0.9, 0.1) if "cat" in one.prompt else (0.1, 0.9) for one in rows]

    answers = [OwnAnswers(row("a"), ("cat", "cat and dog", "dog and cow")), OwnAnswers(row("b"), ("cow",))]
    scored = judge_claims(answers, divide=scripted(divide), judge=judge, stages=stages)
    assert [answer.scores for answer in scored] == [(0.0, -1.0, -2.0), (-1.0,)]
    assert all(one.images for one in asked)
    assert asked[0].prompt == "Is there cat? Answer yes or no."
    pairs, _ = paired_by_score(scored[:1], rule=partial(all_above, difference=1.0, limit=None))
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {
        ("cat", "cat and dog"),
        ("cat", "dog and cow"),
        ("cat and dog", "dog and cow"),
    }


# --- self-judging -------------------------------------------------------------------------------------------


def test_one_answer_is_greedy_and_the_other_drawn(row, scripted, stages) -> None:
    temperatures = []

    def write(requests, sampling, seed):
        temperatures.append(sampling.temperature)
        return [f"{sampling.temperature}" for _ in requests]

    (answer,) = greedy_and_sampled([row("a")], write, stages, sampling=Sampling(temperature=0.9))
    assert answer.texts == ("0.0", "0.9")
    assert temperatures == [0.0, 0.9]


def test_a_judge_that_likes_what_comes_first_decides_nothing(row, stages) -> None:
    answers = [OwnAnswers(row("a", truth="t"), ("x", "y"))]
    assert judged(answers, lambda rows: [(0.8, 0.2)] * len(rows), stages)[0] == [0.0] * len(WORDINGS)


def test_a_judge_that_knows_decides_in_both_orders(row, stages) -> None:
    answers = [OwnAnswers(row("a", truth="t"), ("wrong", "right"))]

    def judge(rows):
        return [
            (0.9, 0.1) if one.prompt.index("right") < one.prompt.index("wrong") else (0.1, 0.9)
            for one in rows
        ]

    odds = judged(answers, judge, stages, wordings=("{first} or {second} given {truth}?",))
    assert odds == [[pytest.approx(-math.log(9))]]
    pairs, counts = sima_pairs(answers, odds)
    assert (pairs[0].chosen, pairs[0].rejected) == ("right", "wrong")
    assert counts == {"rows": 1}


def test_pairs_on_which_judges_disagree_are_left_out(row) -> None:
    answers = [OwnAnswers(row(name), ("x", "y")) for name in "abc"] + [OwnAnswers(row("d"), ("x", "x"))]
    pairs, counts = sima_pairs(answers, [[1.0, 2.0], [1.0, -2.0], [0.2, 3.0], [1.0, 1.0]], least=0.5)
    assert [pair.row.id for pair in pairs] == ["a"]
    assert counts == {"judges_disagree": 2, "empty_or_equal": 1, "rows": 1}


def test_judging_by_the_truth_needs_a_truth(row, stages) -> None:
    with pytest.raises(ConfigError, match="a true answer to judge by"):
        judged([OwnAnswers(row("a"), ("x", "y"))], lambda rows: [], stages, wordings=("{truth}",))
    with pytest.raises(ConfigError, match="expected two"):
        judged([OwnAnswers(row("a"), ("x",))], lambda rows: [], stages)


def test_follow_ups_score_by_their_mean_likelihood(row) -> None:
    def likelihood(rows, texts, utterance):
        return [-float(len(text) * len(utterance)) for text in texts]

    rows = [row("a"), row("a")]
    assert mean_likelihood(likelihood, ("a", "bbb"), rows, ["x", "yy"]) == [-2.0, -4.0]
    with pytest.raises(ConfigError, match="at least one utterance"):
        mean_likelihood(likelihood, (), rows, ["x", "yy"])
