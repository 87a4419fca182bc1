"""Regional compilation: the blocks that a network repeats are compiled, in place, and the rest is left alone.

A network of fifty equal blocks is compiled once per kind of block instead of fifty times. Names of weights,
checkpoints and exports do not change: a block is told how to be called, and its class and weights stay.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from mmalign.errors import ConfigError, explain

__all__ = ["BACKEND", "GRAPHS_PER_BLOCK", "RepeatsBlocks", "compile_blocks", "require_compiler"]

BACKEND = "inductor"
"""Of torch's compiler."""

GRAPHS_PER_BLOCK = 64
"""Specialisations of a block's code before torch stops to compile further ones and runs those as they are.

A width of the network is one, and every width has one for the policy (gradients, adapters on) and one for the
reference (neither). Stable Diffusion 1.5 has three widths; torch's own limit of 8 leaves no room for samples.
"""


@runtime_checkable
class RepeatsBlocks(Protocol):
    """A model that knows which of its network's modules are its blocks."""

    family: str

    def repeated_blocks(self, network: nn.Module) -> Sequence[nn.Module]:
        """The blocks of the trained network, or of a copy of it; empty where it repeats none."""
        ...


def compile_blocks(model: Any, network: nn.Module, *, device: torch.device | str) -> int:
    """Compile the repeated blocks of a network in place, at their first call. Returns how many.

    Sizes are taken as fixed until they change; what has changed once is a variable from then on.

    Args:
        model: whose network it is.
        network: the trained one, or a copy of it; adapters may be attached before or afterwards.
        device: where it runs.

    Raises:
        ConfigError: the network repeats no blocks, or nothing can be compiled on this machine.
    """
    blocks = model.repeated_blocks(network) if isinstance(model, RepeatsBlocks) else ()
    if not blocks:
        message = explain(
            "model.compile",
            got=f"blocks, of {type(network).__name__} (family {getattr(model, 'family', '?')})",
            expected="a network with repeated blocks",
            do="Set model.compile: none.",
        )
        raise ConfigError(message)
    if BACKEND == "inductor":
        require_compiler(torch.device(device))
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, GRAPHS_PER_BLOCK)
    # Under DDP torch would cut the graph of a block wherever a bucket of gradients is full, so that sending
    # begins inside of it. It begins after every block as it is, and the kernels stay those of one process.
    settings.optimize_ddp = False
    for block in blocks:
        block.compile(backend=BACKEND)
    return len(blocks)


def require_compiler(device: torch.device) -> None:
    """Torch's compiler finds what it needs beside itself.

    Raises:
        ConfigError: there is no C++ compiler for the CPU, or no Triton for a GPU.
    """
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            message = explain(
                "model.compile",
                got="blocks, and no C++ compiler on this machine",
                expected="one that torch finds: g++ or clang++",
                do="Install it, name it in the environment variable CXX, or set model.compile: none.",
            )
            raise ConfigError(message) from error
        return
    from torch.utils._triton import has_triton

    if not has_triton():
        message = explain(
            "model.compile",
            got=f"blocks, and no Triton that serves {device.type}",
            expected="the triton of this torch, and a GPU of compute capability 7.0 or higher",
            do="Set model.compile: none.",
        )
        raise ConfigError(message)
