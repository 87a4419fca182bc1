"""Seconds of an operation on a processor over its size, read from curves that were measured."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmalign.train.planning.trace import Kernel

__all__ = ["THIN", "Curve", "Curves", "work_seconds"]

THIN = "thin "
"""Before a kind: of few channels, measured by bytes; attention by scores."""


@dataclass(frozen=True)
class Curve:
    """Seconds of work over its size, along straight lines between logarithms.

    Args:
        sizes: ascending: products in FLOP; elementwise work, and what is thin, in bytes; thin attention in
            scores.
        seconds: of each, without what an operation of no size takes.
        least: seconds that one of no size takes, beyond what any operation costs the host.
    """

    sizes: Sequence[float]
    seconds: Sequence[float]
    least: float = 0.0

    def at(self, size: float) -> float:
        """Seconds of an operation; beyond the ends at the rate of the end."""
        return self.least + self._growing(size)

    def _growing(self, size: float) -> float:
        if size <= self.sizes[0] or len(self.sizes) == 1:
            return self.seconds[0] * size / self.sizes[0]
        if size >= self.sizes[-1]:
            return self.seconds[-1] * size / self.sizes[-1]
        after = bisect.bisect_left(self.sizes, size)
        low, high = self.sizes[after - 1], self.sizes[after]
        part = math.log(size / low) / math.log(high / low)
        return float(self.seconds[after - 1] ** (1 - part) * self.seconds[after] ** part)


Curves = Mapping[tuple[str, str], Curve]
"""By kind of kernel and moment."""


def work_seconds(kernel: Kernel, curves: Curves) -> float | None:
    """Of one operation in float32, without the host's part; None where its kind was not measured."""
    curve = curves.get(("elementwise" if kernel.flops == 0 else kernel.kind, kernel.moment))
    if curve is None:
        return None
    if kernel.flops == 0:
        return curve.at(float(kernel.moved))
    thin = curves.get((THIN + kernel.kind, kernel.moment))
    size = float(kernel.scores or kernel.moved)
    return max(curve.at(float(kernel.flops)), 0.0 if thin is None else thin.at(size))
