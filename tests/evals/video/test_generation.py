"""Models of video under evaluation: equal noise, nothing made twice, rewards and measures over it."""

import json
import shutil

import pytest

from mmalign.data.video_writers import write_clip
from mmalign.errors import ConfigError
from mmalign.evals import generation
from mmalign.evals.adopted_pictures import media_of
from mmalign.evals.base import Item
from mmalign.evals.benchmark_answers import model_of
from mmalign.evals.benchmark_run import run_benchmark
from mmalign.evals.benchmark_suite import BenchmarkSuite
from mmalign.evals.harness import run_suite
from mmalign.evals.jobs import jobs_of
from mmalign.evals.model_media import makes_clips
from mmalign.evals.provenance import combine, read_run
from mmalign.evals.suite import GenerationConfig, ModelSpec, Suite
from mmalign.evals.video import generation as filming
from mmalign.evals.video.footage import read_footage
from mmalign.testing.benchmark_examples.filmed import sliding
from mmalign.testing.tiny_video.wan import WAN_FPS, WAN_FRAMES, WAN_SIZE, write_tiny_wan

PROMPTS = ("a fox runs", "waves", "snow")
SHAPE = {"num_frames": WAN_FRAMES, "height": WAN_SIZE[0], "width": WAN_SIZE[1], "fps": WAN_FPS}
FILMING = {"num_steps": 1, "guidance_scale": 2.0, "batch_size": 2, "seed": 5, **SHAPE}
MOTION = {"name": "mmalign.evals.video.pixels:frame_difference", "title": "motion", "frames": 0}


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return write_tiny_wan(tmp_path_factory.mktemp("models") / "wan")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def suite_of(prompts, *rewards, **painting):
    described = {
        "name": "films",
        "prompts": [str(prompts)],
        "rewards": [*rewards],
        "generation": {**FILMING, **painting},
        "statistics": {"resamples": 100},
    }
    return Suite.model_validate(described)


def run(suite, specs, tmp_path, store, name="run"):
    return run_suite(suite, specs, output=tmp_path / name, cache=store, device="cpu")


def test_a_suite_films_scores_and_compares_two_models(wan, store, prompts, tmp_path, monkeypatch):
    copy = shutil.copytree(wan, tmp_path / "tuned")
    (copy / "notes.json").write_text("{}")
    specs = [ModelSpec(name="base", source=str(wan)), ModelSpec(name="tuned", source=str(copy))]
    suite = suite_of(prompts, MOTION)
    record = run(suite, specs, tmp_path, store)
    assert record["media"] == "clips"
    assert record["rewards"][0]["failed"] == 0
    recipe = record["models"][0]["recipe"]
    assert {name: recipe[name] for name in SHAPE} == SHAPE
    assert (recipe["seed"], recipe["num_steps"], recipe["format"]) == (5, 1, "mp4, crf 18")
    assert not any("measure of motion" in warning for warning in record["warnings"])
    rows = list(generation.pictures_table(store).read())
    assert len(rows) == 2 * len(PROMPTS)
    by_model = {}
    for row in rows:
        by_model.setdefault(row["sample_id"], set()).add(row["sha256"])
    # Equal weights and equal noise: equal files; every prompt has noise of its own.
    assert {len(found) for found in by_model.values()} == {1}
    assert len(set.union(*by_model.values())) == len(PROMPTS)
    clip = read_footage(store / rows[0]["path"])
    assert clip.frames.shape == (WAN_FRAMES, 3, *WAN_SIZE)
    assert clip.fps == pytest.approx(WAN_FPS)
    assert '"clips":true' in (tmp_path / "run" / "report.html").read_text().replace(" ", "")

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(filming, "clip_painter", never)
    assert run(suite, specs, tmp_path, store, "again")["scores"] == record["scores"]


def test_clips_of_another_shape_do_not_stand_in_one_column(wan, store, prompts, tmp_path):
    run(suite_of(prompts, MOTION), [ModelSpec(name="base", source=str(wan))], tmp_path, store, "long")
    other = json.loads((tmp_path / "long" / "results.json").read_text())
    other["models"][0]["recipe"]["num_frames"] = 5
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "results.json").write_text(json.dumps(other))
    runs = [read_run(tmp_path / name) for name in ("long", "short")]
    with pytest.raises(ConfigError, match=rf"recipe\.num_frames: got {WAN_FRAMES} in long .* and 5 in short"):
        combine(runs)
    assert [title.partition(" ")[0] for title in combine(runs, separate=True).columns] == ["motion", "motion"]


def test_a_suite_of_clips_without_a_measure_of_motion_says_so(prompts, tmp_path):
    for number in range(len(PROMPTS)):
        write_clip(tmp_path / "clips" / f"{number}.mkv", sliding(number), 8.0)
    bright = {"name": "mmalign.testing.benchmark_examples.filmed:brightness", "title": "b", "frames": 2}
    spec = [ModelSpec(name="mine", source=f"videos:{tmp_path / 'clips'}")]
    record = run(suite_of(prompts, bright), spec, tmp_path, tmp_path / "store")
    (warning,) = [text for text in record["warnings"] if "measure of motion" in text]
    assert "frame_difference" in warning


def test_a_benchmark_films_its_prompts_and_watches_them(wan, store, prompts, tmp_path):
    left_out = dict.fromkeys(("rewards", "subject", "background", "aesthetic", "flow"), "none")
    described = BenchmarkSuite.model_validate(
        {
            "name": "video",
            "benchmark": "text_to_video",
            "data": str(prompts.parent),
            "tools": left_out,
            "generation": FILMING,
            "groups": 0,
        }
    )
    models = [model_of(described.found(), ModelSpec(name="base", source=str(wan)))]
    record = run_benchmark(described, models, output=tmp_path / "run", cache=store, device="cpu")
    (model,) = record["models"]
    assert model["counts"]["answered"] == len(PROMPTS)
    assert model["provenance"]["recipe"]["num_frames"] == WAN_FRAMES
    flicker, difference = model["metrics"]
    assert (flicker["name"], flicker["beside"]) == ("temporal flickering", ["mean frame difference"])
    assert difference["value"] > 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('src="data:video/mp4;base64,') == len(PROMPTS)
    assert page.count('src="data:image/webp;base64,') == len(PROMPTS)


def test_a_model_of_video_is_known_by_its_configuration(wan, tmp_path):
    assert makes_clips(str(wan))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mmalign_config.yaml").write_text("video: {num_frames: 5}\n")
    assert makes_clips(str(tmp_path / "run"))
    assert makes_clips(str(tmp_path / "run" / "checkpoints" / "step-00000001"))
    (tmp_path / "run" / "mmalign_config.yaml").write_text("image: {}\n")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    for source in (tmp_path, tmp_path / "run", tmp_path / "nowhere", "one/two/three"):
        assert not makes_clips(str(source))
    specs = [ModelSpec(name="a", source=str(wan)), ModelSpec(name="b", source=f"images:{tmp_path}")]
    with pytest.raises(ConfigError, match="a of clips, b of pictures"):
        media_of(specs)


def filmed(spec, items, tmp_path, **settings):
    config = GenerationConfig.model_validate({**FILMING, **settings})
    return generation.generate_missing(
        spec, jobs_of(items, 1), config, tmp_path / "store", device="cpu", media="clips"
    )


def test_settings_of_other_media_are_refused(wan, tmp_path):
    spec, items = ModelSpec(name="m", source=str(wan)), [Item("s/0", "rain")]
    with pytest.raises(ConfigError, match=r"generation\.duration: got 3.*generation\.num_frames"):
        filmed(spec, items, tmp_path, duration=3)
    with pytest.raises(ConfigError, match=r"video\.num_frames: got 6.*multiple of 4 plus 1"):
        filmed(spec, items, tmp_path, num_frames=6)
    with pytest.raises(ConfigError, match=r"generation\.num_frames: got 9.*models of pictures make no clips"):
        generation.generate_missing(
            spec, jobs_of(items, 1), GenerationConfig(num_frames=9), tmp_path, fingerprint="1"
        )


def test_a_run_makes_clips_of_the_shape_it_was_trained_on(wan, tmp_path, monkeypatch):
    from mmalign.video import trained

    loaded = trained.load_base(str(wan), device="cpu", video=SHAPE)
    monkeypatch.setattr(trained, "load_trained", lambda *_, **__: loaded)
    monkeypatch.setattr(filming, "run_of", lambda _: (tmp_path, None))
    spec, settings = ModelSpec(name="m", source="run"), GenerationConfig(fps=99.0)
    with (
        pytest.raises(ConfigError, match=r"generation\.fps: got 99\.0, expected .*trained on"),
        filming.clip_painter(spec, settings, "cpu"),
    ):
        pass


def test_models_that_go_on_from_a_picture_take_the_prompts(tmp_path):
    from PIL import Image

    folder = write_tiny_wan(tmp_path / "i2v", variant="i2v")
    spec = ModelSpec(name="m", source=str(folder))
    with pytest.raises(ConfigError, match=r"prompt s/0: image.*clips go on from a picture"):
        filmed(spec, [Item("s/0", "rain")], tmp_path)
    keys = []
    for level in (0, 200):
        Image.new("RGB", (WAN_SIZE[1], WAN_SIZE[0]), (level, level, level)).save(tmp_path / "start.png")
        item = Item("s/0", "rain", expected={"image": str(tmp_path / "start.png")})
        keys += filmed(spec, [item], tmp_path).values()
    assert len(set(keys)) == 2  # another picture is another clip, not the stored one
    rows = list(generation.pictures_table(tmp_path / "store").read())
    assert len({json.loads(row["recipe"])["image"] for row in rows}) == 2
