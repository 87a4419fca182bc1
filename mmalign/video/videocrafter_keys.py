"""Names of weights: VideoCrafter's network as its checkpoints have it, and diffusers' `UNet3DConditionModel`.

VideoCrafter2's network is ModelScope's, block for block, with one thing more: an embedding of the frame rate
that is added to that of time. At one frame rate the addition is a constant, and lies in the last bias of the
time embedding here (`fold_frame_rate`); writing back takes it out again. Networks with relative positions in
their temporal attention (VideoCrafter1 at 1024 pixels) or image tokens have no like in diffusers.

Source: AILab-CVC/VideoCrafter lvdm/modules/networks/openaimodel3d.py, configs/inference_t2v_512_v2.0.yaml.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ConfigError, explain

__all__ = [
    "NETWORK_PREFIX",
    "fold_frame_rate",
    "network_settings",
    "to_diffusers",
    "to_official",
]

NETWORK_PREFIX = "model.diffusion_model."
"""Before the network's names in a checkpoint."""

_FRAME_RATE = "fps_embedding."
_TIME_BIAS = "time_embedding.linear_2.bias"

_OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "init_attn.0": "transformer_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ONE_WIDE = ("transformer_in.proj_in.weight", "transformer_in.proj_out.weight")
"""Convolutions of width 1 in the official network, linear layers in diffusers."""

_REFUSED: dict[str, tuple[Any, str]] = {
    "use_relative_position": (False, "relative positions in its temporal attention"),
    "use_causal_attention": (False, "causal temporal attention"),
    "use_image_attention": (False, "cross-attention to image tokens"),
    "use_scale_shift_norm": (False, "time embeddings that scale and shift"),
    "resblock_updown": (False, "residual blocks that resample"),
    "tempspatial_aware": (False, "temporal convolutions over space"),
    "temporal_conv": (True, "no temporal convolutions"),
    "temporal_attention": (True, "no temporal attention"),
    "temporal_selfatt_only": (True, "temporal attention to text"),
    "addition_attention": (True, "no temporal attention before its first block"),
    "use_linear": (True, "convolutions around its attention"),
}
"""(value that diffusers' network has, what another value means), where the official default may differ."""

_DEFAULTS = {
    "use_relative_position": True,
    "use_causal_attention": False,
    "use_image_attention": False,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "tempspatial_aware": False,
    "temporal_conv": False,
    "temporal_attention": True,
    "temporal_selfatt_only": True,
    "addition_attention": False,
    "use_linear": False,
}


def network_settings(official: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Settings of `UNet3DConditionModel` for the `params` of an official `unet_config`.

    Args:
        official: as in the configuration file.
        where: the setting that named it, for messages.

    Raises:
        ConfigError: the network has parts that diffusers' has not.
    """
    for name, (wanted, meaning) in _REFUSED.items():
        if official.get(name, _DEFAULTS[name]) != wanted:
            message = explain(
                where,
                got=f"a network with {meaning} ({name}: {official.get(name, _DEFAULTS[name])})",
                expected=f"{name}: {wanted}, as VideoCrafter2 has",
                do="diffusers has no network of this kind; VideoCrafter2 (base_512_v2) can be trained.",
            )
            raise ConfigError(message)
    multiples = list(official["channel_mult"])
    attended = [2**level in official["attention_resolutions"] for level in range(len(multiples))]
    return {
        "in_channels": official["in_channels"],
        "out_channels": official["out_channels"],
        "block_out_channels": tuple(official["model_channels"] * multiple for multiple in multiples),
        "layers_per_block": official["num_res_blocks"],
        "down_block_types": tuple("CrossAttnDownBlock3D" if has else "DownBlock3D" for has in attended),
        "up_block_types": tuple("CrossAttnUpBlock3D" if has else "UpBlock3D" for has in reversed(attended)),
        "cross_attention_dim": official["context_dim"],
        "attention_head_dim": official["num_head_channels"],
    }


def _blocks(settings: Mapping[str, Any]) -> dict[str, str]:
    """Official names of residual blocks, attention and resampling, and those in diffusers."""
    names: dict[str, str] = {}
    layers, levels = settings["layers_per_block"], len(settings["block_out_channels"])

    def layer(official: str, block: str, number: int, *, attended: bool) -> None:
        names[f"{official}.0"] = f"{block}.resnets.{number}"
        names[f"{official}.0.temopral_conv"] = f"{block}.temp_convs.{number}"
        if attended:
            names[f"{official}.1"] = f"{block}.attentions.{number}"
            names[f"{official}.2"] = f"{block}.temp_attentions.{number}"

    for level, kind in enumerate(settings["down_block_types"]):
        first = 1 + level * (layers + 1)
        for number in range(layers):
            block = f"down_blocks.{level}"
            layer(f"input_blocks.{first + number}", block, number, attended=kind.startswith("Cross"))
        if level < levels - 1:
            names[f"input_blocks.{first + layers}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    layer("middle_block", "mid_block", 0, attended=True)
    names["middle_block.3"] = "mid_block.resnets.1"
    names["middle_block.3.temopral_conv"] = "mid_block.temp_convs.1"
    for level, kind in enumerate(settings["up_block_types"]):
        attended = kind.startswith("Cross")
        first = level * (layers + 1)
        for number in range(layers + 1):
            layer(f"output_blocks.{first + number}", f"up_blocks.{level}", number, attended=attended)
        if level < levels - 1:
            last = f"output_blocks.{first + layers}.{3 if attended else 1}.conv"
            names[last] = f"up_blocks.{level}.upsamplers.0.conv"
    return names


def _renaming(settings: Mapping[str, Any]) -> dict[str, str]:
    """Official beginnings of names to those of diffusers, longer ones first."""
    names = dict(_OUTER)
    for official, ours in _blocks(settings).items():
        if ".resnets." in ours:
            names |= {f"{official}.{inner}": f"{ours}.{outer}" for inner, outer in _RESIDUAL.items()}
        else:
            names[official] = ours
    return dict(sorted(names.items(), key=lambda pair: -len(pair[0])))


def _renamed(name: str, renaming: Mapping[str, str]) -> str:
    for before, after in renaming.items():
        if name.startswith(f"{before}."):
            return after + name[len(before) :]
    return name


def to_diffusers(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of `UNet3DConditionModel` from those of the official network, its prefix taken off.

    Args:
        state: official names, without the frame rate's embedding; unknown ones are passed on, for a strict
            loader to refuse.
        settings: from `network_settings`.
    """
    renaming, found = _renaming(settings), {}
    for official, value in state.items():
        if not official.startswith(_FRAME_RATE):
            name = _renamed(official, renaming)
            found[name] = value.squeeze(-1) if name in _ONE_WIDE else value
    return found


def to_official(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inverse of `to_diffusers`."""
    renaming = _renaming(settings)
    inverse = dict(sorted(((ours, name) for name, ours in renaming.items()), key=lambda pair: -len(pair[0])))
    return {
        _renamed(name, inverse): value.unsqueeze(-1) if name in _ONE_WIDE else value
        for name, value in state.items()
    }


@torch.no_grad()
def fold_frame_rate(
    state: Mapping[str, Tensor], official: Mapping[str, Tensor], fps: float, *, back: bool = False
) -> dict[str, Tensor]:
    """Weights of diffusers' network with the embedding of one frame rate in the bias of its time embedding.

    Args:
        state: weights in diffusers' names.
        official: weights in official names, the frame rate's embedding among them (or not: then nothing is
            changed).
        fps: what the network is told; fractions are allowed.
        back: take the embedding out again.
    """
    found = dict(state)
    if f"{_FRAME_RATE}0.weight" not in official:
        return found
    first, second = (
        (official[f"{_FRAME_RATE}{number}.weight"].double(), official[f"{_FRAME_RATE}{number}.bias"].double())
        for number in (0, 2)
    )
    half = first[0].shape[1] // 2
    angles = fps * torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(half) / half).double()
    hidden = F.silu(F.linear(torch.cat([angles.cos(), angles.sin()]), *first))
    constant = F.linear(hidden, *second)
    bias = found[_TIME_BIAS]
    found[_TIME_BIAS] = (bias.double() + (-constant if back else constant)).to(bias.dtype)
    return found
