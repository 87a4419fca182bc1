"""How golden cases of picture and clip benchmarks call the public interface. No formula stands here."""

from collections.abc import Callable
from typing import Any

import torch

from mmalign.evals.benchmarks import geneval
from mmalign.evals.benchmarks._boxes import iou, relations
from mmalign.evals.benchmarks._records import Record
from mmalign.evals.benchmarks._scene_checks import Thresholds, judge, read_scene
from mmalign.evals.detectors import Detection
from mmalign.testing.parity import Case

Results = dict[str, Any]


def number(value: Any) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def box(values: Any) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) for value in values)
    return (left, top, right, bottom)


def geneval_case(case: Case) -> Results:
    settings = case.hyperparameters
    thresholds = Thresholds(
        score=settings["threshold"],
        counting_score=settings["counting_threshold"],
        max_objects=settings["max_objects"],
        max_overlap=settings["max_overlap"],
        dead_zone=settings["position_threshold"],
    )
    pairs = [(box(first), box(second)) for first, second in case["box_pairs"]]
    # Already chosen from by score, as the note says.
    objects = {
        label: [Detection(label, float(row[4]), box(row[:4])) for row in rows]
        for label, rows in case["detections"].items()
    }
    colour_of = {box(entry["box"]): entry["color"] for entry in case["crop_colors"]}
    verdicts = [
        judge(
            objects,
            read_scene(Record(metadata, f"metadata[{place}]")),
            lambda found, _: [colour_of[detection.box] for detection in found],
            dead_zone=thresholds.dead_zone,
        )
        for place, metadata in enumerate(case["metadata"])
    ]
    result = geneval.aggregate(
        [
            geneval.GenEvalImage(str(place), entry["tag"], float(correct), copy=copy)
            for place, entry in enumerate(case["image_results"])
            for copy, correct in enumerate(entry["correct"])
        ]
    )
    return {
        "relations_of_first_to_second": [
            sorted(relations(*pair, dead_zone=thresholds.dead_zone)) for pair in pairs
        ],
        "iou": number([iou(*pair, pixel=1.0) for pair in pairs]),
        "evaluation": [
            {"correct": verdict.correct, "n_reasons": len(verdict.reasons)} for verdict in verdicts
        ],
        "overall": number(result.overall),
        "per_task": dict(result.per_task),
        "percent_correct_images": number(result.image_accuracy),
        "percent_correct_prompts": number(result.prompt_accuracy),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "eval_geneval_logic": geneval_case,
}

LEFT_OUT: dict[str, dict[str, str]] = {}
