"""Rewards that compare embeddings of a picture and its prompt: PickScore, HPS, CLIPScore, RefCLIPScore."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import RowError, ShapeError, explain
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.clip_models import DualEncoder, ImageEncoder
from mmalign.rewards.clip_scores import clip_score, cosine, reference_clip_score
from mmalign.rewards.sample import Sample, to_image

__all__ = ["CaptionReward", "ClipReward", "PictureReward", "ReferenceClipReward"]


class PictureReward(ModelReward):
    """A reward that sees a picture through a vision tower.

    Args:
        card: what it is.
        encoder: the tower and its preprocessing.
        device: where the network stands.
        dtype: of the network.
    """

    def __init__(
        self, card: Card, encoder: ImageEncoder, *, device: str | torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(card, device=device, dtype=dtype)
        self.encoder: Any = encoder

    def pixels_of(self, sample: Sample) -> Float[Tensor, "3 height width"]:
        """The sample's picture, preprocessed.

        Raises:
            RowError: it has none (`missing_image`), or one that cannot be read.
        """
        if sample.image is None:
            message = explain(f"{self.card.name} sample {sample.id!r}", got=None, expected="an image")
            raise RowError(message, reason="missing_image")
        pixels: Tensor = self.encoder.preprocessing(to_image(sample.image))
        return pixels

    def features_of(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample feature"]:
        """Embeddings of the pictures of prepared samples."""
        features: Tensor = self.encoder.image_features(torch.stack([one.inputs["pixels"] for one in batch]))
        return features

    def tensor_fingerprint(self) -> str:
        """Hexadecimal SHA-256 for `score_tensor`, which resizes tensors even where files go by Pillow."""
        path = {"path": "tensor", "antialias": self.encoder.preprocessing.antialias}
        text = json.dumps({**self.provenance(), "score_tensor": path}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


class CaptionReward(PictureReward):
    """A reward that compares a picture with its prompt in one space; sub-classes write `forward`.

    Args:
        card: what it is.
        encoder: of pictures and prompts.
        formula: from cosines to values, in words, for the fingerprint.
        prefix: what stands before every text.
        device: where the network stands.
        dtype: of the network; cosines are float32.
    """

    def __init__(
        self,
        card: Card,
        encoder: DualEncoder,
        *,
        formula: str,
        device: str | torch.device,
        dtype: torch.dtype,
        prefix: str = "",
    ) -> None:
        super().__init__(card, encoder, device=device, dtype=dtype)
        self._formula = formula
        self._prefix = prefix

    def tokens(self, text: str) -> tuple[Tensor, bool]:
        """Ids of a text behind the prefix, and whether it was cut."""
        ids, cut = self.encoder.tokens(self._prefix + text)
        return ids, cut

    def prepare(self, sample: Sample) -> Prepared:
        """The preprocessed picture and the ids of the prompt."""
        ids, cut = self.tokens(sample.prompt)
        return Prepared({"pixels": self.pixels_of(sample), "ids": ids}, truncated=cut)

    def text_features_of(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample feature"]:
        """Embeddings of the prompts of prepared samples."""
        features: Tensor = self.encoder.text_features(torch.stack([one.inputs["ids"] for one in batch]))
        return features

    def settings(self) -> Mapping[str, Any]:
        """The encoder's settings, the prefix and the formula."""
        return {**self.encoder.settings(), "prefix": self._prefix, "formula": self._formula}


class ClipReward(CaptionReward):
    """A function of the cosine of picture and prompt.

    Args:
        card: what it is.
        encoder: of pictures and prompts.
        score: from cosines to values.
        settings: `formula`, `prefix`, `device` and `dtype` of `CaptionReward`.
    """

    def __init__(
        self, card: Card, encoder: DualEncoder, *, score: Callable[[Tensor], Tensor], **settings: Any
    ) -> None:
        super().__init__(card, encoder, **settings)
        self._score = score

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """One value per sample."""
        return self._score(cosine(self.features_of(batch), self.text_features_of(batch)))[:, None]

    def score_tensor(
        self, pixels: Float[Tensor, "sample 3 height width"], prompts: Sequence[str]
    ) -> Float[Tensor, " sample"]:
        """Values of pixels in [0, 1], differentiable in them.

        Raises:
            ShapeError: another number of prompts than pictures.
        """
        if len(prompts) != len(pixels):
            got = f"[{len(prompts)} prompts]"
            raise ShapeError(explain("score_tensor", got=got, expected=f"{len(pixels)}, one per picture"))
        ready = self.encoder.preprocessing.tensor(pixels)
        with torch.no_grad():
            text = self.encoder.text_features(torch.stack([self.tokens(prompt)[0] for prompt in prompts]))
        return self._score(cosine(self.encoder.image_features(ready), text))


class ReferenceClipReward(CaptionReward):
    """RefCLIPScore: `Sample.extras["references"]` holds the reference captions, a list of texts."""

    def prepare(self, sample: Sample) -> Prepared:
        """The preprocessed picture and the ids of caption and references.

        Raises:
            RowError: reason `missing_references`.
        """
        references = sample.extras.get("references")
        listed = isinstance(references, Sequence) and not isinstance(references, (str, bytes))
        if not listed or not references or not all(isinstance(text, str) for text in references):
            where = f"{self.card.name} sample {sample.id!r} extras['references']"
            message = explain(where, got=references, expected="a list of at least one reference caption")
            raise RowError(message, reason="missing_references")
        own = super().prepare(sample)
        read = [self.tokens(text) for text in references]
        inputs = {**own.inputs, "references": torch.stack([ids for ids, _ in read])}
        return Prepared(inputs, truncated=own.truncated or any(cut for _, cut in read))

    def forward(self, batch: Sequence[Prepared]) -> Float[Tensor, "sample output"]:
        """One value per sample."""
        text = self.text_features_of(batch)
        scores = clip_score(cosine(self.features_of(batch), text))
        counts = [len(one.inputs["references"]) for one in batch]
        references = self.encoder.text_features(torch.cat([one.inputs["references"] for one in batch]))
        owner = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(counts))
        place = torch.cat([torch.arange(count) for count in counts])
        table = torch.full((len(batch), max(counts)), -torch.inf)
        table[owner, place] = cosine(references, text[owner.to(text.device)]).to("cpu")
        return reference_clip_score(scores, table.to(scores.device))[:, None]
