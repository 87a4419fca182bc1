"""A suite that asks for diversity: measured once, in record, tables and page, with a paired interval."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmalign.errors import CheckpointError, ConfigError, UnknownNameError
from mmalign.evals import harness
from mmalign.evals.compare import merge
from mmalign.evals.provenance import read_run
from mmalign.evals.report import write_report
from mmalign.evals.store import PartTable
from mmalign.evals.suite import ModelSpec, Suite, read_suite
from mmalign.evals.tables import console_table, markdown
from mmalign.rewards.clip_models import HuggingFaceClip
from mmalign.testing.reward_checkpoints.clip import write_clip_folder

HERE = Path(__file__).parent
PROMPTS, COPIES = 5, 3


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_folder(tmp_path_factory.mktemp("clip"), 3)


@pytest.fixture
def folder(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The base paints unlike pictures of a prompt; the tuned model one picture over and over."""
    monkeypatch.syspath_prepend(str(HERE))
    (tmp_path / "clip").symlink_to(clip)
    (tmp_path / "mine.txt").write_text("\n".join(f"a fox {number}" for number in range(PROMPTS)))
    (tmp_path / "suite.yaml").write_text(
        "name: spread\nprompts: mine.txt\nstatistics: {resamples: 200}\n"
        f"generation: {{images_per_prompt: {COPIES}}}\n"
        "diversity: {encoder: own/clip, weights: clip, batch_size: 2}\n"
        "rewards: [{name: 'toy_rewards:redness', title: red}]\n"
    )
    for number in range(PROMPTS):
        for copy in range(COPIES):
            for name, seed in (("base", COPIES * number + copy), ("tuned", 100 + number)):
                paint(tmp_path / name / f"{number}_{copy}.png", seed)
    return tmp_path


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, size=(5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((67, 71), Image.Resampling.NEAREST).save(path)


def run(folder: Path, suite: Suite | None = None, **options: Any) -> dict[str, Any] | None:
    return harness.run_suite(
        suite or read_suite(folder / "suite.yaml"),
        [ModelSpec(name=name, source=f"images:{folder / name}") for name in ("base", "tuned")],
        output=folder / "out",
        cache=folder / "store",
        folder=folder,
        device="cpu",
        **options,
    )


def embeddings(folder: Path) -> int:
    table = PartTable(folder / "store/embeddings", {"key": "string"}, key=("key",))
    return len(table.stored_keys())


def test_a_model_that_narrows_is_told_with_its_paired_interval(folder: Path) -> None:
    record = run(folder)
    assert record is not None
    found = record["diversity"]
    assert found["models"]["base"]["distance"]["value"] > 0.01
    assert found["models"]["tuned"]["distance"]["value"] == pytest.approx(0.0, abs=1e-6)
    (change,) = found["comparisons"]
    assert (change["model"], change["base"]) == ("tuned", "base")
    assert change["difference"]["vendi"]["low"] <= change["difference"]["vendi"]["high"] < 0
    assert change["difference"]["distance"]["value"] == pytest.approx(
        -found["models"]["base"]["distance"]["value"], abs=1e-6
    )
    assert any("more alike than base's: cosine distance" in warning for warning in record["warnings"])
    stored = json.loads((folder / "out/results.json").read_text())
    assert stored["diversity"] == found
    assert "per_prompt" not in found
    whole = json.loads((folder / "out/diversity.json").read_text())
    assert len(whole["per_prompt"]["base"]["distance"]) == PROMPTS


def test_tables_and_page_show_both_models_and_the_change(folder: Path) -> None:
    record = run(folder)
    assert record is not None
    text = (folder / "out/results.md").read_text()
    assert "## Diversity within prompts" in text
    assert "| tuned - base | \N{MINUS SIGN}" in text
    page = (folder / "out/report.html").read_text()
    assert "<h2>Diversity within prompts</h2>" in page
    assert "own/clip" in page
    assert '<span class="verdict worse small">narrower</span>' in page
    assert [table.title for table in console_table(record)][-2:] == [
        "diversity within prompts",
        "change of diversity, paired by prompt",
    ]


def test_a_run_without_diversity_has_no_table_of_it(folder: Path) -> None:
    plain = read_suite(folder / "suite.yaml").model_copy(update={"diversity": None})
    record = run(folder, plain)
    assert record is not None
    assert "diversity" not in record
    assert "Diversity" not in markdown(record)
    assert "Diversity within" not in write_report(record, [], folder / "x.html").read_text()
    assert not (folder / "out/diversity.json").exists()


def test_what_is_embedded_is_not_embedded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(folder)
    assert embeddings(folder) == PROMPTS * COPIES + PROMPTS  # the tuned model's copies are one picture each

    def never(*_: object) -> None:
        pytest.fail("a stored picture was embedded again")

    monkeypatch.setattr(HuggingFaceClip, "image_features", never)
    assert run(folder) == first


@pytest.mark.slow
def test_shards_embed_their_part_and_the_report_finds_all_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, stages=("generate",))
    for number in range(2):
        before = embeddings(folder) if number else 0
        assert run(folder, stages=("score",), shard=(number, 2)) is None
        assert embeddings(folder) > before
    assert embeddings(folder) == PROMPTS * COPIES + PROMPTS
    together = run(folder, stages=("report",))
    assert together is not None
    alone = harness.run_suite(
        read_suite(folder / "suite.yaml"),
        [ModelSpec(name=name, source=f"images:{folder / name}") for name in ("base", "tuned")],
        output=folder / "alone",
        cache=folder / "other-store",
        folder=folder,
        device="cpu",
    )
    assert alone is not None
    for part in ("distance", "vendi"):
        values = [each["diversity"]["models"]["base"][part]["value"] for each in (alone, together)]
        assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_a_model_without_two_pictures_of_any_prompt_is_told_and_ends_nothing(folder: Path) -> None:
    for path in (folder / "tuned").glob("*_[12].png"):
        path.unlink()
    record = run(folder)
    assert record is not None
    assert record["diversity"]["models"]["tuned"]["distance"] is None
    assert any(f"tuned leaves out {PROMPTS} prompts" in warning for warning in record["warnings"])
    assert "| tuned | failed |" in (folder / "out/results.md").read_text()


def test_one_picture_per_prompt_and_unknown_encoders_are_refused_before_anything_runs(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"diversity needs generation.images_per_prompt of 2 or more"):
        read_suite(folder / "suite.yaml", ["generation.images_per_prompt=1"])
    unknown = read_suite(folder / "suite.yaml", ["diversity=vit-l-13"])
    with pytest.raises(UnknownNameError, match=r"vit-l-13.*vit-l-14"):
        run(folder, unknown, stages=("generate",))
    with pytest.raises((CheckpointError, ConfigError), match=r"nowhere"):
        run(folder, read_suite(folder / "suite.yaml", ["diversity.weights=nowhere"]))
    assert not (folder / "store").exists()


def test_merged_runs_say_that_diversity_stays_with_each_run(folder: Path) -> None:
    run(folder)
    one = read_run(folder / "out")
    merged = merge([one, type(one)("again", one.record, one.rows, one.folder)])
    assert not isinstance(merged, str)
    record, _ = merged
    assert record["diversity"] is None
    assert any("Diversity is left out here" in warning for warning in record["warnings"])
