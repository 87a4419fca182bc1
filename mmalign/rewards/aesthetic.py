"""The LAION aesthetic predictors: a small head on CLIP's image embedding, blind to the prompt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import CheckpointError, explain
from mmalign.rewards.aesthetic_head import AestheticHead
from mmalign.rewards.base import Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.checkpoints import read_state
from mmalign.rewards.clip_models import ImageEncoder
from mmalign.rewards.clip_rewards import PictureReward
from mmalign.rewards.sample import Sample
from mmalign.rewards.weights import file_sha256

__all__ = ["AestheticReward"]


class AestheticReward(PictureReward):
    """A head on normalised image embeddings.

    Args:
        card: what it is.
        encoder: CLIP's image side.
        head: file of the head's state dict.
        device: where the networks stand.
        dtype: of the tower; the head is float32.

    Raises:
        CheckpointError: the head's keys are not a published predictor's, or it takes other embeddings.
    """

    def __init__(
        self,
        card: Card,
        encoder: ImageEncoder,
        head: Path,
        *,
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(card, encoder, device=device, dtype=dtype)
        self._file = head
        read = AestheticHead.from_state(read_state(head), where=str(head))
        self.head = read.requires_grad_(False).eval().to(self.device, torch.float32)
        given, taken = encoder.feature_size, self.head.linear[0].in_features
        if given != taken:
            expected = f"{taken} features, which the head {head.name} was trained on"
            got = f"[{given} features of the tower]"
            raise CheckpointError(explain(card.name, got=got, expected=expected))

    def prepare(self, sample: Sample) -> Prepared:
        """The preprocessed picture."""
        return Prepared({"pixels": self.pixels_of(sample)})

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """One value per sample."""
        return self._rated(self.features_of(batch))[:, None]

    def score_tensor(
        self, pixels: Float[Tensor, "sample 3 height width"], prompts: Sequence[str] = ()
    ) -> Float[Tensor, " sample"]:
        """Values of pixels in [0, 1], differentiable in them; `prompts` are not read."""
        del prompts
        return self._rated(self.encoder.image_features(self.encoder.preprocessing.tensor(pixels)))

    def _rated(self, features: Tensor) -> Tensor:
        rated: Tensor = self.head(features)
        return rated

    def settings(self) -> Mapping[str, Any]:
        """The tower's settings and the head's hash."""
        settings = dict(self.encoder.settings())
        weights = {**settings.pop("weights"), self._file.name: file_sha256(self._file)}
        return {"weights": weights, "relu": self.head.relu, **settings}
