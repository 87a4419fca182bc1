"""The trained network and its frozen copy, prepared for however many processes there are."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from mmalign.errors import ConfigError, explain
from mmalign.likelihood import Reference
from mmalign.likelihood.reference import FrozenCopy
from mmalign.sharded import reshard
from mmalign.train.adapters import Trainables
from mmalign.train.distributed.modes import fsdp_settings, is_zero, mode_of, zero_plugin
from mmalign.train.distributed.sharding import ENGINE, shard, skeleton_of, whole_copy
from mmalign.train.distributed.zero import ZeroEngine, gathers_itself, make_engine, zero_settings
from mmalign.train.lean_lora import LeanLoraLinear
from mmalign.train.model import TrainedModel

__all__ = [
    "Prepared",
    "for_sampling",
    "for_saving",
    "make_room",
    "prepare_network",
    "prepare_optimizer",
    "prepare_reference",
]

_SKELETON = "_mmalign_skeleton"


@dataclass(frozen=True)
class Prepared:
    """A network ready to be trained.

    Args:
        network: what a step calls.
        trainables: the trained weights as they are now.
    """

    network: nn.Module
    trainables: Trainables


def make_room(accelerator: Accelerator, network: nn.Module, *, copied: bool) -> None:
    """Keep a network that will be copied and sharded on the CPU until then: two whole ones rarely fit.

    Args:
        accelerator: of the run.
        network: moved in place.
        copied: a frozen copy of it will be made.
    """
    if copied and mode_of(accelerator) in ("fsdp2", "zero3"):
        network.to("cpu")


def prepare_network(accelerator: Accelerator, model: TrainedModel, trainables: Trainables) -> Prepared:
    """The network for the mode of this launch; before the optimiser is made.

    Args:
        accelerator: of the run.
        model: whose network trains, with its adapter on.
        trainables: its trained weights.
    """
    mode, network = mode_of(accelerator), trainables.network
    if mode == "zero3":
        _refuse_few_bits(network)
        _call_layer_by_layer(network)
    if is_zero(mode):
        # At every stage: DeepSpeed hangs process groups on parameters, which exporters cannot copy.
        object.__setattr__(network, _SKELETON, skeleton_of(network))
        return Prepared(network.to(accelerator.device), trainables)
    if mode != "fsdp2":
        return Prepared(accelerator.prepare_model(network), trainables)
    # Not as an attribute of the module: its own would be part of the network.
    object.__setattr__(network, _SKELETON, skeleton_of(network))
    shard(
        network,
        fsdp_settings(accelerator),
        mesh=_mesh(accelerator),
        held_whole=_read_apart(model, network),
        gathered_dtype=_half(accelerator) if trainables.lora is None else None,
    )
    return Prepared(network, trainables.relisted())


def prepare_reference(accelerator: Accelerator, reference: Reference) -> Reference:
    """A frozen copy, sharded as the trained network is; other references hold no network."""
    if mode_of(accelerator) == "zero3" and isinstance(reference, FrozenCopy):
        frozen = reference.network.to(accelerator.device)
        settings = zero_settings(zero_plugin(accelerator))
        # Kept for as long as the network lives: its hooks gather the weights.
        object.__setattr__(frozen, ENGINE, gathers_itself(frozen, settings, accelerator.device))
    if mode_of(accelerator) == "fsdp2" and isinstance(reference, FrozenCopy):
        # No backward pass will want its weights: they need not stay.
        shard(
            reference.network,
            fsdp_settings(accelerator),
            mesh=_mesh(accelerator),
            gives_back=True,
            gathered_dtype=_half(accelerator),
        )
    return reference


def prepare_optimizer(
    accelerator: Accelerator, trainables: Trainables, optimizer: torch.optim.Optimizer
) -> ZeroEngine | None:
    """ZeRO's engine, which spreads the optimiser's state and what else its stage spreads; None without ZeRO.

    After it trained weights may be partitioned (`mmalign.sharded`).
    """
    if not is_zero(mode_of(accelerator)):
        return None
    return make_engine(trainables, optimizer, zero_settings(zero_plugin(accelerator)), accelerator.device)


def _refuse_few_bits(network: nn.Module) -> None:
    """Refuse quantised weights under stage 3, also those that a model's folder brings (`require_fitting`).

    Raises:
        ConfigError: some are no floating-point numbers.
    """
    kinds = {type(value).__name__ for value in network.parameters() if not value.is_floating_point()}
    if kinds:
        message = explain(
            "model under ZeRO stage 3",
            got=f"quantised weights ({', '.join(sorted(kinds))})",
            expected="weights in floating point",
            do="Launch with the file that `python -m mmalign.train.launch zero2` or `fsdp2` names.",
        )
        raise ConfigError(message)


def _call_layer_by_layer(network: nn.Module) -> None:
    """Have LoRA layers call their two halves: stage 3 gathers the weights of what is called."""
    for module in network.modules():
        if isinstance(module, LeanLoraLinear):
            module.__class__ = LeanLoraLinear.__base__  # peft's own


def _half(accelerator: Accelerator) -> torch.dtype | None:
    """What autocast computes products in; None without mixed precision."""
    return torch.bfloat16 if accelerator.mixed_precision == "bf16" else None


def _mesh(accelerator: Accelerator) -> Any:
    """The devices over which weights are spread: all of them, or those of accelerate's parallelism config."""
    mesh = getattr(accelerator, "torch_device_mesh", None)
    if mesh is not None and accelerator.parallelism_config is not None:
        return mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def _read_apart(model: TrainedModel, network: nn.Module) -> list[nn.Parameter]:
    """Frozen towers and projectors of language models: rows are encoded outside of the network's forward."""
    groups = getattr(model, "parameter_groups", None)
    if groups is None:
        return []
    frozen = {name: value for name, value in network.named_parameters() if not value.requires_grad}
    return [value for part, members in groups(frozen).items() if part != "language" for value in members]


# --- a sharded network as others know it --------------------------------------------------------------------


@contextlib.contextmanager
def for_sampling(network: nn.Module) -> Iterator[None]:
    """A context in which parts of a sharded network may be called by themselves, as generation does.

    The root's weights are gathered; every block gathers its own. All processes must sample the same.
    """
    if not isinstance(network, FSDPModule):
        yield
        return
    network.unshard()
    try:
        yield
    finally:
        reshard(network)


@contextlib.contextmanager
def for_saving(
    model: TrainedModel, trainables: Trainables, average: Sequence[Tensor] | None, *, is_main: bool
) -> Iterator[bool]:
    """A context in which the model can be saved; yields whether this process is the one to do it.

    A sharded network is replaced by a whole one on the CPU, for LoRA by one that has its adapter only. To be
    entered by all processes.

    Args:
        model: its networks are exchanged and put back.
        trainables: the trained weights.
        average: weights to save in their place.
        is_main: this process writes.
    """
    network: Any = trainables.network
    skeleton = network.__dict__.get(_SKELETON)
    with contextlib.nullcontext() if average is None else trainables.swapped(list(average)):
        if skeleton is None:
            yield is_main
            return
        only = None if trainables.lora is None else set(trainables.parameters)
        reshard(network)
        copied = whole_copy(copy.deepcopy(skeleton), network, keeps=is_main, only=only)
        with _standing_in(model, network, copied):
            yield is_main


@contextlib.contextmanager
def _standing_in(model: Any, network: nn.Module, copied: nn.Module) -> Iterator[None]:
    """The copy in the place of the network, also of the part of it that the model knows."""
    names = {id(module): name for name, module in network.named_modules()}
    kept = model.network, model.bare_network
    model.bare_network = copied.get_submodule(names[id(model.bare_network)])
    model.network = copied
    try:
        yield
    finally:
        model.network, model.bare_network = kept
