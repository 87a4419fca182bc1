"""The exact reward of the toy world of sound as a reward of samples, for online runs.

    mmalign.toy.audio_ear:score

is what a run names as its reward.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from mmalign.data.audio_media import decode_audio
from mmalign.data.config import AudioLimits
from mmalign.errors import RowError, explain
from mmalign.rewards.sample import Sample
from mmalign.toy.audio_reward import score_clips
from mmalign.toy.audio_scenes import SAMPLING_RATE

__all__ = ["score"]


def score(samples: Sequence[Sample]) -> list[float]:
    """Mean of presence and order of every clip, in [0, 1]; NaN where there is none.

    Raises:
        ConfigError: a caption of another world.
        RowError: reason `wrong_sampling_rate`, or a clip that cannot be decoded.
    """
    return [_of(sample) for sample in samples]


def _of(sample: Sample) -> float:
    if sample.audio is None:
        return math.nan
    data = sample.audio if isinstance(sample.audio, bytes) else Path(sample.audio).read_bytes()
    clip = decode_audio(data, where=sample.id, limits=AudioLimits())
    if clip.sampling_rate != SAMPLING_RATE:
        message = explain(sample.id, got=f"[{clip.sampling_rate} Hz]", expected=f"{SAMPLING_RATE} Hz")
        raise RowError(message, reason="wrong_sampling_rate")
    (found,) = score_clips([clip.samples[0]], [sample.prompt])
    return found.total
