"""Noise levels of one expert: models of two networks have one for much noise and one for little."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.likelihood.schedules import FlowSchedule, Number

__all__ = ["ExpertSchedule"]


@dataclass(frozen=True)
class ExpertSchedule(FlowSchedule):
    """Rectified flow of which only some noise levels are drawn.

    Every distribution of timesteps is cut to the expert's own range, not squeezed into it: what is drawn
    there is as likely, against each other, as it is for the whole model.

    Args:
        lowest: sigma below which the other expert is at work.
        highest: sigma from which the other expert is at work.
    """

    lowest: Number = 0.0
    highest: Number = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 <= self.lowest < self.highest <= 1:
            message = explain(
                "ExpertSchedule",
                got=f"lowest={self.lowest}, highest={self.highest}",
                expected="two sigmas from 0 to 1, the lower one first",
            )
            raise HyperparameterError(message)

    @property
    def progress_range(self) -> tuple[float, float]:
        """Where the range begins and ends on the way from noise (0) to data (1)."""
        return 1 - self._unshifted(self.highest), 1 - self._unshifted(self.lowest)

    def between(
        self, fraction: Float[Tensor, "*batch"], low: Number, high: Number | None
    ) -> Float[Tensor, "*batch"]:
        """Sigma in the part of [low, high] that is the expert's, uniform before the shift."""
        high = 1.0 if high is None else high
        first, last = max(float(low), float(self.lowest)), min(float(high), float(self.highest))
        if first >= last:
            message = explain(
                "likelihood.low and high",
                got=f"{low} to {high}",
                expected=f"noise levels of this expert, {self.lowest:g} to {self.highest:g}, among them",
            )
            raise HyperparameterError(message)
        levels = super().between(fraction, first, last)
        return levels.clamp(first, last)

    def check_timesteps(self, where: str, values: tuple[Number, ...]) -> None:
        """Every value must be a sigma in [0, 1]; of a list, one of the expert's own."""
        super().check_timesteps(where, values)
        if "Listed" not in where:
            return
        for value in values:
            if not self.lowest <= value <= self.highest:
                message = explain(
                    where, got=value, expected=f"a sigma of this expert: {self.lowest:g} to {self.highest:g}"
                )
                raise HyperparameterError(message)

    def describe(self) -> dict[str, str]:
        """Every field."""
        whole = super().describe()["schedule"]
        return {"schedule": f"{whole}, sigma {float(self.lowest)!r} to {float(self.highest)!r}"}
