"""Text to video: motion beside every quality, VBench's prompts, clips nobody can see, folders compared."""

import json
import math
from pathlib import Path

import pytest

from mmalign.data.video_writers import write_clip
from mmalign.errors import ConfigError
from mmalign.evals.base import Answer
from mmalign.evals.benchmark_answers import model_of
from mmalign.evals.benchmark_run import lacking, run_benchmark
from mmalign.evals.benchmark_suite import BenchmarkSuite, read_any_suite
from mmalign.evals.benchmarks import vbench
from mmalign.evals.benchmarks.text_to_video import BENCHMARK, read_items
from mmalign.evals.provenance import combine, read_run
from mmalign.evals.suite import ModelSpec
from mmalign.evals.video.consistency import ConsistencyWatcher
from mmalign.evals.video.pixels import PixelWatcher
from mmalign.evals.video.quality import ClipRewards
from mmalign.testing.benchmark_examples import EXAMPLES
from mmalign.testing.benchmark_examples.filmed import BrightClips, MeanColours, StepWatcher, sliding

EXAMPLE = EXAMPLES["text_to_video"]
SUITES = Path(__file__).parents[3] / "evals" / "suites"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "official").mkdir()
    EXAMPLE.write(tmp_path / "official")
    return tmp_path / "official"


def tools():
    return dict(EXAMPLE.scoring(Path("unread")))


def named(outcome):
    return {metric.name: metric for metric in outcome.metrics}


def test_every_number_of_quality_stands_with_motion(folder):
    outcome = BENCHMARK.score(EXAMPLE.answers(read_items(folder)), **tools())
    motion = ("dynamic degree (steps)", "mean flow (steps)", "mean frame difference")
    quality = [metric for metric in outcome.metrics if metric.higher_is_better and metric.name != motion[0]]
    assert [metric.name for metric in quality] == [
        "bright",
        "bright: red",
        "subject consistency (colours)",
        "temporal consistency (colours)",
        "background consistency (quarters)",
        "temporal consistency (quarters)",
        "temporal flickering",
    ]
    assert {metric.beside for metric in quality} == {motion}
    assert named(outcome)["mean frame difference"].higher_is_better is None
    assert "4 of VBench's 16 dimensions" in outcome.notes[0]
    assert "no VBench total" in outcome.notes[0]


def test_quality_without_motion_is_not_printed(folder):
    answers = EXAMPLE.answers(read_items(folder))
    with pytest.raises(ConfigError, match=r"pixels=none, flow=none.*stand still"):
        BENCHMARK.score(answers, rewards=ClipRewards({"bright": BrightClips()}))
    without_flow = BENCHMARK.score(answers, **{**tools(), "flow": None})
    assert named(without_flow)["bright"].beside == ("mean frame difference",)


def test_long_clips_weigh_more_in_consistency_but_not_in_their_item(folder, tmp_path):
    items = read_items(folder)[:2]
    clips = [sliding(1, frames=3, step=9), sliding(2, frames=8, step=1)]
    paths = [write_clip(tmp_path / f"{n}.mkv", clip, 8.0) for n, clip in enumerate(clips)]
    answers = [Answer(item, media=(path,)) for item, path in zip(items, paths, strict=True)]
    watcher = ConsistencyWatcher(MeanColours())
    seen = [watcher.see(path)["consistency"] for path in paths]
    assert [len(one) for one in seen] == [2, 7]
    outcome = BENCHMARK.score(answers, subject=watcher, pixels=PixelWatcher())
    found = named(outcome)["subject consistency (colours)"]
    assert found.value == pytest.approx(sum(map(sum, seen)) / 9)
    assert list(found.per_item.values()) == pytest.approx([sum(one) / len(one) for one in seen])


def test_vbenchs_prompts_count_for_their_dimensions_alone(folder, tmp_path):
    rows = [
        {"prompt_en": "a still lake", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a fox runs", "dimension": ["subject_consistency", "dynamic_degree"]},
    ]
    (tmp_path / "vbench").mkdir()
    (tmp_path / "vbench" / "VBench_full_info.json").write_text(json.dumps(rows))
    items = read_items(tmp_path / "vbench")
    outcome = BENCHMARK.score([EXAMPLE.answer(item, 0) for item in items], **tools())
    found = named(outcome)
    for name, item in (
        ("temporal flickering", 0),
        ("subject consistency (colours)", 1),
        ("dynamic degree (steps)", 1),
    ):
        assert list(found[name].per_item) == [items[item].id], name
    assert len(found["mean frame difference"].per_item) == 2
    assert math.isnan(found["background consistency (quarters)"].value)  # no prompt is for it


class Lengths:
    """Holds clips against a style by the number of its letters; frame k counts k more."""

    name = "letters"

    def of(self, style):
        class Watcher(StepWatcher):
            def watch(self, clip):
                return {"style": [(len(style) + k) / 100 for k in range(len(clip.frames))]}

        return Watcher()


def test_appearance_style_is_the_mean_over_frames_of_clips_with_a_style(tmp_path):
    styles = [{"appearance_style": {"appearance_style": style}} for style in ("ink", "oil paint")]
    rows = [
        {"prompt_en": "a lake, ink", "dimension": ["appearance_style"], "auxiliary_info": styles[0]},
        {"prompt_en": "a fox", "dimension": ["subject_consistency"]},
        {"prompt_en": "a fox, oil", "dimension": ["appearance_style"], "auxiliary_info": styles[1]},
        {"prompt_en": "a hill", "dimension": ["appearance_style"]},
        {"prompt_en": "a red car", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
    ]
    (tmp_path / "VBench_full_info.json").write_text(json.dumps(rows))
    items = read_items(tmp_path)
    clips = [sliding(n, frames=frames) for n, frames in enumerate((3, 5, 7, 2, 2))]
    paths = [write_clip(tmp_path / f"{n}.mkv", clip, 8.0) for n, clip in enumerate(clips)]
    answers = [Answer(item, media=(path,)) for item, path in zip(items, paths, strict=True)]
    outcome = BENCHMARK.score(answers, style=Lengths(), pixels=PixelWatcher(), dimensions="appearance_style")
    (found,) = [one for one in outcome.metrics if one.name == "appearance style (letters)"]
    ink, oil = [0.03, 0.04, 0.05], [(9 + k) / 100 for k in range(7)]
    assert found.value == pytest.approx((sum(ink) + sum(oil)) / 10)
    assert found.per_item == pytest.approx({items[0].id: 0.04, items[2].id: 0.12})
    assert found.beside == ("mean frame difference",)
    assert (outcome.counts["clips"], outcome.counts["clips style could not see"]) == (5, 0)
    (tmp_path / "0.mkv").write_bytes(b"no clip")
    outcome = BENCHMARK.score(answers, style=Lengths(), pixels=PixelWatcher())
    assert outcome.counts["clips style could not see"] == 1
    (found,) = [one for one in outcome.metrics if one.name == "appearance style (letters)"]
    assert math.isnan(found.per_item[items[0].id])
    assert found.value == pytest.approx(sum(oil) / 7)
    outcome = BENCHMARK.score(answers, pixels=PixelWatcher())
    assert any("2 clips were asked for in a style: tools.style=vit-b-32" in note for note in outcome.notes)


def test_own_prompts_may_name_a_style_and_count_where_they_do(tmp_path):
    rows = [{"prompt": "a", "appearance_style": "ink"}, {"prompt": "b"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = read_items(tmp_path)
    path = write_clip(tmp_path / "a.mkv", sliding(1, frames=3), 8.0)
    answers = [Answer(item, media=(path,)) for item in items]
    outcome = BENCHMARK.score(answers, style=Lengths(), pixels=PixelWatcher())
    assert named(outcome)["appearance style (letters)"].per_item == pytest.approx({items[0].id: 0.04})


def test_clips_nobody_can_see_are_counted_and_the_rest_measured(folder, tmp_path):
    items = read_items(folder)
    answers = EXAMPLE.answers(items)
    (tmp_path / "broken.mp4").write_bytes(b"no clip")
    answers[1] = Answer(items[1], media=(tmp_path / "broken.mp4",))
    answers[2] = Answer(items[2], error="there is no clip")
    outcome = BENCHMARK.score(answers, **tools())
    assert (outcome.counts["clips"], outcome.counts["failed"]) == (3, 2)
    assert outcome.counts["clips subject could not see"] == 1
    assert outcome.counts["clips bright could not score"] == 1
    assert any("broken.mp4" in note for note in outcome.notes)
    parts = named(outcome)["bright"].per_item
    assert [math.isnan(parts[item.id]) for item in items[:4]] == [False, True, True, False]


def test_dimensions_that_are_asked_for_must_be_measured(folder):
    answers = EXAMPLE.answers(read_items(folder))
    BENCHMARK.score(answers, dimensions="subject consistency, dynamic_degree", **tools())
    with pytest.raises(ConfigError, match=r"imaging quality.*MUSIQ"):
        BENCHMARK.score(answers, dimensions="imaging quality", **tools())


def films(folder, step, fps=8.0):
    for number in range(5):
        write_clip(folder / f"{number}.mkv", sliding(number, step=step + number), fps)


def loaders(monkeypatch):
    from mmalign.evals import tools as module

    made = {
        "rewards": lambda **_: ClipRewards({"bright": BrightClips()}),
        "subject": lambda **_: ConsistencyWatcher(MeanColours()),
        "flow": lambda **_: StepWatcher(),
        "pixels": lambda **_: PixelWatcher(),
    }
    monkeypatch.setattr(module, "TOOLS", made)


def test_folders_of_clips_are_compared_and_the_report_reads_what_is_stored(folder, tmp_path, monkeypatch):
    loaders(monkeypatch)
    films(tmp_path / "slow", 1)
    films(tmp_path / "fast", 4)
    (tmp_path / "fast" / "more.mp4").write_bytes(b"of no prompt")
    described = BenchmarkSuite.model_validate(
        {
            "name": "video",
            "benchmark": "text_to_video",
            "data": str(folder),
            "tools": {"background": "none", "aesthetic": "none"},
            "groups": 3,
            "statistics": {"resamples": 100},
        }
    )
    specs = [ModelSpec(name=name, source=f"videos:{tmp_path / name}") for name in ("slow", "fast")]

    def run(name, stages=("generate", "score", "report")):
        models = [model_of(described.found(), spec) for spec in specs]
        return run_benchmark(
            described, models, output=tmp_path / name, cache=tmp_path / "store", stages=stages, device="cpu"
        )

    record = run("first")
    assert not lacking(record)
    assert any("1 files belong to no item" in warning for warning in record["warnings"])
    (moved,) = [one for one in record["comparisons"] if one["metric"] == "mean frame difference"]
    assert moved["difference"]["low"] > 0
    assert moved["win_rate"] is None  # more motion is neither better nor worse
    text = (tmp_path / "first" / "results.md").read_text()
    assert text.count("mean frame difference") > 4
    monkeypatch.setattr(PixelWatcher, "watch", lambda *_: pytest.fail("seen twice"))
    monkeypatch.setattr(BrightClips, "prepare", lambda *_: pytest.fail("scored twice"))
    again = run("second", ("report",))
    assert again["models"][0]["metrics"] == record["models"][0]["metrics"]
    columns = combine([read_run(tmp_path / "first")]).columns
    assert columns[0] == "text_to_video/bright"


def test_the_suites_that_are_shipped_can_be_read():
    suite = read_any_suite(SUITES / "video.yaml")
    assert isinstance(suite, BenchmarkSuite)
    assert suite.found() is BENCHMARK
    assert set(suite.tools) <= set(BENCHMARK.tools)
    rewards = read_any_suite(SUITES / "video_rewards.yaml")
    assert rewards.rewards[-1].name.endswith(":frame_difference")
    assert rewards.rewards[-1].frames == 0


def test_clips_that_the_official_package_measures_are_not_made_here(tmp_path):
    from mmalign.evals.benchmark_answers import How, answers_of
    from mmalign.evals.benchmark_suite import AnsweringConfig
    from mmalign.evals.suite import GenerationConfig

    model = model_of(vbench.BENCHMARK, ModelSpec(name="m", source="org/model"))
    how = How(tmp_path, "cpu", "float32", AnsweringConfig(), GenerationConfig())
    with pytest.raises(ConfigError, match="measured by the official package"):
        answers_of(vbench.BENCHMARK, [], [model], how)
    with pytest.raises(ConfigError, match="takes no such folder"):
        model_of(vbench.BENCHMARK, ModelSpec(name="m", source=f"videos:{tmp_path}"))
