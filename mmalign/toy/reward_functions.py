"""The exact toy reward as functions for suites: `mmalign.toy.reward_functions:reward`."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.rewards.sample import Sample, to_image
from mmalign.toy.image_reward import Score, score_images, score_tensor

__all__ = ["ExactReward", "faithfulness", "reward", "style"]


def _scores(samples: Sequence[Sample]) -> list[Score | None]:
    """The score of every sample that has a picture."""
    pictures = [None if sample.image is None else to_image(sample.image) for sample in samples]
    there = [number for number, picture in enumerate(pictures) if picture is not None]
    found: list[Score | None] = [None] * len(samples)
    scored = score_images(
        [picture for picture in pictures if picture is not None], [samples[n].prompt for n in there]
    )
    for number, score in zip(there, scored, strict=True):
        found[number] = score
    return found


def reward(samples: Sequence[Sample]) -> list[float]:
    """Faithfulness * (1 + style) / 2 of every picture, in [0, 1].

    Raises:
        RowError: a prompt outside the toy grammar, or a picture that cannot be read.
    """
    return [math.nan if score is None else score.total for score in _scores(samples)]


def faithfulness(samples: Sequence[Sample]) -> list[float]:
    """Share of the caption's facts that hold, in [0, 1]."""
    return [math.nan if score is None else score.faithfulness for score in _scores(samples)]


def style(samples: Sequence[Sample]) -> list[float]:
    """Share of the border that is a dark frame, in [0, 1]."""
    return [math.nan if score is None else score.style for score in _scores(samples)]


class ExactReward:
    """The exact reward as what scores the samples of an online run: of pixels, without gradient."""

    name = "toy_exact"
    takes_timestep = False
    is_differentiable = False

    def __call__(
        self,
        pixels: Float[Tensor, "row 3 height width"],
        prompts: Sequence[str],
        timestep: Shaped[Tensor, " row"] | None = None,
    ) -> Float[Tensor, " row"]:
        """Total scores in [0, 1]."""
        del timestep
        return torch.tensor([score.total for score in score_tensor(pixels, prompts)], device=pixels.device)
