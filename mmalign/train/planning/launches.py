"""How a launch shares a run between processes, and how much of every weight one of them then holds."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from torch import Tensor

from mmalign.errors import ConfigError, explain, unknown_name
from mmalign.train.launch import LAUNCHES

if TYPE_CHECKING:
    from mmalign.train.distributed.modes import Mode

__all__ = ["SINGLE", "Launch", "Part", "ZeroLimits", "launch_of"]

Part = Literal["weights", "gradients", "optimiser"]

_SPREADS: Mapping[str, frozenset[Part]] = {
    "single": frozenset(),
    "ddp": frozenset(),
    "zero1": frozenset({"optimiser"}),
    "zero2": frozenset({"optimiser", "gradients"}),
    "zero3": frozenset({"optimiser", "gradients", "weights"}),
    "fsdp2": frozenset({"optimiser", "gradients", "weights"}),
    "fsdp2_keep": frozenset({"optimiser", "gradients", "weights"}),
}
"""What processes hold parts of, by launch."""


@dataclass(frozen=True)
class ZeroLimits:
    """Settings of DeepSpeed that decide about memory, in numbers of elements.

    Args:
        bucket: `reduce_bucket_size`: of gradients that are reduced together.
        small: `stage3_param_persistence_threshold`: weights that stay whole.
        reuse: `stage3_max_reuse_distance`: whole weights stay for a use that is as near as that.
        prefetch: `stage3_prefetch_bucket_size`: gathered before it is needed.

    Source of the defaults: deepspeed 0.19, `runtime/zero/config.py`.
    """

    bucket: int = 500_000_000
    small: int = 100_000
    reuse: int = 1_000_000_000
    prefetch: int = 50_000_000


@dataclass(frozen=True)
class Launch:
    """How a run is started.

    Args:
        name: of the way, one of `LAUNCHES`.
        processes: in all, one per device.
        per_machine: of them on one machine, at most.
        zero: of DeepSpeed; of no account elsewhere.
    """

    name: str = "single"
    processes: int = 1
    per_machine: int = 8
    zero: ZeroLimits = field(default_factory=ZeroLimits)

    @property
    def mode(self) -> "Mode":
        """As a running process would find it out; what is kept gathered is FSDP2 all the same."""
        return cast("Mode", self.name.removesuffix("_keep"))

    @property
    def is_fsdp2(self) -> bool:
        """Whether torch's `fully_shard` cuts the network."""
        return self.mode == "fsdp2"

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed spreads something."""
        return self.name.startswith("zero")

    @property
    def machines(self) -> int:
        """How many there are."""
        return -(-self.processes // self.per_machine)

    def spreads(self, part: Part) -> bool:
        """Whether a process holds only its part of these."""
        return part in _SPREADS[self.name]

    def num_bytes(self, values: Iterable[Tensor], part: Part, *, whole: Collection[Tensor] = ()) -> int:
        """Bytes that the process with the largest part holds, in the weights' own dtypes.

        FSDP2 cuts every weight along its first axis, stage 3 each of them anywhere, stages 1 and 2 all of
        them as one; parts are filled up to equal length.

        Args:
            values: whole weights, on any device.
            part: which of what belongs to them.
            whole: of those, the ones that are not cut.
        """
        listed, kept = list(values), {id(value) for value in whole}
        total = sum(value.numel() * value.element_size() for value in listed)
        if not self.spreads(part):
            return total
        if self.name in ("zero1", "zero2"):
            return -(-total // self.processes)
        counts = (value.numel() if id(value) in kept else self._part(value) for value in listed)
        return sum(count * value.element_size() for count, value in zip(counts, listed, strict=True))

    def _part(self, value: Tensor) -> int:
        if self.is_zero or value.ndim == 0:
            return -(-value.numel() // self.processes)
        rows = max(value.shape[0], 1)
        return -(-rows // self.processes) * (value.numel() // rows)

    def describe(self) -> str:
        """In words, for the head of a table."""
        if self.processes == 1:
            return "one process"
        where = f" on {self.machines} machines" if self.machines > 1 else ""
        return f"each of {self.processes} processes{where}, {self.name}"

    @classmethod
    def here(cls) -> "Launch":
        """What `accelerate launch` or `torchrun` asked for, from the variables that they set."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        own = int(os.environ.get("LOCAL_WORLD_SIZE", "8"))
        if processes == 1:
            return cls()
        return cls(_asked_for(), processes, own)


SINGLE = Launch()
"""One process."""


def _asked_for() -> str:
    """The way of several processes, from the environment."""

    def is_on(name: str, default: str) -> bool:
        return os.environ.get(name, default).lower() in ("1", "true", "yes")

    if is_on("ACCELERATE_USE_FSDP", "false"):
        return "fsdp2" if is_on("FSDP_RESHARD_AFTER_FORWARD", "true") else "fsdp2_keep"
    if not is_on("ACCELERATE_USE_DEEPSPEED", "false"):
        return "ddp"
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")  # accelerate's default
    path = Path(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", ""))
    if path.is_file():
        stage = json.loads(path.read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", stage)
    return f"zero{stage}" if f"zero{stage}" in LAUNCHES else "ddp"


def launch_of(name: str | None, processes: int | None) -> Launch:
    """The launch of what is written on a command line.

    Args:
        name: of the way; None: that of the environment, and DDP where several processes are asked for.
        processes: how many; None: those of the environment.

    Raises:
        ConfigError: several processes where there is one, or one where there have to be several.
        UnknownNameError: no such way.
    """
    here = Launch.here()
    if name is None and processes is None:
        return here
    if name is not None and name not in LAUNCHES:
        raise unknown_name("launch", name, LAUNCHES)
    count = here.processes if processes is None else processes
    name = name or ("single" if count == 1 else "ddp")
    if count < 1 or (count == 1) != (name == "single"):
        message = explain(
            "--processes",
            got=f"{count} with --launch {name}",
            expected="2 or more; of --launch single 1",
            do=f"For example --launch {'ddp' if name == 'single' else name} --processes 8.",
        )
        raise ConfigError(message)
    return Launch(name, count)
