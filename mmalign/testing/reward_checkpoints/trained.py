"""A tiny trained reward over a tiny CLIP, in the files that training writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmalign.rewards.sample import Sample
from mmalign.rewards.training.backbones import make_backbone
from mmalign.rewards.training.heads import HeadSettings, PreferenceHead
from mmalign.rewards.training.saved import Description, save_reward
from mmalign.testing.reward_checkpoints.clip import write_clip_folder

__all__ = ["BAD_SAMPLES", "CHECKPOINTS", "OTHER_OPTIONS", "SAMPLES", "TENSOR_ARGUMENTS", "write_trained"]


def write_trained(folder: Path, seed: int = 0) -> Path:
    """A head of normal rewards that reads contexts, beside the files of its CLIP. Returns the folder."""
    write_clip_folder(folder, seed)
    backbone = make_backbone("clip", name="vit-h-14", weights=folder)
    width = backbone.item_width
    settings = HeadSettings(item=width, prompt=width, context=width, width=11, hidden=2, gaussian=True)
    generator = torch.Generator().manual_seed(seed)
    head = PreferenceHead(settings, generator=generator).eval()
    for parameter in head.parameters():  # a head that was trained has no zeros left
        parameter.data.normal_(0.0, 0.3, generator=generator)
    features = {
        name: 2.0 + 3.0 * torch.randn(7, width, generator=generator) for name in ("item", "prompt", "context")
    }
    head.standardise_by(**features)
    description = Description(
        name="tiny",
        method="reward_pearl",
        backbone={"kind": "clip", "name": "vit-h-14", "weights": None},
        backbone_settings=dict(backbone.settings()),
        head={},
        temperature=1.7,
        context=True,
    )
    return save_reward(folder, head, description)


def _samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(5)
    contexts = ("a painting", "birds", "a painting", "")
    prompts = ("a painting", "an ocean", "", "clouds and birds")
    return [
        Sample(
            prompt=prompt,
            image=torch.rand(3, 29 + 4 * number, 37, generator=generator),
            extras={"context": context},
        )
        for number, (prompt, context) in enumerate(zip(prompts, contexts, strict=True))
    ]


def _contexts(sample: Sample) -> dict[str, Any]:
    return {"contexts": [sample.extras["context"]]}


CHECKPOINTS: dict[str, Callable[[Path, int], Path]] = {"trained": write_trained}
SAMPLES: dict[str, Callable[[], list[Sample]]] = {"trained": _samples}
BAD_SAMPLES: dict[str, Sample] = {
    "trained": Sample(
        prompt="no context", image=torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(1))
    )
}
OTHER_OPTIONS: dict[str, dict[str, Any]] = {"trained": {"context": "an ocean"}}
TENSOR_ARGUMENTS: dict[str, Callable[[Sample], dict[str, Any]]] = {"trained": _contexts}
