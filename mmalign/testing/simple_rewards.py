"""A reward without weights: what tests of ensembles, servers and tools score with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample, to_pixels

__all__ = ["Brightness"]


class Brightness(ModelReward):
    """Mean of a picture's red channel in [0, 1] times `gain`, and the number of words of its prompt.

    Args:
        gain: factor of the first output; a part of the fingerprint.
        name: what it is called.
        higher_is_better: what its card says.
    """

    def __init__(self, *, gain: float = 1.0, name: str = "brightness", higher_is_better: bool = True) -> None:
        card = Card(
            name=name,
            title="mean of the red channel",
            modality="image",
            outputs=("score", "words"),
            scale=f"0 to {gain:g}",
            higher_is_better=higher_is_better,
            licence="Apache-2.0",
            differentiable=True,
            text_limit=5,
        )
        super().__init__(card, device="cpu", dtype=torch.float32)
        self.gain = gain
        self.calls: list[int] = []
        """Number of samples of every forward, for tests of batching."""

    def prepare(self, sample: Sample) -> Prepared:
        """Pixels and the number of words; six words or more are too many and flagged.

        Raises:
            RowError: no picture, or an unreadable one.
        """
        pixels = to_pixels(b"" if sample.image is None else sample.image)
        words = len(sample.prompt.split())
        return Prepared({"red": pixels[0].mean(), "words": float(words)}, truncated=words > 5)

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """Both outputs."""
        self.calls.append(len(batch))
        red = torch.stack([one.inputs["red"] for one in batch])
        words = torch.tensor([one.inputs["words"] for one in batch])
        return torch.stack([self.gain * red, words], dim=1)

    def score_tensor(
        self, pixels: Float[Tensor, "sample 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, " sample"]:
        """The first output, with the graph."""
        del prompts
        return self.gain * pixels[:, 0].mean(dim=(1, 2))

    def settings(self) -> Mapping[str, Any]:
        """The gain."""
        return {"gain": self.gain}
