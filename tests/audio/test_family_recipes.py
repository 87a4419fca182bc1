"""The recipes of TangoFlux, AudioLDM 2, Stable Audio and ACE-Step: valid runs that explain themselves."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mmalign.testing.tiny_audio import (
    write_tiny_ace_step,
    write_tiny_audioldm2,
    write_tiny_stable_audio,
    write_tiny_tangoflux,
)
from mmalign.train.config import load_run
from mmalign.train.run import train

CONFIGS = Path(__file__).parents[2] / "audio" / "configs"
WRITERS = {
    "tangoflux": write_tiny_tangoflux,
    "audioldm2": write_tiny_audioldm2,
    "stable_audio": write_tiny_stable_audio,
    "ace_step": write_tiny_ace_step,
}
RECIPES = sorted(path for family in WRITERS for path in (CONFIGS / family).glob("*.yaml"))

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")


def test_every_family_has_one():
    assert {path.parent.name for path in RECIPES} == set(WRITERS)


@each_recipe
def test_a_recipe_is_a_valid_run_that_explains_itself(path):
    run, family = load_run(path), path.parent.name
    assert run.config.model.family == family
    assert run.config.train.output == f"runs/{family}-{path.stem}"
    text = path.read_text(encoding="utf-8")
    head = text.split("\n\n")[0]
    assert f"mmalign train audio/configs/{family}/{path.name}" in head
    for word in ("Data", "Hardware", "Memory", "Time", "Expect", "Source"):
        assert re.search(rf"^# {word}\b", head, flags=re.MULTILINE), word
    # PyYAML reads 1e-5 as text.
    assert not re.search(r":\s*\d+e-?\d+", text)
    released = [item.setting for item in run.differences if item.mark in ("code", "paper")]
    assert not released or "ours" in head, released


def test_crpo_of_tangoflux_has_the_numbers_of_the_paper():
    run = load_run(CONFIGS / "tangoflux" / "crpo.yaml")
    assert run.objective_arguments == {"beta": 2000.0, "coefficient": 1.0}
    section = run.config.train
    assert section.batch_size * section.accumulation == 48
    assert (section.epochs, section.warmup_steps, section.adam_beta2) == (8, 100, 0.95)
    assert (section.learning_rate, run.config.adapter.kind) == (1e-5, "none")
    assert run.config.likelihood.timesteps == "logit_normal"


@pytest.mark.usefixtures("_fresh_accelerator")
@each_recipe
def test_a_recipe_trains_three_steps(path, sound_rows, tmp_path):
    folder = WRITERS[path.parent.name](tmp_path / "model")
    settings = [
        f"model.source={folder}",
        f"audio.duration={'0.208' if path.parent.name == 'ace_step' else 'null'}",
        f"data.source={sound_rows('pairs')}",
        f"train.output={tmp_path / 'run'}",
        *("train.steps=3", "train.epochs=null", "train.accumulation=1", "train.batch_size=2"),
        *("train.num_workers=0", "train.device=cpu", "train.mixed_precision=no", "samples.prompts=[]"),
        *("log.every=1", "log.trackers=[]", "train.checkpoint_every=1000"),
    ]
    train(load_run(path, settings))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in records)
