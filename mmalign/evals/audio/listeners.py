"""What metrics of sound hear: clips to features and, of classifiers, logits, one clip at a time.

A listener says everything that moves its numbers: checkpoint by hash, sampling rate, windows, channels and
level. Two numbers stand in one column only where their listeners say the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmalign.data.audio_media import DecodedAudio
from mmalign.data.resampling import resample
from mmalign.errors import RowError, ShapeError, explain
from mmalign.evals.audio.cnn14 import Cnn14, load_cnn14
from mmalign.evals.audio.vggish import SAMPLING_RATE, SHORTEST, Vggish, load_vggish, log_mel_patches
from mmalign.rewards.card import Weights
from mmalign.rewards.clap_models import ClapEncoder, load_clap
from mmalign.rewards.sounds import one_channel, read_sound
from mmalign.rewards.weights import file_sha256, find_weights, resolve

__all__ = [
    "PANNS",
    "VGGISH",
    "ClapListener",
    "Heard",
    "Listener",
    "Loading",
    "PannsListener",
    "VggishListener",
    "load_clap_sounds",
    "load_panns_listener",
    "load_vggish_listener",
]

Loading = Literal["clean", "released"]
"""`clean` resamples properly. `released` repeats what audioldm_eval does for PANNs of 16 kHz: files of 48 kHz
lose two samples of three without a filter, files of 32 kHz every other one and are then resampled
again, so that they sound an octave higher and half as long."""

PANNS: Mapping[str, Weights] = {
    "16 kHz": Weights(
        "PANNs/Cnn14_16k",
        ("Cnn14_16k_mAP=0.438.pth",),
        host="web",
        address="https://zenodo.org/records/3987831/files",
    ),
    "32 kHz": Weights(
        "PANNs/Cnn14",
        ("Cnn14_mAP=0.431.pth",),
        host="web",
        address="https://zenodo.org/records/3576403/files",
    ),
}
"""Published checkpoints of Cnn14; audioldm_eval takes the first for models of 16 kHz."""

VGGISH = Weights(
    "harritaylor/torchvggish",
    ("vggish-10086976.pth",),
    sha256={"vggish-10086976.pth": "10086976"},
    host="web",
    address="https://github.com/harritaylor/torchvggish/releases/download/v0.1",
)
"""The published PyTorch checkpoint of VGGish; its name holds the first digits of its hash."""

_LEAST = 32_000
"""Samples; audioldm_eval fills shorter clips with silence."""


@dataclass(frozen=True)
class Heard:
    """One clip.

    Args:
        features: one or several per clip, as the listener has windows.
        logits: of a classifier, else None.
    """

    features: Float[Tensor, "window feature"]
    logits: Float[Tensor, " class"] | None = None


@runtime_checkable
class Listener(Protocol):
    """Clips to features."""

    name: str
    """As metrics bear it: the network, and what sets its numbers apart."""

    def provenance(self) -> Mapping[str, Any]:
        """All that moves a number; JSON types."""
        ...

    def hear(self, media: Sequence[str | Path | bytes], *, loading: Loading = "clean") -> list[Heard | str]:
        """Features of clips, on the CPU; why not, where one cannot be read.

        Args:
            media: files, or encoded bytes.
            loading: how files of other rates are read.
        """
        ...


class _OneByOne(ABC):
    """Clip after clip: they have their own lengths, and none may feel its company."""

    name: str

    def hear(self, media: Sequence[str | Path | bytes], *, loading: Loading = "clean") -> list[Heard | str]:
        """Features of clips, on the CPU; why not, where one cannot be read."""
        found: list[Heard | str] = []
        for one in media:
            where = str(one) if isinstance(one, str | Path) else "a sound"
            try:
                found.append(self._heard(read_sound(one, where=where), loading, where))
            except (RowError, ShapeError) as error:
                found.append(str(error))
        return found

    @abstractmethod
    def _heard(self, sound: DecodedAudio, loading: Loading, where: str) -> Heard:
        """Features of one clip. Raises ShapeError where it cannot be heard."""


class PannsListener(_OneByOne):
    """Cnn14 of PANNs: 2048 features and 527 logits of a whole clip.

    Args:
        network: in evaluation mode.
        weights: hash of its file, or what stands for it.
        device: where it stands.
    """

    def __init__(self, network: Cnn14, *, weights: str, device: str | torch.device = "cpu") -> None:
        self.network, self.device, self._weights = network.to(device), torch.device(device), weights
        self.sampling_rate = network.front.sampling_rate
        self.name = f"PANNs Cnn14 {self.sampling_rate // 1000} kHz"

    def provenance(self) -> Mapping[str, Any]:
        """Weights, rate, channel, level, shortest clip."""
        front = self.network.front
        return {
            "name": self.name,
            "weights": self._weights,
            "sampling_rate": front.sampling_rate,
            "spectrum": {"window": front.window, "hop": front.hop, "low": front.low, "high": front.high},
            "window": "the whole clip",
            "channels": "first",
            "level": "as it is, mean removed",
            "shortest": _LEAST,
        }

    @torch.inference_mode()
    def _heard(self, sound: DecodedAudio, loading: Loading, where: str) -> Heard:
        del where
        wave = self.waveform(sound, loading)
        features, logits = self.network(wave[None].to(self.device))
        return Heard(features.float().cpu(), logits[0].float().cpu())

    def waveform(self, sound: DecodedAudio, loading: Loading) -> Float[Tensor, " sample"]:
        """The first channel without its mean at the network's rate, at least 32 000 samples."""
        first = sound.samples[0] - sound.samples[0].mean()
        rate = sound.sampling_rate
        if loading == "released" and self.sampling_rate == 16_000 and rate in (32_000, 48_000):
            wave = first[::3] if rate == 48_000 else resample(first[::2], rate, self.sampling_rate)
        else:
            wave = resample(first, rate, self.sampling_rate)
        return F.pad(wave, (0, max(0, _LEAST - len(wave))))


class VggishListener(_OneByOne):
    """VGGish: 128 features of every 0.96 s, of which no verdicts come.

    Args:
        network: in evaluation mode.
        weights: hash of its file, or what stands for it.
        device: where it stands.
    """

    name = "VGGish"

    def __init__(self, network: Vggish, *, weights: str, device: str | torch.device = "cpu") -> None:
        self.network, self.device, self._weights = network.to(device), torch.device(device), weights

    def provenance(self) -> Mapping[str, Any]:
        """Weights, rate, windows, channels, level."""
        return {
            "name": self.name,
            "weights": self._weights,
            "sampling_rate": SAMPLING_RATE,
            "window": "0.96 s each, none overlapping, the rest left out",
            "embedding": "before the last rectifier, no PCA",
            "channels": "mean",
            "level": "as it is",
        }

    @torch.inference_mode()
    def _heard(self, sound: DecodedAudio, loading: Loading, where: str) -> Heard:
        del loading  # the released loader of FAD resamples as it should
        wave = one_channel(sound, SAMPLING_RATE)
        if len(wave) < SHORTEST:
            got, expected = f"[{len(wave) / SAMPLING_RATE:.3g} s]", "at least 0.975 s, one window of VGGish"
            raise RowError(explain(where, got=got, expected=expected), reason="too_short")
        return Heard(self.network(log_mel_patches(wave).to(self.device)).float().cpu())


class ClapListener(_OneByOne):
    """The sound side of a CLAP checkpoint: one feature vector per window.

    Args:
        encoder: of sounds.
        checkpoint: its name.
    """

    def __init__(self, encoder: ClapEncoder, *, checkpoint: str) -> None:
        self.encoder = encoder
        self.name = f"CLAP {checkpoint} {encoder.mark}, {encoder.windows}"

    def provenance(self) -> Mapping[str, Any]:
        """The encoder's settings, channels and level."""
        return {"name": self.name, **self.encoder.settings(), "channels": "mean", "level": "as it is"}

    @torch.inference_mode()
    def _heard(self, sound: DecodedAudio, loading: Loading, where: str) -> Heard:
        del loading, where
        wave = one_channel(sound, self.encoder.sampling_rate)
        return Heard(self.encoder.sound_features(self.encoder.mels(wave)).cpu())


def load_panns_listener(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PannsListener:
    """Cnn14 from its published file.

    Args:
        weights: the file itself, or a folder with it; of a folder with both variants the 16 kHz one is taken.
            None looks where downloads lie, and downloads the 16 kHz one.
        device: where it stands.
        dtype: not used: spectra in half precision would move every number.

    Raises:
        CheckpointError: the file is nowhere, or is another one.
        ConfigError: `weights` lacks it.
    """
    del dtype
    path = _file_of(weights, PANNS["16 kHz"], PANNS["32 kHz"])
    return PannsListener(load_cnn14(path), weights=file_sha256(path), device=device)


def load_vggish_listener(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VggishListener:
    """VGGish from its published file; arguments as of `load_panns_listener`.

    Raises:
        CheckpointError: the file is nowhere, or is another one.
        ConfigError: `weights` lacks it.
    """
    del dtype
    path = _file_of(weights, VGGISH)
    return VggishListener(load_vggish(path), weights=file_sha256(path), device=device)


def _file_of(given: str | Path | None, *known: Weights) -> Path:
    """The file that was named, or that of the first known weights that are there."""
    if given is not None and Path(given).is_file():
        return Path(given)
    for weights in known:
        folder = find_weights(weights, folder=given)
        if folder is not None:
            return folder / weights.files[0]
    return resolve(known[0], folder=given, reward=known[0].repository) / known[0].files[0]


def load_clap_sounds(
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    checkpoint: str = "htsat-unfused",
) -> ClapListener:
    """The sound side of CLAP, from the hub or a folder of the user's.

    Args:
        weights: folder, or None.
        device: where it stands.
        dtype: of the network.
        checkpoint: short name or hub id.

    Raises:
        CheckpointError: it is nowhere, or is another model.
        ConfigError: `weights` lacks its files.
    """
    encoder = load_clap(checkpoint, weights=weights, reward="CLAP embeddings", device=device, dtype=dtype)
    return ClapListener(encoder, checkpoint=checkpoint)
