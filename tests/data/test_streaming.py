"""Rows of shards behind addresses: the same as those of local files, once each, whatever happens."""

import io
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from mmalign.data import DataConfig, open_rows, streaming
from mmalign.data import streaming_files as files
from mmalign.data.streaming import StreamOrder, StreamTable
from mmalign.data.streaming_shards import Shard
from mmalign.errors import ConfigError, MissingExtraError, RowError, TrainingError

TURN, LANES = 2, 3


@pytest.fixture
def memory(tmp_path):
    """An object store that lives in this process, empty."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def texts(count, first=0, **columns):
    return [
        {
            "id": f"row-{number}",
            "prompt": f"question {number}",
            "chosen": f"good {number}",
            "rejected": f"bad {number}",
            **{name: values[number - first] for name, values in columns.items()},
        }
        for number in range(first, first + count)
    ]


def put_parquet(store, path, records, group=5):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), buffer, row_group_size=group)
    store.pipe_file(path, buffer.getvalue())


def put_shards(store, sizes=(13, 7, 11, 17), folder="/set", group=5):
    first = 0
    for number, size in enumerate(sizes):
        put_parquet(store, f"{folder}/train-{number:05}.parquet", texts(size, first), group)
        first += size
    return first


def tar_bytes(samples):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for key, members in samples:
            for field, data in members.items():
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def text_sample(number):
    words = {"prompt": f"question {number}", "chosen": f"good {number}", "rejected": f"bad {number}"}
    return f"row-{number}", {"json": json.dumps(words).encode()}


def config_of(path, *, media="text", source=None, **settings):
    return DataConfig.model_validate(
        {
            "source": {"path": str(path), "media": media, **(source or {})},
            "streaming": True,
            "shuffle_buffer": 5,
            **settings,
        }
    )


def order_of(table, *, lanes=LANES, turn=TURN, seed=3, shuffle=True):
    return StreamOrder(table, seed=seed, shuffle=shuffle, lanes=lanes, turn=turn)


def ids(order, positions):
    return [order.row(position).row.id for position in positions]


# ------------------------------------------------------------------------------------------------ order


@pytest.mark.parametrize(("lanes", "turn"), [(1, 1), (3, 2), (5, 3), (7, 1)])
def test_every_pass_takes_every_row_once(memory, lanes, turn):
    count = put_shards(memory)
    order = order_of(open_rows(config_of("memory://set")), lanes=lanes, turn=turn)
    for visit in range(3):
        seen = [order.row(position) for position in range(visit * count, (visit + 1) * count)]
        assert Counter(found.row.id for found in seen) == Counter(f"row-{n}" for n in range(count))
        assert {found.visit for found in seen} == {visit}


def test_passes_are_shuffled_beyond_one_shard_and_each_differently(memory):
    count = put_shards(memory)
    order = order_of(open_rows(config_of("memory://set")), lanes=1)
    first, second = ids(order, range(count)), ids(order, range(count, 2 * count))
    in_order = [f"row-{n}" for n in range(count)]
    assert first != in_order
    assert second not in (first, in_order)
    assert ids(order_of(open_rows(config_of("memory://set")), lanes=1, seed=4), range(count)) != first


def test_without_shuffling_rows_keep_the_order_of_their_shards(memory):
    count = put_shards(memory)
    order = order_of(open_rows(config_of("memory://set", shuffle=False)), lanes=1, shuffle=False)
    assert ids(order, range(count)) == [f"row-{n}" for n in range(count)]


def test_a_row_moves_no_further_ahead_than_the_buffer_is_long(memory):
    put_parquet(memory, "/set/only.parquet", texts(47))
    order = order_of(open_rows(config_of("memory://set", shuffle_buffer=5)), lanes=1)
    moved = [place - int(name.removeprefix("row-")) for place, name in enumerate(ids(order, range(47)))]
    assert min(moved) >= -5
    assert max(moved) > 5  # some wait long: the draw is geometric


def test_readers_of_their_own_turns_open_different_records(memory, monkeypatch):
    """Two processes with two workers each: nobody reads what another one reads."""
    count = put_shards(memory, sizes=(24, 24, 24, 24), group=6)
    table = open_rows(config_of("memory://set", shuffle_buffer=1))
    whole = ids(order_of(table, lanes=4), range(count))
    got: dict[int, str] = {}
    real, opened = streaming.open_shard, []

    def noting(shard, columns, *, start, stop):
        opened.append((shard.url, start, stop))
        return real(shard, columns, start=start, stop=stop)

    monkeypatch.setattr(streaming, "open_shard", noting)
    for reader in range(4):
        order = order_of(table, lanes=4)
        own = [position for position in range(count) if position // TURN % 4 == reader]
        got |= dict(zip(own, ids(order, own), strict=True))
    assert [got[position] for position in range(count)] == whole
    read = [(url, number) for url, start, stop in opened for number in range(start, stop)]
    assert len(read) == len(set(read)) == count


@pytest.mark.parametrize("start", [1, 6, 29, 48, 53, 95, 131])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_the_order_goes_on_from_its_state_at_any_place(memory, start, kind):
    if kind == "parquet":
        put_shards(memory)
        address = "memory://set"
    else:
        for shard, (first, last) in enumerate([(0, 13), (13, 20), (20, 31), (31, 48)]):
            samples = [text_sample(number) for number in range(first, last)]
            memory.pipe_file(f"/tars/shard-{shard:03}.tar", tar_bytes(samples))
        address = "memory://tars/shard-{000..003}.tar"
    table = open_rows(config_of(address))
    whole, interrupted = order_of(table), order_of(table)
    expected = ids(whole, range(start + 60))[start:]
    for position in range(start):
        interrupted.row(position)
        interrupted.take(interrupted.states_of([position]), {})
    state = json.loads(json.dumps(interrupted.state_dict()))
    # Another number of readers would have chosen other lanes: the state's own count.
    resumed = order_of(open_rows(config_of(address)), lanes=2, turn=7)
    resumed.load_state_dict(state)
    assert ids(resumed, range(start, start + 60)) == expected


def test_the_states_of_several_processes_add_up(memory):
    put_shards(memory)
    table = open_rows(config_of("memory://set"))
    ranks = [order_of(table, lanes=2), order_of(table, lanes=2)]
    for position in range(40):
        rank = ranks[position // TURN % 2]
        rank.row(position)
        rank.take(rank.states_of([position]), {"tie": 1})
    merged = StreamOrder.merged([rank.state_dict() for rank in ranks])
    assert merged["dropped"] == {"tie": 40}
    assert sum(lane["base"] + lane["emitted"] for lane in merged["states"].values()) == 40
    resumed = order_of(table, lanes=2)
    resumed.load_state_dict(merged)
    assert ids(resumed, range(40, 60)) == ids(order_of(table, lanes=2), range(60))[40:]


def test_resuming_reads_on_from_the_waiting_rows_and_not_from_the_beginning(memory, monkeypatch):
    for shard in range(8):
        put_parquet(memory, f"/set/{shard}-00000.parquet", texts(12, 12 * shard))
    table = open_rows(config_of("memory://set/*", shuffle_buffer=3))
    order = order_of(table, lanes=1)
    for position in range(80):
        order.row(position)
    order.take(order.states_of([79]), {})
    state = order.state_dict()
    opened = []
    monkeypatch.setattr(
        files.SteadyFile, "_open_again", _noting(files.SteadyFile._open_again, opened), raising=True
    )
    resumed = order_of(table, lanes=1)
    resumed.load_state_dict(state)
    resumed.row(80)
    assert 1 <= len(opened) <= 4  # 80 of 96 rows: six shards are behind us


def _noting(method, noted):
    def noting(self):
        noted.append(self.url)
        return method(self)

    return noting


def test_sources_are_mixed_by_weight_and_records(memory):
    put_parquet(memory, "/one/a.parquet", texts(30))
    put_parquet(memory, "/two/b.parquet", texts(10, 100))
    sources = [
        {"path": "memory://one", "media": "text"},
        {"path": "memory://two", "media": "text", "weight": 3.0},
    ]
    config = DataConfig.model_validate({"sources": sources, "streaming": True, "shuffle_buffer": 4})
    order = order_of(open_rows(config))
    got = ids(order, range(600))
    second = sum(int(name.removeprefix("row-")) >= 100 for name in got)
    assert second == pytest.approx(300, abs=60)
    # Each source goes round by itself.
    counts = Counter(name for name in got if int(name.removeprefix("row-")) < 100)
    assert max(counts.values()) - min(counts.values()) <= 2
    resumed = order_of(open_rows(config))
    for position in range(77):
        order_now = resumed.row(position)
        assert order_now.row.id == got[position]


def test_what_decides_the_mixture_does_not_grow_and_goes_back_a_little(memory):
    put_parquet(memory, "/one/a.parquet", texts(30))
    put_parquet(memory, "/two/b.parquet", texts(10, 100))
    sources = [{"path": "memory://one", "media": "text"}, {"path": "memory://two", "media": "text"}]
    table = open_rows(DataConfig.model_validate({"sources": sources, "streaming": True}))
    order, block = order_of(table, lanes=1), streaming._BLOCK
    rising = [order.place(position) for position in range(0, 9 * block, 97)]
    assert [len(blocks) for blocks in order._mixed.values()] == [2]
    assert order.place(8 * block - 1) == order_of(table, lanes=1).place(8 * block - 1)
    assert [order.place(position) for position in range(0, 9 * block, 97)] == rising
    numbers = [order.place(position)[::2] for position in range(3 * block)]
    for source in (0, 1):  # every row of a source once, also where blocks meet
        own = [number for found, number in numbers if found == source]
        assert own == list(range(len(own)))


# ------------------------------------------------------------------------------------------------ rows


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(count, labels):
    return [
        {
            "caption": f"prompt {number}",
            "jpg_0": picture(2 * number),
            "jpg_1": picture(2 * number + 1),
            "label_0": labels[number],
            "has_label": True,
            "are_different": True,
        }
        for number in range(count)
    ]


def told(row):
    """Everything a row says, but for its number in a table."""
    return {name: value for name, value in vars_of(row).items() if name != "index"}


def vars_of(row):
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


@pytest.mark.parametrize("kind", ["pairs", "unpaired", "chosen", "prompts"])
@pytest.mark.parametrize("tie_policy", ["drop", "random", "soft"])
def test_streamed_rows_are_the_rows_that_the_local_reader_gives(memory, tmp_path, kind, tie_policy):
    labels = [float(n % 3 != 1) if n % 5 else 0.5 for n in range(23)]
    records = pictures(23, labels)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "train.parquet", row_group_size=4)
    memory.pipe_file("/set/train.parquet", (tmp_path / "train.parquet").read_bytes())
    settings = {"tie_policy": tie_policy}
    local = open_rows(DataConfig(source={"path": str(tmp_path / "train.parquet")}, **settings), kind=kind)
    table = open_rows(config_of("memory://set/train.parquet", media="image", **settings), kind=kind)
    order = order_of(table, lanes=1)
    got = {}
    while len(got) < len(local):
        found = order.row(len(got))
        got[found.row.id] = told(found.row)
    assert table.kind == local.kind
    assert got == {row.id: told(row) for row in local}


@pytest.mark.parametrize("name", ["train.tar", "train.tar.gz"])
def test_samples_of_tar_files_are_the_rows_of_the_same_records_in_parquet(memory, tmp_path, name):
    samples, records = [], []
    for number in range(9):
        better, worse, words = picture(number), picture(100 + number), {"score_chosen": 0.25 * number}
        members = {
            "chosen.png": better,
            "rejected.png": worse,
            "txt": f"prompt {number}".encode(),
            "json": json.dumps(words).encode(),
        }
        samples.append((f"deep/folder/{number:04}", members))
        records.append(
            {"key": f"deep/folder/{number:04}", "chosen": better, "rejected": worse, **words}
            | {"caption": f"prompt {number}"}
        )
    data = tar_bytes(samples)
    if name.endswith(".gz"):
        import gzip

        data = gzip.compress(data)
    memory.pipe_file(f"/set/{name}", data)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "train.parquet")
    local = open_rows(DataConfig(source={"path": str(tmp_path / "train.parquet")}), kind="pairs")
    order = order_of(open_rows(config_of(f"memory://set/{name}", media="image"), kind="pairs"), lanes=1)
    got = {}
    for position in range(9):
        row = order.row(position).row
        got[row.id] = row
    assert set(got) == {row.id for row in local}
    for row in local:
        assert got[row.id].candidates == row.candidates
        assert (got[row.id].prompt, got[row.id].preference) == (row.prompt, row.preference)


def test_dialogues_about_pictures_are_streamed(memory, tmp_path):
    records = [
        {
            "question": f"What is in picture {number}?",
            "image": {"bytes": picture(number), "path": f"{number}.png"},
            "chosen": f"a thing called {number}",
            "rejected": f"nothing {number}",
            "ds_name": "x",
            "image_path": f"{number}.png",
            "origin_dataset": "y",
            "idx": number,
        }
        for number in range(11)
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "train.parquet", row_group_size=3)
    memory.pipe_file("/set/train.parquet", (tmp_path / "train.parquet").read_bytes())
    local = open_rows(DataConfig(source={"path": str(tmp_path / "train.parquet")}), kind="pairs")
    assert local.has_dialogues
    config = DataConfig.model_validate(
        {"source": {"path": "memory://set/train.parquet"}, "streaming": True, "shuffle_buffer": 4}
    )
    table = open_rows(config, kind="pairs")
    assert table.has_dialogues
    order = order_of(table)
    got = {(row := order.row(position).row).id: told(row) for position in range(11)}
    assert got == {row.id: told(row) for row in local}


def test_keys_of_rows_follow_the_row_and_its_visit_and_not_the_place(memory):
    count = put_shards(memory)
    table = open_rows(config_of("memory://set"))
    one, other = order_of(table, lanes=1), order_of(table, lanes=4, turn=3)
    keys = [
        {(found.row.id, found.visit): order.key(found) for found in map(order.row, range(2 * count))}
        for order in (one, other)
    ]
    assert keys[0] == keys[1]
    assert len(set(keys[0].values())) == 2 * count


# ------------------------------------------------------------------------------------------------ bad rows


def gathered(order, count):
    issues, dropped, errors = [], Counter(), []
    for position in range(count):
        found = order.row(position)
        issues += found.issues
        dropped += found.dropped
        errors += [found.error] if found.error is not None else []
    return issues, dropped, errors


def test_rows_left_out_are_counted_once_by_reason_also_across_a_restart(memory):
    labels = [1.0, 0.5, None, 0.0, "no number"] * 8
    labels = [str(label) if label is not None else None for label in labels]
    put_parquet(
        memory, "/set/a.parquet", [row | {"label_0": labels[n]} for n, row in enumerate(pictures(40, labels))]
    )
    table = open_rows(config_of("memory://set", media="image"))
    expected = open_rows_locally(memory, labels)
    for stop in (3, 7, 16):
        order = order_of(table, lanes=1)
        first = gathered(order, stop)
        order.take(order.states_of([stop - 1]), {})
        resumed = order_of(table, lanes=1)
        resumed.load_state_dict(order.state_dict())
        found = [resumed.row(position) for position in range(stop, expected.kept)]
        # The next pass has counts of its own.
        issues = first[0] + [issue for one in found for issue in one.issues]
        dropped = sum((one.dropped for one in found), first[1])
        assert Counter(issue.reason for issue in issues) == expected.bad
        assert len({issue.row for issue in issues}) == len(issues) == expected.num_bad
        assert dropped == expected.dropped
        assert expected.dropped["tie"] == 16


def open_rows_locally(memory, labels):
    path = Path("/set/a.parquet")
    table = pq.read_table(io.BytesIO(memory.cat_file(str(path))))
    from mmalign.data.streaming_records import Maker, PartRecords
    from mmalign.data.streaming_shards import Shard

    config = config_of("memory://set", media="image")
    shard = Shard("memory:///set/a.parquet", "parquet", len(labels))
    records = PartRecords.of(table, shard, 0, config.source)
    return Maker(records, config.source, config, "pairs").first.selection.report


def test_a_sample_that_cannot_be_parsed_is_a_bad_row_and_no_end(memory):
    samples = [text_sample(number) for number in range(7)]
    samples[3] = ("row-3", {"json": b"{broken"})
    memory.pipe_file("/set/a.tar", tar_bytes(samples))
    order = order_of(open_rows(config_of("memory://set")), lanes=1)
    _, _, errors = gathered(order, 7)
    assert [error.reason for error in errors] == ["malformed_record"]
    assert "a.tar:3" in str(errors[0])


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_damaged_shard_loses_what_is_behind_the_damage_and_says_so(memory, name):
    if name == "a.tar":
        whole = tar_bytes([text_sample(number) for number in range(9)])
        memory.pipe_file("/set/a.tar", whole[: 512 * 2 * 6 + 700])  # in the middle of a member
        memory.pipe_file("/set/b.tar", tar_bytes([text_sample(number) for number in range(9, 15)]))
    else:
        put_parquet(memory, "/set/a-000.parquet", texts(20), group=10)
        whole = bytearray(memory.cat_file("/set/a-000.parquet"))
        column = pq.ParquetFile(io.BytesIO(bytes(whole))).metadata.row_group(1).column(1)
        start = column.dictionary_page_offset or column.data_page_offset
        whole[start : start + 24] = b"\xff" * 24
        memory.pipe_file("/set/a-000.parquet", bytes(whole))
        put_parquet(memory, "/set/a-001.parquet", texts(5, 20))
    order = order_of(open_rows(config_of("memory://set", shuffle=False)), lanes=1, shuffle=False)
    expected = [0, 1, 2, 3, 4, 5, *range(9, 15)] if name == "a.tar" else [*range(10), *range(20, 25)]
    issues, _, errors = gathered(order, len(expected))
    assert ids(order_of(order.table, lanes=1, shuffle=False), range(len(expected))) == [
        f"row-{number}" for number in expected
    ]
    assert [issue.reason for issue in issues] == ["damaged_shard"]
    assert errors == []


@pytest.mark.parametrize("damage", ["header", "cut"])
def test_a_tar_file_that_stops_being_one_between_two_members_says_so(memory, damage):
    whole = tar_bytes([text_sample(number) for number in range(9)])
    if damage == "cut":
        memory.pipe_file("/set/a.tar", whole[: 512 * 2 * 6])
    else:
        memory.pipe_file("/set/a.tar", whole[: 512 * 2 * 6] + b"x" * 512 + whole[512 * 2 * 6 + 512 :])
    memory.pipe_file("/set/b.tar", tar_bytes([text_sample(number) for number in range(9, 15)]))
    order = order_of(open_rows(config_of("memory://set", shuffle=False)), lanes=1, shuffle=False)
    issues, _, _ = gathered(order, 11)
    # What the last sound sample still had is not known.
    assert ids(order_of(order.table, lanes=1, shuffle=False), range(11)) == [
        f"row-{number}" for number in [0, 1, 2, 3, 4, *range(9, 15)]
    ]
    assert [issue.reason for issue in issues] == ["damaged_shard"]
    assert "broken at sample 5" in issues[0].message


def test_members_that_were_read_are_not_kept(memory, monkeypatch):
    memory.pipe_file("/set/a.tar", tar_bytes([text_sample(number) for number in range(70)]))
    held, real = [], tarfile.TarFile.extractfile

    def noting(self, member):
        held.append(len(self.members))
        return real(self, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", noting)
    list(streaming.open_shard(Shard("memory://set/a.tar", "tar"), None))
    assert len(held) == 70
    assert max(held) <= 1


def test_a_reader_of_a_part_of_a_shard_reads_no_further(memory, monkeypatch):
    memory.pipe_file("/set/a.tar", tar_bytes([text_sample(number) for number in range(9)])[: 512 * 2 * 5])
    shard = Shard("memory://set/a.tar", "tar")
    parts = list(streaming.open_shard(shard, None, start=1, stop=4))
    assert [(first, len(found)) for first, found in parts] == [(1, 3)]
    put_parquet(memory, "/set/b.parquet", texts(300), group=300)
    decoded, real = [], pq.ParquetFile.iter_batches

    def noting(self, **settings):
        for batch in real(self, **settings):
            decoded.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noting)
    parts = list(streaming.open_shard(Shard("memory://set/b.parquet", "parquet"), None, stop=70))
    assert sum(len(found) for _, found in parts) == 70
    assert sum(decoded) == 128  # two parts of 64


def test_a_network_that_fails_now_and_then_is_asked_again_and_loses_nothing(memory, monkeypatch):
    count = put_shards(memory)
    table = open_rows(config_of("memory://set"))
    expected = ids(order_of(table), range(count))
    monkeypatch.setattr(files, "_PAUSES", (0.0, 0.0))
    real, calls = files.SteadyFile._open_again, Counter()

    class Flaky:
        """A connection that breaks at every third read."""

        def __init__(self, inner, url):
            self.inner, self.url, self.seek, self.close = inner, url, inner.seek, lambda: None

        def read(self, length):
            calls[self.url] += 1
            if calls[self.url] % 3 == 1:
                message = "connection reset"
                raise ConnectionResetError(message)
            return self.inner.read(length)

    def flaky(self):
        self._inner = None
        size = real(self)
        self._inner = Flaky(self._inner, self.url)
        return size

    monkeypatch.setattr(files.SteadyFile, "_open_again", flaky)
    assert ids(order_of(table), range(count)) == expected
    assert sum(calls.values()) > 8


class ShakyStore(LocalFileSystem):
    """A disk behind a network: `failing` counts the opens and reads that are still to fail."""

    protocol = "shaky"
    failing = 0
    broken = "error"

    @classmethod
    def fails(cls):
        cls.failing -= 1
        return cls.failing >= 0

    def open(self, path, mode="rb", **_):
        if self.fails():
            message = "no route to host"
            raise ConnectionResetError(message)
        store, inner = self, open(path, mode)  # noqa: SIM115 - the reader closes it

        class Connection:
            size = Path(path).stat().st_size
            seek = inner.seek
            close = inner.close

            def read(self, length):
                if store.fails():
                    inner.close()
                    if store.broken == "short":
                        return b""
                    message = "connection reset"
                    raise ConnectionResetError(message)
                return inner.read(length)

        return Connection()


@pytest.fixture
def shaky(tmp_path, monkeypatch):
    """A file on the shaky disk."""
    fsspec.register_implementation("shaky", ShakyStore, clobber=True)
    monkeypatch.setattr(files, "_PAUSES", (0.0,) * 4)
    monkeypatch.setattr(ShakyStore, "failing", 0)
    (tmp_path / "file").write_bytes(b"0123456789")
    return files.SteadyFile(f"shaky://{tmp_path}/file")


@pytest.mark.parametrize("broken", ["error", "short"])
@pytest.mark.parametrize("failures", [1, 2, 3, 4])
def test_a_read_is_tried_again_where_the_new_connection_fails_too(shaky, monkeypatch, failures, broken):
    assert shaky.read(3) == b"012"
    monkeypatch.setattr(ShakyStore, "failing", failures)
    monkeypatch.setattr(ShakyStore, "broken", broken)
    assert shaky.read(4) == b"3456"
    assert shaky.read() == b"789"
    shaky.close()


def test_a_network_that_goes_away_in_a_read_ends_the_run_with_its_own_words(shaky, monkeypatch):
    monkeypatch.setattr(ShakyStore, "failing", 1000)
    for _ in range(2):  # the file can be asked again, and says the same
        with pytest.raises(TrainingError, match=r"reading failed 5 times .*no route to host"):
            shaky.read(3)
    shaky.close()


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("httpx2", "HTTPError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("botocore.exceptions", "ClientError"),
    ],
)
def test_errors_of_the_packages_behind_addresses_are_failures_of_the_network(monkeypatch, package, name):
    kind = type(name, (Exception,), {})
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(**{name: kind}))
    monkeypatch.setattr(files, "_PAUSES", (0.0,))
    tries = iter([kind("busy"), None])

    def read():
        error = next(tries)
        if error is not None:
            raise error
        return 7

    assert files.attempted(read, "x://y") == 7


def test_a_network_that_stays_away_ends_the_run_and_drops_no_row(memory, monkeypatch):
    put_shards(memory)
    table = open_rows(config_of("memory://set"))
    monkeypatch.setattr(files, "_PAUSES", (0.0, 0.0))

    def gone(self):
        message = "no route to host"
        raise OSError(message)

    monkeypatch.setattr(files.SteadyFile, "_open_again", gone)
    with pytest.raises(
        TrainingError, match=r"reading failed 3 times .*no route to host.*continues from the last"
    ):
        order_of(table).row(0)


def test_a_stream_without_one_usable_row_says_why(memory):
    put_parquet(memory, "/set/a.parquet", [row | {"label_0": 0.5} for row in pictures(4, [0.5] * 4)])
    order = order_of(open_rows(config_of("memory://set", media="image")))
    with pytest.raises(TrainingError, match=r"no usable rows \(4 tie\)|no usable rows \(\d+ tie\)"):
        order.row(0)


# ------------------------------------------------------------------------------------------------ opening


def test_lengths_come_from_footers_and_from_sizes_beside_tar_files(memory):
    count = put_shards(memory)
    assert len(open_rows(config_of("memory://set"))) == count
    for shard in range(2):
        memory.pipe_file(f"/tars/{shard:03}.tar", tar_bytes([text_sample(n) for n in range(3 + shard)]))
    unknown = open_rows(config_of("memory://tars"))
    assert unknown.num_records is None
    with pytest.raises(ConfigError, match=r"train.steps: got None, expected a number.*sizes.json"):
        len(unknown)
    memory.pipe_file("/tars/sizes.json", json.dumps({"000.tar": 3, "001.tar": 4}).encode())
    assert len(open_rows(config_of("memory://tars"))) == 7
    memory.rm_file("/tars/sizes.json")
    listed = [{"url": "000.tar", "nsamples": 3}, {"url": "001.tar", "nsamples": 4}]
    memory.pipe_file("/tars/index.json", json.dumps({"shardlist": listed}).encode())
    assert len(open_rows(config_of("memory://tars"))) == 7


@pytest.mark.parametrize(
    "content", [b"{broken", b"[3, 4]", b'{"shardlist": [{"url": "000.tar"}]}', b'{"000.tar": null}']
)
def test_sizes_that_cannot_be_understood_are_named(memory, content):
    memory.pipe_file("/tars/000.tar", tar_bytes([text_sample(n) for n in range(3)]))
    memory.pipe_file("/tars/sizes.json", content)
    with pytest.raises(ConfigError, match=r"sizes.json: got .*expected samples by shard.*[Ww]rite it again"):
        open_rows(config_of("memory://tars"))


def test_sizes_are_asked_for_again_when_the_network_fails(memory, monkeypatch):
    memory.pipe_file("/tars/000.tar", tar_bytes([text_sample(n) for n in range(3)]))
    memory.pipe_file("/tars/sizes.json", b'{"000.tar": 3}')
    monkeypatch.setattr(files, "_PAUSES", (0.0,))
    real, calls = type(memory).cat_file, []

    def flaky(self, path, **settings):
        calls.append(path)
        if len(calls) == 1:
            message = "connection reset"
            raise ConnectionResetError(message)
        return real(self, path, **settings)

    monkeypatch.setattr(type(memory), "cat_file", flaky)
    assert len(open_rows(config_of("memory://tars"))) == 3


def test_a_shard_without_a_column_of_the_first_is_named(memory):
    put_parquet(memory, "/set/a.parquet", texts(3))
    other = [{name: value for name, value in row.items() if name != "rejected"} for row in texts(3, 3)]
    put_parquet(memory, "/set/b.parquet", other)
    with pytest.raises(
        ConfigError, match=r"b.parquet: got .*expected the column rejected, too, which .*a.parquet has"
    ):
        open_rows(config_of("memory://set/*.parquet"))


def test_a_parquet_file_that_broke_after_it_was_listed_is_damage(memory):
    put_shards(memory, sizes=(6, 5))
    table = open_rows(config_of("memory://set", shuffle=False))
    memory.pipe_file("/set/train-00000.parquet", b"PAR1 and nothing else that was there before")
    issues, _, _ = gathered(order_of(table, lanes=1, shuffle=False), 5)
    assert [(issue.reason, issue.row) for issue in issues] == [("damaged_shard", "0")]


def test_the_media_of_the_first_records_are_not_kept(memory):
    put_parquet(memory, "/set/a.parquet", pictures(6, [1.0] * 6))
    members = {"chosen.png": picture(1), "rejected.png": picture(2), "txt": b"a prompt"}
    memory.pipe_file("/tars/a.tar", tar_bytes([("0", members), ("1", members)]))
    tables = [open_rows(config_of(f"memory://{name}", media="image")) for name in ("set", "tars")]
    parquet, tar = [table._parts[0].records.content for table in tables]
    assert parquet.num_rows == 5  # those of the first group
    assert not {"jpg_0", "jpg_1"} & set(parquet.column_names)
    assert tar == [{"key": name, "caption": "a prompt"} for name in "01"]
    assert all(order_of(table, lanes=1).row(0).row.candidates for table in tables)


def test_tar_shards_of_unknown_length_give_every_row_once_per_pass_of_their_lane(memory):
    sizes = (5, 8, 3, 6)
    first = 0
    for shard, size in enumerate(sizes):
        samples = [text_sample(number) for number in range(first, first + size)]
        memory.pipe_file(f"/tars/{shard:03}.tar", tar_bytes(samples))
        first += size
    order = order_of(open_rows(config_of("memory://tars")), lanes=9)
    assert order.lanes == 4  # no lane without a shard
    firsts = [found.row.id for found in map(order.row, range(200)) if found.visit == 0]
    assert sorted(firsts) == sorted(f"row-{number}" for number in range(22))


@pytest.mark.parametrize(
    ("address", "split", "expected"),
    [
        ("memory://set", "train", 13),
        ("memory://set", "test", 4),
        ("memory://set", None, 13),
        ("memory://set/test-*.parquet", None, 4),
        ("memory://set/train-0000{0..1}-of-00002.parquet", None, 13),
        ("memory://set/train-00001-of-00002.parquet", None, 6),
        ("memory://deep", None, 3),
        ("memory://deep", "validation", 2),
    ],
)
def test_addresses_name_shards_folders_patterns_ranges_and_splits(memory, address, split, expected):
    put_parquet(memory, "/set/train-00000-of-00002.parquet", texts(7))
    put_parquet(memory, "/set/train-00001-of-00002.parquet", texts(6, 7))
    put_parquet(memory, "/set/test-00000-of-00001.parquet", texts(4, 20))
    put_parquet(memory, "/deep/data/part-00000.parquet", texts(3, 30))
    put_parquet(memory, "/deep/validation/x.parquet", texts(2, 40))
    assert len(open_rows(config_of(address, source={"split": split}))) == expected


def test_files_of_this_disk_are_addresses_too(memory, tmp_path):
    put_shards(memory)
    for name in memory.glob("/set/*"):
        (tmp_path / Path(name).name).write_bytes(memory.cat_file(name))
    remote = ids(order_of(open_rows(config_of("memory://set"))), range(48))
    for address in (tmp_path, tmp_path.as_uri(), f"{tmp_path}/train-*.parquet"):
        assert ids(order_of(open_rows(config_of(address))), range(48)) == remote


@pytest.mark.parametrize(
    ("address", "extra"),
    [("s3://bucket/set", "s3"), ("gs://bucket/set", "gcs"), ("https://host/a.tar", "http")],
)
def test_an_address_whose_package_is_missing_names_the_extra(monkeypatch, address, extra):
    def absent(protocol, *args, **kwargs):
        message = f"Install something for {protocol}"
        raise ImportError(message)

    monkeypatch.setattr("fsspec.core.get_filesystem_class", absent)
    with pytest.raises(MissingExtraError, match=rf"pip install 'mmalign\[{extra}\]'"):
        open_rows(config_of(address))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": {"path": "memory://nowhere"}}, "no shards there"),
        ({"source": {"path": "memory://set/none.parquet"}}, "cannot be opened"),
        ({"source": {"path": "nosuch://set/none.parquet"}}, "nosuch:// that fsspec does not know"),
        ({"source": {"path": "memory://set", "limit": 3}}, "limit: got 3, expected no limit"),
        ({"source": {"path": "memory://mixed/*"}}, "got parquet and tar shards, expected one kind"),
        ({"source": {"path": "memory://ranked"}}, "one candidate with its rank per record"),
        ({"source": {"path": "memory://paths"}}, "expected the encoded file itself inside the record"),
        ({"source": {"path": "memory://junk"}}, "not a complete parquet file"),
        (
            {
                "sources": [
                    {"path": "memory://set", "media": "text"},
                    {"path": "memory://tars", "media": "text"},
                ]
            },
            "known numbers, to mix several sources",
        ),
    ],
)
def test_what_cannot_be_streamed_says_why(memory, settings, message):
    put_shards(memory)
    put_parquet(memory, "/mixed/a.parquet", texts(3))
    memory.pipe_file("/mixed/b.tar", tar_bytes([text_sample(0)]))
    memory.pipe_file("/tars/b.tar", tar_bytes([text_sample(0)]))
    memory.pipe_file("/junk/a.parquet", b"PAR1 nothing")
    ranked = [{"prompt": "p", "image_path": f"{n}.png", "rank": n} for n in range(3)]
    put_parquet(memory, "/ranked/a.parquet", ranked)
    put_parquet(memory, "/paths/a.parquet", [{"prompt": "p", "chosen": "a.png", "rejected": "b.png"}])
    with pytest.raises(ConfigError, match=message):
        open_rows(DataConfig.model_validate({**settings, "streaming": True}), kind=None)


def test_what_needs_rows_by_number_is_refused(memory):
    put_shards(memory)
    table = open_rows(config_of("memory://set"))
    assert isinstance(table, StreamTable)
    uses = (lambda: table[0], lambda: table.sizes, table.prompts, lambda: list(table), lambda: table.parts)
    for use in uses:
        with pytest.raises(ConfigError, match=r"data.streaming: got 'true with .*Copy the shards to a disk"):
            use()


def test_other_shards_are_another_data_set(memory):
    put_shards(memory)
    before = open_rows(config_of("memory://set")).identity
    assert open_rows(config_of("memory://set")).identity == before
    put_parquet(memory, "/set/train-00009.parquet", texts(2, 90))
    assert open_rows(config_of("memory://set")).identity != before


def test_row_errors_of_streams_are_those_of_the_reader(memory):
    records = texts(5)
    records[2]["prompt"] = "  "
    put_parquet(memory, "/set/a.parquet", records)
    order = order_of(open_rows(config_of("memory://set")), lanes=1)
    _, _, errors = gathered(order, 5)
    assert [type(error).__mro__[1] for error in errors] == [RowError]
    assert errors[0].reason == "empty_prompt"
