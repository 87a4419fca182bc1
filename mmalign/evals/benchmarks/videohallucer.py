"""VideoHallucer: pairs of questions about a clip, one basic and one that invites a hallucination.

Source: arXiv 2406.16338; patrick-tssn/VideoHallucer evaluations/evaluation_utils.py at ae4c2f2. Five subsets
of 200 pairs (object-relation, temporal, semantic detail, factual, non-factual). A pair counts when both
answers are right; the overall numbers are unweighted means over subsets.

`exact` counts a hit where the expected word stands anywhere in the prediction as a whole word, so that "Yes
and no" is right whatever was asked. (Older versions of the script compared the text before the first full
stop, or the first word; their numbers are lower.) `strict` reads the answer with `strict_yes_no`; what is
neither is wrong and counted.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, explain
from mmalign.evals.base import Answer, Benchmark, Item, Outcome
from mmalign.evals.benchmarks._harness import metric, official_file
from mmalign.evals.benchmarks._records import (
    Mode,
    Record,
    check_mode,
    failure,
    locate,
    mean,
    ratio,
    read_json_records,
    word_count,
)
from mmalign.evals.benchmarks._yes_no import YesNo, strict_yes_no

__all__ = [
    "BENCHMARK",
    "SUBSETS",
    "SUFFIX",
    "PairItem",
    "SubsetResult",
    "VideoHallucerResult",
    "read_pairs",
    "released_hit",
    "score_answers",
]

SUBSETS = {
    "obj_rel": "object_relation",
    "temporal": "temporal",
    "semantic": "semantic_detail",
    "fact": "external_factual",
    "nonfact": "external_nonfactual",
}
"""Name of a subset in results to its folder and file name."""

SUFFIX = "\nAnswer the question using 'yes' or 'no'."
"""What the released script adds to every question."""

_SIDES = ("basic", "hallucination")
_LABELS = ("yes", "no")


@dataclass(frozen=True)
class PairItem:
    """One pair of questions; NaN where either has no answer.

    Args:
        id: of the pair.
        subset: name of the subset.
        basic: 1.0 where the basic question was answered right, else 0.0.
        hallucination: the same for the other question.
        labels: what is true of (basic, hallucination).
        parsed: what the two answers say to a careful reader; None where one says neither.
        length: words per answer.
        error: why there is no answer.
    """

    id: str
    subset: str
    basic: float
    hallucination: float
    labels: tuple[str, str]
    parsed: tuple[YesNo | None, YesNo | None]
    length: float
    error: str | None = None

    @property
    def both(self) -> float:
        """1.0 where both are right."""
        return self.basic * self.hallucination


@dataclass(frozen=True)
class SubsetResult:
    """Accuracies of one subset in [0, 1]; pairs without an answer are in `failed` alone."""

    basic_accuracy: float
    halluc_accuracy: float
    accuracy: float
    pairs: int
    failed: int


@dataclass(frozen=True)
class VideoHallucerResult:
    """Numbers of one model, in [0, 1].

    Args:
        mode: `exact` or `strict`.
        basic_accuracy: of the basic questions; unweighted mean over subsets, as the next two.
        halluc_accuracy: of the questions that invite a hallucination.
        accuracy: of pairs, both right.
        yes_difference: share of answers that say yes minus share of questions where yes is right, in [-1, 1];
            above 0 the model agrees too readily. Read carefully in both modes.
        false_yes_share: yes among the wrong answers that say yes or no.
        unparsed: answers that a careful reader takes for neither yes nor no.
        failed: pairs without an answer; in no other number.
        mean_length: words per answer.
        subsets: by subset.
        items: one per pair, in order.
    """

    mode: Mode
    basic_accuracy: float
    halluc_accuracy: float
    accuracy: float
    yes_difference: float
    false_yes_share: float
    unparsed: int
    failed: int
    mean_length: float
    subsets: Mapping[str, SubsetResult]
    items: tuple[PairItem, ...] = field(repr=False)

    def metrics(self) -> dict[str, float]:
        """The numbers by name."""
        names = ("accuracy", "basic_accuracy", "halluc_accuracy")
        more = ("yes_difference", "false_yes_share", "mean_length")
        return {name: getattr(self, name) for name in (*names, *more)}


def released_hit(prediction: str, expected: str) -> bool:
    """Whether the expected word stands anywhere in the prediction as a whole word, in any case."""
    return re.search(rf"\b{re.escape(expected)}\b", prediction, re.IGNORECASE) is not None


def score_answers(records: Iterable[Mapping[str, Any]], mode: Mode = "exact") -> VideoHallucerResult:
    """Accuracies of pairs of answers.

    Args:
        records: `basic` and `hallucination`, each with `answer` ("yes" or "no": what is true) and `predict`
            (what the model said; null where generation failed, with `error`); optional `subset`, `id`.
        mode: how predictions are read.

    Raises:
        RowError: a field is missing or malformed; the message names the record.
        ConfigError: unknown mode, or no records.
    """
    check_mode(mode)
    items = [_item(record, number, mode) for number, record in enumerate(locate(records, "pairs"))]
    names = list(dict.fromkeys(item.subset for item in items))
    subsets = {name: _subset([item for item in items if item.subset == name]) for name in names}
    answered = [item for item in items if item.error is None]
    said = [
        (parsed, label) for item in answered for parsed, label in zip(item.parsed, item.labels, strict=True)
    ]
    wrong = [parsed for parsed, label in said if parsed is not None and parsed != label]
    agreed = sum(parsed == "yes" for parsed, _ in said) - sum(label == "yes" for _, label in said)

    def over_subsets(name: str) -> float:
        # Plain mean: a subset without any answer leaves the overall number undefined.
        return math.fsum(getattr(part, name) for part in subsets.values()) / len(subsets)

    return VideoHallucerResult(
        mode=mode,
        basic_accuracy=over_subsets("basic_accuracy"),
        halluc_accuracy=over_subsets("halluc_accuracy"),
        accuracy=over_subsets("accuracy"),
        yes_difference=ratio(agreed, len(said)),
        false_yes_share=ratio(wrong.count("yes"), len(wrong)),
        unparsed=sum(parsed is None for parsed, _ in said),
        failed=len(items) - len(answered),
        mean_length=mean(item.length for item in answered),
        subsets=subsets,
        items=tuple(items),
    )


def _item(record: Record, number: int, mode: Mode) -> PairItem:
    hits, labels, parsed, lengths, errors = [], [], [], [], []
    for side in _SIDES:
        part = record.part(side)
        label = part.choice("answer", _LABELS)
        if "predict" not in part:
            raise part.refuse("predict", "what the model said, or null")
        said = part.optional_text("predict")
        read = None if said is None else strict_yes_no(said)
        hit = said is not None and (released_hit(said, label) if mode == "exact" else read == label)
        hits.append(math.nan if said is None else float(hit))
        labels.append(label)
        parsed.append(read)
        lengths.append(word_count(said))
        errors.append(failure(part, said))
    error = next((error for error in errors if error is not None), None)
    return PairItem(
        id=record.identifier("id") if "id" in record else str(number),
        subset=record.optional_text("subset") or "all",
        basic=hits[0] if error is None else math.nan,
        hallucination=hits[1] if error is None else math.nan,
        labels=(labels[0], labels[1]),
        parsed=(parsed[0], parsed[1]),
        length=mean(lengths) if error is None else math.nan,
        error=error,
    )


def _subset(items: Sequence[PairItem]) -> SubsetResult:
    return SubsetResult(
        basic_accuracy=mean(item.basic for item in items),
        halluc_accuracy=mean(item.hallucination for item in items),
        accuracy=mean(item.both for item in items),
        pairs=len(items),
        failed=sum(item.error is not None for item in items),
    )


def read_pairs(path: str | Path, subset: str) -> list[Record]:
    """Pairs of one official file, with or without predictions.

    Args:
        path: a list of objects with `basic` and `hallucination`, each with `video`, `question`, `answer`, and
            `predict` in the script's result files.
        subset: its name in the result.

    Raises:
        RowError: a record is malformed; the message names it.
    """
    found = []
    for number, record in enumerate(read_json_records(path)):
        for side in _SIDES:
            record.part(side).text("question")
            record.part(side).choice("answer", _LABELS)
        found.append(record.with_fields(subset=subset, id=f"{subset}/{number}"))
    return found


# ------------------------------------------------------------------------------------------------ the harness


def _read(folder: Path, *, subsets: Sequence[str] = tuple(SUBSETS)) -> list[Item]:
    items: list[Item] = []
    for subset in subsets:
        if subset not in SUBSETS:
            raise ConfigError(explain("subsets", got=subset, expected=" or ".join(SUBSETS)))
        name = SUBSETS[subset]
        path = official_file(folder, f"{name}/{name}.json", f"{name}.json")
        for record in read_pairs(path, subset):
            for side in _SIDES:
                # The script shows the basic question's clip for both.
                clip = path.parent / "videos" / record.part("basic").text("video")
                items.append(
                    Item(
                        id=f"{record['id']}/{side}",
                        prompt=record.part(side).text("question") + SUFFIX,
                        media=(clip,),
                        group=subset,
                        expected={"pair": record["id"], "side": side, "label": record[side]["answer"]},
                    )
                )
    return items


def _pairs(answers: Sequence[Answer]) -> list[Record]:
    """Answers to single questions, joined into pairs by copy.

    Raises:
        RowError: half of a pair is missing.
    """
    joined: dict[tuple[str, int], dict[str, Any]] = {}
    for answer in answers:
        expected = answer.item.expected
        pair = joined.setdefault((expected["pair"], answer.copy), {"subset": answer.item.group})
        pair[expected["side"]] = {"answer": expected["label"], "predict": answer.text, "error": answer.error}
    return [Record({"id": name, **pair}, f"answers to {name}") for (name, _), pair in joined.items()]


def _score(answers: Sequence[Answer], *, mode: Mode = "exact") -> Outcome:
    result = score_answers(_pairs(answers), mode)
    numbers = result.metrics()
    beside = ("basic_accuracy", "yes_difference", "mean_length")
    parts = {
        "accuracy": [(item.id, item.both) for item in result.items],
        "basic_accuracy": [(item.id, item.basic) for item in result.items],
        "halluc_accuracy": [(item.id, item.hallucination) for item in result.items],
    }
    metrics = [
        metric(name, numbers[name], "in [0, 1]", per_item=pairs, beside=beside)
        for name, pairs in parts.items()
    ]
    for name, unit in (("yes_difference", "in [-1, 1]"), ("false_yes_share", "in [0, 1]")):
        metrics.append(metric(name, numbers[name], unit, higher_is_better=None))
    lengths = [(item.id, item.length) for item in result.items]
    length = numbers["mean_length"]
    metrics.append(metric("mean_length", length, "words", higher_is_better=None, per_item=lengths))
    for subset, part in result.subsets.items():
        of_subset = [(item.id, item.both) for item in result.items if item.subset == subset]
        name = f"{subset}/accuracy"
        metrics.append(metric(name, part.accuracy, "in [0, 1]", per_item=of_subset, beside=beside))
    counts = {"pairs": len(result.items), "failed": result.failed, "unparsed": result.unparsed}
    return Outcome(tuple(metrics), counts, (f"Answers read in mode {mode}.",))


BENCHMARK = Benchmark(
    name="videohallucer",
    title="Hallucination in answers about video, by pairs of yes-or-no questions",
    produces="text",
    read=_read,
    score=_score,
    files={
        f"{name}/{name}.json": "patrick-tssn/VideoHallucer; clips in videos/ beside it"
        for name in SUBSETS.values()
    },
    options={
        "subsets": f"which of {', '.join(SUBSETS)}",
        "mode": "how answers are read: exact (expected word anywhere) or strict",
    },
    protocol={"pairs per subset": 200, "suffix": SUFFIX.strip(), "mean over subsets": "unweighted"},
    paper="2406.16338",
    official_code="patrick-tssn/VideoHallucer",
    licence="MIT for the questions; the clips' own terms",
    departures=(
        "Yes bias is counted over all answers; the released bias script credits one side of a pair for both.",
    ),
)
