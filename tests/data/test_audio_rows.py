"""Data sets of sounds: every layout is recognised, read, checked and converted."""

import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mmalign.cli.main import main
from mmalign.data import open_rows
from mmalign.data.audio_media import read_audio
from mmalign.data.check import check
from mmalign.data.config import AudioLimits
from mmalign.data.convert import convert
from mmalign.data.derive import DeriveSettings, derive
from mmalign.errors import ConfigError, RowError

RATE = 8_000


def sound(seed=0, seconds=0.5, loud=0.1, container="WAV"):
    """Bytes of a noise clip."""
    file = io.BytesIO()
    values = np.random.default_rng(seed).normal(0, loud, int(seconds * RATE)).clip(-1, 1)
    soundfile.write(file, values, RATE, format=container)
    return file.getvalue()


def samples(media):
    return read_audio(media, where="x", limits=AudioLimits()).samples


@pytest.fixture
def files(tmp_path):
    """Write sounds beside the rows: files("a.wav", "b.flac")."""

    def write(*names):
        for seed, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = {"wav": "WAV", "flac": "FLAC", "mp3": "MP3", "ogg": "OGG"}[name.rpartition(".")[2]]
            path.write_bytes(sound(seed, container=kind))

    return write


@pytest.fixture
def alpaca():
    """Records as the hub set stores them."""
    strategies = ["1.1", "2", "3"]
    return [
        {
            "prompt": f"prompt {number}",
            "chosen": {"bytes": sound(2 * number), "path": f"{number}_w.wav"},
            "rejected": {"bytes": sound(2 * number + 1), "path": f"{number}_l.wav"},
            "strategy": strategy,
        }
        for number, strategy in enumerate(strategies)
    ]


# ------------------------------------------------------------------------------------------------ layouts


def test_audio_alpaca_is_recognised_in_parquet(alpaca, write_parquet, config_of):
    table = open_rows(config_of(write_parquet(alpaca)), kind="pairs")
    assert table.media == {"audio"}
    rows = list(table)
    assert [row.prompt for row in rows] == ["prompt 0", "prompt 1", "prompt 2"]
    assert [row.extras["strategy"] for row in rows] == ["1.1", "2", "3"]
    assert rows[1].candidates[0].audio == sound(2)
    assert rows[1].candidates[1].audio == sound(3)
    assert samples(rows[1].candidates[1].audio).shape == (1, RATE // 2)


def test_a_saved_data_set_with_the_audio_feature_is_read_undecoded(alpaca, config_of, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchcodec", None)
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "chosen": datasets.Audio(sampling_rate=16_000),
            "rejected": datasets.Audio(),
            "strategy": datasets.Value("string"),
        }
    )
    table = pa.Table.from_pylist(alpaca, schema=features.arrow_schema)
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    rows = list(open_rows(config_of(tmp_path / "saved"), kind="pairs"))
    assert [row.candidates[0].audio for row in rows] == [sound(0), sound(2), sound(4)]


def test_sounds_named_by_paths_are_recognised(files, write_lines, config_of, tmp_path):
    files("a.wav", "b.flac", "c.mp3", "d.ogg")
    records = [
        {"captions": "one", "chosen": "a.wav", "reject": "b.flac", "duration": 10},
        {"captions": "two", "chosen": "c.mp3", "reject": "d.ogg", "duration": 10},
    ]
    # The columns of TangoFlux's CRPO: `captions` and `reject`.
    rows = list(open_rows(config_of(write_lines(records)), kind="pairs"))
    assert rows[0].candidates[0].audio == str(tmp_path / "a.wav")
    assert rows[0].extras == {"duration": 10}
    assert all(samples(one.audio).shape[1] >= RATE // 2 for row in rows for one in row.candidates)


def test_two_sounds_with_a_winner_turn_to_chosen_and_rejected(files, write_lines, config_of):
    files("a.wav", "b.wav")
    path = write_lines([{"prompt": "x", "audio_a": "a.wav", "audio_b": "b.wav", "winner": "b"}])
    (row,) = open_rows(config_of(path))
    assert row.candidates[0].audio.endswith("b.wav")


def test_binary_labels_are_unpaired_rows(files, write_lines, config_of):
    files("a.wav", "b.wav")
    # As people rate whether all events of a prompt are there (BATON).
    records = [
        {"text": "a dog", "audio": "a.wav", "label": 1},
        {"text": "a cat", "audio": "b.wav", "label": 0},
    ]
    table = open_rows(config_of(write_lines(records)))
    assert (table.kind, table.media) == ("unpaired", {"audio"})
    assert [row.desirable for row in table] == [True, False]
    assert [row.prompt for row in open_rows(config_of(write_lines(records)), kind="chosen")] == ["a dog"]


def test_sounds_with_captions_alone_are_examples_to_follow(files, write_lines, config_of):
    files("a.wav", "b.wav")
    records = [{"captions": "a dog", "location": "a.wav"}, {"captions": "a cat", "location": "b.wav"}]
    path = write_lines(records)
    for kind in ("chosen", None):
        table = open_rows(config_of(path), kind=kind)
        assert table.kind == "chosen"
        assert [(row.kind, row.candidates[0].audio[-5:]) for row in table] == [
            ("chosen", "a.wav"),
            ("chosen", "b.wav"),
        ]
    with pytest.raises(ConfigError, match="fit no layout"):
        open_rows(config_of(path), kind="pairs")


def test_scored_samples_become_rankings_pairs_and_ends(files, write_lines, config_of):
    files("a.wav", "b.wav", "c.wav")
    listed = [
        {"audio": f"{name}.wav", "score": score, "steps": 5}
        for name, score in zip("abc", (3, 1, 2), strict=True)
    ]
    path = write_lines([{"prompt": "x", "samples": listed}, {"prompt": "y", "samples": listed[:2]}])
    first, second = open_rows(config_of(path))
    assert first.relevance == (3.0, 1.0, 2.0)
    assert [one.audio[-5:] for one in first.candidates] == ["a.wav", "b.wav", "c.wav"]
    assert [one.reward for one in second.candidates] == [3.0, 1.0]
    assert first.extras == {"sample_steps": [5, 5, 5]}
    ends = open_rows(config_of(path, source={"lists": "best_worst"}), kind="pairs")
    assert [[one.audio[-5:] for one in row.candidates] for row in ends] == [["a.wav", "b.wav"]] * 2


def test_lists_of_sounds_with_scores_are_rankings(files, write_lines, config_of):
    files("a.wav", "b.wav")
    path = write_lines([{"prompt": "x", "audio_paths": ["a.wav", "b.wav"], "scores": [0.25, 0.5]}])
    (row,) = open_rows(config_of(path))
    assert (row.kind, row.relevance) == ("lists", (0.25, 0.5))
    assert row.candidates[1].audio.endswith("b.wav")


@pytest.mark.parametrize("captions", ["text", "metadata"])
def test_two_matched_folders_of_sounds_are_pairs(files, config_of, tmp_path, captions):
    files("set/chosen/a.wav", "set/rejected/a.flac")
    if captions == "text":
        (tmp_path / "set/chosen/a.txt").write_text("a dog")
    else:
        record = json.dumps({"file_name": "a.wav", "caption": "a dog"})
        (tmp_path / "set/metadata.jsonl").write_text(record)
    (row,) = open_rows(config_of(tmp_path / "set"))
    assert row.prompt == "a dog"
    assert [one.audio.rpartition(".")[2] for one in row.candidates] == ["wav", "flac"]


def test_a_folder_of_sounds_with_metadata_is_read(files, config_of, tmp_path):
    files("set/a.wav", "set/b.wav")
    lines = [json.dumps({"file_name": f"{name}.wav", "text": f"a {name}"}) for name in "ab"]
    (tmp_path / "set/metadata.jsonl").write_text("\n".join(lines))
    rows = list(open_rows(config_of(tmp_path / "set"), kind="chosen"))
    assert [row.prompt for row in rows] == ["a a", "a b"]
    assert samples(rows[0].candidates[0].audio).shape[0] == 1


def test_decoded_arrays_become_files_and_damaged_ones_are_refused(write_lines, config_of):
    good = {"array": [0.0, 0.5, -1.5] * 700, "sampling_rate": RATE}
    stereo = {"array": [[0.0, 0.5], [0.25, -0.25]], "sampling_rate": RATE}
    bad = {"array": [0.0], "sampling_rate": None}
    records = [{"prompt": "x", "chosen": good, "rejected": other} for other in (stereo, bad)]
    table = open_rows(config_of(write_lines(records)))
    row = table[0]
    assert samples(row.candidates[0].audio)[0, :3].tolist() == [0.0, 0.5, -1.5]
    pair = read_audio(row.candidates[1].audio, where="x", limits=AudioLimits(min_seconds=0))
    assert pair.samples.tolist() == [[0.0, 0.5], [0.25, -0.25]]
    with pytest.raises(RowError, match="samples per second") as error:
        table[1]
    assert error.value.reason == "bad_media"


def test_pictures_and_texts_are_not_taken_for_sounds(
    pickapic_records, write_parquet, write_lines, config_of, encoded
):
    assert open_rows(config_of(write_parquet(pickapic_records([1.0])))).media == {"image"}
    avif = encoded(format="AVIF")
    records = [{"prompt": "x", "chosen": avif, "rejected": encoded(1)}]
    assert open_rows(config_of(write_parquet(records, "b.parquet"))).media == {"image"}
    words = write_lines([{"prompt": "x", "chosen": "yes", "rejected": "no"}])
    assert open_rows(config_of(words, source={"media": "text"})).media == {"text"}


def test_what_the_settings_say_wins_over_what_is_recognised(alpaca, write_parquet, config_of):
    table = open_rows(config_of(write_parquet(alpaca), source={"media": "image"}))
    assert table.media == {"image"}
    assert table[0].candidates[0].image == sound(0)


def test_both_spellings_of_the_hub_id_lead_to_one(monkeypatch, config_of):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: asked.append(name) or {}["no"])
    for name in ("declare-lab/audio_alpaca", "declare-lab/audio-alpaca"):
        with pytest.raises(KeyError):
            open_rows(config_of(name))
    assert asked == ["declare-lab/audio-alpaca"] * 2


# ------------------------------------------------------------------------------------------------ check


@pytest.fixture
def mixed(alpaca, write_parquet):
    """Three good pairs; a text file, silence, a cut file, twice the same, NaN, a missing side."""

    def pair(chosen, rejected):
        sides = {"chosen": chosen, "rejected": rejected}
        return {"prompt": "x", "strategy": "2"} | {
            side: None if data is None else {"bytes": data, "path": "a.wav"} for side, data in sides.items()
        }

    file = io.BytesIO()
    soundfile.write(file, np.full(RATE, np.nan), RATE, format="WAV", subtype="FLOAT")
    records = [
        *alpaca,
        pair(b"no sound at all", sound(11)),
        pair(sound(12), sound(13, loud=0.0)),
        pair(sound(14)[:2_000], sound(15)),
        pair(sound(16), sound(16)),
        pair(file.getvalue(), sound(17)),
        pair(sound(18), None),
    ]
    return write_parquet(records)


def test_check_counts_sounds_by_reason_and_notes_doubts(mixed, config_of):
    found = check(config_of(mixed), decode="all")
    assert found.read.bad == {
        "not_audio": 1,
        "truncated_audio": 1,
        "identical_candidates": 1,
        "not_finite": 1,
        "missing_audio": 1,
    }
    assert (found.read.read, found.read.kept) == (9, 4)
    assert found.audio["seconds"] == [0.5, 0.5, 0.5]
    assert found.audio["sampling_rates"] == {RATE: found.audio["looked_at"]}
    assert found.audio["notes"] == {"silent": 1}
    assert found.duplicates == {"repeated_rows": 0, "sounds_used_more_than_once": 0}
    assert any("1 clip noted as silent: nothing to hear" in line for line in found.advice)
    assert not found.ok


def test_check_shows_sounds_to_people(mixed, capsys, tmp_path):
    page = tmp_path / "page.html"
    assert main(["data", "check", str(mixed), "--decode", "all", "--html", str(page)]) == 1
    shown = capsys.readouterr().out
    assert "sounds: seconds: least, median, most" in shown
    assert "bad: truncated_audio" in shown
    text = page.read_text()
    assert text.count("<audio controls") == text.count('<svg class="wave"') > 7
    assert "data:audio/mpeg;base64," in text
    assert "expected a sound" in text
    assert "http" not in text


def test_check_warns_where_the_length_or_loudness_gives_the_label_away(alpaca, write_parquet, config_of):
    records = [
        record | {"prompt": f"p{n}", "chosen": {"bytes": sound(n, seconds=0.25 + n / 100), "path": None}}
        for n in range(23)
        for record in alpaca[:1]
    ]
    advice = check(config_of(write_parquet(records)), decode="all").advice
    assert any("rejected clip is the longer one" in line for line in advice)
    records = [
        record | {"prompt": f"p{n}", "chosen": {"bytes": sound(n, loud=0.3), "path": None}}
        for n in range(23)
        for record in alpaca[:1]
    ]
    advice = check(config_of(write_parquet(records, "b.parquet")), decode="all").advice
    assert any("chosen clip is the louder one" in line for line in advice)
    assert not any("longer one" in line for line in advice)


def test_check_without_decoding_reads_bytes_alone(mixed, config_of):
    found = check(config_of(mixed), decode="none")
    assert found.read.bad == {"identical_candidates": 1, "missing_audio": 1}
    assert "seconds" not in found.audio


# ------------------------------------------------------------------------------------------------ convert


@pytest.mark.parametrize("to", ["audio-alpaca", "jsonl", "folders"])
def test_converted_sounds_are_the_same_bytes(alpaca, write_parquet, config_of, tmp_path, to):
    records = [record | {"chosen_score": 0.5, "rejected_score": 0.25} for record in alpaca]
    output = tmp_path / ("out.parquet" if to == "audio-alpaca" else "out")
    report = convert(config_of(write_parquet(records)), output, to=to)
    assert report.kept == 3
    rows = list(open_rows(config_of(output), kind="pairs"))
    assert [row.prompt for row in rows] == ["prompt 0", "prompt 1", "prompt 2"]
    for number, row in enumerate(rows):
        first, second = (read_bytes(one.audio) for one in row.candidates)
        assert (first, second) == (sound(2 * number), sound(2 * number + 1))
        if to != "folders":
            assert [one.reward for one in row.candidates] == [0.5, 0.25]
            assert row.extras["strategy"] == alpaca[number]["strategy"]


def read_bytes(media):
    return media if isinstance(media, bytes) else open(media, "rb").read()


def test_converted_parquet_has_the_audio_feature(alpaca, write_parquet, config_of, tmp_path):
    output = tmp_path / "out.parquet"
    assert main(["data", "convert", str(write_parquet(alpaca)), str(output), "--to", "audio-alpaca"]) == 0
    stored = datasets.Dataset(pq.read_table(output))
    assert isinstance(stored.features["chosen"], datasets.Audio)
    assert isinstance(stored.features["rejected"], datasets.Audio)
    for side in ("chosen", "rejected"):
        stored = stored.cast_column(side, datasets.Audio(decode=False))
    assert stored[1]["chosen"]["bytes"] == sound(2)


def test_unpaired_sounds_and_examples_survive_json_lines(files, write_lines, config_of, tmp_path):
    files("a.wav")
    for name, extra in (("liked", {"label": 1}), ("plain", {})):
        path = write_lines([{"prompt": "x", "audio": "a.wav", **extra}])
        before = open_rows(config_of(path))
        convert(config_of(path), tmp_path / name, to="jsonl")
        after = open_rows(config_of(tmp_path / name))
        assert after.kind == before.kind == ("unpaired" if extra else "chosen")
        assert read_bytes(after[0].candidates[0].audio) == sound(0)


def test_sounds_do_not_fit_a_layout_of_pictures(alpaca, write_parquet, config_of, tmp_path, pickapic_records):
    with pytest.raises(ConfigError, match=r"got \[audio files\], expected image files for pickapic"):
        convert(config_of(write_parquet(alpaca)), tmp_path / "o", to="pickapic")
    pictures = write_parquet(pickapic_records([1.0]), "b.parquet")
    with pytest.raises(ConfigError, match=r"got \[image files\], expected audio files for audio-alpaca"):
        convert(config_of(pictures), tmp_path / "o", to="audio-alpaca")


def test_pairs_are_derived_of_ranked_sounds(files, write_lines, config_of, tmp_path):
    files("a.wav", "b.wav", "c.wav")
    path = write_lines([{"prompt": "x", "audios": ["a.wav", "b.wav", "c.wav"], "scores": [1, 3, 2]}])
    derive(config_of(path), tmp_path / "out", DeriveSettings(how="best_vs_rest"))
    rows = list(open_rows(config_of(tmp_path / "out"), kind="pairs"))
    assert [[read_bytes(one.audio) for one in row.candidates] for row in rows] == [
        [sound(1), sound(2)],
        [sound(1), sound(0)],
    ]
    assert [[one.reward for one in row.candidates] for row in rows] == [[3.0, 2.0], [3.0, 1.0]]
