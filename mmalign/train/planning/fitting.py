"""Settings with which a run fits a device: changes one after the other, cheapest first, none in vain.

What costs nothing goes first (what is frozen is computed once), then what costs time and no bit of the
result, then what changes numbers a little; LoRA in the place of the whole network changes what is trained and
is taken only where it is allowed. In the end every change is tried without: what later ones have made
needless goes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign.train.config import ResolvedRun
from mmalign.train.parts import reference_kind
from mmalign.train.planning.choices import refusal
from mmalign.train.planning.counted import Counted
from mmalign.train.planning.counting import count
from mmalign.train.planning.devices import Device
from mmalign.train.planning.memory import Peak, peak_of
from mmalign.train.planning.run_plan import Variant, device_for, device_type_of
from mmalign.train.planning.timing import StepTime, step_time
from mmalign.train.rollout_memory import rows_with_gradient
from mmalign.train.rollouts import is_online
from mmalign.train.token_sections import tokens_of

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
    """

    name: str
    overrides: tuple[str, ...]
    saved: int
    slower: float
    remark: str

    def as_dict(self) -> dict[str, Any]:
        """As written in JSON."""
        return {
            "name": self.name,
            "overrides": list(self.overrides),
            "saved_bytes": self.saved,
            "slower": self.slower,
            "remark": self.remark,
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
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def overrides(self) -> list[str]:
        """Of all steps; of a setting that several change, the last word."""
        last = {word.partition("=")[0]: word for step in self.steps for word in step.overrides}
        return list(last.values())


@dataclass(frozen=True)
class _Rung:
    """A change that may be tried.

    Args:
        name: what it is.
        overrides: for a run as it stands; () where it has it already, or has no use for it.
        remark: what it does to the result.
        repeats: whether it may be taken again.
    """

    name: str
    overrides: Callable[[ResolvedRun], Sequence[str]]
    remark: str = "same numbers"
    repeats: bool = False


def _cached(run: ResolvedRun) -> Sequence[str]:
    wanted = tokens_of(run.config) is None and not is_online(run) and not run.config.media.cache
    return [f"{run.config.media_name}.cache=cache"] if wanted else []


def _without_copy(run: ResolvedRun) -> Sequence[str]:
    if reference_kind(run) != "frozen" or is_online(run):
        return []
    return ["reference.kind=auto" if run.config.adapter.kind == "lora" else "reference.kind=stored"]


def _offloaded_copy(run: ResolvedRun) -> Sequence[str]:
    wanted = reference_kind(run) == "frozen" and not run.config.reference.offload
    return ["reference.offload=true"] if wanted else []


def _offloaded_encoders(run: ResolvedRun) -> Sequence[str]:
    settings = run.config.model
    wanted = tokens_of(run.config) is None and not run.config.media.cache and not settings.offload_encoders
    return ["model.offload_encoders=true"] if wanted else []


def _halved(run: ResolvedRun) -> Sequence[str]:
    train = run.config.train
    if train.batch_size == 1 or train.batch_size % 2:
        return ["train.batch_size=1", f"train.accumulation={train.accumulation * train.batch_size}"] * (
            train.batch_size > 1
        )
    return [f"train.batch_size={train.batch_size // 2}", f"train.accumulation={train.accumulation * 2}"]


def _recomputed(run: ResolvedRun) -> Sequence[str]:
    is_whole = run.config.model.gradient_checkpointing is True
    return [] if is_whole else ["model.gradient_checkpointing=true"]


def _recomputed_in_part(run: ResolvedRun) -> Sequence[str]:
    return [] if run.config.model.gradient_checkpointing else ["model.gradient_checkpointing=selective"]


def _split(run: ResolvedRun) -> Sequence[str]:
    wanted = tokens_of(run.config) is None and not run.config.train.split_backward
    return ["train.split_backward=true"] if wanted and rows_with_gradient(run) > 1 else []


def _narrow(run: ResolvedRun) -> Sequence[str]:
    return ["train.mixed_precision=bf16"] if run.config.train.mixed_precision == "no" else []


def _eight_bits(run: ResolvedRun) -> Sequence[str]:
    return ["train.optimizer=adamw_8bit"] if run.config.train.optimizer == "adamw" else []


def _factored(run: ResolvedRun) -> Sequence[str]:
    wanted = run.config.train.optimizer in ("adamw", "adamw_8bit")
    return ["train.optimizer=adafactor"] if wanted and run.config.adapter.kind == "none" else []


def _one_byte(run: ResolvedRun) -> Sequence[str]:
    wanted = tokens_of(run.config) is None and run.config.adapter.kind == "lora"
    return ["model.quantization=int8"] if wanted and run.config.model.quantization is None else []


def _four_bits(run: ResolvedRun) -> Sequence[str]:
    before = {None} if tokens_of(run.config) is not None else {None, "int8"}
    wanted = run.config.adapter.kind == "lora" and run.config.model.quantization in before
    return ["model.quantization=nf4"] if wanted else []


def _lora(run: ResolvedRun) -> Sequence[str]:
    return ["adapter.kind=lora", "reference.kind=auto"] if run.config.adapter.kind == "none" else []


_LADDER: tuple[_Rung, ...] = (
    _Rung("latents and texts from a cache", _cached, "same numbers; needs `mmalign data cache` first"),
    _Rung(
        "reference without a second copy of the weights",
        _without_copy,
        "same numbers; draws are a fixed bank",
    ),
    _Rung("encoders on the CPU between uses", _offloaded_encoders),
    _Rung("half the micro-batch, twice the micro-steps", _halved, "same batch", repeats=True),
    _Rung("recompute activations that cost no products", _recomputed_in_part),
    _Rung("recompute activations", _recomputed),
    _Rung("one candidate at a time in the backward pass", _split),
    _Rung("reference copy on the CPU between uses", _offloaded_copy),
    _Rung("half precision", _narrow, "changes rounding"),
    _Rung("optimiser state in 8 bits", _eight_bits, "changes rounding of the state; needs bitsandbytes"),
    _Rung("factored optimiser state", _factored, "another optimiser: no first moment"),
    _Rung("frozen weights in 8 bits", _one_byte, "changes the base model's numbers by their rounding"),
    _Rung("frozen weights in 4 bits", _four_bits, "changes the base model's numbers; needs bitsandbytes"),
)
_LAST = _Rung("LoRA in the place of the whole network", _lora, "another set of trained weights")


class _Counter:
    """Counts runs, each setting once: what changes no shape is not counted again."""

    def __init__(self, device: Device, reward_bytes: int | None) -> None:
        self.device, self.reward_bytes = device, reward_bytes
        self._known: dict[str, Counted] = {}

    def __call__(self, run: ResolvedRun) -> tuple[Peak, StepTime]:
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
        return peak_of(run, counted, device), step_time(run, counted, device)


def fit_run(
    run: ResolvedRun,
    device: Device,
    *,
    variant: Variant,
    limit: int,
    allow_lora: bool = False,
    reward_bytes: int | None = None,
    on_step: Callable[[str], object] = lambda _: None,
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

    Raises:
        ConfigError: the run as it stands cannot be counted.
    """
    asked, limit = limit, min(limit, device.memory or limit)
    counter = _Counter(device, reward_bytes)
    before, time = counter(run)
    steps: list[Step] = []
    refused: dict[str, str] = {}
    current, peak = run, before
    for rung in (*_LADDER, *([_LAST] if allow_lora else [])):
        while peak.total > limit:
            words = list(rung.overrides(current))
            if not words:
                break
            taken = [*(word for step in steps for word in step.overrides), *words]
            reason = refusal(variant, taken)
            if reason:
                refused[rung.name] = reason
                break
            on_step(rung.name)
            found = variant(taken)
            after, slower = counter(found)
            if after.total < peak.total:
                cost = _per_pair(slower) / _per_pair(time) - 1
                steps.append(Step(rung.name, tuple(words), peak.total - after.total, cost, rung.remark))
                current, peak, time = found, after, slower
            else:  # once more from here would be the same again
                break
            if not rung.repeats:
                break
    if peak.total <= limit:
        steps = _pruned(steps, run, counter, variant, limit)
    current = variant([word for step in steps for word in step.overrides]) if steps else run
    peak, time = counter(current)
    return Fit(peak.total <= limit, limit, asked, tuple(steps), before, peak, time, current, refused)


def _per_pair(time: StepTime) -> float:
    return time.seconds / time.pairs


def _pruned(
    steps: list[Step], run: ResolvedRun, counter: _Counter, variant: Variant, limit: int
) -> list[Step]:
    """The steps without those that later ones have made needless, measured anew in their order."""
    kept = list(steps)
    for step in steps:
        if step.slower <= 0 or len(kept) == 1:  # what saves time stays
            continue
        rest = [other for other in kept if other is not step]
        words = [word for other in rest for word in other.overrides]
        if not refusal(variant, words) and counter(variant(words))[0].total <= limit:
            kept = rest
    found: list[Step] = []
    peak, time = counter(run)
    for step in kept:
        current = variant([*(word for done in found for word in done.overrides), *step.overrides])
        after, slower = counter(current)
        cost = _per_pair(slower) / _per_pair(time) - 1
        found.append(Step(step.name, step.overrides, peak.total - after.total, cost, step.remark))
        peak, time = after, slower
    return found
