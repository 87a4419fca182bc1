"""Tiny PAL heads over a tiny CLIP, in the files that `PalHead.save` writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from mmalign.rewards.ideal_point_models import PalHead, PalSettings
from mmalign.rewards.sample import Sample
from mmalign.testing.reward_checkpoints.clip import write_clip_folder

__all__ = ["BAD_SAMPLES", "CHECKPOINTS", "OTHER_OPTIONS", "SAMPLES", "TENSOR_ARGUMENTS", "USERS", "write_pal"]

USERS = ("ada", "grace.h", "42")


def write_pal(form: Literal["a", "b"]) -> Callable[[Path, int], Path]:
    """A function that writes a head with three users beside the files of its CLIP."""

    def write(folder: Path, seed: int = 0) -> Path:
        write_clip_folder(folder, seed)
        settings = PalSettings(form=form, input=24, width=7, prototypes=3, hidden=1)
        head = PalHead(settings, USERS, generator=torch.Generator().manual_seed(seed))
        return head.save(folder)

    return write


def _samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(7)
    extras: list[dict[str, Any]] = [
        {"user": "ada"},
        {"user": "grace.h"},
        {"mixture": [0.5, 0.25, 0.25]},
        {"user": "42"},
    ]
    return [
        Sample(prompt=prompt, image=torch.rand(3, 29 + 4 * number, 37, generator=generator), extras=extra)
        for number, (prompt, extra) in enumerate(
            zip(("a painting", "an ocean", "", "clouds and birds"), extras, strict=True)
        )
    ]


CHECKPOINTS: dict[str, Callable[[Path, int], Path]] = {"pal_a": write_pal("a"), "pal_b": write_pal("b")}

SAMPLES: dict[str, Callable[[], list[Sample]]] = {"pal_a": _samples, "pal_b": _samples}

BAD_SAMPLES: dict[str, Sample] = {
    name: Sample(
        prompt="a",
        image=torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(1)),
        extras={"user": "nobody"},
    )
    for name in CHECKPOINTS
}


def _user(sample: Sample) -> dict[str, Any]:
    return {"users": [sample.extras.get("user", sample.extras.get("mixture"))]}


TENSOR_ARGUMENTS: dict[str, Callable[[Sample], dict[str, Any]]] = dict.fromkeys(CHECKPOINTS, _user)

OTHER_OPTIONS: dict[str, dict[str, Any]] = {name: {"user": "ada"} for name in CHECKPOINTS}
