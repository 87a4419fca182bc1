"""The order of rows: a function of (seed, position), so that resuming needs no state but a number.

Position p of a run is one row, the same on any number of devices; epochs are seeded permutations made by a
counter-based generator, equal on every machine and version. Sources are mixed by weight: weight 2 visits each
row of a source twice per epoch, weight 0.5 half of its rows, the other half in the next epoch.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from mmalign.batch import RowKeys
from mmalign.errors import HyperparameterError
from mmalign.seeding import derive_seed

if TYPE_CHECKING:
    from mmalign.data.readers import RowTable

__all__ = ["RowOrder", "numbers", "permutation", "step_positions"]


def permutation(length: int, seed: int) -> NDArray[np.int64]:
    """A permutation of 0 .. length-1 decided by `seed` alone: the order of the numbers SplitMix64 gives.

    Not `torch.randperm` or numpy's generators, whose streams may change between versions and would break runs
    that resume.

    Source: G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators (OOPSLA 2014), figure
        17.
    """
    return np.argsort(numbers(seed, 0, length), kind="stable")


def numbers(seed: int, start: int, stop: int) -> NDArray[np.uint64]:
    """Numbers start .. stop-1 of the stream of a seed, each uniform in [0, 2**64): SplitMix64.

    Source: Steele et al. 2014, figure 17.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        counters = np.arange(start + 1, stop + 1, dtype=np.uint64)
        mixed = np.uint64(seed) + counters * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


# Two per source (this epoch's and the next) of a mixture of up to sixteen; 8 bytes per row each.
@lru_cache(maxsize=34)
def _cached_permutation(length: int, seed: int) -> NDArray[np.int64]:
    return permutation(length, seed)


class RowOrder:
    """Which row stands at which position, and the key of its randomness.

    Args:
        sizes: rows of each source; rows are numbered through.
        seed: of the order and of the keys.
        weights: visits of each row per epoch, by source; default 1.
        shuffle: a new permutation every epoch; False keeps the rows' own order.
        draws_per_row: size of a fixed bank of draws per row (stored references); None draws anew at every
            visit.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        seed: int,
        weights: Sequence[float] | None = None,
        shuffle: bool = True,
        draws_per_row: int | None = None,
    ) -> None:
        self.sizes = tuple(sizes)
        self.seed, self.shuffle, self.draws_per_row = seed, shuffle, draws_per_row
        weights = tuple(weights) if weights is not None else (1.0,) * len(self.sizes)
        if not self.sizes or min(self.sizes) < 1 or len(weights) != len(self.sizes) or min(weights) <= 0:
            message = (
                f"RowOrder: got sizes {self.sizes} and weights {weights}, expected one positive number of "
                "each per source."
            )
            raise HyperparameterError(message)
        self._counts = [
            max(round(weight * size), 1) for weight, size in zip(weights, self.sizes, strict=True)
        ]
        self._slots = np.cumsum([0, *self._counts])
        self._rows = np.cumsum([0, *self.sizes])

    @classmethod
    def for_table(
        cls, table: "RowTable", *, seed: int, shuffle: bool = True, draws_per_row: int | None = None
    ) -> "RowOrder":
        """The order of a table's rows, its sources mixed by their weights."""
        return cls(
            table.sizes, seed=seed, weights=table.weights, shuffle=shuffle, draws_per_row=draws_per_row
        )

    @property
    def epoch_length(self) -> int:
        """Positions per epoch."""
        return int(self._slots[-1])

    def at(self, position: int) -> tuple[int, int]:
        """(row, visit) at a position; visit counts from 0 how often the row came before."""
        epoch, place = divmod(position, self.epoch_length)
        # One source needs no second shuffle: its own permutation is one.
        mixed = len(self.sizes) > 1
        slot = self._shuffled(place, self.epoch_length, "epoch", epoch) if mixed else place
        source = int(np.searchsorted(self._slots, slot, side="right")) - 1
        # Each source is its own endless stream of permutations; an epoch takes the next piece of each.
        taken = epoch * self._counts[source] + slot - int(self._slots[source])
        visit, within = divmod(taken, self.sizes[source])
        row = self._shuffled(within, self.sizes[source], f"source {source}", visit)
        return int(self._rows[source]) + row, visit

    def _shuffled(self, place: int, length: int, what: str, number: int) -> int:
        if not self.shuffle:
            return place
        return int(_cached_permutation(length, derive_seed(self.seed, "order", what, number))[place])

    def key(self, position: int) -> int:
        """The 63-bit number that decides every random draw of the row at a position."""
        row, visit = self.at(position)
        draw = visit if self.draws_per_row is None else visit % self.draws_per_row
        return self.row_key(row, draw)

    def row_key(self, row: int, draw: int) -> int:
        """The key of one draw of one row, wherever it stands in the order."""
        return derive_seed(self.seed, "row", row, draw)

    def keys(self, positions: Sequence[int], *, rows_per_step: int) -> RowKeys:
        """Keys of some positions, with each row's stratum in its optimiser step.

        Args:
            positions: of one micro-batch.
            rows_per_step: rows of an optimiser step over all devices and micro-steps.
        """
        strata = [position % rows_per_step / rows_per_step for position in positions]
        return RowKeys(
            key=torch.tensor([self.key(position) for position in positions], dtype=torch.int64),
            stratum=torch.tensor(strata, dtype=torch.float32),
            num_strata=rows_per_step,
        )


def step_positions(
    step: int, micro_step: int, rank: int, *, batch_size: int, accumulation: int, world_size: int
) -> range:
    """Positions of one micro-batch: s * E + m * (W * B) + r * B + j for j in 0 .. B-1, E = A * W * B.

    The rows of an optimiser step are the same whatever the split into micro-steps and ranks, as long as E is.
    """
    start = step * accumulation * world_size * batch_size + (micro_step * world_size + rank) * batch_size
    return range(start, start + batch_size)
