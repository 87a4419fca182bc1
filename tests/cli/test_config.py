"""`mmalign config`: every setting is listed, and a resolved config can be run as it stands."""

import json
from pathlib import Path

import pytest
import yaml

from mmalign import registry
from mmalign.cli.config import settings
from mmalign.cli.main import main
from mmalign.diffusion.step_aware_config import StepAwareRunConfig
from mmalign.methods.rewards import REWARD_ROWS, STEP_AWARE
from mmalign.rewards.training.config import RewardRunConfig
from mmalign.train.config import RUN_SECTIONS, RunConfig, load_run

RUN = """\
method: diffusion_dpo
model: {family: sdxl, source: some/folder}
image: {resolution: 512}
data: {source: pairs.parquet}
train: {output: runs/a, steps: 7}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN, encoding="utf-8")
    return path


def test_every_setting_is_listed_with_type_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {name: (kind, default) for name, kind, default, _ in settings()}
    assert listed["train.steps"] == ("integer >= 1 | null", "null")
    assert listed["model.family"] == ("string", "required")
    assert listed["image.micro_conditioning"] == ('"constant" | "true"', '"constant"')
    sections = {name.partition(".")[0] for name in listed}
    assert sections == set(RunConfig.model_fields)
    assert main(["config", "schema"]) == 0
    assert "model.family" in capsys.readouterr().out


def test_the_settings_of_a_reward_s_training_are_listed_apart(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {name: (kind, default) for name, kind, default, _ in settings(RewardRunConfig)}
    assert listed["validation.test_share"] == ("number > 0, < 1", "0.1")
    assert listed["backbone.kind"] == ('"clip" | "blip" | "chat" | "pixels"', "required")
    assert {name.partition(".")[0] for name in listed} == set(RewardRunConfig.model_fields)
    assert main(["config", "schema"]) == 0
    policies, _, rewards = capsys.readouterr().out.partition("Training a reward: method reward_bradley_terry")
    assert "model.family" in policies
    assert "validation.test_share" not in policies
    heads, _, step_aware = rewards.partition("Training a step-aware preference model")
    assert "validation.test_share" in heads
    assert "model.family" not in heads
    assert "validation.timesteps" in step_aware
    assert "validation.timesteps" not in heads


def test_the_json_schema_has_all_kinds_of_runs_and_the_method_chooses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["config", "schema", "--json"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["if"] == {"properties": {"method": {"enum": list(REWARD_ROWS)}}, "required": ["method"]}
    otherwise = schema["else"]
    assert otherwise["if"] == {"properties": {"method": {"enum": [STEP_AWARE]}}, "required": ["method"]}
    branches = [(schema["then"], RewardRunConfig), (otherwise["then"], StepAwareRunConfig)]
    branch, seen = otherwise["else"], set()
    while "if" in branch:
        families = branch["if"]["properties"]["model"]["properties"]["family"]["enum"]
        (modality,) = {registry.modality(family) for family in families}
        seen.update(families)
        branches.append((branch["then"], RUN_SECTIONS[modality]))
        branch = branch["else"]
    branches.append((branch, RunConfig))
    assert len(branches) == 3 + len(RUN_SECTIONS)
    assert {registry.modality(family) for family in set(registry.names("families")) - seen} == {"image"}
    for branch, model in branches:
        prefix, _, name = branch["$ref"].rpartition("/")
        assert (prefix, name) == ("#/$defs", model.__name__)
        settable = {field for field, described in model.model_fields.items() if not described.exclude}
        assert set(schema["$defs"][name]["properties"]) == {*settable, "extends"}
    train = {
        branch: schema["$defs"][schema["$defs"][name]["properties"]["train"]["$ref"].rpartition("/")[2]]
        for branch, name in (("then", "RewardRunConfig"), ("else", "RunConfig"))
    }
    assert "patience" in train["then"]["properties"]
    assert "patience" not in train["else"]["properties"], "sections of one name stay apart"


def test_what_every_kind_of_model_adds_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    out = capsys.readouterr().out
    language = out.partition("Language models: these, and no image")[2].partition("Models of sound")[0]
    sound = out.partition("Models of sound: these, and no image")[2].partition("Training a reward")[0]
    assert "tokens.corruption.kind" in language
    assert "audio.mix_augmentation" in sound
    assert "audio.mix_augmentation" not in language
    assert "train.learning_rate" not in sound
    assert "image.resolution" not in sound


def test_a_resolved_config_resolves_to_itself(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show", str(run_file), "train.learning_rate=3e-5"]) == 0
    shown = capsys.readouterr().out
    assert "# differs from the row: train.steps = 7, row: 2000 (code)" in shown
    assert "# from the row: objective.beta = 5000 (paper" in shown
    again = tmp_path / "again.yaml"
    again.write_text(shown, encoding="utf-8")
    first, second = load_run(run_file, ["train.learning_rate=3e-5"]), load_run(again)
    assert second.objective_arguments == first.objective_arguments
    assert second.config.model_dump(exclude={"objective"}) == first.config.model_dump(exclude={"objective"})
    assert yaml.safe_load(shown)["train"]["learning_rate"] == 3e-5


def test_a_wrong_key_is_a_message_with_its_line(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file.write_text(RUN + "likelihoods: {}\n", encoding="utf-8")
    assert main(["config", "show", str(run_file)]) == 2
    assert "run.yaml:6:1: likelihoods: unknown key. Did you mean 'likelihood'?" in capsys.readouterr().err
