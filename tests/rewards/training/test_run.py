"""From a file of pairs to a reward that scores, drives a suite, and says what it is."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from mmalign import rewards
from mmalign.cli.main import main
from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import CheckpointError, ConfigError, UnknownNameError
from mmalign.evals.statistics import wilson_interval
from mmalign.files import load_tensors, read_json_lines
from mmalign.rewards.sample import Sample
from mmalign.rewards.training import load_reward_run, train_reward
from mmalign.rewards.training.backbones import make_backbone
from mmalign.rewards.training.feature_store import FeatureStore
from mmalign.rewards.training.loop import judge, measures_of
from mmalign.rewards.training.pairs import part_of, read_pairs, split
from mmalign.toy.images import preference_pairs


@pytest.fixture(scope="module")
def write_config(toy_file):
    """`write_config(folder, **sections)`: a YAML file of a run on the toy pairs, and its path."""

    def write(folder, method="reward_bradley_terry", **sections):
        train = {"output": str(folder / "run"), "epochs": 8, "batch_size": 64, "device": "cpu"}
        content = {
            "method": method,
            "backbone": {"kind": "pixels", "cache": str(toy_file.parent / "features")},
            "data": {"source": str(toy_file)},
            "head": {"width": 64},
            "validation": {"validation_share": 0.2, "test_share": 0.2},
            **sections,
            "train": {**train, **sections.get("train", {})},
        }
        path = folder / "reward.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def run(write_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bradley_terry")
    return train_reward(load_reward_run(write_config(folder))[0])


@pytest.fixture(scope="module")
def judged():
    """Pairs of pictures of other captions, with the exact reward of each."""
    return preference_pairs(60, seed=99)


@pytest.mark.slow
def test_a_trained_reward_recovers_the_order_of_the_exact_one(run, judged):
    assert run.measures.calibration_error < 0.15
    assert wilson_interval(run.measures.right, run.measures.pairs).low > 0.7
    reward = rewards.load("trained", weights=run.folder)
    chosen, rejected = (
        reward.score([Sample(prompt=pair.prompt, image=getattr(pair, side)) for pair in judged]).first()
        for side in ("chosen", "rejected")
    )
    exact = torch.tensor([pair.chosen_score.total - pair.rejected_score.total for pair in judged])
    right = int(((chosen - rejected) * exact > 0).sum())
    assert wilson_interval(right, len(judged)).low > 0.6


def test_the_folder_says_what_was_trained_and_how_good_it_is(run):
    content = json.loads((run.folder / "reward.json").read_text())
    assert content["method"] == "reward_bradley_terry"
    assert content["measures"]["test"]["accuracy"] == run.measures.accuracy
    assert content["measures"]["test_uncalibrated"]["temperature"] == 1.0
    assert content["training"]["pairs"]["test"] == run.measures.pairs
    assert sum(content["training"]["pairs"].values()) == 500
    card = rewards.load("trained", weights=run.folder).card
    assert (card.name, card.outputs) == ("trained[reward_bradley_terry]", ("score",))


def test_the_reward_s_measures_are_those_of_the_parts_that_its_folder_names(run, toy_file):
    """Read anew: the head on the test pairs, calibrated on the validation pairs and never on others."""
    table = read_pairs(
        open_rows(DataConfig(source=str(toy_file)), kind="pairs"), FeatureStore(make_backbone("pixels"))
    )
    places = split(table, seed=0, validation_share=0.2, test_share=0.2)
    parts = {name: table.pairs.at(chosen) for name, chosen in places.items()}
    calibrated, raw = measures_of(run.head, validation=parts["validation"], test=parts["test"])
    assert (run.measures, run.uncalibrated) == (calibrated, raw)
    assert judge(run.head, parts["validation"]) == (run.progress.best_nll, calibrated.temperature)
    assert judge(run.head, parts["train"])[1] != pytest.approx(calibrated.temperature, rel=0.05)
    saved = json.loads((run.folder / "reward.json").read_text())
    assert saved["temperature"] == calibrated.temperature != 1.0


def test_features_are_standardised_by_those_of_the_training_pairs(run, toy_file):
    table = read_pairs(
        open_rows(DataConfig(source=str(toy_file)), kind="pairs"), FeatureStore(make_backbone("pixels"))
    )
    train = table.pairs.at(split(table, seed=0, validation_share=0.2, test_share=0.2)["train"])
    state = load_tensors(run.folder / "reward.safetensors")
    rows = {"item": torch.cat([train.first, train.second]).unique(), "prompt": train.prompt.unique()}
    for name, every in (("item", train.items), ("prompt", train.prompts)):
        used = every[rows[name]]
        assert len(used) < len(every)
        torch.testing.assert_close(state[f"{name}_mean"], used.mean(dim=0))
        spread = used.std(dim=0, correction=0)
        varied = spread > 1e-3
        assert varied.any()
        torch.testing.assert_close(state[f"{name}_spread"][varied], spread[varied], rtol=1e-3, atol=1e-5)


def test_features_of_a_second_run_come_from_the_cache(run, write_config, tmp_path):
    said = []
    train_reward(
        load_reward_run(write_config(tmp_path, train={"steps": 2, "epochs": None}))[0], say=said.append
    )
    assert any("0 embedded" in line for line in said)


def test_mmalign_train_runs_it_says_what_it_would_do_and_goes_on_where_it_stopped(
    write_config, tmp_path, capsys
):
    path = write_config(tmp_path)
    assert main(["train", str(path), "--dry-run", "train.epochs=2"]) == 0
    shown = capsys.readouterr().out
    assert "-p log sigmoid(r_1 - r_2 - margin)" in shown
    assert "epochs: 2" in shown
    assert main(["config", "show", str(path), "train.epochs=2"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["learning_rate"] == 1e-3
    assert not (tmp_path / "run").exists()
    config, _ = load_reward_run(path, ["train.epochs=2"])
    stopped = train_reward(config, stop=lambda step: True)
    assert stopped.measures is None
    with pytest.raises(CheckpointError, match=r"\[no trained reward\].*run its config again"):
        rewards.load("trained", weights=tmp_path / "run")
    assert main(["train", str(path), "train.epochs=2"]) == 0
    assert "calibration error" in capsys.readouterr().out
    resumed = (tmp_path / "run" / "reward.safetensors").read_bytes()
    assert main(["train", str(path), "train.epochs=2", f"train.output={tmp_path / 'whole'}"]) == 0
    assert (tmp_path / "whole" / "reward.safetensors").read_bytes() == resumed


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(write_config, tmp_path):
    config, _ = load_reward_run(write_config(tmp_path), ["train.device=cuda:99"])
    with pytest.raises(ConfigError, match=r"got '?cuda:99'?, expected cuda, cuda:1, cpu or mps, and present"):
        train_reward(config)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_labels_have_changed_is_not_continued(write_config, toy_file, tmp_path):
    """Some wins become ties: the same pictures in the same order, other probabilities."""
    from pyarrow import Table, parquet

    data = {**with_columns(toy_file, tmp_path), "tie_policy": "soft"}
    short = {"steps": 2, "epochs": None, "evaluate_every": 1}
    config, _ = load_reward_run(write_config(tmp_path, data=data, train=short))
    train_reward(config, stop=lambda step: True)
    rows = parquet.read_table(data["source"]).to_pylist()
    assert any(row["label_0"] == 1.0 for row in rows)
    for row in rows:
        if row["label_0"] == 1.0:
            row["label_0"] = row["label_1"] = 0.5
    parquet.write_table(Table.from_pylist(rows), data["source"])
    with pytest.raises(CheckpointError, match="a run with other settings, data or features"):
        train_reward(config)


def test_the_pairs_of_a_prompt_weigh_one_together_where_the_config_says_so(write_config, toy_file, tmp_path):
    from pyarrow import Table, parquet

    data = with_columns(toy_file, tmp_path)
    rows = parquet.read_table(data["source"]).to_pylist()
    for row in rows[:60]:
        row["caption"] = rows[0]["caption"]
    parquet.write_table(Table.from_pylist(rows), data["source"])
    losses = []
    for per_prompt in (False, True):
        folder = tmp_path / str(per_prompt)
        folder.mkdir()
        settings = {"loss": {"per_prompt": per_prompt}, "train": {"steps": 1, "epochs": None}}
        train_reward(load_reward_run(write_config(folder, data=data, **settings))[0])
        (record,) = read_json_lines(folder / "run" / "metrics.jsonl")
        losses.append(record["loss"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_a_trained_reward_drives_a_suite(run, tmp_path, monkeypatch):
    from contextlib import contextmanager

    from mmalign.evals import generation, harness
    from mmalign.evals.suite import ModelSpec, read_suite

    pairs = {pair.prompt: pair for pair in preference_pairs(8, seed=5, weights=(1.0, 0.0, 0.0))}

    @contextmanager
    def painter(spec, settings, device):
        side = "chosen" if spec.name == "tuned" else "rejected"
        yield generation.Painter(
            lambda jobs: [getattr(pairs[job.item.prompt], side) for job in jobs],
            generation.recipe_of(settings, num_steps=3, guidance_scale=1.0),
        )

    monkeypatch.setattr(generation, "_painter", painter)
    (tmp_path / "prompts.txt").write_text("\n".join(pairs))
    (tmp_path / "suite.yaml").write_text(
        "name: mine\nprompts: prompts.txt\ngeneration: {seed: 0}\nstatistics: {resamples: 100}\n"
        f"rewards:\n  - {{name: trained, weights: '{run.folder}', title: mine}}\n"
    )
    specs = [ModelSpec(name=name, source=f"hub/{name}") for name in ("base", "tuned")]
    record = harness.run_suite(
        read_suite(tmp_path / "suite.yaml"),
        specs,
        output=tmp_path / "out",
        cache=tmp_path / "store",
        folder=tmp_path,
        device="cpu",
    )
    (comparison,) = record["comparisons"]
    assert comparison["win_rates"]["mine"]["rate"]["value"] == 1.0, "a frame is what was preferred"
    assert record["rewards"][0]["name"] == "trained"


# ------------------------------------------------------------------------------------------- other methods


def with_columns(toy_file, folder, **columns):
    """The toy pairs with further columns, functions of the row's number."""
    from pyarrow import Table, parquet

    rows = parquet.read_table(toy_file).to_pylist()[:120]
    for number, row in enumerate(rows):
        row |= {name: make(number) for name, make in columns.items()}
    parquet.write_table(Table.from_pylist(rows), folder / "more.parquet")
    return {"source": str(folder / "more.parquet")}


def test_pal_and_contexts_read_their_columns_and_answer_by_them(write_config, toy_file, tmp_path, judged):
    data = with_columns(
        toy_file,
        tmp_path,
        who=lambda n: f"user {n % 3}",
        why=lambda n: ("for a poster", "")[n % 7 == 0] or "plain",
    )
    sample = Sample(prompt=judged[0].prompt, image=judged[0].chosen)
    short = {"steps": 3, "epochs": None, "learning_rate": 1e-2}
    pal = write_config(
        tmp_path,
        "reward_pal",
        data=data,
        columns={"user": "who"},
        head={"form": "a", "width": 16},
        backbone={"kind": "pixels", "size": 2, "colours": 2, "words": 20},
        train=short,
    )
    reward = rewards.load("trained", weights=train_reward(load_reward_run(pal)[0]).folder)
    assert reward.card.needs == ("user",)
    users = [replace(sample, extras={"user": f"user {n}"}) for n in (0, 1)]
    found = reward.score([*users, replace(sample, extras={"mixture": [0.5, 0.5]}), sample])
    assert len(set(found.first()[:3].tolist())) == 3
    assert 'expected "user" or "mixture"' in found.errors[3]
    assert (
        "unknown user of this head 'nobody'"
        in reward.score([replace(sample, extras={"user": "nobody"})]).errors[0]
    )
    for mixture in ([0.5, 0.6], [1.5, -0.5], [0.2, 0.3, 0.5]):
        (said,) = reward.score([replace(sample, extras={"mixture": mixture})]).errors
        assert "expected 2 numbers that sum to 1" in said
    fixed = rewards.load("trained", weights=reward_folder(pal), user="user 1")
    assert fixed.score([sample]).first()[0] == found.first()[1]
    assert fixed.fingerprint() != reward.fingerprint()

    (tmp_path / "context").mkdir()
    aware = write_config(
        tmp_path / "context", "reward_context", data=data, columns={"context": "why"}, train=short
    )
    reward = rewards.load("trained", weights=train_reward(load_reward_run(aware)[0]).folder)
    contexts = [replace(sample, extras={"context": text}) for text in ("for a poster", "plain")]
    found = reward.score([*contexts, sample])
    assert found.first()[0] != found.first()[1]
    assert 'expected "context", a text' in found.errors[2]
    with pytest.raises(ConfigError, match=r"got \[a user or a mixture\], expected none"):
        rewards.load("trained", weights=reward_folder(aware), user="ada")


def reward_folder(path):
    return yaml.safe_load(path.read_text())["train"]["output"]


def test_more_takes_sources_as_tasks_and_pearl_has_a_deviation(write_config, toy_file, tmp_path, judged):
    data = with_columns(toy_file, tmp_path)
    short = {"steps": 3, "epochs": None}
    both = {"sources": [{"path": str(toy_file), "limit": 90}, {"path": data["source"]}]}
    run = train_reward(load_reward_run(write_config(tmp_path, "reward_more", data=both, train=short))[0])
    content = json.loads((run.folder / "reward.json").read_text())
    assert content["training"]["tasks"] == sorted([str(toy_file), data["source"]])

    (tmp_path / "pearl").mkdir()
    pearl = train_reward(load_reward_run(write_config(tmp_path / "pearl", "reward_pearl", train=short))[0])
    reward = rewards.load("trained", weights=pearl.folder)
    found = reward.score([Sample(prompt=pair.prompt, image=pair.chosen) for pair in judged[:3]])
    assert found.outputs == ("score", "deviation")
    assert bool((found.values[:, 1] > 0).all())


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("sections", "overrides", "said"),
    [
        ({"hed": {}}, [], r"hed: unknown key\. Did you mean 'head'"),
        ({}, ["train.learning_rat=1"], r"train\.learning_rat: unknown key\. Did you mean 'learning_rate'"),
        ({}, ["train.epochs=-1"], r"train\.epochs: Input should be greater than 0 \(got -1\)"),
        ({}, ["method=reward_pal"], r"reward_pal reads .*set columns\.user to a column"),
        ({}, ["columns.context=why"], r"columns\.context is read by reward_context alone"),
        ({}, ["train.steps=3"], r"set epochs or steps, not both"),
        ({}, ["validation.test_share=0.9"], "leave nothing to train on"),
        ({}, ["train"], r"command line: got 'train', expected section\.key=value"),
    ],
)
def test_mistakes_in_a_config_are_named(write_config, tmp_path, sections, overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_reward_run(write_config(tmp_path, **sections), overrides)


def test_a_method_that_trains_no_reward_is_refused_and_bases_are_followed(write_config, tmp_path):
    base = write_config(tmp_path)
    child = tmp_path / "child.yaml"
    child.write_text("extends: reward.yaml\ntrain: {epochs: 3}\n")
    config, row = load_reward_run(child)
    assert (config.train.epochs, config.train.batch_size, row.name) == (3, 64, "reward_bradley_terry")
    assert config.train.learning_rate == row.defaults["*"]["learning_rate"].value
    with pytest.raises(UnknownNameError, match="unknown reward method 'dpo'"):
        load_reward_run(base, ["method=dpo"])
    child.write_text("extends: child.yaml\n")
    with pytest.raises(ConfigError, match="goes round in a circle"):
        load_reward_run(child)


def test_a_missing_column_is_named(write_config, tmp_path):
    path = write_config(tmp_path, "reward_pal", columns={"user": "nobody_s"}, head={"form": "a"})
    with pytest.raises(
        ConfigError, match=r"500 missing_user.*nobody_s: got None, expected the user of the row"
    ):
        train_reward(load_reward_run(path)[0])


def test_weights_of_another_run_and_another_backbone_are_refused(run, tmp_path):
    import shutil

    copy = shutil.copytree(run.folder, tmp_path / "copy")
    description = copy / "reward.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps({**content, "sha256": "0" * 64}))
    with pytest.raises(
        CheckpointError, match=r"reward\.safetensors: got .*Copy both files from the same run"
    ):
        rewards.load("trained", weights=copy)
    description.write_text(json.dumps({**content, "backbone": {**content["backbone"], "size": 5}}))
    with pytest.raises(CheckpointError, match=r"other features: size differ.*the head was trained on"):
        rewards.load("trained", weights=copy)
    description.write_text(json.dumps({**content, "head": {"kind": "preference", "settings": {"depth": 1}}}))
    with pytest.raises(CheckpointError, match=r"reward\.json head: got \[depth\]"):
        rewards.load("trained", weights=copy)
    description.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(CheckpointError, match="expected a description of format 1"):
        rewards.load("trained", weights=copy)
    with pytest.raises(ConfigError, match=r"reward trained: got \[no weights\].*mmalign train CONFIG"):
        rewards.load("trained")


def test_prompts_are_split_by_their_text_alone_and_in_the_asked_shares():
    names = [part_of(f"prompt {n}", seed=1, validation_share=0.2, test_share=0.1) for n in range(2000)]
    assert 340 < names.count("validation") < 460
    assert 150 < names.count("test") < 250
    again = part_of("prompt 7", seed=1, validation_share=0.2, test_share=0.1)
    assert again == names[7]
    other = [part_of(f"prompt {n}", seed=2, validation_share=0.2, test_share=0.1) for n in range(2000)]
    assert other != names, "the seed draws another split"
