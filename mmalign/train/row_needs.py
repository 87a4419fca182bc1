"""What a method reads of every row besides its media and labels: rewards, labels in time, columns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.data.segments import FrameGrid, frame_preferences, frames_apart, stretches_of
from mmalign.errors import RowError, explain

__all__ = ["RowFacts", "RowNeeds"]


@dataclass(frozen=True)
class RowFacts:
    """What was read of one row, or of the rows of a micro-batch, stacked.

    Args:
        preference: label of each latent frame, 1, -1 or 0.
        apart: 1 at each latent frame in which two clips differ, 0 at those of a shared beginning.
        columns: numbers by name; of a micro-batch `[prompt]`.
    """

    preference: Float[Tensor, "... frame"] | None = None
    apart: Float[Tensor, "... frame"] | None = None
    columns: Mapping[str, Float[Tensor, "..."]] = field(default_factory=dict)


@dataclass(frozen=True)
class RowNeeds:
    """What a method reads of every row; rows without it count as unreadable.

    Args:
        reward: a reward of every candidate.
        frames: latent frames of the model's clips, for which labels in time are read.
        apart: the same, where a beginning that two clips share is left out.
        columns: names of columns with one number per row.
    """

    reward: bool = False
    frames: FrameGrid | None = None
    apart: FrameGrid | None = None
    columns: frozenset[str] = frozenset()

    def read(self, row: PreferenceRow) -> RowFacts:
        """What the row says of it.

        Raises:
            RowError: it lacks something.
        """
        if self.reward:
            _require_rewards(row)
        return RowFacts(
            None if self.frames is None else frame_preferences(stretches_of(row), self.frames),
            None if self.apart is None else frames_apart(row, self.apart),
            {name: torch.tensor(_number(row, name)) for name in sorted(self.columns)},
        )

    def stacked(self, found: Sequence[RowFacts]) -> RowFacts:
        """The facts of the rows of a micro-batch; rows that were not read have none, and zeros here."""
        zero = torch.zeros(())
        return RowFacts(
            _of_frames([item.preference for item in found], self.frames),
            _of_frames([item.apart for item in found], self.apart),
            {
                name: torch.stack([item.columns.get(name, zero) for item in found])
                for name in sorted(self.columns)
            },
        )


def _require_rewards(row: PreferenceRow) -> None:
    """Refuse a row without a reward for every candidate.

    Raises:
        RowError: a candidate has none.
    """
    if any(candidate.reward is None for candidate in row.candidates):
        message = (
            f"{row.source or row.id}: a candidate has no reward, which this method reads. "
            "Score the rows first: `mmalign data relabel`."
        )
        raise RowError(message, reason="no_reward")


def _number(row: PreferenceRow, name: str) -> float:
    """A number of the row's own column.

    Raises:
        RowError: it has none that is finite and not negative.
    """
    given = row.extras.get(name)
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not is_number or not 0 <= float(given) < math.inf:  # type: ignore[arg-type]
        message = explain(
            f"{row.source or row.id}: column {name!r}, which this method reads",
            got=repr(given),
            expected="a finite number >= 0",
            do="`mmalign data derive --how rarity` makes pair_weight of the candidates' rewards.",
        )
        raise RowError(message, reason=f"no_{name}")
    return float(given)  # type: ignore[arg-type]


def _of_frames(found: Sequence[Tensor | None], grid: FrameGrid | None) -> Tensor | None:
    """Numbers [prompt, frame] of rows that were read."""
    if grid is None:
        return None
    empty = torch.zeros(grid.count)
    return torch.stack([empty if value is None else value for value in found])
