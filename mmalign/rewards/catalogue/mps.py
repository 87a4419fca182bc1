"""MPS, the multi-dimensional preference score, for the released "overall" condition."""

from pathlib import Path

import torch

from mmalign.rewards.card import Card, Weights
from mmalign.rewards.conditioned_preference import OVERALL_CONDITION, MpsReward, load_mps
from mmalign.rewards.prompt_tokens import PromptTokens
from mmalign.rewards.step_aware_reward import CLIP_H
from mmalign.rewards.weights import hashes, resolve

__all__ = ["CARD", "build"]

_MODEL = Weights(repository="RE-N-Y/mpsv1", files=("model.safetensors",))

CARD = Card(
    name="mps",
    title="MPS: CLIP-H whose image tokens attend to the prompt's words that bear on a condition",
    modality="image",
    scale="exp(logit_scale) * cos, about 100 cos, typically 5 to 20",
    weights=(_MODEL, CLIP_H),
    paper="2405.14705",
    official_code="https://github.com/Kwai-Kolors/MPS",
    licence="MIT (code); the weights' repository states none",
    differentiable=True,
    text_limit=77,
    pixels="shorter side 224 bicubic (Pillow), centre crop 224 (odd margins rounded down)",
    options={
        "threshold": "relative similarity to the condition above which a prompt token takes part; 0.3 as in "
        "the evaluation that gave the published numbers, 0.01 as in the model's own forward",
        "condition": 'what the score is about; only the "overall" list of nouns has been released',
    },
    departures=(
        "Names of CLIP's special tokens in a prompt are read as text; officially they end it.",
        "The official forward divides by the largest similarity of the whole batch, so that scores depend on "
        "batch mates; here each sample has its own maximum, as where the official evaluation scores one.",
        "The official checkpoint is a pickled module and is not loaded; RE-N-Y/mpsv1 holds its tensors, here "
        "at no pinned revision.",
        "The official code runs in half precision; float32 is the default here.",
    ),
)


def build(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype,
    threshold: float = 0.3,
    condition: str = OVERALL_CONDITION,
) -> MpsReward:
    """The reward, ready to score.

    Args:
        weights: folder with `model.safetensors` of RE-N-Y/mpsv1 and with CLIP-H's config and tokenizer
            (itself or its sub-folders of the repositories' names); None = the hub's cache.
        device: where the network stands.
        dtype: of the network.
        threshold: see the card's options.
        condition: see the card's options.

    Raises:
        CheckpointError: files are missing or do not fit.
        ConfigError: an option outside its range.
    """
    model = resolve(_MODEL, folder=weights, reward=CARD.name)
    base = resolve(CLIP_H, folder=weights, reward=CARD.name)
    network = load_mps(model / "model.safetensors", base / "config.json", dtype=dtype)
    length = int(network.model.config.text_config.max_position_embeddings)
    return MpsReward(
        CARD,
        network,
        tokens=PromptTokens.clip(base, length=length),
        weights={**hashes(model, _MODEL.files), **hashes(base, CLIP_H.files)},
        device=device,
        dtype=dtype,
        threshold=float(threshold),
        condition=condition,
    )
