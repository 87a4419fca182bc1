"""Collectives are counted once and with their right sizes; times follow from sizes and links."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmalign.train.planning.communication import LINKS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scale():
    sys.path.insert(0, str(BENCHMARKS))
    import scale

    yield scale
    sys.path.remove(str(BENCHMARKS))


def event(start: int, name: str, *shapes: list[int]) -> Any:
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start), input_shapes=list(shapes))


def test_every_collective_counts_once(scale) -> None:
    events = [
        event(5, "gloo:all_reduce", [14]),  # what gloo makes a reduce-scatter of
        event(1, "c10d::_allgather_base_", [14], [7], []),
        event(2, "gloo:all_gather", [7]),
        event(4, "c10d::_reduce_scatter_base_", [7], [14], []),
        event(6, "c10d::allreduce_", []),
        event(7, "gloo:all_reduce", [3]),
        event(8, "aten::add", [5], [5]),
    ]
    found = scale.collectives(events, 2)
    assert {name: value for name, value in found.items() if value} == {
        "gathers": 1,
        "gathered": 14,
        "scatters": 1,
        "scattered": 14,
        "reduces": 1,
        "reduced": 3,
    }


def test_units_are_gathered_as_often_as_is_left_when_the_root_is_taken_away(scale) -> None:
    counts = scale.Counts(gathers=7, gathered=3 * 50 + 11, units=50, root=11, num_units=2)
    assert scale.times_gathered(counts) == 3.0
    assert scale.times_gathered(scale.Counts(gathers=14, gathered=2 * 161, units=50, root=11), 2) == 6.0
    assert scale.times_gathered(scale.Counts(reduces=1, reduced=5)) == 0.0


def test_what_trains_is_sent_twice_by_ddp_and_what_is_frozen_never(scale) -> None:
    shape = scale.Shape("", units=1000, root=100, adapter=10, num_units=5)
    lora, _ = scale.extrapolated(shape, "lora", "ddp", 0.0, LINKS[0], 8)
    assert lora == pytest.approx(2 * 40 * 63 / 64)
    full, _ = scale.extrapolated(shape, "none", "ddp", 0.0, LINKS[0], 8)
    assert full == pytest.approx(2 * 4400 * 63 / 64)
    sharded, _ = scale.extrapolated(shape, "none", "fsdp2", 3.0, LINKS[0], 8)
    assert sharded == pytest.approx((3 * 2000 + 200 + 4400) * 63 / 64)


def test_the_table_names_every_case_and_network(scale) -> None:
    rows = {case: scale.Counts(gathers=3, gathered=161, units=50, root=11, trained=7) for case in scale.CASES}
    shape = scale.Shape("Some network", units=1000, root=100, adapter=10, num_units=5)
    text = scale.table(rows, [shape])
    assert text.count("| sd15 |") == 11 + 2 * len(scale.STAGES)
    assert all(f"| {stage} |" in text for stage in scale.STAGES)
    assert text.count("| llava |") == 3
    assert text.count("| Some network |") == 2 * len(scale.MODES)


def test_known_counts_are_not_counted_again(scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def one(folder: Path, *case: Any) -> Any:
        asked.append(case)
        return scale.Counts(reduces=len(asked))

    monkeypatch.setattr(scale, "CASES", scale.CASES[:3])
    monkeypatch.setattr(scale, "_one", one)
    first = scale.counted(tmp_path / "counts.json")
    assert len(asked) == 3
    assert scale.counted(tmp_path / "counts.json") == first
    assert len(asked) == 3
