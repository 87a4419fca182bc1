"""Reading a run configuration: where a mistake stands, what was meant, what the method's row fills in."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mmalign.errors import ConfigError, UnknownNameError
from mmalign.train.config import ResolvedRun, load_run
from mmalign.train.parts import reference_kind

COMPLETE = """\
method: diffusion_dpo
model:
  family: sd15
  source: somewhere
image: {resolution: 512}
data: {source: pairs.parquet}
train:
  output: out
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[..., Path]:
    """`config_file(text, name)`: a YAML file with that text."""

    def write(text: str = COMPLETE, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_an_unknown_key_is_named_with_file_line_column_and_nearest_key(config_file) -> None:
    path = config_file(COMPLETE + "  learning_rat: 1.0e-5\n")
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert str(caught.value) == (
        f"{path}:9:3: train.learning_rat: unknown key. Did you mean 'learning_rate'?"
    )


def test_an_unknown_key_without_a_near_one_lists_the_known_ones(config_file) -> None:
    path = config_file(COMPLETE + "adapter: {zzzz: 1}\n")
    with pytest.raises(ConfigError, match=r"adapter\.zzzz: unknown key\. Known keys: kind, rank, alpha"):
        load_run(path)


def test_every_mistake_is_reported_at_once(config_file) -> None:
    path = config_file("method: diffusion_dpo\nmodel: {family: sd15}\nimage: {resolution: 4, crop: left}\n")
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    lines = str(caught.value).splitlines()
    assert f"{path}:2:1: model.source: missing; it has no default." in lines
    assert any(line.startswith(f"{path}:3:9: image.resolution: ") and "(got 4)" in line for line in lines)
    assert any(line.startswith(f"{path}:3:24: image.crop: ") and "(got 'left')" in line for line in lines)
    assert any("train: missing" in line for line in lines)
    assert any("data: missing" in line for line in lines)
    assert len(lines) == 5


def test_a_key_that_appears_twice_is_refused(config_file) -> None:
    path = config_file(COMPLETE + "  seed: 1\n  seed: 2\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}:10: key 'train.seed' appears twice")):
        load_run(path)


def test_text_that_is_not_yaml_is_an_error_with_the_file(config_file) -> None:
    path = config_file("method: [diffusion_dpo\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: not valid YAML")):
        load_run(path)


def test_a_file_that_is_no_mapping_is_refused(config_file) -> None:
    with pytest.raises(ConfigError, match="got 'list', expected a mapping of sections"):
        load_run(config_file("- method\n"))


def test_a_missing_file_points_to_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read .*`mmalign recipes` lists"):
        load_run(tmp_path / "none.yaml")


def test_a_file_extends_another_and_wins_over_it(config_file) -> None:
    config_file(COMPLETE + "  seed: 3\n  batch_size: 5\n", "base.yaml")
    run = load_run(config_file("extends: base.yaml\ntrain: {seed: 7}\n"))
    assert (run.config.train.seed, run.config.train.batch_size) == (7, 5)
    assert run.config.train.output == "out"


def test_a_mistake_in_the_extended_file_is_found_in_that_file(config_file) -> None:
    base = config_file(COMPLETE + "  sed: 3\n", "base.yaml")
    with pytest.raises(ConfigError, match=re.escape(f"{base}:9:3: train.sed: unknown key")):
        load_run(config_file("extends: base.yaml\nlog: {every: 2}\n"))


def test_files_that_extend_each_other_in_a_circle_are_refused(config_file) -> None:
    config_file("extends: run.yaml\n", "base.yaml")
    with pytest.raises(ConfigError, match=r"`extends` goes round in a circle: .*run\.yaml -> .*base\.yaml"):
        load_run(config_file("extends: base.yaml\n"))


def test_an_override_wins_over_the_file_and_is_read_as_yaml(config_file) -> None:
    path = config_file(COMPLETE + "  seed: 3\n")
    run = load_run(path, ["train.seed=11", "samples.prompts=[a cat, a dog]", "--train.max_grad_norm=null"])
    assert run.config.train.seed == 11
    assert run.config.samples.prompts == ("a cat", "a dog")
    assert run.config.train.max_grad_norm is None


@pytest.mark.parametrize("override", ["train.seed", "=5"])
def test_an_override_without_key_or_value_is_refused(config_file, override: str) -> None:
    with pytest.raises(ConfigError, match=f"command line: got '{override}', expected section.key=value"):
        load_run(config_file(), [override])


def test_an_override_that_is_not_yaml_is_refused(config_file) -> None:
    with pytest.raises(ConfigError, match=r"command line 'train.seed=.*': the value is not valid YAML"):
        load_run(config_file(), ["train.seed=[1"])


def test_a_mistake_in_an_override_is_blamed_on_the_command_line(config_file) -> None:
    with pytest.raises(ConfigError, match=r"^command line: train\.sed: unknown key\. Did you mean 'seed'"):
        load_run(config_file(), ["train.sed=3"])


def test_an_override_of_a_section_that_is_no_mapping_is_refused(config_file) -> None:
    with pytest.raises(ConfigError, match="log: Input should be"):
        load_run(config_file(), ["log=5"])


def test_an_unknown_method_names_near_ones(config_file) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown method 'diffusion_dop'.*mean .*diffusion_dpo"):
        load_run(config_file(), ["method=diffusion_dop"])


def test_an_argument_that_the_objective_lacks_is_refused_with_those_it_has(config_file) -> None:
    with pytest.raises(UnknownNameError, match=r"argument of objective 'dpo'.*'betta'.*Did you mean beta"):
        load_run(config_file(), ["objective.betta=3"])


def test_1e_5_is_a_number_wherever_a_number_is_meant(config_file) -> None:
    # YAML 1.1 reads 1e-5 as text.
    run = load_run(config_file(), ["train.learning_rate=1e-5", "objective.beta=2e3"])
    assert run.config.train.learning_rate == 1e-5
    assert run.objective_arguments["beta"] == 2000.0


def test_the_methods_row_fills_what_the_file_leaves_open_and_says_so(config_file) -> None:
    run = load_run(config_file())
    train = run.config.train
    assert (train.steps, train.learning_rate, train.optimizer, train.warmup_steps) == (
        2000,
        2.048e-5,
        "adamw",
        500,
    )
    assert run.objective_arguments == {"beta": 2000}
    assert {name: item.mark for name, item in run.filled.items()} == {
        "objective.beta": "paper",
        "train.steps": "code",
        "train.learning_rate": "code",
        "train.optimizer": "code",
        "train.warmup_steps": "code",
        "train.weight_decay": "code",
        "train.max_grad_norm": "code",
        "adapter.rank": "code",
    }


def test_the_row_of_another_family_fills_other_values(config_file) -> None:
    run = load_run(config_file(), ["model.family=sdxl"])
    assert run.objective_arguments == {"beta": 5000}
    assert (run.config.train.optimizer, run.config.train.warmup_steps) == ("adafactor", 200)


def test_what_the_file_sets_is_not_filled_and_differences_are_listed(config_file) -> None:
    run = load_run(
        config_file(), ["objective.beta=100", "train.learning_rate=1e-4", "image.prompt_dropout=0.2"]
    )
    assert "objective.beta" not in run.filled
    assert "train.learning_rate" not in run.filled
    found = {item.setting: (item.value, item.row_value, item.mark) for item in run.differences}
    assert found["objective.beta"] == (100, 2000, "paper")
    assert found["train.learning_rate"] == (1e-4, 2.048e-5, "code")
    assert found["effective batch on one device"] == (1, 2048, "code")
    assert "image.prompt_dropout" not in found
    assert "image.resolution" not in found


def test_settings_without_a_row_value_must_be_given(config_file) -> None:
    with pytest.raises(ConfigError, match=r"train\.steps: missing, and method 'dpo' has no default"):
        load_run(config_file(), ["method=dpo"])


def test_switching_adapters_off_needs_adapters(config_file) -> None:
    with pytest.raises(ConfigError, match=r"reference.kind adapters_off needs adapter.kind lora"):
        load_run(config_file(), ["reference.kind=adapters_off", "adapter.kind=none"])


@pytest.mark.parametrize("kind", ["stored", "ema", "synced"])
def test_dropout_does_not_go_with_references_it_would_blur(config_file, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"reference.kind {kind} needs adapter.dropout 0"):
        load_run(config_file(), [f"reference.kind={kind}", "adapter.dropout=0.1"])


@pytest.mark.parametrize("setting", ["sync_every=2", "mixing=0.5"])
@pytest.mark.parametrize("kind", ["stored", "adapters_off", "frozen", "auto"])
def test_a_reference_that_is_not_synced_takes_no_settings_of_one(config_file, kind, setting) -> None:
    name = setting.partition("=")[0]
    expected = (
        rf"reference\.{name}: got .*, expected no value: the reference {kind} does not follow.*kind=synced"
    )
    with pytest.raises(ConfigError, match=expected):
        load_run(config_file(), [f"reference.kind={kind}", f"reference.{setting}"])


def test_a_synced_reference_has_its_settings_from_file_or_default(config_file) -> None:
    reference = load_run(config_file(), ["reference.kind=synced", "reference.sync_every=7"]).config.reference
    assert (reference.kind, reference.sync_every, reference.mixing) == ("synced", 7, 0.6)


def test_a_method_whose_reference_moves_brings_it_along(config_file) -> None:
    overrides = ["method=tr_dpo", "objective.beta=2000", "train.steps=5", "train.learning_rate=1e-5"]
    run = load_run(config_file(), overrides)
    assert reference_kind(run) == "synced"
    assert (run.config.reference.sync_every, run.config.reference.mixing) == (512, 0.6)
    assert run.filled["reference.sync_every"].mark == "code"
    other = load_run(config_file(), [*overrides, "reference.mixing=1"])
    assert [(item.setting, item.value, item.row_value) for item in other.differences] == [
        ("reference.mixing", 1.0, 0.6)
    ]
    with pytest.raises(ConfigError, match=r"synced reference of method tr_dpo needs adapter\.dropout 0"):
        load_run(config_file(), [*overrides, "adapter.dropout=0.1"])


@pytest.mark.parametrize(
    ("method", "function"), [("nash_md", "nash_md_loss"), ("accelerated_po", "extrapolate")]
)
def test_a_method_that_needs_more_than_a_run_does_is_refused(config_file, method, function) -> None:
    with pytest.raises(
        ConfigError, match=rf"method: got '{method}'.*needs mmalign\..*\.{function}: call it in"
    ):
        load_run(config_file(), [f"method={method}"])


def test_listed_timesteps_need_a_list(config_file) -> None:
    with pytest.raises(ConfigError, match=r"likelihood.timesteps listed needs likelihood.values"):
        load_run(config_file(), ["likelihood.timesteps=listed"])


def test_a_method_with_a_reference_refuses_none(config_file) -> None:
    run = load_run(config_file(), ["reference.kind=none"])
    with pytest.raises(ConfigError, match=r"reference.kind: got 'none', expected a reference: method "):
        reference_kind(run)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], "adapters_off"),
        (["adapter.kind=none"], "frozen"),
        (["reference.kind=ema"], "ema"),
        (["method=mapo"], "none"),
        (["method=linear_dpo"], "ema"),
    ],
)
def test_the_reference_that_fits_is_chosen(config_file, overrides: list[str], kind: str) -> None:
    run: ResolvedRun = load_run(config_file(), overrides)
    assert reference_kind(run) == kind


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("orpo", "odds need a probability of a finite vocabulary"),
        ("beta_dpo", "needs selected of every candidate, which these runs do not supply"),
    ],
)
def test_an_objective_that_means_nothing_here_is_refused_with_the_reason(
    config_file, method: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"method: '{method}' .*{reason}"):
        load_run(config_file(), [f"method={method}"])
