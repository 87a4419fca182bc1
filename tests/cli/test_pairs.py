"""`mmalign pairs`: its words, its errors, and the plans that are shipped."""

from pathlib import Path

import pytest

from mmalign import rewards
from mmalign.cli import main as cli
from mmalign.cli.main import build_parser, main
from mmalign.data.pair_making.rows import normalised_prompt
from mmalign.evals.pairs import commands
from mmalign.evals.pairs.contamination import read_excluded
from mmalign.evals.pairs.plan import read_plan
from mmalign.evals.prompts import PUBLIC_SETS, read_prompts

PLANS = Path(__file__).parents[2] / "evals" / "pairs"


@pytest.fixture
def called(monkeypatch):
    """What a command was called with."""
    found = {}
    for name in ("run_sample", "run_score", "run_select"):
        monkeypatch.setattr(commands, name, lambda name=name, **given: found.update({"name": name, **given}))
    return found


def test_every_word_reaches_its_stage(called):
    assert main(["pairs", "sample", "plan.yaml", "--model", "a=x", "--shard", "1/3", "limit=5"]) == 0
    assert (called["name"], called["plan_path"], called["models"]) == (
        "run_sample",
        Path("plan.yaml"),
        ["a=x"],
    )
    assert (called["shard"], called["overrides"]) == ("1/3", ["limit=5"])
    words = ["pairs", "score", "plan.yaml", "--candidates", "shards", "--ray", "local", "--workers", "4"]
    assert main([*words, "--gpus-per-worker", "0.5"]) == 0
    assert (called["name"], called["candidates_source"], called["ray"]) == (
        "run_score",
        Path("shards"),
        "local",
    )
    assert (called["workers"], called["gpus_per_worker"], called["block_rows"]) == (4, 0.5, 256)
    words = ["pairs", "select", "plan.yaml", "--output", "out", "selection.margin=0.1", "--force"]
    assert main(words) == 0
    assert (called["name"], called["output"], called["force"]) == ("run_select", Path("out"), True)
    assert called["overrides"] == ["selection.margin=0.1"]


def test_a_stage_must_be_named(capsys):
    with pytest.raises(SystemExit):
        cli._parse(build_parser(), ["pairs"])
    assert "sample|score|select" in capsys.readouterr().err


def test_errors_are_printed_without_a_traceback(tmp_path, capsys):
    assert main(["pairs", "select", str(tmp_path / "none.yaml"), "--output", str(tmp_path / "out")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    (tmp_path / "plan.yaml").write_text("name: x\nrewards: [pickscore_v1]\n")
    assert main(["pairs", "sample", str(tmp_path / "plan.yaml")]) == 2
    assert "prompts: got 'none', expected prompt sets of the plan" in capsys.readouterr().err
    assert main(["pairs", "sample", str(tmp_path / "plan.yaml"), "selection.margin=-1"]) == 2
    assert "selection.margin: Input should be greater than or equal to 0" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_plans_are_read_and_name_rewards_that_exist(path):
    plan = read_plan(path)
    for spec in plan.rewards:
        assert ":" in spec.name or spec.name in rewards.names()
    assert {name.partition("=")[0] for name in plan.exclude} >= set(PUBLIC_SETS)


def test_the_toy_plan_trains_on_no_held_out_caption():
    plan = read_plan(PLANS / "toy.yaml")
    (held,) = read_excluded(plan.exclude, plan.waived, PLANS).values()
    prompts = {normalised_prompt(item.prompt) for item in read_prompts(plan.prompts[0], folder=PLANS)}
    assert len(held) == 64
    assert len(prompts) == 40
    assert not prompts & held


def test_every_public_benchmark_is_excluded_unless_waived(tmp_path):
    (tmp_path / "plan.yaml").write_text("name: x\nprompts: a.txt\nrewards: [pickscore_v1]\n")
    plan = read_plan(tmp_path / "plan.yaml")
    assert set(plan.exclude) == set(PUBLIC_SETS)
    assert plan.waived == []
