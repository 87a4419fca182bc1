"""The average of the trained weights, diffusers' class: loaded by runs that keep one and by no others."""

from collections.abc import Iterable
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

__all__ = ["Average", "average_of"]


@runtime_checkable
class Average(Protocol):
    """What the loop asks of an average.

    Args:
        shadow_params: averaged weights, in the order of the parameters.
        optimization_step: updates it has seen.
    """

    shadow_params: list[Tensor]
    optimization_step: int

    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take one update's weights in."""


def average_of(parameters: Iterable[nn.Parameter], decay: float | None) -> Average | None:
    """An exponential average that starts at `parameters`; None without a decay."""
    if decay is None:
        return None
    # Here, not above: the module imports every UNet of diffusers, seconds that other runs need not wait.
    from diffusers.training_utils import EMAModel

    return cast("Average", EMAModel(parameters, decay=decay, foreach=True))
