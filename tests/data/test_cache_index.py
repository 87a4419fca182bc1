"""Names of a cache in sorted arrays: what a set and a dictionary would say."""

import random

import numpy as np
import pytest
import torch

from mmalign.data import cache_index
from mmalign.data.cache_index import KeyIndex, KeySet
from mmalign.errors import CheckpointError
from mmalign.files import save_tensors


def test_a_set_of_names_holds_what_was_put_in_and_nothing_else(monkeypatch):
    monkeypatch.setattr(cache_index, "_RECENT", 7)
    draw, names, plain = random.Random(0), KeySet([["b", "a"], [], ["c"]]), {"a", "b", "c"}
    assert len(names) == 3
    for _ in range(500):
        name = f"{draw.randrange(200):x}" * draw.randint(1, 3)
        assert (name in names) == (name in plain)
        names.add(name)
        plain.add(name)
        assert name in names
        assert len(names) == len(plain)
    assert all(name in names for name in plain)
    assert "" not in names


def test_names_take_as_many_bytes_as_letters(monkeypatch):
    monkeypatch.setattr(cache_index, "_RECENT", 7)
    names = KeySet()
    for number in range(1000):
        names.add(f"{number:032}")
    assert names._sorted.nbytes + 32 * len(names._recent) == 32_000
    assert len(names._recent) <= 1000 // 8 + 1


def test_an_index_finds_the_shard_and_row_of_every_entry(tmp_path):
    expected = {}
    for shard, (kind, count) in enumerate([("moments", 5), ("text", 3), ("moments", 2)]):
        keys = [f"{shard}{row:031}" for row in range(count)]
        name = f"{kind}-{shard}.safetensors"
        import json

        save_tensors(tmp_path / name, {"mean": torch.zeros(count, 1)}, {"keys": json.dumps(keys)})
        expected |= {(kind[0], key): (name, row) for row, key in enumerate(keys)}
    index = KeyIndex(tmp_path)
    for (kind, key), (name, row) in expected.items():
        number, found = index.find(kind, key)
        assert (index.shards[number].name, found) == (name, row)
        assert index.find("t" if kind == "m" else "m", key) is None
    assert (index.count("m"), index.count("t")) == (7, 3)
    assert index.find("m", "absent") is None
    assert index.nbytes == 10 * (33 + 8)


def test_an_empty_folder_has_an_empty_index(tmp_path):
    index = KeyIndex(tmp_path)
    assert index.find("m", "x") is None
    assert index.count("m") == 0


def test_a_broken_shard_is_named(tmp_path):
    (tmp_path / "moments-0.safetensors").write_bytes(np.arange(9, dtype=np.uint8).tobytes())
    with pytest.raises(CheckpointError, match=r"moments-0.safetensors: not a complete cache shard"):
        KeyIndex(tmp_path)
