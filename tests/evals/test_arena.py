"""The arena ranks models of known quality, keeps its games when it grows, and never judges a game twice."""

import json
import math
from collections import Counter

import pytest
import torch

from mmalign.errors import ConfigError, ShapeError
from mmalign.evals.arena import Judgement, Match, play, schedule, standings

PROMPTS = {f"p{i:02d}": f"question {i}" for i in range(23)}
STRENGTH = {"weak": -1.0, "middle": 0.0, "strong": 1.2}


@pytest.fixture
def answers(draw):
    """Model to prompt to a text that ends in its quality, which varies from prompt to prompt."""
    return {
        model: {prompt: f"{model} says {strength + float(draw(1)):.3f}" for prompt in PROMPTS}
        for model, strength in STRENGTH.items()
    }


def quality(text):
    return float(text.rsplit(" ", 1)[1])


def fair(questions):
    return ["one" if quality(q.first) > quality(q.second) else "two" for q in questions]


def test_every_pair_meets_on_as_many_prompts_as_asked():
    matches = schedule(list(PROMPTS), list(STRENGTH), games_per_pair=7)
    assert Counter((match.first, match.second) for match in matches) == {
        ("middle", "strong"): 7,
        ("middle", "weak"): 7,
        ("strong", "weak"): 7,
    }
    assert len(set(matches)) == 21
    assert len(schedule(list(PROMPTS), list(STRENGTH))) == 3 * 23


def test_the_schedule_does_not_depend_on_the_order_of_names_and_follows_the_seed():
    plain = schedule(list(PROMPTS), list(STRENGTH), games_per_pair=5)
    assert schedule(list(PROMPTS)[::-1], list(STRENGTH)[::-1], games_per_pair=5) == plain
    assert set(schedule(list(PROMPTS), list(STRENGTH), games_per_pair=5, seed=1)) != set(plain)


def test_a_new_model_or_more_games_keep_the_games_there_are():
    plain = set(schedule(list(PROMPTS), list(STRENGTH), games_per_pair=5))
    assert plain < set(schedule(list(PROMPTS), [*STRENGTH, "new"], games_per_pair=5))
    assert plain < set(schedule(list(PROMPTS), list(STRENGTH), games_per_pair=11))


def test_prompts_are_used_evenly_over_many_pairs():
    matches = schedule(list(PROMPTS), [f"m{i}" for i in range(20)], games_per_pair=5)
    counts = Counter(match.prompt_id for match in matches)
    assert len(counts) == 23
    mean = 190 * 5 / 23
    assert max(abs(count - mean) for count in counts.values()) < 5 * math.sqrt(mean)


def test_the_stronger_model_is_ranked_above_and_nothing_is_invalid(answers):
    table = standings(
        play(
            schedule(list(PROMPTS), list(STRENGTH)),
            prompts=PROMPTS,
            answers=answers,
            judge=fair,
            judge_id="fair",
        )
    )
    names = [line.split("|")[1].strip() for line in table.to_markdown().splitlines()[2:]]
    assert names == ["strong", "middle", "weak"]
    assert table.position.consistency_rate == 1.0
    assert table.games.wins.sum() == 69
    assert sum(rate.value for rate in table.win_rate.values()) == pytest.approx(1.5)
    assert "69 matches judged in both orders: 1.000 consistent, 0.500 of choices" in str(table)
    assert json.dumps(table.as_dict())


def test_a_judge_of_positions_ranks_nobody(answers):
    matches = schedule(list(PROMPTS), list(STRENGTH))
    table = standings(
        play(matches, prompts=PROMPTS, answers=answers, judge=lambda q: ["one"] * len(q), judge_id="x")
    )
    assert table.num_inconsistent == len(matches)
    assert table.strengths.strength.tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    assert {rate.value for rate in table.win_rate.values()} == {0.5}


def test_a_killed_run_goes_on_where_it_stopped_and_ends_the_same(answers, tmp_path):
    matches = schedule(list(PROMPTS), list(STRENGTH))
    whole = play(matches, prompts=PROMPTS, answers=answers, judge=fair, judge_id="j")
    asked = []

    def dying(questions):
        if len(asked) > 40:
            raise KeyboardInterrupt
        asked.extend(questions)
        return fair(questions)

    store = tmp_path / "arena.jsonl"
    given = {"prompts": PROMPTS, "answers": answers, "judge_id": "j", "store": store, "batch_size": 7}
    with pytest.raises(KeyboardInterrupt):
        play(matches, judge=dying, **given)
    with store.open("a") as file:
        file.write('{"prompt_id": "p0')  # killed while writing
    done = len(asked)
    rest = []

    def counting(questions):
        rest.extend(questions)
        return fair(questions)

    assert play(matches, judge=counting, **given) == whole
    assert done + len(rest) == 2 * len(matches)
    assert play(matches, judge=dying, **given) == whole  # nothing is asked any more


def test_another_judge_or_a_changed_answer_is_judged_anew(answers, tmp_path):
    matches = schedule(list(PROMPTS)[:3], list(STRENGTH))
    counts = []

    def counting(questions):
        counts.append(len(questions))
        return fair(questions)

    given = {"prompts": PROMPTS, "judge": counting, "store": tmp_path / "arena.jsonl"}
    play(matches, answers=answers, judge_id="j", **given)
    play(matches, answers=answers, judge_id="j2", **given)
    answers["weak"]["p00"] = "weak says 9.0"
    play(matches, answers=answers, judge_id="j", **given)
    assert counts == [18, 18, 4]


def test_missing_answers_are_invalid_with_a_reason_and_played_when_they_come(answers, tmp_path):
    late = answers["weak"].pop("p00")
    matches = [Match("p00", "strong", "weak"), Match("p01", "strong", "weak")]
    given = {
        "prompts": PROMPTS,
        "answers": answers,
        "judge": fair,
        "judge_id": "j",
        "store": tmp_path / "a.jsonl",
    }
    before = play(matches, **given)
    assert (before[0].verdict, before[0].error) == ("invalid", "no answer of weak")
    answers["weak"]["p00"] = late
    assert play(matches, **given)[0].verdict in ("first", "second")


def test_unreadable_verdicts_win_nothing(answers):
    matches = schedule(list(PROMPTS), list(STRENGTH))

    def judge(questions):
        return [
            None if q.prompt == "question 0" else choice
            for q, choice in zip(questions, fair(questions), strict=True)
        ]

    table = standings(play(matches, prompts=PROMPTS, answers=answers, judge=judge, judge_id="j"))
    assert (table.num_invalid, table.games.undecided) == (3, 3)
    assert table.games.wins.sum() == 66
    assert table.position.invalid_rate == pytest.approx(3 / 69)


def test_pictures_are_told_apart_by_their_content():
    answers = {model: {"p00": torch.full((3, 5, 7), shade)} for model, shade in (("a", 0.25), ("b", 0.75))}
    (found,) = play(
        [Match("p00", "a", "b")],
        prompts=PROMPTS,
        answers=answers,
        judge=lambda questions: ["one" if q.first.mean() > q.second.mean() else "two" for q in questions],
        judge_id="bright",
    )
    assert found.verdict == "second"


def test_an_arena_that_somebody_swept_needs_a_ridge():
    swept = [Judgement(f"p{i}", "a", "b", "one", "two", str(i)) for i in range(5)]
    with pytest.raises(ConfigError, match="ridge"):
        standings(swept)
    assert standings(swept, ridge=1e-6).strengths.ridge == 1e-6


def test_what_cannot_be_played_is_refused(answers):
    with pytest.raises(ConfigError, match=r"arena models: got '1 names, 1 different', expected at least 2"):
        schedule(["p"], ["a"])
    with pytest.raises(ConfigError, match=r"arena prompts: got '2 names, 1 different', expected at least 1"):
        schedule(["p", "p"], ["a", "b"])
    with pytest.raises(
        ConfigError, match=r"arena games_per_pair: got 3, expected 1 to 2, the number of prompts"
    ):
        schedule(["p", "q"], ["a", "b"], games_per_pair=3)
    given = {"prompts": PROMPTS, "answers": answers, "judge_id": "j"}
    with pytest.raises(ConfigError, match=r"arena prompt: got 'q', expected an id of the prompts given"):
        play([Match("q", "strong", "weak")], judge=fair, **given)
    with pytest.raises(ShapeError, match=r"judge: got '1 answers', expected one per question, 2"):
        play([Match("p00", "strong", "weak")], judge=lambda q: ["one"], **given)
    with pytest.raises(ConfigError, match=r"arena standings: got '0 judgements, none valid'"):
        standings([])
