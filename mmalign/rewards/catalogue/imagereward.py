"""ImageReward v1.0."""

from pathlib import Path

import torch

from mmalign.rewards.blip_models import ImageReward, load_image_reward
from mmalign.rewards.card import Card, Reference, Weights
from mmalign.rewards.pixels import Preprocessing
from mmalign.rewards.prompt_tokens import PromptTokens
from mmalign.rewards.weights import hashes, resolve

__all__ = ["CARD", "build"]

_TOKENS = 35

_MODEL = Weights(
    repository="zai-org/ImageReward",
    files=("ImageReward.pt", "med_config.json"),
    revision="5736be03b2652728fb87788c9797b0570450ab72",
    bytes=1_786_880_927,
)
_TOKENIZER = Weights(
    repository="google-bert/bert-base-uncased",
    files=("tokenizer.json", "tokenizer_config.json"),
    revision="86b5e0934494bd15c9632b12f734a8a67f723594",
    role="tokenizer",
    bytes=698_188,
)

_PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"
_README = (0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492)

CARD = Card(
    name="imagereward",
    title="ImageReward v1.0: BLIP with cross-attention, trained on expert rankings",
    modality="image",
    scale="standardised over its training pictures: mean 0, standard deviation 1, roughly -2.3 to 2",
    weights=(_MODEL, _TOKENIZER),
    paper="2304.05977",
    official_code="https://github.com/zai-org/ImageReward",
    licence="Apache-2.0",
    differentiable=True,
    text_limit=_TOKENS,
    pixels="shorter side 224 bicubic (Pillow), centre crop 224",
    references=tuple(
        Reference(_PROMPT, f"assets/images/{number}.webp", value, 1e-3, "README, `ImageReward-v1.0`")
        for number, value in enumerate(_README, start=1)
    ),
    departures=(
        "The official load skips keys that do not fit; here every key is accounted for.",
        "The official code cuts prompts at 35 tokens without a sign; here they are counted.",
        "The official ranking of equal rewards changes between runs; `blip_models.ranks` is stable.",
        "The official code gives pictures to the model as they are stored; here alpha is laid over white and "
        "EXIF orientation applied.",
    ),
)


def build(
    *, weights: str | Path | None = None, device: str | torch.device = "cpu", dtype: torch.dtype
) -> ImageReward:
    """The reward, ready to score.

    Args:
        weights: folder with `ImageReward.pt`, `med_config.json` and the tokenizer; None = the hub's cache.
        device: where the network stands.
        dtype: of the network.

    Raises:
        CheckpointError: files are missing or do not fit.
    """
    model = resolve(_MODEL, folder=weights, reward=CARD.name)
    tokenizer = resolve(_TOKENIZER, folder=weights, reward=CARD.name)
    network = load_image_reward(model / "ImageReward.pt", model / "med_config.json", dtype=dtype)
    vocabulary = int(network.text.config.vocab_size)
    return ImageReward(
        CARD,
        network,
        tokens=PromptTokens.blip(tokenizer, length=_TOKENS, vocabulary=vocabulary),
        preprocessing=Preprocessing(size=network.image_size),
        weights={**hashes(model, _MODEL.files), **hashes(tokenizer, _TOKENIZER.files)},
        device=device,
        dtype=dtype,
    )
