"""How long a step takes, part by part, from what was counted and what a device can do."""

from collections.abc import Mapping
from dataclasses import dataclass

from mmalign.train.config import ResolvedRun
from mmalign.train.parts import reference_kind
from mmalign.train.plan import layout_of
from mmalign.train.planning.counted import Counted
from mmalign.train.planning.counting import num_candidates, num_passes
from mmalign.train.planning.devices import Device, seconds_of
from mmalign.train.planning.exchange import exchanged
from mmalign.train.planning.launches import SINGLE, Launch
from mmalign.train.planning.trace import Kernel

__all__ = [
    "COMMUNICATION",
    "StepTime",
    "encoding_seconds",
    "reference_seconds",
    "scores_reference",
    "step_time",
]

_UPDATE_BYTES = {"adamw": 28.0, "adamw_8bit": 16.0, "adafactor": 64.0}
"""Bytes that an update reads and writes per trained weight: weight, gradient, state and temporaries."""

_UPDATE_KERNELS = {"adamw": 0.05, "adamw_8bit": 2.0, "adafactor": 18.0}
"""Operations per trained tensor; adamw updates dozens of tensors in one."""

_ONE_BY_ONE = 2.0
"""Least operations per trained tensor on a CPU, whose kernels take one each: clipping, update."""

COMMUNICATION = "communication"
"""Part of a step's time, none of it behind computing."""

_CLIP_BYTES = 12.0
"""Bytes per trained weight: a norm reads the gradient, a factor reads and writes it."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step on one device.

    Args:
        parts: of the whole step, accumulation included.
        flops: of the whole step, on one device.
        pairs: prompts of the step on all devices.
    """

    parts: Mapping[str, float]
    flops: float
    pairs: int

    @property
    def seconds(self) -> float:
        """Of the step."""
        return sum(self.parts.values())

    @property
    def hidden_seconds(self) -> float:
        """Of the step, were all that is sent hidden behind computing, or all computing behind it."""
        sent = self.parts.get(COMMUNICATION, 0.0)
        return max(self.seconds - sent, sent)

    @property
    def pairs_per_second(self) -> float:
        """Of all devices together, were they never waiting for each other."""
        return self.pairs / self.seconds


def encoding_seconds(run: ResolvedRun, counted: Counted, device: Device) -> float:
    """Seconds that the VAE and the text encoders take for one prompt with its candidates."""
    encoding = counted.encoding
    if encoding is None:
        return 0.0
    media = 0.0
    if encoding.media is not None:
        media = seconds_of(encoding.media.kernels, device) * num_candidates(run) / encoding.at_once
    return media + seconds_of(encoding.text, device)


def reference_seconds(run: ResolvedRun, counted: Counted, device: Device) -> float:
    """Seconds that the reference takes to score one prompt's candidates."""
    total = seconds_of(counted.reference.kernels, device) * num_passes(run, counted)
    return total / run.config.train.batch_size


def step_time(run: ResolvedRun, counted: Counted, device: Device, launch: Launch = SINGLE) -> StepTime:
    """How long an optimiser step takes on a device; loading rows is not in it.

    What processes send each other is, where the device's link is known, as if nothing else went on meanwhile.
    """
    train = run.config.train
    micro, passes = train.accumulation, num_passes(run, counted)
    prompts = micro * train.batch_size
    parts: dict[str, float] = {}
    flops = 0.0
    encoding = counted.encoding
    if encoding is not None and not run.config.media.cache:
        parts["encoding"] = prompts * encoding_seconds(run, counted, device)
        media = 0 if encoding.media is None else encoding.media.flops
        flops += prompts * num_candidates(run) * media / encoding.at_once
        flops += prompts * sum(kernel.flops for kernel in encoding.text)
    if counted.once:
        parts["vision tower"] = micro * seconds_of(counted.once, device)
        flops += micro * sum(kernel.flops for kernel in counted.once)
    if scores_reference(run):
        parts["reference"] = prompts * reference_seconds(run, counted, device)
        flops += micro * passes * counted.reference.flops
    if run.config.likelihood.kind == "inversion":
        again = _inversion_passes(run)
        parts["inversion"] = again * prompts * reference_seconds(run, counted, device)
        flops += again * micro * passes * counted.reference.flops
    forward = [kernel for kernel in counted.policy.kernels if kernel.moment == "forward"]
    backward = [kernel for kernel in counted.policy.kernels if kernel.moment == "backward"]
    once_more = passes - 1  # a split scores all parts but one without gradients first
    parts["policy, forward"] = micro * (passes + once_more) * seconds_of(forward, device)
    parts["policy, backward"] = micro * passes * seconds_of(backward, device)
    flops += micro * (passes * counted.policy.flops + once_more * counted.policy.flops_of("forward"))
    parts["update"] = seconds_of(_update_kernels(run, counted, launch, device), device)
    if device.link is not None and launch.processes > 1:
        again = _inversion_passes(run) if run.config.likelihood.kind == "inversion" else 0.0
        sent = exchanged(run, counted, launch, references=scores_reference(run) + again)
        parts[COMMUNICATION] = sent.seconds(device.link, launch.processes, per_machine=launch.per_machine)
    return StepTime(parts, flops, layout_of(run, launch).effective_batch)


def scores_reference(run: ResolvedRun) -> bool:
    """Whether a step runs a reference."""
    return reference_kind(run) not in ("none", "stored", "pool")


def _inversion_passes(run: ResolvedRun) -> float:
    """Forward passes of an inversion: on average half of its steps lie below the drawn timestep."""
    settings = run.config.likelihood.inversion
    return settings.num_steps / 2 * (2 if settings.method == "renoise" else 1) if settings.num_steps else 0.0


def _update_kernels(run: ResolvedRun, counted: Counted, launch: Launch, device: Device) -> list[Kernel]:
    """Clipping and the update, as operations of equal size; of a part where the optimiser is spread."""
    optimizer = run.config.train.optimizer or "adamw"
    weights, tensors = counted.trainables.count, len(counted.trainables.parameters)
    each = max(_UPDATE_KERNELS[optimizer], 0.0 if device.overlaps else _ONE_BY_ONE)
    number = max(1, round(tensors * each))
    weights = -(-weights // launch.processes) if launch.spreads("optimiser") else weights
    moved = round(weights * (_UPDATE_BYTES[optimizer] + _CLIP_BYTES) / number)
    return [Kernel(0, moved, half=False, moment="backward")] * number
