"""Rows of a data set as features of pairs: labels, weights, columns, and what is left out."""

import json

import pytest
import torch
from PIL import Image

from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError
from mmalign.rewards.training.backbones import make_backbone
from mmalign.rewards.training.feature_store import FeatureStore
from mmalign.rewards.training.pairs import Columns, read_pairs, split, weighted_by_prompt


@pytest.fixture
def backbone():
    return make_backbone("pixels", size=2, colours=1, words=7)


@pytest.fixture
def write_rows(tmp_path):
    """JSON lines of pairs (left colour, right colour, preference of the left, further columns)."""

    def write(*rows):
        lines = []
        for number, (left, right, preference, more) in enumerate(rows):
            for side, colour in (("a", left), ("b", right)):
                Image.new("RGB", (32, 32), colour).save(tmp_path / f"{number}{side}.png")
            record = {"prompt": f"prompt {number}", "image_a": f"{number}a.png", "image_b": f"{number}b.png"}
            lines.append(json.dumps({**record, "label": preference, **more}))
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        return DataConfig(source=str(tmp_path / "rows.jsonl"), tie_policy="soft", max_bad_share=0.5)

    return write


def table_of(config, backbone, **columns):
    rows = open_rows(config, kind="pairs")
    return read_pairs(rows, FeatureStore(backbone), Columns(**columns))


def colour_of(table, side):
    """Red, green and blue of the first pixel of one side of every pair."""
    return table.pairs.side(side).items[:, [0, 4, 8]].round().int().tolist()


def test_the_preferred_side_comes_first_with_its_label_and_weight(write_rows, backbone):
    config = write_rows(
        ("red", "blue", 1, {"weight": 2.0}),
        ("red", "lime", 0, {"weight": 0.5}),
        ("blue", "red", 0.5, {"weight": 1}),
    )
    table = table_of(config, backbone)
    assert colour_of(table, "first") == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert colour_of(table, "second") == [[0, 0, 1], [1, 0, 0], [1, 0, 0]]
    assert table.pairs.probability.tolist() == [1.0, 1.0, 0.5]
    assert table.pairs.weight.tolist() == [2.0, 0.5, 1.0]
    assert len(table.pairs.items) == 3, "equal pictures share a row"
    prompts = table.pairs.side("first").prompts
    expected = [backbone.features.of_text(f"prompt {number}") for number in range(3)]
    assert torch.equal(prompts, torch.stack(expected))


def test_users_contexts_and_tasks_are_numbered_by_name(write_rows, backbone):
    more = [
        {"who": who, "why": why, "kind": kind}
        for who, why, kind in (("b", "x y", 2), ("a", "z", 1), ("b", "z", 1))
    ]
    config = write_rows(*(("red", "blue", 1, extra) for extra in more))
    table = table_of(config, backbone, user="who", context="why", task="kind")
    assert table.users == ("a", "b")
    assert table.pairs.user.tolist() == [1, 0, 1]
    assert (table.tasks, table.pairs.task.tolist()) == (("1", "2"), [1, 0, 0])
    contexts = table.pairs.side("second").contexts
    assert torch.equal(contexts, torch.stack([backbone.features.of_text(text) for text in ("x y", "z", "z")]))


def test_pictures_that_cannot_be_read_are_counted_and_the_others_kept(write_rows, backbone, tmp_path):
    config = write_rows(("red", "blue", 1, {}), ("red", "lime", 1, {}), ("blue", "lime", 1, {}))
    (tmp_path / "1b.png").write_bytes(b"no picture")
    table = table_of(config, backbone)
    assert sum(table.dropped.values()) == 1
    assert table.texts == ("prompt 0", "prompt 2")
    (tmp_path / "0a.png").unlink()
    with pytest.raises(
        ConfigError, match=r"2 of 3 rows that cannot be used: .*expected at most 50%.*First: "
    ):
        table_of(config, backbone)


def test_the_pairs_of_a_prompt_can_weigh_one_together(write_rows, backbone, tmp_path):
    config = write_rows(*(("red", "blue", 1, {"weight": 1.5}),) * 4)
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text().replace("prompt 1", "prompt 0").replace("prompt 2", "prompt 0"))
    table = weighted_by_prompt(table_of(config, backbone))
    assert table.pairs.weight.tolist() == [0.5, 0.5, 0.5, 1.5]


def test_a_split_keeps_prompts_together_and_names_a_part_without_pairs(write_rows, backbone):
    config = write_rows(*(("red", "blue", 1, {}),) * 30)
    table = table_of(config, backbone)
    parts = split(table, seed=0, validation_share=0.3, test_share=0.3)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(30))
    with pytest.raises(ConfigError, match=r"validation: pairs for (validation|test): got \[none of 30 pairs"):
        split(table, seed=0, validation_share=1e-9, test_share=1e-9)
