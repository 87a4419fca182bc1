"""Models as they stand after a run: the base network with the trained weights put back."""

import json
from pathlib import Path
from typing import Any

import torch

from mmalign import registry
from mmalign.devices import best_device
from mmalign.diffusion.family import ImageFamily, ImageModel
from mmalign.diffusion.reopening import ReopenedModel
from mmalign.errors import ConfigError, explain
from mmalign.train.config import ImageConfig, ModelConfig
from mmalign.train.run_folders import locate_run, read_run_config
from mmalign.train.trained import inference_dtype, restored

__all__ = ["TrainedModel", "load_base", "load_trained", "recognise"]


class TrainedModel(ReopenedModel[ImageModel]):
    """An image model, and how to see it without its training."""


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
        dtype = inference_dtype(chosen, family.model.half_dtype)
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
    quantised: bool = True,
) -> TrainedModel:
    """What a run trained: its base model with the newest weights, the average where the run kept one.

    Args:
        run: run folder, or one of its checkpoints.
        source: where the base model lies now, if it has moved.
        device: where to load it; default the best there is.
        dtype: of the frozen weights; default the family's half precision on CUDA for runs in mixed precision,
            else float32.
        quantised: whether weights that the run quantised are so here.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint yet.
        ConfigError: the base model cannot be loaded.
    """
    folders = locate_run(Path(run))
    config = read_run_config(folders[0])
    if source is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"source": source})})
    family: ImageFamily = registry.find("families", config.model.family)
    image = config.image.model_copy(update={"cache": None})  # it need not be here, either
    half = family.model.half_dtype
    load, changes = family.load, {} if quantised else {"quantization": None}
    return restored(
        TrainedModel, load, config, image, folders, half=half, device=device, dtype=dtype, **changes
    )
