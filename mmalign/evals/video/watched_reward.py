"""What a watcher sees of a clip, as a reward: VBench's measures wherever a reward is asked for by its name.

A suite, `mmalign pairs make` (its scorers, and the annotator of stretches) and `mmalign score` then share one
definition of each.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.errors import RowError, ShapeError, explain
from mmalign.evals.video.footage import FRAMES_FPS, Footage, read_footage
from mmalign.evals.video.watching import Watched, Watching
from mmalign.rewards.base import Scored
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Media, Sample, to_image

__all__ = ["WatchedReward"]


class WatchedReward:
    """A watcher as a reward of clips.

    Args:
        card: what it is; `outputs` in the order of what `read` gives.
        watcher: looks at clips.
        read: the values in what it saw.
    """

    def __init__(self, card: Card, watcher: Watching, read: Callable[[Watched], Sequence[float]]) -> None:
        self._card, self.watcher, self._read = card, watcher, read

    @property
    def card(self) -> Card:
        """What it is."""
        return self._card

    def provenance(self) -> Mapping[str, Any]:
        """The watcher's own, and which numbers are read."""
        seen = dict(self.watcher.provenance())
        return {**seen, "name": self.card.name, "sees": self.watcher.name, "outputs": list(self.card.outputs)}

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of `provenance`."""
        text = json.dumps(self.provenance(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> Scored:
        """Values of the clips; NaN with the reason where one cannot be read, is too short or too small.

        Args:
            samples: with `video`, or with `frames` and their rate as `extras["fps"]` (else 8).
            batch_size: not used: clips are looked at one by one.
        """
        del batch_size
        outputs = self.card.outputs
        values = torch.full((len(samples), len(outputs)), torch.nan, dtype=torch.float64)
        errors: list[str | None] = []
        for place, sample in enumerate(samples):
            try:
                seen = self.watcher.watch(self._footage(sample))
            except (RowError, ShapeError) as error:
                errors.append(str(error))
                continue
            values[place] = torch.tensor(tuple(self._read(seen)), dtype=torch.float64)
            errors.append(None)
        none = (None,) * len(samples)
        return Scored(values, outputs, tuple(errors), (False,) * len(samples), none)

    def _footage(self, sample: Sample) -> Footage:
        """The clip of a sample.

        Raises:
            RowError: it has none (`missing_video`), or one that cannot be read.
        """
        if sample.frames:
            told = sample.extras.get("fps")
            fps = float(told) if isinstance(told, int | float) and told > 0 else FRAMES_FPS
            return Footage(torch.stack([_pixels(frame) for frame in sample.frames]), fps)
        if sample.video is None:
            message = explain(f"reward {self.card.name}", got="[a sample without video]", expected="a clip")
            raise RowError(message, reason="missing_video")
        return read_footage(sample.video)


def _pixels(frame: Media) -> UInt8[Tensor, "3 height width"]:
    """A frame as bytes."""
    if isinstance(frame, Tensor) and frame.dtype == torch.uint8 and frame.ndim == 3 and len(frame) == 3:
        return frame.cpu()
    return torch.from_numpy(np.array(to_image(frame))).permute(2, 0, 1).contiguous()
