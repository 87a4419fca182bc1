"""Text to audio: references by name, what cannot be heard, equal sets, a run from folders to a comparison."""

import json
import math
from pathlib import Path

import pytest
import torch

from mmalign.data.audio_media import encode_audio
from mmalign.errors import ConfigError
from mmalign.evals.base import Answer
from mmalign.evals.benchmark_answers import model_of
from mmalign.evals.benchmark_run import lacking, run_benchmark
from mmalign.evals.benchmark_suite import BenchmarkSuite, read_any_suite
from mmalign.evals.benchmarks.text_to_audio import BENCHMARK, read_items
from mmalign.evals.provenance import combine, read_run
from mmalign.evals.suite import ModelSpec
from mmalign.testing.benchmark_examples import EXAMPLES
from mmalign.testing.benchmark_examples.sounded import AmplitudeListener, LoudnessReward, sound

EXAMPLE = EXAMPLES["text_to_audio"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "official").mkdir()
    EXAMPLE.write(tmp_path / "official")
    return tmp_path / "official"


def tools():
    return dict(EXAMPLE.scoring(Path("unread")))


def named(outcome):
    return {metric.name: metric for metric in outcome.metrics}


def test_the_references_themselves_are_at_no_distance(folder):
    items = read_items(folder)
    outcome = BENCHMARK.score([Answer(item, media=item.media) for item in items], **tools())
    found = named(outcome)
    assert list(found)[:3] == ["FAD (VGGish)", "FD (PANNs)", "FD (CLAP)"]
    for name in ("FAD (VGGish)", "FD (PANNs)", "KL (PANNs)"):
        assert found[name].value == pytest.approx(0.0, abs=1e-5), name
        assert found[name].higher_is_better is False
    assert found["IS (PANNs)"].value > 1.0
    assert outcome.counts["failed"] == 0
    assert "biased upwards with few clips" in outcome.notes[0]


def test_metrics_are_those_of_the_features(folder):
    from mmalign.evals.class_scores import class_divergence
    from mmalign.evals.set_distances import frechet_distance

    items = read_items(folder)
    answers = EXAMPLE.answers(items)
    found = named(BENCHMARK.score(answers, **tools()))
    ears = AmplitudeListener("x", classify=True)
    clips = [ears.hear([answer.media[0]])[0] for answer in answers]
    references = [ears.hear([item.media[0]])[0] for item in items]
    pooled = [torch.cat([one.features for one in side]) for side in (clips, references)]
    assert found["FAD (VGGish)"].value == pytest.approx(float(frechet_distance(*pooled)))
    target, logits = (torch.stack([one.logits for one in side]) for side in (references, clips))
    each = class_divergence(target, logits)
    assert found["KL (PANNs)"].value == pytest.approx(float(each.mean()))
    assert list(found["KL (PANNs)"].per_item.values()) == pytest.approx(each.tolist())


def test_what_cannot_be_heard_is_counted_and_the_rest_scored(folder):
    items = read_items(folder)
    answers = EXAMPLE.answers(items)
    answers[1] = Answer(items[1], media=(b"no sound",))
    answers[2] = Answer(items[2], error="there is no sound")
    outcome = BENCHMARK.score(answers, **tools())
    assert (outcome.counts["clips"], outcome.counts["failed"]) == (5, 2)
    assert outcome.counts["clips PANNs could not hear"] == 1
    assert any("expected a sound" in note for note in outcome.notes)
    parts = named(outcome)["KL (PANNs)"].per_item
    assert [math.isnan(parts[item.id]) for item in items[:4]] == [False, True, True, False]
    nothing = BENCHMARK.score([Answer(item, error="none") for item in items], **tools())
    assert all(math.isnan(metric.value) for metric in nothing.metrics)


def test_references_are_matched_by_name_and_a_mismatch_is_loud(folder):
    references = folder / "references"
    (references / "output_3.wav").rename(references / "else.wav")
    with pytest.raises(ConfigError, match=r"no reference of 1 of 7 prompts.*00003, 3, output_3"):
        read_items(folder)
    assert read_items(folder, references="none")[0].media == ()
    rows = [{"captions": f"sound {number}", "location": f"data/a_{number}.wav"} for number in range(3)]
    for number in range(3):
        (references / f"a_{number}.flac").write_bytes(sound(number))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "test_audiocaps_subset.json").write_text(text)
    items = read_items(folder, prompts="test_audiocaps_subset.json")
    assert [item.media[0].name for item in items] == ["a_0.flac", "a_1.flac", "a_2.flac"]
    assert items[0].prompt == "sound 0"


def test_the_bytes_of_references_are_part_of_the_annotations(folder):
    before = read_items(folder)
    (folder / "references" / "output_0.wav").write_bytes(sound(77))
    after = read_items(folder)
    assert before[0].expected != after[0].expected
    assert before[1].expected == after[1].expected


def test_distances_from_a_background_bear_its_name_and_digest(folder, tmp_path):
    from mmalign.evals.set_distances import frechet_distance

    root = tmp_path / "studio" / "deeper"
    root.mkdir(parents=True)
    for number in range(5):
        (root / f"{number}.wav").write_bytes(sound(200 + number))
    answers = EXAMPLE.answers(read_items(folder))
    outcome = BENCHMARK.score(answers, background=str(tmp_path / "studio"), **tools())
    (name,) = (name for name in named(outcome) if name.startswith("FAD (VGGish, background studio "))
    ears = AmplitudeListener("x")
    clips, others = (
        torch.cat([heard.features for heard in ears.hear(media)])
        for media in ([answer.media[0] for answer in answers], sorted(root.glob("*.wav")))
    )
    found = named(outcome)
    assert found[name].value == pytest.approx(float(frechet_distance(clips, others)))
    assert found["FAD (VGGish)"].value != pytest.approx(found[name].value)
    assert outcome.counts["background clips VGGish could not hear"] == 0
    # Bytes decide: a moved set keeps its name, another file is another set.
    (tmp_path / "studio").rename(tmp_path / "away")
    (tmp_path / "else").mkdir()
    (tmp_path / "away").rename(tmp_path / "else" / "studio")
    moved = BENCHMARK.score(answers, background=str(tmp_path / "else" / "studio"), **tools())
    assert name in named(moved)
    (tmp_path / "else" / "studio" / "deeper" / "0.wav").write_bytes(sound(300))
    changed = named(BENCHMARK.score(answers, background=str(tmp_path / "else" / "studio"), **tools()))
    assert name not in changed
    alone = BENCHMARK.score(
        [
            Answer(item, media=answer.media)
            for item, answer in zip(read_items(folder, references="none"), answers, strict=True)
        ],
        background=str(tmp_path / "else" / "studio"),
        vggish=AmplitudeListener("VGGish"),
    )
    assert all("background studio" in name for name in named(alone))
    assert "biased upwards" in alone.notes[0]


def test_a_background_needs_two_sounds(folder, tmp_path):
    answers = EXAMPLE.answers(read_items(folder))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.wav").write_bytes(sound(1))
    for place, got in (("one", "one with 1 sounds"), ("nowhere", "nowhere")):
        with pytest.raises(ConfigError, match=rf"options\.background: got .*{got}.*two sounds or more"):
            BENCHMARK.score(answers, background=str(tmp_path / place), **tools())


def test_without_references_only_what_needs_none_is_measured(folder):
    items = read_items(folder, references="none")
    answers = EXAMPLE.answers(items)
    found = named(BENCHMARK.score(answers, **tools()))
    assert list(found) == ["IS (PANNs)", "IS spread (PANNs)", "CLAP (loudness)"]
    with pytest.raises(ConfigError, match="expected panns or clap"):
        BENCHMARK.score(answers, vggish=AmplitudeListener("VGGish"))
    with pytest.raises(ConfigError, match="expected one of vggish, panns, clap, clap_sounds"):
        BENCHMARK.score(answers)


def test_several_clips_of_a_prompt_share_one_reference(folder):
    from mmalign.evals.set_distances import frechet_distance

    items = read_items(folder)
    answers = [Answer(item, media=(sound(100 + 7 * copy),), copy=copy) for item in items for copy in range(2)]
    ears = AmplitudeListener("VGGish")
    found = named(BENCHMARK.score(answers, vggish=ears))
    clips = torch.cat([ears.hear([answer.media[0]])[0].features for answer in answers])
    references = torch.cat([ears.hear([item.media[0]])[0].features for item in items])
    assert found["FAD (VGGish)"].value == pytest.approx(float(frechet_distance(clips, references)))


def test_fewer_clips_than_splits_have_no_inception_score(folder):
    answers = EXAMPLE.answers(read_items(folder))
    found = named(BENCHMARK.score(answers, panns=AmplitudeListener("PANNs", classify=True), splits=11))
    assert math.isnan(found["IS (PANNs)"].value)


@pytest.fixture
def loaded(monkeypatch):
    """Tools without weights, by what `--tool` names."""
    from mmalign.evals import tools as module

    made = {
        "vggish": lambda **_: AmplitudeListener("VGGish"),
        "panns": lambda weights="16 kHz", **_: AmplitudeListener(f"PANNs {weights}", classify=True),
        "clap": lambda **_: LoudnessReward(),
        "clap_sounds": lambda **_: AmplitudeListener("CLAP"),
    }
    monkeypatch.setattr(module, "TOOLS", made)


def folder_of(tmp_path, name, seed):
    made = tmp_path / name
    made.mkdir()
    for number in range(7):
        (made / f"output_{number}.wav").write_bytes(sound(seed + number))
    return f"sounds:{made}"


def suite(folder, **settings):
    given = {"name": "audio", "benchmark": "text_to_audio", "data": str(folder), "groups": 3}
    return BenchmarkSuite.model_validate({**given, "options": {"splits": 2}, **settings})


def ran(described, sources, tmp_path, name):
    models = [model_of(BENCHMARK, ModelSpec(name=key, source=source)) for key, source in sources.items()]
    return run_benchmark(described, models, output=tmp_path / name, cache=tmp_path / "store")


def test_folders_of_wavs_are_compared_with_intervals_and_pairs(folder, tmp_path, loaded):
    sources = {"base": folder_of(tmp_path, "one", 100), "tuned": folder_of(tmp_path, "two", 300)}
    record = ran(suite(folder), sources, tmp_path, "run")
    first = {metric["name"]: metric for metric in record["models"][0]["metrics"]}
    assert first["FAD (VGGish)"]["interval"]["method"] == "delete-a-group jackknife"
    assert first["KL (PANNs 16 kHz)"]["mean_of_items"]
    compared = {(row["metric"], row["exact"]) for row in record["comparisons"]}
    assert ("CLAP (loudness)", True) in compared
    assert ("FAD (VGGish)", True) in compared
    assert record["tools"]["panns"] == {"name": "PANNs 16 kHz", "sampling_rate": 4000}
    assert not lacking(record)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<audio" in page


def test_numbers_of_other_networks_or_loading_refuse_to_stand_in_one_column(folder, tmp_path, loaded):
    sources = {"base": folder_of(tmp_path, "one", 100)}
    ran(suite(folder), sources, tmp_path, "plain")
    ran(suite(folder, tools={"panns": "32 kHz"}), sources, tmp_path, "other")
    ran(suite(folder, options={"splits": 2, "loading": "released"}), sources, tmp_path, "released")
    plain, other, released = (read_run(tmp_path / name) for name in ("plain", "other", "released"))
    with pytest.raises(ConfigError, match=r"tools\.panns\.name: got 'PANNs 16 kHz'.*'PANNs 32 kHz'"):
        combine([plain, other])
    with pytest.raises(ConfigError, match=r"options\.loading: got .* and 'released'"):
        combine([plain, released])
    found = combine([plain, plain.__class__("again", plain.record, plain.rows, plain.folder)])
    assert "text_to_audio/FAD (VGGish)" in found.columns


def test_a_folder_that_lacks_a_clip_says_so_and_one_of_other_names_is_refused(folder, tmp_path, loaded):
    source = folder_of(tmp_path, "one", 100)
    (tmp_path / "one" / "output_4.wav").unlink()
    (tmp_path / "one" / "output_70.wav").write_bytes(sound(1))
    (tmp_path / "one" / "output_71.wav").write_bytes(sound(2))
    record = ran(suite(folder), {"base": source}, tmp_path, "run")
    assert lacking(record)
    assert any("1 of 7 answers are missing" in text for text in record["warnings"])
    assert any("2 files belong to no item" in text for text in record["warnings"])
    for number, path in enumerate(sorted((tmp_path / "one").iterdir())):
        path.rename(path.with_name(f"clip-{number}.wav"))
    with pytest.raises(ConfigError, match=r"8 sounds in .*, none of them of the suite"):
        ran(suite(folder), {"base": source}, tmp_path, "refused")
    with pytest.raises(ConfigError, match="text_to_audio takes no such folder"):
        model_of(BENCHMARK, ModelSpec(name="pictures", source=f"images:{tmp_path}"))


def test_the_shipped_suite_reads(pytestconfig):
    found = read_any_suite(pytestconfig.rootpath / "evals" / "suites" / "audio.yaml")
    assert isinstance(found, BenchmarkSuite)
    assert found.found() is BENCHMARK


def test_a_clip_of_16_bits_is_what_is_stored():
    data = encode_audio(torch.full((1, 8000), 0.5), 16000, container="wav")
    assert data[:4] == b"RIFF"
    assert int.from_bytes(data[34:36], "little") == 16
