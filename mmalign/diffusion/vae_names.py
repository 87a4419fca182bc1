"""Names of weights: the VAE of latent diffusion as its own code stores it, and diffusers' `AutoencoderKL`.

Pictures, spectrograms and frames share it. Both directions, so that what was read can be written back. Values
change in one place only: attention is made of 1 x 1 convolutions there, of linear layers here.

Source: CompVis/latent-diffusion ldm/modules/diffusionmodules/model.py.
"""

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["TRAINING_PREFIX", "vae_from_official", "vae_to_official"]

TRAINING_PREFIX = "first_stage_model."
"""Before the VAE's names in checkpoints of whole models."""

_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def _vae_name(name: str, levels: int) -> str:
    """The diffusers name of an official one."""
    name = re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets.", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    found = re.match(r"^decoder\.up\.(\d+)\.(block|upsample)\.", name)
    if found:
        # Official decoders count levels from the finest, diffusers from the coarsest.
        part = "resnets" if found[2] == "block" else "upsamplers.0"
        name = f"decoder.up_blocks.{levels - 1 - int(found[1])}.{part}.{name[found.end() :]}"
    found = re.match(r"^(encoder|decoder)\.mid\.block_(\d+)\.", name)
    if found:
        name = f"{found[1]}.mid_block.resnets.{int(found[2]) - 1}.{name[found.end() :]}"
    found = re.match(r"^(encoder|decoder)\.mid\.attn_1\.(\w+)\.", name)
    if found and found[2] in _ATTENTION:
        name = f"{found[1]}.mid_block.attentions.0.{_ATTENTION[found[2]]}.{name[found.end() :]}"
    return name.replace(".nin_shortcut.", ".conv_shortcut.")


def _official_vae_name(name: str, levels: int) -> str:
    """The official name of a diffusers one."""
    name = re.sub(r"^(encoder|decoder)\.conv_norm_out\.", r"\1.norm_out.", name)
    name = re.sub(r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", name)
    name = re.sub(r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", name)
    found = re.match(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.", name)
    if found:
        part = "block" if found[2] == "resnets" else "upsample"
        name = f"decoder.up.{levels - 1 - int(found[1])}.{part}.{name[found.end() :]}"
    found = re.match(r"^(encoder|decoder)\.mid_block\.resnets\.(\d+)\.", name)
    if found:
        name = f"{found[1]}.mid.block_{int(found[2]) + 1}.{name[found.end() :]}"
    found = re.match(r"^(encoder|decoder)\.mid_block\.attentions\.0\.(group_norm|to_out\.0|to_\w)\.", name)
    if found:
        theirs = {ours: official for official, ours in _ATTENTION.items()}
        name = f"{found[1]}.mid.attn_1.{theirs[found[2]]}.{name[found.end() :]}"
    return name.replace(".conv_shortcut.", ".nin_shortcut.")


def vae_from_official(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Weights of diffusers' `AutoencoderKL` from official ones.

    Args:
        state: official names, with or without the prefix; unknown ones are passed on, for a strict loader to
            refuse.
        levels: resolution levels (`len(ch_mult)`).
    """
    renamed = {}
    for official, value in state.items():
        name = _vae_name(official.removeprefix(TRAINING_PREFIX), levels)
        linear = ".attentions.0.to_" in name and value.ndim == 4
        renamed[name] = value.flatten(1) if linear else value
    return renamed


def vae_to_official(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Inverse of `vae_from_official`."""
    renamed = {}
    for name, value in state.items():
        convolution = ".attentions.0.to_" in name and name.endswith(".weight")
        renamed[_official_vae_name(name, levels)] = value[:, :, None, None] if convolution else value
    return renamed
