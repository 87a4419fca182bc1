"""Candidates in parquet and tar shards, scored by one process, by several, and on Ray."""

import io
import json
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmalign.errors import CheckpointError, ConfigError
from mmalign.evals.pairs import shards
from mmalign.evals.pairs.commands import run_score, run_select
from mmalign.evals.pairs.plan import read_plan
from mmalign.evals.pairs.shard_scoring import BlockScorer, score_shards
from mmalign.evals.pairs.shards import blocks_of, read_block, read_sample
from mmalign.evals.scoring import scores_table

PROMPTS = ["a fox", "a heron", "two boats", "an owl", "The pier at night"]
COUNT = 17


@pytest.fixture
def rows(shard_rows):
    return lambda: shard_rows(COUNT)


@pytest.fixture
def parquet(tmp_path, rows):
    folder = tmp_path / "parquet"
    folder.mkdir()
    given = rows()
    pq.write_table(pa.Table.from_pylist(given[:10]), folder / "one.parquet", row_group_size=7)
    pq.write_table(pa.Table.from_pylist(given[10:]), folder / "two.parquet")
    return folder


@pytest.fixture
def tar(tmp_path, rows):
    folder = tmp_path / "tar"
    folder.mkdir()
    for name, part in (("one", rows()[:10]), ("two", rows()[10:])):
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for row in part:
                described = {"prompt": row["prompt"], "model": row["model"], "seed": row["seed"]}
                for ending, data in (("png", row["image"]), ("json", json.dumps(described).encode())):
                    member = tarfile.TarInfo(f"{row['id']}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture
def plan_path(write_plan):
    return write_plan("{standing: minmax}")


def stored(store):
    """Everything a store holds, by name."""
    files = sorted(path for path in store.rglob("*.parquet"))
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_blocks_hold_every_sample_once_in_order(kind, request, rows):
    folder = request.getfixturevalue(kind)
    for size in (1, 3, 5, 256):
        blocks = blocks_of(folder, rows=size)
        assert all(block.count <= size for block in blocks)
        samples = [sample for block in blocks for sample in read_block(block)]
        assert [sample.id.split("/")[1] for sample in samples] == [row["id"] for row in rows()]
        assert [sample.image for sample in samples] == [row["image"] for row in rows()]
        assert [sample.prompt for sample in samples] == [row["prompt"] for row in rows()]
        assert [(sample.model, sample.extras) for sample in samples] == [
            (row["model"], {"seed": row["seed"]}) for row in rows()
        ]
        assert read_sample(blocks[-1], 0) == samples[-blocks[-1].count].image


def test_a_sample_that_cannot_be_used_says_why(tmp_path, rows):
    (tmp_path / "b.png").write_bytes(rows()[0]["image"])
    given = [
        {"prompt": "x", "image": "b.png"},
        {"prompt": "x", "image": "missing.png"},
        {"prompt": " ", "image": "b.png"},
        {"prompt": "x", "image": "../b.png"},
        {"prompt": "x", "image": None},
    ]
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "rows.parquet")
    (block,) = blocks_of(tmp_path)
    errors = [sample.error for sample in read_block(block)]
    assert errors[0] is None
    parts = ("missing.png", "no text under", "expected a file inside", "a picture under")
    for error, part in zip(errors[1:], parts, strict=True):
        assert part in error


def test_what_is_no_shard_is_refused(tmp_path, parquet):
    with pytest.raises(ConfigError, match=r"--candidates: got \[nothing\].*parquet shards, or tar shards"):
        blocks_of(tmp_path / "nowhere")
    (parquet / "more.tar").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"\[.parquet, .tar\]"):
        blocks_of(parquet)
    (parquet / "more.tar").rename(tmp_path / "torn.tar")
    with pytest.raises(CheckpointError, match=r"torn.tar: cannot be read as a tar file"):
        blocks_of(tmp_path / "torn.tar")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(CheckpointError, match=r"torn.parquet: cannot be read as parquet"):
        blocks_of(tmp_path / "torn.parquet")


def test_shards_of_both_kinds_make_the_same_pairs(parquet, tar, plan_path, tmp_path):
    outputs = {}
    for folder in (parquet, tar):
        store, output = tmp_path / f"{folder.name}_store", tmp_path / f"{folder.name}_out"
        run_score(plan_path=plan_path, candidates_source=folder, store=store, device="cpu")
        run_select(plan_path=plan_path, candidates_source=folder, store=store, output=output)
        outputs[folder.name] = pq.read_table(output / "rows.parquet").to_pylist()
    assert outputs["parquet"] == outputs["tar"]
    # The held-out prompt is gone, and each other one made a pair.
    assert [row["prompt"] for row in outputs["tar"]] == PROMPTS[:4]


def test_scoring_again_scores_nothing_and_changes_no_byte(parquet, plan_path, tmp_path):
    plan = read_plan(plan_path)
    store = tmp_path / "store"
    first = score_shards(parquet, plan.rewards, store, rows=5)
    before = stored(store)
    second = score_shards(parquet, plan.rewards, store, rows=5)
    assert sum(receipt.scored for receipt in first) == 2 * COUNT
    assert sum(receipt.scored for receipt in second) == 0
    assert stored(store) == before
    assert sum(receipt.samples for receipt in first) == COUNT


def test_processes_that_share_the_blocks_store_what_one_does(parquet, plan_path, tmp_path):
    plan = read_plan(plan_path)
    score_shards(parquet, plan.rewards, tmp_path / "alone", rows=3)
    for number in range(3):
        score_shards(parquet, plan.rewards, tmp_path / "shared", rows=3, shard=(number, 3))
    assert stored(tmp_path / "shared") == stored(tmp_path / "alone")


def test_the_size_of_blocks_changes_no_score(parquet, plan_path, tmp_path):
    plan = read_plan(plan_path)
    found = []
    for size in (3, 256):
        score_shards(parquet, plan.rewards, tmp_path / str(size), rows=size)
        table = scores_table(tmp_path / str(size)).read()
        found.append(sorted((row["key"], row["value"]) for row in table))
    assert found[0] == found[1]
    assert len(found[0]) == 2 * COUNT


def test_a_picture_that_was_scored_under_another_prompt_is_scored_again(tmp_path, plan_path, rows):
    given = [{"prompt": prompt, "image": rows()[0]["image"]} for prompt in ("a fox", "a fox", "a heron")]
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "rows.parquet")
    plan = read_plan(plan_path)
    (receipt,) = score_shards(tmp_path / "rows.parquet", plan.rewards[:1], tmp_path / "store")
    assert (receipt.samples, receipt.scored) == (3, 2)


def test_selecting_before_scoring_names_the_stage(parquet, plan_path, tmp_path):
    with pytest.raises(CheckpointError, match=r"2 blocks|3 blocks"):
        run_select(
            plan_path=plan_path, candidates_source=parquet, store=tmp_path / "s", output=tmp_path / "o"
        )


def test_a_shard_that_was_replaced_is_noticed(parquet, plan_path, tmp_path, rows):
    run_score(plan_path=plan_path, candidates_source=parquet, store=tmp_path / "s", device="cpu")
    given = rows()[10:]
    for row in given:
        row["image"] = given[0]["image"]
    pq.write_table(pa.Table.from_pylist(given), parquet / "two.parquet")
    shards._held.cache_clear()
    path = plan_path.rename(tmp_path / "all.yaml")
    path.write_text(path.read_text().replace("selection: {", 'selection: {"rule": "all_pairs", '))
    with pytest.raises(ConfigError, match="changed since it was scored"):
        run_select(plan_path=path, candidates_source=parquet, store=tmp_path / "s", output=tmp_path / "o")


def test_unusable_samples_are_counted_in_the_card(parquet, plan_path, tmp_path, rows):
    given = [*rows()[10:], {**rows()[0], "image": b"", "id": "broken"}]
    pq.write_table(pa.Table.from_pylist(given), parquet / "two.parquet")
    run_score(plan_path=plan_path, candidates_source=parquet, store=tmp_path / "s", device="cpu")
    run_select(plan_path=plan_path, candidates_source=parquet, store=tmp_path / "s", output=tmp_path / "o")
    card = (tmp_path / "o" / "card.yaml").read_text()
    assert "that cannot be read: 1" in card


def test_a_worker_needs_only_a_block(parquet, plan_path, tmp_path):
    plan = read_plan(plan_path)
    scorer = BlockScorer(plan.rewards, tmp_path / "store", "cpu")
    block = blocks_of(parquet, rows=5)[1]
    receipt = scorer.score(block)
    assert (receipt.block, receipt.samples, receipt.unusable, receipt.scored) == (
        "one.parquet@0+5:2",
        2,
        0,
        4,
    )


@pytest.mark.slow
def test_ray_is_not_imported_where_nobody_asks_for_it():
    code = "import sys, mmalign.evals.pairs.commands as c; print(c.__name__, 'ray' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["mmalign.evals.pairs.commands", "False"]
