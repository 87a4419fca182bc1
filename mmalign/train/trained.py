"""Models as they stand after a run: the base network with the trained weights put back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from mmalign.devices import best_device
from mmalign.errors import ConfigError, explain
from mmalign.train.adapters import Trainables, attach
from mmalign.train.checkpoint import load_checkpoint
from mmalign.train.config import ModelConfig, RunConfig
from mmalign.train.sections import Section

__all__ = ["LoadedModel", "away_from_training", "inference_dtype", "restored"]


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


LoadedT = TypeVar("LoadedT", bound=LoadedModel[Any, Any])


def restored(
    kind: Callable[..., LoadedT],
    load: Callable[..., Any],
    config: RunConfig,
    section: Section,
    folders: tuple[Path, Path],
    *,
    half: torch.dtype,
    source: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    **changes: Any,
) -> LoadedT:
    """What a run trained: its base model with the newest weights, the average where the run kept one.

    Args:
        kind: what holds it.
        load: `load` of the run's family.
        config: of the run.
        section: of what the model makes or reads, as it is to be loaded.
        folders: of the run, and of the checkpoint (`mmalign.train.run_folders.locate_run`).
        half: the half precision that the family is made for.
        source: where the base model lies now, if it has moved.
        device: where to load it; default the best there is.
        dtype: of the frozen weights; default `half` on CUDA for runs in mixed precision, else float32.
        changes: other settings of the run's `model` section to replace.

    Raises:
        CheckpointError: the checkpoint cannot be read, or belongs to another adapter.
        ConfigError: the base model cannot be loaded.
    """
    folder, checkpoint_folder = folders
    chosen = best_device(device)
    if dtype is None:
        dtype = inference_dtype(chosen, half, mixed=config.train.mixed_precision != "no")
    full = config.adapter.kind == "none"
    model = load(
        away_from_training(config.model, source, **changes),
        section,
        device=chosen,
        dtype=dtype,
        network_dtype=torch.float32 if full else None,
    )
    loaded = kind(model, config, folder=folder)
    loaded.restore(checkpoint_folder)
    return loaded


def away_from_training(settings: ModelConfig, source: str | None, **changes: Any) -> ModelConfig:
    """How to load a run's base model where it was not trained: neither its card nor its folder need be there.

    Args:
        settings: of the run.
        source: where the base model lies now, if it has moved.
        changes: other settings to replace.
    """
    moved = {} if source is None else {"source": source}
    plain = {
        "attention": "sdpa",
        "gradient_checkpointing": False,
        "compile": "none",
        "channels_last": False,
    }
    return settings.model_copy(update={**plain, **moved, **changes})


def inference_dtype(device: torch.device, half: torch.dtype, *, mixed: bool = True) -> torch.dtype:
    """The half precision on CUDA, float32 elsewhere.

    Args:
        device: where the model will be.
        half: what it is made for.
        mixed: False for runs in full precision, which stay so.
    """
    return half if mixed and device.type == "cuda" else torch.float32
