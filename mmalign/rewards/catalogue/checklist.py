"""A checklist of yes-or-no questions with linear weights, asked of any chat model that sees pictures."""

import dataclasses
from pathlib import Path

import torch

from mmalign.errors import ConfigError, explain
from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card
from mmalign.rewards.checklist import ChecklistReward, load_checklist
from mmalign.rewards.vision_language import load_chat_model

CARD = Card(
    name="checklist",
    title="Yes-or-no questions about a picture with linear weights, asked of a chat model of your choice",
    modality="image",
    scale="intercept + sum of weight * (P(yes) - P(no)), the checklist's own unit",
    paper="2412.21059",
    official_code="THUDM/VisionReward",
    options={
        "model": "hub id, hub id@revision, or folder of an image-text-to-text model",
        "questions": "YAML file of questions and weights; default checklist.yaml in the model's folder",
        "rows_at_once": "questions asked in one pass, 8",
        "max_pixels": "larger pictures are scaled down to this area; default none",
    },
    departures=(
        "Answers are P(yes) - P(no); VisionReward takes +1 for the text yes and -1 for anything else.",
    ),
)


def build(
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    model: str | None = None,
    questions: str | Path | None = None,
    rows_at_once: int = 8,
    max_pixels: int | None = None,
) -> Reward:
    """The reward, loaded; its outputs are score and every question's id.

    Raises:
        ConfigError: no questions file.
    """
    judge = load_chat_model(
        weights=weights, model=model, reward=CARD.name, device=device, dtype=dtype, max_pixels=max_pixels
    )
    beside = judge.folder / "checklist.yaml"
    if questions is None and not beside.is_file():
        message = explain(
            f"reward {CARD.name} questions",
            got=None,
            expected="a YAML file of questions",
            do="mmalign.rewards.checklist says what stands in it and how weights are fitted.",
        )
        raise ConfigError(message)
    checklist = load_checklist(questions or beside)
    ids = tuple(check.id for check in checklist.questions)
    card = dataclasses.replace(CARD, outputs=("score", *ids))
    return ChecklistReward(card, judge, checklist, rows_at_once=rows_at_once)
