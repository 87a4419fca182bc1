"""Runs of image methods in the toy world by the real training loop: what each gains, and what it costs.

A run is described by an `Experiment`; its outcome is a record, stored by what it depends on (`Results`). Runs
on seed 0 choose among a method's settings; seeds 1, 2, ... are measured, each with its own data, held-out
prompts and noise.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from mmalign.errors import MmalignError
from mmalign.toy.comparison import AXES
from mmalign.toy.guide_results import Results
from mmalign.toy.image_runs import paint_held_out, panel_tail
from mmalign.toy.method_data import DataSpec, night_scores, write_data
from mmalign.toy.method_settings import METHODS, NUM_PROMPTS, MethodSetting

if TYPE_CHECKING:
    from mmalign.diffusion.family import ImageModel
    from mmalign.toy.image_reward import Score
    from mmalign.train.config import ResolvedRun

__all__ = ["TUNING_SEED", "Experiment", "Worlds", "best_try", "perform"]

TUNING_SEED = 0


@dataclass(frozen=True)
class Experiment:
    """One run.

    Args:
        name: line of `METHODS`.
        number: which of its tries.
        seed: of data, prompts, order, adapter and noise.
        data: what it learns from; None takes the line's.
        steps: optimiser steps; None takes the line's.
        extra: settings over the try's, for the sweeps of claims.
    """

    name: str
    number: int
    seed: int
    data: DataSpec | None = None
    steps: int | None = None
    extra: tuple[tuple[str, Any], ...] = ()

    @property
    def setting(self) -> MethodSetting:
        """The line's."""
        return METHODS[self.name]

    @property
    def learns_from(self) -> DataSpec:
        """Its data."""
        return self.data or self.setting.data

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting over the toy recipe, by `section.key`."""
        found = {**self.setting.settings(self.number), **dict(self.extra)}
        if self.steps is not None:
            found["train.steps"] = self.steps
        return {**found, "train.warmup_steps": found["train.steps"] // 2}

    def what(self) -> dict[str, Any]:
        """Everything the outcome depends on."""
        return {
            "method": self.setting.method,
            "view": self.setting.view,
            "reward": self.setting.reward,
            "settings": self.settings,
            "data": asdict(self.learns_from),
            "seed": self.seed,
            "prompts": NUM_PROMPTS,
        }


class Worlds:
    """Data on disk and encoded, and the base's rewards, per seed; painted when first needed.

    Args:
        folder: for everything.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready: set[tuple[int, str]] = set()
        self._base: dict[tuple[int, str], list[Score]] = {}

    def run(self, experiment: Experiment) -> "ResolvedRun":
        """The experiment as a resolved run: the demo's recipe, this method, these settings."""
        import yaml

        from mmalign.toy.demo import recipe_path
        from mmalign.toy.image_demo import RECIPE
        from mmalign.toy.image_pipeline import ASSETS
        from mmalign.train.config import resolve

        home = self._folder / f"seed-{experiment.seed}"
        content = yaml.safe_load(recipe_path(RECIPE).read_text(encoding="utf-8"))
        content |= {"method": experiment.setting.method, "objective": {}}
        content["model"]["source"] = str(ASSETS)
        content["data"]["source"] = {"path": str(home / f"{experiment.learns_from.name}.parquet")}
        content["image"]["cache"] = str(home / "cache")
        content["train"] |= {"output": str(self._folder / "run"), "seed": experiment.seed}
        content["guard"] = {"action": "off"}
        if experiment.setting.reward != "none":
            content["rollout"] = {"reward": experiment.setting.reward}
        for name, value in experiment.settings.items():
            _put(content, name, value)
        return resolve(content)

    def prepare(self, experiment: Experiment) -> None:
        """Paint and encode what the experiment learns from, unless that was done."""
        from mmalign.data.readers import open_rows
        from mmalign.toy.encoding import cache_latents

        spec, home = experiment.learns_from, self._folder / f"seed-{experiment.seed}"
        if (experiment.seed, spec.name) in self._ready:
            return
        write_data(spec, home, experiment.seed)
        run = self.run(experiment)
        model = self.bare_model(run)
        if (experiment.seed, spec.taste) not in self._base:
            self._base[experiment.seed, spec.taste] = scores_of(model, spec.taste, experiment.seed)
        cache_latents(model, open_rows(run.config.data), home / "cache")
        self._ready.add((experiment.seed, spec.name))

    def bare_model(self, run: "ResolvedRun") -> "ImageModel":
        """The base without a cache, to encode and to sample with."""
        from mmalign.train.parts import load_model

        image = run.config.image.model_copy(update={"cache": None})
        config = run.config.model_copy(update={"image": image})
        return cast("ImageModel", load_model(replace(run, config=config), torch.device("cpu")))

    def base(self, experiment: Experiment) -> "list[Score]":
        """The base's scores of the seed's held-out prompts."""
        return self._base[experiment.seed, experiment.learns_from.taste]


def _put(content: dict[str, Any], name: str, value: Any) -> None:
    section, _, key = name.rpartition(".")
    inner = content
    for part in section.split("."):
        inner = inner.setdefault(part, {})
    inner[key] = value


def scores_of(model: "ImageModel", taste: str, seed: int) -> "list[Score]":
    """Scores of what the model paints for the seed's held-out prompts."""
    from mmalign.toy.image_reward import score_images
    from mmalign.toy.scenes import held_out_prompts

    prompts = held_out_prompts(NUM_PROMPTS, seed=seed)
    pictures = paint_held_out(model, prompts, seed=seed)
    return (night_scores if taste == "night" else score_images)(pictures, prompts)


@dataclass
class Counted:
    """Rows that went through a network, with and without a graph."""

    rows: int = 0
    trained_rows: int = 0


@contextmanager
def counting(network: nn.Module) -> Iterator[Counted]:
    """Count the rows of every call of the network inside."""
    counted = Counted()

    def see(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        sample = arguments[0] if arguments else keywords["sample"]
        counted.rows += len(sample)
        counted.trained_rows += len(sample) if torch.is_grad_enabled() else 0

    handle = network.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield counted
    finally:
        handle.remove()


def _train(experiment: Experiment, worlds: Worlds) -> dict[str, Any]:
    """Train, paint the held-out prompts, and say what came of it and what it cost."""
    from mmalign.train.parts import load_model
    from mmalign.train.run import train

    run = worlds.run(experiment)
    device = torch.device("cpu")
    if experiment.setting.view == "flow":
        from mmalign.toy.flow_view import load_flow_view

        model: Any = load_flow_view(run, device)
    else:
        model = load_model(run, device)
    with TemporaryDirectory(prefix="run-", dir=Path(run.config.train.output).parent) as output:
        config = run.config.model_copy(
            update={"train": run.config.train.model_copy(update={"output": output})}
        )
        run = replace(run, config=config)
        started = time.process_time()
        with counting(model.bare_network) as counted:
            result = train(run, model=model, reward=_reward(experiment.setting.reward))
        seconds = time.process_time() - started
    if not result.finished:  # a signal: half a run is no result
        raise KeyboardInterrupt
    items = result.steps * run.config.train.batch_size * run.config.train.accumulation
    scores = scores_of(model, experiment.learns_from.taste, experiment.seed)
    base = worlds.base(experiment)
    return {
        "gains": [round(new.total - old.total, 4) for new, old in zip(scores, base, strict=True)],
        "measured": _means(scores),
        "base": _means(base),
        "chosen": panel_tail(result.records, "error/relative_chosen"),
        "rejected": panel_tail(result.records, "error/relative_rejected"),
        "steps": result.steps,
        "items": items,
        "rows_per_item": round(counted.rows / items, 2),
        "trained_rows_per_item": round(counted.trained_rows / items, 2),
        "seconds": round(seconds, 1),
    }


def _means(scores: "Sequence[Score]") -> dict[str, float]:
    return {axis: round(sum(getattr(one, axis) for one in scores) / len(scores), 4) for axis in AXES}


def _reward(name: str) -> Any:
    if name == "exact":
        from mmalign.toy.reward_functions import ExactReward

        return ExactReward()
    if name == "step_aware":
        from mmalign import rewards
        from mmalign.rewards.on_pixels import OnPixels
        from mmalign.toy.step_aware import ASSETS

        return OnPixels(rewards.load("step_aware", weights=str(ASSETS), device="cpu"))
    return None


def perform(
    experiments: Sequence[Experiment],
    results: Results,
    *,
    until: float,
    worlds: Worlds,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Make the runs that are missing, in order.

    Args:
        experiments: what to run.
        results: where records are found and put.
        until: `time.monotonic()` after which no run is started.
        worlds: data.
        tell: called with a line per run.
    """
    for experiment in experiments:
        if results.find(experiment.what()) is not None:
            continue
        if time.monotonic() > until:
            return
        found = results.get(experiment.what(), partial(_record, experiment, worlds))
        tell(describe(experiment, found))


def _record(experiment: Experiment, worlds: Worlds) -> dict[str, Any]:
    try:
        worlds.prepare(experiment)
        return _train(experiment, worlds)
    except MmalignError as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def describe(experiment: Experiment, found: Mapping[str, Any]) -> str:
    """A run and its outcome in one line."""
    what = f"{experiment.name} try {experiment.number} seed {experiment.seed}"
    if experiment.data is not None:
        what += f" on {experiment.data.name}"
    if experiment.steps is not None:
        what += f", {experiment.steps} steps"
    if "failed" in found:
        return f"{what}: {found['failed']}"
    gain = sum(found["gains"]) / len(found["gains"])
    axes = " ".join(f"{axis} {found['base'][axis]:.2f}>{found['measured'][axis]:.2f}" for axis in AXES[1:])
    return (
        f"{what}: gain {gain:+.3f} ({axes}; errors {found['chosen']} {found['rejected']}; "
        f"{found['rows_per_item']} rows per item, {found['seconds']:.0f} s)"
    )


def best_try(name: str, results: Results, num_tries: int | None = None) -> int | None:
    """The try with the largest mean gain on the tuning seed; None if none was run with success."""
    best: tuple[float, int] | None = None
    tries = METHODS[name].tries if name in METHODS else ()
    for number in range(len(tries) if num_tries is None else min(num_tries, len(tries))):
        found = results.find(Experiment(name, number, TUNING_SEED).what())
        if found is not None and "gains" in found:
            gain = sum(found["gains"]) / len(found["gains"])
            if best is None or gain > best[0]:
                best = (gain, number)
    return None if best is None else best[1]
