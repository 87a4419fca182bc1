"""What tests of pair makers of clips share: clips drawn in an instant, a maker and a reward of functions."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.data.config import VideoLimits
from mmalign.data.video_media import decode_clip
from mmalign.errors import RowError
from mmalign.rewards.sample import Sample
from mmalign.video.clips import Clip
from mmalign.video.pair_making.making import Made

__all__ = ["ClipStub", "brightness", "drawn", "frames_in", "records"]


def drawn(name: str, *, num_frames: int = 11, fps: float = 8.0) -> Clip:
    """A bright bar that moves; other names, another speed and brightness."""
    digest = hashlib.sha256(name.encode()).digest()
    frames = torch.zeros(num_frames, 3, 32, 48, dtype=torch.uint8)
    for place in range(num_frames):
        left = (place * (1 + digest[0] % 5) + digest[1]) % 40
        frames[place, :, :, left : left + 7] = 80 + digest[2] % 160
    return Clip(frames, fps)


def brightness(samples: Sequence[Sample]) -> list[float]:
    """A reward of clips: their mean, in [0, 1]."""
    found = []
    for sample in samples:
        frames = [frame for frame in sample.frames or () if isinstance(frame, Tensor)]
        found.append(float(torch.stack(frames).float().mean()) / 255)
    return found


class ClipStub:
    """Draws clips of prompts and corrupts real ones; writes down what it is asked.

    Args:
        killed_at: number of the call at which it is interrupted.
        fails: keys of which it makes nothing.
    """

    def __init__(self, killed_at: int = -1, fails: Sequence[str] = ()) -> None:
        self.calls: list[list[str]] = []
        self.levels: list[float] = []
        self.killed_at, self.fails = killed_at, fails

    def identity(self) -> Mapping[str, Any]:
        """Always the same."""
        return {"model": "stub@1"}

    def __call__(
        self, prompts: Sequence[str], keys: Sequence[str], seed: int, num_steps: int
    ) -> Sequence[Made]:
        """A clip per prompt, None where it is to fail."""
        self._called(list(keys))
        return [
            None if key in self.fails else drawn(f"{prompt}|{key}|{seed}|{num_steps}")
            for prompt, key in zip(prompts, keys, strict=True)
        ]

    def corrupt(
        self, row: PreferenceRow, level: float, keys: Sequence[str], seed: int
    ) -> tuple[Clip, Sequence[Clip]]:
        """Nine frames of the real clip, and the same mixed with noise per key.

        Raises:
            RowError: the prompt is "refused", or the clip cannot be read.
        """
        self._called(list(keys))
        self.levels.append(level)
        if row.prompt == "refused":
            message = "refused"
            raise RowError(message, reason="too_short")
        media = row.candidates[0].video or b""
        real = decode_clip(media, where=row.source, limits=VideoLimits(), fps=8.0, num_frames=9).frames
        made = []
        for key in keys:
            digest = hashlib.sha256(f"{key}|{seed}".encode()).hexdigest()
            generator = torch.Generator().manual_seed(int(digest[:8], 16))
            noise = 255 * level * torch.rand(real.shape, generator=generator)
            made.append(Clip((real * (1 - level) + noise).to(torch.uint8), 8.0))
        return Clip(real, 8.0), made

    def _called(self, keys: list[str]) -> None:
        if len(self.calls) == self.killed_at:
            raise KeyboardInterrupt
        self.calls.append(keys)


def records(rows: Path) -> list[dict[str, Any]]:
    """Rows of a file."""
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]


def frames_in(folder: Path, name: str) -> UInt8[Tensor, "frame 3 height width"]:
    """Frames of a clip of a row."""
    return decode_clip(str(folder / name), where=name, limits=VideoLimits(min_side=1)).frames
