"""How golden cases of picture and clip benchmarks call the public interface. No formula stands here."""

import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mmalign.evals.benchmarks import _dependent_questions as dpg_questions
from mmalign.evals.benchmarks import geneval, hpdv2, vbench
from mmalign.evals.benchmarks._boxes import iou, relations
from mmalign.evals.benchmarks._clip_measures import (
    frame_interval,
    judge_motion,
    temporal_flickering,
    top_flow,
)
from mmalign.evals.benchmarks._compositional_scores import position
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


def aggregation_case(case: Case) -> Results:
    settings = case.hyperparameters
    assert {name: {"Min": one.low, "Max": one.high} for name, one in vbench.DIMENSIONS.items()} == settings[
        "vbench_min_max"
    ]
    assert {name: one.weight for name, one in vbench.DIMENSIONS.items()} == settings["vbench_weight"]
    overall = vbench.aggregate(case["vbench_raw"])
    questions = [
        dpg_questions.Question(int(name), "", tuple(parents))
        for name, parents in case["dpg_dependency"].items()
    ]
    images = [
        dpg_questions.score_image(
            "item", questions, {int(name): said for name, said in answers.items()}, released=True
        )
        for answers in case["dpg_answers"]
    ]
    style = hpdv2.aggregate(
        {"style": [100.0 * value for value in case["hps_cosines"].tolist()]}, chunk=settings["hps_chunk"]
    ).styles["style"]
    return {
        "vbench_normalised_times_weight": dict(overall.weighted),
        "vbench_quality": number(overall.quality),
        "vbench_semantic": number(overall.semantic),
        "vbench_total": number(overall.total),
        "dpg_image_score": number([image.score for image in images]),
        "dpg_scores_before_dependency": [
            {str(name): value for name, value in image.before.items()} for image in images
        ],
        "dpg_scores_after_dependency": [
            {str(name): value for name, value in image.after.items()} for image in images
        ],
        "hps_style_mean": number(style.mean),
        "hps_style_std": number(style.std),
        "t2i_position_score": number(
            [
                position(
                    entry["relation"],
                    box(entry["first"]),
                    box(entry["second"]),
                    iou_threshold=settings["iou_threshold"],
                    distance_threshold=settings["distance_threshold"],
                )
                for entry in case["spatial"]
            ]
        ),
    }


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The generator that the case describes under `formula`: its inputs are not stored."""
    count = int(np.prod(shape))
    word = (np.arange(count, dtype=np.uint64) + zlib.crc32(name.encode())) % 2**32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor) % 2**32
    return (word / 2**32).reshape(shape)


def gaussian(name: str, shape: tuple[int, ...]) -> np.ndarray:
    first = (uniform(f"{name}/u1", shape) * 2**32 + 1) / (2**32 + 1)
    angle = 2 * np.pi * uniform(f"{name}/u2", shape)
    return (np.sqrt(-2 * np.log(first)) * np.cos(angle)).astype(np.float32)


def vbench_inputs(case: Case) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Flows and frames as the case's words describe them."""
    said = re.search(
        r"\(i=0\.\.(\d+)\) = GAUSS\('([^']+)'\+i,\[([\d,]+)\]\)\*([\d.]+)\*\(1\+([\d.]+)\*i\)", case["flows"]
    )
    drawn = re.search(
        r"\(i=0\.\.(\d+)\) = floor\(U\('([^']+)'\+i\)\*256\) reshaped \[([\d,]+)\]", case["frames"]
    )
    assert said is not None, case["flows"]
    assert drawn is not None, case["frames"]
    shape = tuple(int(size) for size in said[3].split(","))
    scale, growth = float(said[4]), float(said[5])
    flows = [
        torch.from_numpy(gaussian(f"{said[2]}{i}", shape))[0] * (scale * (1 + growth * i))
        for i in range(int(said[1]) + 1)
    ]
    size = tuple(int(part) for part in drawn[3].split(","))
    frames = [
        np.floor(uniform(f"{drawn[2]}{i}", size) * 256).astype(np.uint8) for i in range(int(drawn[1]) + 1)
    ]
    return flows, torch.from_numpy(np.stack(frames))


def vbench_case(case: Case) -> Results:
    flows, frames = vbench_inputs(case)
    lengths = [top_flow(flow) for flow in flows]
    motion = judge_motion(
        lengths, height=int(case["h"]), width=int(case["w"]), num_frames=int(case["num_frames"])
    )
    overall = vbench.aggregate(case["raw_dimension_scores"])
    return {
        "per_pair_top5pct_flow": number(lengths),
        "threshold": number(motion.threshold),
        "count_needed": torch.tensor(motion.needed),
        "is_dynamic": torch.tensor(motion.dynamic),
        "frame_interval_for_8fps": torch.tensor(frame_interval(case.hyperparameters["native_fps"])),
        "temporal_flickering": number(temporal_flickering(frames)),
        "normalised_weighted": dict(overall.weighted),
        "quality_score": number(overall.quality),
        "semantic_score": number(overall.semantic),
        "total_score": number(overall.total),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "eval_benchmark_aggregation": aggregation_case,
    "eval_geneval_logic": geneval_case,
    "vbench_math": vbench_case,
}

LEFT_OUT: dict[str, dict[str, str]] = {}
