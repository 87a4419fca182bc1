"""GenEval: do generated pictures show the objects, counts, colours and places of the prompt (2310.11513).

This name stands for the benchmark with its own detector (mmdetection 2.x). The results file of its script is
read here; `geneval_hf` is the same rule with a detector of transformers, whose numbers are others.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.base import Answer, Benchmark, Item, Metric, Outcome
from mmalign.evals.benchmarks._harness import metric, official_file
from mmalign.evals.benchmarks._records import Record, mean, read_json_records
from mmalign.evals.benchmarks._scene_checks import Scene, Thresholds, judge, read_scene, select
from mmalign.evals.detectors import Detection, Detector
from mmalign.rewards.sample import to_image

__all__ = [
    "BENCHMARK",
    "FILES",
    "PROTOCOL",
    "GenEvalImage",
    "GenEvalResult",
    "PictureColours",
    "aggregate",
    "outcome_of",
    "read_items",
    "read_results",
    "score_pictures",
]

PictureColours = Callable[[Image.Image, Sequence[Detection], str], Sequence[str]]
"""From a picture, objects in it and the name of their class to one colour each."""

ALIASES: Mapping[str, str] = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "television": "tv",
    "hair dryer": "hair drier",
}
"""Names of COCO classes in detectors, to the names in GenEval's prompts."""

_PICTURES_AT_ONCE = 8


@dataclass(frozen=True)
class GenEvalImage:
    """One picture.

    Args:
        id: of its prompt.
        tag: its task.
        correct: 1 or 0; NaN where it could not be judged.
        reasons: every demand that fails.
        copy: number among the prompt's pictures.
        error: why it could not be judged.
    """

    id: str
    tag: str
    correct: float
    reasons: tuple[str, ...] = ()
    copy: int = 0
    error: str | None = None


@dataclass(frozen=True)
class GenEvalResult:
    """Accuracies in [0, 1]; pictures that could not be judged are in none of them.

    Args:
        overall: mean of the tasks' accuracies, the number papers print.
        per_task: task to share of correct pictures, in order of appearance.
        image_accuracy: share of correct pictures.
        prompt_accuracy: share of prompts with at least one correct picture.
        failed: pictures that could not be judged.
        images: every picture.
    """

    overall: float
    per_task: Mapping[str, float]
    image_accuracy: float
    prompt_accuracy: float
    failed: int
    images: tuple[GenEvalImage, ...]


def aggregate(images: Sequence[GenEvalImage]) -> GenEvalResult:
    """Accuracies of judged pictures.

    Source: djghosh13/geneval, evaluation/summary_scores.py.
    """
    tasks: dict[str, list[float]] = {}
    prompts: dict[str, list[float]] = {}
    for image in images:
        tasks.setdefault(image.tag, []).append(image.correct)
        prompts.setdefault(image.id, []).append(image.correct)
    per_task = {tag: mean(values) for tag, values in tasks.items()}
    return GenEvalResult(
        overall=mean(per_task.values()),
        per_task=per_task,
        image_accuracy=mean(image.correct for image in images),
        prompt_accuracy=mean(_any(values) for values in prompts.values()),
        failed=sum(math.isnan(image.correct) for image in images),
        images=tuple(images),
    )


def _any(values: Sequence[float]) -> float:
    """1 when one is 1; NaN when none is a number."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def score_pictures(
    answers: Sequence[Answer],
    detector: Detector,
    colours: PictureColours | None = None,
    *,
    thresholds: Thresholds | None = None,
) -> GenEvalResult:
    """Judge generated pictures.

    Args:
        answers: pictures of items from `read_items`.
        detector: finds the objects.
        colours: names their colours; may be None where no prompt has one.
        thresholds: as released by default.

    Raises:
        ConfigError: the detector does not know a class that is asked for: it could never be found.
    """
    chosen = thresholds or Thresholds()
    scenes = [read_scene(Record(answer.item.expected, f"item {answer.item.id}")) for answer in answers]
    _check_labels(detector, scenes)
    judged: list[GenEvalImage] = []
    for start in range(0, len(answers), _PICTURES_AT_ONCE):
        part = slice(start, start + _PICTURES_AT_ONCE)
        judged += _judged(answers[part], scenes[part], detector, colours, chosen)
    return aggregate(judged)


def _check_labels(detector: Detector, scenes: Sequence[Scene]) -> None:
    known = {ALIASES.get(label, label) for label in detector.labels}
    unknown = sorted(frozenset().union(*(scene.labels() for scene in scenes)) - known)
    if unknown:
        message = explain(
            f"detector {detector.name}",
            got=f"[no class {', '.join(unknown[:5])}{' and others' if len(unknown) > 5 else ''}]",
            expected="every class of the prompts",
            do="Take a detector trained on COCO.",
        )
        raise ConfigError(message)


def _judged(
    answers: Sequence[Answer],
    scenes: Sequence[Scene],
    detector: Detector,
    colours: PictureColours | None,
    thresholds: Thresholds,
) -> list[GenEvalImage]:
    pictures = [_picture(answer) for answer in answers]
    found = iter(detector.detect([picture for picture in pictures if not isinstance(picture, str)]))
    judged = []
    for answer, scene, picture in zip(answers, scenes, pictures, strict=True):
        about = GenEvalImage(answer.item.id, scene.tag, math.nan, copy=answer.copy)
        if isinstance(picture, str):
            judged.append(replace(about, error=picture))
            continue
        named = [replace(one, label=ALIASES.get(one.label, one.label)) for one in next(found)]
        verdict = judge(
            select(named, scene.tag, thresholds),
            scene,
            None if colours is None else partial(colours, picture),
            dead_zone=thresholds.dead_zone,
        )
        judged.append(replace(about, correct=float(verdict.correct), reasons=verdict.reasons))
    return judged


def _picture(answer: Answer) -> Image.Image | str:
    """The picture of an answer, or why there is none."""
    if answer.error is not None:
        return answer.error
    if len(answer.media) != 1:
        return f"{len(answer.media)} pictures, one expected"
    try:
        return to_image(answer.media[0], where=f"answer to {answer.item.id}")
    except RowError as error:
        return str(error)


# --------------------------------------------------------------------------------------------- official files

FILES: Mapping[str, str] = {"evaluation_metadata.jsonl": "djghosh13/geneval, folder prompts"}

PROTOCOL: Mapping[str, str | int | float] = {
    "prompts": 553,
    "images per prompt": 4,
    "sampler steps": 50,
    "guidance": 9.0,
    "seed": "42 again at each prompt in the official script",
    "thresholds": "0.3, counting 0.9",
}


def read_items(folder: Path) -> list[Item]:
    """Prompts of `evaluation_metadata.jsonl`, numbered as the official script numbers its folders.

    Raises:
        ConfigError: the file is not there.
        RowError: a record is malformed; names line and field.
    """
    path = official_file(folder, "evaluation_metadata.jsonl", "prompts/evaluation_metadata.jsonl")
    items = []
    for number, record in enumerate(read_json_records(path)):
        scene = read_scene(record)
        items.append(
            Item(
                f"geneval/{number:05d}", record.text("prompt"), group=scene.tag, expected=dict(record.fields)
            )
        )
    return items


def read_results(path: str | Path, items: Sequence[Item]) -> list[GenEvalImage]:
    """Pictures as the official `evaluate_images.py` judged them.

    Args:
        path: its output file (`results.jsonl`).
        items: from `read_items`; a record belongs to the item with the same metadata.

    Raises:
        RowError: a record is malformed, or about a prompt that is none of the items.
    """
    by_metadata = {_canonical(item.expected): item for item in items}
    copies: dict[str, int] = {}
    images = []
    for record in read_json_records(path):
        try:
            metadata = json.loads(record.text("metadata"))
        except ValueError as error:
            raise record.refuse("metadata", "JSON in a text") from error
        item = by_metadata.get(_canonical(metadata))
        if item is None:
            raise record.refuse("metadata", "the metadata of one of the benchmark's prompts")
        if not isinstance(record.get("correct"), bool):
            raise record.refuse("correct", "true or false")
        number = copies[item.id] = copies.get(item.id, -1) + 1
        reasons = tuple((record.optional_text("reason") or "").splitlines())
        images.append(GenEvalImage(item.id, item.group, float(record["correct"]), reasons, number))
    return images


def _canonical(metadata: object) -> str:
    return json.dumps(metadata, sort_keys=True)


# ------------------------------------------------------------------------------------------------ the harness


def outcome_of(result: GenEvalResult, notes: tuple[str, ...] = ()) -> Outcome:
    """The result as metrics; `overall` leads.

    Its parts by prompt are weighted so that their mean is the overall accuracy: each task counts the same,
    however many prompts it has.
    """
    unit = "in [0, 1]"
    scored = [image for image in result.images if not math.isnan(image.correct)]
    sizes = {tag: sum(image.tag == tag for image in scored) for tag in result.per_task}
    prompts = {image.id: 0.0 for image in scored}
    tasks = sum(size > 0 for size in sizes.values())
    for image in scored:
        prompts[image.id] += image.correct * len(prompts) / (tasks * sizes[image.tag])
    metrics: list[Metric] = [metric("overall", result.overall, unit, per_item=prompts)]
    correct = [(image.id, image.correct) for image in result.images]
    metrics.append(metric("image_accuracy", result.image_accuracy, unit, per_item=correct))
    grouped: dict[str, list[float]] = {}
    for image in result.images:
        grouped.setdefault(image.id, []).append(image.correct)
    any_correct = {name: _any(values) for name, values in grouped.items()}
    metrics.append(metric("prompt_accuracy", result.prompt_accuracy, unit, per_item=any_correct))
    for tag, accuracy in result.per_task.items():
        parts = [(image.id, image.correct) for image in result.images if image.tag == tag]
        metrics.append(metric(f"task/{tag}", accuracy, unit, per_item=parts))
    counts = {"images": len(result.images), "scored": len(scored), "failed": result.failed}
    return Outcome(tuple(metrics), counts, notes)


def _score(
    answers: Sequence[Answer],
    *,
    results: str | Path | None = None,
    detector: Detector | None = None,
    colours: PictureColours | None = None,
    **thresholds: Any,
) -> Outcome:
    if results is not None:
        items = {answer.item.id: answer.item for answer in answers}
        result = aggregate(read_results(results, list(items.values())))
        missing = len(items) - len({image.id for image in result.images})
        outcome = outcome_of(result, (f"Judged by the official script: {results}.",))
        return replace(outcome, counts={**outcome.counts, "prompts without a picture": missing})
    if detector is None or "geneval" not in detector.calibrated_for:
        message = explain(
            "geneval",
            got="[no results]" if detector is None else f"[detector {detector.name}]",
            expected="results=FILE of the official script, or a detector shown to reproduce its numbers",
            do="Use geneval_hf for detectors of transformers.",
        )
        raise ConfigError(message)
    return outcome_of(score_pictures(answers, detector, colours, thresholds=Thresholds(**thresholds)))


BENCHMARK = Benchmark(
    name="geneval",
    title="Objects, counts, colours and places in generated pictures, judged by the official detector",
    produces="image",
    read=read_items,
    score=_score,
    files=FILES,
    options={"results": "output file of the official evaluate_images.py"},
    protocol=PROTOCOL,
    paper="2310.11513",
    official_code="djghosh13/geneval",
    licence="MIT",
    departures=("Pictures that cannot be judged are counted and in no accuracy.",),
)
