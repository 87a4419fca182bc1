"""A tiny Tango, written once; clips of tones; rows of clips."""

import io
import json
import math

import numpy as np
import pytest
import soundfile
import torch
import yaml

from mmalign.audio.families.tango import FAMILY
from mmalign.batch import Candidate, PreferenceRow, RowKeys
from mmalign.testing.tiny_audio import DURATION, write_tiny_tango
from mmalign.train.audio_sections import AudioConfig
from mmalign.train.sections import ModelConfig


def tone(frequency: float, seconds: float, *, rate: int = 16_000, amplitude: float = 0.4) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * math.pi * frequency * time)).astype(np.float32)


def encoded(*channels: np.ndarray, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack(channels, axis=1), rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def clip():
    """Encoded tones: `clip(440, 0.5)`."""

    def make(frequency: float, seconds: float = 0.5, *, rate: int = 16_000, amplitude: float = 0.4) -> bytes:
        return encoded(tone(frequency, seconds, rate=rate, amplitude=amplitude), rate=rate)

    return make


@pytest.fixture(scope="session")
def pair(clip):
    """A row of two clips."""

    def make(prompt: str = "a low tone", *frequencies: float, **settings: object) -> PreferenceRow:
        candidates = tuple(Candidate(audio=clip(value)) for value in frequencies or (330.0, 990.0))
        return PreferenceRow(prompt=prompt, candidates=candidates, source="test:0", **settings)

    return make


@pytest.fixture(scope="session")
def tango_folder(tmp_path_factory):
    return write_tiny_tango(tmp_path_factory.mktemp("tango") / "official")


@pytest.fixture(scope="session")
def load_tango(tango_folder):
    """A tiny Tango with settings of its `model` and `audio` sections."""

    def load(source=None, *, model=None, dtype=torch.float32, network_dtype=None, **audio):
        settings = ModelConfig(family="tango", source=str(source or tango_folder), **(model or {}))
        section = AudioConfig(**{"duration": DURATION, **audio})
        return FAMILY.load(settings, section, device="cpu", dtype=dtype, network_dtype=network_dtype)

    return load


@pytest.fixture(scope="session")
def tango(load_tango):
    """A tiny Tango; tests that change it load their own."""
    return load_tango()


@pytest.fixture
def keys():
    def make(*numbers: int) -> RowKeys:
        return RowKeys(torch.tensor(numbers), torch.zeros(len(numbers)), len(numbers))

    return make


def _records(kind: str, number: int) -> dict[str, object]:
    row: dict[str, object] = {"prompt": f"a hum {'low ' * (number % 3)}{number}"}
    if kind == "prompts":
        return row
    if kind == "unpaired":
        return {**row, "audio": f"{number}.wav", "label": number % 2}
    row |= {"chosen": f"{number}.wav", "rejected": f"{number}r.wav"}
    if kind == "segments":
        first = {"start": 0.0, "end": 0.32, "preference": "chosen"}
        row["segments"] = [first, {"start": 0.32, "chosen": 0.1, "rejected": number % 3}]
    return row


@pytest.fixture(scope="session")
def sound_rows(clip, tmp_path_factory):
    """`sound_rows("pairs")`: seven rows of half a second: pairs, unpaired, segments or prompts."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(7):
        (folder / f"{number}.wav").write_bytes(clip(300 + 40 * number))
        (folder / f"{number}r.wav").write_bytes(clip(900 + 50 * number))

    def rows(kind: str = "pairs"):
        path = folder / f"{kind}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps(_records(kind, number)) + "\n" for number in range(7)))
        return path

    return rows


@pytest.fixture
def write_run(tango_folder, sound_rows, tmp_path):
    """`write_run(name, train={...}, ...)`: a YAML file of a short run of the tiny Tango."""

    def write(name: str = "run", *, kind: str = "pairs", **sections: object):
        content: dict[str, object] = {
            "method": "tango2_dpo",
            "model": {"family": "tango", "source": str(tango_folder)},
            "data": {"source": str(sound_rows(kind))},
            **sections,
        }
        content["audio"] = {"duration": DURATION, **sections.get("audio", {})}
        content["log"] = {"every": 1, "trackers": [], **sections.get("log", {})}
        train = {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "num_workers": 0, "device": "cpu"}
        content["train"] = {"output": str(tmp_path / name), **train, **sections.get("train", {})}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write
