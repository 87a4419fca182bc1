"""`model.attention: auto`: the fastest verified backend of a diffusers network on this device.

On the CPU that is torch's SDPA, as without a choice. On a GPU torch's own choice and its flash kernel alone
are tried. xformers is used only by name: torch has its kernels. Networks on diffusers' dispatcher may mask
their texts, which the flash kernel refuses, so they leave the choice to torch, call by call.
"""

from typing import Any, Literal

import torch

from mmalign.errors import ConfigError, explain
from mmalign.train.verified_attention import (
    AttentionUse,
    Trial,
    fastest,
    flash_alone,
    torch_choice,
    try_kernel,
)

__all__ = ["choose_backend", "head_size_of"]

_DEFAULT_HEAD = 64


def head_size_of(network: Any) -> int:
    """Features per head of the network's attention, the largest; 64 where its layers do not tell."""
    sizes = [
        module.inner_dim // module.heads
        for module in network.modules()
        if isinstance(getattr(module, "inner_dim", None), int) and getattr(module, "heads", None)
    ]
    return max(sizes, default=_DEFAULT_HEAD)


def choose_backend(
    network: Any, *, device: torch.device, dtype: torch.dtype, is_dispatched: bool
) -> tuple[Literal["sdpa", "flash"], str]:
    """The backend and the reason, for the run's opening lines.

    Args:
        network: of diffusers.
        device: where it will run.
        dtype: of its products.
        is_dispatched: it honours diffusers' dispatcher.

    Raises:
        ConfigError: no kernel gives the numbers of float32 mathematics.
    """
    if device.type != "cuda":
        return "sdpa", f"auto, on {device.type}"
    use = AttentionUse(device, dtype, head_size_of(network))
    trials: list[Trial] = [try_kernel("sdpa", torch_choice, use)]
    if not is_dispatched:
        trials.append(try_kernel("flash", flash_alone, use))
    best = fastest(trials)
    said = ", ".join(map(str, trials))
    if best is None:
        message = explain(
            "model.attention auto",
            got=f"{said} ({use})",
            expected="a kernel that gives about the numbers of float32",
            do="Look at the card's driver and torch's version; name a backend to use it unverified.",
        )
        raise ConfigError(message)
    chosen: Literal["sdpa", "flash"] = "flash" if best.name == "flash" else "sdpa"
    return chosen, f"auto, fastest of those verified: {said} ({use}, {use.tokens} tokens)"
