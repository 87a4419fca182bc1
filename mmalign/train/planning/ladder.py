"""Changes of settings that may make a run fit: the cheapest first, and what each does to the result.

What costs nothing goes first (what is frozen is computed once), then what costs time and no bit of the
result, then what changes numbers a little; LoRA in the place of the whole network changes what is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmalign.train.config import ResolvedRun
from mmalign.train.parts import reference_kind
from mmalign.train.rollout_memory import rows_with_gradient
from mmalign.train.rollouts import is_online
from mmalign.train.token_sections import tokens_of

__all__ = ["LADDER", "LORA", "Rung"]


@dataclass(frozen=True)
class Rung:
    """A change that may be tried.

    Args:
        name: what it is.
        overrides: for a run as it stands; () where it has it already, or has no use for it.
        remark: what it does to the result.
        repeats: whether it may be taken again.
        launch: that takes the place of DDP; "" where the launch stays.
    """

    name: str
    overrides: Callable[[ResolvedRun], Sequence[str]]
    remark: str = "same numbers"
    repeats: bool = False
    launch: str = ""


def _cached(run: ResolvedRun) -> Sequence[str]:
    wanted = tokens_of(run.config) is None and not is_online(run) and not run.config.media.cache
    return [f"{run.config.media_name}.cache=cache"] if wanted else []


def _without_copy(run: ResolvedRun) -> Sequence[str]:
    if reference_kind(run) != "frozen" or is_online(run):
        return []
    return ["reference.kind=auto" if run.config.adapter.kind == "lora" else "reference.kind=stored"]


def _offloaded_copy(run: ResolvedRun) -> Sequence[str]:
    wanted = reference_kind(run) == "frozen" and not run.config.reference.offload
    return ["reference.offload=true"] if wanted else []


def _offloaded_encoders(run: ResolvedRun) -> Sequence[str]:
    settings = run.config.model
    wanted = tokens_of(run.config) is None and not run.config.media.cache and not settings.offload_encoders
    return ["model.offload_encoders=true"] if wanted else []


def _halved(run: ResolvedRun) -> Sequence[str]:
    train = run.config.train
    if train.batch_size == 1 or train.batch_size % 2:
        return ["train.batch_size=1", f"train.accumulation={train.accumulation * train.batch_size}"] * (
            train.batch_size > 1
        )
    return [f"train.batch_size={train.batch_size // 2}", f"train.accumulation={train.accumulation * 2}"]


def _recomputed(run: ResolvedRun) -> Sequence[str]:
    is_whole = run.config.model.gradient_checkpointing is True
    return [] if is_whole else ["model.gradient_checkpointing=true"]


def _recomputed_in_part(run: ResolvedRun) -> Sequence[str]:
    return [] if run.config.model.gradient_checkpointing else ["model.gradient_checkpointing=selective"]


def _split(run: ResolvedRun) -> Sequence[str]:
    wanted = tokens_of(run.config) is None and not run.config.train.split_backward
    return ["train.split_backward=true"] if wanted and rows_with_gradient(run) > 1 else []


def _narrow(run: ResolvedRun) -> Sequence[str]:
    return ["train.mixed_precision=bf16"] if run.config.train.mixed_precision == "no" else []


def _eight_bits(run: ResolvedRun) -> Sequence[str]:
    return ["train.optimizer=adamw_8bit"] if run.config.train.optimizer == "adamw" else []


def _factored(run: ResolvedRun) -> Sequence[str]:
    wanted = run.config.train.optimizer in ("adamw", "adamw_8bit")
    return ["train.optimizer=adafactor"] if wanted and run.config.adapter.kind == "none" else []


def _one_byte(run: ResolvedRun) -> Sequence[str]:
    wanted = tokens_of(run.config) is None and run.config.adapter.kind == "lora"
    return ["model.quantization=int8"] if wanted and run.config.model.quantization is None else []


def _four_bits(run: ResolvedRun) -> Sequence[str]:
    before = {None} if tokens_of(run.config) is not None else {None, "int8"}
    wanted = run.config.adapter.kind == "lora" and run.config.model.quantization in before
    return ["model.quantization=nf4"] if wanted else []


def _unchanged(run: ResolvedRun) -> Sequence[str]:
    del run
    return []


def _lora(run: ResolvedRun) -> Sequence[str]:
    return ["adapter.kind=lora", "reference.kind=auto"] if run.config.adapter.kind == "none" else []


_SPREAD = "same weights within rounding: sums over processes are taken in another order"

LADDER: tuple[Rung, ...] = (
    Rung("latents and texts from a cache", _cached, "same numbers; needs `mmalign data cache` first"),
    Rung(
        "reference without a second copy of the weights",
        _without_copy,
        "same numbers; draws are a fixed bank",
    ),
    Rung("encoders on the CPU between uses", _offloaded_encoders),
    Rung("half the micro-batch, twice the micro-steps", _halved, "same batch", repeats=True),
    Rung("recompute activations that cost no products", _recomputed_in_part),
    Rung("recompute activations", _recomputed),
    Rung("one candidate at a time in the backward pass", _split),
    Rung("weights, gradients and optimiser spread over the processes", _unchanged, _SPREAD, launch="fsdp2"),
    Rung("reference copy on the CPU between uses", _offloaded_copy),
    Rung("half precision", _narrow, "changes rounding"),
    Rung("optimiser state in 8 bits", _eight_bits, "changes rounding of the state; needs bitsandbytes"),
    Rung("factored optimiser state", _factored, "another optimiser: no first moment"),
    Rung("frozen weights in 8 bits", _one_byte, "changes the base model's numbers by their rounding"),
    Rung("frozen weights in 4 bits", _four_bits, "changes the base model's numbers; needs bitsandbytes"),
)
"""In the order in which they are tried."""

LORA = Rung("LoRA in the place of the whole network", _lora, "another set of trained weights")
"""The last one, where it is allowed."""
