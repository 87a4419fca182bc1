"""LPIPS on tiny-random weights in the official files' layout, against the formula written out."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import alexnet

from mmalign.errors import CheckpointError, RowError, ShapeError
from mmalign.evals.perceptual_distance import FILES, PerceptualDistance

WIDTHS = (64, 192, 384, 256, 256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet with random features (its classifier's layers cut to one number each) and random weights."""
    path = tmp_path_factory.mktemp("lpips")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        state = {f"features.{name}": value for name, value in alexnet().features.state_dict().items()}
        state["classifier.1.weight"] = torch.zeros(1)
        torch.save(state, path / FILES[0])
        weights = {f"lin{place}.model.1.weight": torch.rand(1, n, 1, 1) for place, n in enumerate(WIDTHS)}
        torch.save(weights, path / FILES[1])
    return path


def pictures(count: int, height: int = 67, width: int = 71) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def written_out(folder: Path, x: torch.Tensor, y: torch.Tensor) -> float:
    """One pair by the paper's formula, from the files alone."""
    net, lin = (torch.load(folder / name, weights_only=True) for name in FILES)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    total = 0.0
    x, y = ((2 * one[None] - 1 - shift) / scale for one in (x, y))
    layers = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))
    for place, (name, stride, padding) in enumerate(layers):
        weight, bias = net[f"features.{name}.weight"], net[f"features.{name}.bias"]
        if place in (1, 2):
            x, y = (F.max_pool2d(one, 3, 2) for one in (x, y))
        x, y = (F.relu(F.conv2d(one, weight, bias, stride, padding)) for one in (x, y))
        gap = (F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)) ** 2
        total += float((gap * lin[f"lin{place}.model.1.weight"]).sum(1).mean())
    return total


def test_the_distance_is_the_paper_s_formula(folder: Path) -> None:
    measure, shown = PerceptualDistance(folder), pictures(4)
    found = measure(shown[:2], shown[2:])
    expected = [written_out(folder, shown[place], shown[place + 2]) for place in range(2)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert measure(shown[:2], shown[:2]).abs().max() == 0


def test_the_spread_of_a_prompt_is_the_mean_over_its_pairs(folder: Path) -> None:
    measure, (a, b, c) = PerceptualDistance(folder), pictures(3)
    expected = sum(written_out(folder, one, other) for one, other in ((a, b), (a, c), (b, c))) / 3
    assert measure.spread([a, b, c]) == pytest.approx(expected, rel=1e-4)


def test_pictures_that_cannot_be_compared_are_refused(folder: Path) -> None:
    measure = PerceptualDistance(folder)
    with pytest.raises(RowError, match="expected pictures of one size"):
        measure.spread([pictures(1)[0], pictures(1, 73)[0]])
    with pytest.raises(ShapeError, match="expected at least 2"):
        measure.spread([pictures(1)[0]])
    with pytest.raises(ShapeError, match="at least 63 pixels"):
        measure(pictures(2, 61), pictures(2, 61))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no alexnet-owt-7be5be79\.pth"):
        PerceptualDistance(tmp_path)
