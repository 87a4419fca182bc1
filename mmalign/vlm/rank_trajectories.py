"""From attempts at tasks to windows that train GRAPE: rewards, pairs of one task, steps side by side.

One attempt per line:

    {"task": "stack-1", "instruction": "Put the block on the plate.", "success": true,
     "stage_costs": [0.1, 0.0], "steps": [{"images": ["a/0.png"], "action": "1 0 2"}, ...]}

`log_likelihood` may stand there, too; else the model says it. The best attempt at a task meets the worst, the
next best the next worst, and every pair is cut into windows that `mmalign train` reads (format trajectories).

Source: arXiv 2411.19309, guided-cost preference generation; windows of 8 steps as in aiming-lab/GRAPE.
"""

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmalign.errors import ConfigError, RowError, explain
from mmalign.files import atomic_write, read_json_lines
from mmalign.vlm.family import VlmModel
from mmalign.vlm.trajectories import (
    WINDOW,
    ActionStep,
    Trajectory,
    gcpg_reward,
    ranked_pairs,
    self_log_likelihood,
)

__all__ = ["Attempt", "main", "read_attempts", "rewards_of", "window_records"]


@dataclass(frozen=True)
class Attempt:
    """One attempt at a task, and what is known of how good it was.

    Args:
        task: attempts at the same task from the same start share it.
        trajectory: its steps.
        stage_costs: >= 0, of every stage of the task; () where nobody judged.
        success: whether the task was done.
        log_likelihood: of its actions under the policy, in nats; None where the model is to say it.
    """

    task: str
    trajectory: Trajectory
    stage_costs: tuple[float, ...] = ()
    success: bool = False
    log_likelihood: float | None = None


def read_attempts(path: Path) -> list[Attempt]:
    """Attempts of a JSON-lines file; paths of pictures start beside it.

    Raises:
        RowError: a line lacks an instruction or steps, or has a step without pictures or action.
    """
    return [
        _attempt(record, f"{path.name}:{number}", path.resolve().parent)
        for number, record in enumerate(read_json_lines(path), start=1)
    ]


def _attempt(record: Mapping[str, Any], where: str, root: Path) -> Attempt:
    steps, instruction = record.get("steps"), record.get("instruction")
    if not isinstance(steps, list) or not steps or not isinstance(instruction, str):
        message = explain(where, got=sorted(record), expected="an instruction and a list of steps")
        raise RowError(message, "no_steps")
    made = []
    for number, step in enumerate(steps):
        images = step.get("images") if isinstance(step, Mapping) else None
        if not isinstance(images, list) or not images or not isinstance(step.get("action"), str):
            message = explain(
                f"{where} steps[{number}]", got=str(step)[:60], expected="{images: [...], action: ...}"
            )
            raise RowError(message, "bad_step")
        made.append(ActionStep(tuple(str(root / image) for image in images), step["action"]))
    costs, opinion = record.get("stage_costs", ()), record.get("log_likelihood")
    return Attempt(
        task=str(record.get("task", instruction)),
        trajectory=Trajectory(instruction, tuple(made), id=str(record.get("id", where))),
        stage_costs=tuple(float(cost) for cost in costs),
        success=bool(record.get("success", False)),
        log_likelihood=None if opinion is None else float(opinion),
    )


def rewards_of(
    attempts: Sequence[Attempt], *, model: VlmModel | None = None, weights: Mapping[str, float] | None = None
) -> list[float]:
    """GRAPE's reward of every attempt; the log-likelihood counts per step, as attempts differ in length.

    Args:
        attempts: of any tasks.
        model: says the log-likelihoods that are missing; None leaves them out (0).
        weights: `self_weight`, `stage_weight`, `success_weight` of `gcpg_reward`.

    Raises:
        ConfigError: as `gcpg_reward`.
    """
    found = []
    for attempt in attempts:
        opinion = attempt.log_likelihood
        if opinion is None:
            opinion = 0.0 if model is None else self_log_likelihood(model, attempt.trajectory)
        reward = gcpg_reward(
            torch.tensor([opinion / len(attempt.trajectory.steps)]),
            torch.tensor([attempt.stage_costs], dtype=torch.float32).reshape(1, -1),
            torch.tensor([attempt.success]),
            **dict(weights or {}),
        )
        found.append(float(reward))
    return found


def window_records(
    attempts: Sequence[Attempt],
    rewards: Sequence[float],
    *,
    size: int = WINDOW,
    stride: int | None = None,
    top: int = 1,
    min_gap: float = 0.0,
    root: Path | None = None,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Records of format `trajectories`, and what was left out, by reason.

    Args:
        attempts: of any tasks.
        rewards: of every attempt; NaN leaves it out.
        size: steps of a window; 8 released.
        stride: from one window's start to the next; None: they do not overlap.
        top: pairs per task at most.
        min_gap: pairs whose rewards do not differ by more are left out.
        root: where paths of pictures are told from; None keeps them as they are.

    Raises:
        ConfigError: a size or stride below 1, or as `ranked_pairs`.
    """
    every = size if stride is None else stride
    if size < 1 or every < 1:
        raise ConfigError(explain("window", got=f"size {size}, stride {every}", expected="numbers >= 1"))
    tasks: dict[str, list[int]] = {}
    for number, attempt in enumerate(attempts):
        tasks.setdefault(attempt.task, []).append(number)
    records, skipped = [], Counter[str]()
    for task, members in tasks.items():
        values = torch.tensor([rewards[number] for number in members], dtype=torch.float64)
        skipped["no_reward"] += sum(math.isnan(value) for value in values.tolist())
        pairs = ranked_pairs(values.float(), top=top, min_gap=min_gap)
        skipped["task_without_pair"] += not pairs
        for good, bad in pairs:
            better, worse = members[good], members[bad]
            one, two = attempts[better].trajectory, attempts[worse].trajectory
            shortest = min(len(one.steps), len(two.steps))
            skipped["shorter_than_a_window"] += shortest < size
            for start in range(0, shortest - size + 1, every):
                sides = [_told(item.steps[start : start + size], root) for item in (one, two)]
                records.append(
                    {
                        "id": f"{one.id}>{two.id}@{start}",
                        "task": task,
                        "instruction": one.instruction,
                        "chosen_steps": sides[0],
                        "rejected_steps": sides[1],
                        "score_chosen": rewards[better],
                        "score_rejected": rewards[worse],
                    }
                )
    return records, +skipped


def _told(steps: Sequence[ActionStep], root: Path | None) -> list[dict[str, Any]]:
    def path(image: bytes | str) -> str:
        name = image.decode() if isinstance(image, bytes) else image
        return name if root is None else Path(os.path.relpath(name, root)).as_posix()

    return [{"images": [path(image) for image in step.images], "action": step.action} for step in steps]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of `vlm/rank_trajectories.py`; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Rank attempts at tasks and cut them into windows for GRAPE."
    )
    parser.add_argument("attempts", type=Path, help="JSON lines, one attempt each")
    parser.add_argument(
        "output",
        type=Path,
        help="JSON lines of windows; pictures are named from its folder, so put it beside",
    )
    parser.add_argument("--model", help="hub id or folder: its log-likelihood counts")
    parser.add_argument("--family", help="of the model; default: what its config says")
    parser.add_argument("--window", type=int, default=WINDOW, help="steps; default %(default)s")
    parser.add_argument("--stride", type=int, help="default: windows do not overlap")
    parser.add_argument("--top", type=int, default=1, help="pairs per task; default %(default)s")
    parser.add_argument("--min-gap", type=float, default=0.0, help="of rewards")
    for name in ("self", "stage", "success"):
        parser.add_argument(f"--{name}-weight", type=float, default=1.0, help="default %(default)s")
    given = parser.parse_args(arguments)
    model = None
    if given.model is not None:
        from mmalign.vlm.trained import load_base

        model = load_base(given.model, family=given.family).model
    attempts = read_attempts(given.attempts)
    weights = {f"{name}_weight": getattr(given, f"{name}_weight") for name in ("self", "stage", "success")}
    rewards = rewards_of(attempts, model=model, weights=weights)
    records, skipped = window_records(
        attempts,
        rewards,
        size=given.window,
        stride=given.stride,
        top=given.top,
        min_gap=given.min_gap,
        root=given.output.resolve().parent,
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(given.output, "".join(json.dumps(record) + "\n" for record in records))
    left = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "nothing"
    print(f"{len(attempts)} attempts: {len(records)} windows in {given.output}; left out: {left}")
    return 0 if records else 1
