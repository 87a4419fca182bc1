"""`model.channels_last`: another order in memory, the same numbers and the same files."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from mmalign.diffusion.export import save_network, save_pipeline
from mmalign.errors import ConfigError
from mmalign.testing.families import example_inputs, load, trained_by
from mmalign.testing.tiny import write_tiny_sd15
from mmalign.train.config import AdapterConfig, resolve


def is_last(weight: torch.Tensor) -> bool:
    """Whether a filter over more than one pixel lies with its channels innermost."""
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def filters(module: torch.nn.Module) -> list[torch.Tensor]:
    """Of convolutions over more than a pixel."""
    return [value for value in module.parameters() if value.ndim == 4 and value.shape[-1] > 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion."""
    return write_tiny_sd15(tmp_path_factory.mktemp("channels") / "sd15")


def test_filters_of_network_and_vae_lie_so_and_numbers_are_the_same(folder: Path) -> None:
    found = []
    for asked in (False, True):
        model = load("sd15", folder, model={"channels_last": asked})
        assert all(
            is_last(value) == asked for part in (model.bare_network, model.vae) for value in filters(part)
        )
        assert any("channels last" in note for note in model.notes) == asked
        trainables = trained_by(model, AdapterConfig(kind="none"))
        prediction = model.denoise(*example_inputs(model))
        prediction.square().mean().backward()
        pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        mean = model.vae.encode(pixels).latent_dist.mean
        found.append([prediction, mean, *(value.grad for value in trainables.parameters.values())])
    for plain, last in zip(*found, strict=True):
        assert (last - plain).norm() <= 1e-5 * plain.norm()


def test_files_are_those_of_a_run_without(folder: Path, tmp_path: Path) -> None:
    model = load("sd15", folder, model={"channels_last": True})
    plain = load("sd15", folder)
    save_network(model.bare_network, tmp_path / "network")
    save_pipeline(model, tmp_path / "pipeline")
    again = UNet2DConditionModel.from_pretrained(str(tmp_path / "network"))
    for value, expected in zip(again.parameters(), plain.bare_network.parameters(), strict=True):
        assert torch.equal(value, expected)
    whole = load("sd15", tmp_path / "pipeline")
    for value, expected in zip(whole.vae.parameters(), plain.vae.parameters(), strict=True):
        assert torch.equal(value, expected)
    assert all(is_last(value) for value in filters(model.bare_network)), "the run's own stay as they were"


def test_a_family_without_pictures_refuses() -> None:
    config = {
        "method": "diffusion_dpo",
        "model": {"family": "tango", "source": "nowhere", "channels_last": True},
        "audio": {"duration": 1.0},
        "data": {"source": "nowhere"},
        "train": {"output": "nowhere"},
    }
    with pytest.raises(ConfigError, match=r"model.channels_last: got True, expected false: family tango"):
        resolve(config)
