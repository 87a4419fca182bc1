"""Any chat model that sees pictures as a judge of one thing, by a rubric."""

import dataclasses
from pathlib import Path

import torch

from mmalign.errors import ConfigError, explain
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card
from mmalign.rewards.judge_models import RubricAsker, ScoreJudge
from mmalign.rewards.rubrics import load_rubric
from mmalign.rewards.vision_language import load_chat_model

CARD = Card(
    name="vlm_judge",
    title="A chat model of your choice scores one picture, clip or answer by a rubric",
    modality="image",
    scale="the rubric's; in logit mode its expectation, with spread and mass of the digits' probabilities",
    needs=("shown", "reference"),
    departures=("Our own design; the rubric's file names the source of its questions.",),
    options={
        "model": "hub id, hub id@revision, or folder of an image-text-to-text model",
        "rubric": "a shipped rubric's name or a YAML file, image_alignment",
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
    rubric: str | Path = "image_alignment",
    mode: str = "generate",
    max_new_tokens: int = 512,
    max_pixels: int | None = None,
    thinking: bool = False,
) -> Reward:
    """The reward, loaded.

    Raises:
        ConfigError: the rubric compares two things; an unknown mode, or a rubric logit mode cannot read.
    """
    found = load_rubric(rubric)
    if found.kind != "score":
        do = "Use vlm_pairwise_judge."
        raise ConfigError(explain(f"rubric {found.name} kind", got=found.kind, expected="score", do=do))
    if mode not in ("generate", "logit"):
        raise ConfigError(explain(f"reward {CARD.name} mode", got=mode, expected="generate or logit"))
    card = CARD
    scale: tuple[int, ...] = ()
    if mode == "logit":
        scale = tuple(int(token) for token in found.tokens)
        card = dataclasses.replace(CARD, outputs=("score", "spread", "mass"))
    judge = load_chat_model(
        weights=weights,
        model=model,
        reward=CARD.name,
        device=device,
        dtype=dtype,
        max_pixels=max_pixels,
        thinking=thinking,
    )

    def read(text: str) -> list[float] | None:
        score = found.read_score(text)
        return None if score is None else [score]

    return ScoreJudge(
        card,
        judge,
        RubricAsker(found),
        read=read,
        reader=found.output,
        mode="logit" if mode == "logit" else "generate",
        scale=scale,
        max_new_tokens=max_new_tokens,
    )
