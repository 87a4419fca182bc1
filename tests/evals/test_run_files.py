"""Runs that move, failures that are tried again, and what is refused before a model is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.errors import CheckpointError, ConfigError, UnknownNameError
from mmalign.evals import generation, harness, model_identity
from mmalign.evals.provenance import distinct_models, read_run, told_apart
from mmalign.evals.scoring import read_scores
from mmalign.evals.suite import ModelSpec, Suite, read_suite

HERE = Path(__file__).parent
PROMPTS = ("a fox", "a heron", "two boats")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(HERE))
    (tmp_path / "mine.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "suite.yaml").write_text(
        "name: mine\nprompts: mine.txt\nstatistics: {resamples: 200}\n"
        "rewards:\n- {name: 'toy_rewards:redness', title: red}\n- {name: 'toy_rewards:flaky', title: flaky}\n"
    )
    for name, red in (("base", 20), ("one", 25), ("two", 30)):
        (tmp_path / name).mkdir()
        for number in range(len(PROMPTS)):
            Image.new("RGB", (16, 16), (red + number, 0, 0)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def run(folder: Path, *names: str, output: str = "out", suite: Suite | None = None, **options: Any) -> Any:
    return harness.run_suite(
        suite or read_suite(folder / "suite.yaml"),
        [ModelSpec(name=name, source=f"images:{folder / name}") for name in names or ("base", "one")],
        output=folder / output,
        cache=folder / "store",
        folder=folder,
        device="cpu",
        **options,
    )


# ---------------------------------------------------------------------------------------------------- moving


def test_a_run_that_moved_with_its_pictures_finds_them(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder)
    lines = (folder / "out/samples.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["models"]["base"]["path"] == "../base/0.png"
    moved = tmp_path_factory.mktemp("elsewhere") / "whole"
    shutil.move(folder, moved)
    monkeypatch.chdir(moved.parent)
    rows = read_run(moved / "out").rows
    assert rows is not None
    paths = [Path(entry["path"]) for row in rows for entry in row["models"].values()]
    assert len(paths) == 2 * len(PROMPTS)
    assert all(path.is_file() and path.is_relative_to(moved) for path in paths)


def test_rows_whose_paths_start_from_the_working_directory_are_still_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder)
    file = folder / "out/samples.jsonl"
    file.write_text(file.read_text().replace("../base", "base"))
    monkeypatch.chdir(folder)
    rows = read_run("out").rows
    assert rows is not None
    assert rows[0]["models"]["base"]["path"] == "base/0.png"


def test_no_thumbnails_fit_into_no_bytes(folder: Path) -> None:
    run(folder)
    with_pictures = len((folder / "out/report.html").read_text())
    run(folder, thumbnail_bytes=0)
    assert len((folder / "out/report.html").read_text()) < with_pictures


# ------------------------------------------------------------------------------------------------- same model


@pytest.mark.slow
def test_one_folder_of_pictures_in_two_runs_is_one_model(folder: Path) -> None:
    run(folder, "base", "one", output="first")
    run(folder, "base", "two", output="second")
    runs = [read_run(folder / name) for name in ("first", "second")]
    names = [(told.name, model["name"]) for told, model in distinct_models(runs)]
    assert names == [("first", "base"), ("first", "one"), ("second", "two")]
    Image.new("RGB", (16, 16), (99, 0, 0)).save(folder / "base/0.png")
    run(folder, "base", "two", output="third")
    changed = [runs[0], read_run(folder / "third")]
    assert [model["name"] for _, model in distinct_models(changed)] == ["base", "one", "base", "two"]


@pytest.mark.slow
def test_runs_in_folders_of_one_name_are_called_by_the_folder_above_too(folder: Path) -> None:
    for name in ("a/out", "b/out", "c"):
        run(folder, output=name)
    told = told_apart([read_run(folder / name) for name in ("a/out", "b/out", "c")])
    assert [each.name for each in told] == ["a/out", "b/out", "c"]


# --------------------------------------------------------------------------------------------------- failures


def test_failures_are_asked_again_only_on_demand_and_what_was_scored_is_not(folder: Path) -> None:
    import toy_rewards

    toy_rewards.FLAKY.append(True)
    failed = run(folder)
    assert failed["scores"]["base"]["flaky"]["failed"] == 1
    toy_rewards.CALLS.clear()
    assert run(folder, retry_failed=True)["scores"] == failed["scores"]  # the server is still away
    assert set(toy_rewards.CALLS) == {"flaky mine/00001/0"}
    toy_rewards.FLAKY.clear()
    toy_rewards.CALLS.clear()
    assert run(folder)["scores"] == failed["scores"]
    assert toy_rewards.CALLS == []
    mended = run(folder, retry_failed=True)
    assert set(toy_rewards.CALLS) == {"flaky mine/00001/0"}
    assert mended["scores"]["base"]["flaky"]["failed"] == 0
    assert mended["scores"]["base"]["flaky"]["mean"]["value"] == pytest.approx(7.0)
    assert run(folder) == mended
    rows = [row for row in read_scores(folder / "store") if row["reward"].endswith("flaky")]
    assert len({(row["key"], row["output"]) for row in rows}) == len(rows) == 2 * len(PROMPTS)
    assert all(row["error"] is None for row in rows)


# ------------------------------------------------------------------------------------------------- refusals


def test_an_ensemble_beside_the_suite_is_found_by_its_relative_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder / "both.yaml").write_text(
        "how: mean\nmembers:\n- {reward: 'toy_rewards:redness', name: red, scale: {center: 0, spread: 1}}\n"
        "- {reward: 'toy_rewards:picky', name: words, scale: {center: 0, spread: 1}}\n"
    )
    suite = read_suite(folder / "suite.yaml", ["rewards=[{name: both.yaml, title: both}]"])
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    record = run(folder, suite=suite)
    assert "both.red" in record["scores"]["base"]
    assert record["scores"]["base"]["both.red"]["mean"]["value"] == pytest.approx(21.0)


def test_an_unknown_sampler_is_refused_before_a_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(generation, "_painter", never)
    suite = read_suite(folder / "suite.yaml", ["generation.scheduler=eular"])
    with pytest.raises(UnknownNameError, match=r"generation\.scheduler.*eular.*euler"):
        harness.run_suite(
            suite,
            [ModelSpec(name="base", source="hub/base")],
            output=folder / "out",
            cache=folder / "store",
            folder=folder,
            device="cpu",
        )
    assert run(folder, suite=suite)["media"] == "pictures"  # nothing paints: the name means nothing


def test_a_model_that_changes_while_it_is_loaded_is_refused_and_paints_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fake_painter import FakePainter

    fake = FakePainter()
    weights = folder / "model"
    weights.mkdir()
    (weights / "weights.safetensors").write_bytes(b"first")
    load = fake.load

    def saving(spec: ModelSpec, *others: Any) -> Any:
        (weights / "weights.safetensors").write_bytes(b"a later step")  # a trainer saves meanwhile
        return load(spec, *others)

    monkeypatch.setattr(generation, "_painter", saving)
    suite = read_suite(folder / "suite.yaml")

    def again() -> Any:
        return harness.run_suite(
            suite,
            [ModelSpec(name="trained", source=str(weights))],
            output=folder / "out",
            cache=folder / "store",
            folder=folder,
            device="cpu",
        )

    with pytest.raises(CheckpointError, match=r"trained: .*changed while it was loaded.*run again"):
        again()
    assert fake.painted == []
    record = again()  # now the files stay as they are
    assert len(fake.painted) == len(PROMPTS)
    expected = model_identity.model_fingerprint(ModelSpec(name="trained", source=str(weights)))
    assert record["models"][0]["fingerprint"] == expected


def test_options_a_benchmark_would_ignore_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text("name: own\nbenchmark: pope\ndata: official\n")
    for option in ({"retry_failed": True}, {"thumbnail_bytes": 0}):
        with pytest.raises(ConfigError, match=r"neither: a benchmark has no rewards"):
            harness.main(suite=path, models=["base=answers:x.jsonl"], output=tmp_path / "out", **option)
