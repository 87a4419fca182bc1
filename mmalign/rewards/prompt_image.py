"""Rewards of a picture and its prompt: what their preparation, batches and fingerprints share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.errors import RowError, ShapeError, explain
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.pixels import Preprocessing
from mmalign.rewards.prompt_tokens import PromptTokens
from mmalign.rewards.sample import Media, Sample, to_image

__all__ = ["PromptImageReward", "check_prompts", "needed_image"]


def needed_image(card: Card, sample: Sample) -> Media:
    """The sample's picture.

    Raises:
        RowError: it has none (`missing_image`).
    """
    if sample.image is None:
        message = explain(f"reward {card.name}", got="[a sample without image]", expected="Sample.image")
        raise RowError(message, reason="missing_image")
    return sample.image


class PromptImageReward(ModelReward):
    """A network that reads one square picture and one prompt of fixed length.

    Args:
        card: what it is.
        network: on the CPU; moved to `device`.
        tokens: of prompts.
        preprocessing: of pictures.
        weights: file name to hash, of everything that was loaded.
        device: where the network stands.
        dtype: of the network.
        options: what the user chose; part of the fingerprint.
    """

    def __init__(
        self,
        card: Card,
        network: torch.nn.Module,
        *,
        tokens: PromptTokens,
        preprocessing: Preprocessing,
        weights: Mapping[str, str],
        device: str | torch.device,
        dtype: torch.dtype,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(card, device=device, dtype=dtype)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.tokens, self.preprocessing = tokens, preprocessing
        self.weights, self.options = dict(weights), dict(options or {})

    @abstractmethod
    def run(
        self,
        pixel_values: Float[Tensor, "sample 3 height width"],
        ids: Int[Tensor, "sample token"],
        mask: Int[Tensor, "sample token"],
    ) -> Float[Tensor, " sample"]:
        """Values of normalised pixels and tokens, all on the network's device."""

    def prepare(self, sample: Sample) -> Prepared:
        """Decode, resize and tokenise one sample.

        Raises:
            RowError: it has no picture, or one that cannot be read.
        """
        row = self.tokens.encode(sample.prompt)
        pixels = self.preprocessing(to_image(needed_image(self.card, sample)))
        return Prepared({"pixels": pixels, "ids": row.ids, "mask": row.mask}, row.truncated)

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample 1"]:
        """Values of prepared samples."""
        pixels, ids, mask = (
            torch.stack([prepared.inputs[name] for prepared in batch]).to(self.device)
            for name in ("pixels", "ids", "mask")
        )
        return self.run(pixels.to(self.dtype), ids, mask)[:, None]

    def score_tensor(
        self, pixels: Float[Tensor, "sample 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, " sample"]:
        """Values of pictures as tensors, with their graph.

        Files go through Pillow's resize, tensors through torch's; the two differ by at most 0.015 of a
        normalised pixel, about 1e-3 of a score.

        Args:
            pixels: in [0, 1].
            prompts: one per picture.

        Raises:
            ShapeError: not as many prompts as pictures.
        """
        check_prompts(self.card, pixels, prompts)
        ids, mask = (entry.to(self.device) for entry in self.tokens.encode_all(prompts))
        values = self.preprocessing.tensor(pixels.to(self.device))
        return self.run(values.to(self.dtype), ids, mask)

    def settings(self) -> Mapping[str, Any]:
        """Weights, preprocessing, length of prompts and options."""
        return {
            "weights": self.weights,
            "preprocessing": self.preprocessing.settings(),
            "text_length": self.tokens.length,
            "options": self.options,
        }


def check_prompts(card: Card, pixels: Tensor, prompts: Sequence[str]) -> None:
    """Refuse pictures and prompts of different number.

    Raises:
        ShapeError: not as many prompts as pictures.
    """
    if len(pixels) != len(prompts):
        message = explain(
            f"reward {card.name}", got=f"[{len(prompts)} prompts]", expected=f"{len(pixels)}, one per picture"
        )
        raise ShapeError(message)
