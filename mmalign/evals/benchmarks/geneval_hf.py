"""GenEval's rule with a detector of transformers in place of mmdetection's: its numbers are others.

The detector has the same architecture and other weights; nobody has measured yet, task by task, how far its
verdicts agree with the official ones. Compare models under this name, and print nothing beside tables of
GenEval.
"""

from collections.abc import Sequence
from typing import Any

from mmalign.evals.base import Answer, Benchmark, Outcome
from mmalign.evals.benchmarks import geneval
from mmalign.evals.benchmarks._scene_checks import Thresholds
from mmalign.evals.detectors import Detector

__all__ = ["BENCHMARK"]


def _score(
    answers: Sequence[Answer],
    *,
    detector: Detector,
    colours: geneval.PictureColours | None = None,
    **thresholds: Any,
) -> Outcome:
    result = geneval.score_pictures(answers, detector, colours, thresholds=Thresholds(**thresholds))
    note = f"Detector {detector.name}: uncalibrated, not comparable with GenEval."
    return geneval.outcome_of(result, (note,))


BENCHMARK = Benchmark(
    name="geneval_hf",
    title="GenEval's rule with Mask2Former of transformers; uncalibrated, never a GenEval number",
    produces="image",
    read=geneval.read_items,
    score=_score,
    files=geneval.FILES,
    tools=("detector", "colours"),
    options={
        "score": "lowest confidence of an object that counts (0.3)",
        "counting_score": "the same for the counting task (0.9)",
        "max_objects": "objects of a class at most (16)",
        "max_overlap": "two objects of a class that overlap this much are one (1: never)",
        "dead_zone": "share of both sizes that must lie between centres (0.1)",
    },
    protocol={**geneval.PROTOCOL, "detector": "transformers", "calibration": "uncalibrated"},
    paper="2310.11513",
    official_code="djghosh13/geneval",
    licence="MIT",
    departures=(
        "The official detector is Mask2Former Swin-S of mmdetection 2.x, with other weights.",
        "Pictures that cannot be judged are counted and in no accuracy.",
    ),
)
