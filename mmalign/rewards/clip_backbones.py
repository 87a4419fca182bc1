"""CLIP models that several rewards stand on, pinned, by the short names users type."""

from pathlib import Path

import torch

from mmalign.errors import unknown_name
from mmalign.rewards.card import Weights
from mmalign.rewards.clip_models import HF_FILES, HuggingFaceClip
from mmalign.rewards.pixels import Crop
from mmalign.rewards.weights import resolve

__all__ = ["BACKBONES", "backbone_weights", "load_backbone"]


def _weights(repository: str, file: str, revision: str, num_bytes: int) -> Weights:
    return Weights(repository, (*HF_FILES, file), revision=revision, role="base", bytes=num_bytes)


BACKBONES: dict[str, Weights] = {
    "vit-b-32": _weights(
        "openai/clip-vit-base-patch32",
        "pytorch_model.bin",
        "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        605_247_071,
    ),
    "vit-b-16": _weights(
        "openai/clip-vit-base-patch16",
        "pytorch_model.bin",
        "57c216476eefef5ab752ec549e440a49ae4ae5f3",
        600_000_000,
    ),
    "vit-l-14": _weights(
        "openai/clip-vit-large-patch14",
        "model.safetensors",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        1_710_000_000,
    ),
    "vit-l-14-336": _weights(
        "openai/clip-vit-large-patch14-336",
        "pytorch_model.bin",
        "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
        1_710_000_000,
    ),
    "vit-h-14": _weights(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "model.safetensors",
        "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
        3_944_552_236,
    ),
}
"""OpenAI's CLIP in four sizes and LAION's ViT-H/14, on which PickScore and HPS are tuned."""


def backbone_weights(name: str) -> Weights:
    """Weights of a short name, or of any hub id ("org/model"), whose revision is then not pinned.

    Raises:
        UnknownNameError: neither.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if "/" in name:
        return Weights(name, (*HF_FILES, "model.safetensors"), role="base")
    raise unknown_name("CLIP backbone", name, BACKBONES)


def load_backbone(
    name: str,
    *,
    weights: str | Path | None,
    reward: str,
    device: str | torch.device,
    dtype: torch.dtype,
    crop: Crop = "even",
    text: bool = True,
) -> HuggingFaceClip:
    """A backbone from the user's folder or the hub.

    Args:
        name: short name, or hub id.
        weights: folder of the user's, or None.
        reward: who asks, for messages.
        device: where it stands.
        dtype: of the network.
        crop: how odd crop margins are rounded.
        text: False loads the image side alone.

    Raises:
        UnknownNameError: no such backbone.
        CheckpointError: it is not there, or is another model.
        ConfigError: `weights` lacks its files.
    """
    folder = resolve(backbone_weights(name), folder=weights, reward=reward)
    return HuggingFaceClip(folder, device=device, dtype=dtype, crop=crop, text=text)
