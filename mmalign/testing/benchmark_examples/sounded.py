"""Benchmarks of sounds in miniature; their tools hear the amplitudes themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.data.audio_media import encode_audio
from mmalign.evals.audio.listeners import Heard, Loading
from mmalign.evals.base import Answer, Item
from mmalign.rewards.base import ModelReward, Prepared
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample
from mmalign.rewards.sounds import read_sound
from mmalign.testing.benchmark_examples.example import BenchmarkExample, write_lines

__all__ = ["SOUNDED", "AmplitudeListener", "LoudnessReward"]

_RATE = 4000
_PROMPTS = ("a dog barks", "rain", "a car passes", "wind", "a bell rings twice", "birds", "a door")


def sound(seed: int, seconds: float = 0.4) -> bytes:
    """Coloured noise of a level and colour of its own, as a WAV file."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, int(seconds * _RATE), generator=generator)
    smooth = 0.3 * float(torch.rand((), generator=generator))
    return encode_audio((0.05 + smooth) * (noise + smooth * noise.roll(1, dims=1)), _RATE, container="wav")


class AmplitudeListener:
    """Hears three moments of every quarter of a clip, and takes their mean for a verdict.

    Args:
        name: as metrics bear it.
        classify: whether it has verdicts.
    """

    def __init__(self, name: str, *, classify: bool = False) -> None:
        self.name, self._classify = name, classify
        self.heard = 0

    def provenance(self) -> Mapping[str, Any]:
        """Its name and rate."""
        return {"name": self.name, "sampling_rate": _RATE}

    def hear(self, media: Sequence[str | Path | bytes], *, loading: Loading = "clean") -> list[Heard | str]:
        """Moments of each clip; the reason where one is no sound."""
        from mmalign.errors import RowError

        del loading
        found: list[Heard | str] = []
        for one in media:
            self.heard += 1
            try:
                samples = read_sound(one, where="a sound").samples[0]
            except RowError as error:
                found.append(str(error))
                continue
            quarters = samples[: len(samples) // 4 * 4].reshape(4, -1)
            moments = torch.stack([quarters.abs().mean(1), quarters.std(1), quarters.abs().amax(1)], dim=1)
            found.append(Heard(moments, 20.0 * moments.mean(dim=0) if self._classify else None))
        return found


class LoudnessReward(ModelReward):
    """Mean amplitude plus a hundredth of the prompt's length."""

    def __init__(self) -> None:
        card = Card(name="clap[loudness]", title="how loud", modality="audio", scale="amplitude")
        super().__init__(card, device="cpu", dtype=torch.float32)

    def prepare(self, sample: Sample) -> Prepared:
        """The samples."""
        from mmalign.errors import RowError

        if sample.audio is None:
            message = "no sound"
            raise RowError(message, reason="missing_audio")
        samples = read_sound(sample.audio, where=sample.id).samples[0]
        return Prepared({"samples": samples, "words": len(sample.prompt)})

    def forward(self, batch: Sequence[Prepared]) -> Tensor:
        """One value per sample."""
        return torch.stack(
            [one.inputs["samples"].abs().mean() + 0.01 * one.inputs["words"] for one in batch]
        )[:, None]

    def settings(self) -> Mapping[str, Any]:
        """Nothing else moves it."""
        return {}


def _write(folder: Path) -> None:
    write_lines(folder / "prompts.jsonl", [{"caption": prompt} for prompt in _PROMPTS])
    references = folder / "references"
    references.mkdir()
    for number in range(len(_PROMPTS)):
        (references / f"output_{number}.wav").write_bytes(sound(number))


def _answer(item: Item, copy: int) -> Answer:
    number = int(item.id.rpartition("/")[2])
    return Answer(item, media=(sound(100 + 10 * number + copy),), copy=copy)


def _scoring(folder: Path) -> Mapping[str, Any]:
    del folder
    return {
        "vggish": AmplitudeListener("VGGish"),
        "panns": AmplitudeListener("PANNs", classify=True),
        "clap": LoudnessReward(),
        "clap_sounds": AmplitudeListener("CLAP"),
        "splits": 2,
    }


SOUNDED: Mapping[str, BenchmarkExample] = {
    "text_to_audio": BenchmarkExample(
        write=_write, answer=_answer, scoring=_scoring, total=("clips", "failed")
    )
}
