"""Does the chosen side move less? Pairs that say so teach a model to stand still.

Source: arXiv 2506.03517 (annotators prefer the calmer of two independent clips; the dynamic degree falls).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.data.statistics import Estimate, mean_of, share_of

__all__ = ["MotionBias", "motion_bias"]


@dataclass(frozen=True)
class MotionBias:
    """How much the two sides of pairs move.

    Args:
        chosen: mean change of a pixel of chosen clips within an eighth of a second, of 1 for black to white.
        rejected: the same of rejected ones.
        difference: mean of chosen minus rejected, with its interval over prompts.
        livelier: share of pairs whose chosen side moves more, with its interval; equal ones count half.
        pairs: pairs with both.
    """

    chosen: float
    rejected: float
    difference: Estimate
    livelier: Estimate
    pairs: int

    @property
    def ratio(self) -> float:
        """Motion of chosen clips over that of rejected ones."""
        return self.chosen / self.rejected if self.rejected > 0 else math.inf

    @property
    def verdict(self) -> str:
        """What the numbers say, in words."""
        shown = self.livelier.describe(2)
        if self.livelier.high is None or self.livelier.low is None or self.difference.clusters < 2:
            return "too few prompts to say whether the chosen side moves less"
        if self.livelier.high < 0.5:
            return (
                f"warning: the chosen side moves less: it is the livelier one in {shown} of pairs, with "
                f"{self.ratio:.2f} of the motion. Models trained on such pairs come to stand still: set "
                "selection.motion_ratio_min, or label segments of pairs that share their motion."
            )
        if self.livelier.low > 0.5:
            return (
                f"the chosen side moves more: it is the livelier one in {shown} of pairs; see that it is not "
                "shaking or flickering that wins"
            )
        return f"no bias to be seen: the chosen side is the livelier one in {shown} of pairs"

    def as_dict(self) -> dict[str, Any]:
        """Numbers for the card of a data set."""
        return {
            "chosen": round(self.chosen, 6),
            "rejected": round(self.rejected, 6),
            "ratio": round(self.ratio, 4) if math.isfinite(self.ratio) else None,
            "difference": _shown(self.difference),
            "chosen_moves_more": _shown(self.livelier),
            "pairs": self.pairs,
            "verdict": self.verdict,
        }


def _shown(estimate: Estimate) -> list[float | None]:
    """[value, low, high]."""
    ends = (estimate.value, estimate.low, estimate.high)
    return [None if end is None else round(end, 6) for end in ends]


def motion_bias(records: Sequence[Mapping[str, Any]]) -> MotionBias | None:
    """The motion of the two sides of pair records; None without any that say it.

    Args:
        records: with `motion_chosen`, `motion_rejected` and `prompt`.
    """
    known = [
        record
        for record in records
        if isinstance(record.get("motion_chosen"), float) and isinstance(record.get("motion_rejected"), float)
    ]
    if not known:
        return None
    sides = [(float(record["motion_chosen"]), float(record["motion_rejected"])) for record in known]
    prompts = [str(record["prompt"]) for record in known]
    ahead = [1.0 if one > two else 0.5 if one == two else 0.0 for one, two in sides]
    return MotionBias(
        chosen=math.fsum(one for one, _ in sides) / len(sides),
        rejected=math.fsum(two for _, two in sides) / len(sides),
        difference=mean_of([one - two for one, two in sides], prompts),
        livelier=share_of(ahead, prompts),
        pairs=len(sides),
    )
