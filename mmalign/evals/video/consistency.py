"""Temporal consistency: how alike the frames of a clip are to DINO (the subject) or CLIP (the background).

A still clip scores 1: a measure of motion stands beside every number from here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from mmalign.errors import CheckpointError, ShapeError, explain
from mmalign.evals.benchmarks._clip_measures import frame_similarities
from mmalign.evals.video.footage import Footage
from mmalign.evals.video.watching import Watching
from mmalign.rewards.card import Weights
from mmalign.rewards.clip_backbones import load_backbone
from mmalign.rewards.clip_models import ImageEncoder, check_keys, quietly, weight_file
from mmalign.rewards.weights import hashes, resolve

__all__ = [
    "DINO",
    "ClipFrames",
    "ConsistencyWatcher",
    "DinoFrames",
    "FrameEncoder",
    "load_background",
    "load_subject",
    "short_name",
    "vbench_pixels",
]

DINO = Weights("facebook/dino-vitb16", ("config.json", "pytorch_model.bin"), role="encoder")
"""DINO ViT-B/16, which VBench loads from torch.hub."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AT_ONCE = 16
_SIZES = {192: "Ti", 384: "S", 768: "B", 1024: "L", 1280: "H", 1664: "bigG"}


def vbench_pixels(
    frames: UInt8[Tensor, "frame 3 height width"],
    size: int,
    *,
    crop: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Tensor, "frame 3 resized_height resized_width"]:
    """Frames as VBench's networks read them: tensors resized without antialiasing, normalised.

    Args:
        frames: of a clip.
        size: of the shorter side.
        crop: bicubic and the centre square (CLIP), or bilinear and the whole frame (DINO).
        mean: per channel, of values in [0, 1].
        std: the same.

    Source: Vchitect/VBench, vbench/utils.py (`clip_transform`, `dino_transform`).
    """
    mode = InterpolationMode.BICUBIC if crop else InterpolationMode.BILINEAR
    values = transforms.resize(frames.float(), [size], interpolation=mode, antialias=False)
    if crop:
        values = transforms.center_crop(values, [size, size])
    normed: Tensor = transforms.normalize(values / 255.0, list(mean), list(std))
    return normed


@runtime_checkable
class FrameEncoder(Protocol):
    """Frames to one vector each."""

    name: str

    def __call__(self, frames: UInt8[Tensor, "frame 3 height width"]) -> Float[Tensor, "frame feature"]:
        """Features on the CPU, float32."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Weights and preprocessing."""
        ...


class DinoFrames:
    """The class token of a DINO or DINOv2 network.

    Args:
        network: transformers' `ViTModel` or `Dinov2Model`.
        weights: hashes of its files.
        device: where it stands.
        dtype: of the network.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        weights: Mapping[str, str],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.network: Any = network.requires_grad_(False).eval().to(device, dtype)
        self.device, self.dtype, self._weights = torch.device(device), dtype, dict(weights)
        config: Any = self.network.config
        first = config.model_type == "vit"
        self.size = int(config.image_size) if first else 224
        kind = "DINO" if first else "DINOv2"
        self.name = f"{kind} {short_name(config.hidden_size, config.patch_size)}"
        self._options = {"interpolate_pos_encoding": True} if first else {}

    @torch.inference_mode()
    def __call__(self, frames: UInt8[Tensor, "frame 3 height width"]) -> Float[Tensor, "frame feature"]:
        """Class tokens of whole frames."""
        pixels = vbench_pixels(frames, self.size, crop=False, mean=_MEAN, std=_STD)
        given = pixels.to(self.device, self.dtype)
        found: Tensor = self.network(pixel_values=given, **self._options).last_hidden_state[:, 0]
        return found.float().cpu()

    def settings(self) -> Mapping[str, Any]:
        """Weights, size, resize."""
        return {"weights": self._weights, "pixels": f"shorter side {self.size}, bilinear, whole frame"}


class ClipFrames:
    """Image embeddings of a CLIP model.

    Args:
        encoder: its image side.
        name: as metrics bear it.
        device: where it stands.
    """

    def __init__(self, encoder: ImageEncoder, *, name: str) -> None:
        self.encoder, self.name = encoder, name

    @torch.inference_mode()
    def __call__(self, frames: UInt8[Tensor, "frame 3 height width"]) -> Float[Tensor, "frame feature"]:
        """Embeddings of the frames' centres."""
        rule = self.encoder.preprocessing
        pixels = vbench_pixels(frames, rule.size, crop=True, mean=rule.mean, std=rule.std)
        return self.encoder.image_features(pixels).float().cpu()

    def settings(self) -> Mapping[str, Any]:
        """Weights, size, resize."""
        size = self.encoder.preprocessing.size
        settings = self.encoder.settings()
        return {"weights": settings["weights"], "pixels": f"shorter side {size}, bicubic, centre"}


def short_name(width: int, patch: int) -> str:
    """`ViT-B/16` of a network's width and patch."""
    return f"ViT-{_SIZES.get(width, width)}/{patch}"


class ConsistencyWatcher(Watching):
    """Likeness of frames to the first and to the one before.

    Args:
        encoder: frames to features.
    """

    def __init__(self, encoder: FrameEncoder) -> None:
        self.encoder, self.name = encoder, encoder.name

    def provenance(self) -> Mapping[str, Any]:
        """The encoder's settings, and the rule."""
        rule = "half cosine with the first frame, half with the one before, negative ones 0"
        return {
            "name": self.name,
            **self.encoder.settings(),
            "resize": "tensor, not antialiased",
            "rule": rule,
        }

    def watch(self, clip: Footage) -> dict[str, Any]:
        """VBench's consistency of every frame from the second on, and the mean cosine of neighbours.

        Raises:
            ShapeError: fewer than two frames.
        """
        if len(clip.frames) < 2:
            expected = "at least two"
            raise ShapeError(explain("consistency", got=f"[{len(clip.frames)} frames]", expected=expected))
        features = torch.cat([self.encoder(part) for part in clip.frames.split(_AT_ONCE)]).double()
        near = F.cosine_similarity(features[1:], features[:-1], dim=-1)
        return {"consistency": frame_similarities(features).tolist(), "neighbours": float(near.mean())}


def load_subject(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ConsistencyWatcher:
    """Subject consistency by DINO ViT-B/16 of the hub, or by a DINO or DINOv2 folder of the user's.

    Args:
        weights: folder as `save_pretrained` writes it, or None.
        device: where it stands.
        dtype: of the network.

    Raises:
        CheckpointError: it is nowhere, or is another kind of model.
    """
    here = None if weights is None else Path(weights)
    folder = here if here is not None and (here / "config.json").is_file() else None
    folder = folder or resolve(DINO, folder=weights, reward="subject consistency")
    network = _read_dino(folder)
    found = dict(hashes(folder, ("config.json", weight_file(folder))))
    return ConsistencyWatcher(DinoFrames(network, weights=found, device=device, dtype=dtype))


def _read_dino(folder: Path) -> nn.Module:
    """The float32 network of a folder, without the pooler that DINO has not; every other key filled.

    Raises:
        CheckpointError: another kind of model, or keys missing or left over.
    """
    import transformers

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    classes: dict[str, Any] = {"vit": transformers.ViTModel, "dinov2": transformers.Dinov2Model}
    if kind not in classes:
        where = f"{folder / 'config.json'} model_type"
        raise CheckpointError(explain(where, got=kind, expected="'vit' (DINO) or 'dinov2'"))
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    with quietly():
        network, report = classes[kind].from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=weight_file(folder) == "model.safetensors",
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    check_keys(report["missing_keys"], report["unexpected_keys"], where=str(folder), ignored=("pooler.*",))
    checked: nn.Module = network
    return checked


def load_background(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    backbone: str = "vit-b-32",
) -> ConsistencyWatcher:
    """Background consistency by CLIP ViT-B/32 of the hub, or by a CLIP folder of the user's.

    Args:
        weights: folder, or None.
        device: where it stands.
        dtype: of the network.
        backbone: short name or hub id.

    Raises:
        CheckpointError: it is nowhere, or is another model.
        ConfigError: `weights` lacks its files.
    """
    encoder = load_backbone(
        backbone, weights=weights, reward="background consistency", device=device, dtype=dtype, text=False
    )
    vision = encoder.network.config
    name = f"CLIP {short_name(vision.hidden_size, vision.patch_size)}"
    return ConsistencyWatcher(ClipFrames(encoder, name=name))
