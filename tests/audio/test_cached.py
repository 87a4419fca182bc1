"""Training from a cache: the same latents and texts as without one, no encoders, and the right refusals."""

from dataclasses import replace

import pytest
import torch

from mmalign.data import DataConfig, open_rows
from mmalign.data.cache import LatentCache
from mmalign.data.cache_build import build_cache
from mmalign.errors import ConfigError, RowError

ROWS = [("hum", 330, 440), ("a long hum", 550, 660), ("hum", 770, 880)]


class Table:
    """Rows in memory, as the builder reads them."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def where(self, index):
        return f"test:{index}"

    def prompts(self):
        return dict.fromkeys(row.prompt for row in self.rows)


@pytest.fixture(scope="module")
def rows(pair):
    return [pair(prompt, *frequencies) for prompt, *frequencies in ROWS]


@pytest.fixture(scope="module")
def filled(load_tango, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    model = load_tango()
    identity = replace(model.cache_identity(), dtype="float32")
    report = build_cache(Table(rows), model, identity, folder, loader=model.clips, batch_size=4)
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


def test_a_clip_or_prompt_that_is_not_there_says_what_to_run(load_tango, filled, pair):
    model = load_tango(cache=str(filled))
    with pytest.raises(RowError, match=r"its clip is not in the cache.*mmalign data cache") as caught:
        model.example(pair("hum", 111, 222), key=0)
    assert caught.value.reason == "not_cached"
    with pytest.raises(RowError, match="its prompt is not in the cache"):
        model.example(pair("never heard", 330, 440), key=0)


@pytest.mark.parametrize("change", [{"duration": 0.32}, {"normalise": "none"}, {"channel": "mean"}])
def test_a_cache_made_with_other_settings_is_refused(load_tango, filled, change):
    with pytest.raises(ConfigError, match="made for something else"):
        load_tango(cache=str(filled), **change)


def test_a_table_of_a_file_is_encoded_as_well(load_tango, clip, tmp_path):
    for number, frequency in enumerate((330, 440)):
        (tmp_path / f"{number}.wav").write_bytes(clip(frequency))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hum", "chosen": "0.wav", "rejected": "1.wav"}\n')
    source = {"path": str(tmp_path / "rows.jsonl"), "media": "audio"}
    table = open_rows(DataConfig(source=source))
    model = load_tango()
    report = build_cache(table, model, model.cache_identity(), tmp_path / "cache", loader=model.clips)
    assert report.kept == 1
    assert len(LatentCache(tmp_path / "cache")) == 2
