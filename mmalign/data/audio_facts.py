"""What `mmalign data check` says of sounds: lengths, rates, doubts, and cues that give labels away."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmalign.batch import PreferenceRow
from mmalign.data.audio_media import AUDIO_NOTES, decode_audio
from mmalign.data.config import AudioLimits
from mmalign.data.cues import cue
from mmalign.data.media import read_media

__all__ = ["AudioFacts"]


@dataclass
class AudioFacts:
    """Collects facts about the clips of the rows looked at.

    Args:
        limits: what is refused.
        decode: whether clips are decoded, or only read.
    """

    limits: AudioLimits
    decode: bool
    seconds: list[float] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    codings: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    prompts: list[str] = field(default_factory=list)
    lengths: list[tuple[float, float]] = field(default_factory=list)
    levels: list[tuple[float, float]] = field(default_factory=list)

    def look(self, row: PreferenceRow) -> list[str]:
        """Digests of the row's clips, after each was opened.

        Raises:
            RowError: a clip cannot be used.
            MissingExtraError: a decoder is not installed.
        """
        digests: list[str] = []
        lengths: list[float] = []
        levels: list[float] = []
        for number, candidate in enumerate(row.candidates):
            if candidate.audio is None:
                continue
            where = f"{row.source} candidate {number}"
            data = read_media(candidate.audio, where=where, max_bytes=self.limits.max_bytes, kind="audio")
            digests.append(hashlib.blake2b(data, digest_size=12).hexdigest())
            if self.decode:
                clip = decode_audio(data, where=where, limits=self.limits)
                lengths.append(clip.seconds)
                levels.append(float(clip.samples.double().square().mean().sqrt()))
                self.rates[clip.sampling_rate] += 1
                self.channels[clip.channels] += 1
                self.codings[f"{clip.container} {clip.coding}"] += 1
                self.notes.update(clip.notes)
            self.num_bytes.append(len(data))
        self.seconds += lengths
        if row.kind == "pairs" and row.preference != 0.5 and len(lengths) == 2:
            self.prompts.append(row.prompt)
            self.lengths.append((lengths[0], lengths[1]))
            self.levels.append((levels[0], levels[1]))
        return digests

    def facts(self) -> dict[str, Any]:
        """Bytes, seconds (least, median, most), counts by rate, channels, coding and note."""
        if not self.num_bytes:
            return {}
        found: dict[str, Any] = {
            "looked_at": len(self.num_bytes),
            "mean_bytes": int(np.mean(self.num_bytes)),
        }
        if self.seconds:
            shortest, median, longest = min(self.seconds), float(np.median(self.seconds)), max(self.seconds)
            found["seconds"] = [round(value, 3) for value in (shortest, median, longest)]
            found["sampling_rates"] = dict(self.rates.most_common())
            found["channels"] = dict(self.channels.most_common())
            found["codings"] = dict(self.codings.most_common())
        if self.notes:
            found["notes"] = dict(self.notes.most_common())
        return found

    def advice(self) -> list[str]:
        """Sentences about what may spoil training."""
        found = [
            f"{count} {'clip' if count == 1 else 'clips'} noted as {name}: {AUDIO_NOTES[name]}."
            for name, count in self.notes.most_common()
        ]
        if len(self.rates) > 1:
            listed = ", ".join(f"{count} at {rate} Hz" for rate, count in self.rates.most_common())
            found.append(f"Sampling rates differ ({listed}); clips are resampled to the model's.")
        found += cue("longer", self.lengths, self.prompts, "cut or pad all clips alike")
        found += cue("louder", self.levels, self.prompts, "audio.normalise: peak makes the peaks alike")
        return found
