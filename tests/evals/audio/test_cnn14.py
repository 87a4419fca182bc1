"""Cnn14: published names, the front end of librosa's defaults, and the order of its layers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmalign.errors import CheckpointError, ShapeError
from mmalign.evals.audio.cnn14 import CNN14_16K, CNN14_32K, Cnn14, load_cnn14

WIDTHS = (2, 3, 5, 7, 11, 13)


def published(front=CNN14_16K, seed=0, classes=17):
    """A state dict with the published keys, the Fourier kernels that are not read included."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator) / np.sqrt(np.prod(shape[1:]) or 1)

    def norm(name, size):
        return {
            f"{name}.weight": 1.0 + 0.1 * drawn(size),
            f"{name}.bias": 0.1 * drawn(size),
            f"{name}.running_mean": 0.1 * drawn(size),
            f"{name}.running_var": 1.0 + 0.1 * drawn(size).abs(),
            f"{name}.num_batches_tracked": torch.tensor(3),
        }

    frequencies = front.window // 2 + 1
    state = {
        "spectrogram_extractor.stft.conv_real.weight": torch.zeros(frequencies, 1, front.window),
        "spectrogram_extractor.stft.conv_imag.weight": torch.zeros(frequencies, 1, front.window),
        "logmel_extractor.melW": front.bank(),
        **norm("bn0", 64),
    }
    state["bn0.running_mean"] -= 40.0
    state["bn0.running_var"] += 400.0
    inputs = 1
    for number, outputs in enumerate(WIDTHS, start=1):
        name = f"conv_block{number}"
        state[f"{name}.conv1.weight"] = 2.0 * drawn(outputs, inputs, 3, 3)
        state[f"{name}.conv2.weight"] = 2.0 * drawn(outputs, outputs, 3, 3)
        state |= norm(f"{name}.bn1", outputs) | norm(f"{name}.bn2", outputs)
        inputs = outputs
    for name, size in (("fc1", WIDTHS[-1]), ("fc_audioset", classes)):
        state[f"{name}.weight"], state[f"{name}.bias"] = drawn(size, WIDTHS[-1]), 0.1 * drawn(size)
    return state


def stored(folder, **settings):
    path = folder / "Cnn14_16k_mAP=0.438.pth"
    torch.save({"iteration": 5, "model": published(**settings)}, path)
    return path


def expected_of(state, samples, front):
    """The published forward written out with functions, on a spectrogram of the library's own."""
    from transformers.audio_utils import spectrogram, window_function

    mels = spectrogram(
        samples.double().numpy(),
        window_function(front.window, "hann"),
        front.window,
        front.hop,
        power=2.0,
        mel_filters=state["logmel_extractor.melW"].double().numpy(),
        log_mel="dB",
    )
    values = torch.from_numpy(np.asarray(mels)).float().T[None, None]

    def norm(value, name, axis):
        shape = [1] * value.ndim
        shape[axis] = -1
        mean, var, weight, bias = (
            state[f"{name}.{part}"].reshape(shape)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (value - mean) / (var + 1e-5).sqrt() * weight + bias

    values = norm(values, "bn0", 3)
    for number in range(1, 7):
        for part in (1, 2):
            name = f"conv_block{number}"
            values = F.conv2d(values, state[f"{name}.conv{part}.weight"], padding=1)
            values = norm(values, f"{name}.bn{part}", 1).clamp(min=0.0)
        if number < 6:
            values = F.avg_pool2d(values, 2)
    over_bands = values.mean(dim=3)
    pooled = over_bands.max(dim=2).values + over_bands.mean(dim=2)
    features = F.linear(pooled, state["fc1.weight"], state["fc1.bias"]).clamp(min=0.0)
    return features, F.linear(features, state["fc_audioset.weight"], state["fc_audioset.bias"])


@pytest.mark.parametrize("front", [CNN14_16K, CNN14_32K])
def test_a_published_checkpoint_gives_the_published_forward(tmp_path, front):
    network = load_cnn14(stored(tmp_path, front=front))
    assert network.front == front
    samples = 0.1 * torch.randn(2, 70 * front.hop, generator=torch.Generator().manual_seed(3))
    features, logits = network(samples)
    for place, row in enumerate(samples):
        expected = expected_of(published(front=front), row, front)
        assert torch.allclose(features[place], expected[0][0], atol=1e-4)
        assert torch.allclose(logits[place], expected[1][0], atol=1e-4)
    assert float(features.abs().max()) > 0.01
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_full_size_is_the_published_one():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Cnn14().state_dict().items()}
    assert shapes["conv_block6.conv1.weight"] == (2048, 1024, 3, 3)
    assert shapes["fc_audioset.weight"] == (527, 2048)
    assert shapes["logmel_extractor.melW"] == (257, 64)


def test_clips_too_short_for_a_frame_are_refused(tmp_path):
    network = load_cnn14(stored(tmp_path))
    assert network(torch.zeros(1, network.shortest))[0].shape == (1, WIDTHS[-1])
    with pytest.raises(ShapeError, match=r"Cnn14: got \[5119 samples\], expected at least 5120"):
        network(torch.zeros(1, network.shortest - 1))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("logmel_extractor.melW"), r"melW: got \[none\], expected 257 or 513"),
        (
            lambda state: state["logmel_extractor.melW"].mul_(2.0),
            "got .another bank.*50 to 8000 Hz at 16000 Hz",
        ),
        (lambda state: state.pop("conv_block3.conv2.weight"), "lacks conv_block3.conv2.weight; expected"),
        (lambda state: state.pop("bn0.bias"), "missing: bn0.bias"),
        (lambda state: state.update(other=torch.zeros(1)), "unexpected: other"),
    ],
)
def test_another_checkpoint_is_refused(tmp_path, change, match):
    state = published()
    change(state)
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=match):
        load_cnn14(tmp_path / "other.pth")
