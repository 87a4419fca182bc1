"""Answers judged claim by claim: the data engine of RLAIF-V, with one model or two.

An answer is divided into claims, each claim becomes a question that yes answers if the claim is true, and a
judge that sees the image says yes or no. An answer's score is minus the number of its refuted claims. The
wordings that models are asked with are ours.

Source: RLHF-V/RLAIF-V 83d917b (arXiv 2405.17220).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.data.pair_making.stages import Stages
from mmalign.vlm.pair_making.on_policy import OwnAnswers
from mmalign.vlm.pair_making.requests import Request, Sampling, Writer, YesNo, question

__all__ = ["DIVIDE", "REPHRASE", "claims_of", "judge_claims", "refuted_score"]

DIVIDE = (
    "Below are a question about a picture and an answer to it. List every fact about the picture that "
    "the answer states, one short sentence per line, each understandable alone. Leave out opinions and "
    "guesses.\n\n"
    "Question: {question}\nAnswer: {answer}\n\nFacts:"
)
"""Asks for the claims of an answer."""

REPHRASE = (
    "Turn each statement into one question about the picture that is answered by yes exactly if the "
    "statement is true. One question per line, in the same order, nothing else.\n\n"
    "Statements:\n{claims}\n\nQuestions:"
)
"""Asks for a question per claim."""

_BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s*")
_SHORT = "{question} Answer yes or no."


def claims_of(text: str) -> list[str]:
    """Lines of a list without their bullets and numbers; empty lines and repetitions are none."""
    lines = [_BULLET.sub("", line).strip() for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def refuted_score(probabilities: Sequence[tuple[float, float]]) -> float:
    """Minus the number of claims whose p(yes) is not above p(no); NaN for an answer without claims.

    An answer that states nothing would otherwise win against every other.

    Args:
        probabilities: (of yes, of no) per claim.
    """
    if not probabilities:
        return float("nan")
    return -float(sum(not yes > no for yes, no in probabilities))


@dataclass(frozen=True)
class _Answer:
    """One answer of a row on its way."""

    source: OwnAnswers
    place: int
    claims: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.source.row.id}/{self.place}"


def judge_claims(
    answers: Sequence[OwnAnswers],
    *,
    divide: Writer,
    judge: YesNo,
    stages: Stages,
    sampling: Sampling | None = None,
) -> list[OwnAnswers]:
    """The answers with minus the number of refuted claims as scores.

    Args:
        answers: of the policy.
        divide: a language model; it sees no image.
        judge: a model that does.
        stages: where claims, questions and probabilities are kept.
        sampling: of the language model; default: greedy, 512 tokens.
    """
    sampling = (sampling or Sampling()).greedy()
    items = [_Answer(answer, place) for answer in answers for place in range(len(answer.texts))]

    def divided(block: Sequence[_Answer], seed: int) -> list[dict[str, Any]]:
        asked = [
            DIVIDE.format(question=item.source.row.prompt, answer=item.source.texts[item.place])
            for item in block
        ]
        return [{"claims": claims_of(text)} for text in _asked(block, asked, divide, sampling, seed)]

    records = stages.run("claims", items, divided, key=lambda item: item.key, depends=_said)
    items = [
        _Answer(item.source, item.place, tuple(record["claims"]))
        for item, record in zip(items, records, strict=True)
    ]

    def rephrased(block: Sequence[_Answer], seed: int) -> list[dict[str, Any]]:
        asked = [REPHRASE.format(claims="\n".join(f"- {claim}" for claim in item.claims)) for item in block]
        texts = _asked(block, asked, divide, sampling, seed)
        return [
            {"questions": questions_for(item.claims, text)} for item, text in zip(block, texts, strict=True)
        ]

    records = stages.run(
        "questions", items, rephrased, key=lambda item: item.key, depends=lambda item: list(item.claims)
    )
    items = [
        _Answer(item.source, item.place, item.claims, tuple(record["questions"]))
        for item, record in zip(items, records, strict=True)
    ]

    def judged(block: Sequence[_Answer], seed: int) -> list[dict[str, Any]]:
        del seed
        rows = [
            question(item.source.row, _SHORT.format(question=text))
            for item in block
            for text in item.questions
        ]
        found = iter(judge(rows) if rows else [])
        return [{"probabilities": [list(next(found)) for _ in item.questions]} for item in block]

    records = stages.run(
        "judgements", items, judged, key=lambda item: item.key, depends=lambda item: list(item.questions)
    )
    scores = iter(refuted_score([(yes, no) for yes, no in record["probabilities"]]) for record in records)
    return [
        OwnAnswers(answer.row, answer.texts, tuple(next(scores) for _ in answer.texts)) for answer in answers
    ]


def _said(item: _Answer) -> str:
    return item.source.texts[item.place]


def questions_for(claims: Sequence[str], text: str) -> list[str]:
    """One question per claim.

    Where the model wrote another number of lines nobody knows which belongs to which: the claims themselves
    are then asked.
    """
    written = [line if line.endswith("?") else f"{line}?" for line in claims_of(text)]
    if len(written) == len(claims):
        return written
    return [f'Is it true that "{claim.rstrip(".")}"?' for claim in claims]


def _asked(
    block: Sequence[_Answer], texts: Sequence[str], write: Writer, sampling: Sampling, seed: int
) -> list[str]:
    rows = [question(item.source.row, text, sees=False) for item, text in zip(block, texts, strict=True)]
    return write([Request(row) for row in rows], sampling, seed)
