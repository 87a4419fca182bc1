"""Encoded sound to samples: one place that opens sound files of data sets, and believes nothing about them.

Everything that makes a clip unusable ends in a `RowError` with a reason: missing, empty, damaged and cut-off
files, files that are no sound, NaN, clips of wrong length, files that unpack to gigabytes. What is only
suspicious (silence, clipping, 8 bits, a silent first channel) is a note, for whoever counts them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.audio_codecs import Opened, RawAudio, audio_ending, encode_audio, open_audio
from mmalign.data.config import AudioLimits
from mmalign.data.media import read_media
from mmalign.errors import RowError, explain

__all__ = [
    "AUDIO_NOTES",
    "DecodedAudio",
    "audio_ending",
    "decode_audio",
    "encode_audio",
    "read_audio",
]

AUDIO_NOTES: dict[str, str] = {
    "silent": "nothing to hear",
    "silent_first_channel": "the first channel is silent, and models that read one channel read the first",
    "clipped": "flat tops: recorded or mixed too loud",
    "over_full_scale": "samples beyond full scale, cut by whoever converts them to integers",
    "eight_bit": "8 bits per sample: audible noise",
    "constant_offset": "the mean is far from 0",
    "surround": "more than two channels",
}
"""Notes and what they mean."""

_RATES = (1_000, 768_000)
"""Samples per second of anything that was ever recorded; beyond them the head of the file is damaged."""

_FLAT_SHARE = 1e-3
"""Share of samples on flat tops from which a clip counts as clipped."""

_EIGHT_BITS = frozenset({"PCM_U8", "PCM_S8", "pcm_u8", "pcm_s8"})


@dataclass(frozen=True)
class DecodedAudio:
    """A clip.

    Args:
        samples: float32, nominally in [-1, 1]; finite.
        sampling_rate: samples per second, the file's own.
        notes: what is suspicious about it, names of `AUDIO_NOTES`.
        container: format of the file, as its decoder calls it.
        coding: of the samples in the file, as its decoder calls it.
    """

    samples: Float[Tensor, "channel sample"]
    sampling_rate: int
    notes: tuple[str, ...] = ()
    container: str = ""
    coding: str = ""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples.shape[1] / self.sampling_rate

    @property
    def channels(self) -> int:
        """How many channels it has."""
        return self.samples.shape[0]


def read_audio(media: bytes | str, *, where: str, limits: AudioLimits) -> DecodedAudio:
    """The clip in a candidate's bytes or file.

    Raises:
        MissingExtraError: a decoder is not installed.
        RowError: what `mmalign.data.media.read_media` and `decode_audio` raise.
    """
    return decode_audio(
        read_media(media, where=where, max_bytes=limits.max_bytes, kind="audio"), where=where, limits=limits
    )


def decode_audio(data: bytes, *, where: str, limits: AudioLimits) -> DecodedAudio:
    """The clip in some bytes, at its own sampling rate and with all its channels.

    Args:
        data: encoded sound.
        where: file, row and field, for messages.
        limits: what is refused; lengths are refused before anything is decoded.

    Raises:
        MissingExtraError: a decoder is not installed.
        RowError: reason `not_audio`, `damaged_audio`, `truncated_audio`, `too_long`, `too_short`,
            `too_many_samples`, `bad_sampling_rate`, `not_finite` or `silent_audio`.
    """
    raw = open_audio(data, where=where, accept=_Gate(where, limits))
    if not raw.complete:
        message = (
            f"{where}: the sound is cut off: {raw.values.shape[1]} samples are there and the file promises "
            "more. Copy or download it again."
        )
        raise RowError(message, reason="truncated_audio")
    samples = torch.from_numpy(raw.values)
    seconds = samples.shape[1] / raw.sampling_rate
    if seconds < limits.min_seconds or not samples.shape[1]:
        message = explain(
            where,
            got=f"[{seconds:.3g} seconds]",
            expected=f"at least {limits.min_seconds:g}",
            do="Lower data.audio.min_seconds if this is no accident.",
        )
        raise RowError(message, reason="too_short")
    if not bool(samples.isfinite().all()):
        count = int((~samples.isfinite()).sum())
        message = explain(where, got=f"[{count} samples that are NaN or infinite]", expected="numbers")
        raise RowError(message, reason="not_finite")
    notes = _notes(samples, raw, limits)
    if "silent" in notes and limits.silence == "refuse":
        message = explain(
            where,
            got="[silence]",
            expected=f"a peak above {limits.silence_peak:g}",
            do="data.audio.silence: note accepts and counts such clips.",
        )
        raise RowError(message, reason="silent_audio")
    return DecodedAudio(samples, raw.sampling_rate, notes, raw.container, raw.coding)


@dataclass(frozen=True)
class _Gate:
    """Refuses what is too large, from the head of the file or while it is decoded."""

    where: str
    limits: AudioLimits

    def __call__(self, head: Opened) -> None:
        if not _RATES[0] <= head.sampling_rate <= _RATES[1]:
            message = explain(
                self.where,
                got=f"[{head.sampling_rate} samples per second]",
                expected=f"{_RATES[0]} to {_RATES[1]}",
                do="The head of the file is damaged.",
            )
            raise RowError(message, reason="bad_sampling_rate")
        if head.samples is None:
            return
        seconds = head.samples / head.sampling_rate
        if seconds > self.limits.max_seconds:
            message = explain(
                self.where,
                got=f"[{seconds:.4g} seconds]",
                expected=f"at most {self.limits.max_seconds:g} (a decompression bomb looks like this)",
                do="Raise data.audio.max_seconds if the clip is real.",
            )
            raise RowError(message, reason="too_long")
        if head.samples * head.channels > self.limits.max_samples:
            message = explain(
                self.where,
                got=f"[{head.samples} samples of {head.channels} channels]",
                expected=f"at most {self.limits.max_samples} in all",
                do="Raise data.audio.max_samples if the clip is real.",
            )
            raise RowError(message, reason="too_many_samples")


def _notes(samples: Tensor, raw: RawAudio, limits: AudioLimits) -> tuple[str, ...]:
    peaks = samples.abs().amax(dim=1)
    peak = float(peaks.max())
    silent = peak <= limits.silence_peak
    eight = raw.coding in _EIGHT_BITS
    found: dict[str, Any] = {
        "silent": silent,
        "silent_first_channel": not silent and float(peaks[0]) <= limits.silence_peak,
        # Eight bits have flat tops of their own.
        "clipped": not silent and not eight and _flat_share(samples, peak) >= _FLAT_SHARE,
        "over_full_scale": peak > 1.0 + 1e-6,
        "eight_bit": eight,
        "constant_offset": not silent and float(samples.mean(dim=1).abs().max()) > 0.1 * peak,
        "surround": samples.shape[0] > 2,
    }
    return tuple(name for name, holds in found.items() if holds)


def _flat_share(samples: Tensor, peak: float) -> float:
    """Share of samples in runs of three and more equal ones at the clip's own peak.

    A clip that was clipped and turned down later has them, too; a loud sine does not.
    """
    if samples.shape[1] < 3 or peak == 0.0:
        return 0.0
    first, second, third = samples[:, :-2], samples[:, 1:-1], samples[:, 2:]
    flat = (first == second) & (second == third) & (second.abs() >= 0.999 * peak)
    return float(flat.float().mean())
