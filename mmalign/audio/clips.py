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
from mmalign.diffusion.examples import OWN, TextReader
from mmalign.errors import RowError
from mmalign.seeding import derive_seed

__all__ = ["WAVEFORM_RULE", "AudioReader", "ClipLoader", "Waveforms", "as_heard", "padded"]

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
            where = _where(row, number)
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
        found = [self.decode(data, where=_where(row, number)) for number, data in enumerate(encoded)]
        return Waveforms(
            inputs=torch.stack([wave for wave, _ in found]),
            geometry=torch.tensor([facts for _, facts in found], dtype=torch.int64),
        )


def _where(row: PreferenceRow, number: int) -> str:
    """File, row and candidate, for messages."""
    role = ""
    if row.kind == "pairs":
        role = " (chosen)" if number == 0 else " (rejected)"
    return f"{row.source or row.id or f'row {row.index}'} candidate {number}{role}"


@dataclass(frozen=True, kw_only=True)
class AudioReader(TextReader):
    """Turns rows into examples, and examples into micro-batches.

    Args:
        clips: decodes, resamples and cuts.
        mixed: share of rows that are mixed with another of their micro-batch.
    """

    clips: ClipLoader
    mixed: float = 0.0

    def __call__(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """Waveforms [candidate channel sample] or cached moments, and the prompt (or one per candidate).

        Raises:
            RowError: a clip cannot be read, or the cache lacks the row.
        """
        own = [row.prompt if candidate.prompt is None else candidate.prompt for candidate in row.candidates]
        prompts = own if any(prompt != row.prompt for prompt in own) else [row.prompt]
        shared = {"prompts": prompts, "own": len(prompts) > 1 or prompts[0] != row.prompt}
        if self.cache is not None:
            mean, std, geometry = self.cache.row(row, self.clips, flipped=False)
            self._require_texts(row, prompts)
            return {"latent_mean": mean, "latent_std": std, "geometry": geometry, **shared}
        loaded = self.clips.load(row)
        draws = derive_seed(key, "mix")
        return {
            "waves": loaded.inputs,
            "geometry": loaded.geometry,
            "mix": (draws & 0xFFFFFF) / 2**24 < self.mixed,
            "partner": ((draws >> 24) & 0xFFFFFF) / 2**24,
            **shared,
        }

    def _require_texts(self, row: PreferenceRow, prompts: Sequence[str]) -> None:
        """Raise `RowError` unless the cache knows the prompts."""
        if self.cache is not None and any(self.cache.text(prompt) is None for prompt in prompts):
            message = (
                f"{row.source or row.id}: its prompt is not in the cache {self.cache.folder}. "
                "Run `mmalign data cache` on this config (it adds what is missing)."
            )
            raise RowError(message, reason="not_cached")

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One micro-batch: waveforms or moments stacked, texts tokenised and filled up to the longest.

        Rows with fewer candidates than others are filled up with their first; labels say what counts.
        """
        examples = self._mixed(examples)
        width = max(len(example["geometry"]) for example in examples)
        stacked: dict[str, Any] = {
            name: torch.stack([_filled(example[name], width) for example in examples])
            for name in ("waves", "latent_mean", "latent_std", "geometry")
            if name in examples[0]
        }
        if not any(example["own"] for example in examples):
            return {**stacked, **self._texts([example["prompts"][0] for example in examples])}
        texts: list[str] = []
        for example in examples:
            own = (
                list(example["prompts"]) if example["own"] else example["prompts"] * len(example["geometry"])
            )
            texts += own + own[:1] * (width - len(own))
        found = self._texts(texts)
        return {
            **stacked,
            **{f"{OWN}{name}": value.unflatten(0, (-1, width)) for name, value in found.items()},
        }

    def _texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Tokens of prompts, or their cached states, filled up to the longest."""
        if self.cache is not None:
            states = [self.cache.text(prompt) or {} for prompt in prompts]
            return {f"text.{name}": value for name, value in padded(states).items()}
        return {f"tokens_{number}": ids for number, ids in enumerate(self.tokens(prompts))}

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
        other = _filled(second["waves"], len(first["waves"]))[: len(first["waves"])]
        wave = mix(first["waves"], other, sampling_rate=self.clips.sampling_rate)
        if self.clips.level == "peak":
            wave = peak_normalised(wave)
        prompt = mixed_caption(first["prompts"][0], second["prompts"][0])
        return {**first, "waves": wave, "prompts": [prompt]}


def _filled(value: Tensor, width: int) -> Tensor:
    """`[candidate, ...]` with its first entry repeated up to `width`."""
    missing = width - len(value)
    if missing <= 0:
        return value
    return torch.cat([value, value[:1].expand(missing, *value.shape[1:])])


def padded(rows: Sequence[Mapping[str, Tensor]], *, least: int = 0) -> dict[str, Tensor]:
    """Text states `[1, token, ...]` of several prompts as `[prompt, token, ...]`, filled up with zeros.

    Entries without a token axis (pooled states, `[1, channel]`) are stacked as they are; masks end in False.

    Args:
        rows: one per prompt.
        least: tokens that there are at least.
    """
    joined = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in ("text", "text_mask"):
            length = max(least, *(value.shape[1] for value in values))
            values = [
                torch.cat([value, value.new_zeros(1, length - value.shape[1], *value.shape[2:])], dim=1)
                for value in values
            ]
        joined[name] = torch.cat(values)
    return joined
