"""One step of our trainer with the forward pass of LoRA layers by peft, and by mmalign/train/lean_lora.py.

    sdxl     the structure of SDXL: 560 adapted layers
    host     the same network on latents of 4 x 4: arithmetic vanishes, what serves a GPU remains
    llava    a vision-language model, adapters on all of its linear layers

It is one trainer whose layers change their class between steps, so both have the same weights, rows and
memory. Their gradients are compared first.
"""

import itertools
import statistics
from pathlib import Path
from typing import Any

from contestants import TOLERANCE, _prepared, one_step, settings
from peft.tuners.lora.layer import Linear as LoraLinear
from step_race import interleaved, ratio
from tiny_models import TINY
from vlm_contestants import Contestant, _by_layer, largest_difference

__all__ = ["STEPS", "measure"]

STEPS: dict[str, tuple[str, int | None]] = {
    "sdxl": ("sdxl", None),
    "host": ("sdxl", 32),
    "llava": ("vlm", None),
}
"""Name of a measurement to its tiny model, and the pixels of its pictures where they are not the model's."""


def _contestants(model: str, folder: Path, *, pixels: int | None, pairs: int) -> tuple[list[Contestant], int]:
    """The trainer with either forward pass, and the number of its plain LoRA layers."""
    from mmalign.train.lean_lora import LeanLoraLinear
    from mmalign.train.step import preference_step

    sections = {} if pixels is None else {"image": {"resolution": pixels}}
    config = settings(TINY[model], folder, name="lora", pairs=pairs, **sections)
    loop, loader = _prepared(config)
    batches = loop._batches(itertools.repeat(next(iter(loader))))
    layers = [layer for layer in loop.trainables.layers if type(layer) is LeanLoraLinear]

    def with_forward(title: str, kind: type) -> Contestant:
        def become() -> None:
            for layer in layers:
                layer.__class__ = kind

        def gradient() -> None:
            become()
            (preference_step(loop.parts, next(batches)).loss / pairs).backward()

        def step() -> None:
            become()
            one_step(loop, batches)

        return Contestant(title, _by_layer(loop.trainables.network), gradient, step)

    return [with_forward("peft", LoraLinear), with_forward("lean", LeanLoraLinear)], len(layers)


def measure(name: str, folder: Path, *, pairs: int, rounds: int, steps: int) -> dict[str, Any]:
    """Milliseconds of CPU time per step with either forward pass, and the ratio of ours to peft's.

    Args:
        name: one of STEPS.
        folder: scratch.
        pairs: per step.
        rounds: of the race.
        steps: per round.
    """
    model, pixels = STEPS[name]
    contestants, layers = _contestants(model, folder, pixels=pixels, pairs=pairs)
    difference = largest_difference(contestants, TOLERANCE)
    times = interleaved(contestants, rounds=rounds, steps=steps)
    middle, low, high = ratio(times["lean"], times["peft"])
    return {
        "layers": layers,
        "pairs_per_step": pairs,
        "rounds": rounds,
        "gradient_difference": difference,
        "milliseconds": {title: 1e3 * statistics.median(values) for title, values in times.items()},
        "over_peft": middle,
        "over_peft_low": low,
        "over_peft_high": high,
    }
