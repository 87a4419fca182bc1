"""Encoded inputs on disk: what comes out is what went in, whatever interrupted the building."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmalign.data import open_rows
from mmalign.data.cache import CacheIdentity, CacheWriter, LatentCache
from mmalign.data.cache_build import build_cache
from mmalign.diffusion.images import RESIZE_RULE, ImageLoader
from mmalign.errors import CheckpointError, ConfigError, RowError, TrainingError

IDENTITY = CacheIdentity(vae="vae-1", text="text-1", resolution=16, resize=RESIZE_RULE, dtype="float32")


class FakeModel:
    """Moments that depend on every pixel and on nothing else; counts what it is asked."""

    def __init__(self):
        self.images, self.prompts = 0, []

    def cache_moments(self, pixels):
        self.images += len(pixels)
        small = torch.nn.functional.avg_pool2d(pixels.float(), 4) / 255.0
        return SimpleNamespace(mean=small, std=small * 0.5 + 0.125)

    def cache_text(self, prompts):
        self.prompts += prompts
        states = [torch.tensor([len(prompt), hash(prompt) % 97], dtype=torch.float32) for prompt in prompts]
        return [{"text": value.expand(5, -1), "pooled": value.to(torch.bfloat16)} for value in states]


@pytest.fixture
def table(pickapic_records, write_parquet, config_of):
    return open_rows(config_of(write_parquet(pickapic_records([1.0, 0.0, 1.0], caption=["x", "y", "x"]))))


def build(table, folder, model=None, *, identity=IDENTITY, crop="center", flip=True, **options):
    loader = ImageLoader(resolution=identity.resolution, flip=flip)
    model = model or FakeModel()
    report = build_cache(
        table,
        model,
        identity,
        folder,
        loader=loader,
        crop=crop,
        flip=flip,
        batch_size=2,
        num_threads=2,
        **options,
    )
    return report, model


@pytest.mark.parametrize("flipped", [False, True])
def test_cached_moments_equal_those_of_the_model(table, tmp_path, flipped):
    report, model = build(table, tmp_path / "cache")
    assert report.kept == 3
    assert model.images == 12  # 3 pairs, plain and mirrored
    cache, loader = LatentCache(tmp_path / "cache", expect=IDENTITY), ImageLoader(resolution=16)
    assert len(cache) == 12
    for row in table:
        candidates = loader.centered(row, loader.encoded(row), flipped=flipped)
        expected = model.cache_moments(candidates.pixels)
        mean, std, geometry = cache.row(row, loader, flipped=flipped)
        assert torch.equal(mean, expected.mean)
        assert torch.equal(std, expected.std)
        assert torch.equal(geometry, candidates.geometry)


def test_a_flip_has_its_own_entry(table, tmp_path):
    build(table, tmp_path / "cache")
    cache, loader = LatentCache(tmp_path / "cache"), ImageLoader(resolution=16)
    plain, _, _ = cache.row(table[0], loader, flipped=False)
    mirrored, _, _ = cache.row(table[0], loader, flipped=True)
    assert not torch.equal(plain, mirrored)


def test_a_cache_built_without_flips_says_what_is_missing(table, tmp_path):
    build(table, tmp_path / "cache", flip=False)
    cache, loader = LatentCache(tmp_path / "cache"), ImageLoader(resolution=16, flip=True)
    cache.row(table[0], loader, flipped=False)
    with pytest.raises(
        RowError, match=r"mirrored image is not in the cache .* adds what is missing"
    ) as caught:
        cache.row(table[0], loader, flipped=True)
    assert caught.value.reason == "not_cached"


def test_text_states_are_stored_once_per_prompt_with_their_dtype(table, tmp_path):
    _, model = build(table, tmp_path / "cache")
    assert model.prompts == ["", "x", "y"]
    cache = LatentCache(tmp_path / "cache")
    (expected,) = FakeModel().cache_text(["y"])
    found = cache.text("y")
    assert torch.equal(found["text"][0], expected["text"])
    assert torch.equal(found["pooled"][0], expected["pooled"])
    assert found["pooled"].dtype == torch.bfloat16
    assert cache.text("") is not None
    assert cache.text("never seen") is None
    assert cache.moments("0" * 32) is None
    assert cache.geometry("0" * 32) is None


def test_building_again_encodes_nothing(table, tmp_path):
    build(table, tmp_path / "cache")
    _, model = build(table, tmp_path / "cache")
    assert model.images == 0
    assert model.prompts == []


def test_building_adds_what_is_missing(table, tmp_path):
    build(table, tmp_path / "cache", flip=False)
    _, model = build(table, tmp_path / "cache", flip=True)
    assert model.images == 6
    assert len(LatentCache(tmp_path / "cache")) == 12


def test_equal_images_are_encoded_once(pickapic_records, write_parquet, config_of, tmp_path):
    records = pickapic_records([1.0, 1.0, 1.0])
    for record in records:
        record["jpg_0"] = records[0]["jpg_0"]
    _, model = build(open_rows(config_of(write_parquet(records))), tmp_path / "cache", flip=False)
    assert model.images == 4


def test_unreadable_images_are_counted_once_and_left_out(
    pickapic_records, write_parquet, config_of, tmp_path
):
    records = pickapic_records([1.0, 1.0, 1.0])
    records[1]["jpg_1"] = records[1]["jpg_1"][:200]
    report, model = build(open_rows(config_of(write_parquet(records))), tmp_path / "cache")
    assert report.bad.total() == 1
    assert (report.read, report.kept) == (3, 2)
    assert model.images == 8


def test_rows_that_share_an_image_with_an_unreadable_row_are_encoded(
    pickapic_records, write_parquet, config_of, tmp_path
):
    """Rows 0 and 1 are unreadable, and have the two images of row 2 between them, which has both."""
    records = pickapic_records([1.0] * 4)
    shared = records[2]["jpg_0"], records[2]["jpg_1"]
    for number in (0, 1):
        records[number]["jpg_0"] = records[number]["jpg_0"][:200]
        records[number]["jpg_1"] = shared[number]
    records[3]["jpg_0"], records[3]["jpg_1"] = shared
    table = open_rows(config_of(write_parquet(records)))
    report, model = build(table, tmp_path / "cache", flip=False)
    assert (report.read, report.kept, report.bad.total()) == (4, 2, 2)
    assert model.images == 2
    cache, loader = LatentCache(tmp_path / "cache"), ImageLoader(resolution=16)
    for number in (2, 3):
        mean, _, _ = cache.row(table[number], loader, flipped=False)
        assert len(mean) == 2
    _, again = build(table, tmp_path / "cache", flip=False)
    assert again.images == 0


def test_what_another_builder_is_writing_is_left_alone(table, tmp_path):
    folder = tmp_path / "cache"
    build(table, folder)
    young, old = folder / ".moments-1.partial", folder / ".moments-2.partial"
    for path in (young, old):
        path.write_bytes(b"half a shard")
    hours_ago = time.time() - 2 * 3600
    os.utime(old, (hours_ago, hours_ago))
    build(table, folder)
    assert young.exists()
    assert not old.exists()


@pytest.mark.parametrize("field", ["vae", "text", "resolution", "resize"])
def test_a_cache_of_another_model_is_refused(table, tmp_path, field):
    build(table, tmp_path / "cache")
    other = replace(IDENTITY, **{field: 999 if field == "resolution" else "other"})
    with pytest.raises(
        ConfigError, match=f"made for something else .*{field}: cache .* this run .*other|999"
    ):
        LatentCache(tmp_path / "cache", expect=other)
    with pytest.raises(ConfigError, match="Encode again into another folder"):
        CacheWriter(tmp_path / "cache", other)


def test_half_precision_halves_the_moments_and_is_read_by_any_run(table, tmp_path):
    build(table, tmp_path / "cache", identity=replace(IDENTITY, dtype="float16"))
    cache = LatentCache(tmp_path / "cache", expect=IDENTITY)
    mean, _, _ = cache.row(table[0], ImageLoader(resolution=16), flipped=False)
    assert mean.dtype == torch.float16
    with pytest.raises(ConfigError, match="dtype: cache 'float16', this run 'float32'"):
        CacheWriter(tmp_path / "cache", IDENTITY)


def test_a_missing_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no cache here. Make one: mmalign data cache"):
        LatentCache(tmp_path / "nothing")


def test_random_crops_are_refused(table, tmp_path):
    with pytest.raises(ConfigError, match="random crop is another image at every visit"):
        build(table, tmp_path / "cache", crop="random")


def test_values_that_are_not_finite_stop_the_building(table, tmp_path):
    model = FakeModel()
    model.cache_moments = lambda pixels: SimpleNamespace(
        mean=torch.full((len(pixels), 4, 2, 2), 1e6), std=torch.ones(len(pixels), 4, 2, 2)
    )
    with pytest.raises(TrainingError, match="overflows in float16"):
        build(table, tmp_path / "cache", model, identity=replace(IDENTITY, dtype="float16"))


def test_a_damaged_shard_is_named(table, tmp_path):
    build(table, tmp_path / "cache")
    shard = next((tmp_path / "cache").glob("moments-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"not a complete cache shard.*Delete the file"):
        len(LatentCache(tmp_path / "cache"))


def test_a_cache_from_before_there_was_sound_is_still_read(table, tmp_path):
    build(table, tmp_path / "cache")
    header = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert set(header["identity"]) == {"vae", "text", "resolution", "resize", "dtype"}
    LatentCache(tmp_path / "cache", expect=IDENTITY)
    with pytest.raises(ConfigError, match="audio: cache '', this run 'a rule'"):
        LatentCache(tmp_path / "cache", expect=replace(IDENTITY, audio="a rule"))


def test_a_cache_of_an_older_format_is_refused(table, tmp_path):
    build(table, tmp_path / "cache")
    header = tmp_path / "cache" / "cache.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"format": 0}))
    with pytest.raises(ConfigError, match="got cache format 0, expected 1"):
        LatentCache(tmp_path / "cache", expect=IDENTITY)


def test_many_small_shards_are_one_cache_and_travel_to_workers(table, tmp_path):
    build(table, tmp_path / "cache", shard_bytes=1)
    assert len(list((tmp_path / "cache").glob("moments-*.safetensors"))) == 12
    cache = LatentCache(tmp_path / "cache")
    cache._MAX_HANDLES = 2
    loader = ImageLoader(resolution=16)
    expected = [cache.row(row, loader, flipped=False)[0] for row in table]
    travelled = pickle.loads(pickle.dumps(cache))
    found = [travelled.row(row, loader, flipped=False)[0] for row in table]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


BUILDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from test_cache import FakeModel, IDENTITY
from mmalign.data import DataConfig, open_rows
from mmalign.data.cache_build import build_cache
from mmalign.diffusion.images import ImageLoader

class Slow(FakeModel):
    def cache_moments(self, pixels):
        time.sleep(0.05)
        return super().cache_moments(pixels)

table = open_rows(DataConfig(source={{"path": {path!r}}}))
build_cache(table, Slow(), IDENTITY, {folder!r}, loader=ImageLoader(16), crop="center", flip=False,
            batch_size=1, num_threads=1, shard_bytes=1)
"""


def test_a_killed_build_goes_on_and_ends_like_an_uninterrupted_one(
    pickapic_records, write_parquet, config_of, tmp_path
):
    path = write_parquet(pickapic_records([1.0] * 20))
    table, folder = open_rows(config_of(path)), tmp_path / "cache"
    script = BUILDER.format(tests=os.path.dirname(__file__), path=str(path), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while len(list(folder.glob("moments-*"))) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = len(LatentCache(folder))
    assert 5 <= written < 40
    _, model = build(table, folder, flip=False)
    assert model.images == 40 - written
    build(table, tmp_path / "whole", flip=False)
    cache, whole, loader = LatentCache(folder), LatentCache(tmp_path / "whole"), ImageLoader(16)
    for row in table:
        for a, b in zip(
            cache.row(row, loader, flipped=False), whole.row(row, loader, flipped=False), strict=True
        ):
            assert torch.equal(a, b)
