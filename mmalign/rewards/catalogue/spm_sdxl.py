"""SPO's step-aware preference model for SDXL."""

from dataclasses import replace
from functools import partial

from mmalign.rewards.catalogue import spm_sd15

__all__ = ["CARD", "build"]

CARD = replace(
    spm_sd15.CARD,
    name="spm_sdxl",
    title="SPO's step-aware preference model for predictions of SDXL at a timestep",
    weights=(
        replace(spm_sd15.CARD.weights[0], files=("sdxl_step-aware_preference_model.bin",)),
        *spm_sd15.CARD.weights[1:],
    ),
)

build = partial(spm_sd15.build_for, CARD)
