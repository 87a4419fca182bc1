"""Pairs that a model makes of its own answers by its own judgement.

Three ways, none of which asks another model: SIMA shows the model two of its answers beside the true one and
lets it choose; agreement keeps those pairs on which judgements under several wordings agree; follow-ups score
an answer by how likely the model finds what a content listener would say next.

The penalty of SCIR and the constants of FLR could not be verified: what stands here is the idea of either, a
filter and a score, and it is named after what it does.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mmalign.batch import PreferenceRow
from mmalign.data.pair_making.stages import Stages
from mmalign.errors import ConfigError, explain
from mmalign.vlm.pair_making.on_policy import OwnAnswers, own_answers
from mmalign.vlm.pair_making.output import MadePair
from mmalign.vlm.pair_making.requests import Sampling, Writer, YesNo, question

__all__ = ["FOLLOW_UPS", "JUDGE", "WORDINGS", "greedy_and_sampled", "judged", "mean_likelihood", "sima_pairs"]

JUDGE = (
    "Two answers to a question about the picture are given, and the true answer for comparison. Judge which "
    "of the two describes the picture better by three marks: are the objects it names in the picture, are "
    "their relations right, are their attributes (colour, number, shape) right.\n\nQuestion: {question}\n"
    "True answer: {truth}\nAnswer 1: {first}\nAnswer 2: {second}\n\nIs answer 1 better than answer 2?"
)
"""SIMA's three visual marks, with the true answer in the context."""

WORDINGS = (
    "Question: {question}\nAnswer A: {first}\nAnswer B: {second}\nIs answer A truer to the picture than B?",
    'For the question "{question}", one answered "{first}", another "{second}". Is the first one right '
    "more often about what the picture shows?",
    "Someone asked: {question}\nFirst reply: {first}\nSecond reply: {second}\nDoes the second reply contain "
    "more mistakes about the picture than the first?",
)
"""Judgements of one pair in several words; yes is for the first answer in all of them."""

FOLLOW_UPS = ("Thank you, that is exactly what the picture shows.", "Right, I see the same in the picture.")
"""What a content listener might say next."""

_SHORT = " Answer yes or no."

Likelihood = Callable[[Sequence[PreferenceRow], Sequence[str], str], Sequence[float]]
"""(rows, answers, next utterance of the user) to its mean log-probability per token after each answer."""


def greedy_and_sampled(
    rows: Sequence[PreferenceRow], write: Writer, stages: Stages, *, sampling: Sampling
) -> list[OwnAnswers]:
    """Two answers per row: the likeliest one and a drawn one.

    Source: umd-huang-lab/SIMA ba9e7ed.
    """
    likeliest = own_answers(rows, write, stages, num_answers=1, sampling=sampling.greedy(), name="greedy")
    drawn = own_answers(rows, write, stages, num_answers=1, sampling=sampling, name="sampled")
    return [
        OwnAnswers(row, (one.texts[0], other.texts[0]))
        for row, one, other in zip(rows, likeliest, drawn, strict=True)
    ]


def judged(
    answers: Sequence[OwnAnswers], judge: YesNo, stages: Stages, *, wordings: Sequence[str] = WORDINGS
) -> list[list[float]]:
    """Log-odds that the first of two answers is better, one per wording and row.

    Every wording is asked in both orders and (odds - odds of the swapped order) / 2 counts: a liking for
    what comes first cancels out.

    Args:
        answers: two per row.
        judge: the model itself.
        stages: where judgements are kept.
        wordings: with `{question}`, `{first}`, `{second}` and, where rows know it, `{truth}`.

    Raises:
        ConfigError: a row without two answers, or a wording that asks for the truth of a row without one.
    """
    for answer in answers:
        if len(answer.texts) != 2:
            message = explain(f"row {answer.row.id}", got=f"[{len(answer.texts)} answers]", expected="two")
            raise ConfigError(message)

    def work(block: Sequence[OwnAnswers], seed: int) -> list[dict[str, Any]]:
        del seed
        rows = [
            question(answer.row, _worded(wording, answer, swapped) + _SHORT)
            for answer in block
            for wording in wordings
            for swapped in (False, True)
        ]
        odds = iter(_log_odds(*pair) for pair in judge(rows))
        return [{"odds": [(next(odds) - next(odds)) / 2 for _ in wordings]} for _ in block]

    records = stages.run(
        "self_judgements",
        answers,
        work,
        key=lambda answer: answer.row.id,
        settings={"wordings": list(wordings)},
        depends=lambda answer: list(answer.texts),
    )
    return [record["odds"] for record in records]


def _worded(wording: str, answer: OwnAnswers, swapped: bool) -> str:
    first, second = answer.texts[::-1] if swapped else answer.texts
    truth = answer.row.candidates[0].text if answer.row.candidates else None
    if "{truth}" in wording and not truth:
        message = explain(
            f"row {answer.row.id}", got="[no answer of the data]", expected="a true answer to judge by"
        )
        raise ConfigError(message)
    return wording.format(question=answer.row.prompt, first=first, second=second, truth=truth)


def _log_odds(yes: float, no: float) -> float:
    """Log p(yes) - log p(no), finite also where one of them vanishes."""
    smallest = 1e-12
    return math.log(max(yes, smallest)) - math.log(max(no, smallest))


def sima_pairs(
    answers: Sequence[OwnAnswers], odds: Sequence[Sequence[float]], *, least: float = 0.0
) -> tuple[list[MadePair], Counter[str]]:
    """Pairs of two answers by judgements that all agree, and what was left out by reason.

    One wording is SIMA; several are the filter of consistent judges.

    Args:
        answers: two per row.
        odds: per row, one per wording.
        least: every |log-odds| must exceed it.
    """
    pairs: list[MadePair] = []
    counts: Counter[str] = Counter()
    for answer, values in zip(answers, odds, strict=True):
        first, second = (text.strip() for text in answer.texts)
        if not first or not second or first == second:
            counts["empty_or_equal"] += 1
        elif all(value > least for value in values):
            pairs.append(MadePair(answer.row, first, second, columns={"judge_odds": list(values)}))
        elif all(value < -least for value in values):
            flipped = [-value for value in values]
            pairs.append(MadePair(answer.row, second, first, columns={"judge_odds": flipped}))
        else:
            counts["judges_disagree"] += 1
    counts["rows"] = len(pairs)
    return pairs, counts


def mean_likelihood(
    likelihood: Likelihood,
    follow_ups: Sequence[str],
    rows: Sequence[PreferenceRow],
    answers: Sequence[str],
) -> list[float]:
    """Mean over follow-ups of their mean log-probability per token, one number per row and answer.

    Args:
        likelihood: of one utterance of the user behind a row's answer.
        follow_ups: what a content listener might say.
        rows: prompts.
        answers: one per row.

    Raises:
        ConfigError: no follow-up.
    """
    if not follow_ups:
        raise ConfigError(explain("follow_ups", got="[none]", expected="at least one utterance"))
    found = [likelihood(rows, answers, utterance) for utterance in follow_ups]
    return [sum(values) / len(follow_ups) for values in zip(*found, strict=True)]
