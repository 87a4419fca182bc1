"""Rejected answers that a model writes with the image hidden from it: bias-driven hallucination sampling.

Nearly all visual tokens are hidden from attention, so the model falls back on what usually is in pictures.
Its words start from the true answer: every sentence is cut somewhere and continued, so that true and false
answer differ where the model guesses and agree elsewhere.

Source: arXiv 2407.02477 (no code).
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.batch import PreferenceRow
from mmalign.data.pair_making.stages import Stages
from mmalign.errors import HyperparameterError, explain
from mmalign.seeding import derive_seed
from mmalign.vlm.pair_making.output import MadePair
from mmalign.vlm.pair_making.requests import Request, Sampling, Similarity, Writer

__all__ = ["BiasConfig", "bias_driven", "guessed", "sentences_of", "swapped"]

_BETWEEN = re.compile(r"(?<=[.!?])\s+")
_YES_NO = re.compile(r"^(\s*)(yes|no)\b", re.IGNORECASE)
_OPPOSITE = {"yes": "no", "no": "yes", "Yes": "No", "No": "Yes", "YES": "NO", "NO": "YES"}


@dataclass(frozen=True)
class BiasConfig:
    """How answers are made.

    Args:
        hidden: share of visual tokens that are hidden: each is visible when a uniform draw is at least this.
        similar: a sentence this close to the true one, or closer, is drawn again.
        rounds: of drawing; the last one writes the sentence anew instead of continuing it.
        swap: probability that a leading yes or no becomes the other.
    """

    hidden: float = 0.99
    similar: float = 0.97
    rounds: int = 5
    swap: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("hidden", self.hidden), ("swap", self.swap)):
            if not 0.0 <= value <= 1.0:
                raise HyperparameterError(explain(f"bias_driven {name}", got=value, expected="0 to 1"))
        if self.rounds < 1:
            raise HyperparameterError(explain("bias_driven rounds", got=self.rounds, expected=">= 1"))


def sentences_of(text: str) -> list[str]:
    """Sentences with their ends; white space between them is dropped."""
    return [sentence for sentence in _BETWEEN.split(text.strip()) if sentence]


def swapped(sentence: str) -> str:
    """The sentence with a leading yes made a no, and the reverse; others as they are."""
    match = _YES_NO.match(sentence)
    if not match or match[2] not in _OPPOSITE:
        return sentence
    return match[1] + _OPPOSITE[match[2]] + sentence[match.end() :]


@dataclass(frozen=True)
class _Cut:
    """One sentence of a true answer, cut."""

    item: int
    place: int
    truth: str
    before: str
    kept: str

    @property
    def prefix(self) -> str:
        return " ".join(part for part in (self.before, self.kept) if part)


def _cut(sentence: str, draw: random.Random, *, whole: bool, swap: float) -> str:
    """What is kept of a sentence: at least no word and at most all but the last."""
    words = sentence.split()
    leads = _YES_NO.match(sentence) is not None
    flips = leads and draw.random() < swap
    kept = 0 if whole else draw.randrange(len(words))
    if flips:
        # The swapped word is kept in any case: what follows has to fit it.
        kept = max(kept, 1)
    start = " ".join(words[:kept])
    return swapped(start) if flips else start


def bias_driven(
    rows: Sequence[PreferenceRow],
    write: Writer,
    similarity: Similarity,
    stages: Stages,
    *,
    config: BiasConfig | None = None,
    sampling: Sampling | None = None,
) -> tuple[list[MadePair], Counter[str]]:
    """The answer of the data over the model's guess at it, and what was left out by reason.

    Sentences are written in parallel, each behind the true ones before it. One that comes out too similar is
    cut and drawn again.

    Args:
        rows: candidate 0 is a true answer.
        write: the model; it must honour `Request.prefix`, `hidden` and `stop_at_sentence`.
        similarity: cosine of sentence embeddings (all-mpnet-base-v2 in the paper).
        stages: where answers are kept.
        config: of the method.
        sampling: of the model; default temperature 1.
    """
    config, sampling = config or BiasConfig(), sampling or Sampling(temperature=1.0)

    def work(block: Sequence[PreferenceRow], seed: int) -> list[dict[str, Any]]:
        return guessed(block, write, similarity, config, sampling, seed)

    records = stages.run(
        "guesses",
        rows,
        work,
        key=lambda row: row.id,
        settings={"config": vars(config), "sampling": vars(sampling)},
        depends=lambda row: row.candidates[0].text,
    )
    pairs: list[MadePair] = []
    counts: Counter[str] = Counter()
    for row, record in zip(rows, records, strict=True):
        chosen, rejected = (row.candidates[0].text or "").strip(), record["answer"]
        if not chosen or not rejected or chosen == rejected:
            counts["empty_or_equal"] += 1
            continue
        columns = {"rounds": record["rounds"], "similarity": record["similarity"]}
        pairs.append(MadePair(row, chosen, rejected, columns=columns))
    counts["rows"] = len(pairs)
    return pairs, counts


def guessed(
    block: Sequence[PreferenceRow],
    write: Writer,
    similarity: Similarity,
    config: BiasConfig,
    sampling: Sampling,
    seed: int,
) -> list[dict[str, Any]]:
    """Answers of a block, all its sentences together, round after round.

    Args:
        block: candidate 0 is a true answer.
        write: the model.
        similarity: of a true sentence and a written one.
        config: of the method.
        sampling: of the model.
        seed: of cuts and draws.

    Returns records with `answer`, and per sentence `similarity` and `rounds`.
    """
    truths = [sentences_of(row.candidates[0].text or "") for row in block]
    written = [list(sentences) for sentences in truths]
    found = [[1.0] * len(sentences) for sentences in truths]
    rounds = [[0] * len(sentences) for sentences in truths]
    open_places = [(item, place) for item, own in enumerate(truths) for place in range(len(own))]
    for number in range(config.rounds):
        if not open_places:
            break
        cuts = []
        for item, place in open_places:
            draw = random.Random(derive_seed(seed, "cut", number, item, place))
            kept = _cut(truths[item][place], draw, whole=number == config.rounds - 1, swap=config.swap)
            before = " ".join(truths[item][:place])
            cuts.append(_Cut(item, place, truths[item][place], before, kept))
        requests = [
            Request(block[cut.item], prefix=cut.prefix, hidden=config.hidden, stop_at_sentence=True)
            for cut in cuts
        ]
        texts = write(requests, sampling, derive_seed(seed, "round", number))
        made = [f"{cut.kept} {text.strip()}".strip() for cut, text in zip(cuts, texts, strict=True)]
        cosines = similarity([cut.truth for cut in cuts], made)
        for cut, text, cosine in zip(cuts, made, cosines, strict=True):
            written[cut.item][cut.place] = text
            found[cut.item][cut.place] = float(cosine)
            rounds[cut.item][cut.place] = number + 1
        open_places = [
            (cut.item, cut.place)
            for cut, cosine in zip(cuts, cosines, strict=True)
            if cosine >= config.similar
        ]
    return [
        {"answer": " ".join(part for part in own if part), "similarity": cosines, "rounds": count}
        for own, cosines, count in zip(written, found, rounds, strict=True)
    ]
