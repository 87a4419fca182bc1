"""Models as they stand after a run: the base network with the trained weights put back."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign import registry
from mmalign.devices import best_device
from mmalign.diffusion.family import ImageFamily, ImageModel
from mmalign.diffusion.sampling import adapters_off
from mmalign.errors import ConfigError, explain
from mmalign.train.adapters import Trainables, attach
from mmalign.train.checkpoint import load_checkpoint
from mmalign.train.config import ImageConfig, ModelConfig, RunConfig
from mmalign.train.run_folders import locate_run, read_run_config

__all__ = ["TrainedModel", "load_base", "load_trained", "recognise"]


@dataclass
class TrainedModel:
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

    model: ImageModel
    config: RunConfig | None = None
    trainables: Trainables | None = None
    step: int = 0
    weights: str = "base"
    folder: Path | None = None
    base: list[Tensor] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """Sampler steps: the run's, else what suits the model."""
        return self.config.samples.num_steps if self.config else self.model.sampler_defaults[0]

    @property
    def guidance_scale(self) -> float:
        """Guidance: the run's, else what suits the model."""
        return self.config.samples.guidance_scale if self.config else self.model.sampler_defaults[1]

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        """The model as it was before training."""
        if self.trainables is None:
            yield
        elif self.trainables.lora is not None:
            with adapters_off(self.model.bare_network):
                yield
        else:
            with self.trainables.swapped(self.base):
                yield


def load_base(
    source: str | None,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    resolution: int | None = None,
    vae: str | None = None,
) -> TrainedModel:
    """A base model of whatever family it is.

    Args:
        source: hub id, diffusers folder or single file.
        device: where to load it; default the best there is.
        dtype: of all parts; default the family's half precision on CUDA, else float32.
        resolution: of pictures; default the model's native size.
        vae: replacement VAE, as in a run's `model.vae`.

    Raises:
        ConfigError: nothing is there, or no family trains it.
    """
    if source is None:
        message = explain("mmalign sample", got="neither --model nor --run", expected="at least one of them")
        raise ConfigError(message)
    family, native = recognise(source)
    chosen = best_device(device)
    if dtype is None:
        dtype = family.model.half_dtype if chosen.type == "cuda" else torch.float32
    settings = ModelConfig(family=family.name, source=source, vae=vae)
    image = ImageConfig(resolution=resolution or native, flip=False)
    return TrainedModel(family.load(settings, image, device=chosen, dtype=dtype))


def recognise(source: str) -> tuple[ImageFamily, int]:
    """Family and native picture size of a folder, file or hub id."""
    families: list[Any] = [registry.find("families", name) for name in registry.names("families")]
    wanted, resolution = _read_names(source) if Path(source).is_file() else _read_index(source)
    for family in families:
        if wanted in getattr(family, "pipelines", ()):
            return family, resolution
    known = ", ".join(sorted({name for family in families for name in getattr(family, "pipelines", ())}))
    message = explain(f"--model {source}", got=wanted, expected=f"one of {known}")
    raise ConfigError(message)


_FILE_LAYOUTS = (
    ("joint_blocks.0.", "StableDiffusion3Pipeline", 1024),
    ("double_blocks.0.", "FluxPipeline", 1024),
    ("conditioner.embedders.", "StableDiffusionXLPipeline", 1024),
    ("", "StableDiffusionPipeline", 512),
)
"""Part of a weight's name in a single file, pipeline class, native picture size; the first that occurs."""


def _read_names(source: str) -> tuple[str, int]:
    """Pipeline class and native picture size of a single file, from the names of its weights."""
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        names = list(file.keys())
    return next(
        (pipeline, resolution)
        for part, pipeline, resolution in _FILE_LAYOUTS
        if any(part in name for name in names)
    )


def _read_index(source: str) -> tuple[str, int]:
    """Pipeline class and native picture size, from configs alone."""
    from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel

    try:
        if Path(source).is_dir():
            index = json.loads((Path(source) / "model_index.json").read_text(encoding="utf-8"))
        else:
            index = DiffusionPipeline.load_config(source)
        part = "transformer" if "transformer" in index else "unet"
        network = UNet2DConditionModel.load_config(source, subfolder=part)
        vae = AutoencoderKL.load_config(source, subfolder="vae")
    except (OSError, ValueError) as error:
        message = explain(
            f"--model {source}",
            got=str(error).splitlines()[0],
            expected="a diffusers folder, a hub id or a .safetensors file",
        )
        raise ConfigError(message) from error
    # FLUX's network has no size of its own; its VAE's is that of the pictures.
    if "sample_size" not in network:
        return str(index.get("_class_name")), int(vae["sample_size"])
    shrink = 2 ** (len(vae["block_out_channels"]) - 1)
    return str(index.get("_class_name")), int(network["sample_size"]) * shrink


def load_trained(
    run: str | Path,
    *,
    source: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> TrainedModel:
    """What a run trained: its base model with the newest weights, the average where the run kept one.

    Args:
        run: run folder, or one of its checkpoints.
        source: where the base model lies now, if it has moved.
        device: where to load it; default the best there is.
        dtype: of the frozen weights; default the family's half precision on CUDA for runs in mixed precision,
            else float32.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint yet.
        ConfigError: the base model cannot be loaded.
    """
    folder, checkpoint_folder = locate_run(Path(run))
    config = read_run_config(folder)
    if source is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"source": source})})
    chosen = best_device(device)
    family: ImageFamily = registry.find("families", config.model.family)
    if dtype is None:
        mixed = config.train.mixed_precision != "no" and chosen.type == "cuda"
        dtype = family.model.half_dtype if mixed else torch.float32
    full = config.adapter.kind == "none"
    # Neither the cache nor the card of the training machine need be there.
    settings = config.model.model_copy(update={"attention": "sdpa", "gradient_checkpointing": False})
    image = config.image.model_copy(update={"cache": None})
    model = family.load(
        settings, image, device=chosen, dtype=dtype, network_dtype=torch.float32 if full else None
    )
    trainables = attach(
        model.bare_network, config.adapter, default_targets=model.adapter_targets, seed=config.train.seed
    )
    base = [parameter.detach().cpu().clone() for parameter in trainables.parameters.values()] if full else []
    checkpoint = load_checkpoint(checkpoint_folder)
    if checkpoint.ema:
        with torch.no_grad():
            for name, parameter in trainables.parameters.items():
                parameter.copy_(checkpoint.ema[name])
    else:
        trainables.load(checkpoint.weights)
    return TrainedModel(
        model=model,
        config=config,
        trainables=trainables,
        step=checkpoint.step,
        weights="average" if checkpoint.ema else "last",
        folder=folder,
        base=base,
    )
