"""Cnn14 of PANNs: clips to 527 AudioSet classes and 2048 features, as audioldm_eval listens.

Modules bear the published names, so that a published checkpoint is filled in strictly. The Fourier kernels it
holds are not read (`torch.stft` gives their numbers); its mel bank is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.errors import CheckpointError, ShapeError, explain
from mmalign.rewards.checkpoints import fill, read_state
from mmalign.rewards.sounds import decibel_mels

__all__ = ["CNN14_16K", "CNN14_32K", "Cnn14", "Cnn14Front", "load_cnn14"]


@dataclass(frozen=True)
class Cnn14Front:
    """What a variant hears.

    Args:
        sampling_rate: Hz.
        window: samples of the Fourier transform and its Hann window.
        hop: samples between two frames.
        low: lower edge of the lowest of 64 mel bands, Hz.
        high: upper edge of the highest, Hz.
    """

    sampling_rate: int
    window: int
    hop: int
    low: float
    high: float

    def bank(self, mels: int = 64) -> Float[Tensor, "frequency mel"]:
        """Slaney's mel bank, as librosa makes it."""
        from transformers.audio_utils import mel_filter_bank

        frequencies = self.window // 2 + 1
        found = mel_filter_bank(
            frequencies, mels, self.low, self.high, self.sampling_rate, norm="slaney", mel_scale="slaney"
        )
        return torch.from_numpy(found).float()


CNN14_16K = Cnn14Front(16_000, 512, 160, 50.0, 8_000.0)
"""Of `Cnn14_16k_mAP=0.438.pth`, which audioldm_eval takes at 16 kHz."""

CNN14_32K = Cnn14Front(32_000, 1024, 320, 50.0, 14_000.0)
"""Of `Cnn14_mAP=0.431.pth`."""

_WIDTHS = (64, 128, 256, 512, 1024, 2048)
_KERNELS = ("spectrogram_extractor.*",)
_MELS = 64


class _Block(nn.Module):
    """Two 3x3 convolutions, each normalised and rectified, then a mean over `pool` x `pool` cells."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(
        self, values: Float[Tensor, "clip channel frame mel"], pool: int
    ) -> Float[Tensor, "clip out_channel out_frame out_mel"]:
        """Features of half the size where `pool` is 2."""
        values = F.relu(self.bn1(self.conv1(values)))
        return F.avg_pool2d(F.relu(self.bn2(self.conv2(values))), pool)


class _Bank(nn.Module):
    """The mel bank, under its published name."""

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        self.melW = nn.Parameter(bank, requires_grad=False)


class Cnn14(nn.Module):
    """The network; in evaluation mode nothing in it is random.

    Args:
        front: what it hears.
        widths: channels of the six blocks; features are as many as the last has.
        classes: of the classifier.

    Source: qiuqiangkong/audioset_tagging_cnn, pytorch/models.py (arXiv 1912.10211).
    """

    def __init__(
        self, front: Cnn14Front = CNN14_16K, widths: tuple[int, ...] = _WIDTHS, classes: int = 527
    ) -> None:
        super().__init__()
        self.front = front
        self.logmel_extractor = _Bank(front.bank(_MELS))
        self.bn0 = nn.BatchNorm2d(_MELS)
        for number, (inputs, outputs) in enumerate(zip((1, *widths), widths, strict=False), start=1):
            self.add_module(f"conv_block{number}", _Block(inputs, outputs))
        self.fc1 = nn.Linear(widths[-1], widths[-1])
        self.fc_audioset = nn.Linear(widths[-1], classes)
        self._blocks = [f"conv_block{number + 1}" for number in range(len(widths))]

    @property
    def shortest(self) -> int:
        """Samples of the shortest clip of which a frame is left after five halvings."""
        return 32 * self.front.hop

    def forward(
        self, samples: Float[Tensor, "clip sample"]
    ) -> tuple[Float[Tensor, "clip feature"], Float[Tensor, "clip class"]]:
        """Features behind the last rectifier, and logits.

        Args:
            samples: one channel at the front's rate.

        Raises:
            ShapeError: a clip shorter than `shortest`.
        """
        if samples.shape[1] < self.shortest:
            got, expected = f"[{samples.shape[1]} samples]", f"at least {self.shortest}, padded with silence"
            raise ShapeError(explain("Cnn14", got=got, expected=expected))
        mels = decibel_mels(samples, self.logmel_extractor.melW, hop=self.front.hop)
        # The normalisation is over bands: they take the place of channels for it.
        values = self.bn0(mels[:, None].transpose(1, 3)).transpose(1, 3)
        for name in self._blocks:
            values = self.get_submodule(name)(values, 1 if name == self._blocks[-1] else 2)
        frames = values.mean(dim=3)
        features = F.relu(self.fc1(frames.amax(dim=2) + frames.mean(dim=2)))
        return features, self.fc_audioset(features)


def load_cnn14(path: str | Path) -> Cnn14:
    """The network of a published checkpoint file, in evaluation mode and frozen.

    Which variant it is, its mel bank says: 257 frequencies are the 16 kHz one, 513 the 32 kHz one.

    Args:
        path: `Cnn14_16k_mAP=0.438.pth`, `Cnn14_mAP=0.431.pth`, or one with the same keys.

    Raises:
        CheckpointError: the file is no such checkpoint, or would have to run code.
    """
    state = read_state(path, inside=("model", "state_dict"))
    front = _front_of(state, str(path))
    network = Cnn14(front, _widths_of(state, str(path)), len(state["fc_audioset.bias"]))
    fill(network, state, where=str(path), ignored=_KERNELS)
    return network.requires_grad_(False).eval()


def _front_of(state: Mapping[str, Tensor], where: str) -> Cnn14Front:
    bank = state.get("logmel_extractor.melW")
    fronts = {front.window // 2 + 1: front for front in (CNN14_16K, CNN14_32K)}
    found = fronts.get(len(bank)) if bank is not None else None
    if found is None or bank is None:
        got = "[none]" if bank is None else f"[{len(bank)} frequencies]"
        expected = f"{' or '.join(map(str, fronts))} (16 or 32 kHz)"
        raise CheckpointError(explain(f"{where} logmel_extractor.melW", got=got, expected=expected))
    own = found.bank(bank.shape[1])
    if own.shape != bank.shape or not torch.allclose(own, bank.float(), rtol=1e-3, atol=1e-6):
        got = "[another bank]"
        expected = f"64 bands from {found.low:g} to {found.high:g} Hz at {found.sampling_rate} Hz"
        raise CheckpointError(explain(f"{where} logmel_extractor.melW", got=got, expected=expected))
    return found


def _widths_of(state: Mapping[str, Tensor], where: str) -> tuple[int, ...]:
    names = [f"conv_block{number + 1}.conv2.weight" for number in range(len(_WIDTHS))]
    lacking = [name for name in (*names, "fc_audioset.bias") if name not in state]
    if lacking:
        message = f"{where}: lacks {', '.join(lacking)}; expected a checkpoint of Cnn14."
        raise CheckpointError(message)
    return tuple(len(state[name]) for name in names)
