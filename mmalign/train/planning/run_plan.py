"""The plan of a run: its highest memory, its step, its disk and its choices, on one device."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mmalign.train.config import ResolvedRun
from mmalign.train.distributed.modes import require_fitting
from mmalign.train.parts import reference_kind
from mmalign.train.plan import MemoryItem, layout_of
from mmalign.train.planning.choices import Choice, choices_of
from mmalign.train.planning.counted import Counted
from mmalign.train.planning.counting import count, num_candidates
from mmalign.train.planning.devices import Device
from mmalign.train.planning.launches import Launch
from mmalign.train.planning.memory import Peak, peak_of
from mmalign.train.planning.timing import COMMUNICATION, StepTime, step_time
from mmalign.train.rollouts import is_online
from mmalign.train.steps import with_steps
from mmalign.train.token_plan import opened_rows

__all__ = ["RunPlan", "Variant", "device_for", "plan_run"]

Variant = Callable[[Sequence[str]], ResolvedRun]
"""The same run with further `section.key=value`; raises ConfigError where they do not go together."""

_LATENT_BYTES = 2
"""Bytes of a number in a cache: float16."""


@dataclass(frozen=True)
class RunPlan:
    """What a run needs on a device, and how long it takes.

    Args:
        run: with the steps that follow from its data, where those are at hand.
        device: the planned one; each process has one.
        launch: how processes share the run.
        counted: on shapes.
        peak: highest memory, of the process with the largest parts.
        time: of an optimiser step.
        num_rows: of the data; None where they cannot be opened here.
        disk: bytes that are written besides checkpoints, or would be with the other choice.
        choices: what else could be done about reference and encoders, and what pays.
        notes: what was assumed.
    """

    run: ResolvedRun
    device: Device
    launch: Launch
    counted: Counted
    peak: Peak
    time: StepTime
    num_rows: int | None
    disk: tuple[MemoryItem, ...]
    choices: tuple[Choice, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether the highest memory, margins included, is within the device's."""
        return self.device.memory is None or self.peak.total <= self.device.memory

    @property
    def total_seconds(self) -> float | None:
        """Of all optimiser steps; None where their number is not known."""
        steps = self.run.config.train.steps
        return None if steps is None else steps * self.time.seconds

    def as_dict(self) -> dict[str, Any]:
        """Everything that is printed, as numbers: bytes, seconds, FLOPs."""
        return {
            "device": {
                "name": self.device.name,
                "memory": self.device.memory,
                "half_flops": self.device.half,
                "full_flops": self.device.full,
                "bandwidth": self.device.bandwidth,
                "share_of_products": self.device.products,
                "share_of_bandwidth": self.device.traffic,
                "source": self.device.source,
                "link": None if self.device.link is None else asdict(self.device.link),
            },
            "launch": {"name": self.launch.name, "processes": self.launch.processes},
            "memory": {
                "components": {item.component: item.num_bytes for item in self.peak.items},
                "stage": self.peak.stage,
                "stages": dict(self.peak.stages),
                "tensors": self.peak.tensors,
                "margin": self.peak.margin,
                "total": self.peak.total,
                "fits": self.fits,
            },
            "step": {
                "seconds": self.time.seconds,
                "parts": dict(self.time.parts),
                "seconds_if_sending_is_hidden": self.time.hidden_seconds,
                "flops": self.time.flops,
                "pairs": self.time.pairs,
                "pairs_per_second": self.time.pairs_per_second,
                "steps": self.run.config.train.steps,
                "total_seconds": self.total_seconds,
            },
            "rows": self.num_rows,
            "trained": self.counted.trainables.count,
            "disk": {item.component: item.num_bytes for item in self.disk},
            "choices": [choice.as_dict() for choice in self.choices],
            "notes": self.notes,
        }


def plan_run(
    run: ResolvedRun,
    device: Device,
    *,
    variant: Variant | None = None,
    reward_bytes: int | None = None,
    launch: Launch | None = None,
) -> RunPlan:
    """The plan of a run on a device; no weights are read.

    Args:
        run: resolved.
        device: where it will run.
        variant: makes the same run with other settings, to see which are allowed; None: none is looked at.
        reward_bytes: of what scores the run's samples; None: none, or not known.
        launch: how processes share the run; None: as they were launched here.

    Raises:
        ConfigError: the model's settings cannot be read, an adapter fits nothing, or the run cannot be
            trained under this launch.
    """
    launch = Launch.here() if launch is None else launch
    require_fitting(run, launch.mode, reference_kind(run))
    rates = device
    device = device_for(run, rates)
    table, notes = opened_rows(run)
    num_rows = None if table is None else len(table)
    if num_rows is not None:
        run = with_steps(run, num_rows=num_rows, effective_batch=layout_of(run, launch).effective_batch)
    counted = count(run, device_type=device_type_of(device), reward_bytes=reward_bytes)
    if is_online(run):
        notes.append("time: sampling and rewards are not in it; the step trains on what is in the queue")
    if device is not rates:
        notes.append("time: train.allow_tf32=false: the rate in float32 is that without TF32")
    if run.config.model.compile != "none":
        notes.append(
            f"model.compile={run.config.model.compile}: counted as without; what it saves in time and memory "
            "is measured, not planned (docs/performance.md)"
        )
    time = step_time(run, counted, device, launch)
    return RunPlan(
        run=run,
        device=device,
        launch=launch,
        counted=counted,
        peak=peak_of(run, counted, device, launch),
        time=time,
        num_rows=num_rows,
        disk=disk_of(run, counted, num_rows),
        choices=choices_of(run, counted, device, num_rows=num_rows, variant=variant, launch=launch),
        notes=list(dict.fromkeys([*counted.notes, *notes, *_assumed(launch, device, time)])),
    )


def _assumed(launch: Launch, device: Device, time: StepTime) -> list[str]:
    """What is said of several processes."""
    notes = ["time: loading rows is not in it; nor is waiting for other devices"]
    if launch.processes == 1:
        return notes
    if device.link is None:
        return [*notes, f"time: no link is known of {device.name}: what processes send is not in it"]
    link = device.link
    notes.append(
        f"time: {COMMUNICATION} over {link.name} ({link.inside / 1e9:.4g} GB/s inside of a machine of "
        f"{launch.per_machine}, {link.between / 1e9:.4g} GB/s between machines reached), as if nothing else "
        f"went on meanwhile; a step takes {time.hidden_seconds:.3g} s where all of it is hidden"
    )
    if launch.is_zero:
        zero = launch.zero
        notes.append(
            f"memory: DeepSpeed's own limits: a bucket of {zero.bucket:.3g} gradients at most"
            + (
                f", weights of up to {zero.small:,} numbers whole, {zero.prefetch:.3g} gathered ahead, kept "
                f"for a use within {zero.reuse:.3g}; another file than ours may set others"
                if launch.name == "zero3"
                else "; another file than ours may set others"
            )
        )
    return notes


def device_for(run: ResolvedRun, device: Device) -> Device:
    """The device with the rates that the run's settings let it reach."""
    return device if run.config.train.allow_tf32 else device.without_tf32()


def device_type_of(device: Device) -> str:
    """Whose rules autocast follows there."""
    return "cpu" if device.name == "cpu" else "cuda"


def disk_of(run: ResolvedRun, counted: Counted, num_rows: int | None) -> tuple[MemoryItem, ...]:
    """Bytes of caches and of a stored reference; of one row where the number of rows is not known."""
    rows = num_rows or 1
    per = "" if num_rows else "per row: the data cannot be opened here"
    found = []
    if counted.encoding is not None and not is_online(run):
        latents = rows * num_candidates(run) * counted.encoding.numbers * _LATENT_BYTES
        name = f"cache of latents ({'used' if run.config.media.cache else 'not used'})"
        found.append(MemoryItem(name, latents, per))
        texts = rows * counted.encoding.text_numbers * _LATENT_BYTES
        found.append(MemoryItem("cache of texts, at most", texts, per or "less where prompts repeat"))
    if run.config.reference.kind == "stored":
        draws = (
            1 if counted.encoding is None else run.config.reference.draws_per_row
        )  # nothing is drawn of tokens
        draws *= run.config.likelihood.draws
        size = rows * draws * (8 + 4 * num_candidates(run))
        found.append(MemoryItem("stored reference", size, per or f"{draws} draws per row"))
    trained = counted.trained_bytes
    kept = run.config.train.keep_checkpoints + 1
    state = sum(item.num_bytes for item in _state_items(run, counted))
    found.append(
        MemoryItem("checkpoints", kept * (trained + state), f"{kept} at most, weights and optimiser")
    )
    return tuple(found)


def _state_items(run: ResolvedRun, counted: Counted) -> list[MemoryItem]:
    peak = peak_of(run, replace(counted, more=()), _ANY)  # whole: all processes write their parts
    return [item for item in peak.items if item.component.startswith("optimiser state")]


_ANY = Device("any", None, 1.0, 1.0, 1.0)
