"""Adapter files: diffusers' own, peft's own, and what ComfyUI and kin read; and reading them back.

Each is read here as its users read it: by the pipeline's `load_lora_weights` where it has one, else by peft.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from torch import Tensor

from mmalign.diffusion.family import ImageModel
from mmalign.diffusion.model import DiffusionModel
from mmalign.diffusion.sampling import build_pipeline
from mmalign.errors import CheckpointError, explain
from mmalign.files import atomic_write, save_tensors

__all__ = [
    "LORA_FILE",
    "PEFT_FILE",
    "adapter_file",
    "adapter_settings",
    "adapter_state",
    "comfyui_tensors",
    "load_adapter",
    "save_adapter",
]

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


def _pipeline_reads_adapters(model: DiffusionModel) -> bool:
    """Whether the model has a pipeline class with `load_lora_weights` (PixArt's have not)."""
    pipeline = model.adapter_pipeline
    return pipeline is not None and hasattr(getattr(diffusers, pipeline), "load_lora_weights")


def adapter_file(model: DiffusionModel) -> str:
    """Name of the file that `save_adapter` writes."""
    return LORA_FILE if _pipeline_reads_adapters(model) else PEFT_FILE


def adapter_state(network: Any) -> dict[str, Tensor]:
    """Peft's names and tensors of the network's adapter.

    Raises:
        CheckpointError: there is none.
    """
    from peft import get_peft_model_state_dict

    if not getattr(network, "peft_config", None):
        message = explain(
            "export",
            got="a network without an adapter",
            expected="one trained with adapter.kind lora",
            do="Export a fully trained network with --to merged or diffusers.",
        )
        raise CheckpointError(message)
    state: dict[str, Tensor] = get_peft_model_state_dict(network, adapter_name="default")
    return {name: value.detach().to("cpu").contiguous() for name, value in state.items()}


def save_adapter(model: DiffusionModel, folder: str | Path) -> Path:
    """Write the adapter for `load_lora_weights` of the pipeline, else for `PeftModel`. Returns `folder`.

    The file, or the `adapter_config.json` beside it, carries the adapter's settings: without them loaders
    take alpha for rank.
    """
    folder, network = Path(folder), model.bare_network
    if not _pipeline_reads_adapters(model):
        return _save_for_peft(network, folder)
    layers = adapter_state(network)
    if model.network_part == "unet":
        # Pipelines of transformers read peft's names, and drop half of what this converter makes of them.
        layers = convert_state_dict_to_diffusers(layers)
    pipeline_class = getattr(diffusers, str(model.adapter_pipeline))
    with tempfile.TemporaryDirectory() as scratch:
        keywords: dict[str, Any] = {
            f"{model.network_part}_lora_layers": layers,
            f"{model.network_part}_lora_adapter_metadata": adapter_settings(network),
        }
        pipeline_class.save_lora_weights(scratch, **keywords)
        atomic_write(folder / LORA_FILE, (Path(scratch) / LORA_FILE).read_bytes())
    return folder


def _save_for_peft(network: Any, folder: Path) -> Path:
    """`adapter_model.safetensors` and `adapter_config.json`, as `PeftModel.from_pretrained` reads them."""
    tensors = {f"{_PEFT_PREFIX}{name}": value for name, value in adapter_state(network).items()}
    save_tensors(folder / PEFT_FILE, tensors)
    settings = {**adapter_settings(network), "inference_mode": True}
    atomic_write(folder / "adapter_config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")
    return folder


def adapter_settings(network: Any) -> dict[str, Any]:
    """The adapter's settings, sets in order: equal runs then write equal files."""
    settings = network.peft_config["default"].to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}


def comfyui_tensors(model: DiffusionModel) -> dict[str, Tensor]:
    """The adapter under the names that ComfyUI, Forge and InvokeAI read.

    UNets: the key layout of kohya's scripts, with an alpha that makes `alpha / rank` the strength each layer
    was trained with, also for rsLoRA and per-layer ranks (the library's converter writes the rank).
    Transformers: `transformer.<module in diffusers>.lora_A.weight` and `.lora_B.weight`, which these tools
    map onto their fused layers; the strength is multiplied into `lora_B`, since not every reader of this
    layout looks for an alpha.

    Raises:
        CheckpointError: there is no adapter, or it is a DoRA, whose magnitudes these tools read in their own
            ways.

    Source: comfyanonymous/ComfyUI comfy/lora.py, `model_lora_keys_unet`.
    """
    network = model.bare_network
    if any(lora.use_dora for lora in getattr(network, "peft_config", {}).values()):
        message = explain(
            "mmalign export --to comfyui",
            got="a DoRA",
            expected="a LoRA",
            do="Use --to merged, or --to diffusers.",
        )
        raise CheckpointError(message)
    state = adapter_state(network)
    layers = {name: layer for name, layer in network.named_modules() if "default" in _loras(layer)}
    if model.network_part == "unet":
        return _kohya_tensors(state, layers)
    scaled = {
        name: value * layers[name.removesuffix(".lora_B.weight")].scaling["default"]
        if name.endswith(".lora_B.weight")
        else value
        for name, value in state.items()
    }
    return {f"{model.network_part}.{name}": value for name, value in scaled.items()}


def _loras(module: Any) -> Any:
    return getattr(module, "lora_A", {})


def _kohya_tensors(state: dict[str, Tensor], layers: dict[str, Any]) -> dict[str, Tensor]:
    tensors = dict(convert_state_dict_to_kohya({f"unet.{name}": value for name, value in state.items()}))
    for name, layer in layers.items():
        alpha = layer.scaling["default"] * layer.r["default"]
        tensors[f"lora_unet_{name.replace('.', '_')}.alpha"] = torch.tensor(float(alpha))
    return tensors


def load_adapter(model: ImageModel, folder: Path, name: str) -> Any:
    """The model's network, which has no adapter yet, with the adapter of a file, as users put it on.

    Args:
        model: `model.bare_network` is changed.
        folder: where the file is.
        name: of the file.
    """
    if not _pipeline_reads_adapters(model):
        return _load_with_peft(model, folder, name)
    from diffusers.utils import logging

    pipeline = build_pipeline(model)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns about text encoders that have no adapter, as they should not
    try:
        pipeline.load_lora_weights(str(folder), weight_name=name)
    finally:
        logging.set_verbosity(verbosity)
    return getattr(pipeline, model.network_part)


def _load_with_peft(model: ImageModel, folder: Path, name: str) -> Any:
    """Files of peft by `PeftModel`; those for ComfyUI by their names, alpha taken for rank as there."""
    from peft import LoraConfig, PeftModel, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    network = model.bare_network
    if name == PEFT_FILE:
        return PeftModel.from_pretrained(network, str(folder))
    prefix = f"{model.network_part}."
    tensors = {key.removeprefix(prefix): value for key, value in load_file(folder / name).items()}
    ranks = {
        key.removesuffix(".lora_A.weight"): value.shape[0]
        for key, value in tensors.items()
        if key.endswith(".lora_A.weight")
    }
    rank = max(ranks.values())
    lora = LoraConfig(
        r=rank, lora_alpha=rank, rank_pattern=ranks, alpha_pattern=ranks, target_modules=[*ranks]
    )
    inject_adapter_in_model(lora, network)
    outcome = set_peft_model_state_dict(network, tensors)
    if outcome.unexpected_keys:
        message = f"{folder / name}: keys that name no layer of the network: {outcome.unexpected_keys[:3]}."
        raise CheckpointError(message)
    return network
