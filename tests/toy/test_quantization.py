"""DPO over quantised frozen weights gains what it gains over float32 ones, and starts where it should."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.files import read_json_lines
from mmalign.toy.comparison import bootstrap_mean
from mmalign.toy.method_bench import Worlds
from mmalign.toy.quantization_trials import KINDS, difference, image_trial, tables

RECORDS = Path("docs/measurements/quantization.jsonl")
LOSS = 0.25
"""Share of float32's gain that a kind of weights may cost on one seed before this is called no parity."""


def record(kind: str, seed: int, gains: list[float]) -> dict[str, Any]:
    size = {"layers": 3, "narrow_weights": 100, "narrow_bytes": 54, "world": "images", "kind": kind}
    margin = {"start": 0.0, "spread": 2.0, "shared": 0.5, "apart": 7.0}
    return {**size, "seed": seed, "gains": gains, "margin": margin}


def test_differences_are_paired_by_seed_and_caption() -> None:
    records = [
        record("float32", 1, [0.1, 0.5, 0.3]),
        record("float32", 2, [0.9, 0.9, 0.9]),  # no nf4 of this seed: it counts nowhere
        record("nf4", 1, [0.0, 0.4, 0.2]),
    ]
    found = difference(records, "images", "nf4")
    assert (found.value, found.low, found.high) == pytest.approx((-0.1, -0.1, -0.1), abs=1e-6)
    made = tables(records)
    assert "| nf4 | 3 | 0.54 |" in made["images"]
    assert "| nf4 | 0 | 2 | 0.5 | 7 |" in made["logits"]


def test_the_page_holds_the_tables_of_the_stored_runs(repository: Path) -> None:
    page = (repository / "docs/quantization.md").read_text(encoding="utf-8")
    for name, text in tables(read_json_lines(repository / RECORDS)).items():
        assert f"<!-- {name}:begin -->\n{text}\n<!-- {name}:end -->" in page, name


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    worlds, learnt, made = Worlds(tmp_path_factory.mktemp("worlds")), None, {}
    for kind in KINDS:
        made[kind], learnt = image_trial(worlds, kind, 1, learnt=learnt)
    yield made
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_quantised_base_gains_what_float32_gains(trials: dict[str, dict[str, Any]], kind: str) -> None:
    wide = bootstrap_mean(torch.tensor(trials["float32"]["gains"]))
    gap = difference(list(trials.values()), "images", kind)
    print(f"{kind}: {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] of {wide.value:+.3f}")
    assert wide.low > 0
    assert gap.high >= 0 or gap.value > -LOSS * wide.value
    margin = trials[kind]["margin"]
    assert margin["start"] == 0.0
    assert margin["shared"] < 0.1 * margin["spread"]
