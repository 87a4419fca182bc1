"""VQAScore by any chat model that sees pictures: P(Yes) to the question whether they show the prompt."""

from functools import partial
from pathlib import Path

import torch

from mmalign.rewards.base import Reward
from mmalign.rewards.card import Card
from mmalign.rewards.vision_language import load_chat_model
from mmalign.rewards.vqa import QUESTION, VqaScore

CARD = Card(
    name="vqascore",
    title="VQAScore by a chat model of your choice: P(Yes) that the picture shows the prompt",
    modality="image",
    outputs=("score", "answer_mass"),
    scale="P(Yes), 0 to 1; answer_mass = P(Yes) + P(No): near 0 the model was about to say something else",
    paper="2404.01291",
    official_code="linzhiqiu/t2v_metrics",
    pixels="native size, within the processor's limits",
    options={
        "model": "hub id, hub id@revision, or folder of an image-text-to-text model",
        "question": "with one {} for the prompt",
        "answer": "the word whose probability counts, Yes",
        "opposite": "the other answer, No",
        "temperature": "divides the logits, 1",
        "max_pixels": "larger pictures are scaled down to this area; default none",
    },
    departures=(
        "Rows are scored in batches by one teacher-forced pass; the official wrapper generates one by one.",
        "Raw logits count; generation settings of the checkpoint (repetition penalty) do not.",
    ),
)


def build_for(
    card: Card,
    share: bool,
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    model: str | None = None,
    question: str = QUESTION,
    answer: str = "Yes",
    opposite: str = "No",
    temperature: float = 1.0,
    max_pixels: int | None = None,
) -> Reward:
    """The reward, loaded."""
    judge = load_chat_model(
        weights=weights, model=model, reward=card.name, device=device, dtype=dtype, max_pixels=max_pixels
    )
    return VqaScore(
        card, judge, question=question, answer=answer, opposite=opposite, temperature=temperature, share=share
    )


build = partial(build_for, CARD, False)
