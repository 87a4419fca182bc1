"""What processes gather of each other's weights at a time: FSDP2's blocks, stage 3's layers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmalign.train.distributed.sharding import units_of

__all__ = ["Cut", "Unit", "cut"]


@dataclass(frozen=True)
class Unit:
    """Weights that are gathered together.

    Args:
        whole: bytes of them, in the dtype in which they are gathered.
        around: bytes of the units that this one lies in, which are gathered meanwhile.
        trained: numbers of them that train.
        trained_bytes: of those, as gathered: so large are their gradients.
    """

    whole: int
    around: int
    trained: int
    trained_bytes: int


@dataclass(frozen=True)
class Cut:
    """A network as FSDP2 cuts it.

    Args:
        units: its blocks.
        root: bytes of the rest, which stays gathered from its first use to the end of the backward pass.
    """

    units: tuple[Unit, ...]
    root: int

    @property
    def all_units(self) -> int:
        """Bytes of all blocks."""
        return sum(unit.whole for unit in self.units)

    @property
    def at_work(self) -> int:
        """Bytes of the largest block, of what it lies in, and of the buffer of the next one."""
        largest = max((unit.whole + unit.around for unit in self.units), default=0)
        return largest + self.buffer

    @property
    def buffer(self) -> int:
        """Bytes of the largest block: what a gathering writes to before weights have their shapes."""
        return max((unit.whole for unit in self.units), default=0)

    @property
    def reducing(self) -> int:
        """Bytes of a block's whole gradients, and of those of the block before as they are sent, float32."""
        return max((unit.trained_bytes + 4 * unit.trained for unit in self.units), default=0)


def cut(network: nn.Module, *, gathered: torch.dtype | None = None, whole: Collection[Tensor] = ()) -> Cut:
    """The blocks that `mmalign.train.distributed.sharding.shard` would make of a network.

    Args:
        network: on any device.
        gathered: dtype of whole weights; None: their own.
        whole: weights that every process keeps.

    Raises:
        ConfigError: as `units_of`.
    """
    taken = {id(value) for value in whole}
    units = [unit for unit in units_of(network) if any(id(value) not in taken for value in unit.parameters())]
    own: list[Sequence[Tensor]] = []
    for unit in units:  # inner ones first
        mine = [value for value in unit.parameters() if id(value) not in taken]
        taken |= {id(value) for value in mine}
        own.append(mine)
    rest = [value for value in network.parameters() if id(value) not in taken]

    def size(values: Sequence[Tensor]) -> int:
        return sum(
            value.numel() * (value.element_size() if gathered is None else gathered.itemsize)
            for value in values
        )

    inside = [set(map(id, unit.modules())) for unit in units]
    made = []
    for number, unit in enumerate(units):
        outer = [place for place, held in enumerate(inside) if place != number and id(unit) in held]
        trained = [value for value in own[number] if value.requires_grad]
        made.append(
            Unit(
                whole=size(own[number]),
                around=sum(size(own[place]) for place in outer),
                trained=sum(value.numel() for value in trained),
                trained_bytes=size(trained),
            )
        )
    return Cut(tuple(unit for unit in made if unit.whole), size(rest))
