"""The loss guide's runs in the world of tokens: every row tuned alike, then measured under each condition."""

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from mmalign import objectives
from mmalign.errors import ConfigError, HyperparameterError, ShapeError, TrainingError
from mmalign.files import fingerprint
from mmalign.toy.comparison import Interval, bootstrap_mean
from mmalign.toy.guide_results import Results
from mmalign.toy.token_model import ASSETS
from mmalign.toy.token_training import Measured, Setting, align, base_measured, lacking, measure
from mmalign.toy.token_world import BASE_WRITER, CONDITIONS, FOREIGN_WRITER

__all__ = [
    "FACTORS",
    "NUM_RUNS",
    "RATES",
    "SEEDS",
    "TokenRow",
    "collect",
    "grid",
    "runs_of",
    "strength_of",
    "why_left_out",
]

FACTORS = (1 / 3, 1.0, 3.0, 10.0)
"""Multiples of the strength in the row's sample that are tried."""

RATES = (2e-4, 6e-4)
"""Learning rates that are tried with each of them."""

SEEDS = (0, 1, 2)
"""Data and orders the chosen setting is run on under the mixed condition; under the others, the first few."""

NUM_RUNS = len(FACTORS) * len(RATES) + len(SEEDS) + len(CONDITIONS) - 1
"""Runs of a row that has a strength, with one seed under the conditions other than mixed."""

_STRENGTHS = ("beta", "tau", "margin", "beta_chosen", "reward_temperature", "coefficient", "sft_weight")

Arguments = Mapping[str, float | int | str | bool]


@functools.cache
def _world() -> str:
    """Changes when the language, the judge, the writers, the conditions or the base do."""
    weights = (ASSETS / "model.safetensors").read_bytes().hex()
    conditions = {name: asdict(condition) for name, condition in CONDITIONS.items()}
    return fingerprint(weights, conditions, asdict(BASE_WRITER), asdict(FOREIGN_WRITER))


def strength_of(name: str) -> str:
    """The hyperparameter of a row that is tuned, "" if it has none."""
    sample = objectives.registered(name).sample
    return next((key for key in _STRENGTHS if isinstance(sample.get(key), float | int)), "")


def grid(name: str) -> list[Setting]:
    """The settings that are tried on validation prompts: the same number for every row with a strength."""
    sample = dict(objectives.registered(name).sample)
    key = strength_of(name)
    tried: list[Arguments] = []
    for factor in FACTORS if key else (1.0,):
        changed = {key: float(f"{float(sample[key]) * factor:.2g}")} if key else {}
        if key == "beta_chosen":
            changed["beta_rejected"] = float(f"{float(sample['beta_rejected']) * factor:.2g}")
        tried.append({**sample, **changed})
    return [Setting(name, arguments, learning_rate=rate) for arguments in tried for rate in RATES]


def why_left_out(name: str) -> str:
    """Why a row is not run, "" if it is."""
    row = objectives.registered(name)
    needs = lacking(name)
    if needs:
        return f"needs {', '.join(needs)}"
    conditions = max((term.width for term in row.builder(**row.sample).terms), default=0)
    if conditions > 2:
        return "scores answers under several images or prompts"
    return ""


def _what(setting: Setting, split: str) -> dict[str, Any]:
    """Everything the outcome of a run depends on, the formula included; {} for arguments out of range."""
    formula = objectives.build(setting.objective, **setting.arguments).formula
    return {
        **asdict(setting),
        "arguments": dict(setting.arguments),
        "split": split,
        "formula": fingerprint(formula),
        "world": _world(),
    }


def _made(setting: Setting, split: str) -> dict[str, Any]:
    started = time.process_time()
    try:
        measured = asdict(measure(align(setting), split=split))
    except (TrainingError, ConfigError, ShapeError) as error:
        return {"failed": str(error)}
    gains = measured.pop("gains")
    rounded = {key: round(value, 4) for key, value in measured.items()}
    kept = {"gain": round(sum(gains) / len(gains), 5), **rounded}
    if split == "test":
        kept["gains"] = [round(gain, 4) for gain in gains]
    return {"measured": kept, "seconds": round(time.process_time() - started, 2)}


def _possible(settings: list[Setting]) -> Iterator[Setting]:
    """The settings whose arguments are in the builder's range."""
    for setting in settings:
        try:
            objectives.build(setting.objective, **setting.arguments)
        except HyperparameterError:
            continue
        yield setting


def runs_of(
    name: str, results: Results, *, num_seeds: int = 1, only_stored: bool = False
) -> Iterator[tuple[str, Any]]:
    """Tune a row and measure it; what is stored already is not run again.

    Args:
        name: of the objective.
        results: where records are found and put.
        num_seeds: seeds under the conditions other than mixed, at most as many as `SEEDS`.
        only_stored: run nothing, take all the seeds there are, and stop where there is none.

    Yields:
        ("tuned", best `Setting`), then (condition, list of records, one per seed).
    """

    def record(setting: Setting, split: str) -> dict[str, Any] | None:
        what = _what(setting, split)
        return results.find(what) if only_stored else results.get(what, lambda: _made(setting, split))

    tried = [(record(setting, "validation"), setting) for setting in _possible(grid(name))]
    if any(found is None for found, _ in tried):
        return
    fine = [
        (found["measured"]["gain"], -number)
        for number, (found, _) in enumerate(tried)
        if found and "measured" in found
    ]
    if not fine:
        return
    best = tried[-max(fine)[1]][1]
    yield "tuned", best
    for condition in CONDITIONS:
        wanted = SEEDS if condition == "mixed" or only_stored else SEEDS[:num_seeds]
        found = [record(replace(best, condition=condition, seed=seed), "test") for seed in wanted]
        stored = [one for one in found if one]
        if len(stored) < (len(SEEDS) if condition == "mixed" else 1):
            return
        yield condition, stored


@dataclass(frozen=True)
class TokenRow:
    """One row of the table.

    Args:
        name: of the objective.
        setting: chosen on validation prompts.
        gain: in exact reward under the mixed condition, mean of the seeds, with its interval over prompts.
        lowest: gain of the worst of the seeds.
        gains: mean gain under each condition.
        measured: other numbers under each condition, mean of the seeds.
        num_seeds: seeds under the condition that has fewest.
        seconds: CPU time of one run.
    """

    name: str
    setting: Setting
    gain: Interval
    lowest: float
    gains: Mapping[str, float]
    measured: Mapping[str, Mapping[str, float]]
    num_seeds: int
    seconds: float


def collect(name: str, results: Results) -> TokenRow | str:
    """The table's row from stored runs, or why there is none."""
    reason = why_left_out(name)
    if reason:
        return reason
    parts = dict(runs_of(name, results, only_stored=True))
    if set(parts) != {"tuned", *CONDITIONS}:
        return "not run yet" if "tuned" not in parts or len(parts) < 2 else "not finished"
    setting: Setting = parts.pop("tuned")
    failed = [one["failed"] for records in parts.values() for one in records if "failed" in one]
    if failed:
        return str(failed[0])
    every = torch.tensor([one["measured"]["gains"] for one in parts["mixed"]])
    numbers = {
        condition: {
            key: sum(one["measured"][key] for one in records) / len(records)
            for key in records[0]["measured"]
            if key != "gains"
        }
        for condition, records in parts.items()
    }
    return TokenRow(
        name=name,
        setting=setting,
        gain=bootstrap_mean(every.mean(dim=0)),
        lowest=float(every.mean(dim=1).min()),
        gains={condition: values["gain"] for condition, values in numbers.items()},
        measured=numbers,
        num_seeds=min(len(records) for records in parts.values()),
        seconds=sum(one["seconds"] for one in parts["mixed"]) / len(parts["mixed"]),
    )


@functools.cache
def base() -> Measured:
    """The base on the test prompts."""
    return base_measured("test")
