"""Models of sound under evaluation: equal noise, nothing made twice, rewards and metrics over it."""

import json
import shutil

import pytest

from mmalign.audio import trained
from mmalign.audio.timed import TimedAudioModel
from mmalign.data.audio_media import read_audio
from mmalign.data.config import AudioLimits
from mmalign.errors import ConfigError
from mmalign.evals import generation
from mmalign.evals.audio import generation as sounding
from mmalign.evals.base import Item
from mmalign.evals.benchmark_answers import model_of
from mmalign.evals.benchmark_run import run_benchmark
from mmalign.evals.benchmark_suite import BenchmarkSuite
from mmalign.evals.harness import run_suite
from mmalign.evals.jobs import Job, jobs_of
from mmalign.evals.prompts import prompts_hash
from mmalign.evals.suite import GenerationConfig, ModelSpec, Suite
from mmalign.testing.benchmark_examples.sounded import AmplitudeListener, LoudnessReward
from mmalign.testing.reward_checkpoints.clap import write_clap
from mmalign.testing.tiny_audio import (
    DURATION,
    write_tiny_ace_step,
    write_tiny_tango,
    write_tiny_tangoflux,
)

PROMPTS = ("a dog barks", "rain", "a car passes", "wind")
PAINTING = {"num_steps": 2, "guidance_scale": 2.0, "batch_size": 3, "seed": 5, "duration": DURATION}


@pytest.fixture(scope="module")
def tango(tmp_path_factory):
    return write_tiny_tango(tmp_path_factory.mktemp("models") / "tango")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def told(monkeypatch):
    """Seconds that networks were told of."""
    found, asked_for = [], TimedAudioModel.asked_for
    monkeypatch.setattr(
        TimedAudioModel,
        "asked_for",
        lambda self, seconds: [found.append(seconds), asked_for(self, seconds)][1],
    )
    return found


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def sources(tango, tmp_path):
    """The same model twice, the second under another name and with other settings beside it."""
    copy = tmp_path / "tuned"
    shutil.copytree(tango, copy)
    (copy / "notes.json").write_text("{}")
    return {"base": str(tango), "tuned": str(copy)}


def test_a_suite_of_rewards_sounds_scores_and_compares_two_models(
    tango, store, prompts, tmp_path, monkeypatch
):
    suite = Suite.model_validate(
        {
            "name": "sounds",
            "prompts": [str(prompts)],
            "rewards": [{"name": "clap", "weights": str(write_clap(tmp_path / "clap"))}],
            "generation": PAINTING,
        }
    )
    specs = [ModelSpec(name=name, source=source) for name, source in sources(tango, tmp_path).items()]
    record = run_suite(suite, specs, output=tmp_path / "run", cache=store, device="cpu")
    assert record["media"] == "sounds"
    assert record["rewards"][0]["failed"] == 0
    recipe = record["models"][0]["recipe"]
    assert (recipe["seed"], recipe["num_steps"], recipe["sampling_rate"]) == (5, 2, 16000)
    rows = list(generation.pictures_table(store).read())
    assert len(rows) == 2 * len(PROMPTS)
    by_model = {}
    for row in rows:
        by_model.setdefault(row["sample_id"], set()).add(row["sha256"])
        assert row["path"].endswith(".wav")
    # Equal weights and equal noise: equal sounds; every prompt has noise of its own.
    assert {len(found) for found in by_model.values()} == {1}
    assert len(set.union(*by_model.values())) == len(PROMPTS)
    first = read_audio(str(store / rows[0]["path"]), where="stored", limits=AudioLimits())
    assert (first.sampling_rate, first.coding) == (16000, "PCM_16")
    assert first.seconds == pytest.approx(recipe["duration"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert '"sounds":true' in page.replace(" ", "")

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(sounding, "sound_painter", never)
    again = run_suite(suite, specs, output=tmp_path / "again", cache=store, device="cpu")
    assert again["scores"] == record["scores"]


def test_a_benchmark_sounds_its_prompts_and_hears_them(tango, store, prompts, tmp_path, monkeypatch):
    from mmalign.evals import tools as module

    made = {
        "panns": lambda **_: AmplitudeListener("PANNs", classify=True),
        "clap": lambda **_: LoudnessReward(),
    }
    monkeypatch.setattr(module, "TOOLS", made)
    described = BenchmarkSuite.model_validate(
        {
            "name": "audio",
            "benchmark": "text_to_audio",
            "data": str(prompts.parent),
            "options": {"references": "none", "splits": 2},
            "tools": {"vggish": "none", "clap_sounds": "none"},
            "generation": PAINTING,
        }
    )
    models = [model_of(described.found(), ModelSpec(name="base", source=str(tango)))]
    record = run_benchmark(described, models, output=tmp_path / "run", cache=store, device="cpu")
    assert record["models"][0]["counts"] == {
        "answers": 4,
        "answered": 4,
        "failed": 0,
        "missing": 0,
        "unused records": 0,
    }
    assert record["models"][0]["metrics"][0]["name"] == "IS (PANNs)"
    assert record["models"][0]["provenance"]["recipe"]["format"] == "wav, 16 bits"


def sounded(source, items, tmp_path, **settings):
    """Seconds of the clips of prompts, and the recipes that they are stored with."""
    config = GenerationConfig.model_validate({**PAINTING, **settings})
    folder = tmp_path / "store"
    jobs = jobs_of(items, 1)
    keys = generation.generate_missing(
        ModelSpec(name="m", source=str(source)), jobs, config, folder, device="cpu", media="sounds"
    )
    rows = {row["picture"]: row for row in generation.pictures_table(folder).read()}
    found = [rows[keys[job.sample_id]] for job in jobs]
    clips = [read_audio(str(folder / row["path"]), where="stored", limits=AudioLimits()) for row in found]
    return [clip.seconds for clip in clips], [json.loads(row["recipe"])["duration"] for row in found]


def test_models_that_are_told_the_duration_make_clips_as_long_as_prompts_or_suite_ask(tmp_path, told):
    folder = write_tiny_tangoflux(tmp_path / "flux")
    items = [Item("s/0", "rain"), Item("s/1", "wind", expected={"duration": "0.15"}), Item("s/2", "a dog")]
    seconds, recorded = sounded(folder, items, tmp_path, duration=0.1)
    assert seconds == pytest.approx([0.1, 0.15, 0.1], abs=1e-3)
    assert recorded == [0.1, 0.15, 0.1]
    assert set(told) == {0.1, 0.15}


def test_models_of_whole_frames_make_the_next_longer_clip_which_is_cut(tango, tmp_path):
    items = [Item("s/0", "rain"), Item("s/1", "wind", expected={"duration": 0.5})]
    seconds, recorded = sounded(tango, items, tmp_path)
    assert seconds == pytest.approx([DURATION, 0.5])
    assert recorded == [DURATION, 0.5]


def test_models_of_one_duration_are_loaded_for_the_suites(tmp_path, monkeypatch):
    asked = []

    def load(source, *, device, duration):
        asked.append(duration)
        raise InterruptedError

    monkeypatch.setattr(trained, "load_base", load)
    for number, write in enumerate((write_tiny_ace_step, write_tiny_tangoflux)):
        spec = ModelSpec(name="m", source=str(write(tmp_path / str(number))))
        settings = GenerationConfig(duration=0.5)
        with pytest.raises(InterruptedError), sounding.sound_painter(spec, settings, "cpu"):
            pass
    assert asked == [0.5, None]


@pytest.mark.parametrize("given", ["soon", -1, float("inf"), True])
def test_a_duration_that_is_none_is_refused_by_the_prompts_name(given):
    job = Job(Item("s/7", "rain", expected={"duration": given}), 0)
    with pytest.raises(ConfigError, match=r"prompt s/7: duration: got .*, expected seconds"):
        job.duration()


def test_pictures_have_no_duration(tmp_path):
    spec, settings = ModelSpec(name="m", source="x"), GenerationConfig(duration=5)
    jobs = jobs_of([Item("s/0", "rain")], 1)
    with pytest.raises(ConfigError, match=r"generation\.duration: got 5.*models of pictures"):
        generation.generate_missing(spec, jobs, settings, tmp_path, fingerprint="1")


def test_lists_of_other_durations_are_other_lists():
    plain, timed, longer = (
        prompts_hash([Item("s/0", "rain", expected=more)]) for more in ({}, {"duration": 5}, {"duration": 6})
    )
    assert len({plain, timed, longer}) == 3


def test_pictures_and_sounds_do_not_stand_in_one_run(prompts, tmp_path):
    (tmp_path / "wavs").mkdir()
    suite = Suite.model_validate({"name": "x", "prompts": [str(prompts)], "rewards": [{"name": "clap"}]})
    specs = [
        ModelSpec(name="one", source=f"images:{tmp_path}"),
        ModelSpec(name="two", source=f"sounds:{tmp_path / 'wavs'}"),
    ]
    with pytest.raises(ConfigError, match="one of pictures, two of sounds"):
        run_suite(suite, specs, output=tmp_path / "run", cache=tmp_path / "store", device="cpu")
    pickscore = Suite.model_validate(
        {"name": "x", "prompts": [str(prompts)], "rewards": [{"name": "pickscore_v1"}]}
    )
    with pytest.raises((ConfigError, RuntimeError)):
        run_suite(pickscore, specs[1:], output=tmp_path / "run", cache=tmp_path / "store", device="cpu")


def test_a_folder_that_is_no_model_of_sound_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ConfigError, match=r"StableDiffusionPipeline.*expected an official repository"):
        trained.recognise(str(tmp_path))
    with pytest.raises(ConfigError, match="no model of sound"):
        trained.recognise(str(tmp_path / "nowhere"))
