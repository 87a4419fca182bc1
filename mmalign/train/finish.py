"""The end of a run: what users load, the summary, and what the numbers say."""

import contextlib
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmalign.files import write_json
from mmalign.train.adapters import Trainables
from mmalign.train.distributed.networks import for_saving
from mmalign.train.loop import Loop, peak_memory_gib
from mmalign.train.metrics import verdict
from mmalign.train.model import TrainedModel
from mmalign.train.token_metrics import token_verdict
from mmalign.train.token_sections import tokens_of

__all__ = ["SUMMARY_FILE", "RunResult", "finish"]

SUMMARY_FILE = "training_summary.json"


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Args:
        folder: run folder.
        steps: optimiser steps done.
        records: logged metrics.
        verdict: what they say, in words.
        finished: False when a signal or the guard stopped it early.
        model: the loaded model with the trained weights, for whoever called from Python.
        trainables: the trained weights.
        stopped: the guard ended it.
    """

    folder: Path
    steps: int
    records: list[dict[str, Any]]
    verdict: list[str]
    finished: bool
    model: TrainedModel
    trainables: Trainables
    stopped: bool = False
    extras: dict[str, Any] = field(default_factory=dict)


def finish(loop: Loop, *, seconds: float) -> RunResult:
    """Save what users load, write the summary, say what the numbers say."""
    run, config, accelerator = loop.run, loop.run.config, loop.accelerator
    finished = loop.progress.step == config.train.steps
    judge = verdict if tokens_of(config) is None else token_verdict
    findings = judge(loop.tracking.records, num_dropped=loop.progress.num_dropped)
    already = loop.start_step == loop.progress.step and (loop.folder / SUMMARY_FILE).is_file()
    stopped = loop.guard.state.stopped is not None
    if finished and not already:
        average = loop.ema.shadow_params if loop.ema is not None else None
        with for_saving(loop.model, loop.trainables, average, is_main=accelerator.is_main_process) as is_mine:
            if is_mine and config.adapter.kind == "lora":
                loop.model.save_adapter(loop.folder)
            elif is_mine:
                loop.model.save_model(loop.folder / "model")
    if accelerator.is_main_process and (finished or stopped) and not already:
        write_json(
            loop.folder / SUMMARY_FILE,
            {
                "method": run.method.name,
                "steps": loop.progress.step,
                "seconds": round(seconds, 3),
                "trained_weights": loop.trainables.count,
                "peak_memory_gib": round(peak_memory_gib(accelerator.device), 3),
                "dropped_updates": loop.progress.num_dropped,
                "unreadable_rows": loop.progress.num_bad_rows,
                "data": dict(loop.data_counts),
                "weights": "average" if loop.ema is not None else "last",
                "last_record": loop.tracking.records[-1] if loop.tracking.records else {},
                "verdict": findings,
                "guard": loop.guard.summary(),
                "versions": _versions(),
            },
        )
        for line in findings:
            loop.tracking.say(line)
        if any(loop.data_counts.values()):
            found = ", ".join(f"{count} {name}" for name, count in loop.data_counts.items() if count)
            loop.tracking.say(f"rows of this process: {found.replace('_', ' ')}")
    accelerator.wait_for_everyone()
    return RunResult(
        folder=loop.folder,
        steps=loop.progress.step,
        records=loop.tracking.records,
        verdict=findings,
        finished=finished,
        model=loop.model,
        trainables=loop.trainables,
        stopped=stopped,
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in ("mmalign", "torch", "diffusers", "transformers", "accelerate", "peft", "datasets"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
