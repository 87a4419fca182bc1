"""Answers written sentence by sentence, each sentence judged by the model itself and by CLIP (CSR).

A model that rewards its own answers likes what its language model likes. CSR calibrates: most of a sentence's
score is how well CLIP finds it in the picture. The best and the worst answer of a search become a pair.

Source: arXiv 2405.14622 and YiyangZhou/CSR 353de42 (lambda 0.9, 5 beams, sentences of at most 70 tokens, mean
over sentences, ranks in the released code). Ours: sentences are drawn with a temperature (there diverse beam
search with penalty 3); the search keeps the better half and the worse half, as recalled from the paper.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmalign.batch import PreferenceRow
from mmalign.data.pair_making.stages import Stages
from mmalign.errors import HyperparameterError, explain
from mmalign.seeding import derive_seed
from mmalign.vlm.pair_making.on_policy import OwnAnswers
from mmalign.vlm.pair_making.output import MadePair
from mmalign.vlm.pair_making.requests import Request, Sampling, Scorer, Writer

__all__ = ["Search", "calibrated", "calibrated_pairs", "searched", "shares_of"]

Continuations = Callable[[Sequence[PreferenceRow], Sequence[str], Sequence[str]], Sequence[float]]
"""(rows, answers so far, next sentences) to the mean log-probability per token of each sentence."""


@dataclass(frozen=True)
class Search:
    """How answers are looked for.

    Args:
        beams: answers that go on, >= 2: the better half and the worse half.
        branches: next sentences drawn of each.
        sentences: of an answer, at most.
        image_share: lambda, weight of CLIP's judgement; the model's own has the rest.
        combine: "ranks" among the sentences of a step, or the "values" themselves.
    """

    beams: int = 5
    branches: int = 2
    sentences: int = 8
    image_share: float = 0.9
    combine: Literal["ranks", "values"] = "ranks"

    def __post_init__(self) -> None:
        if not 0.0 <= self.image_share <= 1.0:
            raise HyperparameterError(explain("csr image_share", got=self.image_share, expected="0 to 1"))
        if self.beams < 2:
            raise HyperparameterError(explain("csr beams", got=self.beams, expected=">= 2"))


@dataclass(frozen=True)
class _Beam:
    """An answer under construction, its sentences' scores, and whether it has ended."""

    text: str = ""
    scores: tuple[float, ...] = ()
    ended: bool = False

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores) if self.scores else 0.0


@dataclass
class _Pool:
    """The beams of one row."""

    row: PreferenceRow
    beams: list[_Beam] = field(default_factory=lambda: [_Beam()])
    problem: str = ""

    @property
    def is_open(self) -> bool:
        return not self.problem and any(not beam.ended for beam in self.beams)


def shares_of(values: Sequence[float]) -> list[float]:
    """Ranks from 0 (lowest) to 1 (highest), equal values sharing their mean rank; 0.5 for a single value."""
    if len(values) == 1:
        return [0.5]
    below = [sum(other < value for other in values) for value in values]
    equal = [sum(other == value for other in values) - 1 for value in values]
    return [(low + same / 2) / (len(values) - 1) for low, same in zip(below, equal, strict=True)]


def calibrated(
    own: Sequence[float],
    image: Sequence[float],
    *,
    image_share: float,
    combine: Literal["ranks", "values"] = "ranks",
) -> list[float]:
    """Scores of sentences: image_share * image + (1 - image_share) * own, of ranks or of values.

    Args:
        own: the model's own score of every sentence, a probability per token.
        image: of CLIP, max(100 * cosine, 0).
        image_share: lambda, 0 to 1.
        combine: ranks are taken among the given sentences and make the two units comparable.
    """
    if combine == "ranks":
        own, image = shares_of(own), shares_of(image)
    return [image_share * seen + (1 - image_share) * said for said, seen in zip(own, image, strict=True)]


def searched(
    rows: Sequence[PreferenceRow],
    write: Writer,
    likely: Continuations,
    relevance: Scorer,
    stages: Stages,
    *,
    search: Search,
    sampling: Sampling,
    settings: dict[str, Any] | None = None,
) -> tuple[list[OwnAnswers], list[list[list[float]]], Counter[str]]:
    """Answers with their mean scores, the scores of their sentences, and what was left out by reason.

    Args:
        rows: prompts with a picture.
        write: the policy; it must honour `Request.prefix` and `stop_at_sentence`.
        likely: the policy's own opinion of a next sentence.
        relevance: picture and sentence to max(100 * cosine, 0); NaN where it failed.
        stages: where searches are kept.
        search: its size and weights.
        sampling: of one sentence.
        settings: what else the scores depend on.
    """

    def work(block: Sequence[PreferenceRow], seed: int) -> list[dict[str, Any]]:
        return _search(block, write, likely, relevance, search, sampling, seed)

    records = stages.run(
        "search",
        rows,
        work,
        key=lambda row: row.id,
        settings={"search": vars(search), "sampling": vars(sampling), **(settings or {})},
    )
    counts = Counter(record["problem"] for record in records if record["problem"])
    good = [(row, record) for row, record in zip(rows, records, strict=True) if not record["problem"]]
    answers = [OwnAnswers(row, tuple(one["answers"]), tuple(one["scores"])) for row, one in good]
    return answers, [one["sentences"] for _, one in good], counts


def _search(
    block: Sequence[PreferenceRow],
    write: Writer,
    likely: Continuations,
    relevance: Scorer,
    search: Search,
    sampling: Sampling,
    seed: int,
) -> list[dict[str, Any]]:
    """All rows of a block, a sentence at a time."""
    pools = [_Pool(row) for row in block]
    for step in range(search.sentences):
        number = search.branches if step else search.beams * search.branches
        asked = [
            (pool, beam)
            for pool in pools
            if pool.is_open
            for beam in pool.beams
            if not beam.ended
            for _ in range(number)
        ]
        if not asked:
            break
        requests = [Request(pool.row, prefix=beam.text, stop_at_sentence=True) for pool, beam in asked]
        written = write(requests, sampling, derive_seed(seed, "sentence", step))
        drawn = [(pool, beam, text.strip()) for (pool, beam), text in zip(asked, written, strict=True)]
        # An equal sentence drawn twice is one candidate; an empty one ends the answer.
        drawn = _distinct(drawn)
        spoken = [(pool, beam, text) for pool, beam, text in drawn if text]
        rows, before = [pool.row for pool, _, _ in spoken], [beam.text for _, beam, _ in spoken]
        texts = [text for *_, text in spoken]
        own = [math.exp(value) for value in likely(rows, before, texts)] if texts else []
        image = list(relevance(rows, texts)) if texts else []
        for pool in pools:
            if pool.is_open:
                mine = [place for place, (owner, *_) in enumerate(spoken) if owner is pool]
                grown = [(spoken[place][1], spoken[place][2]) for place in mine]
                quiet = [beam for owner, beam, text in drawn if owner is pool and not text]
                _grow(pool, grown, quiet, [own[p] for p in mine], [image[p] for p in mine], search)
    return [
        {
            "problem": pool.problem,
            "answers": [beam.text for beam in pool.beams],
            "scores": [beam.mean for beam in pool.beams],
            "sentences": [list(beam.scores) for beam in pool.beams],
        }
        for pool in pools
    ]


def _distinct(drawn: Sequence[tuple[_Pool, _Beam, str]]) -> list[tuple[_Pool, _Beam, str]]:
    return list({(id(pool), beam, text): (pool, beam, text) for pool, beam, text in drawn}.values())


def _grow(
    pool: _Pool,
    grown: Sequence[tuple[_Beam, str]],
    quiet: Sequence[_Beam],
    own: Sequence[float],
    image: Sequence[float],
    search: Search,
) -> None:
    """The row's beams after a step: the better half and the worse half of all there are."""
    if any(math.isnan(value) for value in (*own, *image)):
        pool.problem = "score_failed"
        return
    scores = calibrated(own, image, image_share=search.image_share, combine=search.combine) if own else []
    made = [
        _Beam(f"{beam.text} {text}".strip(), (*beam.scores, score))
        for (beam, text), score in zip(grown, scores, strict=True)
    ]
    ended = [beam for beam in pool.beams if beam.ended] + [replace(beam, ended=True) for beam in quiet]
    found = list({beam.text: beam for beam in [*ended, *made]}.values())
    ordered = sorted(found, key=lambda beam: -beam.mean)
    worse = min(search.beams // 2, max(len(ordered) - (search.beams - search.beams // 2), 0))
    better = ordered[: search.beams - search.beams // 2]
    pool.beams = [*better, *(ordered[-worse:] if worse else [])]


def calibrated_pairs(
    pairs: Sequence[MadePair], answers: Sequence[OwnAnswers], sentences: Sequence[Sequence[Sequence[float]]]
) -> list[MadePair]:
    """The pairs with the scores of their sentences in columns of their own."""
    of_row = {answer.row.id: scores for answer, scores in zip(answers, sentences, strict=True)}
    made = []
    for pair in pairs:
        better, worse = (of_row[pair.row.id][int(place)] for place in pair.name.split("-"))
        more = {"sentence_scores_chosen": list(better), "sentence_scores_rejected": list(worse)}
        made.append(replace(pair, columns={**pair.columns, **more}))
    return made
