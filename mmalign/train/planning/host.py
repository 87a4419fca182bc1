"""What an operation costs the host beside its work: Python, autograd, torch's dispatcher, new memory.

Measured on blocks as networks have them: what they take beyond the work of their operations, per operation.
Views are no operations of a plan, modules that do nothing (dropout) even less, and Python between two calls
is none of torch; all of them cost the host time, so the blocks have about as many per operation as the blocks
of UNets and transformers. The blocks are not of no size: tensors that go through a cache drive Python out of
it, and Python that comes back takes twice as long.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmalign.train.planning.curves import Curves, work_seconds
from mmalign.train.planning.shapes_only import meta_copy
from mmalign.train.planning.trace import MOMENTS, Moment, trace_pass

__all__ = ["host_times", "usual_seconds"]

_ROUNDS, _SPENT = 3, 0.05
"""Least rounds, and seconds in them, of a measurement."""

_WIDTH, _RANK, _HEADS = 64, 8, 4
_SHAPE = (4, _WIDTH, 4, 4)
"""Of what goes through the blocks: work takes about as long as the host."""

_BLOCKS = 24
_HOST_ROUNDS = 7


def usual_seconds(run: Callable[[], object]) -> float:
    """Seconds that the process was at work, over as many threads as it uses: the median of some rounds.

    Not the least: a step is long, and meets the machine's average, where the luckiest of many short rounds
    meets a core that nobody else heats, shares or interrupts. Short work gets more rounds.
    """
    run()
    found: list[float] = []
    while len(found) < _ROUNDS or sum(found) < _SPENT:
        found.append(_busy(run))
    return statistics.median(found) / torch.get_num_threads()


def _busy(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


class _Adapted(nn.Module):
    """A linear layer with its adapter, as `lean_lora.py` calls it."""

    def __init__(self, wide: int = _WIDTH) -> None:
        super().__init__()
        self.base = nn.Linear(_WIDTH, wide)
        self.down, self.up = nn.Linear(_WIDTH, _RANK, bias=False), nn.Linear(_RANK, wide, bias=False)
        self.base.requires_grad_(False)

    def forward(self, value: Tensor) -> Tensor:
        rows = value.reshape(-1, value.shape[-1])
        narrow = nn.functional.linear(rows, self.down.weight)
        result = torch.addmm(self.base(rows), narrow, self.up.weight.t(), alpha=0.5)
        return result.view(*value.shape[:-1], result.shape[-1])


class _Mixing(nn.Module):
    """Attention with adapters; the context is the value itself."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = _Adapted(), _Adapted(), _Adapted()
        self.out = nn.ModuleList([_Adapted(), nn.Dropout(0.0)])

    def forward(self, value: Tensor) -> Tensor:
        rows = value.shape[0]
        heads = [
            layer(value).view(rows, -1, _HEADS, _WIDTH // _HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        mixed = mixed.transpose(1, 2).reshape(rows, -1, _WIDTH).to(heads[0].dtype)
        for layer in self.out:
            mixed = layer(mixed)
        return mixed


class _Gated(nn.Module):
    """A gated activation after its product."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(_WIDTH, 4 * _WIDTH)

    def forward(self, value: Tensor) -> Tensor:
        value, gate = self.wide(value).chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)


class _Transformer(nn.Module):
    """Attention twice and a gated feed-forward, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH) for _ in range(3))
        self.mixings = nn.ModuleList(_Mixing() for _ in range(2))
        self.forward_ = nn.ModuleList([_Gated(), nn.Dropout(0.0), nn.Linear(2 * _WIDTH, _WIDTH)])

    def forward(self, value: Tensor) -> Tensor:
        for norm, mixing in zip(self.norms, self.mixings, strict=False):
            value = mixing(norm(value)) + value
        hidden = self.norms[2](value)
        for layer in self.forward_:
            hidden = layer(hidden)
        result: Tensor = hidden + value
        return result


class _Residual(nn.Module):
    """Two convolutions with their norms and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, _WIDTH) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in range(2))
        self.act, self.dropout = nn.SiLU(), nn.Dropout(0.0)

    def forward(self, value: Tensor) -> Tensor:
        hidden = value
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden = convolution(self.dropout(self.act(norm(hidden))))
        return value + hidden


class _Block(nn.Module):
    """A block as networks have them: convolutions, then a transformer's block."""

    def __init__(self) -> None:
        super().__init__()
        self.residual, self.transformer = _Residual(), _Transformer()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("down" in name or "up" in name)

    def forward(self, value: Tensor) -> Tensor:
        hidden = self.residual(value)
        rows = self.transformer(hidden.flatten(2).transpose(1, 2))
        result: Tensor = value + rows.transpose(1, 2).reshape(value.shape)
        return result


def host_times(curves: Curves) -> tuple[float, float]:
    """Seconds of the host per operation of a forward pass, and of a backward pass.

    Args:
        curves: what the work of operations takes.
    """
    network, value = nn.Sequential(*(_Block() for _ in range(_BLOCKS))).eval(), torch.randn(_SHAPE)
    counted = trace_pass(meta_copy(network), lambda called: called(value.to("meta")))

    def forward() -> Tensor:
        result: Tensor = network(value)
        return result

    def both() -> None:
        forward().square().sum().backward()

    both()
    times = [(_busy(forward), _busy(both)) for _ in range(_HOST_ROUNDS)]
    one, two = (statistics.median(found) / torch.get_num_threads() for found in zip(*times, strict=True))
    passes: dict[Moment, float] = {"forward": one, "backward": two - one}
    work = dict.fromkeys(MOMENTS, 0.0)
    for kernel in counted.kernels:
        work[kernel.moment] += work_seconds(kernel, curves) or 0.0
    # Rates are measured by themselves, and may be missed by more than the host takes.
    forward_, backward = (
        max(passes[moment] - work[moment], 0.1 * passes[moment]) / counted.count_of(moment)
        for moment in MOMENTS
    )
    return forward_, backward
