"""Rejected answers made by perturbing: captions of clips (TEMPLE), words (POVID), the video itself (VDPO).

TEMPLE describes a video clip by clip and summarises the captions: all of them for the chosen answer, dropped,
reversed or shuffled ones for the rejected one. The wordings that models are asked with are ours.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Media, PreferenceRow
from mmalign.data.pair_making.stages import Stages
from mmalign.errors import HyperparameterError, explain
from mmalign.seeding import derive_seed, generator_for
from mmalign.vlm.corruptions.frames import groups_of, kept_of, shuffled
from mmalign.vlm.pair_making.output import MadePair
from mmalign.vlm.pair_making.requests import Request, Sampling, Writer, question

__all__ = [
    "DIFFICULTIES",
    "Perturbation",
    "Selected",
    "clips_of",
    "keeps",
    "perturbed",
    "perturbed_words",
    "select_clip",
    "temple_pairs",
    "token_divergence",
]

Perturbation = Literal["drop", "reverse", "shuffle"]

DIFFICULTIES = (16, 8, 4, 2)
"""Numbers of groups, from strong perturbations to subtle ones: one stage of training each.

Source: lscpku/TEMPLE 59f135d."""

CAPTION = "Describe in one or two sentences what happens in this clip and what changes."
"""Asks for the caption of a clip."""

SUMMARISE = (
    "These are descriptions of successive moments of one video, in order. Write one flowing description of "
    "the whole video in that order, without numbering the moments.\n\n{captions}"
)
"""Asks for the summary of captions."""

_LENGTH_RATIO = 1.5


def clips_of(frames: Sequence[bytes | str], *, size: int = 2) -> list[tuple[bytes | str, ...]]:
    """Neighbouring frames in clips of `size`; a last single frame joins the clip before it."""
    clips = [tuple(frames[start : start + size]) for start in range(0, len(frames), size)]
    if len(clips) > 1 and len(clips[-1]) < size:
        clips[-2:] = [clips[-2] + clips[-1]]
    return clips


def perturbed(captions: Sequence[str], kind: Perturbation, num_groups: int, *, seed: int) -> list[str]:
    """Captions dropped, or in another order.

    drop keeps max(1, n // m) random ones in order; reverse and shuffle move groups of max(1, n // m).

    Args:
        captions: n of them, in order.
        kind: what is done.
        num_groups: m.
        seed: of the draws.

    Source: lscpku/TEMPLE 59f135d.
    """
    generator = generator_for(seed, "perturbation")
    if kind == "drop":
        return [captions[place] for place in kept_of(len(captions), num_groups, generator)]
    groups = groups_of(len(captions), num_groups)
    order = list(reversed(range(len(groups)))) if kind == "reverse" else shuffled(len(groups), generator)
    return [captions[place] for group in order for place in groups[group]]


def keeps(kind: Perturbation, chosen: str, rejected: str) -> bool:
    """Whether two summaries make a pair.

    After a drop the chosen one is longer and does not contain the rejected one; after a change of order
    neither is more than 1.5 times as long as the other. Lengths are those of the texts in characters.

    Source: lscpku/TEMPLE 59f135d.
    """
    chosen, rejected = chosen.strip(), rejected.strip()
    if not chosen or not rejected or chosen == rejected:
        return False
    if kind == "drop":
        return len(chosen) > len(rejected) and rejected not in chosen
    return max(len(chosen), len(rejected)) <= _LENGTH_RATIO * min(len(chosen), len(rejected))


@dataclass(frozen=True)
class _Task:
    row: PreferenceRow
    captions: tuple[str, ...]
    kind: Perturbation | None = None
    num_groups: int = 0
    seed: int = 0

    @property
    def key(self) -> str:
        return self.row.id if self.kind is None else f"{self.row.id}/{self.kind}{self.num_groups}"

    def shown(self) -> list[str]:
        if self.kind is None:
            return list(self.captions)
        return perturbed(self.captions, self.kind, self.num_groups, seed=self.seed)


def temple_pairs(
    rows: Sequence[PreferenceRow],
    frames: Sequence[Sequence[bytes | str]],
    *,
    describe: Writer,
    summarise: Writer,
    stages: Stages,
    sampling: Sampling | None = None,
    difficulties: Sequence[int] = DIFFICULTIES,
) -> tuple[list[MadePair], Counter[str]]:
    """One pair per video and difficulty, and what was left out by reason.

    Which of drop, reverse and shuffle is drawn per video and difficulty. The difficulty stands in the column
    `difficulty`: train the largest first.

    Args:
        rows: one video and one prompt each.
        frames: key frames of each row's video, in order.
        describe: writes captions of clips, two frames each.
        summarise: a language model; it sees no video.
        stages: where captions and summaries are kept.
        sampling: default temperature 0.7, repetition penalty 1.05.
        difficulties: numbers of groups.
    """
    sampling = sampling or Sampling(temperature=0.7, repetition_penalty=1.05)
    given = list(zip(rows, frames, strict=True))

    def captioned(
        block: Sequence[tuple[PreferenceRow, Sequence[bytes | str]]], seed: int
    ) -> list[dict[str, Any]]:
        clips = [clips_of(own) for _, own in block]
        requests = [
            Request(replace(question(row, CAPTION, sees=False), videos=(_video(clip),)))
            for (row, _), own in zip(block, clips, strict=True)
            for clip in own
        ]
        texts = iter(describe(requests, sampling, seed))
        return [{"captions": [next(texts).strip() for _ in own]} for own in clips]

    records = stages.run(
        "captions", given, captioned, key=lambda item: item[0].id, settings={"sampling": vars(sampling)}
    )
    tasks = [
        task
        for row, record in zip(rows, records, strict=True)
        for task in _tasks(row, tuple(record["captions"]), difficulties, stages.seed)
    ]

    def summarised(block: Sequence[_Task], seed: int) -> list[dict[str, Any]]:
        asked = [SUMMARISE.format(captions="\n".join(task.shown())) for task in block]
        requests = [
            Request(question(task.row, text, sees=False)) for task, text in zip(block, asked, strict=True)
        ]
        return [{"summary": text.strip()} for text in summarise(requests, sampling, seed)]

    records = stages.run(
        "summaries",
        tasks,
        summarised,
        key=lambda task: task.key,
        settings={"sampling": vars(sampling)},
        depends=lambda task: task.shown(),
    )
    return _paired(tasks, [record["summary"] for record in records])


def _video(clip: tuple[bytes | str, ...]) -> Media:
    return clip


def _tasks(
    row: PreferenceRow, captions: tuple[str, ...], difficulties: Sequence[int], seed: int
) -> list[_Task]:
    kinds = get_args(Perturbation)
    tasks = [_Task(row, captions)]
    for number in difficulties:
        own = derive_seed(seed, "difficulty", row.id, number)
        tasks.append(_Task(row, captions, kinds[own % len(kinds)], number, own))
    return tasks


def _paired(tasks: Sequence[_Task], summaries: Sequence[str]) -> tuple[list[MadePair], Counter[str]]:
    pairs: list[MadePair] = []
    counts: Counter[str] = Counter()
    chosen = ""
    for task, summary in zip(tasks, summaries, strict=True):
        if task.kind is None:
            chosen = summary
        elif len(task.captions) < 2:
            counts["one_clip"] += 1
        elif task.shown() == list(task.captions):
            counts["nothing_perturbed"] += 1
        elif not keeps(task.kind, chosen, summary):
            counts[f"filtered_{task.kind}"] += 1
        else:
            columns = {"perturbation": task.kind, "difficulty": task.num_groups}
            pairs.append(MadePair(task.row, chosen, summary, f"{task.kind}{task.num_groups}", columns))
    counts["rows"] = len(pairs)
    return pairs, counts


# --- words --------------------------------------------------------------------------------------------------

MISTAKES = {
    "objects": "name one or two things that are likely in such a place but are not mentioned",
    "attributes": "change the colour, number, size or shape of one or two things",
    "relations": "change where things are or what they do to each other",
}
"""POVID's three kinds of hallucination."""

INJECT = (
    "Below is a true answer to a question about a picture. Write it again so that it becomes wrong: {how}. "
    "Keep everything else, the style and the length. Write the answer only.\n\nQuestion: {question}\n"
    "Answer: {answer}\n\nWrong answer:"
)
"""Asks for a plausible mistake."""


def perturbed_words(
    rows: Sequence[PreferenceRow], rewrite: Writer, stages: Stages, *, sampling: Sampling | None = None
) -> tuple[list[MadePair], Counter[str]]:
    """The answer of the data over one with plausible mistakes in it, and what was left out by reason.

    Args:
        rows: candidate 0 is a true answer.
        rewrite: a language model, or any function of requests: it sees no image.
        stages: where texts are kept.
        sampling: of the language model.

    Source: POVID, arXiv 2402.11411 (there GPT-4V; wordings ours).
    """
    sampling = sampling or Sampling()
    kinds = sorted(MISTAKES)

    def kind_of(row: PreferenceRow) -> str:
        return kinds[derive_seed(stages.seed, "mistake", row.id) % len(kinds)]

    def work(block: Sequence[PreferenceRow], seed: int) -> list[dict[str, Any]]:
        asked = [
            INJECT.format(how=MISTAKES[kind_of(row)], question=row.prompt, answer=row.candidates[0].text)
            for row in block
        ]
        requests = [Request(question(row, text, sees=False)) for row, text in zip(block, asked, strict=True)]
        return [{"answer": text.strip()} for text in rewrite(requests, sampling, seed)]

    settings = {"sampling": vars(sampling)}
    records = stages.run(
        "mistakes",
        rows,
        work,
        key=lambda row: row.id,
        settings=settings,
        depends=lambda row: row.candidates[0].text,
    )
    pairs: list[MadePair] = []
    counts: Counter[str] = Counter()
    for row, record in zip(rows, records, strict=True):
        chosen = (row.candidates[0].text or "").strip()
        if not chosen or not record["answer"] or record["answer"] == chosen:
            counts["empty_or_equal"] += 1
        else:
            pairs.append(MadePair(row, chosen, record["answer"], columns={"mistake": kind_of(row)}))
    counts["rows"] = len(pairs)
    return pairs, counts


# --- videos -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selected:
    """Which spoilt clip stands against the true one.

    Args:
        place: among the candidates; None where none is close enough to the video.
        weight: of the pair, in [0, 1]: the divergence over its largest value, log 2.
        divergences: of all candidates.
    """

    place: int | None
    weight: float
    divergences: tuple[float, ...]


def token_divergence(
    first: Float[Tensor, "token vocabulary"], second: Float[Tensor, "token vocabulary"]
) -> Float[Tensor, ""]:
    """Mean over tokens of the Jensen-Shannon divergence of two distributions, in [0, log 2].

    Args:
        first: log-probabilities of the next token, along an answer that is given.
        second: the same beside another video.
    """
    middle = torch.logaddexp(first, second) - torch.log(torch.tensor(2.0, dtype=first.dtype))
    sides = [
        torch.where(side > -torch.inf, side.exp() * (side - middle), 0.0).sum(dim=-1)
        for side in (first, second)
    ]
    return (0.5 * (sides[0] + sides[1])).mean()


def select_clip(
    divergences: Float[Tensor, " candidate"], cosines: Float[Tensor, " candidate"], *, least_cosine: float
) -> Selected:
    """The candidate whose answer differs most, among those that still resemble the video (close to far).

    Args:
        divergences: `token_divergence` of every candidate from the true video.
        cosines: of the features of candidate and video.
        least_cosine: candidates below it are too far.

    Raises:
        HyperparameterError: least_cosine outside [-1, 1].

    Source: PaMi-VDPO, arXiv 2504.05810; its thresholds and weights are unknown, these are ours.
    """
    if not -1.0 <= least_cosine <= 1.0:
        raise HyperparameterError(explain("least_cosine", got=least_cosine, expected="-1 to 1"))
    values = tuple(divergences.tolist())
    close = [place for place, cosine in enumerate(cosines.tolist()) if cosine >= least_cosine]
    if not close:
        return Selected(None, 0.0, values)
    place = max(close, key=lambda candidate: values[candidate])
    weight = values[place] / float(torch.log(torch.tensor(2.0, dtype=torch.float64)))
    return Selected(place, min(max(weight, 0.0), 1.0), values)
