"""Models as they stand after a run: the base network with the trained weights put back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from mmalign.errors import ConfigError, explain
from mmalign.train.adapters import Trainables, attach
from mmalign.train.checkpoint import load_checkpoint
from mmalign.train.config import ModelConfig, RunConfig

__all__ = ["LoadedModel", "away_from_training", "inference_dtype"]


@runtime_checkable
class _Adaptable(Protocol):
    """What takes an adapter."""

    network: nn.Module

    @property
    def adapter_targets(self) -> tuple[str, ...] | str: ...


ModelT = TypeVar("ModelT", bound=_Adaptable)
ConfigT = TypeVar("ConfigT", bound=RunConfig)


@dataclass
class LoadedModel(Generic[ModelT, ConfigT]):
    """A loaded model, and how to see it without its training.

    Args:
        model: carries the trained weights.
        config: of the run, None for a base model.
        trainables: the trained weights, None for a base model.
        step: optimiser steps done.
        weights: "last", "average" or "base": which weights are in the network.
        folder: run folder.
        base: full fine-tuning: the base model's weights, on the CPU, to swap in.
    """

    model: ModelT
    config: ConfigT | None = None
    trainables: Trainables | None = None
    step: int = 0
    weights: str = "base"
    folder: Path | None = None
    base: list[Tensor] = field(default_factory=list)

    def restore(self, checkpoint_folder: Path) -> None:
        """Put what the run trained on its base model: the average where the run kept one.

        Args:
            checkpoint_folder: whose weights are taken.

        Raises:
            CheckpointError: the checkpoint cannot be read, or belongs to another adapter.
            ConfigError: there is no run.
        """
        if self.config is None:
            raise ConfigError(explain("restore", got="a base model", expected="a run's configuration"))
        trainables = attach(
            self.model.network,
            self.config.adapter,
            default_targets=self.model.adapter_targets,
            seed=self.config.train.seed,
            trains=getattr(self.model, "trains", None),
        )
        if trainables.lora is None:
            self.base = [value.detach().cpu().clone() for value in trainables.parameters.values()]
        checkpoint = load_checkpoint(checkpoint_folder)
        if checkpoint.ema:
            with torch.no_grad():
                for name, parameter in trainables.parameters.items():
                    parameter.copy_(checkpoint.ema[name])
        else:
            trainables.load(checkpoint.weights)
        self.trainables, self.step = trainables, checkpoint.step
        self.weights = "average" if checkpoint.ema else "last"

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        """The model as it was before training."""
        if self.trainables is None:
            yield
            return
        lora = self.trainables.lora is not None
        with self.trainables.disabled() if lora else self.trainables.swapped(self.base):
            yield


def away_from_training(settings: ModelConfig, source: str | None, **changes: Any) -> ModelConfig:
    """How to load a run's base model where it was not trained: neither its card nor its folder need be there.

    Args:
        settings: of the run.
        source: where the base model lies now, if it has moved.
        changes: other settings to replace.
    """
    moved = {} if source is None else {"source": source}
    plain = {"attention": "sdpa", "gradient_checkpointing": False}
    return settings.model_copy(update={**plain, **moved, **changes})


def inference_dtype(device: torch.device, half: torch.dtype, *, mixed: bool = True) -> torch.dtype:
    """The half precision on CUDA, float32 elsewhere.

    Args:
        device: where the model will be.
        half: what it is made for.
        mixed: False for runs in full precision, which stay so.
    """
    return half if mixed and device.type == "cuda" else torch.float32
