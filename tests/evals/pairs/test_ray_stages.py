"""Scoring on a local Ray cluster: what a single process stores, also when workers die."""

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmalign.errors import ConfigError, MissingExtraError, TrainingError
from mmalign.evals.pairs.commands import run_score, run_select
from mmalign.evals.pairs.plan import read_plan
from mmalign.evals.pairs.ray_stages import score_on_ray
from mmalign.evals.pairs.shard_scoring import score_shards
from mmalign.evals.suite import RewardSpec

HERE = Path(__file__).parent
COUNT = 23


@pytest.fixture
def shards_folder(tmp_path, shard_rows):
    folder = tmp_path / "shards"
    folder.mkdir()
    rows = shard_rows(COUNT)
    for name, part in (("one", rows[:13]), ("two", rows[13:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet")
    return folder


def stored(store):
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*.parquet"))}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def environment(tmp_path):
    """Workers find the rewards of the tests, and one thread each."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    marker = str(tmp_path / "died")
    return {"PYTHONPATH": path, "PAIR_REWARDS_MARKER": marker, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_worker_that_is_killed_midway_costs_no_row_and_doubles_none(
    shards_folder, write_plan, tmp_path, monkeypatch
):
    path = write_plan("{standing: minmax}")
    path.write_text(path.read_text().replace("pair_rewards:contrast", "pair_rewards:deadly"))
    plan = read_plan(path)
    variables = environment(tmp_path)
    monkeypatch.setenv("PAIR_REWARDS_MARKER", variables["PAIR_REWARDS_MARKER"])
    store = tmp_path / "cluster"
    receipts = score_on_ray(shards_folder, plan.rewards, store, workers=2, environment=variables, rows=3)
    victim = int((tmp_path / "died").read_text())  # a worker did die, and not this process
    assert victim != os.getpid()
    assert sum(receipt.samples for receipt in receipts) == COUNT
    # The marker is there now: the same reward lives on in this process.
    score_shards(shards_folder, plan.rewards, tmp_path / "alone", rows=3)
    assert stored(store) == stored(tmp_path / "alone")
    for name in ("cluster", "alone"):
        run_select(
            plan_path=path,
            candidates_source=shards_folder,
            store=tmp_path / name,
            output=tmp_path / f"{name}_out",
            block_rows=3,
        )
    assert contents(tmp_path / "cluster_out") == contents(tmp_path / "alone_out")
    assert pq.read_table(tmp_path / "alone_out" / "rows.parquet").num_rows == 4


@pytest.mark.slow
def test_a_reward_that_cannot_run_ends_the_job_and_what_was_scored_is_kept(shards_folder, tmp_path):
    broken = RewardSpec(name="pair_rewards:no_such_function")
    with pytest.raises(TrainingError, match="a worker failed for good"):
        score_on_ray(
            shards_folder, [broken], tmp_path / "store", workers=1, environment=environment(tmp_path)
        )


@pytest.mark.slow
def test_a_block_that_kills_every_worker_ends_the_job(shards_folder, tmp_path):
    deadly = RewardSpec(name="pair_rewards:always_deadly")
    with pytest.raises(TrainingError, match=r"(?s)3 workers died on it.*mend the cause and run again"):
        score_on_ray(
            shards_folder, [deadly], tmp_path / "store", workers=1, environment=environment(tmp_path)
        )
    assert not stored(tmp_path / "store")


def test_ray_that_is_not_installed_is_named(shards_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmalign\[ray\]'"):
        score_on_ray(shards_folder, [], tmp_path / "store", workers=1)


def test_no_workers_and_no_shards_are_refused(shards_folder, write_plan, tmp_path):
    with pytest.raises(ConfigError, match="--workers: got 0"):
        score_on_ray(shards_folder, [], tmp_path / "store", workers=0)
    with pytest.raises(ConfigError, match="--ray: got 'no --candidates'"):
        run_score(plan_path=write_plan(), store=tmp_path / "store", ray="local", device="cpu")
