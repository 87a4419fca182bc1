"""Where weights are looked for, what is said when they are missing, and their hashes."""

import hashlib
from pathlib import Path

import pytest
import torch

from mmalign.errors import CheckpointError, ConfigError
from mmalign.rewards import weights as module
from mmalign.rewards.card import Card, Weights
from mmalign.rewards.weights import FOLDER_VARIABLE, file_sha256, find_weights, hashes, missing, resolve

MODEL = Weights("someone/model", ("config.json", "*.safetensors"), revision="abc123")
HEAD = Weights("someone/heads", ("a+b.pth",), revision="def456", host="github")


@pytest.fixture(autouse=True)
def _nothing_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_a_folder_may_be_the_model_or_hold_it(tmp_path):
    for place in ("plain", "by_name/model", "by_id/someone/model"):
        found = fill(tmp_path / place, "config.json", "model.safetensors")
        assert find_weights(MODEL, folder=tmp_path / place.partition("/")[0]) == found


def test_a_folder_without_all_files_is_not_taken(tmp_path):
    fill(tmp_path / "model", "config.json")
    assert find_weights(MODEL, folder=tmp_path) is None
    fill(tmp_path / "model", "model.safetensors")
    assert find_weights(MODEL, folder=tmp_path) == tmp_path / "model"


def test_the_environment_names_a_folder_of_models(tmp_path, monkeypatch):
    found = fill(tmp_path / "all" / "model", "config.json", "model.safetensors")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "all"))
    assert resolve(MODEL) == found


def test_files_that_lie_in_the_folder_of_models_belong_to_none_of_them(tmp_path, monkeypatch):
    """Any model's config.json would fit there: another model's weights would be scored with."""
    fill(tmp_path / "all", "config.json", "model.safetensors")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "all"))
    assert find_weights(MODEL) is None


def test_other_weights_never_stand_in_for_a_folder_that_was_named(tmp_path, monkeypatch):
    fill(tmp_path / "all" / "model", "config.json", "model.safetensors")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "all"))
    with pytest.raises(
        ConfigError, match=r"reward mine: .*empty lacks config.json.*hf download someone/model"
    ):
        resolve(MODEL, folder=fill(tmp_path / "empty"), reward="mine")


def test_missing_weights_say_how_to_get_them(tmp_path):
    command = (
        r"hf download someone/model --revision abc123 --include 'config.json' --include '\*.safetensors'"
    )
    with pytest.raises(
        CheckpointError, match=f"reward mine: .*cannot be fetched.*{command}.*{FOLDER_VARIABLE}"
    ):
        resolve(MODEL, reward="mine")


def test_heads_of_a_github_repository_say_how_to_get_them():
    address = "https://github.com/someone/heads/raw/def456/a%2Bb.pth"
    with pytest.raises(CheckpointError, match=rf"curl -L --create-dirs -o 'heads/a\+b.pth' '{address}'"):
        resolve(HEAD)


def test_heads_of_a_github_repository_are_fetched_once_and_checked(tmp_path, monkeypatch):
    published = tmp_path / "published"
    published.write_bytes(b"weights")
    right = {"a+b.pth": hashlib.sha256(b"weights").hexdigest()}
    asked = []

    def address(weights, name):
        asked.append(name)
        return published.as_uri()

    monkeypatch.setattr(module, "_address", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    wrong = Weights(HEAD.repository, HEAD.files, revision="000", host="github", sha256={"a+b.pth": "0" * 64})
    with pytest.raises(CheckpointError, match="not the file the card names"):
        resolve(wrong)
    good = Weights(HEAD.repository, HEAD.files, revision="def456", host="github", sha256=right)
    folder = resolve(good)
    assert (folder / "a+b.pth").read_bytes() == b"weights"
    asked.clear()
    assert resolve(good) == folder
    assert asked == []


def test_missing_lists_what_is_not_here(tmp_path):
    card = Card(name="both", title="", modality="image", weights=(MODEL, HEAD))
    assert [found.weights for found in missing(card)] == [MODEL, HEAD]
    fill(tmp_path / "heads", "a+b.pth")
    (left,) = missing(card, folder=tmp_path)
    assert left.weights is MODEL
    assert left.command.startswith("hf download someone/model")


def test_hashes_are_of_content_and_notice_changes(tmp_path):
    fill(tmp_path, "b.txt", "a.txt", "c.bin")
    found = hashes(tmp_path, ("*.txt",))
    assert list(found) == ["a.txt", "b.txt"]
    assert found["a.txt"] == hashlib.sha256(b"a.txt").hexdigest()
    (tmp_path / "a.txt").write_text("other content")
    assert file_sha256(tmp_path / "a.txt") == hashlib.sha256(b"other content").hexdigest()
