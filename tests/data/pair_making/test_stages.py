"""Work that was written down is not done again, and an interrupted run ends like another."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mmalign.data.pair_making.stages import AGAIN, Stages, if_reached, read_given
from mmalign.errors import ConfigError


class Work:
    """Counts its blocks, and may be killed at one."""

    def __init__(self, killed_at: int = -1) -> None:
        self.blocks: list[list[str]] = []
        self.killed_at = killed_at

    def __call__(self, block: Sequence[str], seed: int) -> list[dict[str, int]]:
        if len(self.blocks) == self.killed_at:
            raise KeyboardInterrupt
        self.blocks.append(list(block))
        return [{"drawn": seed} for _ in block]


def test_an_interrupted_run_ends_with_the_records_of_another(tmp_path: Path) -> None:
    names = list("abcdefg")
    whole = Stages(tmp_path / "whole", {}, 3, 2).run("x", names, Work(), key=str)
    stages = Stages(tmp_path / "cut", {}, 3, 2)
    with pytest.raises(KeyboardInterrupt):
        stages.run("x", names, Work(killed_at=2), key=str)
    again = Work()
    assert stages.run("x", names, again, key=str) == whole
    assert again.blocks == [["e", "f"], ["g"]]


def test_a_torn_line_makes_its_block_anew(tmp_path: Path) -> None:
    stages = Stages(tmp_path, {}, 3, 2)
    whole = stages.run("x", list("abcde"), Work(), key=str)
    path = tmp_path / "x.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    again = Work()
    assert stages.run("x", list("abcde"), again, key=str) == whole
    assert again.blocks == [["e"]]


def test_other_settings_seeds_or_inputs_are_other_records(tmp_path: Path) -> None:
    stages = Stages(tmp_path, {"model": 1}, 3, 2)
    stages.run("x", ["a", "b"], Work(), key=str)
    for other, given in (
        (replace(stages, settings={"model": 2}), {}),
        (replace(stages, seed=4), {}),
        (stages, {"settings": {"temperature": 0.5}}),
        (stages, {"depends": lambda item: item + "!"}),
    ):
        again = Work()
        other.run("x", ["a", "b"], again, key=str, **given)
        assert again.blocks == [["a", "b"]]


def test_more_rows_keep_the_blocks_before_them(tmp_path: Path) -> None:
    stages = Stages(tmp_path, {}, 3, 2)
    first = stages.run("x", list("abcd"), Work(), key=str)
    again = Work()
    assert stages.run("x", list("abcdef"), again, key=str)[:4] == first
    assert again.blocks == [["e", "f"]]


def test_rows_of_one_name_and_lost_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stage x: got 'a', expected rows of different ids"):
        Stages(tmp_path, {}).run("x", ["a", "a"], Work(), key=str)
    with pytest.raises(ConfigError, match="1 records"):
        Stages(tmp_path, {}).run("y", ["a", "b"], lambda block, seed: [{}], key=str)


class Asked:
    """An answer per item; some cannot be reached, some are refused."""

    def __init__(self, away: str = "", refused: str = "") -> None:
        self.away, self.refused, self.names = away, refused, ""

    def answer(self, name: str) -> dict[str, object]:
        self.names += name
        if name in self.away:
            message = "timed out"
            raise TimeoutError(message)
        return {"value": None if name in self.refused else ord(name)}

    def __call__(self, block: Sequence[str], seed: int) -> list[dict[str, object]]:
        del seed
        return [if_reached(lambda name=name: self.answer(name), {"value": None}) for name in block]


def test_what_could_not_be_reached_is_asked_again_and_what_was_refused_is_not(tmp_path: Path) -> None:
    stages = Stages(tmp_path, {}, 3, 2)
    asked = Asked(away="be", refused="c")
    found = stages.run("x", list("abcde"), asked, key=str, alone=True)
    assert [record["value"] for record in found] == [97, None, None, 100, None]
    assert [record.get(AGAIN) for record in found][1] == "TimeoutError: timed out"
    assert stages.unanswered == {"x: TimeoutError: timed out": 2}
    again = Asked()
    found = Stages(tmp_path, {}, 3, 2).run("x", list("abcde"), again, key=str, alone=True)
    assert again.names == "be"
    assert [record["value"] for record in found] == [97, 98, None, 100, 101]
    # Of blocks whose items belong together, the whole block is made again.
    whole = Asked(away="b")
    Stages(tmp_path, {}, 3, 2).run("y", list("abcde"), whole, key=str)
    whole = Asked()
    Stages(tmp_path, {}, 3, 2).run("y", list("abcde"), whole, key=str)
    assert whole.names == "ab"


def test_a_run_that_reaches_nothing_ends_and_keeps_what_it_has(tmp_path: Path) -> None:
    asked = Asked(away="bcdefghijklm")
    with pytest.raises(
        ConfigError, match=r"stage x: got \[no answer 8 times in a row: TimeoutError: timed out"
    ):
        Stages(tmp_path, {}, 3, 2).run("x", list("abcdefghijklm"), asked, key=str, alone=True)
    again = Asked()
    Stages(tmp_path, {}, 3, 2).run("x", list("abcdefghijklm"), again, key=str, alone=True)
    assert again.names == "bcdefghijklm"


def test_a_given_file_must_have_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a JSONL file"):
        read_given(tmp_path / "none.jsonl", needs=("id",))
    path = tmp_path / "given.jsonl"
    path.write_text('{"id": 1}\n{"other": 2}\n')
    with pytest.raises(ConfigError, match=r"given.jsonl:2: got \[no id\]"):
        read_given(path, needs=("id",))
