"""A reward of pictures as a reward of clips: the mean of its values over frames at even distances."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmalign.errors import ConfigError, RowError, explain
from mmalign.rewards.base import Reward, Scored
from mmalign.rewards.card import Card
from mmalign.rewards.frames import even_frames
from mmalign.rewards.sample import Sample

__all__ = ["FrameMean"]


class FrameMean:
    """The mean of a reward of pictures over the frames of a clip.

    value(clip) = mean over frames f of value(f), frames 0, ..., N - 1 at even distances

    The first and the last frame are among them; of a clip with fewer frames all are read. It is blind to
    motion: a clip whose frames are shuffled scores the same.

    Args:
        reward: of pictures.
        count: frames that are read, at least 1; 1 reads the first, None all.

    Raises:
        ConfigError: a reward of something else, or no frames.
    """

    def __init__(self, reward: Reward, count: int | None) -> None:
        if reward.card.modality != "image" or (count is not None and count < 1):
            got = f"{count} frames, a reward of {reward.card.modality}"
            expected = "at least 1, a reward of pictures"
            raise ConfigError(explain(f"frames of {reward.card.name}", got=got, expected=expected))
        self.reward, self.count = reward, count
        told = f"mean over {'all' if count is None else count} frames"
        scale = f"{reward.card.scale}; {told}".removeprefix("; ")
        self._card = dataclasses.replace(reward.card, modality="video", scale=scale)

    @property
    def card(self) -> Card:
        """The reward's own, as one of clips."""
        return self._card

    def provenance(self) -> Mapping[str, Any]:
        """The reward's own, and which frames are read."""
        frames = {"count": self.count, "places": "even distances, first and last", "value": "mean"}
        return {**self.reward.provenance(), "frames": frames}

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the reward's fingerprint and of which frames are read."""
        parts = [self.reward.fingerprint(), self.provenance()["frames"]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> Scored:
        """Values of the clips; a clip with a frame that cannot be scored is NaN with that frame's error.

        Args:
            samples: with `video`, or with its `frames`.
            batch_size: frames in one call of the reward.
        """
        outputs = self.card.outputs
        rows: list[torch.Tensor] = []
        errors: list[str | None] = []
        truncated: list[bool] = []
        raw: list[str | None] = []
        for sample in samples:  # clip after clip: only one clip's frames are in memory
            try:
                frames = self._frames(sample)
            except RowError as error:
                rows.append(torch.full((len(outputs),), torch.nan, dtype=torch.float64))
                errors.append(str(error))
                truncated.append(False)
                raw.append(None)
                continue
            found = self.reward.score(frames, batch_size=batch_size)
            rows.append(found.values.mean(dim=0))
            wrong = next((place for place, text in enumerate(found.errors) if text is not None), None)
            errors.append(None if wrong is None else f"frame {wrong}: {found.errors[wrong]}")
            truncated.append(any(found.truncated))
            said = [text for text in found.raw if text is not None]
            raw.append("\n".join(said) or None)
        values = torch.stack(rows) if rows else torch.zeros(0, len(outputs), dtype=torch.float64)
        return Scored(values, outputs, tuple(errors), tuple(truncated), tuple(raw))

    def _frames(self, sample: Sample) -> list[Sample]:
        """One sample per frame that is read.

        Raises:
            RowError: no clip, or one that cannot be read.
        """
        from mmalign.rewards.video_files import read_frames

        if sample.frames:
            shown = [sample.frames[place] for place in self._places(len(sample.frames))]
            return [dataclasses.replace(sample, image=frame, video=None, frames=None) for frame in shown]
        if sample.video is None:
            message = explain(f"reward {self.card.name}", got="[a sample without video]", expected="a clip")
            raise RowError(message, reason="missing_video")
        frames = read_frames(sample.video, lambda total, _: self._places(total))
        return [dataclasses.replace(sample, image=frame, video=None) for frame in frames]

    def _places(self, total: int) -> list[int]:
        """Which frames of a clip are read."""
        places: list[int] = even_frames(
            total, total if self.count is None else min(self.count, total)
        ).tolist()
        return places
