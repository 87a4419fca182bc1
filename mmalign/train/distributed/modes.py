"""What `accelerate launch` or `torchrun` asked for, and whether a run can be trained that way."""

import os
from typing import Any, Literal, get_args

from accelerate import Accelerator
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
    is_deepspeed_available,
)
from torch.distributed.fsdp import CPUOffloadPolicy

from mmalign.errors import ConfigError, MissingExtraError, explain
from mmalign.methods.row import ROLLOUTS
from mmalign.train.config import ResolvedRun
from mmalign.train.distributed.zero import zero_settings
from mmalign.train.token_sections import tokens_of

__all__ = ["Mode", "fsdp_settings", "is_zero", "mode_of", "require_fitting", "require_library", "zero_plugin"]

Mode = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
"""single: one process. ddp: every process holds the network, gradients are averaged (torch's
DistributedDataParallel). fsdp2: weights, gradients and optimiser are sharded (torch's `fully_shard`). zero1,
zero2, zero3: DeepSpeed spreads the optimiser, then also gradients, then also weights."""

_USES_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_STAGES: dict[int, Mode] = {1: "zero1", 2: "zero2", 3: "zero3"}


def _asks_for(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def require_library() -> None:
    """Look for DeepSpeed where the launch asks for it, before accelerate does.

    Raises:
        MissingExtraError: it is not installed.
    """
    if _asks_for(_USES_DEEPSPEED) and not is_deepspeed_available():
        message = (
            "The launch asks for DeepSpeed, which is not installed: pip install 'mmalign[deepspeed]'. Or "
            'launch with --config_file "$(python -m mmalign.train.launch fsdp2)", which spreads the same.'
        )
        raise MissingExtraError(message)


def is_zero(mode: Mode) -> bool:
    """Whether DeepSpeed spreads something."""
    return mode.startswith("zero")


def zero_plugin(accelerator: Accelerator) -> Any:
    """The `DeepSpeedPlugin` of this launch, also where accelerate itself ignored it."""
    return getattr(accelerator.state, "deepspeed_plugin", None) or DeepSpeedPlugin()


def mode_of(accelerator: Accelerator) -> Mode:
    """How the processes of this launch share the work.

    On CPUs accelerate itself knows plain data parallelism only; there FSDP2 is taken from the same variables
    that `accelerate launch` sets for GPUs.

    Raises:
        ConfigError: a kind that no run here can be trained with, FSDP's first version among them.
    """
    kind = accelerator.distributed_type
    several = kind in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if kind == DistributedType.FSDP or (several and _asks_for("ACCELERATE_USE_FSDP")):
        version = fsdp_settings(accelerator).fsdp_version
        if version != 2:
            message = explain(
                "accelerate configuration: fsdp_config.fsdp_version",
                got=version,
                expected="2: torch's fully_shard; the first version flattens weights that LoRA trains apart",
                do="Set fsdp_version: 2, or launch with what `python -m mmalign.train.launch fsdp2` names.",
            )
            raise ConfigError(message)
        _refuse_offload(accelerator)
        return "fsdp2"
    if kind == DistributedType.DEEPSPEED or (several and _asks_for(_USES_DEEPSPEED)):
        stage = zero_settings(zero_plugin(accelerator))["zero_optimization"]["stage"]
        return _STAGES[stage]
    if kind == DistributedType.NO:
        return "single"
    if several:
        return "ddp"
    message = explain(
        "accelerate configuration",
        got=str(kind),
        expected=f"one of {', '.join(get_args(Mode))}",
        do="Take one of the files that `python -m mmalign.train.launch` lists.",
    )
    raise ConfigError(message)


def _refuse_offload(accelerator: Accelerator) -> None:
    """Refuse weights that live on the CPU: the first update meets values of the GPU there, and fails.

    Raises:
        ConfigError: the launch asks for it.
    """
    if isinstance(getattr(fsdp_settings(accelerator), "cpu_offload", None), CPUOffloadPolicy):
        message = explain(
            "accelerate configuration: fsdp_config.fsdp_offload_params",
            got=True,
            expected="false: gradients are clipped and checked, and weights averaged, on the GPU",
            do="Set fsdp_offload_params: false. To need less memory, take more GPUs, "
            "model.gradient_checkpointing or LoRA.",
        )
        raise ConfigError(message)


def fsdp_settings(accelerator: Accelerator) -> Any:
    """The `FullyShardedDataParallelPlugin` of this launch, also where accelerate itself ignored it."""
    return getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()


def require_fitting(run: ResolvedRun, mode: Mode, kind: str) -> None:
    """Refuse what would give other numbers, or hang, when weights are spread over processes.

    Args:
        run: resolved.
        mode: of the launch.
        kind: of the reference.

    Raises:
        ConfigError: the run cannot be trained this way; the message says what can.
    """
    if mode in ("single", "ddp"):
        return
    train, name = run.config.train, "ZeRO" if is_zero(mode) else "FSDP2"
    if run.config.model.compile != "none":
        message = explain(
            "model.compile",
            got=run.config.model.compile,
            expected=f"none under {name}: gathering of weights inside of compiled blocks has not been tested",
        )
        raise ConfigError(message)
    if train.optimizer != "adamw":
        message = explain(
            "train.optimizer",
            got=train.optimizer,
            expected=f"adamw under {name}: other optimisers take statistics over whole weights, "
            "and every process holds parts",
        )
        raise ConfigError(message)
    if train.mixed_precision == "fp16":
        message = explain(
            "train.mixed_precision",
            got="fp16",
            expected=f"bf16 or no under {name}: the gradient scaler would decide from parts",
        )
        raise ConfigError(message)
    if run.method.rollout in ROLLOUTS:
        message = explain(
            f"method {run.method.name} under {name}",
            got="a method that samples while it trains",
            expected="an offline method: processes sample different numbers of times, and would wait for "
            "each other's weights",
            do="Launch with the file that `python -m mmalign.train.launch ddp` names.",
        )
        raise ConfigError(message)
    if mode == "zero3":
        _refuse_empty(run, kind)
    if kind == "frozen" and run.config.reference.offload and mode in ("fsdp2", "zero3"):
        message = explain(
            "reference.offload",
            got=True,
            expected=f"false under {name}: the copy is sharded, which saves the same memory",
        )
        raise ConfigError(message)


def _refuse_empty(run: ResolvedRun, kind: str) -> None:
    """Refuse what stage 3 cannot make whole in time: it gathers a module's weights when the module is called.

    Raises:
        ConfigError: weights that are read or exchanged between two calls.
    """
    quantization = run.config.model.quantization
    expected = "under ZeRO stage 3: weights are empty between uses"
    if kind in ("ema", "synced"):
        where, got, expected = "reference.kind", kind, f"a reference that does not move, {expected}"
    elif tokens_of(run.config) is not None:
        where, got = "model.family", run.config.model.family
        expected = f"a denoiser {expected}, and a language model's head and towers are read by themselves"
    elif quantization is not None:
        where, got = "model.quantization", quantization
        expected = f"none {expected}, and what few bits stand for is held beside them"
    else:
        return
    message = explain(
        where,
        got=got,
        expected=expected,
        do="Launch with the file that `python -m mmalign.train.launch zero2` or `fsdp2` names.",
    )
    raise ConfigError(message)
