"""FSDP2: a network whose weights, gradients and optimiser state are spread over the processes.

The network is cut into units (its blocks) and a root, which holds the rest. A unit's weights are gathered
before its forward and backward pass and given back after it, so a process needs room for its part and one
unit. `fully_shard` works in place: names, adapters and the calls of a reference stay what they were.
"""

import contextlib
import copy
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from mmalign.errors import ConfigError, explain
from mmalign.sharded import whole

__all__ = ["ENGINE", "shard", "skeleton_of", "units_of", "unsynced", "whole_copy"]

ENGINE = "_mmalign_zero"
"""Where a network's `ZeroEngine` is found: in the module's `__dict__`, beside its parameters."""

_REDUCES = "_mmalign_reduces"
_REDUCES_EVERY_TIME = "_mmalign_reduces_every_time"


def units_of(network: nn.Module, names: Collection[str] | None = None) -> list[nn.Module]:
    """The modules that are gathered one at a time, inner ones first.

    Args:
        network: to be sharded.
        names: class names. None: what the model itself says must stay together (`_no_split_modules` of
            diffusers and transformers), else the members of its module lists.

    Raises:
        ConfigError: no module of the network has one of these names.
    """
    wanted = set(names or ())
    if names is None:
        for module in network.modules():
            wanted |= set(getattr(module, "_no_split_modules", None) or ())
    found = [module for module in network.modules() if type(module).__name__ in wanted]
    if names is not None and not found:
        classes = sorted({type(module).__name__ for module in network.modules()})
        message = explain(
            "accelerate configuration: fsdp_transformer_layer_cls_to_wrap",
            got=", ".join(sorted(wanted)),
            expected="class names of the network's blocks, or nothing: they are found",
            do=f"It has: {', '.join(classes)}.",
        )
        raise ConfigError(message)
    if not found:
        lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
        found = [member for members in lists for member in members]
    # `modules` names a module before what it contains.
    return [module for module in reversed(found) if module is not network]


def shard(
    network: nn.Module,
    settings: Any,
    *,
    mesh: Any,
    held_whole: Collection[nn.Parameter] = (),
    gives_back: bool | None = None,
    gathered_dtype: torch.dtype | None = None,
) -> None:
    """Spread a network over the processes, in place.

    Trained weights are float32 in their parts, and gradients are summed in float32. Inputs are not cast: a
    timestep in bfloat16 would be another one.

    Args:
        network: whole on every process, on its device or on the CPU; its trained weights are float32.
        settings: accelerate's FullyShardedDataParallelPlugin: `transformer_cls_names_to_wrap`,
            `reshard_after_forward`, `cpu_offload`.
        mesh: of devices.
        held_whole: frozen parameters that every process keeps, because something reads them outside of the
            network's forward pass. Quantised weights, which cannot be cut, are kept in any case.
        gathered_dtype: of whole weights; None keeps their own. Under autocast, float32 weights would leave a
            half-precision copy of themselves in the graph, and all of them together a whole network.
        gives_back: units give their weights back after a forward pass; None is what the settings say.
    """
    gives_back = settings.reshard_after_forward if gives_back is None else gives_back
    sizes = [(value.numel(), value.requires_grad) for value in network.parameters()]
    ignored = {*held_whole, *(value for value in network.parameters() if not value.is_floating_point())}
    shared: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=gathered_dtype,
            reduce_dtype=torch.float32 if gathered_dtype else None,
            cast_forward_inputs=False,
        ),
        "offload_policy": settings.cpu_offload or OffloadPolicy(),
        "ignored_params": ignored,
    }
    for unit in units_of(network, settings.transformer_cls_names_to_wrap):
        own = [value for value in unit.parameters() if value not in ignored]
        if own and not isinstance(unit, FSDPModule):
            fully_shard(unit, **shared, reshard_after_forward=gives_back)
    fully_shard(network, **shared)
    for value in ignored:  # `fully_shard` brings to the device what it spreads, and nothing else
        value.data = value.data.to(mesh.device_type)
    for module in network.modules():
        if isinstance(module, FSDPModule) and mesh.device_type == "cpu":
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no mean
    # Whole gradients of a network that trains fully would undo the sharding; those of adapters are small.
    trained = sum(size for size, trains in sizes if trains)
    setattr(network, _REDUCES_EVERY_TIME, 2 * trained > sum(size for size, _ in sizes))


def unsynced(network: nn.Module) -> AbstractContextManager[None]:
    """A context for the backward passes of an optimiser step but the last: gradients stay where they are.

    Without effect on one process, and on sharded networks that train fully.
    """
    engine = network.__dict__.get(ENGINE)
    if engine is not None:
        without: AbstractContextManager[None] = engine.unsynced()
        return without
    if isinstance(network, FSDPModule):
        every_time = getattr(network, _REDUCES_EVERY_TIME, False)
        return contextlib.nullcontext() if every_time else _without_reduction(network)
    if isinstance(network, nn.parallel.DistributedDataParallel):
        context: AbstractContextManager[None] = network.no_sync()
        return context
    return contextlib.nullcontext()


@contextlib.contextmanager
def _without_reduction(network: FSDPModule) -> Iterator[None]:
    # It nests: parts of a backward pass enter it inside the context of their micro-step.
    before = getattr(network, _REDUCES, True)
    _reduce(network, False)
    try:
        yield
    finally:
        _reduce(network, before)


def _reduce(network: FSDPModule, wanted: bool) -> None:
    network.set_requires_gradient_sync(wanted)
    setattr(network, _REDUCES, wanted)


# --- a whole network again ----------------------------------------------------------------------------------


def skeleton_of(network: nn.Module) -> nn.Module:
    """A copy without weights (on the meta device), taken before sharding; buffers are copied.

    Quantised weights are the network's own: they stay whole and do not change, so a copy only takes room.
    """
    memo: dict[int, Any] = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=value.requires_grad)
        if type(value) is nn.Parameter
        else value
        for value in network.parameters()
    }
    return copy.deepcopy(network, memo)


def whole_copy(
    skeleton: nn.Module, network: nn.Module, *, keeps: bool, only: Collection[str] | None = None
) -> nn.Module:
    """The skeleton with the sharded network's weights, on the CPU; a collective.

    One weight is gathered at a time, so a device needs room for its largest weight only.

    Args:
        skeleton: from `skeleton_of`; changed in place and returned.
        network: sharded.
        keeps: this process wants the result; others take part and keep nothing.
        only: names of the weights that are needed; None is all.
    """
    made: dict[int, nn.Parameter] = {}
    for name, value in network.named_parameters(remove_duplicate=False):
        if only is not None and name not in only:
            continue
        if id(value) not in made:
            gathered = whole(value)
            made[id(value)] = nn.Parameter(
                gathered.to("cpu", copy=True) if keeps else gathered.new_empty(0),
                requires_grad=value.requires_grad,
            )
        if keeps:
            parent, _, last = name.rpartition(".")
            setattr(skeleton.get_submodule(parent), last, made[id(value)])
    return skeleton
