"""Runs over shards: the loader's rows are the stream's, and a run that was killed is the run that was not."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from mmalign.data import DataConfig, open_rows, streaming_files
from mmalign.errors import CheckpointError, ConfigError, TrainingError
from mmalign.testing.accelerator import forget_accelerator
from mmalign.train import loader as loader_module
from mmalign.train.config import load_run
from mmalign.train.loader import Layout, StepSampler, make_loader, make_order
from mmalign.train.loop import Loop, Progress
from mmalign.train.run import train

SIZES = (9, 14, 6, 11)


class TextModel:
    """Hands over the lengths of a row's answers."""

    def example(self, row, *, key):
        return {"lengths": [len(candidate.text) for candidate in row.candidates]}

    def collate(self, examples):
        return {"lengths": torch.tensor([example["lengths"] for example in examples])}


def write_texts(folder: Path) -> int:
    first = 0
    for shard, size in enumerate(SIZES):
        rows = [
            {
                "id": f"row-{number}",
                "prompt": f"question {number}",
                "chosen": "a" * (number + 2),
                # One answer like the other is no pair: such rows are counted, and stood in for.
                "rejected": "a" * (number + 2) if number % 13 == 5 else "b",
                "preference": 0.5 if number % 11 == 3 else 1.0,
            }
            for number in range(first, first + size)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"train-{shard:05}.parquet", row_group_size=3)
        first += size
    return first


@pytest.fixture
def texts(tmp_path):
    """Shards of short texts, as settings of a stream."""
    folder = tmp_path / "texts"
    folder.mkdir()
    write_texts(folder)
    return DataConfig.model_validate(
        {"source": {"path": folder.as_uri(), "media": "text"}, "streaming": True, "shuffle_buffer": 5}
    )


def micro_batches(config, *, rank=0, world_size=1, workers=0, start=0, steps=12, state=None, batch=2):
    table = open_rows(config, kind="pairs")
    order = make_order(table, seed=7, rows_together=2, world_size=2, num_workers=2)
    if state is not None:
        order.load_state_dict(state)
    layout = Layout(batch, 1, world_size, rank)
    loader = make_loader(
        table,
        order,
        TextModel(),
        StepSampler(layout, start_step=start, steps=steps),
        rows_per_step=layout.effective_batch,
        world_size=world_size,
        num_workers=workers,
        pin_memory=False,
    )
    for micro in loader:
        order.take(micro.lanes, micro.dropped)
        yield micro, order


def test_two_processes_of_two_workers_see_the_rows_of_one_process(texts, untyped):
    with untyped:
        whole = [micro for micro, _ in micro_batches(texts, batch=4)]
        ranks = [
            [micro for micro, _ in micro_batches(texts, rank=rank, world_size=2, workers=2)]
            for rank in range(2)
        ]
    together = [(*first.ids, *second.ids) for first, second in zip(*ranks, strict=True)]
    assert together == [micro.ids for micro in whole]
    keys = [torch.cat([first.keys.key, second.keys.key]) for first, second in zip(*ranks, strict=True)]
    assert all(torch.equal(one, micro.keys.key) for one, micro in zip(keys, whole, strict=True))
    assert len({name for ids in together for name in ids}) > 30


def test_what_is_left_out_is_counted_once_over_all_workers(texts, untyped):
    """A pass has 36 rows in 40 records: four are ties; three rows are pairs of twice the same answer."""
    with untyped:
        micros = [
            micro
            for rank in range(2)
            for micro, _ in micro_batches(texts, rank=rank, world_size=2, workers=2, steps=7)
        ]
    bad = Counter(bad.source for micro in micros for bad in micro.bad)
    assert {bad.reason for micro in micros for bad in micro.bad} == {"identical_candidates"}
    assert set(bad.values()) == {1}
    dropped = sum((Counter(micro.dropped) for micro in micros), Counter())
    # All records went through the buffers by now, and no lane begins its next pass.
    assert dropped == {"tie": 4}


def test_records_that_are_no_rows_count_among_the_rows_that_were_met(tmp_path, untyped):
    """Four samples of the first shard, a broken one, and what is lost behind it."""
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number in range(8):
            words = {"prompt": f"{number}", "chosen": f"good {number}", "rejected": "bad"}
            data = json.dumps(words).encode()
            info = tarfile.TarInfo(f"{number}.json")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (folder / "a.tar").write_bytes((folder / "a.tar").read_bytes()[: 512 * 2 * 5])
    config = DataConfig.model_validate(
        {"source": {"path": folder.as_uri(), "media": "text"}, "streaming": True, "shuffle": False}
    )
    progress = Progress()
    with untyped:
        loop = SimpleNamespace(
            progress=progress,
            stream=None,
            quarantine=tmp_path / "bad.jsonl",
            layout=Layout(2, 1),
            _check_share=lambda *_: None,
        )
        for micro, _ in micro_batches(config, steps=4):
            Loop._count_bad(loop, micro)
    # Eight rows in two passes, each with the damage between its last row and the next pass.
    assert progress.num_bad_rows >= 1
    assert progress.num_rows == 8 + progress.num_bad_rows


@pytest.mark.parametrize("workers", [0, 1])
def test_what_ends_a_run_in_a_worker_is_said_as_it_is(texts, untyped, monkeypatch, workers):
    monkeypatch.setattr(streaming_files, "_PAUSES", (0.0,))

    def gone(self):
        message = "no route to host"
        raise OSError(message)

    table = open_rows(texts, kind="pairs")
    monkeypatch.setattr(sys.modules[__name__], "open_rows", lambda *_, **__: table)
    monkeypatch.setattr(streaming_files.SteadyFile, "_open_again", gone)
    with untyped, pytest.raises(TrainingError) as caught:
        list(micro_batches(texts, workers=workers))
    assert str(caught.value).startswith("file://")
    assert "reading failed 2 times (OSError: no route to host)" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_lanes_are_those_of_the_first_process(texts, monkeypatch):
    table = open_rows(texts, kind="pairs")

    def lanes():
        return make_order(table, seed=7, rows_together=2, world_size=2, num_workers=None).lanes

    monkeypatch.setattr(loader_module, "num_readers", lambda *_: 3)
    assert lanes() == 6
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(loader_module, "broadcast_object_list", lambda numbers: [4])
    assert lanes() == 4


def test_loader_processes_share_the_cores_of_their_own_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [loader_module.num_readers(None, size) for size in (1, 2, 3, 16)] == [4, 3, 2, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loader_module.num_readers(None, 16) == 3
    assert loader_module.num_readers(5, 16) == 5


def test_a_loader_goes_on_where_the_used_micro_batches_ended_not_the_fetched_ones(texts, untyped):
    with untyped:
        expected = [micro.ids for micro, _ in micro_batches(texts, steps=30)]
        for stop in (1, 7, 19):
            running = micro_batches(texts, workers=2, steps=30)
            got = []
            for _ in range(stop):
                micro, order = next(running)
                got.append(micro.ids)
            state = json.loads(json.dumps(order.state_dict()))
            running.close()
            got += [micro.ids for micro, _ in micro_batches(texts, start=stop, steps=30, state=state)]
            assert got == expected


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "mmalign", "train", str(config)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def kill_after(config: Path, folder: Path, records: int) -> None:
    metrics = folder / "metrics.jsonl"
    with subprocess.Popen(
        command(config), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= records:
                break
            time.sleep(0.005)
        process.kill()
        output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output


@pytest.fixture
def shards(tmp_path, write_pairs):
    """Three parquet shards of pictures, one of which is broken; the address of their folder."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        write_pairs(folder / f"train-{shard:05}.parquet", 5, seed=shard, broken=(2,) if shard == 1 else ())
    return folder.as_uri()


def streamed(shards, **train_section):
    return {
        "data": {"source": shards, "streaming": True, "shuffle_buffer": 4, "max_bad_share": 0.5},
        "train": {
            "batch_size": 1,
            "accumulation": 2,
            "checkpoint_every": 3,
            "num_workers": 1,
            **train_section,
        },
    }


@pytest.mark.slow
def test_a_killed_run_over_shards_is_the_whole_run_bit_for_bit(
    write_config, tmp_path, shards, without_timings
):
    sections = streamed(shards, steps=17)
    config = write_config("killed", **sections)
    for records in (5, 11):
        kill_after(config, tmp_path / "killed", records)
        assert not (tmp_path / "killed" / "training_summary.json").exists()
    done = subprocess.run(command(config), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing" in done.stdout
    assert "streamed, parquet, 3 shards, 15 records" in done.stdout
    train(load_run(write_config("whole", **sections)))
    last = [tmp_path / name / "checkpoints" / "step-00000017" for name in ("killed", "whole")]
    for file in ("weights.safetensors", "optimizer.safetensors"):
        one, two = (load_file(folder / file) for folder in last)
        assert one.keys() == two.keys()
        assert [name for name in one if not torch.equal(one[name], two[name])] == []
    states = [json.loads((folder / "state.json").read_text()) for folder in last]
    assert states[0] == states[1]
    # 34 positions: two passes of 15 records and a bit, each with its one unreadable picture.
    assert states[0]["num_bad_rows"] in (2, 3)
    listed = [
        [json.loads(line) for line in (tmp_path / name / "quarantine.jsonl").read_text().splitlines()]
        for name in ("killed", "whole")
    ]
    assert listed[0] == listed[1]
    assert {line["source"] for line in listed[0]} == {"train-00001.parquet:2"}
    records = [
        without_timings(
            [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        )
        for name in ("killed", "whole")
    ]
    assert records[0] == records[1]


def test_a_run_over_shards_that_stopped_goes_on_bit_for_bit(write_config, tmp_path, shards):
    parts, whole = (write_config(name, **streamed(shards, steps=9)) for name in ("parts", "whole"))
    for steps in (4, 9):
        train(load_run(parts, [f"train.steps={steps}"]))
        forget_accelerator()
    train(load_run(whole))
    one, two = (tmp_path / name / "checkpoints" / "step-00000009" for name in ("parts", "whole"))
    got, expected = load_file(one / "weights.safetensors"), load_file(two / "weights.safetensors")
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []
    assert json.loads((one / "state.json").read_text()) == json.loads((two / "state.json").read_text())


def test_epochs_of_a_stream_are_counted_where_its_length_is_known(write_config, shards):
    run = load_run(write_config(**streamed(shards, steps=None, epochs=1, num_workers=0)))
    assert train(run).steps == 8  # a pass of 15 records in steps of 2


def test_other_shards_cannot_continue_a_run(write_config, shards, write_pairs):
    config = write_config(**streamed(shards, steps=3, num_workers=0))
    train(load_run(config))
    write_pairs(Path(shards.removeprefix("file://")) / "train-00007.parquet", 3, seed=9)
    forget_accelerator()
    with pytest.raises(CheckpointError, match=r"rows: checkpoint '3 shards, .* this run '4 shards"):
        train(load_run(config, ["train.steps=5"]))


def test_a_stored_reference_of_a_stream_is_refused(write_config, shards):
    sections = streamed(shards, steps=3, num_workers=0)
    config = write_config(**sections, reference={"kind": "stored"})
    with pytest.raises(
        ConfigError, match=r"data.streaming: got 'true with .*stored reference.*Copy the shards"
    ):
        train(load_run(config))


def test_runs_over_local_rows_keep_the_identity_they_had(write_config):
    """Settings of streams are no part of it: checkpoints of older versions go on."""
    from mmalign.files import fingerprint
    from mmalign.train.run_identity import identity_of

    run = load_run(write_config(train={"steps": 3}))
    plain = run.config.data.model_dump(mode="json", exclude={"max_bad_share"})
    older = {
        name: value for name, value in plain.items() if "stream" not in name and name != "shuffle_buffer"
    }
    assert identity_of(run, Layout(2, 1), "frozen", 7)["data"] == fingerprint(older)
