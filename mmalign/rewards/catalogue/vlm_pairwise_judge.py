"""Any chat model that sees pictures as a judge of two things, by a rubric, in both orders."""

from pathlib import Path

import torch

from mmalign.errors import ConfigError, explain
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card
from mmalign.rewards.judge_models import PairJudge, RubricAsker
from mmalign.rewards.rubrics import load_rubric
from mmalign.rewards.vision_language import load_chat_model

CARD = Card(
    name="vlm_pairwise_judge",
    title="A chat model of your choice compares two pictures, clips or answers by a rubric, in both orders",
    modality="image",
    outputs=("preference", "in_order", "swapped"),
    scale="1 = the sample's own is better, 0 = the other; 0.5 = tie or contradiction between the orders",
    needs=("other", "shown", "reference"),
    departures=("Our own design; the rubric's file names the source of its questions.",),
    options={
        "model": "hub id, hub id@revision, or folder of an image-text-to-text model",
        "rubric": "a shipped rubric's name or a YAML file, image_preference",
        "mode": "generate (write, then parse; the default) or logit (rubrics whose output is digit)",
        "max_new_tokens": "length of a written answer, 512",
        "max_pixels": "larger pictures are scaled down to this area; default none",
        "thinking": "true: templates that can open a chain of thought do",
    },
)


def build(
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    model: str | None = None,
    rubric: str | Path = "image_preference",
    mode: str = "generate",
    max_new_tokens: int = 512,
    max_pixels: int | None = None,
    thinking: bool = False,
) -> Reward:
    """The reward, loaded.

    Raises:
        ConfigError: the rubric scores one thing; an unknown mode, or a rubric logit mode cannot read.
    """
    found = load_rubric(rubric)
    if found.kind != "compare":
        do = "Use vlm_judge."
        raise ConfigError(explain(f"rubric {found.name} kind", got=found.kind, expected="compare", do=do))
    if mode not in ("generate", "logit"):
        raise ConfigError(explain(f"reward {CARD.name} mode", got=mode, expected="generate or logit"))
    if mode == "logit":
        found.tokens  # noqa: B018  (refuses rubrics whose answers do not begin with them)
    judge = load_chat_model(
        weights=weights,
        model=model,
        reward=CARD.name,
        device=device,
        dtype=dtype,
        max_pixels=max_pixels,
        thinking=thinking,
    )
    return PairJudge(
        CARD,
        judge,
        RubricAsker(found),
        read=found.read_choice,
        reader=found.output,
        mode="logit" if mode == "logit" else "generate",
        max_new_tokens=max_new_tokens,
    )
