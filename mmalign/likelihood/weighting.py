"""Weights of noise levels: min-SNR, which keeps easy levels from ruling the loss.

The error of the clean sample is weighed by `min(SNR, gamma)`; in the network's own space that weight reads
otherwise, and the algebra of the schedule says how:

    epsilon        min(SNR, gamma) / SNR
    v_prediction   min(SNR, gamma) / (SNR + 1)
    sample         min(SNR, gamma)
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.errors import HyperparameterError, explain, unknown_name
from mmalign.likelihood.schedules import Number, Prediction, Schedule

__all__ = ["SNR_FORMS", "MinSnr", "SnrForm", "signal_to_noise"]

SnrForm = Literal["exact", "epsilon"]
"""exact: in the space of the network; epsilon: as if it predicted noise, whatever it predicts."""

SNR_FORMS: tuple[SnrForm, ...] = get_args(SnrForm)


def signal_to_noise(
    schedule: Schedule, timestep: Shaped[Tensor, "*batch"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*batch"]:
    """`(alpha / sigma)^2` at each timestep; infinite without noise."""
    alpha, sigma = schedule.coefficients(timestep, dtype)
    return (alpha / sigma).square()


@dataclass(frozen=True)
class MinSnr:
    """Weight of a noise level: `min(SNR, gamma)` on the error of the clean sample.

    Args:
        gamma: > 0; levels with a higher signal-to-noise ratio are weighed down. 5 in the paper.
        form: "exact", or "epsilon": `min(SNR, gamma) / SNR` also for networks that predict something else, as
            Tango's official trainer has it (there for a velocity).

    Raises:
        HyperparameterError: gamma is not positive.
        UnknownNameError: no such form.

    Source: 2303.09556, section 3.4; declare-lab/tango, tango2/models.py, `compute_snr` and `forward`.
    """

    gamma: Number = 5.0
    form: SnrForm = "exact"

    def __post_init__(self) -> None:
        """Check the range and the name."""
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            message = explain("MinSnr.gamma", got=self.gamma, expected="a number above 0, for example 5")
            raise HyperparameterError(message)
        if self.form not in SNR_FORMS:
            raise unknown_name("form of min-SNR", self.form, SNR_FORMS)

    def __call__(
        self,
        schedule: Schedule,
        timestep: Shaped[Tensor, "*batch"],
        *,
        space: Prediction,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch"]:
        """The weight of an error measured in `space`, at each timestep.

        Args:
            schedule: of the noise levels.
            timestep: where.
            space: what the error is of.
            dtype: of the weights.
        """
        ratio = signal_to_noise(schedule, timestep, dtype)
        if self.form == "epsilon" or space == "epsilon":
            # min(SNR, gamma) / SNR without 0 / 0 where everything is noise.
            return (self.gamma / ratio).clamp(max=1.0)
        return ratio.clamp(max=self.gamma) * schedule.error_weight(
            timestep, source=space, to="sample", dtype=dtype
        )
