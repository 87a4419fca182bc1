"""Language models as they stand after a run: the base network with the trained weights put back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mmalign import registry
from mmalign.devices import best_device
from mmalign.errors import ConfigError, explain
from mmalign.train.adapters import Trainables, attach
from mmalign.train.checkpoint import load_checkpoint
from mmalign.train.config import ModelConfig
from mmalign.train.run_folders import locate_run, read_run_config
from mmalign.train.token_sections import TokenRunConfig, TokensConfig
from mmalign.vlm.family import VlmFamily, VlmModel

__all__ = ["TrainedVlm", "load_base", "load_trained", "recognise"]


@dataclass
class TrainedVlm:
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

    model: VlmModel
    config: TokenRunConfig | None = None
    trainables: Trainables | None = None
    step: int = 0
    weights: str = "base"
    folder: Path | None = None
    base: list[Tensor] = field(default_factory=list)

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        """The model as it was before training."""
        if self.trainables is None:
            yield
        elif self.trainables.lora is not None:
            with self.trainables.disabled():
                yield
        else:
            with self.trainables.swapped(self.base):
                yield


def recognise(source: str) -> str:
    """The family that loads a folder or hub id, by its config; a model of text alone is a `causal_lm`.

    Raises:
        ConfigError: nothing is there.
    """
    from mmalign.vlm.loading import load_config

    config = load_config(ModelConfig(family="causal_lm", source=source), "causal_lm", ())
    for name in registry.names("families"):
        if registry.modality(name) != "language":
            continue
        family: VlmFamily = registry.find("families", name)
        if config.model_type in family.traits.model_types:
            return name
    if getattr(config, "vision_config", None) is not None:
        message = explain(
            f"--model {source}",
            got=f"a model of type {config.model_type}",
            expected="one that `mmalign families` lists",
        )
        raise ConfigError(message)
    return "causal_lm"


def load_base(
    source: str, *, family: str | None = None, device: str | None = None, dtype: torch.dtype | None = None
) -> TrainedVlm:
    """A base model.

    Args:
        source: hub id or folder.
        family: name in the registry; default what its config says.
        device: where to load it; default the best there is.
        dtype: default bfloat16 on CUDA, else float32.

    Raises:
        ConfigError: nothing is there, or no family loads it.
    """
    settings = ModelConfig(family=family or recognise(source), source=source)
    chosen = best_device(device)
    model = registry.find("families", settings.family).load(
        settings, _PLAIN, device=chosen, dtype=dtype or _dtype(chosen)
    )
    return TrainedVlm(model)


_PLAIN = TokensConfig(packing="plain", share_vision="off")
"""Writing answers needs no test of layouts."""


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_trained(
    run: str | Path,
    *,
    source: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    quantised: bool = True,
) -> TrainedVlm:
    """What a run trained: its base model with the newest weights, the average where the run kept one.

    Args:
        run: run folder, or one of its checkpoints.
        source: where the base model lies now, if it has moved.
        device: where to load it; default the best there is.
        dtype: of frozen weights; default bfloat16 on CUDA for runs in mixed precision, else float32.
        quantised: whether weights that the run quantised are so here.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint yet.
        ConfigError: the base model cannot be loaded, or the run trained no language model.
    """
    folder, checkpoint_folder = locate_run(Path(run))
    config = read_run_config(folder)
    if not isinstance(config, TokenRunConfig):
        message = explain(
            f"run {run}", got=f"family {config.model.family}", expected="a language model's run"
        )
        raise ConfigError(message)
    chosen = best_device(device)
    settings = config.model.model_copy(
        update={
            "attention": "sdpa",
            "gradient_checkpointing": False,
            **({} if source is None else {"source": source}),
            **({} if quantised else {"quantization": None}),
        }
    )
    if dtype is None:
        dtype = torch.float32 if config.train.mixed_precision == "no" else _dtype(chosen)
    full = config.adapter.kind == "none"
    tokens = config.tokens.model_copy(update={"packing": "plain", "share_vision": "off"})
    model: VlmModel = registry.find("families", settings.family).load(
        settings, tokens, device=chosen, dtype=dtype, network_dtype=torch.float32 if full else None
    )
    trainables = attach(
        model.network,
        config.adapter,
        default_targets=model.adapter_targets,
        seed=config.train.seed,
        trains=model.trains,
    )
    base = [parameter.detach().cpu().clone() for parameter in trainables.parameters.values()] if full else []
    checkpoint = load_checkpoint(checkpoint_folder)
    if checkpoint.ema:
        with torch.no_grad():
            for name, parameter in trainables.parameters.items():
                parameter.copy_(checkpoint.ema[name])
    else:
        trainables.load(checkpoint.weights)
    return TrainedVlm(
        model=model,
        config=config,
        trainables=trainables,
        step=checkpoint.step,
        weights="average" if checkpoint.ema else "last",
        folder=folder,
        base=base,
    )
