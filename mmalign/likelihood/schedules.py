"""The noise schedules: discrete diffusion that preserves variance, and rectified flow; and reading configs.

What all schedules share, and what the things that a network can predict have to do with each other, is in
`mmalign.likelihood.schedule`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.errors import ConfigError, HyperparameterError, explain, unknown_name
from mmalign.files import fingerprint
from mmalign.likelihood.schedule import PREDICTIONS, DeviceTable, Number, Prediction, Schedule

__all__ = [
    "PREDICTIONS",
    "DeviceTable",
    "FlowSchedule",
    "Number",
    "Prediction",
    "Schedule",
    "VPSchedule",
    "prediction_from_config",
    "schedule_from_config",
]


@dataclass(frozen=True, eq=False)
class VPSchedule(Schedule):
    """Variance-preserving diffusion: `alpha = sqrt(abar_t)`, `sigma = sqrt(1 - abar_t)`, t an index.

    Args:
        alphas_cumprod: `abar_t` for every timestep, in [0, 1], decreasing.

    Source: 2006.11239, equation 4.
    """

    alphas_cumprod: Float[Tensor, " timestep"]
    num_timesteps: int = field(init=False)
    zero_terminal_snr: bool = field(init=False)
    _table: DeviceTable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the table once, on the host."""
        table = self.alphas_cumprod.detach().to("cpu")
        if table.numel() == 0 or not bool(((table >= 0) & (table <= 1)).all()):
            shown = (
                f"[{table.min().item():.3g}, {table.max().item():.3g}]" if table.numel() else "an empty table"
            )
            message = explain(
                "VPSchedule.alphas_cumprod",
                got=shown,
                expected="cumulative alphas between 0 and 1, one per timestep",
            )
            raise HyperparameterError(message)
        object.__setattr__(self, "alphas_cumprod", table)
        object.__setattr__(self, "num_timesteps", table.shape[0])
        object.__setattr__(self, "zero_terminal_snr", bool((table == 0).any()))
        object.__setattr__(self, "_table", DeviceTable(table))

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> "VPSchedule":
        """The schedule of a diffusers scheduler config (the content of scheduler_config.json).

        Raises:
            ConfigError: an unknown `beta_schedule`.
        """
        return cls(_cumulative_alphas(config))

    def coefficients(
        self, timestep: Int[Tensor, "*batch"], dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """`(sqrt(abar_t), sqrt(1 - abar_t))`."""
        cumulative = self._table.at(timestep, dtype)
        return cumulative.sqrt(), (1 - cumulative).sqrt()

    def determinant(
        self, kind: Prediction, timestep: Int[Tensor, "*batch"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*batch"]:
        """As the base class; exactly 1 for v, without the rounding of `alpha^2 + sigma^2`."""
        if kind == "v_prediction":
            return torch.ones_like(timestep, dtype=dtype)
        return super().determinant(kind, timestep, dtype)

    def timestep_at(self, progress: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """Index at `progress` along the way from noise (0: the last index) to data (1: index 0)."""
        steps_left = (progress * self.num_timesteps).long().clamp(0, self.num_timesteps - 1)
        return self.num_timesteps - 1 - steps_left

    def between(
        self, fraction: Float[Tensor, "*batch"], low: Number, high: Number | None
    ) -> Int[Tensor, "*batch"]:
        """`low + floor(fraction * (high - low))`: every index of [low, high) is equally likely."""
        first, end = int(low), self.num_timesteps if high is None else int(high)
        return (first + (fraction * (end - first)).long()).clamp(first, end - 1)

    def network_time(self, timestep: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
        """The index as it is."""
        return timestep

    def check_timesteps(self, where: str, values: tuple[Number, ...]) -> None:
        """Every value must be a whole number in [0, num_timesteps)."""
        for value in values:
            if value != int(value) or not 0 <= value < self.num_timesteps:
                message = explain(
                    where, got=value, expected=f"a whole number from 0 to {self.num_timesteps - 1}"
                )
                raise HyperparameterError(message)

    def table_of(self, values: tuple[Number, ...]) -> Int[Tensor, " value"]:
        """`values` as indices."""
        return torch.tensor([int(value) for value in values], dtype=torch.int64)

    def loses_clean(self, kind: Prediction) -> bool:
        """True for epsilon when some timestep is pure noise."""
        return kind == "epsilon" and self.zero_terminal_snr

    def with_clean(self) -> "VPSchedule":
        """The schedule with the clean sample as one more, last timestep."""
        return VPSchedule(torch.cat([self.alphas_cumprod, self.alphas_cumprod.new_ones(1)]))

    def describe(self) -> dict[str, str]:
        """Length and hash of the table."""
        numbers = fingerprint([f"{value:.9e}" for value in self.alphas_cumprod.tolist()])
        return {"schedule": f"variance preserving, {self.num_timesteps} timesteps, {numbers}"}


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """Rectified flow: `noised = (1 - sigma) * clean + sigma * noise`; a timestep is sigma in [0, 1].

    Args:
        shift: moves timesteps towards noise: `sigma = shift * s / (1 + (shift - 1) * s)` for unshifted `s`.
        num_timesteps: scale of the network's time input, and points of the grid.
        grid: draw sigmas from the `num_timesteps` points a sampler would visit, instead of continuously.

    Source: 2209.03003 equation 1; shift 2403.03206 equation 23.
    """

    shift: Number = 1.0
    num_timesteps: int = 1000
    grid: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (math.isfinite(self.shift) and self.shift > 0):
            message = explain(
                "FlowSchedule.shift", got=self.shift, expected="a number above 0; 1 is no shift"
            )
            raise HyperparameterError(message)
        if self.num_timesteps < 1:
            message = explain("FlowSchedule.num_timesteps", got=self.num_timesteps, expected="at least 1")
            raise HyperparameterError(message)

    @classmethod
    def from_scheduler_config(
        cls, config: Mapping[str, Any], *, sequence_length: int | None = None, grid: bool = False
    ) -> "FlowSchedule":
        """The schedule of a diffusers flow-match scheduler config.

        Args:
            config: its dictionary, or the content of scheduler_config.json.
            sequence_length: image tokens, needed when the config shifts by resolution
                (`use_dynamic_shifting`).
            grid: see the class.

        Raises:
            ConfigError: the config shifts by resolution and no `sequence_length` is given.
        """
        num_timesteps = int(config.get("num_train_timesteps", 1000))
        if not config.get("use_dynamic_shifting"):
            return cls(shift=float(config.get("shift", 1.0)), num_timesteps=num_timesteps, grid=grid)
        if sequence_length is None:
            message = explain(
                "FlowSchedule.from_scheduler_config",
                got="use_dynamic_shifting without a sequence length",
                expected="the number of image tokens at the training resolution",
                do="Pass sequence_length, or a config with a fixed shift.",
            )
            raise ConfigError(message)
        low, high = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
        short, long = int(config.get("base_image_seq_len", 256)), int(config.get("max_image_seq_len", 4096))
        mu = low + (high - low) * (sequence_length - short) / (long - short)
        shift = mu if config.get("time_shift_type", "exponential") == "linear" else math.exp(mu)
        return cls(shift=shift, num_timesteps=num_timesteps, grid=grid)

    def coefficients(
        self, timestep: Float[Tensor, "*batch"], dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """`(1 - sigma, sigma)`."""
        sigma = timestep.to(dtype)
        return 1 - sigma, sigma

    def determinant(
        self, kind: Prediction, timestep: Float[Tensor, "*batch"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*batch"]:
        """As the base class; exactly 1 for flow."""
        if kind == "flow":
            return torch.ones_like(timestep, dtype=dtype)
        return super().determinant(kind, timestep, dtype)

    def shifted(self, level: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Sigma of an unshifted noise level in [0, 1]."""
        return self.shift * level / (1 + (self.shift - 1) * level)

    def timestep_at(self, progress: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Sigma at `progress` along the way from noise (0) to data (1); with `grid`, a point of it."""
        if not self.grid:
            return self.shifted(1 - progress)
        index = (progress * self.num_timesteps).floor().clamp(0, self.num_timesteps - 1)
        return self.shifted((self.num_timesteps - index) / self.num_timesteps)

    def between(
        self, fraction: Float[Tensor, "*batch"], low: Number, high: Number | None
    ) -> Float[Tensor, "*batch"]:
        """Sigma in [low, high], uniform before the shift."""
        first, last = self._unshifted(low), self._unshifted(1.0 if high is None else high)
        return self.timestep_at(1 - (first + fraction * (last - first)))

    def network_time(self, timestep: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """`num_timesteps * sigma`, as diffusers' flow transformers expect."""
        return timestep * self.num_timesteps

    def check_timesteps(self, where: str, values: tuple[Number, ...]) -> None:
        """Every value must be a sigma in [0, 1]."""
        for value in values:
            if not 0.0 <= value <= 1.0:
                message = explain(
                    where,
                    got=value,
                    expected="sigma between 0 and 1",
                    do=f"Divide a time input by {self.num_timesteps}.",
                )
                raise HyperparameterError(message)

    def table_of(self, values: tuple[Number, ...]) -> Float[Tensor, " value"]:
        """`values` as sigmas."""
        return torch.tensor([float(value) for value in values], dtype=torch.float32)

    def loses_clean(self, kind: Prediction) -> bool:
        """True for epsilon: sigma = 1 is pure noise."""
        return kind == "epsilon"

    def describe(self) -> dict[str, str]:
        """Every field."""
        grid = "grid" if self.grid else "continuous"
        return {"schedule": f"rectified flow, shift {self.shift!r}, {self.num_timesteps} timesteps, {grid}"}

    def _unshifted(self, sigma: Number) -> float:
        return sigma / (self.shift - (self.shift - 1) * sigma)


def _cumulative_alphas(config: Mapping[str, Any]) -> Tensor:
    """`abar_t` of a diffusers scheduler config, in float32 like diffusers: the tables agree to the bit."""
    num = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind = str(config.get("beta_schedule", "linear"))
    trained = config.get("trained_betas")
    if trained is not None:
        betas = torch.tensor([float(beta) for beta in trained], dtype=torch.float32)
    elif kind == "linear":
        betas = torch.linspace(start, end, num, dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, num, dtype=torch.float32) ** 2
    elif kind == "squaredcos_cap_v2":
        betas = _cosine_betas(num)
    elif kind == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, num, dtype=torch.float32)) * (end - start) + start
    else:
        known = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
        raise ConfigError(str(unknown_name("beta_schedule", kind, known)))
    if config.get("rescale_betas_zero_snr"):
        betas = _rescale_to_zero_snr(betas)
    return torch.cumprod(1.0 - betas, dim=0)


def _cosine_betas(num: int, max_beta: float = 0.999) -> Tensor:
    """Betas whose cumulative alphas follow `cos^2`. Source: 2102.09672, equation 17."""

    def cumulative(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = [1 - cumulative((index + 1) / num) / cumulative(index / num) for index in range(num)]
    return torch.tensor([min(beta, max_beta) for beta in steps], dtype=torch.float32)


def _rescale_to_zero_snr(betas: Tensor) -> Tensor:
    """Betas stretched so that the last timestep is pure noise. Source: 2305.08891, algorithm 1."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    cumulative = ((root - last) * (first / (first - last))) ** 2
    alphas = torch.cat([cumulative[:1], cumulative[1:] / cumulative[:-1]])
    return 1 - alphas


def prediction_from_config(config: Mapping[str, Any]) -> Prediction:
    """What the network of a diffusers scheduler config predicts; flow-match schedulers predict flow.

    Raises:
        ConfigError: an unknown `prediction_type`.
    """
    # A scheduler in memory does not carry its class name; only flow-match ones shift and have no betas.
    if "FlowMatch" in str(config.get("_class_name", "")) or (
        "shift" in config and "beta_schedule" not in config
    ):
        return "flow"
    kind = str(config.get("prediction_type", "epsilon"))
    names: dict[str, Prediction] = {name: name for name in PREDICTIONS} | {"flow_prediction": "flow"}
    if kind not in names:
        raise ConfigError(str(unknown_name("prediction_type", kind, names)))
    return names[kind]


def schedule_from_config(config: Mapping[str, Any], *, sequence_length: int | None = None) -> Schedule:
    """The schedule of a diffusers scheduler config: rectified flow if it predicts flow, else VP."""
    if prediction_from_config(config) == "flow":
        return FlowSchedule.from_scheduler_config(config, sequence_length=sequence_length)
    return VPSchedule.from_scheduler_config(config)
