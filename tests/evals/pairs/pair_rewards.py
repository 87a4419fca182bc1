"""Rewards of the pair tests, named `pair_rewards:redness` and so on; also imported by workers."""

import os
import signal
from pathlib import Path

import numpy as np

from mmalign.errors import RowError
from mmalign.rewards.sample import to_image


def _pixels(sample):
    return np.asarray(to_image(sample.image)).astype(float)


def redness(samples):
    return [float(_pixels(sample)[..., 0].mean()) for sample in samples]


def contrast(samples):
    return [float(_pixels(sample).std()) for sample in samples]


def no_owls(samples):
    if any("owl" in sample.prompt for sample in samples):
        message = "owls cannot be judged"
        raise RowError(message)
    return redness(samples)


def deadly(samples):
    """Kills its process once, at the first owl it sees."""
    marker = Path(os.environ["PAIR_REWARDS_MARKER"])
    if any("owl" in sample.prompt for sample in samples) and not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return redness(samples)


def always_deadly(samples):
    os.kill(os.getpid(), signal.SIGKILL)
    return redness(samples)


def words(samples):
    return [float(len((sample.text or "").split())) for sample in samples]


def words_about(samples):
    return [float(len(sample.text.split())) * float(_pixels(sample)[..., 0].mean()) for sample in samples]
