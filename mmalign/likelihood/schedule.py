"""Noise schedules: how data and noise mix at a timestep, and how the things a network can predict convert.

Every schedule writes the noised sample as `alpha * clean + sigma * noise`. Whatever a network predicts is a
mixture `p * clean + q * noise` too, so one piece of algebra serves every prediction and every schedule:

    prediction      p        q        det = alpha * q - sigma * p
    epsilon         0        1        alpha
    sample          1        0        -sigma
    v_prediction   -sigma    alpha    alpha^2 + sigma^2   (1 on the variance-preserving schedule)
    flow           -1        1        alpha + sigma       (1 on the rectified-flow schedule)

The noised sample is known, so predictions of two kinds are affine in each other, and a squared error of one
kind is the squared error of the other times `(det_to / det_from)^2`, exactly.
"""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mmalign.errors import unknown_name
from mmalign.shapes import align_to_event

__all__ = ["PREDICTIONS", "DeviceTable", "Number", "Prediction", "Schedule"]

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a network predicts: the noise, `alpha * noise - sigma * clean`, the clean sample, `noise - clean`."""

Number = int | float
"""A setting that users may write with or without a decimal point; the shape hook tells the two apart."""

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


class DeviceTable:
    """A small constant table that is copied to each device once, so that a step never waits for a transfer.

    Args:
        values: the table on the CPU.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """The table on `device` as `dtype` (its own by default)."""
        key = (device, dtype or self.values.dtype)
        if key not in self._placed:
            # A table first used by an evaluation must stay usable in training.
            with torch.inference_mode(False):
                self._placed[key] = self.values.to(device=key[0], dtype=key[1])
        return self._placed[key]

    def at(self, index: Int[Tensor, "*batch"], dtype: torch.dtype | None = None) -> Shaped[Tensor, "*batch"]:
        """Entries at `index`, shaped like it, without a host synchronisation."""
        return self.on(index.device, dtype).index_select(0, index.flatten()).reshape(index.shape)


class Schedule(ABC):
    """A noise schedule; a subclass supplies the coefficients and the meaning of a timestep, the rest follows.

    Attributes:
        num_timesteps: timesteps of the training schedule, and the scale of the network's time input.
    """

    num_timesteps: int

    @property
    def progress_range(self) -> tuple[float, float]:
        """What may be drawn of the way from noise (0) to data (1); experts of some noise levels draw less."""
        return 0.0, 1.0

    @abstractmethod
    def coefficients(
        self, timestep: Shaped[Tensor, "*batch"], dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """`(alpha, sigma)` of `noised = alpha * clean + sigma * noise`, each shaped like `timestep`."""

    @abstractmethod
    def timestep_at(self, progress: Float[Tensor, "*batch"]) -> Shaped[Tensor, "*batch"]:
        """Timestep at `progress` in [0, 1] along the way from noise (0) to data (1)."""

    @abstractmethod
    def between(
        self, fraction: Float[Tensor, "*batch"], low: Number, high: Number | None
    ) -> Shaped[Tensor, "*batch"]:
        """Timestep at `fraction` in [0, 1) of the range from `low` to `high` (None: to the end)."""

    @abstractmethod
    def network_time(self, timestep: Shaped[Tensor, "*batch"]) -> Shaped[Tensor, "*batch"]:
        """What the network is given as its time input."""

    @abstractmethod
    def check_timesteps(self, where: str, values: tuple[Number, ...]) -> None:
        """Raise `HyperparameterError` unless all `values` are timesteps of this schedule."""

    @abstractmethod
    def table_of(self, values: tuple[Number, ...]) -> Tensor:
        """`values` as a tensor of timesteps."""

    @abstractmethod
    def loses_clean(self, kind: Prediction) -> bool:
        """Whether at some timestep a prediction of this kind says nothing about the clean sample."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """What identifies the schedule, for fingerprints of stored numbers."""

    def determinant(
        self, kind: Prediction, timestep: Shaped[Tensor, "*batch"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*batch"]:
        """`alpha * q - sigma * p` of a prediction; 0 where it does not determine clean sample and noise."""
        alpha, sigma = self.coefficients(timestep, dtype)
        match kind:
            case "epsilon":
                return alpha
            case "sample":
                return -sigma
            case "v_prediction":
                return alpha.square() + sigma.square()
            case "flow":
                return alpha + sigma
        raise unknown_name("prediction", kind, PREDICTIONS)

    def error_weight(
        self,
        timestep: Shaped[Tensor, "*batch"],
        *,
        source: Prediction,
        to: Prediction,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch"]:
        """`w` with `squared error as to = w * squared error as source`, exact.

        0 where `source` does not determine `to`.

        Examples: v to epsilon on the variance-preserving schedule `alpha^2`, epsilon to sample `sigma^2 /
            alpha^2`, flow to epsilon on rectified flow `(1 - sigma)^2`.
        """
        if source == to:
            return torch.ones_like(timestep, dtype=dtype)
        ratio = _divide(self.determinant(to, timestep, dtype), self.determinant(source, timestep, dtype))
        return ratio.square()

    def add_noise(
        self,
        clean: Float[Tensor, "*shape"],
        noise: Float[Tensor, "*shape"],
        timestep: Shaped[Tensor, "..."],
    ) -> Float[Tensor, "*shape"]:
        """`alpha * clean + sigma * noise`; `timestep` covers the leading axes of `clean`."""
        alpha, sigma = self._aligned(timestep, clean)
        return alpha * clean + sigma * noise

    def target(
        self,
        kind: Prediction,
        clean: Float[Tensor, "*shape"],
        noise: Float[Tensor, "*shape"],
        timestep: Shaped[Tensor, "..."],
    ) -> Float[Tensor, "*shape"]:
        """What a perfect network of this kind would predict."""
        match kind:
            case "epsilon":
                return noise
            case "sample":
                return clean
            case "v_prediction":
                alpha, sigma = self._aligned(timestep, clean)
                return alpha * noise - sigma * clean
            case "flow":
                return noise - clean
        raise unknown_name("prediction", kind, PREDICTIONS)

    def convert(
        self,
        prediction: Float[Tensor, "*shape"],
        noised: Float[Tensor, "*shape"],
        timestep: Shaped[Tensor, "..."],
        *,
        source: Prediction,
        to: Prediction,
    ) -> Float[Tensor, "*shape"]:
        """The prediction in another parametrisation.

        Where `source` does not determine the clean sample (epsilon at alpha = 0, the last timestep of a
        zero-terminal-SNR schedule) the clean sample is taken to be 0, the mean of normalised data, never NaN.
        """
        if source == to:
            return prediction
        clean, noise = self.split(prediction, noised, timestep, source=source)
        return self.target(to, clean, noise, timestep)

    def split(
        self,
        prediction: Float[Tensor, "*shape"],
        noised: Float[Tensor, "*shape"],
        timestep: Shaped[Tensor, "..."],
        *,
        source: Prediction,
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """`(clean, noise)` that a prediction and the noised sample imply."""
        alpha, sigma = self._aligned(timestep, noised)
        det = align_to_event(self.determinant(source, timestep, alpha.dtype), noised)
        match source:
            case "epsilon":
                return _divide(noised - sigma * prediction, det), prediction
            case "sample":
                return prediction, _divide(alpha * prediction - noised, det)
            case "v_prediction":
                clean = (alpha * noised - sigma * prediction) / det
                return clean, (alpha * prediction + sigma * noised) / det
            case "flow":
                return (noised - sigma * prediction) / det, (noised + alpha * prediction) / det
        raise unknown_name("prediction", source, PREDICTIONS)

    def _aligned(self, timestep: Tensor, event: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients with trailing axes of size 1, in the wider of the event's dtype and float32."""
        alpha, sigma = self.coefficients(timestep, torch.promote_types(event.dtype, torch.float32))
        return align_to_event(alpha, event), align_to_event(sigma, event)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator`, 0 where the denominator is 0; finite gradients on both branches."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))
