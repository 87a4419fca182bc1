"""PickScore v1: CLIP ViT-H/14 tuned on the choices of Pick-a-Pic v1's users."""

from functools import partial
from pathlib import Path

import torch

from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card, Weights
from mmalign.rewards.clip_models import HF_FILES, HuggingFaceClip
from mmalign.rewards.clip_rewards import ClipReward
from mmalign.rewards.clip_scores import pick_score
from mmalign.rewards.weights import resolve

__all__ = ["CARD", "build"]

CARD = Card(
    name="pickscore_v1",
    title="PickScore: which picture users of Pick-a-Pic would choose for this prompt",
    modality="image",
    scale="exp(logit_scale) * cosine, about 100 * cosine: typically 18 to 24, as the README prints it",
    weights=(
        Weights(
            "yuvalkirstain/PickScore_v1",
            (*HF_FILES, "model.safetensors"),
            revision="a4e4367c6dfa7288a00c550414478f865b875800",
            bytes=3_940_000_000,
        ),
    ),
    paper="2305.01569",
    official_code="yuvalkirstain/PickScore",
    licence="MIT",
    differentiable=True,
    text_limit=77,
    pixels="shorter side 224, bicubic by Pillow, centre crop (odd margins rounded down)",
    departures=(
        "Names of CLIP's special tokens in a prompt are read as text; the README's code ends it there.",
        "Diffusion-DPO and others report the cosine, flow_grpo the score / 26, SmPO a min-max of the cosine; "
        "convert with mmalign.rewards.clip_scores.pick_score_as.",
        "float32 by default, where the README's code runs in the precision of its checkpoint.",
    ),
)


def build(*, weights: str | Path | None, device: str | torch.device, dtype: torch.dtype) -> Reward:
    """PickScore from `yuvalkirstain/PickScore_v1` or a folder of its layout."""
    folder = resolve(CARD.weights[0], folder=weights, reward=CARD.name)
    encoder = HuggingFaceClip(folder, device=device, dtype=dtype, crop="floor")
    return ClipReward(
        CARD,
        encoder,
        score=partial(pick_score, log_scale=encoder.log_scale),
        formula="exp(logit_scale) * cosine",
        device=device,
        dtype=dtype,
    )
