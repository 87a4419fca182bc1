"""Models of sound under evaluation: equal noise, nothing made twice, rewards and metrics over it."""

import shutil
from functools import partial

import pytest

from mmalign.audio import trained
from mmalign.data.audio_media import read_audio
from mmalign.data.config import AudioLimits
from mmalign.errors import ConfigError
from mmalign.evals import generation
from mmalign.evals.audio import generation as sounding
from mmalign.evals.benchmark_answers import model_of
from mmalign.evals.benchmark_run import run_benchmark
from mmalign.evals.benchmark_suite import BenchmarkSuite
from mmalign.evals.harness import run_suite
from mmalign.evals.suite import ModelSpec, Suite
from mmalign.testing.benchmark_examples.sounded import AmplitudeListener, LoudnessReward
from mmalign.testing.reward_checkpoints.clap import write_clap
from mmalign.testing.tiny_audio import DURATION, write_tiny_tango

PROMPTS = ("a dog barks", "rain", "a car passes", "wind")
PAINTING = {"num_steps": 2, "guidance_scale": 2.0, "batch_size": 3, "seed": 5}


@pytest.fixture(scope="module")
def tango(tmp_path_factory):
    return write_tiny_tango(tmp_path_factory.mktemp("models") / "tango")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Clips of a second or so: the vocoder takes most of the time."""
    monkeypatch.setattr(trained, "load_base", partial(trained.load_base, duration=DURATION))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


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
