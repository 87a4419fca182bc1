"""Training from a cache: the same latents and texts as without one, no encoders, and the right refusals."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmalign.cli.encoding import encode_run
from mmalign.data import DataConfig, open_rows
from mmalign.data.cache import LatentCache
from mmalign.data.cache_build import build_cache
from mmalign.errors import ConfigError, RowError
from mmalign.train.audio_sections import AudioConfig
from mmalign.train.sections import ModelConfig

ROWS = [("hum", 330, 440), ("a long hum", 550, 660), ("hum", 770, 880)]


@pytest.fixture(scope="module")
def table(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    records = []
    for prompt, *frequencies in ROWS:
        names = [f"{frequency}.wav" for frequency in frequencies]
        for name, frequency in zip(names, frequencies, strict=True):
            (folder / name).write_bytes(clip(frequency))
        records.append({"prompt": prompt, "chosen": names[0], "rejected": names[1]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return open_rows(DataConfig(source={"path": str(folder / "rows.jsonl"), "media": "audio"}))


@pytest.fixture(scope="module")
def rows(table):
    return [table[index] for index in range(len(table))]


@pytest.fixture(scope="module")
def filled(load_tango, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    model = load_tango()
    identity = replace(model.cache_identity(), dtype="float32")
    report = build_cache(table, model, identity, folder, loader=model.clips, batch_size=4)
    assert report.kept == 3
    return folder


def encoded(model, rows, keys):
    examples = [model.example(row, key=key) for row, key in zip(rows, keys.key.tolist(), strict=True)]
    return model.encode(model.collate(examples), keys)


def test_latents_and_texts_equal_those_of_the_encoders(load_tango, filled, rows, keys):
    live, cached = load_tango(), load_tango(cache=str(filled))
    for chosen in ([0], [0, 1, 2]):
        batch = [rows[number] for number in chosen]
        expected, found = (encoded(model, batch, keys(*[n + 5 for n in chosen])) for model in (live, cached))
        assert torch.allclose(found[0], expected[0], atol=1e-5)
        assert torch.equal(found[1].shared["text_mask"], expected[1].shared["text_mask"])
        mask = expected[1].shared["text_mask"]
        assert torch.allclose(found[1].shared["text"][mask], expected[1].shared["text"][mask], atol=1e-5)


def test_every_clip_and_every_prompt_is_stored_once_and_texts_at_their_own_length(filled, load_tango):
    cache = LatentCache(filled)
    assert len(cache) == 6
    lengths = {prompt: cache.text(prompt)["text"].shape[1] for prompt in ("", "hum", "a long hum")}
    assert lengths[""] == 1
    assert lengths["hum"] < lengths["a long hum"]


def test_no_encoder_is_loaded_for_a_row_of_the_cache(load_tango, filled, rows, keys, monkeypatch):
    model = load_tango(cache=str(filled), prompt_dropout=0.5)

    def forbidden(name, **options):
        raise AssertionError(name)

    monkeypatch.setattr(model.source, "part", forbidden)
    encoded(model, rows[:2], keys(1, 2))
    assert model.prompt_conditioning(["hum", "a long hum"]).shared["text"].shape[0] == 2


def test_a_clip_or_prompt_that_is_not_there_says_what_to_run(load_tango, filled, pair, rows):
    model = load_tango(cache=str(filled))
    with pytest.raises(RowError, match=r"its clip is not in the cache.*mmalign data cache") as caught:
        model.example(pair("hum", 111, 222), key=0)
    assert caught.value.reason == "not_cached"
    with pytest.raises(RowError, match="its prompt is not in the cache"):
        model.example(replace(rows[0], prompt="never heard"), key=0)


@pytest.mark.parametrize("change", [{"duration": 0.32}, {"normalise": "none"}, {"channel": "mean"}])
def test_a_cache_made_with_other_settings_is_refused(load_tango, filled, change):
    with pytest.raises(ConfigError, match="made for something else"):
        load_tango(cache=str(filled), **change)


def test_the_command_encodes_the_clips_of_a_run(table, tango_folder, tmp_path, monkeypatch, capsys):
    config = SimpleNamespace(
        model=ModelConfig(family="tango", source=str(tango_folder)),
        audio=AudioConfig(duration=0.64, cache=str(tmp_path / "cache")),
        data=DataConfig(source={"path": "rows.jsonl"}),
        train=SimpleNamespace(device="cpu", mixed_precision="no"),
    )
    monkeypatch.setattr("mmalign.train.config.load_run", lambda *_: SimpleNamespace(config=config))
    monkeypatch.setattr("mmalign.data.readers.open_rows", lambda _: table)
    report = encode_run(tmp_path / "run.yaml")
    assert report.kept == 3
    assert len(LatentCache(tmp_path / "cache")) == 6
    assert "Train with audio.cache=" in capsys.readouterr().out
