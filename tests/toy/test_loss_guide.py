"""The loss guide: it runs what is missing, resumes, writes its tables; its page says nothing they do not."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmalign import objectives
from mmalign.errors import ConfigError
from mmalign.toy import guide_tables, image_guide, loss_guide, token_guide
from mmalign.toy.comparison import Interval
from mmalign.toy.guide_results import Results
from mmalign.toy.token_training import Measured, Setting
from mmalign.toy.token_world import CONDITIONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "which-loss.md"
EXAMPLE = ROOT / "examples" / "align_tiny_lm.py"


def _measured(gain: float) -> Measured:
    return Measured((gain, gain + 0.02, gain - 0.02), 0.4, 0.5, 0.2, 8.0, 0.01, 0.9, 1.5, -0.2, -0.9, 0.8)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Setting]]:
    """Runs that take no time, with gains that grow with the rate; returns the settings that were run."""
    made: list[Setting] = []

    def align(setting: Setting) -> Setting:
        made.append(setting)
        return setting

    monkeypatch.setattr(token_guide, "align", align)
    monkeypatch.setattr(token_guide, "measure", lambda setting, split: _measured(100 * setting.learning_rate))
    monkeypatch.setattr(token_guide, "base_measured", lambda split: replace(_measured(0.0), kl=0.0))
    token_guide.base.cache_clear()
    yield made
    token_guide.base.cache_clear()


# --------------------------------------------------------------------------------------------------- results


def test_a_run_is_made_once_and_found_by_other_processes(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"value": 7}

    first = Results(tmp_path, "token")
    assert first.get({"a": 1}, make)["value"] == 7
    assert first.get({"a": 1}, make)["value"] == 7
    assert Results(tmp_path, "token").find({"a": 1}) == first.find({"a": 1})
    assert Results(tmp_path, "image").find({"a": 1}) is None
    assert len(made) == 1


def test_a_line_torn_by_a_kill_costs_its_run_only(tmp_path: Path) -> None:
    results = Results(tmp_path, "token")
    results.get({"a": 1}, lambda: {"value": 1})
    (file,) = tmp_path.glob("token*.jsonl")
    file.write_bytes(file.read_bytes() + b'{"key": "torn", "val')
    again = Results(tmp_path, "token")
    assert again.find({"a": 1}) is not None
    again.get({"a": 2}, lambda: {"value": 2})
    assert len(Results(tmp_path, "token").get({"a": 2}, dict)) == 3


# ----------------------------------------------------------------------------------------------------- tokens


def test_rows_with_a_strength_are_tuned_on_equally_many_settings() -> None:
    wanted = len(token_guide.FACTORS) * len(token_guide.RATES)
    assert {len(token_guide.grid(name)) for name in ("dpo", "ipo", "kto", "simpo", "nca", "slic")} == {wanted}
    assert len(token_guide.grid("sft")) == len(token_guide.RATES)
    assert [setting.arguments["beta"] for setting in token_guide.grid("dpo")][::2] == [0.033, 0.1, 0.3, 1.0]
    assert {setting.learning_rate for setting in token_guide.grid("dpo")} == set(token_guide.RATES)


def test_the_best_setting_on_validation_is_measured_under_every_condition(
    tmp_path: Path, quick: list[Setting]
) -> None:
    results = Results(tmp_path, "token")
    parts = dict(token_guide.runs_of("dpo", results))
    best = parts["tuned"]
    assert best.learning_rate == max(token_guide.RATES)
    assert len(quick) == token_guide.NUM_RUNS
    tested = quick[len(token_guide.grid("dpo")) :]
    assert {setting.condition for setting in tested} == set(CONDITIONS)
    seeds = [setting.seed for setting in tested if setting.condition == "mixed"]
    assert seeds == list(token_guide.SEEDS)
    assert all(setting.arguments == best.arguments for setting in tested)


def test_what_is_stored_is_not_run_again(tmp_path: Path, quick: list[Setting]) -> None:
    list(token_guide.runs_of("dpo", Results(tmp_path, "token")))
    before = len(quick)
    list(token_guide.runs_of("dpo", Results(tmp_path, "token")))
    assert len(quick) == before
    row = token_guide.collect("dpo", Results(tmp_path, "token"))
    assert isinstance(row, token_guide.TokenRow)
    assert row.gain.value == pytest.approx(100 * max(token_guide.RATES), abs=1e-3)
    assert row.gain.low < row.gain.value < row.gain.high


def test_rows_that_were_not_run_or_cannot_be_say_why(tmp_path: Path, quick: list[Setting]) -> None:
    results = Results(tmp_path, "token")
    assert token_guide.collect("dpo", results) == "not run yet"
    assert token_guide.collect("modpo", results) == "needs margin_rewards"
    assert quick == []


# ----------------------------------------------------------------------------------------------------- images


def test_every_image_row_resolves_with_its_own_arguments_and_one_budget() -> None:
    world = image_guide.ImageWorld(Path("nowhere"), [], ())
    for name, setting in image_guide.IMAGE_ROWS.items():
        run = world.resolve(name, image_guide.FLIPS)
        assert run.method.objective == name
        assert setting.arguments.items() <= run.objective_arguments.items()
        assert run.config.train.steps == image_guide.STEPS
        assert "elbo" not in objectives.row(name).refuses


def test_the_image_table_reads_stored_runs(tmp_path: Path) -> None:
    results = Results(tmp_path, "image")
    axes = {"total": 0.7, "faithfulness": 0.8, "style": 0.9}
    for flips, gain in ((0.0, 0.3), (image_guide.FLIPS, 0.1)):
        results.get(
            image_guide.what("dpo", flips),
            lambda gain=gain: {
                "gains": [gain, gain + 0.01],
                "measured": axes,
                "base": axes,
                "chosen": -0.01,
                "rejected": 0.04,
                "seconds": 60.0,
            },
        )
    row = image_guide.collect("dpo", results)
    assert isinstance(row, image_guide.ImageRow)
    table = guide_tables.image_table([row])
    assert "| `dpo` | beta 1000, rate 5e-4 | +0.305 |" in table
    assert "| +0.105 |" in table
    assert "| -1.0% | +4.0% |" in table
    assert image_guide.collect("kto", results) == "not run yet"


# ---------------------------------------------------------------------------------------------------- command


@pytest.mark.slow
def test_the_command_runs_resumes_and_renews_the_tables_only(tmp_path: Path, quick: list[Setting]) -> None:
    page = tmp_path / "page.md"
    arguments = ["--worlds", "token", "--output", str(page), "--results", str(tmp_path / "results")]
    assert loss_guide.main([*arguments, "--methods", "dpo,modpo"]) == 0
    first = page.read_text()
    assert "| `dpo` |" in first
    assert "| needs margin_rewards | `modpo`, `modpo_hinge` |" in first
    assert "| noise | three labels in ten exchanged | 30% | 0 | 0% |" in first
    page.write_text(first + "\nwritten by hand\n")
    before = len(quick)
    loss_guide.main([*arguments, "--methods", "dpo"])
    assert len(quick) == before
    assert page.read_text() == first + "\nwritten by hand\n"
    loss_guide.main([*arguments, "--methods", "kto"])
    assert "| `kto` |" in page.read_text()
    assert "| `dpo` |" in page.read_text()


def test_shares_split_the_rows_and_wrong_options_are_named(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e"]
    assert loss_guide._share(names, "0/2") + loss_guide._share(names, "1/2") == ["a", "c", "e", "b", "d"]
    with pytest.raises(ConfigError, match="--share: got '2/2', expected PART/PARTS"):
        loss_guide._share(names, "2/2")
    with pytest.raises(ConfigError, match="--worlds: got 'video', expected token or image"):
        loss_guide.main(["--worlds", "token,video"])
    page = tmp_path / "page.md"
    page.write_text("# no markers\n")
    with pytest.raises(ConfigError, match="no place for the table 'token'"):
        guide_tables.renew(page, {"token": "x"})


def test_a_range_and_a_rate_are_written_the_same_way_everywhere() -> None:
    assert guide_tables._range(Interval(0.1, 0.05, 0.2)) == "+0.050 to +0.200"
    assert guide_tables._rate(2e-4) == "2e-4"


# ------------------------------------------------------------------------------------------------------- page


def _lines(name: str) -> dict[str, str]:
    """Row name to its line of one table of the page."""
    text = PAGE.read_text(encoding="utf-8")
    part = text.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]
    return {found[1]: found[0] for found in re.finditer(r"^\| `(\w+)` \|.*$", part, flags=re.MULTILINE)}


def test_every_number_the_prose_gives_a_row_stands_in_that_row_s_line() -> None:
    """Prose cites as `name` (+0.068, 12.9 words): each number must be in the line of that name."""
    text = PAGE.read_text(encoding="utf-8")
    prose = re.sub(r"<!-- ([\w-]+):begin -->.*?<!-- \1:end -->", "", text, flags=re.DOTALL)
    tables = {name: _lines(name) for name in ("token", "image")}
    cited = 0
    for world, section in re.findall(r"<!-- cites (\w+) -->\n(.*?)(?=<!-- cites|\Z)", prose, flags=re.DOTALL):
        for name, numbers in re.findall(r"`(\w+)`\s+\(([^)]*\d[^)]*)\)", section):
            assert name in tables[world], f"{name} has no line in the {world} table"
            for number in re.findall(r"[+-]?\d+\.\d+%?|\d+%", numbers):
                assert number in tables[world][name], f"{name}: {number} is not in its line"
                cited += 1
    assert cited > 10


def test_every_row_the_prose_names_is_in_the_catalogue() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z]\w+)`\s+\(", text))
    assert named <= set(objectives.names())


# ---------------------------------------------------------------------------------------------------- example


def test_the_example_has_forty_lines_and_aligns_its_model() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40
    assert "trl" not in EXAMPLE.read_text(encoding="utf-8").lower()
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}  # several threads wait for each other on a busy machine
    done = subprocess.run(
        [sys.executable, EXAMPLE], capture_output=True, text=True, check=True, cwd=ROOT, env=quiet
    )
    before, after = (float(number) for number in re.findall(r"([\d.]+)%", done.stdout))
    assert before == 50.0
    assert after > 80.0


def test_the_readme_shows_the_example_as_it_is() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") in (ROOT / "README.md").read_text(encoding="utf-8")
