"""Aesthetic quality as VBench has it: LAION's linear head on CLIP ViT-L/14, a tenth of its mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.evals.video.consistency import vbench_pixels
from mmalign.evals.video.footage import Footage
from mmalign.evals.video.watching import Watching
from mmalign.rewards.clip_models import ImageEncoder
from mmalign.rewards.loading import load

__all__ = ["AestheticWatcher", "load_aesthetic"]

_AT_ONCE = 16


@runtime_checkable
class _Predictor(Protocol):
    encoder: ImageEncoder

    @property
    def head(self) -> Any: ...

    def settings(self) -> Mapping[str, Any]: ...


class AestheticWatcher(Watching):
    """The predictor on frames as VBench's networks read them.

    Args:
        predictor: the reward `aesthetic_v1`: CLIP's image side and the head.
    """

    name = "LAION v1"

    def __init__(self, predictor: _Predictor) -> None:
        self._predictor = predictor

    def provenance(self) -> Mapping[str, Any]:
        """Weights, and the frames' resize in place of the reward's own."""
        size = self._predictor.encoder.preprocessing.size
        pixels = f"shorter side {size}, bicubic, centre, tensor, not antialiased"
        return {**self._predictor.settings(), "name": self.name, "preprocessing": pixels, "scale": "/ 10"}

    @torch.inference_mode()
    def watch(self, clip: Footage) -> dict[str, Any]:
        """A tenth of the mean score of all frames, about 0.1 to 1."""
        found = torch.cat([self._rated(part) for part in clip.frames.split(_AT_ONCE)])
        return {"aesthetic": float(found.double().mean()) / 10.0}

    def _rated(self, frames: Tensor) -> Float[Tensor, " frame"]:
        encoder = self._predictor.encoder
        rule = encoder.preprocessing
        pixels = vbench_pixels(frames, rule.size, crop=True, mean=rule.mean, std=rule.std)
        scores: Tensor = self._predictor.head(encoder.image_features(pixels))
        return scores.float().cpu()


def load_aesthetic(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AestheticWatcher:
    """The predictor with the weights of the reward `aesthetic_v1`.

    Args:
        weights: folder, or None.
        device: where it stands.
        dtype: of the tower.

    Raises:
        CheckpointError: weights are nowhere.
        ConfigError: `weights` lacks its files.
    """
    predictor: Any = load("aesthetic_v1", weights=weights, device=device, dtype=dtype)
    return AestheticWatcher(predictor)
