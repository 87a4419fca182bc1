"""What a run would do and need, before it does it: `mmalign train CONFIG --dry-run`."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint as recomputing

from mmalign import objectives
from mmalign.likelihood import beta_conventions
from mmalign.train.adapters import Trainables
from mmalign.train.config import ResolvedRun
from mmalign.train.loader import Layout

__all__ = [
    "Activations",
    "MemoryItem",
    "Plan",
    "count_activations",
    "derived_values",
    "layout_of",
    "memory_estimate",
    "print_plan",
    "saved_activation_bytes",
]

GIB = 2**30
_RECOMPUTE = "_gradient_checkpointing_func"  # where diffusers' blocks keep what recomputes them


@dataclass(frozen=True)
class MemoryItem:
    """Bytes one component holds on the device."""

    component: str
    num_bytes: int
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What a dry run prints.

    Args:
        run: with what followed from its data, where those are at hand.
        trainables: of the network.
        derived: what follows from the settings.
        memory: per component.
        notes: what was assumed, and what the model says of itself.
    """

    run: ResolvedRun
    trainables: Trainables
    derived: dict[str, str]
    memory: list[MemoryItem]
    notes: list[str]


def layout_of(run: ResolvedRun) -> Layout:
    """Batches of a run on as many processes as were launched."""
    train = run.config.train
    return Layout(train.batch_size, train.accumulation, int(os.environ.get("WORLD_SIZE", "1")))


def derived_values(run: ResolvedRun, layout: Layout, num_elements: int | None) -> dict[str, str]:
    """What follows from the settings and people get wrong: effective batch, effective rate, beta's unit."""
    config = run.config
    values = {
        "effective batch": f"{layout.effective_batch} prompts ({layout.batch_size} per device x "
        f"{layout.accumulation} micro-steps x {layout.world_size} devices)",
        "effective learning rate": f"{config.train.learning_rate:g} (used as it stands, not "
        "scaled by the batch)",
    }
    if num_elements is None:  # a language model: beta multiplies nats
        return values
    values["elements per sample"] = f"{num_elements}"
    beta = run.objective_arguments.get("beta")
    objective = objectives.build(run.method.objective, **run.objective_arguments)
    multiplies_score = bool(objective.terms) and objective.terms[0].beta == beta  # MaPO's beta is a weight
    if isinstance(beta, int | float) and run.method.likelihood == "elbo" and multiplies_score:
        # With sum reduction the configured beta multiplies the summed error / 2: the mean unit is
        # larger by the count.
        factor = num_elements if config.likelihood.reduction == "sum" else 1
        values["beta"] = str(beta_conventions(float(beta) * factor, num_elements))
    return values


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Activations:
    """What a backward pass needs besides weights, in bytes.

    Args:
        kept: from the forward pass on.
        recomputed: of the largest recomputed block, on top of it, while that block's turn lasts.
    """

    kept: int
    recomputed: int = 0


def saved_activation_bytes(network: nn.Module, forward: Callable[[nn.Module], Float[Tensor, "..."]]) -> int:
    """Bytes autograd keeps for the backward pass of `forward`, counted without computing anything.

    Args:
        network: its parameters give shapes and dtypes; nothing is copied.
        forward: calls the network it is given (a stand-in on the meta device) on meta inputs.
    """
    return count_activations(network, forward, with_blocks=False).kept


def count_activations(
    network: nn.Module,
    forward: Callable[[nn.Module], Float[Tensor, "..."]],
    *,
    with_blocks: bool = True,
    autocast: torch.dtype | None = None,
) -> Activations:
    """As `saved_activation_bytes`, recomputed blocks apart.

    Args:
        network: as there.
        forward: as there.
        with_blocks: count the insides of recomputed blocks, too; each is called twice then.
        autocast: of matrix products and convolutions; autocast itself leaves the meta device alone.
    """
    # Buffers that are not saved (PixArt's positions) are in no state dictionary.
    placed = {**network.state_dict(keep_vars=True), **dict(network.named_buffers())}
    # One stand-in per tensor: a head may be tied to the embedding.
    stand_ins = {id(value): torch.empty_like(value, device="meta") for value in placed.values()}
    own = {name: stand_ins[id(value)] for name, value in placed.items()}
    for name, value in network.named_parameters():
        own[name].requires_grad_(value.requires_grad)
    held = _Held({value.untyped_storage()._cdata for value in own.values()})
    largest = [0]

    def blocked(function: Callable[..., object], inputs: tuple[object, ...], named: dict[str, Any]) -> None:
        for value in inputs:
            if isinstance(value, Tensor):
                held.keep(value)
        if with_blocks:
            inside = _Held(held.known | set(held.sizes))
            with inside.counting():
                result = function(*inputs, **named)
            del result
            largest[0] = max(largest[0], sum(inside.sizes.values()))

    class _OnMeta(nn.Module):
        def forward(self, *args: object, **kwargs: object) -> object:
            return torch.func.functional_call(network, own, args, kwargs)

        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
            """The stand-ins, for callers that look at a weight's dtype."""
            del recurse
            return iter(cast("list[nn.Parameter]", [own[name] for name, _ in network.named_parameters()]))

    narrow = contextlib.nullcontext() if autocast is None else _Autocast(autocast)
    with _recomputed_blocks(network, blocked), _fused_attention(), narrow, held.counting():
        forward(_OnMeta())
    return Activations(sum(held.sizes.values()), largest[0])


class _Held:
    """Storages that autograd holds, each once.

    Args:
        known: addresses of storages that are there anyway.
    """

    def __init__(self, known: set[int]) -> None:
        self.known = known
        self.sizes: dict[int, int] = {}
        self._alive: list[Tensor] = []

    def keep(self, tensor: Tensor) -> Tensor:
        """Count it."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.sizes[storage._cdata] = storage.nbytes()
        self._alive.append(tensor)  # so that no two storages share an address
        return tensor

    def counting(self) -> contextlib.AbstractContextManager[None]:
        """What autograd saves meanwhile is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self.keep, lambda held: held)


_NARROWED = frozenset(
    {
        *(torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, Tensor.matmul, Tensor.__matmul__),
        *(Tensor.bmm, Tensor.mm, torch.nn.functional.linear, torch.conv1d, torch.conv2d, torch.conv3d),
    }
)
"""What autocast does in half precision."""


class _Autocast(TorchFunctionMode):
    """What autocast does to matrix products and convolutions, for the meta device."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func not in _NARROWED:
            return func(*args, **named)

        def narrowed(value: Any) -> Any:
            wide = isinstance(value, Tensor) and value.dtype == torch.float32
            return value.to(self.dtype) if wide else value

        return func(*map(narrowed, args), **{name: narrowed(value) for name, value in named.items()})


class _FusedAttention(torch.autograd.Function):
    """Holds what the fused kernels hold: query, key, value, result, and one float32 per query.

    It only counts memory on the meta device: there is no backward, and autograd says so if one is asked for.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        normaliser = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, result, normaliser)
        return result


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device torch attends by the textbook and would hold every attention matrix."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        result: Tensor = _FusedAttention.apply(query, key, value)
        return result

    functional: Any = torch.nn.functional
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


Blocked = Callable[[Callable[..., object], tuple[object, ...], dict[str, Any]], None]
"""Told of every block that is recomputed: what is run, and what it is given."""


@contextlib.contextmanager
def _recomputed_blocks(network: nn.Module, blocked: Blocked) -> Iterator[None]:
    """Tell of recomputed blocks: what they are given stays alive, but autograd's hooks do not see it."""
    blocks = [module for module in network.modules() if getattr(module, "gradient_checkpointing", False)]
    before = [(block, block.__dict__.get(_RECOMPUTE)) for block in blocks]

    def counted(recompute: Callable[..., object]) -> Callable[..., object]:
        def call(function: Callable[..., object], *inputs: object) -> object:
            blocked(function, inputs, {})
            return recompute(function, *inputs)

        return call

    module: Any = recomputing
    plain = module.checkpoint

    def checkpoint(function: Callable[..., object], *inputs: object, **named: Any) -> object:
        settings = {name: named.pop(name) for name in ("use_reentrant",) if name in named}
        blocked(function, inputs, named)
        return plain(function, *inputs, **settings, **named)

    try:
        for block, recompute in before:
            if recompute is not None:
                block.__dict__[_RECOMPUTE] = counted(recompute)
        # Networks whose blocks diffusers has not prepared call it themselves.
        module.checkpoint = checkpoint
        yield
    finally:
        module.checkpoint = plain
        for block, recompute in before:
            if recompute is not None:
                block.__dict__[_RECOMPUTE] = recompute


def memory_estimate(
    run: ResolvedRun,
    trainables: Trainables,
    *,
    encoders: dict[str, nn.Module],
    activation_bytes: int,
    reference_kind: str,
    frozen_bytes: int | None = None,
    recomputed_bytes: int = 0,
) -> list[MemoryItem]:
    """Device memory per component; the sum is a lower bound of the peak (workspaces come on top).

    Args:
        run: resolved.
        trainables: of the network, on any device.
        encoders: name to what stands beside it.
        activation_bytes: of one micro-batch.
        reference_kind: as the run resolves it.
        frozen_bytes: of the frozen weights where they are held narrower than the network here; None: as here.
        recomputed_bytes: of the largest block that is recomputed.
    """
    config = run.config
    parameters = list(trainables.network.parameters())
    trained = _bytes(parameter for parameter in parameters if parameter.requires_grad)
    frozen = _bytes(parameter for parameter in parameters if not parameter.requires_grad)
    frozen = frozen if frozen_bytes is None else frozen_bytes
    per_weight = {"adamw": 8, "adamw_8bit": 2, "adafactor": 0}[config.train.optimizer or "adamw"]
    items = [
        MemoryItem("network, frozen weights", frozen),
        MemoryItem("network, trained weights (float32)", trained),
    ]
    items.append(MemoryItem("gradients", trained))
    items.append(
        MemoryItem(
            f"optimiser state ({config.train.optimizer})",
            trainables.count * per_weight,
            "adafactor: factored, small",
        )
    )
    if config.train.ema_decay is not None:
        items.append(MemoryItem("average of the weights", trained))
    if reference_kind in ("frozen", "ema", "synced"):
        is_copy = reference_kind == "frozen"
        where = "on the CPU between uses" if config.reference.offload and is_copy else ""
        size = frozen + trained if is_copy else trained
        items.append(MemoryItem(f"reference ({reference_kind})", size, where))
    if run.method.rollout == "one_step":
        items += _score_model_memory(run, frozen, trained, per_weight, has_copy=reference_kind == "frozen")
    for name, module in encoders.items():
        size, note = _bytes(module.parameters()), f"none with {config.media_name}.cache"
        if config.model.offload_encoders:
            size, note = 0, f"{size / GIB:.3f} GiB on the CPU between uses; {note}"
        items.append(MemoryItem(name, size, note))
    note = (
        "with gradient checkpointing"
        if config.model.gradient_checkpointing
        else "without gradient checkpointing"
    )
    if config.train.split_backward:
        note += f", {config.train.split_size or config.train.batch_size} candidates at a time"
    items.append(MemoryItem(f"activations of {config.train.batch_size} prompts", activation_bytes, note))
    if recomputed_bytes:
        items.append(MemoryItem("largest recomputed block", recomputed_bytes, "while its turn lasts"))
    return items


def _score_model_memory(
    run: ResolvedRun, frozen: int, trained: int, per_weight: int, *, has_copy: bool
) -> list[MemoryItem]:
    """The teacher of a one-step generator, where no frozen copy is it, and the model of its samples."""
    config, settings = run.config, run.config.rollout.one_step
    whole = config.adapter.kind == "none"
    network = trained if whole else frozen
    found = [] if has_copy else [MemoryItem("teacher", network, settings.teacher or "")]
    if settings.score_adapter == "none":
        share = 1 if network == trained else _FLOAT32_OVER[config.train.mixed_precision]
        size = network * share
    elif whole:
        return [*found, MemoryItem("score model", 0, "LoRA on the teacher, not counted")]
    else:
        size = trained * (settings.score_rank or config.adapter.rank) // config.adapter.rank
    note = "weights in float32, gradients, optimiser"
    return [*found, MemoryItem("score model", size * (8 + per_weight) // 4, note)]


_FLOAT32_OVER = {"no": 1, "bf16": 2, "fp16": 2}  # bytes of a float32 weight over those of a frozen one


def print_plan(
    run: ResolvedRun,
    *,
    derived: dict[str, str],
    trainables: Trainables,
    memory: list[MemoryItem] | None,
    console: Console,
) -> None:
    """Print what was resolved, what differs from the row, what trains, and the memory it needs."""
    method = run.method
    console.print(f"[bold]{method.name}[/bold]  {method.title} (arXiv {method.paper})", highlight=False)
    for name, value in derived.items():
        console.print(f"  {name}: {value}", highlight=False)
    total = sum(parameter.numel() for parameter in trainables.network.parameters())
    console.print(f"  trained: {trainables.count:,} of {total:,} weights", highlight=False)
    if run.filled:
        console.print(
            "  from the method's row: "
            + ", ".join(f"{name}={item.value} ({item.mark})" for name, item in run.filled.items()),
            highlight=False,
            markup=False,
        )
    if run.differences:
        table = Table(
            "setting",
            "this run",
            "row",
            "row's source",
            title="differs from the method's row",
            title_justify="left",
        )
        for item in run.differences:
            table.add_row(item.setting, str(item.value), str(item.row_value), item.mark)
        console.print(table)
    else:
        console.print("  nothing differs from the method's row")
    if memory is not None:
        table = Table("component", "GiB", "note", title="device memory, lower bound", title_justify="left")
        for entry in memory:
            table.add_row(entry.component, f"{entry.num_bytes / GIB:.3f}", entry.note)
        table.add_row("sum", f"{sum(entry.num_bytes for entry in memory) / GIB:.3f}", "")
        console.print(table)
