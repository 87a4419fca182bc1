"""Names of weights: AudioLDM's VAE and vocoder as Tango stores them, and those of today's libraries.

Both directions, so that what was read can be written back for the official code.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mmalign.diffusion.vae_names import TRAINING_PREFIX, vae_to_official
from mmalign.diffusion.vae_names import vae_from_official as names_from_official

__all__ = [
    "VOCODER_PREFIX",
    "vae_from_official",
    "vae_to_official",
    "vocoder_from_official",
    "vocoder_to_official",
]

VOCODER_PREFIX = "vocoder."
"""Before the vocoder's names in the VAE's file."""


def vae_from_official(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Weights of diffusers' `AutoencoderKL` from those of AudioLDM's, the vocoder's left out.

    Args:
        state: official names; unknown ones are passed on, for a strict loader to refuse.
        levels: resolution levels (`len(ch_mult)`).
    """
    return names_from_official(
        {
            name: value
            for name, value in state.items()
            if not name.removeprefix(TRAINING_PREFIX).startswith(VOCODER_PREFIX)
        },
        levels,
    )


def vocoder_from_official(state: Mapping[str, Tensor], num_bands: int) -> dict[str, Tensor]:
    """Weights of transformers' `SpeechT5HifiGan` from the vocoder in AudioLDM's VAE file.

    Args:
        state: official names, the VAE's among them.
        num_bands: mel bands; the statistics that transformers normalises by are 0 and 1.
    """
    plain = {name.removeprefix(TRAINING_PREFIX): value for name, value in state.items()}
    renamed = {
        re.sub(r"^ups\.", "upsampler.", name.removeprefix(VOCODER_PREFIX)): value
        for name, value in plain.items()
        if name.startswith(VOCODER_PREFIX)
    }
    return {**renamed, "mean": torch.zeros(num_bands), "scale": torch.ones(num_bands)}


def vocoder_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `vocoder_from_official`, with the prefix."""
    return {
        VOCODER_PREFIX + re.sub(r"^upsampler\.", "ups.", name): value
        for name, value in state.items()
        if name not in ("mean", "scale")
    }
