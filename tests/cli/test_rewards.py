"""`mmalign rewards` and `mmalign serve-reward`: what is listed, and a server run as a user runs it."""

import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmalign import registry, rewards
from mmalign.cli.main import main
from mmalign.cli.reward_cards import presence, readable_bytes
from mmalign.cli.reward_serving import chosen_token, parsed_options
from mmalign.errors import ConfigError
from mmalign.rewards import Card, Reference, Sample, Weights
from mmalign.rewards.remote import TOKEN_VARIABLE, RemoteReward

TINY = Card(
    name="tiny",
    title="a tiny reward of the tests",
    modality="image",
    scale="0 to 1",
    licence="MIT",
    weights=(
        Weights("someone/tiny", ("model.bin",), revision="abcdef1234567890", bytes=3_940_000_000),
        Weights("someone/words", ("*.json",), role="tokenizer", bytes=1000),
    ),
    paper="2305.01569",
    official_code="someone/code",
    options={"gain": "what it is multiplied by"},
    references=(Reference("a cat", "images/1.png", 0.5, 0.01, "README"),),
    departures=("nothing is rounded",),
    text_limit=35,
)
OWN = Card(name="own", title="a reward of the user's model", modality="text")

Provide = Callable[..., None]


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch) -> Provide:
    """`provide(tiny=module)`: replaces the catalogue."""

    def replace(**modules: object) -> None:
        def find(kind: str, name: str) -> object:
            found = modules[name]
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(registry, "names", lambda kind: sorted(modules))
        monkeypatch.setattr(registry, "find", find)

    return replace


def put(root: Path, *names: str) -> Path:
    """Empty weights files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"weights")
    return root


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_names_every_reward_with_scale_size_and_licence(
    provide: Provide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provide(tiny=SimpleNamespace(CARD=TINY), own=SimpleNamespace(CARD=OWN))
    assert main(["rewards"]) == 0
    shown = printed(capsys)
    assert "tiny no 3.9 GB MIT a tiny reward of the tests scale: 0 to 1" in shown
    assert "own - - unknown a reward of the user's model" in shown
    assert main(["rewards", "--weights", str(put(tmp_path, "tiny/model.bin"))]) == 0
    assert "tiny 1 of 2 3.9 GB" in printed(capsys)
    assert main(["rewards", "--weights", str(put(tmp_path, "words/a.json"))]) == 0
    assert "tiny yes 3.9 GB" in printed(capsys)


def test_a_broken_plug_in_does_not_hide_the_others(
    provide: Provide, capsys: pytest.CaptureFixture[str]
) -> None:
    provide(bad=ImportError("no module named strange"), tiny=SimpleNamespace(CARD=TINY))
    assert main(["rewards"]) == 0
    shown = printed(capsys)
    assert "bad: cannot be imported (ImportError: no module named strange)" in shown
    assert "tiny no" in shown


def test_every_reward_of_the_catalogue_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards"]) == 0
    shown = capsys.readouterr().out
    assert rewards.names()
    assert [name for name in rewards.names() if f"\n{name} " not in shown] == []
    assert "cannot be imported" not in shown


def test_one_reward_whole_shows_its_card_and_how_to_fetch_it(
    provide: Provide, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    provide(tiny=SimpleNamespace(CARD=TINY))
    assert main(["rewards", "tiny"]) == 0
    out = capsys.readouterr().out
    shown = " ".join(out.split())
    for part in (
        "scale 0 to 1; higher is better",
        "prompt 35 tokens, then cut",
        "gain what it is multiplied by",
        "model someone/tiny at abcdef123456, 3.9 GB: not on this machine",
        "tokenizer someone/words, not pinned, 1.0 kB: not on this machine",
        "https://arxiv.org/abs/2305.01569",
        "- nothing is rounded",
        "0.5 score of images/1.png, within 0.01 (README)",
    ):
        assert part in shown
    command = "  hf download someone/tiny --revision abcdef1234567890 --include 'model.bin'"
    assert command in out.splitlines(), "on a line of its own, so that it can be copied"


def test_an_unknown_reward_is_a_message_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "imagerewrad"]) == 2
    assert "unknown reward 'imagerewrad'. Did you mean imagereward" in capsys.readouterr().err


def test_presence_knows_where_weights_are(tmp_path: Path) -> None:
    found = presence(TINY, folder=put(tmp_path, "someone/tiny/model.bin"))
    assert found.places == {"someone/tiny": tmp_path / "someone" / "tiny"}
    assert [one.weights.repository for one in found.lacking] == ["someone/words"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7 B"), (999, "999 B"), (1500, "1.5 kB"), (86_000_000, "86 MB"), (3_940_000_000, "3.9 GB")],
)
def test_bytes_are_readable(number: int, text: str) -> None:
    assert readable_bytes(number) == text


# ------------------------------------------------------------------------------------------------ serving


def test_options_have_the_type_they_are_written_in() -> None:
    found = parsed_options(["beta=0.3", "average=true", "backbone=ViT-L/14", "empty="])
    assert found == {"beta": 0.3, "average": True, "backbone": "ViT-L/14", "empty": None}
    for bad in (["beta"], ["=3"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError, match=r"--option: got .*expected key=value, each key once"):
            parsed_options(bad)
    with pytest.raises(ConfigError, match="expected a YAML value"):
        parsed_options(["a=["])


def test_the_token_comes_from_the_option_the_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    file = tmp_path / "token"
    file.write_text("  of-the-file\n")
    assert chosen_token(None, None) is None
    assert chosen_token(None, file) == "of-the-file"
    monkeypatch.setenv(TOKEN_VARIABLE, "of-the-environment")
    assert chosen_token(None, None) == "of-the-environment"
    assert chosen_token("of-the-option", None) == "of-the-option"
    with pytest.raises(ConfigError, match=r"got \[--token and --token-file\], expected one of them"):
        chosen_token("a", file)
    file.write_text("\n")
    with pytest.raises(ConfigError, match=r"got \[an empty file\]"):
        chosen_token(None, file)
    with pytest.raises(ConfigError, match=r"--token-file .*cannot be read"):
        chosen_token(None, tmp_path / "none")


def test_others_are_not_served_without_a_token_and_no_model_is_loaded_for_it(
    provide: Provide, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    provide(tiny=SimpleNamespace(CARD=TINY))  # it has no `build`: loading it would be another error
    assert main(["serve-reward", "tiny", "--host", "0.0.0.0"]) == 2
    assert "serve-reward --host: got '0.0.0.0'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--batch-size", "--max-samples", "--max-body-mb"])
def test_sizes_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-reward", "tiny", option, "0"]) == 2
    assert f"serve-reward {option}: got 0, expected at least 1" in capsys.readouterr().err


def test_a_served_reward_scores_for_another_process_and_stops_when_told(tmp_path: Path) -> None:
    """As a user runs it: a process, a token in a file, a client, SIGTERM."""
    token = tmp_path / "token"
    token.write_text("a-token-of-this-test\n")
    words = ["serve-reward", "served_here:red", "--port", "0", "--token-file", str(token), "--device", "cpu"]
    (tmp_path / "served_here.py").write_text(
        "def red(batch):\n    return [float(one.image[0].mean()) for one in batch]\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "mmalign", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", first)
        assert address, first
        assert "asks for its token" in first
        remote = RemoteReward(address[0], token="a-token-of-this-test")
        made = [Sample(image=torch.full((3, 2, 2), value)) for value in (0.25, 0.75)]
        assert remote.score(made).first().tolist() == [0.25, 0.75]
        assert remote.fingerprint() in first
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert "stopped: all requests were answered" in rest


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["rewards"], "mmalign.cli.reward_cards:print_rewards"),
        (["rewards", "imagereward", "--weights", "w"], "mmalign.cli.reward_cards:print_rewards"),
        (["serve-reward", "imagereward", "--option", "a=1"], "mmalign.cli.reward_serving:serve"),
        (["doctor", "--verify", "--json"], "mmalign.cli.doctor:main"),
    ],
)
def test_the_parser_and_the_function_behind_it_agree(
    words: list[str], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the parser hands over is what the function takes."""
    module_name, _, name = target.partition(":")
    function = getattr(importlib.import_module(module_name), name)
    received: dict[str, object] = {}
    monkeypatch.setattr(f"{module_name}.{name}", lambda **options: received.update(options))
    assert main(words) == 0
    inspect.signature(function).bind(**received)


@pytest.mark.parametrize("command", ["rewards", "serve-reward", "doctor"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: mmalign {command}" in capsys.readouterr().out
