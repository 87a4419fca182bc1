import pytest
import torch

from mmalign.diffusion.sampling import initial_noise
from mmalign.evals.base import Item
from mmalign.evals.generation import Job, jobs_of, model_fingerprint
from mmalign.evals.suite import ModelSpec


def test_noise_hangs_on_the_name_of_a_prompt_and_not_on_its_place():
    first = initial_noise((2, 3), seed=0, prompt="set/00007/0")
    again = initial_noise((2, 3), seed=0, prompt="set/00007/0")
    other = initial_noise((2, 3), seed=0, prompt="set/00008/0")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_prompt_has_its_copies_in_a_row():
    items = [Item("a", "x"), Item("b", "y")]
    assert [job.sample_id for job in jobs_of(items, 3)] == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]
    assert Job(items[1], 2).sample_id == "b/2"


@pytest.mark.parametrize("changed", ["weights", "config", "side"])
def test_a_model_is_known_by_its_files_and_its_side(tmp_path, changed):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/model.safetensors").write_bytes(b"weights")
    (tmp_path / "model_index.json").write_text("{}")
    spec = ModelSpec(name="x", source=str(tmp_path))
    before = model_fingerprint(spec)
    assert model_fingerprint(ModelSpec(name="another name", source=str(tmp_path))) == before
    (tmp_path / "notes.txt").write_text("no part of the model")
    assert model_fingerprint(spec) == before
    if changed == "weights":
        (tmp_path / "unet/model.safetensors").write_bytes(b"other weights")
    elif changed == "config":
        (tmp_path / "model_index.json").write_text('{"a": 1}')
    else:
        spec = ModelSpec(name="x", source=str(tmp_path), weights="base")
    assert model_fingerprint(spec) != before
