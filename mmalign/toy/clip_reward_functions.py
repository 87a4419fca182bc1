"""The exact reward of the toy world of video as functions of whole clips: `motion_reward@0` in a suite."""

import math
from collections.abc import Sequence

from mmalign.evals.video.footage import read_footage
from mmalign.rewards.sample import Sample
from mmalign.toy.video_reward import Score, score_frames
from mmalign.toy.video_scenes import facts_of

__all__ = ["motion_direction", "motion_identity", "motion_reward"]


def _scores(samples: Sequence[Sample]) -> list[Score | None]:
    """The score of every sample that has a clip.

    Raises:
        ConfigError: a prompt outside the world's captions.
        RowError: a clip that cannot be read.
    """
    return [
        None
        if sample.video is None
        else score_frames(read_footage(sample.video).frames.float() / 255.0, facts_of(sample.prompt))
        for sample in samples
    ]


def motion_reward(samples: Sequence[Sample]) -> list[float]:
    """Direction twice, smoothness, identity and motion once, their mean, in [0, 1]."""
    return [math.nan if score is None else score.total for score in _scores(samples)]


def motion_direction(samples: Sequence[Sample]) -> list[float]:
    """Cosine between the way gone and the way asked for, 0 below 0, mean of both halves, in [0, 1]."""
    return [math.nan if score is None else score.direction for score in _scores(samples)]


def motion_identity(samples: Sequence[Sample]) -> list[float]:
    """Share of frames with the caption's shape and colour, in [0, 1]."""
    return [math.nan if score is None else score.identity for score in _scores(samples)]
