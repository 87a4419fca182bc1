"""Every recipe of the audio folder is a valid run, opens with its command, says what it costs, and runs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mmalign.rewards.functions import FunctionReward
from mmalign.rewards.on_sounds import OnSounds
from mmalign.testing import tiny_audio
from mmalign.testing.tiny_audio import DURATION
from mmalign.train.config import load_run
from mmalign.train.rollouts import is_online
from mmalign.train.run import train

CONFIGS = Path(__file__).parents[2] / "audio" / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in ("pairs", "toy"))
QUICK = ("tango/dpo_lora", "tango/dense_dpo", "tango/online_crpo", "tangoflux/crpo_lora")
DURATIONS = {"tango": DURATION, "audioldm2": DURATION}
"""Of families whose tiny models take any; the windows of the others are their own."""


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


each_recipe = pytest.mark.parametrize("path", RECIPES, ids=named)


@each_recipe
def test_a_recipe_is_a_valid_run_that_explains_itself(path: Path) -> None:
    run = load_run(path)
    family = path.parent.name
    assert run.config.model.family == family
    assert run.config.train.output == f"runs/{family}-{path.stem}"
    text = path.read_text(encoding="utf-8")
    head = text.split("\n\n")[0]
    assert f"mmalign train audio/configs/{named(path)}.yaml" in head
    for word in ("Data", "Hardware", "Memory", "Time", "Expect", "Source"):
        assert re.search(rf"^# {word}\b", head, flags=re.MULTILINE), word
    # PyYAML reads 1e-5 as text.
    assert not re.search(r":\s*\d+e-?\d+", text)


@each_recipe
def test_what_differs_from_the_published_row_is_named_in_the_head_as_ours(path: Path) -> None:
    released = [item.setting for item in load_run(path).differences if item.mark in ("code", "paper")]
    assert not released or "ours" in path.read_text(encoding="utf-8").split("\n\n")[0], released


def test_the_whole_recipe_has_the_numbers_of_the_paper() -> None:
    run = load_run(CONFIGS / "tango" / "dpo_full.yaml")
    assert not run.differences
    assert run.objective_arguments == {"beta": 2000.0, "sft_weight": 0.0}
    train_section = run.config.train
    assert (train_section.learning_rate, train_section.epochs) == (9.6e-7, 4)
    assert train_section.batch_size * train_section.accumulation == 32
    assert (train_section.mixed_precision, run.config.adapter.kind) == ("no", "none")


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """A tiny model of a family, written once."""
    home = tmp_path_factory.mktemp("models")

    def write(family: str) -> Path:
        folder = home / family
        return folder if folder.exists() else getattr(tiny_audio, f"write_tiny_{family}")(folder)

    return write


def loudness(samples: list[Any]) -> list[float]:
    """A judge that needs no weights."""
    import io

    return [float(np.abs(soundfile.read(io.BytesIO(sample.audio))[0]).mean()) for sample in samples]


@pytest.mark.usefixtures("_fresh_accelerator")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=named(path), marks=() if named(path) in QUICK else pytest.mark.slow)
        for path in RECIPES
    ],
)
def test_a_recipe_trains_three_steps(path: Path, tiny_folder, sound_rows, tmp_path: Path) -> None:
    run = load_run(path)
    online = is_online(run)
    kinds = {"chosen": "pairs", "prompts": "prompts", "unpaired": "unpaired"}
    kind = "segments" if path.stem == "dense_dpo" else kinds.get(run.method.data, "pairs")
    settings = [
        f"model.source={tiny_folder(path.parent.name)}",
        f"audio.duration={DURATIONS.get(path.parent.name, 'null')}",
        f"data.source={sound_rows(kind)}",
        f"train.output={tmp_path / 'run'}",
        *("train.steps=3", "train.epochs=null", "train.accumulation=1", "train.batch_size=2"),
        *("train.num_workers=0", "train.device=cpu", "train.mixed_precision=no", "samples.prompts=[]"),
        *("log.every=1", "log.trackers=[]", "train.checkpoint_every=1000"),
        *(("rollout.num_steps=2", "rollout.samples=2", "rollout.prompts=2") if online else ()),
    ]
    reward = OnSounds(FunctionReward(loudness, name="loudness")) if online else None
    train(load_run(path, settings), reward=reward)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records)
