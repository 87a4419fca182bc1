"""LPIPS between pictures: AlexNet's features, weighted as people judge distance. Weights from local files.

Source: arXiv 1801.03924; richzhang/PerceptualSimilarity (lpips/lpips.py, weights v0.1).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import alexnet

from mmalign.errors import CheckpointError, RowError, ShapeError, explain
from mmalign.rewards.checkpoints import blank, fill, read_state
from mmalign.rewards.sample import Media, to_pixels
from mmalign.rewards.weights import hashes

__all__ = ["FILES", "PerceptualDistance"]

FILES = ("alexnet-owt-7be5be79.pth", "alex.pth")
"""torchvision's AlexNet (download.pytorch.org/models), and the weights v0.1 of the official repository."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_READ = (1, 4, 7, 9, 11)
"""Layers of AlexNet's features, rectified, that are compared."""
_WIDTHS = (64, 192, 384, 256, 256)
_SMALLEST = 63
"""Pixels of the shorter side below which AlexNet's last pooling has nothing to read."""


class _Weights(nn.Module):
    """The five layers' weights, under the names of the published file."""

    def __init__(self) -> None:
        super().__init__()
        for number, width in enumerate(_WIDTHS):
            self.register_parameter(f"lin{number}", nn.Parameter(torch.empty(1, width, 1, 1)))


def _own_name(key: str) -> str:
    """`features.3.weight` of torchvision and `lin1.model.1.weight` of LPIPS, as they are called here."""
    return key.removeprefix("features.").removesuffix(".model.1.weight")


class PerceptualDistance:
    """LPIPS, version 0.1 on AlexNet.

    d(x, y) = sum over layers of the mean over places of sum_c w_c (x_c / |x| - y_c / |y|)^2

    Args:
        folder: holds both of `FILES`.
        device: where the network stands; it is float32.

    Raises:
        CheckpointError: a file is missing or does not fit.
    """

    def __init__(self, folder: str | Path, *, device: str | torch.device = "cpu") -> None:
        self.folder, self.device = Path(folder), torch.device(device)
        absent = [name for name in FILES if not (self.folder / name).is_file()]
        if absent:
            do = "Put both files there: torchvision's AlexNet and lpips/weights/v0.1/alex.pth."
            expected = " and ".join(FILES)
            message = explain(f"LPIPS {self.folder}", got=f"[no {absent[0]}]", expected=expected, do=do)
            raise CheckpointError(message)
        network, weights = blank(lambda: alexnet(weights=None).features), blank(_Weights)
        for module, name in zip((network, weights), FILES, strict=True):
            path = self.folder / name
            fill(module, read_state(path), where=str(path), ignored=("classifier.*",), rename=_own_name)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.weights = weights.eval().requires_grad_(False).to(self.device)

    def __call__(
        self, first: Float[Tensor, "sample 3 height width"], second: Float[Tensor, "sample 3 height width"]
    ) -> Float[Tensor, " sample"]:
        """Distances of pictures in [0, 1], >= 0; keeps the graph.

        Raises:
            ShapeError: a side below 63 pixels.
        """
        total = torch.zeros(len(first), device=self.device)
        for number, (one, other) in enumerate(
            zip(self._features(first), self._features(second), strict=True)
        ):
            weight = self.weights.get_parameter(f"lin{number}")
            total = total + (weight * (one - other).square()).sum(dim=1).mean(dim=(1, 2))
        return total

    def _features(self, pixels: Tensor) -> list[Tensor]:
        if min(pixels.shape[-2:]) < _SMALLEST:
            got = f"[{pixels.shape[-2]} x {pixels.shape[-1]}]"
            expected = f"sides of at least {_SMALLEST} pixels"
            raise ShapeError(explain("LPIPS", got=got, expected=expected))
        shift, scale = (torch.tensor(row, device=self.device)[:, None, None] for row in (_SHIFT, _SCALE))
        x = (2 * pixels.to(self.device) - 1 - shift) / scale
        found = []
        for place, layer in enumerate(self.network.children()):
            x = layer(x)
            if place in _READ:
                # AlexNet rectifies in place; the quotient is a copy.
                found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
            if place == _READ[-1]:
                break
        return found

    @torch.inference_mode()
    def spread(self, pictures: Sequence[Media]) -> float:
        """Mean distance over all pairs of a prompt's pictures.

        Raises:
            RowError: a picture cannot be read, or pictures have different sizes (`frame_size`).
            ShapeError: fewer than two pictures, or a side below 63 pixels.
        """
        if len(pictures) < 2:
            raise ShapeError(
                explain("LPIPS spread", got=f"[{len(pictures)} pictures]", expected="at least 2")
            )
        pixels = [to_pixels(picture) for picture in pictures]
        sizes = sorted({tuple(one.shape[1:]) for one in pixels})
        if len(sizes) > 1:
            message = explain("LPIPS spread", got=f"[sizes {sizes[:3]}]", expected="pictures of one size")
            raise RowError(message, reason="frame_size")
        pairs = combinations(range(len(pixels)), 2)
        return sum(float(self(pixels[i][None], pixels[j][None])) for i, j in pairs) / (
            len(pixels) * (len(pixels) - 1) / 2
        )

    def settings(self) -> Mapping[str, Any]:
        """Weight hashes and version, for provenance."""
        return {"weights": dict(hashes(self.folder, FILES)), "version": "0.1", "network": "alex"}
