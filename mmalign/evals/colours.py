"""What colour an object has, by CLIP, as GenEval asks: alone on grey, ten colours, three phrasings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmalign.evals.benchmarks._scene_checks import COLOURS
from mmalign.evals.detectors import Detection
from mmalign.rewards.clip_backbones import load_backbone
from mmalign.rewards.clip_models import DualEncoder

__all__ = ["BACKGROUND", "TEMPLATES", "ClipColours", "load_colours", "object_alone"]

TEMPLATES = (
    "a photo of a {colour} {name}",
    "a photo of a {colour}-colored {name}",
    "a photo of a {colour} object",
)

BACKGROUND = "#999999"


def object_alone(
    image: Image.Image, detection: Detection, *, background: str | None = BACKGROUND, crop: bool = True
) -> Image.Image:
    """The picture with everything but an object painted over, cut to its box.

    Args:
        image: the picture.
        detection: without a mask nothing is painted over.
        background: colour of the paint; None leaves the picture as it is.
        crop: False keeps the whole picture.
    """
    shown = image.convert("RGB")
    if detection.mask is not None and background is not None:
        blank = Image.new("RGB", shown.size, color=background)
        shown = Image.composite(shown, blank, Image.fromarray(detection.mask))
    left, top, right, bottom = (round(edge) for edge in detection.box)
    # A box thinner than a pixel would leave nothing to look at.
    box = (left, top, max(right, left + 1), max(bottom, top + 1))
    return shown.crop(box) if crop else shown


class ClipColours:
    """Names the colour of objects by zero-shot classification.

    A colour's classifier is the mean of its three normalised text embeddings, normalised again; an object is
    given the colour with the largest cosine.

    Args:
        encoder: pictures and texts to embeddings; the released script uses OpenAI's ViT-L/14.
        background: see `object_alone`.
        crop: see `object_alone`.

    Source: djghosh13/geneval, evaluation/evaluate_images.py, color_classification.
    """

    def __init__(
        self, encoder: DualEncoder, *, background: str | None = BACKGROUND, crop: bool = True
    ) -> None:
        self._encoder = encoder
        self._background = background
        self._crop = crop
        self._classifiers: dict[str, Tensor] = {}

    def provenance(self) -> Mapping[str, Any]:
        """Weights, preprocessing, texts and how objects are cut out; JSON types."""
        return {
            "encoder": dict(self._encoder.settings()),
            "templates": list(TEMPLATES),
            "background": self._background,
            "crop": self._crop,
        }

    @torch.inference_mode()
    def __call__(self, image: Image.Image, found: Sequence[Detection], name: str) -> list[str]:
        """One colour per object.

        Args:
            image: the picture they were found in.
            found: objects of one class.
            name: of the class; it stands in the texts.
        """
        if not found:
            return []
        crops = [object_alone(image, one, background=self._background, crop=self._crop) for one in found]
        pixels = torch.stack([self._encoder.preprocessing(crop) for crop in crops])
        features = torch.nn.functional.normalize(self._encoder.image_features(pixels), dim=-1)
        best = (features @ self._classifier(name).T).argmax(dim=-1).tolist()
        return [COLOURS[place] for place in best]

    def _classifier(self, name: str) -> Float[Tensor, "colour feature"]:
        """One row per colour."""
        if name not in self._classifiers:
            texts = [
                template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES
            ]
            ids = torch.stack([self._encoder.tokens(text)[0] for text in texts])
            features = torch.nn.functional.normalize(self._encoder.text_features(ids), dim=-1)
            means = features.unflatten(0, (len(COLOURS), len(TEMPLATES))).mean(dim=1)
            self._classifiers[name] = torch.nn.functional.normalize(means, dim=-1)
        return self._classifiers[name]


def load_colours(
    backbone: str = "vit-l-14",
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ClipColours:
    """Colours by a CLIP model of the hub or of a folder.

    Args:
        backbone: short name (`mmalign.rewards.clip_backbones`) or hub id.
        weights: folder of the user's, or None.
        device: where it runs.
        dtype: of the network.

    Raises:
        CheckpointError: the weights are nowhere or belong to another model.
        ConfigError: `weights` lacks a file.
        UnknownNameError: no such backbone.
    """
    return ClipColours(load_backbone(backbone, weights=weights, reward="colours", device=device, dtype=dtype))
