"""What an objective of the catalogue costs over a plain hand-written function, on scores of [4096, 2].

The plain functions are the re-statements in tests/objectives/plain_*.py. Forward and backward, float32,
medians over interleaved calls of one run. Lists are cut to two candidates; rows that compare further
conditions (another image, a revised answer) keep theirs. The plain functions of lists loop over their rows:
their difference says nothing, the first column does.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.objectives import Scores
from mmalign.testing import objectives as conformance
from mmalign.testing.parity import adapter_module

PROMPTS = 4096
FOLDER = Path(__file__).parents[1] / "tests" / "objectives"


def _widened(value: Any) -> Any:
    """The example's rows repeated up to `PROMPTS`; what has another first axis stays."""
    if not isinstance(value, torch.Tensor) or value.shape[0] != conformance.PROMPTS:
        return value
    times = -(-PROMPTS // conformance.PROMPTS)
    return value.detach().repeat(times, *[1] * (value.ndim - 1))[:PROMPTS]


def inputs(name: str) -> tuple[Scores, Labels]:
    """Random scores of `PROMPTS` rows with everything the objective reads."""
    row = objectives.registered(name)
    scores, labels = conformance.example(row, dtype=torch.float32)
    count = 2 if row.row.data == "lists" else scores.num_candidates

    def widened(value: Any) -> Any:
        """Further rows, and of an axis of candidates the first `count`."""
        more = _widened(value)
        listed = isinstance(more, torch.Tensor) and more.ndim > 1 and more.shape[1] == scores.num_candidates
        return more[:, :count].contiguous() if listed else more

    extras = {key: widened(value) for key, value in scores.extras.items()}
    changes = {
        field: widened(getattr(scores, field)) for field in ("reference", "mask", "length", "kl", "reward")
    }
    policy = widened(scores.policy).requires_grad_()
    moved = replace(scores, policy=policy, extras=extras, **changes)
    if labels.certain:
        return moved, Labels.pairs(PROMPTS)
    fields = ("probability", "desirable", "relevance", "valid")
    return moved, replace(labels, **{field: widened(getattr(labels, field)) for field in fields})


def _seconds(call: Callable[[], torch.Tensor], policy: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.autograd.grad(call().sum(), policy)
    return time.perf_counter() - started


def measure_one(name: str, plain: Callable[..., torch.Tensor], rounds: int) -> dict[str, float]:
    """Milliseconds per call of one objective and of its plain function."""
    registered = objectives.registered(name)
    built = registered.builder(**registered.sample)
    scores, labels = inputs(name)
    arguments = {
        key: given.default
        for key, given in objectives.signature(name).parameters.items()
        if given.default is not given.empty
    } | dict(registered.sample)
    calls = (lambda: built(scores, labels).loss, lambda: plain(scores, labels, arguments))
    times: tuple[list[float], list[float]] = ([], [])
    # A plain function that loops over its rows, written to be read, is timed once and not in between.
    once = _seconds(calls[1], scores.policy)
    slow = once > 0.1
    for step in range(rounds + 5):
        for call, taken in list(zip(calls, times, strict=True))[: 1 if slow else 2]:
            seconds = _seconds(call, scores.policy)
            if step >= 5:  # after the warm-up
                taken.append(1e3 * seconds)
    if slow:
        times[1].append(1e3 * once)
    ours, bare = (statistics.median(taken) for taken in times)
    return {"ours_ms": ours, "plain_ms": bare, "over_ms": ours - bare}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """The same for the whole catalogue."""
    modules = [adapter_module(path) for path in sorted(FOLDER.glob("plain_*.py"))]
    plain: Mapping[str, Callable[..., torch.Tensor]] = {
        name: function for module in modules for name, function in module.PLAIN.items()
    }
    return {name: measure_one(name, plain[name], rounds) for name in objectives.names()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, row in sorted(measure(30).items(), key=lambda item: -item[1]["over_ms"]):
        ours, plain_ms, over = row["ours_ms"], row["plain_ms"], row["over_ms"]
        print(f"{name:32s} {ours:7.3f} ms, plain {plain_ms:7.3f} ms, over {over:+7.3f} ms")
