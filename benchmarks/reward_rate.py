"""Pictures per second that a reward scores on one core: alone, in batches, with own or shared prompts.

A tiny CLIP of random weights: what is measured is everything but the towers, decoding, resizing, tokens and
calls. Rates of real towers are lower, and the gain of batches is larger there.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["measure"]


def _samples(number: int, *, shared: bool) -> list[Any]:
    from tiny_models import _picture

    from mmalign.rewards.sample import Sample

    return [
        Sample(
            prompt="a red circle" if shared else f"a red circle, number {place}", image=_picture(place, 128)
        )
        for place in range(number)
    ]


def _rate(reward: Any, samples: Sequence[Any], batch: int) -> float:
    reward.score(samples[:batch])
    started = time.process_time()
    for start in range(0, len(samples), batch):
        reward.score(samples[start : start + batch])
    return len(samples) / (time.process_time() - started)


def measure(folder: Path, number: int = 64) -> dict[str, float]:
    """Pictures per second by batch and prompts."""
    from mmalign import rewards
    from mmalign.testing.reward_checkpoints.clip import write_clip_folder

    folder.mkdir(parents=True, exist_ok=True)
    reward = rewards.load("pickscore_v1", weights=write_clip_folder(folder / "clip"))
    result = {}
    for batch in (1, 16, 64):
        for shared in (False, True):
            samples = _samples(number, shared=shared)
            title = f"batch {batch}, {'one prompt' if shared else 'prompts of their own'}"
            result[title] = _rate(reward, samples, min(batch, number))
    return result
