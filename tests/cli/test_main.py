"""The command line: light, forgiving about the order of words, silent about tracebacks."""

import argparse
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mmalign
from mmalign.cli import main as cli
from mmalign.cli.main import build_parser, main
from mmalign.errors import ConfigError

HEAVY = (
    "torch",
    "numpy",
    "PIL",
    "rich",
    "yaml",
    "pydantic",
    "diffusers",
    "transformers",
    "datasets",
    "pyarrow",
)


def parse(*words: str) -> argparse.Namespace:
    return cli._parse(build_parser(), words)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, json, contextlib, io\n"
        "from mmalign.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "assert 'mmalign demo' in shown.getvalue()\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_running_the_module_is_running_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmalign", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"mmalign {mmalign.__version__}\n"


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "train", "sample", "eval", "compare", "pairs", "export", "data", "methods", "families"),
        *("recipes", "config", "rewards", "doctor", "serve-reward", "guide"),
    ],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: mmalign {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["train", "run.yaml", "train.steps=3", "data.path=a=b", "--dry-run"],
        ["train", "run.yaml", "--dry-run", "train.steps=3", "data.path=a=b"],
        ["train", "--dry-run", "run.yaml", "train.steps=3", "data.path=a=b"],
        ["train", "run.yaml", "train.steps=3", "--dry-run", "data.path=a=b"],
    ],
)
def test_overrides_may_stand_anywhere_after_the_command(words: list[str]) -> None:
    options = parse(*words)
    assert options.config_path == Path("run.yaml")
    assert options.overrides == ["train.steps=3", "data.path=a=b"]
    assert options.dry_run


def test_a_word_that_is_no_setting_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("train", "run.yaml", "--dry-runs")
    assert ended.value.code == 2
    assert "unrecognised arguments: --dry-runs (see: mmalign train --help)" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--debug", "methods"], ["methods", "--debug"]])
def test_debug_may_stand_before_or_after_the_command(words: list[str]) -> None:
    assert parse(*words).debug


def test_a_command_hands_its_options_over_as_keyword_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, object] = {}
    monkeypatch.setattr("mmalign.cli.tables.print_methods", lambda **options: received.update(options))
    assert main(["methods", "diffusion_dpo"]) == 0
    assert received == {"name": "diffusion_dpo", "markdown": False, "update": None}


def test_an_error_of_ours_is_a_message_and_exit_code_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**options: object) -> None:
        raise ConfigError("run.yaml:3: got 'a', expected 'b'. Write b.")

    monkeypatch.setattr("mmalign.cli.tables.print_methods", fail)
    assert main(["methods"]) == 2
    assert capsys.readouterr().err == "mmalign: run.yaml:3: got 'a', expected 'b'. Write b.\n"
    with pytest.raises(ConfigError):
        main(["methods", "--debug"])


def test_an_error_that_is_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mmalign.cli.tables.print_methods", fail)
    with pytest.raises(ZeroDivisionError):
        main(["methods"])


def test_an_interrupt_ends_quietly_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmalign.cli.tables.print_methods", interrupted)
    assert main(["methods"]) == 130
    assert capsys.readouterr().err == "mmalign: stopped\n"


def test_the_exit_code_of_a_handler_is_the_command_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.cli.tables.print_methods", lambda **options: 1)
    assert main(["methods"]) == 1


@pytest.mark.parametrize(
    ("words", "signature_of"),
    [
        (["train", "run.yaml"], "mmalign.cli.training:main"),
        (["sample", "--prompt", "a cat"], "mmalign.cli.sampling:main"),
        (["export", "runs/a", "--to", "diffusers"], "mmalign.cli.exporting:main"),
        (["demo"], "mmalign.toy.demo:main"),
        (["eval", "suite.yaml", "--model", "base"], "mmalign.evals.harness:main"),
        (["compare", "results.json"], "mmalign.evals.compare:main"),
        (["benchmark", "pope", "--data", "x"], "mmalign.cli.benchmark_runs:run"),
        (["config", "schema"], "mmalign.cli.config:print_schema"),
        (["config", "show", "run.yaml"], "mmalign.cli.config:print_resolved"),
        (["recipes"], "mmalign.cli.recipes:print_recipes"),
        (["recipes", "cp", "a", "b"], "mmalign.cli.recipes:copy_recipe"),
    ],
)
def test_the_parser_and_the_function_behind_it_agree(
    words: list[str], signature_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the parser hands over is what the function takes."""
    module_name, _, name = signature_of.partition(":")
    function = getattr(importlib.import_module(module_name), name)
    received: dict[str, object] = {}
    monkeypatch.setattr(f"{module_name}.{name}", lambda **options: received.update(options))
    assert main(words) == 0
    inspect.signature(function).bind(**received)
