"""Files are old or new, never half written; damaged ones say so."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from mmalign import files
from mmalign.errors import CheckpointError


class TestAtomicWrite:
    def test_creates_folders_and_returns_the_path(self, tmp_path):
        path = files.atomic_write(tmp_path / "a" / "b.txt", "text\n")
        assert path.read_text() == "text\n"
        assert os.listdir(path.parent) == ["b.txt"]

    def test_failure_keeps_the_old_content_and_leaves_nothing_behind(self, tmp_path, monkeypatch):
        path = files.atomic_write(tmp_path / "config.json", "old")

        def full_disk(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            files.atomic_write(path, "new")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["config.json"]

    def test_files_are_as_readable_as_their_neighbours(self, tmp_path):
        plain = tmp_path / "plain"
        plain.write_text("x")
        assert files.atomic_write(tmp_path / "ours", b"x").stat().st_mode == plain.stat().st_mode

    def test_kill_while_writing_leaves_old_or_new(self, tmp_path):
        code = textwrap.dedent(
            f"""
            from mmalign.files import atomic_write
            number = 0
            while True:
                number += 1
                atomic_write({str(tmp_path / "state")!r}, str(number % 10) * 200_000)
                if number == 3:
                    print("ready", flush=True)
            """
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = (tmp_path / "state").read_text()
        assert len(content) == 200_000
        assert len(set(content)) == 1


class TestAtomicDirectory:
    def test_appears_whole_and_replaces_the_old_one(self, tmp_path):
        target = tmp_path / "checkpoint"
        for number in (1, 2):
            with files.atomic_directory(target) as partial:
                (partial / f"weights-{number}").write_text("x")
                assert not (target / f"weights-{number}").exists()
        assert os.listdir(target) == ["weights-2"]
        assert os.listdir(tmp_path) == ["checkpoint"]

    def test_error_inside_keeps_the_old_one(self, tmp_path):
        target = tmp_path / "checkpoint"
        with files.atomic_directory(target) as partial:
            (partial / "weights").write_text("old")

        def fail_half_way():
            with files.atomic_directory(target) as partial:
                (partial / "weights").write_text("new")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_half_way()
        assert (target / "weights").read_text() == "old"
        assert os.listdir(tmp_path) == ["checkpoint"]

    def test_full_disk_is_explained(self, tmp_path):
        target = tmp_path / "checkpoint"
        with (
            pytest.raises(
                CheckpointError, match=r"checkpoint: could not be written \(No space.*untouched.*Free some"
            ),
            files.atomic_directory(target),
        ):
            raise OSError(28, "No space left on device")
        assert os.listdir(tmp_path) == []

    def test_sub_folders_are_kept(self, tmp_path):
        with files.atomic_directory(tmp_path / "model") as partial:
            (partial / "unet").mkdir()
            (partial / "unet" / "config.json").write_text("{}")
        assert (tmp_path / "model" / "unet" / "config.json").read_text() == "{}"


class TestJson:
    def test_round_trip_keeps_order_and_unicode(self, tmp_path):
        value = {"b": [1, 2.5, None], "a": "été 🦊"}
        path = files.write_json(tmp_path / "x.json", value)
        assert files.read_json(path) == value
        assert list(files.read_json(path)) == ["b", "a"]
        assert "🦊" in path.read_text(encoding="utf-8")

    @pytest.mark.parametrize("content", [None, "{", ""])
    def test_unreadable_file_is_named(self, tmp_path, content):
        path = tmp_path / "x.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(CheckpointError, match=r"x\.json: cannot be read as JSON"):
            files.read_json(path)

    def test_lines_are_appended_in_order(self, tmp_path):
        path = tmp_path / "logs" / "metrics.jsonl"
        for step in range(3):
            files.append_json_line(path, {"step": step})
        assert files.read_json_lines(path) == [{"step": 0}, {"step": 1}, {"step": 2}]

    def test_torn_last_line_is_left_out(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 0}\n\n{"step": 1}\n{"ste')
        assert files.read_json_lines(path) == [{"step": 0}, {"step": 1}]

    def test_line_appended_after_a_torn_one_is_not_lost(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 0}\n{"ste')
        files.append_json_line(path, {"step": 1})
        assert files.read_json_lines(path) == [{"step": 0}, {"step": 1}]

    def test_whole_last_line_without_its_break_is_kept(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 0}\n{"step": 1}')
        files.append_json_line(path, {"step": 2})
        assert files.read_json_lines(path) == [{"step": 0}, {"step": 1}, {"step": 2}]

    def test_torn_first_line_is_dropped(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"st')
        files.append_json_line(path, {"step": 0})
        assert files.read_json_lines(path) == [{"step": 0}]

    def test_line_torn_inside_a_letter_is_dropped(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes('{"a": 1}\n{"prompt": "é'.encode()[:-1])
        assert files.read_json_lines(path) == [{"a": 1}]

    def test_damage_in_the_middle_is_named_by_line(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 0}\nnot json\n{"step": 1}\n')
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2: not a JSON record"):
            files.read_json_lines(path)

    def test_processes_wait_for_a_line_that_another_one_writes(self, tmp_path, monkeypatch):
        path, fork = tmp_path / "quarantine.jsonl", multiprocessing.get_context("fork")
        half_way = fork.Event()
        whole = files._write_all

        def slowly(file, content):
            whole(file, content[:5])
            half_way.set()
            time.sleep(0.3)
            whole(file, content[5:])

        monkeypatch.setattr(files, "_write_all", slowly)
        writer = fork.Process(target=files.append_json_line, args=(path, {"rank": 1}))
        writer.start()
        monkeypatch.setattr(files, "_write_all", whole)
        assert half_way.wait(10)
        files.append_json_line(path, {"rank": 0})
        writer.join(10)
        assert files.read_json_lines(path) == [{"rank": 1}, {"rank": 0}]

    def test_lines_of_two_processes_are_all_there(self, tmp_path):
        path, fork = tmp_path / "quarantine.jsonl", multiprocessing.get_context("fork")
        ready = fork.Barrier(2)

        def write(rank):
            ready.wait(10)
            for step in range(100):
                files.append_json_line(path, {"rank": rank, "step": step, "message": "é" * 5000})

        writers = [fork.Process(target=write, args=(rank,)) for rank in range(2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(30)
        found = [(record["rank"], record["step"]) for record in files.read_json_lines(path)]
        assert sorted(found) == [(rank, step) for rank in range(2) for step in range(100)]

    def test_unicode_line_separators_do_not_split_a_record(self, tmp_path):
        path = tmp_path / "prompts.jsonl"
        files.append_json_line(path, {"prompt": "one\u2028two\x85three"})
        assert files.read_json_lines(path) == [{"prompt": "one\u2028two\x85three"}]


class TestTensors:
    def test_round_trip_keeps_values_and_dtypes(self, tmp_path):
        tensors = {
            "a": torch.arange(6, dtype=torch.float64).reshape(2, 3).T,
            "b": torch.tensor([1, 2], dtype=torch.int64),
            "c": torch.ones(3, dtype=torch.bfloat16, requires_grad=True),
        }
        read = files.load_tensors(files.save_tensors(tmp_path / "x.safetensors", tensors, {"made": "here"}))
        assert set(read) == set(tensors)
        for name, value in tensors.items():
            assert torch.equal(read[name], value)
            assert read[name].dtype == value.dtype

    def test_tensors_that_share_memory_are_saved(self, tmp_path):
        value = torch.arange(5.0)
        path = files.save_tensors(tmp_path / "x.safetensors", {"a": value, "b": value, "c": value[:3]})
        assert torch.equal(files.load_tensors(path)["c"], value[:3])

    @pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
    def test_unreadable_file_is_named(self, tmp_path, content):
        path = tmp_path / "x.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read as safetensors"):
            files.load_tensors(path)


class TestFingerprint:
    def test_is_the_same_on_every_machine_and_for_any_key_order(self):
        assert files.fingerprint({"a": 1, "b": [2, "x"]}) == files.fingerprint({"b": [2, "x"], "a": 1})
        assert files.fingerprint("a") == "2757634b7f53cf25"

    def test_depends_on_every_part(self):
        values = [("a",), ("b",), ("a", "b"), ("ab",), ({"a": 1},), ({"a": 1.5},), (None,), ()]
        assert len({files.fingerprint(*value) for value in values}) == len(values)

    def test_is_json_of_sixteen_letters(self):
        assert len(files.fingerprint(json.dumps({}))) == 16


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(CheckpointError, match=r"model: could not be written \(File exists"),
        files.atomic_directory(tmp_path / "file" / "model"),
    ):
        pass
