"""`mmalign plan`: what it prints, as text and as JSON, and how it ends."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mmalign.cli import planning
from mmalign.cli.main import main
from mmalign.errors import ConfigError
from mmalign.testing.tiny import RESOLUTION, write_tiny_sd15
from mmalign.train.planning import counting, fitting


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model whose weights are gone, on rows that are not here."""
    root = tmp_path_factory.mktemp("planned")
    whole = write_tiny_sd15(root / "whole")
    shutil.copytree(whole, root / "sd15", ignore=shutil.ignore_patterns("*.safetensors"))
    content = {
        "method": "diffusion_dpo",
        "model": {"family": "sd15", "source": str(root / "sd15")},
        "image": {"resolution": RESOLUTION},
        "data": {"source": str(root / "none.parquet")},
        "objective": {"beta": 500.0},
        "adapter": {"kind": "none"},
        "train": {"output": str(root / "run"), "steps": 11, "batch_size": 2, "device": "cpu"},
    }
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_plan_is_printed_with_what_was_assumed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--device", "4090", "train.batch_size=1"]) == 0
    text = capsys.readouterr().out
    for line in ("memory, at its highest", "time of a step of 1 prompts", "disk", "choices"):
        assert line in text.splitlines()
    assert "165 TFLOP/s in half precision" in text
    assert "11 steps in" in text
    assert "the data cannot be opened here" in text
    assert not (config.parent / "run").exists()


def test_numbers_come_as_json_and_add_up(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--json", "--device=mine=memory:20GB,half:50"]) == 0
    found = json.loads(capsys.readouterr().out)
    memory, step = found["memory"], found["step"]
    assert sum(memory["components"].values()) == memory["tensors"]
    assert memory["tensors"] + memory["margin"] == memory["total"]
    assert memory["tensors"] == max(memory["stages"].values())
    assert sum(step["parts"].values()) == pytest.approx(step["seconds"])
    assert step["total_seconds"] == pytest.approx(11 * step["seconds"])
    assert (found["device"]["memory"], found["device"]["half_flops"]) == (20 * 2**30, 50e12)
    assert found["rows"] is None


def test_a_launch_is_planned_by_its_name(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(config), "--launch", "fsdp2", "--processes", "16", "--device"]
    assert main([*words, "4090=network:25"]) == 0
    text = capsys.readouterr().out
    assert "planned for 4090: each of 16 processes on 2 machines, fsdp2" in text
    assert "1 of 16 parts" in text
    assert "communication" in text
    assert "20 GB/s between machines reached" in text
    assert main(["plan", str(config), "--launch", "fsdp", "--processes", "2"]) == 2
    assert "unknown launch 'fsdp'" in capsys.readouterr().err


def test_what_fits_is_printed_as_yaml_that_a_run_reads(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from mmalign.train.config import load_run

    assert main(["plan", str(config), "--json", "--device", "h100"]) == 0
    whole = json.loads(capsys.readouterr().out)["memory"]["total"]
    assert main(["plan", str(config), "--device", "h100", "--fit", f"{whole / 2**20 - 1:.3f}MB"]) == 0
    text = capsys.readouterr().out
    assert "\nfits " in text
    block = yaml.safe_load(text.split("\n\n")[1])
    assert block["image"] == {"cache": "cache"}
    words = text.split("# or: ")[1].splitlines()[0].split()
    assert load_run(config, words).config.image.cache == "cache"


@pytest.mark.slow
def test_where_nothing_fits_the_exit_code_says_so(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(config), "model.gradient_checkpointing=true", "--device", "h100", "--fit", "1MB"]
    assert main(words) == 1
    text = capsys.readouterr().out
    assert "does not fit: the smallest is" in text
    assert "what is left" in text
    assert "adapter" not in text, "LoRA is another set of weights: only where it is allowed"


def test_what_a_card_has_is_the_limit_of_a_fit_and_the_reward_is_in_it(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []

    def note(run: object, *, device_type: str, reward_bytes: int | None = None) -> object:
        seen.append(reward_bytes)
        return counting.count(run, device_type=device_type, reward_bytes=None)

    monkeypatch.setattr(fitting, "count", note)
    monkeypatch.setattr("mmalign.cli.training.reward_bytes", lambda _: 7)
    assert main(["plan", str(config), "--device", "mine=memory:2GB", "--fit", "80GB"]) == 0
    assert "mine has 2.00 GiB: that is the limit" in capsys.readouterr().out
    assert set(seen) == {7}


def test_a_config_of_a_reward_is_sent_to_its_dry_run() -> None:
    recipes = sorted(Path(__file__).parents[2].glob("*/configs/**/step_aware.yaml"))
    with pytest.raises(ConfigError, match="a config that trains a reward"):
        planning.main(recipes[0])


def test_overrides_become_nested_yaml() -> None:
    words = ["train.batch_size=1", "image.cache=cache", "train.split_backward=true"]
    assert yaml.safe_load(planning.nested(words)) == {
        "train": {"batch_size": 1, "split_backward": True},
        "image": {"cache": "cache"},
    }
