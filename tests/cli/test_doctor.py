"""`mmalign doctor`: what it finds wrong, the commands it prints, and its exit code."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mmalign import registry
from mmalign.cli import doctor_checks
from mmalign.cli.doctor import examine
from mmalign.cli.doctor_checks import devices, libraries, offline, reward_state, verify
from mmalign.cli.main import main
from mmalign.errors import CheckpointError
from mmalign.rewards import Card, Reference, Weights
from mmalign.rewards.weights import resolve
from mmalign.testing.simple_rewards import Brightness

SHA = hashlib.sha256(b"weights").hexdigest()
CARD = replace(
    Brightness().card,
    name="tiny",
    weights=(Weights("someone/tiny", ("model.bin",), revision="1234", bytes=7, sha256={"model.bin": SHA}),),
    references=(
        Reference("a b", "images/1.png", 0.2, 0.001, "README"),
        Reference("a b", "images/1.png", 2.0, 0.001, "README", output="words"),
        Reference("a", "images/2.png", 0.4, 0.001, "README"),
    ),
)


def module(card: Card = CARD, *, gain: float = 1.0) -> SimpleNamespace:
    """A catalogue entry that needs its weights, and computes `gain` times the mean of the red channel."""

    def build(*, weights: Any, device: Any, dtype: Any) -> Brightness:
        resolve(card.weights[0], folder=weights, reward=card.name)
        return Brightness(gain=gain)

    return SimpleNamespace(CARD=card, build=build)


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`provide(tiny=module())`: replaces the catalogue."""

    def replace_all(**modules: Any) -> None:
        monkeypatch.setattr(registry, "names", lambda kind: sorted(modules))
        monkeypatch.setattr(registry, "find", lambda kind, name: modules[name])

    return replace_all


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with the weights of `CARD`."""
    (tmp_path / "weights" / "tiny").mkdir(parents=True)
    (tmp_path / "weights" / "tiny" / "model.bin").write_bytes(b"weights")
    return tmp_path / "weights"


@pytest.fixture
def references(tmp_path: Path) -> Path:
    """Pictures of mean red 0.2 and 0.4, in the official repository's folders."""
    folder = tmp_path / "references"
    (folder / "images").mkdir(parents=True)
    for number, red in ((1, 51), (2, 102)):
        Image.new("RGB", (5, 7), (red, 0, 0)).save(folder / "images" / f"{number}.png")
    return folder


def words(weights: Path, references: Path) -> list[str]:
    return [
        "doctor",
        "--verify",
        "--weights",
        str(weights),
        "--references",
        str(references),
        "--device",
        "cpu",
    ]


# ------------------------------------------------------------------------------------------------ libraries


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise doctor_checks.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor_checks.importlib.metadata, "version", version)


def test_libraries_are_compared_with_what_mmalign_is_written_for(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, one="1.5", two="0.9", three="4.0", five="1.0.dev3")
    wanted = ["one<2,>=1", "two>=1.0", "three<4,>=3", "four", "five>=0.9", 'six>=2; extra == "more"']
    found = {one.name: one for one in libraries([*wanted, 'pytest; extra == "test"', "mmalign[more]"])}
    assert {name: one.status for name, one in found.items()} == {
        "one": "ok",
        "two": "too old",
        "three": "too new",
        "four": "missing",
        "five": "ok",
        "six": "missing",
    }
    assert found["two"].command == "pip install 'two>=1.0'"
    assert found["three"].command == "pip install 'three<4,>=3'"
    assert found["four"].command == "pip install 'four'"
    assert (found["six"].extra, found["six"].command) == ("more", "pip install 'mmalign[more]'")
    assert found["one"].command == ""


def test_an_extra_of_its_own_is_named_before_one_that_brings_it_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions(monkeypatch)
    (found,) = libraries(['wandb>=1; extra == "tracking"', 'wandb>=1; extra == "wandb"'])
    assert found.command == "pip install 'mmalign[wandb]'"


def test_this_environment_has_what_a_plain_install_brings() -> None:
    required = [one for one in libraries() if not one.extra]
    assert {"torch", "transformers", "diffusers"} <= {one.name for one in required}
    assert [one.name for one in required if one.status != "ok"] == []


def test_a_required_library_that_is_missing_is_a_fault_and_an_optional_one_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requirements = ["four>=1", 'six; extra == "more"']
    monkeypatch.setattr(doctor_checks.importlib.metadata, "requires", lambda name: requirements)
    assert main(["doctor", "--rewards", "none"]) == 1
    out = capsys.readouterr().out
    assert "mend: four: not installed, expected >=1. pip install 'four>=1'" in out
    assert "mend: six" not in out
    assert "optional (more)" in out


def test_the_processor_is_a_device_with_memory() -> None:
    last = devices()[-1]
    assert last.name == "cpu"
    assert last.memory > 2**28
    assert len(devices()) == 1 + torch.cuda.device_count() + torch.backends.mps.is_available()


# ------------------------------------------------------------------------------------------------ rewards


def test_missing_weights_come_with_their_command_and_are_no_fault_unless_named(
    provide: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    provide(tiny=module(), twin=module(replace(CARD, name="twin")))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    command = "hf download someone/tiny --revision 1234 --include 'model.bin'"
    assert lines.count(command) == 1, "once for both, on a line of its own"
    assert lines[lines.index(command) - 1] == "# tiny, twin"
    assert main(["doctor", "--rewards", "tiny"]) == 1
    assert f"mend: tiny: not ready. {command}" in capsys.readouterr().out


def test_an_unknown_reward_is_a_message(provide: Any, capsys: pytest.CaptureFixture[str]) -> None:
    provide(tiny=module())
    assert main(["doctor", "--rewards", "tiny,tinny"]) == 2
    assert "unknown reward 'tinny'. Did you mean tiny" in capsys.readouterr().err


def test_a_missing_extra_makes_a_reward_unready(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    versions(monkeypatch)
    monkeypatch.setattr(
        doctor_checks.importlib.metadata, "requires", lambda name: ['six; extra == "more"', "four"]
    )
    found = reward_state(replace(CARD, extra="more"), folder=weights)
    assert (found.status, found.commands) == ("missing", ("pip install 'mmalign[more]'",))
    assert reward_state(CARD, folder=weights).status == "ready"


def test_a_module_that_cannot_be_imported_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(kind: str, name: str) -> object:
        raise ImportError("no module named strange")

    monkeypatch.setattr(registry, "names", lambda kind: ["bad"])
    monkeypatch.setattr(registry, "find", find)
    report = examine()
    assert report.rewards[0].status == "broken"
    assert report.faults == ["bad: ImportError: no module named strange"]


# ------------------------------------------------------------------------------------------------ verifying


def test_published_scores_that_are_reproduced_are_no_fault(
    provide: Any, weights: Path, references: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provide(tiny=module())
    assert main(words(weights, references)) == 0
    out = capsys.readouterr().out
    shown = " ".join(out.split())
    assert "tiny images/1.png equal: published 0.2, here 0.2" in shown
    assert "tiny images/1.png equal: published 2, here 2" in shown
    assert f"{SHA}  someone/tiny/model.bin" in out
    assert "nothing to mend" in out


def test_a_score_that_differs_is_printed_and_ends_with_one(
    provide: Any, weights: Path, references: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provide(tiny=module(gain=1.25))
    assert main(words(weights, references)) == 1
    out = capsys.readouterr().out
    assert (
        "mend: tiny images/1.png: differs: published 0.2, here 0.25, difference +0.05, tolerance 0.001" in out
    )
    assert out.count("mend:") == 2, "the number of words is right"


def test_a_file_that_is_not_the_published_one_is_found_before_it_is_loaded(
    provide: Any, weights: Path, references: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (weights / "tiny" / "model.bin").write_bytes(b"other weights")
    entry = module()
    entry.build = None  # loading it would be another error
    provide(tiny=entry)
    assert main(words(weights, references)) == 1
    assert "mend: someone/tiny/model.bin: not the published file" in capsys.readouterr().out


def test_media_that_are_not_there_are_asked_for_and_no_fault(
    provide: Any, weights: Path, references: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (references / "images" / "2.png").unlink()
    provide(tiny=module())
    assert main(words(weights, references)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "tiny images/2.png no file: put images/2.png of the official repository into" in shown
    assert "equal: published 0.2" in shown


def test_media_may_lie_in_a_folder_of_the_reward_s_name(
    provide: Any, weights: Path, references: Path
) -> None:
    provide(tiny=module())
    (references / "tiny").mkdir()
    for number in (1, 2):
        (references / "images" / f"{number}.png").rename(references / "tiny" / f"{number}.png")
    found = verify(CARD, folder=weights, references=references, device="cpu")
    assert [one.verdict for one in found] == ["equal"] * 3


def test_a_reward_that_cannot_be_loaded_is_a_fault(
    provide: Any, weights: Path, references: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(**options: Any) -> None:
        raise CheckpointError("model.bin lacks head.weight")

    entry = module()
    entry.build = build
    provide(tiny=entry)
    assert main(words(weights, references)) == 1
    assert "mend: tiny : failed: CheckpointError: model.bin lacks head.weight" in capsys.readouterr().out


def test_a_named_reward_is_loaded_also_without_published_scores(provide: Any, weights: Path) -> None:
    loaded: list[str] = []

    def build(**options: Any) -> Brightness:
        loaded.append("tiny")
        return Brightness()

    provide(tiny=SimpleNamespace(CARD=replace(CARD, references=()), build=build))
    assert examine(verifying=True, weights=weights, device="cpu").faults == []
    assert loaded == []
    report = examine(names="tiny", verifying=True, weights=weights, device="cpu")
    assert loaded == ["tiny"]
    assert [one.verdict for one in report.checks] == ["nothing published"]


def test_an_unreadable_picture_is_a_failure_with_its_reason(
    provide: Any, weights: Path, references: Path
) -> None:
    (references / "images" / "2.png").write_bytes(b"no picture")
    provide(tiny=module())
    report = examine(verifying=True, weights=weights, references=references, device="cpu")
    assert [one.verdict for one in report.checks] == ["equal", "equal", "failed"]
    assert "expected an image" in report.checks[2].note
    assert len(report.faults) == 1


def test_everything_can_be_had_as_json(
    provide: Any, weights: Path, references: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provide(tiny=module(gain=1.25))
    assert main([*words(weights, references), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"python", "mmalign", "libraries", "devices", "rewards", "checks", "faults"}
    assert found["rewards"][0]["hashes"] == {"someone/tiny/model.bin": SHA}
    assert [one["verdict"] for one in found["checks"]] == ["differs", "equal", "differs"]


def test_nothing_is_fetched_and_the_setting_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with offline():
        assert constants.HF_HUB_OFFLINE
        assert doctor_checks.os.environ["HF_HUB_OFFLINE"] == "1"
    assert not constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in doctor_checks.os.environ
