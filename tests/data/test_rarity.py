"""Weights of pairs by the rarity of their scores, and what may be read of rows beside media and labels."""

import json
import math
from pathlib import Path

import pytest
import torch

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.config import DataConfig
from mmalign.data.derive import DeriveSettings, derive
from mmalign.data.rarity import with_pair_weights
from mmalign.errors import RowError


def pair(*rewards: float | None, **extras: object) -> PreferenceRow:
    sides = tuple(Candidate(text=f"answer {number}", reward=value) for number, value in enumerate(rewards))
    return PreferenceRow("prompt", sides, source="rows.jsonl:5", extras=extras)


SCORES = [(0.95, 0.11), (0.95, 0.11), (0.95, 0.33), (0.71, 0.52)]


def test_pairs_of_rare_scores_weigh_more_by_the_formula_of_the_paper() -> None:
    rows = with_pair_weights([pair(*scores) for scores in SCORES])
    counts = {0.95: 3, 0.11: 2, 0.33: 1, 0.71: 1, 0.52: 1}
    expected = [(3 / math.sqrt(counts[one] * counts[two])) ** 0.72 for one, two in SCORES]
    assert [row.extras["pair_weight"] for row in rows] == pytest.approx(expected, rel=1e-12)
    flat = with_pair_weights([pair(*scores) for scores in SCORES], exponent=0.0)
    assert {row.extras["pair_weight"] for row in flat} == {1.0}
    coarse = with_pair_weights([pair(*scores) for scores in SCORES], width=1.0)
    assert {row.extras["pair_weight"] for row in coarse} == {1.0}
    assert with_pair_weights([]) == []


def test_pairs_without_scores_are_refused() -> None:
    with pytest.raises(RowError, match=r"rows.jsonl:5 pair_weight: got 'pairs with rewards.*data relabel"):
        with_pair_weights([pair(0.5, None)])


def test_the_command_writes_the_column_of_the_whole_data_set(tmp_path: Path) -> None:
    lines = [
        {
            "prompt": f"question {number}",
            "chosen": f"yes {number}",
            "rejected": f"no {number}",
            "score_chosen": chosen,
            "score_rejected": rejected,
        }
        for number, (chosen, rejected) in enumerate(SCORES)
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("\n".join(json.dumps(line) for line in lines))
    config = DataConfig.model_validate({"source": {"path": str(source), "media": "text"}})
    found = derive(config, tmp_path / "out", DeriveSettings("rarity"))
    assert found.rows == 4
    written = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    wanted = with_pair_weights([pair(*scores) for scores in SCORES])
    weights = torch.tensor([row["pair_weight"] for row in written])
    assert weights.tolist() == pytest.approx([row.extras["pair_weight"] for row in wanted])
