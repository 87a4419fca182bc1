"""HPS v2 and v2.1: one construction, two checkpoints whose scales must not be mixed."""

from pathlib import Path
from typing import Literal

import torch

from mmalign.rewards.card import Card, Weights
from mmalign.rewards.clip_rewards import ClipReward
from mmalign.rewards.open_clip_models import OpenClip
from mmalign.rewards.pixels import Preprocessing
from mmalign.rewards.weights import resolve

__all__ = ["build_hps", "hps_card"]


def hps_card(name: str, file: str, title: str) -> Card:
    """The card of one version: they differ in their file alone."""
    return Card(
        name=name,
        title=title,
        modality="image",
        scale="cosine in [-1, 1], typically 0.2 to 0.35; the HPDv2 benchmark prints 100 * cosine",
        weights=(
            Weights(
                "xswu/HPSv2",
                (file,),
                revision="697403c78157020a1ae59d23f111aa58ced35b0a",
                bytes=1_970_000_000,
            ),
        ),
        paper="2306.09341",
        official_code="tgxs002/HPSv2",
        licence="Apache-2.0",
        differentiable=True,
        text_limit=77,
        pixels="longer side 224, bicubic on tensors, black pad (odd pixel right or bottom)",
        options={
            "antialias": "True (default) resizes as a fresh install of hpsv2 does now; False as torchvision "
            "did when the published tables were made.",
            "backend": "'tensor' (default) resizes floats, as hpsv2 does; 'pil' resizes the 8-bit picture.",
        },
        departures=(
            "hpsv2.score() means v2.0 and hpsv2.evaluate() v2.1; here each version has its name and none is "
            "a default.",
            "The published code computes in mixed precision on a GPU; float32 by default here.",
            "A picture that cannot be read gets no score; hpsv2's data set scores the next one in its place.",
            "Alpha is laid over white; hpsv2 fails on it.",
            "A picture whose longer side is 224 already is padded as well; hpsv2 fails on it.",
            "Names of CLIP's special tokens in a prompt are read as text; hpsv2 ends the prompt there.",
        ),
    )


def build_hps(
    card: Card,
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    antialias: bool = True,
    backend: Literal["tensor", "pil"] = "tensor",
) -> ClipReward:
    """A version of HPS from its `.pt` file.

    Args:
        card: whose first weights name the file.
        weights: folder that holds the file, or None.
        device: where it stands.
        dtype: of the network.
        antialias: of the resize.
        backend: of the resize.

    Raises:
        ConfigError: no antialiasing with Pillow.
        CheckpointError: the file is missing or not an HPS checkpoint.
    """
    preprocessing = Preprocessing(fit="pad", backend=backend, antialias=antialias)
    (file,) = card.weights[0].files
    folder = resolve(card.weights[0], folder=weights, reward=card.name)
    encoder = OpenClip(
        folder / file, architecture="ViT-H-14", preprocessing=preprocessing, device=device, dtype=dtype
    )
    return ClipReward(
        card, encoder, score=lambda cosines: cosines, formula="cosine", device=device, dtype=dtype
    )
