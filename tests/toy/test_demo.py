"""The demo: intervals against closed forms, a page that needs nothing else, the whole way in small."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmalign.errors import ConfigError
from mmalign.evals.statistics import wilson_interval
from mmalign.toy.charts import Line, curve
from mmalign.toy.comparison import Comparison, bootstrap_mean
from mmalign.toy.demo import free_folder, main, recipe_path
from mmalign.toy.image_demo import ImageDemo
from mmalign.toy.image_demo import main as image_main
from mmalign.toy.image_demo_report import render_report
from mmalign.toy.image_reward import Score
from mmalign.toy.report import Report

Z = 1.959963984540054


def test_bootstrap_agrees_with_the_normal_interval_of_many_values() -> None:
    values = torch.linspace(-1.0, 2.0, 211, dtype=torch.float64)
    error = float(values.std(correction=0)) / math.sqrt(211)
    interval = bootstrap_mean(values)
    assert interval.value == pytest.approx(0.5)
    assert interval.low == pytest.approx(0.5 - Z * error, abs=0.06 * error * Z)
    assert interval.high == pytest.approx(0.5 + Z * error, abs=0.06 * error * Z)


def test_bootstrap_has_no_width_for_equal_values_and_repeats_itself() -> None:
    same = bootstrap_mean(torch.full((7,), 0.25))
    assert (same.low, same.value, same.high) == (0.25, 0.25, 0.25)
    values = torch.arange(11.0)
    assert bootstrap_mean(values) == bootstrap_mean(values)


def test_values_of_one_prompt_are_no_independent_evidence() -> None:
    """Every prompt five times with the same value tells as much as every prompt once."""
    values = torch.arange(11.0, dtype=torch.float64) ** 2
    prompts = [f"p{number // 5}" for number in range(55)]
    repeated, once = bootstrap_mean(values.repeat_interleave(5), prompts=prompts), bootstrap_mean(values)
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))
    uneven = bootstrap_mean(torch.tensor([1.0, 1.0, 1.0, 5.0]), prompts=["a", "a", "a", "b"])
    assert (uneven.value, uneven.low, uneven.high) == (2.0, 1.0, 5.0)
    with pytest.raises(ValueError, match="prompts: got 1, expected one for each of 2 values"):
        bootstrap_mean(torch.ones(2), prompts=["a"])


def test_intervals_of_fewer_than_two_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected at least one value"):
        bootstrap_mean(torch.zeros(0))
    with pytest.raises(ConfigError, match=r"comparison: got \[one prompt\], expected two or more"):
        bootstrap_mean(torch.ones(1))


def test_the_interval_of_a_gain_is_the_one_that_the_guides_published() -> None:
    """Other resamples would move the third digit of tables in docs/."""
    interval = bootstrap_mean((torch.arange(11.0, dtype=torch.float64) - 3.0) ** 3)
    assert (interval.value, interval.low, interval.high) == pytest.approx((68.0, 117 / 11, 140.0))


def _picture(level: int) -> Image.Image:
    return Image.new("RGB", (64, 64), (level, level, level))


@pytest.fixture
def comparison() -> Comparison:
    """Four prompts: a gain of 0.5, a tie, a loss of 0.25, a gain of 0.25 on the total reward."""
    base = [Score(0.5, 0.0), Score(1.0, 1.0), Score(1.0, 0.5), Score(0.5, 0.0, (("red is there", False),))]
    aligned = [Score(0.75, 1.0), Score(1.0, 1.0), Score(1.0, 0.0), Score(0.5, 1.0)]
    prompts = ["a <b>red</b> circle", "a green square", "two blue crosses", "a yellow triangle"]
    pictures = [_picture(level) for level in (10, 60, 110, 160)]
    return Comparison(prompts, pictures, pictures[::-1], base, aligned)


def test_ties_count_half_and_every_axis_is_paired(comparison: Comparison) -> None:
    assert comparison.outcomes() == (2, 1, 1)
    rate, expected = comparison.win_rate(), wilson_interval(2.5, 4)
    assert (rate.value, rate.low, rate.high) == (expected.value, expected.low, expected.high)
    assert comparison.differences().tolist() == [0.5, 0.0, -0.25, 0.25]
    assert comparison.ranked() == [0, 3, 1, 2]
    assert comparison.means("style") == (0.375, 0.75)
    assert comparison.gain("faithfulness").value == pytest.approx(0.0625)


RECORDS = [
    {
        "step": step,
        "loss": 0.69 - 0.01 * step,
        "implicit_accuracy": 0.5 + 0.03 * step,
        "error/relative_chosen": -0.001 * step,
        "error/relative_rejected": 0.002 * step,
        "logit": 0.1 * step,
        "grad_norm": 1.0 / step,
        "drift": 1e-5 * step,
    }
    for step in (2, 5, 7)
]


@pytest.fixture
def page(comparison: Comparison) -> str:
    return render_report(
        Report(
            comparison=comparison,
            records=RECORDS,
            verdict=["It is learning & more."],
            settings={"preference pairs": "7", "method": "diffusion_dpo (beta 2000)"},
            seconds={"training": 61.25, "scoring": 2.0},
            commands=[("See the plan.", "mmalign train diffusion/configs/sdxl/dpo_lora.yaml --dry-run")],
            versions={"mmalign": "0.0", "torch": "0"},
        )
    )


class _Reader(HTMLParser):
    """Collects attributes by name, and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.found.setdefault(f"{tag}.{name}", []).append(value or "")
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.found.setdefault(f"{tag}.{name}", []).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing_from_outside(page: str) -> None:
    reader = _Reader()
    reader.feed(page)
    assert reader.open == []
    assert "://" not in page
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page
    assert reader.found["img.src"]
    assert all(source.startswith("data:image/png;base64,") for source in reader.found["img.src"])
    assert not {"link.href", "script.src", "iframe.src"} & set(reader.found)
    assert "width=device-width, initial-scale=1" in reader.found["meta.content"]
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 600px" in page


def test_the_page_says_what_it_must(page: str) -> None:
    rate = wilson_interval(2.5, 4)
    text = re.sub(r"<[^>]+>", " ", page)
    for words in (
        f"{rate.value:.0%}",
        f"{rate.low:.1%} to {rate.high:.1%}",
        "Won 2, tied 1, lost 1",
        "No difference that these prompts can show",
        "Largest gains",
        "Typical",
        "Largest losses",
        "It is learning &amp; more.",
        "How the exact reward works",
        "61.2 s",
        "63.2 s",
        "dpo_lora.yaml --dry-run",
        "not: red is there",
        "&lt;b&gt;red&lt;/b&gt;",
    ):
        assert words in text, words
    for title in ("Loss", "Implicit accuracy", "Denoising error relative", "Logit", "Gradient norm", "Drift"):
        assert title in text
    assert page.count("optimiser step</text>") == 6


def test_a_curve_reaches_from_its_first_to_its_last_point_and_leaves_gaps_out() -> None:
    svg = curve([Line("loss", [(10.0, 1.0), (20.0, math.nan), (30.0, 3.0)])], x_label="step", y_label="loss")
    points = re.findall(r'<polyline class="line a" points="([^"]+)"', svg)[0].split()
    (left, upper), (right, lower) = (tuple(map(float, point.split(","))) for point in points)
    assert (left, right) == (52.0, 348.0)
    assert lower < upper  # a larger value stands higher, and heights count from the top
    assert "nothing was recorded" in curve([Line("x", [])], x_label="step", y_label="x")


def test_a_second_demo_takes_the_next_folder(tmp_path: Path) -> None:
    wanted = tmp_path / "demo"
    assert free_folder(wanted) == wanted
    wanted.mkdir()
    assert free_folder(wanted) == wanted
    (wanted / "mine.txt").write_text("kept")
    assert free_folder(wanted) == tmp_path / "demo-2"
    (tmp_path / "demo-2").mkdir()
    (tmp_path / "demo-2" / "run").mkdir()
    assert free_folder(wanted) == tmp_path / "demo-3"
    with pytest.raises(ConfigError, match="a file"):
        free_folder(wanted / "mine.txt")


def test_unknown_worlds_and_lost_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 'dreams', expected images or vlm or audio or video"):
        main("dreams", tmp_path / "out")
    with pytest.raises(ConfigError, match="Install again"):
        recipe_path("diffusion/configs/toy/lost.yaml")


TINY = ImageDemo(
    num_pairs=13,
    num_prompts=5,
    num_steps=3,
    overrides=("train.steps=3", "train.batch_size=2", "train.warmup_steps=0", "log.every=1"),
)


def test_the_whole_demo_runs_with_a_tiny_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    assert image_main(output, 3, demo=TINY) == 0
    printed = capsys.readouterr().out
    for words in (
        "win rate",
        "95 % interval",
        "faithfulness",
        "style",
        str(output / "report.html"),
        "Real SDXL",
    ):
        assert words in " ".join(printed.split()) or words in printed, words
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2 * 3  # five prompts: one pair for each of three groups
    numbers = json.loads((output / "result.json").read_text(encoding="utf-8"))
    assert numbers["won"] + numbers["tied"] + numbers["lost"] == 5
    assert (output / "run" / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    tmp_path: Path,
) -> None:
    output = tmp_path / "demo"
    for seed in (3, 3, 5):
        assert image_main(output, seed, demo=TINY) == 0
    first, again, other = (
        json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))
        for name in ("demo", "demo-2", "demo-3")
    )
    assert first == again
    assert first != other
