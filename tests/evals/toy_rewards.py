"""Rewards of the harness tests, named `toy_rewards:redness` and so on."""

import numpy as np

from mmalign.errors import RowError
from mmalign.rewards.sample import to_image

CALLS: list[str] = []


def redness(samples):
    CALLS.extend(sample.id for sample in samples)
    return [float(np.asarray(to_image(sample.image))[..., 0].mean()) for sample in samples]


def picky(samples):
    if any("heron" in sample.prompt for sample in samples):
        message = "herons cannot be judged"
        raise RowError(message)
    return [float(len(sample.prompt)) for sample in samples]
