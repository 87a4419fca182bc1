"""SPO's step-aware preference model for Stable Diffusion 1.5."""

from functools import partial
from pathlib import Path

import torch

from mmalign.rewards.card import Card, Weights
from mmalign.rewards.step_aware_reward import CLIP_H, Start, StepAwareReward, load_step_aware_reward

__all__ = ["CARD", "build", "build_for"]

_MODEL = Weights(
    repository="SPO-Diffusion-Models/Step-Aware_Preference_Models",
    files=("sd-v1-5_step-aware_preference_model.bin",),
)

CARD = Card(
    name="spm_sd15",
    title="SPO's step-aware preference model for predictions of Stable Diffusion 1.5 at a timestep",
    modality="image",
    scale="PickScore's: exp(logit_scale) * cos, about 100 cos, typically 18 to 24",
    weights=(_MODEL, CLIP_H),
    paper="2406.04314",
    official_code="https://github.com/RockeyCoss/SPO",
    licence="MIT (code); the weights' card is not known here",
    differentiable=True,
    text_limit=77,
    pixels="shorter side 224 bicubic without antialias (torch), centre crop 224",
    needs=("timestep",),
    options={
        "timestep": "timestep of samples whose extras name none; 0 = finished pictures",
        "start": "released, or pickscore: PickScore's weights with a modulation that does nothing yet, to "
        "train a model of one's own from",
        "seed": "draws the timestep embedder of start=pickscore",
    },
    departures=(
        "Names of CLIP's special tokens in a prompt are read as text; officially they end it.",
        "The weights are fetched at no pinned revision.",
        "The official class fills all modulation biases with 1; a new model here starts as PickScore.",
        "The official training resizes pictures to a square and loses their aspect ratio; scoring crops.",
    ),
)


def build_for(
    card: Card,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype,
    start: Start = "released",
    timestep: float | int | None = None,
    seed: int = 0,
) -> StepAwareReward:
    """The reward, ready to score.

    Args:
        card: what it is.
        weights: folder with the released file and with CLIP-H's config and tokenizer (itself or its
            sub-folders of the repositories' names); None = the hub's cache.
        device: where the network stands.
        dtype: of the network.
        start: see the card's options.
        timestep: see the card's options.
        seed: see the card's options.

    Raises:
        CheckpointError: files are missing or do not fit.
        ConfigError: an option outside its range.
    """
    return load_step_aware_reward(
        card,
        weights=weights,
        device=device,
        dtype=dtype,
        start=start,
        timestep=None if timestep is None else float(timestep),
        seed=seed,
    )


build = partial(build_for, CARD)
