"""Appearance style as VBench has it: how alike the frames of a clip are to the words of a style, by CLIP.

The words come with the prompt ("Van Gogh style"), not with the clip: there is a watcher per style.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmalign.evals.video.consistency import short_name
from mmalign.evals.video.footage import Footage
from mmalign.evals.video.watching import StoredWatcher, Watcher, Watching
from mmalign.rewards.clip_backbones import BACKBONES, load_backbone
from mmalign.rewards.clip_models import DualEncoder
from mmalign.rewards.clip_scores import cosine

if TYPE_CHECKING:
    from mmalign.evals.benchmark_tool_store import ToolStore

__all__ = ["StyleWatcher", "Styles", "StylesOfClip", "load_style"]

_AT_ONCE = 16


@runtime_checkable
class Styles(Protocol):
    """Styles to watchers of clips."""

    name: str
    """As metrics bear it: the network."""

    def of(self, style: str) -> Watcher:
        """What holds clips against the words of a style: `style` is a cosine per frame."""
        ...


class StyleWatcher(Watching):
    """The cosine of every frame with the words of one style.

    Args:
        encoder: pictures and texts to embeddings.
        style: the words.
        name: as metrics bear it.
    """

    def __init__(self, encoder: DualEncoder, style: str, *, name: str) -> None:
        self.name, self._encoder, self._style = name, encoder, style
        with torch.inference_mode():
            self._text = encoder.text_features(encoder.tokens(style)[0][None]).cpu()

    def provenance(self) -> Mapping[str, Any]:
        """Weights, preprocessing, and the style."""
        return {**self._encoder.settings(), "name": self.name, "style": self._style}

    @torch.inference_mode()
    def watch(self, clip: Footage) -> dict[str, Any]:
        """`style`: cos(frame, words) in [-1, 1] of every frame.

        Frames are resized by Pillow, antialiased, as the released code resizes them for this dimension alone.

        Source: Vchitect/VBench, vbench/appearance_style.py (logits / 100, which is the cosine: CLIP's scale
        is 100).
        """
        found = torch.cat([self._likeness(part) for part in clip.frames.split(_AT_ONCE)])
        return {"style": found.tolist()}

    def _likeness(self, frames: Tensor) -> Float[Tensor, " frame"]:
        pictures = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in frames]
        pixels = torch.stack([self._encoder.preprocessing(picture) for picture in pictures])
        return cosine(self._encoder.image_features(pixels).cpu(), self._text)


class StylesOfClip:
    """Watchers of styles by one CLIP model.

    Args:
        encoder: pictures and texts to embeddings.
        name: as metrics bear it.
    """

    def __init__(self, encoder: DualEncoder, *, name: str) -> None:
        self.name, self._encoder = name, encoder
        self._made: dict[str, StyleWatcher] = {}

    def of(self, style: str) -> StyleWatcher:
        """What holds clips against the words of a style; the same one for the same words."""
        if style not in self._made:
            self._made[style] = StyleWatcher(self._encoder, style, name=self.name)
        return self._made[style]

    def provenance(self) -> Mapping[str, Any]:
        """Weights and preprocessing."""
        return {**self._encoder.settings(), "name": self.name}

    def stored(self, kind: str, store: "ToolStore") -> "_StoredStyles":
        """The same with a store in front of every watcher."""
        return _StoredStyles(kind, self, store)


class _StoredStyles:
    """Styles whose watchers see every clip once."""

    def __init__(self, kind: str, styles: StylesOfClip, store: "ToolStore") -> None:
        self.name, self._kind, self._styles, self._store = styles.name, kind, styles, store

    def provenance(self) -> Mapping[str, Any]:
        """Those of the styles."""
        return self._styles.provenance()

    def of(self, style: str) -> StoredWatcher:
        """The style's watcher, with the store in front of it."""
        return StoredWatcher(self._kind, self._styles.of(style), self._store)


def load_style(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> StylesOfClip:
    """Styles by CLIP ViT-B/32 of the hub, by another backbone's name, or by a CLIP folder of the user's.

    Args:
        weights: folder, a short name of `mmalign.rewards.clip_backbones`, or None.
        device: where it stands.
        dtype: of the network.

    Raises:
        CheckpointError: it is nowhere, or is another model.
        ConfigError: `weights` lacks its files.
    """
    named = str(weights) in BACKBONES
    encoder = load_backbone(
        str(weights) if named else "vit-b-32",
        weights=None if named else weights,
        reward="appearance style",
        device=device,
        dtype=dtype,
    )
    vision = encoder.network.config.vision_config
    return StylesOfClip(encoder, name=f"CLIP {short_name(vision.hidden_size, vision.patch_size)}")
