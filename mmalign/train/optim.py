"""Optimisers, schedules, and one update that scales, clips and refuses bad gradients on the device.

The gradients of an optimiser step are sums over prompts; `Updater.apply` turns them into the mean over the
prompts that were valid, clips the norm, and drops the update when the norm is not finite. All of it is one
multiplication of every gradient by one number that never leaves the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmalign.errors import ConfigError, MissingExtraError, explain
from mmalign.sharded import local_parts, replicated, total_norm
from mmalign.train.config import TrainConfig

__all__ = ["UpdateStats", "Updater", "make_optimizer", "make_schedule"]


def make_optimizer(
    parameters: Sequence[nn.Parameter] | Sequence[dict[str, Any]], config: TrainConfig
) -> torch.optim.Optimizer:
    """The optimiser of a run.

    Args:
        parameters: what trains; or groups `{"params": ..., "lr": ...}` of it.
        config: optimiser, learning rate, weight decay.

    adamw is torch's fused AdamW; adamw_8bit needs bitsandbytes; adafactor has the Diffusion-DPO settings
    (no parameter scaling, no relative step, update clipping at 1).

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    rate = config.learning_rate
    if rate is None:
        message = explain("train.learning_rate", got=None, expected="a positive number")
        raise ConfigError(message)
    betas = (config.adam_beta1, config.adam_beta2)
    if config.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        factored: torch.optim.Optimizer = Adafactor(
            parameters,
            lr=rate,
            scale_parameter=False,
            relative_step=False,
            clip_threshold=1.0,
            weight_decay=config.weight_decay,
        )
        return factored
    if config.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            message = (
                "train.optimizer adamw_8bit needs bitsandbytes: pip install 'mmalign[8bit]', or use adamw."
            )
            raise MissingExtraError(message) from error
        optimizer: torch.optim.Optimizer = AdamW8bit(
            parameters, lr=rate, betas=betas, eps=config.adam_epsilon, weight_decay=config.weight_decay
        )
        return optimizer
    return torch.optim.AdamW(
        parameters,
        lr=rate,
        betas=betas,
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then constant, or linear or cosine decay to zero at the last optimiser step."""
    from transformers import get_scheduler

    name = {"constant": "constant_with_warmup"}.get(config.schedule, config.schedule)
    schedule: torch.optim.lr_scheduler.LambdaLR = get_scheduler(
        name, optimizer, num_warmup_steps=config.warmup_steps or 0, num_training_steps=config.steps
    )
    return schedule


@dataclass(frozen=True)
class UpdateStats:
    """What one update did, on the device.

    Args:
        grad_norm: global norm of the mean gradient before clipping.
        dropped: 1.0 when the update was dropped because the norm was not finite, else 0.0.
    """

    grad_norm: Float[Tensor, ""]
    dropped: Float[Tensor, ""]


@runtime_checkable
class Engine(Protocol):
    """What reduces gradients into partitions of its own and steps on them."""

    def gradients(self) -> list[Tensor]:
        """What this process holds; writing to it changes the gradient."""
        ...

    def norm(self, gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Of the whole gradient."""
        ...

    def step(self) -> None:
        """The optimiser's step on the partitions."""
        ...


class Updater:
    """Applies one optimiser step to summed gradients.

    Args:
        parameters: the trained parameters; listed once, so that clipping sees all of them at every step.
        optimizer: torch optimiser (its accelerate wrapper is unwrapped by the caller).
        max_grad_norm: clip at this global norm; None leaves the gradients alone.
        scaler: fp16 gradient scaler, or None.
        engine: holds the gradients in partitions and steps; None: gradients are the parameters' own.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None,
        scaler: Any = None,
        engine: "Engine | None" = None,
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler
        self.engine = engine
        # Fused AdamW skips an update on the device when told so; others need one look from the host per
        # update. On a CPU that look costs nothing, and being told costs two operations per tensor.
        looks = engine is None and all(parameter.device.type == "cpu" for parameter in self.parameters)
        self.skips_on_device = bool(optimizer.defaults.get("fused")) and scaler is None and not looks

    @torch.no_grad()
    def apply(
        self, mean_factor: Float[Tensor, ""], *, is_empty: Bool[Tensor, ""] | None = None
    ) -> UpdateStats:
        """Scale by `mean_factor`, clip, step unless not finite, clear the gradients.

        Args:
            mean_factor: turns the accumulated gradient into the mean over valid prompts.
            is_empty: True when no prompt was valid: no update is made, and none counted as dropped (momentum
                and weight decay would still move the weights).
        """
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.engine is not None:
            gradients = self.engine.gradients()
            norm = self.engine.norm(gradients) * mean_factor
        else:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            norm = total_norm(gradients) * mean_factor
        dropped = (~torch.isfinite(norm)).to(torch.float32)
        skipped = dropped if is_empty is None else torch.maximum(dropped, is_empty.to(torch.float32))
        factor = mean_factor
        if self.max_grad_norm is not None:
            factor = factor * torch.clamp(self.max_grad_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(local_parts(gradients), factor)
        if self.scaler is not None and is_empty is not None and bool(is_empty):
            self.scaler.update()
        elif self.scaler is not None:
            # The scaler found the same infinities while unscaling and skips by itself.
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self.skips_on_device:
            told = replicated(skipped, self.parameters[0])
            self.optimizer.found_inf = told  # type: ignore[attr-defined]  # read by the fused kernel
            (self.engine or self.optimizer).step()
        elif not bool(skipped):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return UpdateStats(grad_norm=norm.to(torch.float32), dropped=dropped)
