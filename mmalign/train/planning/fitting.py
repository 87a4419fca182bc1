"""Settings with which a run fits a device: changes one after the other, cheapest first, none in vain.

In the end every change that was taken is tried without: what later ones have made needless goes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmalign.train.config import ResolvedRun
from mmalign.train.distributed.modes import require_fitting
from mmalign.train.parts import reference_kind
from mmalign.train.planning.choices import refusal
from mmalign.train.planning.counted import Counted
from mmalign.train.planning.counting import count
from mmalign.train.planning.devices import Device
from mmalign.train.planning.ladder import LADDER, LORA
from mmalign.train.planning.launches import SINGLE, Launch
from mmalign.train.planning.memory import Peak, peak_of
from mmalign.train.planning.run_plan import Variant, device_for, device_type_of
from mmalign.train.planning.timing import StepTime, step_time
from mmalign.train.rollout_memory import rows_with_gradient

__all__ = ["Fit", "Step", "fit_run"]


@dataclass(frozen=True)
class Step:
    """One change of settings.

    Args:
        name: what it is.
        overrides: `section.key=value`.
        saved: bytes of the highest memory, against the settings before it.
        slower: seconds per pair after it over those before, less 1; negative is faster.
        remark: what it does to the result.
        launch: that takes the place of the one before; "" where it stays.
    """

    name: str
    overrides: tuple[str, ...]
    saved: int
    slower: float
    remark: str
    launch: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As written in JSON."""
        return {
            "name": self.name,
            "overrides": list(self.overrides),
            "saved_bytes": self.saved,
            "slower": self.slower,
            "remark": self.remark,
            "launch": self.launch,
        }


@dataclass(frozen=True)
class Fit:
    """What was found.

    Args:
        fits: whether the run with these changes is within the limit.
        limit: bytes: what was asked for, or the device's memory where that is less.
        asked: bytes that were asked for.
        steps: in order.
        before: highest memory as the run stands.
        after: with the changes.
        time: of an optimiser step with the changes.
        run: with the changes.
        launch: with the changes.
        refused: changes that do not go with this run, and why.
    """

    fits: bool
    limit: int
    asked: int
    steps: tuple[Step, ...]
    before: Peak
    after: Peak
    time: StepTime
    run: ResolvedRun
    launch: Launch = SINGLE
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def overrides(self) -> list[str]:
        """Of all steps; of a setting that several change, the last word."""
        last = {word.partition("=")[0]: word for step in self.steps for word in step.overrides}
        return list(last.values())


class _Counter:
    """Counts runs, each setting once: what changes no shape is not counted again."""

    def __init__(self, device: Device, reward_bytes: int | None) -> None:
        self.device, self.reward_bytes = device, reward_bytes
        self._known: dict[str, Counted] = {}

    def __call__(self, run: ResolvedRun, launch: Launch) -> tuple[Peak, StepTime]:
        config = run.config
        media = (
            getattr(config, config.media_name).model_dump(mode="json")
            if hasattr(config, config.media_name)
            else {}
        )
        key = json.dumps(
            [
                config.model.model_dump(mode="json", exclude={"offload_encoders"}),
                config.adapter.model_dump(mode="json"),
                config.train.mixed_precision,
                config.train.batch_size,
                rows_with_gradient(run),
                {name: value for name, value in media.items() if name != "cache"},
            ],
            default=str,
        )
        if key not in self._known:
            self._known[key] = count(
                run, device_type=device_type_of(self.device), reward_bytes=self.reward_bytes
            )
        counted = self._known[key]
        device = device_for(run, self.device)
        return peak_of(run, counted, device, launch), step_time(run, counted, device, launch)


@dataclass(frozen=True)
class _Search:
    """What a run is tried with.

    Args:
        variant: makes the same run with further settings.
        counter: of memory and time.
        launch: that the run is started with.
    """

    variant: Variant
    counter: _Counter
    launch: Launch

    def launched(self, steps: Sequence[Step]) -> Launch:
        """The launch after these steps."""
        names = [step.launch for step in steps if step.launch]
        return replace(self.launch, name=names[-1]) if names else self.launch

    def made(self, steps: Sequence[Step]) -> tuple[ResolvedRun, Launch]:
        """The run with these steps.

        Raises:
            ConfigError: they do not go together, or not with their launch.
        """
        launch = self.launched(steps)
        run = self.variant([word for step in steps for word in step.overrides])
        require_fitting(run, launch.mode, reference_kind(run))
        return run, launch

    def refusal(self, steps: Sequence[Step]) -> str:
        """Why these steps cannot be taken, in one line; "" where they can."""

        def attempt(_: Sequence[str]) -> ResolvedRun:
            return self.made(steps)[0]

        return refusal(attempt, [])


def fit_run(
    run: ResolvedRun,
    device: Device,
    *,
    variant: Variant,
    limit: int,
    allow_lora: bool = False,
    reward_bytes: int | None = None,
    on_step: Callable[[str], object] = lambda _: None,
    launch: Launch = SINGLE,
) -> Fit:
    """Settings with which a run fits so many bytes of a device.

    Args:
        run: resolved.
        device: whose speed is reckoned with.
        variant: makes the same run with further settings.
        limit: bytes, margins included; more than the device has counts as what it has.
        allow_lora: whether LoRA may take the place of training the whole network.
        reward_bytes: of what scores the run's samples, as in `plan_run`.
        on_step: told what is tried.
        launch: how processes share the run; FSDP2 may take the place of DDP.

    Raises:
        ConfigError: the run as it stands cannot be counted.
    """
    asked, limit = limit, min(limit, device.memory or limit)
    search = _Search(variant, _Counter(device, reward_bytes), launch)
    before, time = search.counter(run, launch)
    steps: list[Step] = []
    refused: dict[str, str] = {}
    current, peak = run, before
    for rung in (*LADDER, *([LORA] if allow_lora else [])):
        while peak.total > limit:
            words = tuple(rung.overrides(current))
            moves = bool(rung.launch) and search.launched(steps).name == "ddp"
            if not words and not moves:
                break
            step = Step(rung.name, words, 0, 0.0, rung.remark, rung.launch)
            reason = search.refusal([*steps, step])
            if reason:
                refused[rung.name] = reason
                break
            on_step(rung.name)
            found, under = search.made([*steps, step])
            after, slower = search.counter(found, under)
            if after.total >= peak.total:  # once more from here would be the same again
                break
            steps.append(_measured(step, peak, after, time, slower))
            current, peak, time = found, after, slower
            if not rung.repeats:
                break
    if peak.total <= limit:
        steps = _pruned(steps, run, search, limit)
    current, under = search.made(steps) if steps else (run, launch)
    peak, time = search.counter(current, under)
    return Fit(
        fits=peak.total <= limit,
        limit=limit,
        asked=asked,
        steps=tuple(steps),
        before=before,
        after=peak,
        time=time,
        run=current,
        launch=under,
        refused=refused,
    )


def _measured(step: Step, before: Peak, after: Peak, time: StepTime, slower: StepTime) -> Step:
    cost = _per_pair(slower) / _per_pair(time) - 1
    return replace(step, saved=before.total - after.total, slower=cost)


def _per_pair(time: StepTime) -> float:
    return time.seconds / time.pairs


def _pruned(steps: list[Step], run: ResolvedRun, search: _Search, limit: int) -> list[Step]:
    """The steps without those that later ones have made needless, measured anew in their order."""
    kept = list(steps)
    for step in steps:
        if step.slower <= 0 or len(kept) == 1:  # what saves time stays
            continue
        rest = [other for other in kept if other is not step]
        if not search.refusal(rest) and search.counter(*search.made(rest))[0].total <= limit:
            kept = rest
    found: list[Step] = []
    peak, time = search.counter(run, search.launch)
    for step in kept:
        after, slower = search.counter(*search.made([*found, step]))
        found.append(_measured(step, peak, after, time, slower))
        peak, time = after, slower
    return found
