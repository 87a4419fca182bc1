"""Sound of log-mel spectrograms without a trained vocoder: phases found by going back and forth.

Source: Griffin and Lim, Signal estimation from modified short-time Fourier transform, 1984.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from mmalign.audio.mel import MelFrontEnd
from mmalign.seeding import generator_for

if TYPE_CHECKING:
    from mmalign.audio.family import AudioModel

__all__ = ["GriffinLim", "played_by_griffin_lim"]


class GriffinLim(nn.Module):
    """A vocoder that was not trained, called as those of transformers are.

    Magnitudes are the least-squares answer to the bands, negative ones taken for 0; phases start random, the
    same ones on every call, and are then taken from the transform of the sound that they give.

    Args:
        front: what made the spectrograms.
        num_rounds: there and back.
    """

    spread: Tensor
    window: Tensor

    def __init__(self, front: MelFrontEnd, num_rounds: int = 32) -> None:
        super().__init__()
        self.front, self.num_rounds = front, num_rounds
        self.register_buffer("spread", torch.linalg.pinv(front.filterbank), persistent=False)
        self.register_buffer("window", torch.hann_window(front.win_length), persistent=False)

    @torch.no_grad()
    def forward(self, mel: Float[Tensor, "row frame mel"]) -> Float[Tensor, "row sample"]:
        """Waveforms of `hop_length` samples per frame, in [-1, 1] where the spectrograms allow."""
        num = mel.shape[1] * self.front.hop_length
        magnitudes = (self.spread @ mel.float().exp().transpose(1, 2)).clamp(min=0)
        magnitudes = torch.cat([magnitudes, magnitudes[..., -1:]], dim=-1)
        turns = torch.rand(magnitudes.shape[1:], generator=generator_for(0, "griffin_lim"))
        phases = (2 * torch.pi * turns).to(mel.device).expand_as(magnitudes)
        wave = self._back(torch.polar(magnitudes, phases), num)
        for _ in range(self.num_rounds):
            wave = self._back(torch.polar(magnitudes, self._there(wave).angle()), num)
        return wave

    def _there(self, wave: Float[Tensor, "row sample"]) -> Complex[Tensor, "row frequency frame"]:
        front = self.front
        return torch.stft(
            wave,
            front.filter_length,
            hop_length=front.hop_length,
            win_length=front.win_length,
            window=self.window,
            return_complex=True,
        )

    def _back(
        self, spectrum: Complex[Tensor, "row frequency frame"], num: int
    ) -> Float[Tensor, "row sample"]:
        front = self.front
        return torch.istft(
            spectrum,
            front.filter_length,
            hop_length=front.hop_length,
            win_length=front.win_length,
            window=self.window,
            length=num,
        )


@contextmanager
def played_by_griffin_lim(model: "AudioModel") -> Iterator[None]:
    """Let a loaded Tango play without its vocoder inside."""
    codec = model.autoencoder
    load, vocoder = codec._load_vocoder, codec._vocoder
    codec._load_vocoder, codec._vocoder = None, GriffinLim(codec.front).to(codec.home)
    try:
        yield
    finally:
        codec._load_vocoder, codec._vocoder = load, vocoder
