import multiprocessing

import pytest

from mmalign.errors import CheckpointError
from mmalign.evals.store import PartTable

COLUMNS = {"key": "string", "value": "double", "error": "string"}


def table(folder) -> PartTable:
    return PartTable(folder, COLUMNS, key=("key",))


def row(key: str, value: float = 1.0) -> dict:
    return {"key": key, "value": value, "error": None}


def test_rows_come_back_in_the_order_they_were_written(tmp_path):
    stored = table(tmp_path)
    stored.write([row("b", 2.0), row("a", 3.0)])
    stored.write([row("c", 5.0)])
    assert [(found["key"], found["value"]) for found in stored.read()] == [("b", 2.0), ("a", 3.0), ("c", 5.0)]


def test_the_first_of_two_rows_with_one_key_counts(tmp_path):
    stored = table(tmp_path)
    stored.write([row("a", 2.0)])
    stored.write([row("a", 7.0), row("b", 3.0)])
    assert {found["key"]: found["value"] for found in stored.read()} == {"a": 2.0, "b": 3.0}
    assert stored.stored_keys() == {("a",), ("b",)}


def test_a_part_that_was_not_finished_is_not_there(tmp_path):
    stored = table(tmp_path)
    stored.write([row("a")])
    (tmp_path / ".part-9.parquet.partial").write_bytes(b"half of a file")
    assert stored.stored_keys() == {("a",)}


def test_a_damaged_part_is_named(tmp_path):
    stored = table(tmp_path)
    stored.write([row("a")])
    (tmp_path / "part-99999999999999999999-x.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(CheckpointError, match=r"part-99999999999999999999-x\.parquet: cannot be read"):
        list(stored.read())


def test_a_missing_folder_is_an_empty_table(tmp_path):
    assert list(table(tmp_path / "nowhere").read()) == []


def test_a_writer_puts_down_full_parts_and_the_rest(tmp_path):
    stored = table(tmp_path)
    with stored.writer(rows=3) as writer:
        for name in "abcdefg":
            writer.add([row(name)])
        assert len(stored.parts()) == 2
    assert len(stored.parts()) == 3
    assert len(stored.stored_keys()) == 7


def test_a_writer_keeps_what_it_has_when_the_work_fails(tmp_path):
    stored = table(tmp_path)

    def interrupted():
        with stored.writer() as writer:
            writer.add([row("a")])
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert stored.stored_keys() == {("a",)}


def test_rows_that_wait_too_long_are_written(tmp_path):
    stored = table(tmp_path)
    with stored.writer(rows=1000, seconds=0.0) as writer:
        writer.add([row("a")])
        assert stored.stored_keys() == {("a",)}


def _write_many(folder, number):
    stored = table(folder)
    for start in range(5):
        stored.write([row(f"{number}-{start}-{step}") for step in range(7)])


def test_processes_write_side_by_side(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(tmp_path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(table(tmp_path).stored_keys()) == 3 * 5 * 7
