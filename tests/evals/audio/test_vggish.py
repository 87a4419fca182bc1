"""VGGish: patches of the published front end, published names, and the order of the dense layers' inputs."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmalign.errors import CheckpointError, ShapeError
from mmalign.evals.audio.vggish import SHORTEST, Vggish, load_vggish, log_mel_patches

WIDTHS = (2, 3, 5, 5, 7, 7)
CONVOLUTIONS = (0, 3, 6, 8, 11, 13)


def published(seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for place, inputs, outputs in zip(CONVOLUTIONS, (1, *WIDTHS), WIDTHS, strict=False):
        state[f"features.{place}.weight"] = 0.3 * torch.randn(outputs, inputs, 3, 3, generator=generator)
        state[f"features.{place}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    sizes = (WIDTHS[-1] * 24, 19, 19, 13)
    for place, inputs, outputs in zip((0, 2, 4), sizes, sizes[1:], strict=False):
        state[f"embeddings.{place}.weight"] = 0.2 * torch.randn(outputs, inputs, generator=generator)
        state[f"embeddings.{place}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return state


def patches_by_hand(samples):
    """The published front end, frame by frame and band by band."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)

    def mel(hertz):
        return 1127.0 * math.log(1.0 + hertz / 700.0)

    edges = np.linspace(mel(125.0), mel(7500.0), 66)
    bins = np.array([mel(16000 / 512 * place) for place in range(257)])
    bank = np.zeros((257, 64))
    for band in range(64):
        low, centre, high = edges[band : band + 3]
        bank[:, band] = np.maximum(
            0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
        )
    bank[0] = 0.0
    rows = []
    for start in range(0, len(samples) - 400 + 1, 160):
        magnitude = np.abs(np.fft.rfft(samples[start : start + 400] * window, 512))
        rows.append(np.log(magnitude @ bank + 0.01))
    count = len(rows) // 96
    return np.stack(rows[: 96 * count]).reshape(count, 96, 64)


def test_patches_are_the_published_ones_and_the_rest_is_left_out():
    samples = 0.2 * torch.randn(2 * 15360 + 5000, generator=torch.Generator().manual_seed(3))
    found = log_mel_patches(samples)
    assert found.shape == (2, 96, 64)
    assert np.allclose(found.numpy(), patches_by_hand(samples.double().numpy()), atol=1e-5)
    assert bool((log_mel_patches(torch.zeros(SHORTEST)) == math.log(0.01)).all())
    with pytest.raises(ShapeError, match=r"got \[15599 samples\], expected at least 15600"):
        log_mel_patches(torch.zeros(SHORTEST - 1))


def test_a_published_checkpoint_gives_the_published_forward(tmp_path):
    torch.save(published(), tmp_path / "vggish.pth")
    network = load_vggish(tmp_path / "vggish.pth")
    patches = torch.randn(2, 96, 64, generator=torch.Generator().manual_seed(5))
    state, values = published(), patches[:, None]
    for place in CONVOLUTIONS:
        weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
        values = F.conv2d(values, weight, bias, padding=1).clamp(min=0.0)
        if place not in (6, 11):
            values = F.max_pool2d(values, 2)
    values = values.transpose(1, 3).transpose(1, 2).contiguous().view(2, -1)
    for place in (0, 2, 4):
        values = F.linear(values, state[f"embeddings.{place}.weight"], state[f"embeddings.{place}.bias"])
        values = values.clamp(min=0.0) if place < 4 else values
    found = network(patches)
    assert torch.allclose(found, values, atol=1e-5)
    assert bool((found < 0).any())  # no rectifier at the end


def test_the_published_sizes_are_the_defaults():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Vggish().state_dict().items()}
    assert shapes["features.13.weight"] == (512, 512, 3, 3)
    assert shapes["embeddings.0.weight"] == (4096, 512 * 4 * 6)
    assert shapes["embeddings.4.bias"] == (128,)
    assert len(shapes) == 18


def test_another_checkpoint_is_refused(tmp_path):
    torch.save({"embeddings.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError, match=r"0 convolutions, 1 dense layers\], expected 6 and 3, of VGGish"
    ):
        load_vggish(tmp_path / "other.pth")
    state = published()
    del state["features.3.bias"]
    torch.save(state, tmp_path / "lacking.pth")
    with pytest.raises(CheckpointError, match=r"missing: features\.3\.bias"):
        load_vggish(tmp_path / "lacking.pth")
