"""From a row of a data set to waveforms on the CPU: what a loader worker does for an audio family.

An `AudioReader` holds tokenizers and settings and no network, so that it can travel to worker processes.
Texts are tokenised when rows meet in a micro-batch: they are filled up to the longest of them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.audio.mel import fitted, peak_normalised, prepared
from mmalign.audio.mixing import mix, mixed_caption
from mmalign.batch import PreferenceRow
from mmalign.data.audio_media import decode_audio
from mmalign.data.config import AudioLimits
from mmalign.data.media import read_media
from mmalign.data.resampling import resample
from mmalign.diffusion.clip_reader import ClipReader, filled_up
from mmalign.errors import RowError
from mmalign.seeding import derive_seed

__all__ = ["WAVEFORM_RULE", "AudioReader", "ClipLoader", "Waveforms", "as_heard"]

WAVEFORM_RULE = "sinc-hann-6-0.99"
"""Names everything between file and waveform that no setting names; it is part of every cache key."""

Level = Literal["peak", "none"]
Channel = Literal["first", "mean"]


def as_heard(
    samples: Float[Tensor, "channel sample"], *, channels: int, channel: Channel
) -> Float[Tensor, "heard sample"]:
    """A clip in as many channels as the model has.

    Args:
        samples: as decoded.
        channels: of the model: 1 or 2.
        channel: of several, what a model of one hears: the first, or their mean.
    """
    if channels == 1:
        return samples[:1] if channel == "first" else samples.mean(0, keepdim=True)
    if samples.shape[0] == 1:
        return samples.expand(channels, -1)
    return samples[:channels]


@dataclass(frozen=True)
class Waveforms:
    """The clips of one row.

    Args:
        inputs: as the model hears them, equally long.
        geometry: per candidate (sampling rate of the file, its channels, its samples, 0, 0, 0).
    """

    inputs: Float[Tensor, "candidate channel sample"]
    geometry: Tensor


@dataclass(frozen=True)
class ClipLoader:
    """How the clips of rows become waveforms; holds settings only, so that it travels to loader workers.

    Args:
        sampling_rate: of the model, Hz.
        num_samples: of every waveform.
        channels: of the model.
        channel: what a model of one channel hears of several.
        level: "peak": centred, the largest amplitude at 0.5 (before and after cutting, as Tango's official
            reader); "none": as in the file.
        limits: clips that are refused.
    """

    sampling_rate: int
    num_samples: int
    channels: int = 1
    channel: Channel = "first"
    level: Level = "peak"
    limits: AudioLimits = field(default_factory=AudioLimits)

    @property
    def rule(self) -> str:
        """Everything that is done between file and waveform, in words."""
        heard = self.channel if self.channels == 1 else f"{self.channels} channels"
        return f"{WAVEFORM_RULE}|{self.sampling_rate} Hz|{self.num_samples} samples|{heard}|{self.level}"

    def encoded(self, row: PreferenceRow) -> list[bytes]:
        """The encoded bytes of each candidate.

        Raises:
            RowError: missing, empty or too large.
        """
        found = []
        for number, candidate in enumerate(row.candidates):
            where = row.place_of(number)
            if candidate.audio is None:
                message = f"{where}: got no audio. Is the source's `media` set to what the rows hold?"
                raise RowError(message, reason="missing_audio")
            found.append(
                read_media(candidate.audio, where=where, max_bytes=self.limits.max_bytes, kind="audio")
            )
        return found

    def keys(self, encoded: list[bytes], *, flipped: bool = False) -> list[str]:
        """Name of each candidate's entry in a cache: a hash of its bytes and of all that was done."""
        del flipped
        names = []
        for data in encoded:
            digest = hashlib.blake2b(data, digest_size=16, person=b"mmalign-audio")
            digest.update(f"|{self.rule}".encode())
            names.append(digest.hexdigest())
        return names

    def decode(self, data: bytes, *, where: str) -> tuple[Float[Tensor, "channel sample"], list[int]]:
        """One clip as the model hears it, and its geometry in the file.

        Raises:
            RowError: it cannot be decoded, or is refused.
        """
        decoded = decode_audio(data, where=where, limits=self.limits)
        facts = [decoded.sampling_rate, decoded.channels, decoded.samples.shape[1], 0, 0, 0]
        heard = as_heard(decoded.samples, channels=self.channels, channel=self.channel)
        return self.waveform(resample(heard, decoded.sampling_rate, self.sampling_rate)), facts

    def waveform(self, samples: Float[Tensor, "channel source"]) -> Float[Tensor, "channel sample"]:
        """Samples at the model's rate, at the model's level and length."""
        if self.level == "peak":
            return prepared(samples, self.num_samples)
        return fitted(samples, self.num_samples)

    def load(self, row: PreferenceRow) -> Waveforms:
        """The clips of a row.

        Raises:
            RowError: one is missing, unreadable or refused.
        """
        return self.centered(row, self.encoded(row))

    def centered(self, row: PreferenceRow, encoded: list[bytes], *, flipped: bool = False) -> Waveforms:
        """The clips of a row whose bytes were read.

        Raises:
            RowError: one cannot be decoded, or is refused.
        """
        del flipped
        found = [self.decode(data, where=row.place_of(number)) for number, data in enumerate(encoded)]
        return Waveforms(
            inputs=torch.stack([wave for wave, _ in found]),
            geometry=torch.tensor([facts for _, facts in found], dtype=torch.int64),
        )


@dataclass(frozen=True, kw_only=True)
class AudioReader(ClipReader):
    """Turns rows into examples, and examples into micro-batches.

    Args:
        clips: decodes, resamples and cuts.
        mixed: share of rows that are mixed with another of their micro-batch.
    """

    clips: ClipLoader
    mixed: float = 0.0

    def decoded(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """Waveforms [candidate channel sample], and whether they are mixed with another row's.

        Raises:
            RowError: a clip cannot be read.
        """
        draws = derive_seed(key, "mix")
        return {
            **super().decoded(row, key=key),
            "mix": (draws & 0xFFFFFF) / 2**24 < self.mixed,
            "partner": ((draws >> 24) & 0xFFFFFF) / 2**24,
        }

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One micro-batch, some of its rows mixed with others, as their keys say."""
        return super().collate(self._mixed(examples))

    def _mixed(self, examples: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Some examples mixed with others of the micro-batch, as their keys say."""
        count = len(examples)
        if self.mixed == 0 or count < 2:
            return examples
        return [
            self._mixture(example, examples[(number + 1 + int(example["partner"] * (count - 1))) % count])
            if example["mix"]
            else example
            for number, example in enumerate(examples)
        ]

    def _mixture(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> Mapping[str, Any]:
        """Each candidate of one row with that of another, equally loud; rows with own prompts stay alone."""
        if first["own"] or second["own"]:
            return first
        other = filled_up(second["waves"], len(first["waves"]))[: len(first["waves"])]
        wave = mix(first["waves"], other, sampling_rate=self.clips.sampling_rate)
        if self.clips.level == "peak":
            wave = peak_normalised(wave)
        prompt = mixed_caption(first["prompts"][0], second["prompts"][0])
        return {**first, "waves": wave, "prompts": [prompt]}
