import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.errors import CheckpointError, ConfigError
from mmalign.evals import generation, harness
from mmalign.evals.generation import picture_key, pictures_table
from mmalign.evals.jobs import Job, shard_of
from mmalign.evals.scoring import scores_table
from mmalign.evals.suite import ModelSpec, read_suite

HERE = Path(__file__).parent
PROMPTS = ["a fox", "a heron", "two boats", "a pier", "a red roof", "an owl", "a kite"]


@pytest.fixture(autouse=True)
def rewards_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def painter(rewards_can_be_imported, monkeypatch):
    from fake_painter import FakePainter

    fake = FakePainter()
    monkeypatch.setattr(generation, "_painter", fake.load)
    return fake


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "mine.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "suite.yaml").write_text(
        "name: mine\nprompts: mine.txt\n"
        "generation: {seed: 3, images_per_prompt: 2, batch_size: 3}\n"
        "rewards:\n"
        '  - {name: "toy_rewards:redness", title: redness}\n'
        '  - {name: "toy_rewards:picky", title: picky}\n'
        "statistics: {resamples: 200}\n"
    )
    return read_suite(tmp_path / "suite.yaml")


def models(*names: str) -> list[ModelSpec]:
    return [ModelSpec(name=name, source=f"hub/{name}") for name in names or ("base", "tuned")]


def run(suite, tmp_path, specs=None, **options):
    return harness.run_suite(
        suite,
        specs or models(),
        output=tmp_path / "out",
        cache=tmp_path / "store",
        folder=tmp_path,
        **{"device": "cpu", **options},
    )


def test_models_are_compared_on_equal_noise_and_the_better_one_wins(suite, tmp_path, painter):
    record = run(suite, tmp_path)
    (comparison,) = record["comparisons"]
    assert (comparison["base"], comparison["model"]) == ("base", "tuned")
    # The fake training adds 30 to red and nothing else: on equal noise every pair differs by exactly that.
    gap = comparison["differences"]["redness"]["difference"]
    assert (gap["value"], gap["low"], gap["high"]) == pytest.approx((30.0, 30.0, 30.0))
    assert comparison["win_rates"]["redness"]["rate"]["value"] == 1.0
    assert comparison["win_rates"]["redness"]["num_prompts"] == len(PROMPTS)
    assert comparison["win_rates"]["picky"]["rate"]["value"] == 0.5


def test_a_sample_that_cannot_be_scored_is_counted_and_named(suite, tmp_path, painter):
    record = run(suite, tmp_path)
    picky = next(reward for reward in record["rewards"] if reward["title"] == "picky")
    assert picky["failed"] == 4  # one prompt, two pictures, two models
    assert record["scores"]["base"]["picky"]["n"] == 12
    assert any("picky could not score 4 pictures" in warning for warning in record["warnings"])
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    (heron, _) = [row for row in rows if row["prompt"] == "a heron"]
    assert heron["models"]["base"]["values"]["picky"] is None
    assert "herons cannot be judged" in heron["models"]["base"]["errors"]["picky"]


def test_nothing_is_painted_or_scored_twice(suite, tmp_path, painter):
    import toy_rewards

    first = run(suite, tmp_path)
    painted, scored = len(painter.painted), len(toy_rewards.CALLS)
    assert painted == 2 * 2 * len(PROMPTS)
    second = run(suite, tmp_path)
    assert (len(painter.painted), len(toy_rewards.CALLS)) == (painted, scored)
    assert painter.loaded == ["base", "tuned"]  # nor is a model loaded that has nothing to paint
    assert second == first


def test_another_seed_or_another_model_is_painted_anew(suite, tmp_path, painter):
    run(suite, tmp_path)
    before = len(painter.painted)
    again = suite.model_copy(update={"generation": suite.generation.model_copy(update={"seed": 4})})
    run(again, tmp_path)
    assert len(painter.painted) == 2 * before


def test_shards_without_contact_make_what_one_process_makes(suite, tmp_path, painter):
    alone = run(suite, tmp_path)
    for number in range(3):
        options = {"output": tmp_path / "parts", "cache": tmp_path / "shared", "folder": tmp_path}
        harness.run_suite(suite, models(), stages=("generate",), shard=(number, 3), device="cpu", **options)
    for number in range(3):
        harness.run_suite(suite, models(), stages=("score",), shard=(number, 3), device="cpu", **options)
    together = harness.run_suite(suite, models(), stages=("report",), device="cpu", **options)
    for part in ("scores", "comparisons", "prompts", "models", "rewards"):
        assert together[part] == alone[part], part


def test_work_is_shared_by_name_and_all_of_it_is_done():
    names = [f"set/{number:05d}/0" for number in range(1000)]
    parts = [shard_of(name, 7) for name in names]
    assert set(parts) == set(range(7))
    assert max(parts.count(part) for part in range(7)) < 2 * 1000 / 7


def test_a_report_before_its_pictures_or_scores_says_what_lacks(suite, tmp_path, painter):
    with pytest.raises(CheckpointError, match="nothing was painted with these settings yet"):
        run(suite, tmp_path, stages=("report",))
    run(suite, tmp_path, stages=("generate",))
    with pytest.raises(CheckpointError, match="56 scores are not there"):
        run(suite, tmp_path, stages=("report",))


def test_a_part_of_the_pictures_is_not_taken_for_all(suite, tmp_path, painter):
    run(suite, tmp_path, stages=("generate",), shard=(0, 3))
    assert 0 < len(pictures_table(tmp_path / "store").stored_keys()) < 2 * 2 * len(PROMPTS)
    with pytest.raises(CheckpointError, match=r"pictures of base are not there"):
        run(suite, tmp_path, stages=("score",))


def test_pictures_of_another_program_are_taken_by_number_or_name(suite, tmp_path):
    for number in range(len(PROMPTS)):
        for copy in range(2):
            name = f"{number:05d}_{copy}.png" if number else f"mine_00000_{copy}.png"
            Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(_made(tmp_path / "a" / name))
            Image.new("RGB", (16, 16), (10 * number + 5, 0, 0)).save(_made(tmp_path / "b" / name))
    specs = [ModelSpec(name=name, source=f"images:{tmp_path / name}") for name in "ab"]
    record = run(suite, tmp_path, specs)
    assert record["comparisons"][0]["differences"]["redness"]["difference"]["value"] == pytest.approx(5.0)
    assert record["scores"]["a"]["redness"]["mean"]["value"] == pytest.approx(30.0)


def test_a_missing_picture_counts_for_no_side(suite, tmp_path):
    for number in range(len(PROMPTS)):
        for copy in range(2):
            Image.new("RGB", (16, 16), (9, 0, 0)).save(_made(tmp_path / "a" / f"{number}_{copy}.png"))
            if number != 2:
                Image.new("RGB", (16, 16), (8, 0, 0)).save(_made(tmp_path / "b" / f"{number}_{copy}.png"))
    specs = [ModelSpec(name=name, source=f"images:{tmp_path / name}") for name in "ab"]
    record = run(suite, tmp_path, specs)
    rate = record["comparisons"][0]["win_rates"]["redness"]
    assert (rate["losses"], rate["failed"], rate["num_prompts"]) == (12, 2, 6)
    assert "b has no picture for 2 of 14 samples." in record["warnings"]


def test_a_folder_without_any_picture_of_the_suite_is_refused(suite, tmp_path):
    Image.new("RGB", (16, 16)).save(_made(tmp_path / "a" / "holiday.png"))
    with pytest.raises(ConfigError, match=r"1 pictures in .*names like mine/00000_0"):
        run(suite, tmp_path, [ModelSpec(name="a", source=f"images:{tmp_path / 'a'}")])


def test_pictures_are_kept_apart_by_all_that_makes_them(suite, tmp_path):
    from mmalign.evals.base import Item

    job, recipe = Job(Item("set/1", "a fox"), 0), {"seed": 0, "num_steps": 5}
    keys = {
        picture_key("model", job, recipe),
        picture_key("other", job, recipe),
        picture_key("model", Job(job.item, 1), recipe),
        picture_key("model", Job(Item("set/1", "a vixen"), 0), recipe),
        picture_key("model", job, {**recipe, "num_steps": 7}),
    }
    assert len(keys) == 5


def test_training_rewards_that_rise_while_held_out_ones_fall_are_called_out(suite, tmp_path, painter):
    rewards = [
        suite.rewards[0].model_copy(update={"role": "training"}),
        suite.rewards[0].model_copy(update={"name": "toy_rewards:redness", "title": "second"}),
    ]
    record = run(suite.model_copy(update={"rewards": rewards}), tmp_path)
    assert any("was trained on" in warning for warning in record["warnings"])
    assert not any("over-optimisation" in warning for warning in record["warnings"])


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


SCRIPT = """
import sys, time
sys.path[:0] = [{here!r}]
import fake_painter
from mmalign.evals import generation, harness
from mmalign.evals.suite import ModelSpec, read_suite
from pathlib import Path

fake = fake_painter.FakePainter()
generation._painter = fake.load
whole = generation._store
def slowly(*arguments):
    time.sleep(0.02)
    return whole(*arguments)
generation._store = slowly
home = Path({home!r})
models = [ModelSpec(name=name, source="hub/" + name) for name in ("base", "tuned")]
suite = read_suite(home / "suite.yaml")
harness.run_suite(suite, models, output=home / "out", cache=home / "store", folder=home, device="cpu")
"""


@pytest.mark.parametrize(
    "patience", [pytest.param(0.3, marks=pytest.mark.slow), 0.7, pytest.param(1.1, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_results(suite, tmp_path, painter, patience):
    expected = harness.run_suite(
        suite, models(), output=tmp_path / "x", cache=tmp_path / "x-store", folder=tmp_path, device="cpu"
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(HERE), home=str(tmp_path)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60.0
    while not (tmp_path / "store/recipes").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(patience)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads((tmp_path / "out/results.json").read_text())
    for part in ("scores", "comparisons", "models", "rewards"):
        assert found[part] == expected[part], part
    assert len(pictures_table(tmp_path / "store").stored_keys()) == 2 * 2 * len(PROMPTS)


def test_values_are_stored_once_per_picture_and_reward(suite, tmp_path, painter):
    run(suite, tmp_path)
    rows = list(scores_table(tmp_path / "store").read())
    assert len(rows) == 2 * 2 * 2 * len(PROMPTS)
    values = np.array([row["value"] for row in rows if row["reward"].endswith("redness")])
    assert np.isfinite(values).all()
