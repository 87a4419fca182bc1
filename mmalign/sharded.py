"""Tensors of which every process holds a part, handled like whole ones.

A parameter of a sharded network (`torch.distributed.fsdp.fully_shard`) is a DTensor: it has the shape of the
whole weight and the storage of a part. Everything here takes plain tensors, too, and then costs a look at
their type.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["is_sharded", "local_part", "local_parts", "place", "replicated", "reshard", "total_norm", "whole"]


def is_sharded(value: object) -> bool:
    """Whether processes hold parts of this tensor."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def local_part(value: Tensor) -> Tensor:
    """What this process holds: a view, so that writing to it changes the tensor; a plain tensor is itself."""
    if not is_sharded(value):
        return value
    part: Tensor = value.to_local()  # type: ignore[attr-defined]
    return part


def local_parts(values: Sequence[Tensor]) -> list[Tensor]:
    """`local_part` of tensors that are all plain or all sharded, which the first of them tells."""
    if not values or not is_sharded(values[0]):
        return list(values)
    return [local_part(value) for value in values]


@torch.no_grad()
def whole(value: Tensor) -> Tensor:
    """The whole tensor on every process; a collective where it is sharded."""
    if not is_sharded(value):
        return value
    gathered: Tensor = value.full_tensor()  # type: ignore[attr-defined]
    return gathered


@torch.no_grad()
def place(target: Tensor, value: Tensor) -> None:
    """Write a value into a tensor, each process the part that it holds; nothing is sent.

    Args:
        target: plain or sharded.
        value: whole on every process, or sharded as the target is.
    """
    if not is_sharded(target):
        target.copy_(value)
    elif is_sharded(value):
        local_part(target).copy_(local_part(value))
    else:
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
        spread = distribute_tensor(value.to(target.dtype), mesh, placements, src_data_rank=None)
        local_part(target).copy_(spread.to_local())


def replicated(value: Tensor, like: Tensor) -> Tensor:
    """A value that is equal on all processes, as a fellow of sharded tensors in one operation.

    Args:
        value: the same everywhere.
        like: a parameter it meets; when that is a plain tensor, so is the result.
    """
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


@torch.no_grad()
def total_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The Euclidean norm of all tensors together; one sum over the processes where they are sharded.

    Args:
        tensors: all plain, or all sharded in one way.
    """
    norm = torch.nn.utils.get_total_norm(local_parts(tensors))
    if not tensors or not is_sharded(tensors[0]):
        return norm
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = tensors[0].device_mesh, tensors[0].placements  # type: ignore[attr-defined]
    parts = [Partial() if placement.is_shard() else Replicate() for placement in placements]
    squared: Tensor = DTensor.from_local(norm.square(), mesh, parts, run_check=False).full_tensor()
    return squared.sqrt()


def reshard(network: nn.Module) -> None:
    """Give back the whole weights that a sharded network keeps after a forward pass.

    They are copies: after the parts have changed, the next forward pass must gather anew.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
