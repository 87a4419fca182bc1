"""Tensors of which every process holds a part, handled like whole ones.

A parameter of a sharded network (`torch.distributed.fsdp.fully_shard`) is a DTensor: it has the shape of the
whole weight and the storage of a part. Everything here takes plain tensors, too, and then costs a look at
their type.

Under DeepSpeed's ZeRO stage 3 a parameter is a plain one that is empty between uses. Its part is a flat
tensor beside it (`ds_tensor`), padded to the same length on every process; such a parameter is called
partitioned. Its `detach()` is empty, so it is handed over itself.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "fill_part",
    "is_partitioned",
    "is_sharded",
    "kept_copy",
    "live_parts",
    "local_part",
    "local_parts",
    "num_elements",
    "place",
    "replicated",
    "reshard",
    "total_norm",
    "whole",
    "whole_of",
]


def is_partitioned(value: object) -> bool:
    """Whether this is a parameter that ZeRO stage 3 keeps in flat parts."""
    return hasattr(value, "ds_tensor")


def is_sharded(value: object) -> bool:
    """Whether processes hold parts of this tensor."""
    return is_partitioned(value) or _is_distributed(value)


def _is_distributed(value: object) -> bool:
    """Whether this is torch's DTensor."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def local_part(value: Tensor) -> Tensor:
    """What this process holds: a view, so that writing to it changes the tensor; a plain tensor is itself."""
    if is_partitioned(value):
        flat: Tensor = value.ds_tensor.data  # type: ignore[attr-defined]
        return flat
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
    if is_partitioned(value):
        return whole_of(value, local_part(value))
    if not is_sharded(value):
        return value
    gathered: Tensor = value.full_tensor()  # type: ignore[attr-defined]
    return gathered


@torch.no_grad()
def place(target: Tensor, value: Tensor) -> None:
    """Write a value into a tensor, each process the part that it holds; nothing is sent.

    Args:
        target: plain or sharded.
        value: whole on every process, or sharded as the target is; of a partitioned one its flat part.
    """
    if is_partitioned(target):
        part = local_part(target)
        if value.shape == part.shape:
            part.copy_(value)
        else:
            fill_part(part, value)
    elif not is_sharded(target):
        target.copy_(value)
    elif is_sharded(value):
        local_part(target).copy_(local_part(value))
    else:
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
        spread = distribute_tensor(value.to(target.dtype), mesh, placements, src_data_rank=None)
        local_part(target).copy_(spread.to_local())


@torch.no_grad()
def whole_of(like: Tensor, part: Tensor) -> Tensor:
    """The whole tensor of flat parts, on every process; a collective.

    Args:
        like: a partitioned parameter, whose shape the result has.
        part: of this process, laid out as the parameter's own part is.
    """
    gathered = part.new_empty(part.numel() * torch.distributed.get_world_size())
    torch.distributed.all_gather_into_tensor(gathered, part.contiguous())
    shape: torch.Size = like.ds_shape  # type: ignore[attr-defined]
    return gathered[: shape.numel()].view(shape)


@torch.no_grad()
def fill_part(part: Tensor, value: Tensor) -> None:
    """Write this process's share of a whole tensor into a flat part; what is beyond its end stays."""
    own = value.reshape(-1)[part.numel() * torch.distributed.get_rank() :][: part.numel()]
    part[: own.numel()].copy_(own)


def kept_copy(value: Tensor) -> Tensor:
    """A copy for `place` to put back later; nothing is sent."""
    return local_part(value).clone() if is_partitioned(value) else value.detach().clone()


def live_parts(values: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Trained weights for operations element by element: their flat parts where they are partitioned."""
    return [nn.Parameter(local_part(value)) if is_partitioned(value) else value for value in values]


def num_elements(value: Tensor) -> int:
    """Of the whole tensor."""
    return int(getattr(value, "ds_numel", value.numel()))


def replicated(value: Tensor, like: Tensor) -> Tensor:
    """A value that is equal on all processes, as a fellow of sharded tensors in one operation.

    Args:
        value: the same everywhere.
        like: a parameter it meets; when that is a plain tensor, so is the result.
    """
    if not _is_distributed(like):
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
    if not tensors or not _is_distributed(tensors[0]):
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
