"""What a run would do and need, before it does it: `mmalign train CONFIG --dry-run`."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmalign import objectives
from mmalign.likelihood import beta_conventions
from mmalign.train.adapters import Trainables
from mmalign.train.config import ResolvedRun
from mmalign.train.loader import Layout
from mmalign.train.planning.activations import Activations, count_activations, saved_activation_bytes
from mmalign.train.planning.launches import SINGLE, Launch, Part

__all__ = [
    "Activations",
    "MemoryItem",
    "Plan",
    "count_activations",
    "derived_values",
    "layout_of",
    "memory_estimate",
    "optimizer_state_bytes",
    "print_plan",
    "saved_activation_bytes",
]

GIB = 2**30


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


def layout_of(run: ResolvedRun, launch: Launch | None = None) -> Layout:
    """Batches of a run on the processes of a launch; None: on as many as were launched here."""
    train = run.config.train
    return Layout(train.batch_size, train.accumulation, (launch or Launch.here()).processes)


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
    likelihood = config.likelihood
    if likelihood.draws > 1:
        how = "mirrored in pairs" if likelihood.antithetic else "independent"
        values["draws"] = f"{likelihood.draws} per row and visit, {how}; the loss is their mean"
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


_PER_WEIGHT = {"adamw": 8, "adamw_8bit": 2, "adafactor": 0}
"""Bytes of state per trained weight."""

_UNQUANTISED = 4096
"""Weights of fewer numbers keep their state in float32. Source: bitsandbytes' `min_8bit_size`."""


def optimizer_state_bytes(trainables: Trainables, optimizer: str) -> int:
    """Bytes of an optimiser's state, weight by weight.

    adamw: two float32 numbers per weight. adamw_8bit: two bytes, and two float32 numbers per 256 of them.
    adafactor: sums over the last and over the last but one axis, float32; weights of one axis in full.

    Args:
        trainables: what trains, on any device.
        optimizer: as in `train.optimizer`.
    """
    total = 0.0
    for value in trainables.parameters.values():
        count, shape = value.numel(), value.shape
        if optimizer == "adafactor":
            rows, columns = (count // shape[-1], count // shape[-2]) if value.ndim > 1 else (count, 0)
            total += 4 * (rows + columns)
        elif optimizer == "adamw_8bit" and count >= _UNQUANTISED:
            total += count * (2 + 2 * 4 / 256)
        else:
            total += 8 * count
    return round(total)


def memory_estimate(
    run: ResolvedRun,
    trainables: Trainables,
    *,
    encoders: dict[str, nn.Module],
    activation_bytes: int,
    reference_kind: str,
    frozen_bytes: int | None = None,
    recomputed_bytes: int = 0,
    launch: Launch = SINGLE,
    held_whole: Collection[Tensor] = (),
) -> list[MemoryItem]:
    """Memory of one device per component; the sum is a lower bound of the peak (workspaces come on top).

    Args:
        run: resolved.
        trainables: of the network, on any device.
        encoders: name to what stands beside it.
        activation_bytes: of one micro-batch.
        reference_kind: as the run resolves it.
        frozen_bytes: of the frozen weights where they are held narrower than the network here; None: as here.
        recomputed_bytes: of the largest block that is recomputed.
        launch: how processes share the run; the memory is that of the one with the largest parts.
        held_whole: frozen weights that every process keeps whole where others are spread.
    """
    config = run.config
    parameters = list(trainables.network.parameters())
    learnt = [parameter for parameter in parameters if parameter.requires_grad]
    trained = launch.num_bytes(learnt, "weights")
    still = [parameter for parameter in parameters if not parameter.requires_grad]
    frozen = _bytes(still) if frozen_bytes is None else frozen_bytes
    if launch.spreads("weights") and config.model.quantization is None:
        frozen += launch.num_bytes(still, "weights", whole=held_whole) - _bytes(still)
    per_weight = _PER_WEIGHT[config.train.optimizer or "adamw"]
    items = [
        MemoryItem("network, frozen weights", frozen, _part_of(launch, "weights") if frozen else ""),
        MemoryItem("network, trained weights (float32)", trained, _part_of(launch, "weights")),
    ]
    if launch.is_zero:
        copied = launch.num_bytes(learnt, "optimiser")
        items.append(MemoryItem("copy of this process's part", copied, "DeepSpeed's, float32"))
    gradients = launch.num_bytes(learnt, "gradients")
    items.append(MemoryItem("gradients", gradients, _part_of(launch, "gradients")))
    items.append(_optimizer_state(config.train.optimizer or "adamw", trainables, learnt, launch))
    if config.train.ema_decay is not None:
        items.append(MemoryItem("average of the weights", trained))
    if reference_kind in ("frozen", "ema", "synced"):
        is_copy = reference_kind == "frozen"
        waits = config.reference.offload and is_copy
        where = "on the CPU between uses" if waits else _part_of(launch, "weights")
        size = frozen + trained if is_copy else trained
        items.append(MemoryItem(f"reference ({reference_kind})", size, where))
    if run.method.rollout == "one_step":
        items += _score_model_memory(run, frozen, trained, per_weight, has_copy=reference_kind == "frozen")
    for name, module in encoders.items():
        size, note = _bytes(module.parameters()), f"none with {config.media_name}.cache"
        if config.model.offload_encoders:
            size, note = 0, f"{size / GIB:.3f} GiB on the CPU between uses; {note}"
        items.append(MemoryItem(name, size, note))
    note = CHECKPOINTING[config.model.gradient_checkpointing]
    if config.train.split_backward:
        at_once = config.train.split_size or config.train.batch_size * config.likelihood.draws
        note += f", {at_once} candidates at a time"
    drawn = "" if config.likelihood.draws == 1 else f", {config.likelihood.draws} draws each"
    prompts = f"activations of {config.train.batch_size} prompts{drawn}"
    items.append(MemoryItem(prompts, activation_bytes, note))
    if recomputed_bytes:
        items.append(MemoryItem("largest recomputed block", recomputed_bytes, "while its turn lasts"))
    return items


CHECKPOINTING = {
    False: "without gradient checkpointing",
    True: "with gradient checkpointing",
    "selective": "with selective gradient checkpointing",
}
"""In words, by `model.gradient_checkpointing`."""


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


def _part_of(launch: Launch, part: Part) -> str:
    """What is said of something that may be spread."""
    return f"1 of {launch.processes} parts" if launch.spreads(part) else ""


def _optimizer_state(
    optimizer: str, trainables: Trainables, learnt: Sequence[Tensor], launch: Launch
) -> MemoryItem:
    size = optimizer_state_bytes(trainables, optimizer)
    if launch.spreads("optimiser"):  # of AdamW alone, as large as the weights and once more
        size = 2 * launch.num_bytes(learnt, "optimiser")
    note = "sums of rows and columns; of 3 x 3 convolutions two thirds remain"
    note = note if optimizer == "adafactor" else _part_of(launch, "optimiser")
    return MemoryItem(f"optimiser state ({optimizer})", size, note)


_FLOAT32_OVER = {"no": 1, "bf16": 2, "fp16": 2}  # bytes of a float32 weight over those of a frozen one


def print_plan(
    run: ResolvedRun,
    *,
    derived: dict[str, str],
    trainables: Trainables,
    memory: list[MemoryItem] | None,
    console: Console,
    launch: Launch = SINGLE,
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
        title = "device memory, lower bound"
        title += f", of {launch.describe()}" if launch.processes > 1 else ""
        table = Table("component", "GiB", "note", title=title, title_justify="left")
        for entry in memory:
            table.add_row(entry.component, f"{entry.num_bytes / GIB:.3f}", entry.note)
        table.add_row("sum", f"{sum(entry.num_bytes for entry in memory) / GIB:.3f}", "")
        console.print(table)
