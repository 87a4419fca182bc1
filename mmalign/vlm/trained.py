"""Language models as they stand after a run: the base network with the trained weights put back."""

from pathlib import Path
from typing import TypeAlias

import torch

from mmalign import registry
from mmalign.devices import best_device
from mmalign.errors import ConfigError, explain
from mmalign.train.config import ModelConfig
from mmalign.train.run_folders import locate_run, read_run_config
from mmalign.train.token_sections import TokenRunConfig, TokensConfig
from mmalign.train.trained import LoadedModel, inference_dtype, restored
from mmalign.vlm.family import VlmFamily, VlmModel

__all__ = ["TrainedVlm", "load_base", "load_trained", "recognise"]


TrainedVlm: TypeAlias = LoadedModel[VlmModel, TokenRunConfig]
"""A language model, and how to see it without its training."""


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
        settings, _PLAIN, device=chosen, dtype=dtype or inference_dtype(chosen, _HALF)
    )
    return TrainedVlm(model)


_PLAIN = TokensConfig(packing="plain", share_vision="off")
"""Writing answers needs no test of layouts."""

_HALF = torch.bfloat16


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
    folders = locate_run(Path(run))
    config = read_run_config(folders[0])
    if not isinstance(config, TokenRunConfig):
        message = explain(
            f"run {run}", got=f"family {config.model.family}", expected="a language model's run"
        )
        raise ConfigError(message)
    return restored(
        TrainedVlm,
        registry.find("families", config.model.family).load,
        config,
        config.tokens.model_copy(update={"packing": "plain", "share_vision": "off"}),
        folders,
        half=_HALF,
        source=source,
        device=device,
        dtype=dtype,
        **({} if quantised else {"quantization": None}),
    )
