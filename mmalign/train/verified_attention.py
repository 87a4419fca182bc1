"""Attention kernels that may be chosen: those whose numbers were compared with float32 mathematics here.

A kernel that is fast on one card is refused on another, and one that runs need not be right. So each is tried
once, forward and backward, on a small input of the run's device, dtype and head size, and timed on it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = [
    "LARGEST_GAP",
    "AttentionUse",
    "Kernel",
    "Trial",
    "fastest",
    "flash_alone",
    "torch_choice",
    "try_kernel",
]

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(query, key, value `[row, head, token, feature]`, mask or None) to the attended values."""

LARGEST_GAP = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.05}
"""Norm of (result - float32) / norm of float32, of output and gradients: a few roundings of each dtype."""

_TIE = 1.05
"""A later kernel must be faster by this factor: less is noise."""


@dataclass(frozen=True)
class AttentionUse:
    """What a network asks of its attention.

    Args:
        device: it runs on.
        dtype: of its products.
        head_size: features per head.
        tokens: of the trial, queries and keys.
        heads: of the trial.
    """

    device: torch.device
    dtype: torch.dtype
    head_size: int
    tokens: int = 1024
    heads: int = 8

    def __str__(self) -> str:
        return f"{self.device.type}, {str(self.dtype).removeprefix('torch.')}, heads of {self.head_size}"


@dataclass(frozen=True)
class Trial:
    """What came of trying one kernel.

    Args:
        name: of the kernel.
        milliseconds: forward and backward, the fastest of a few; 0 where it was refused.
        refusal: why it may not be chosen; empty where it may.
    """

    name: str
    milliseconds: float = 0.0
    refusal: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.refusal}" if self.refusal else f"{self.name} {self.milliseconds:.2f} ms"


def torch_choice(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Torch's SDPA, which picks its kernel itself."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def flash_alone(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Torch's flash kernel; RuntimeError where it does not take these tensors."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        return torch_choice(query, key, value, mask)


def _exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    with sdpa_kernel([SDPBackend.MATH]):
        return torch_choice(query, key, value, mask)


def try_kernel(name: str, kernel: Kernel, use: AttentionUse, *, mask: Tensor | None = None) -> Trial:
    """Compare a kernel's output and gradients with mathematics in float64, and time it.

    Args:
        name: for messages.
        kernel: to try.
        use: what it must do.
        mask: `[row, 1, query, key]`, True where seen; its own length counts instead of `use.tokens`.
    """
    tokens = use.tokens if mask is None else mask.shape[-1]
    drawn = torch.randn(3, 2, use.heads, tokens, use.head_size, generator=torch.Generator().manual_seed(0))
    inputs = drawn.to(use.device, use.dtype)
    # Wider than TF32 rounds; outside of what follows, for its failure is not the kernel's.
    exact = _results(_exact, inputs.double(), mask)
    try:
        found = _results(kernel, inputs, mask)
        _wait(use.device)
        largest = float(torch.stack([_gap(a, b) for a, b in zip(found, exact, strict=True)]).max())
        limit = _limit(use)
        # Not `largest > limit`, which a result that is not a number would pass.
        if not largest <= limit:
            return Trial(name, refusal=f"is off by {largest:.2g} from float32, more than {limit}")
        return Trial(
            name, milliseconds=1e3 * min(_seconds(kernel, inputs, mask, use.device) for _ in range(5))
        )
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # the first says nothing about the kernel; after the second the device is of no use to any
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return Trial(name, refusal=f"does not run here ({reason[:120]})")


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """The fastest verified one, an earlier one where they are about equal; None where there is none."""
    best: Trial | None = None
    for trial in trials:
        if not trial.refusal and (best is None or trial.milliseconds * _TIE < best.milliseconds):
            best = trial
    return best


def _results(kernel: Kernel, inputs: Tensor, mask: Tensor | None) -> list[Tensor]:
    given = [value.detach().clone().requires_grad_() for value in inputs]
    output = kernel(given[0], given[1], given[2], mask)
    wide = output if output.dtype is torch.float64 else output.float()
    gradients = torch.autograd.grad(wide.square().sum(), given)
    return [output.detach(), *gradients]


def _limit(use: AttentionUse) -> float:
    """The gap allowed; float32 products in TF32 have the ten bits of float16."""
    rounds = use.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return LARGEST_GAP[torch.float16 if use.dtype is torch.float32 and rounds else use.dtype]


def _gap(found: Tensor, exact: Tensor) -> Tensor:
    gap: Tensor = (found.double() - exact).norm() / exact.norm()
    return gap


def _seconds(kernel: Kernel, inputs: Tensor, mask: Tensor | None, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    _results(kernel, inputs, mask)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
