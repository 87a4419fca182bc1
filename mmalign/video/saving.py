"""Adapters of video models for ComfyUI, and adapter files put on a network as their users do."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
from safetensors.torch import load_file
from torch import Tensor

from mmalign.diffusion.adapter_files import adapter_state, comfyui_tensors
from mmalign.errors import CheckpointError, explain
from mmalign.files import save_tensors

if TYPE_CHECKING:
    from mmalign.video.family import VideoModel

__all__ = ["put_adapter_on", "renamed_tensors", "save_comfyui"]

_PREFIX = "diffusion_model."
"""Before the names that ComfyUI knows the networks' own modules by."""


def renamed_tensors(model: "VideoModel") -> dict[str, Tensor]:
    """The adapter under the names of the model's own code, its strength multiplied into `lora_B`.

    Families without names of their own keep those of diffusers, behind the network's part.

    Raises:
        CheckpointError: there is no adapter, it is a DoRA, or a layer has no name in the model's own code.

    Source: comfyanonymous/ComfyUI comfy/lora.py, `model_lora_keys_unet`: every weight's own name is known.
    """
    if model.adapter_pipeline is None:
        message = explain(
            "mmalign export --to comfyui",
            got=f"an adapter of family {model.family}",
            expected="a network that ComfyUI knows",
            do="Use --to diffusers, or --to merged.",
        )
        raise CheckpointError(message)
    tensors: dict[str, Tensor] = comfyui_tensors(model)
    part = f"{model.network_part}."
    joined = model.joined_layers(_plain_layers(model))
    if joined is not None:
        return joined
    layers = {name: name.removeprefix(part).rsplit(".lora_", 1)[0] for name in tensors}
    found = {name: model.original_name(layer) for name, layer in layers.items()}
    if all(value is None for value in found.values()):
        return tensors
    missing = sorted({layers[name] for name, value in found.items() if value is None})
    if missing:
        message = explain(
            "mmalign export --to comfyui",
            got=f"an adapter on {', '.join(missing[:3])}",
            expected="layers that have a name in the model's own code",
            do="Use --to diffusers, or --to merged.",
        )
        raise CheckpointError(message)
    return {
        f"{_PREFIX}{found[name]}.lora_{name.rsplit('.lora_', 1)[1]}": value for name, value in tensors.items()
    }


def save_comfyui(model: "VideoModel", path: str | Path) -> Path:
    """Write the adapter as one file for ComfyUI. Returns it. Raises CheckpointError as `renamed_tensors`."""
    return save_tensors(path, renamed_tensors(model), {"format": "pt"})


def put_adapter_on(model: "VideoModel", network: Any, folder: Path, name: str) -> Any:
    """A fresh network with the adapter of a file, as the diffusers pipeline loads it, or peft without one.

    Args:
        model: names the pipeline.
        network: changed in place.
        folder: where the file is.
        name: of the file.
    """
    if model.adapter_pipeline is None:
        from peft import PeftModel

        return PeftModel.from_pretrained(network, str(folder))
    pipeline: Any = getattr(diffusers, model.adapter_pipeline)
    own = model.split_layers(load_file(folder / name))
    if own is not None:
        # No settings: alpha is rank then, the strength being multiplied in.
        network.load_lora_adapter(own, prefix=None)
        return network
    if model.network_part == "unet":
        state, alphas = pipeline.lora_state_dict(str(folder), weight_name=name)
        pipeline.load_lora_into_unet(state, network_alphas=alphas, unet=network)
        return network
    state, metadata = pipeline.lora_state_dict(str(folder), weight_name=name, return_lora_metadata=True)
    pipeline.load_lora_into_transformer(state, transformer=network, metadata=metadata)
    return network


def _plain_layers(model: "VideoModel") -> dict[str, Tensor]:
    """The adapter under diffusers' names, its strength multiplied into `lora_B`."""
    layers = dict(model.bare_network.named_modules())

    def strength(name: str) -> float:
        return float(layers[name.removesuffix(".lora_B.weight")].scaling["default"])

    return {
        name: value * strength(name) if name.endswith(".lora_B.weight") else value
        for name, value in adapter_state(model.bare_network).items()
    }
