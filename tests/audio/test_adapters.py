"""Adapters of a tiny Tango: the base without them, and files that plain peft and plain diffusers read."""

import ast

import pytest
import torch

from mmalign.audio.checkpoint import open_source
from mmalign.audio.saving import how_to_load
from mmalign.errors import CheckpointError
from mmalign.likelihood.adapters import adapters_off
from mmalign.train.adapters import attach
from mmalign.train.sections import AdapterConfig


def inputs(model):
    generator = torch.Generator().manual_seed(0)
    noised = torch.randn(2, *model.latent_shape, generator=generator)
    return noised, torch.tensor([20, 700]), model.prompt_conditioning(["a dog", "rain on a roof"]).rows(1)


@pytest.fixture(scope="module")
def trained(load_tango):
    model = load_tango()
    adapter = AdapterConfig(rank=4, alpha=12)
    trainables = attach(model.bare_network, adapter, default_targets=model.adapter_targets, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in trainables.parameters.values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return model


def test_adapters_off_are_the_base_bit_for_bit(trained, tango):
    given = inputs(tango)
    with torch.no_grad():
        base = tango.denoise(*given)
        assert not torch.allclose(trained.denoise(*given), base, atol=1e-3)
        with adapters_off(trained.bare_network):
            assert torch.equal(trained.denoise(*given), base)


@pytest.mark.parametrize("library", ["peft", "diffusers"])
def test_a_file_is_read_by_plain_libraries(trained, tango_folder, tmp_path, library):
    from peft import PeftModel

    folder = trained.save_adapter(tmp_path / "adapter")
    plain = open_source(str(tango_folder)).part("unet", dtype=torch.float32)
    if library == "peft":
        plain = PeftModel.from_pretrained(plain, str(folder))
    else:
        plain.load_lora_adapter(str(folder), prefix="unet", weight_name="pytorch_lora_weights.safetensors")
    given = inputs(trained)
    with torch.no_grad():
        assert torch.allclose(trained.denoise(*given, network=plain), trained.denoise(*given), atol=1e-5)


def test_the_line_that_loads_an_adapter_holds_without_network(trained, tango_folder, tmp_path, monkeypatch):
    from diffusers.loaders import lora_base

    monkeypatch.setattr(lora_base, "HF_HUB_OFFLINE", True)
    folder = trained.save_adapter(tmp_path / "adapter")
    unet = open_source(str(tango_folder)).part("unet", dtype=torch.float32)
    line = how_to_load(trained, folder)
    with pytest.raises(OSError, match=r"no file named pytorch_lora_weights\.bin"):
        unet.load_lora_adapter(str(folder), prefix="unet")
    with pytest.raises(ValueError, match="offline mode, you must specify a `weight_name`"):
        unet.load_lora_adapter("someone/adapter", prefix="unet", use_safetensors=True)
    name, _, rest = line.partition(".load_lora_adapter(")
    (place,), keywords = literal_call(rest)
    assert name == "unet"
    unet.load_lora_adapter(place, **keywords)
    given = inputs(trained)
    with torch.no_grad():
        assert torch.allclose(trained.denoise(*given, network=unet), trained.denoise(*given), atol=1e-5)


def literal_call(rest):
    """Arguments of a call, written as literals."""
    call = ast.parse(f"f({rest}", mode="eval").body
    values = [ast.literal_eval(argument) for argument in call.args]
    return values, {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


def test_saved_models_have_their_adapters_folded_in(trained, load_tango, tmp_path):
    trained.save_model(tmp_path / "whole")
    whole = load_tango(tmp_path / "whole")
    given = inputs(trained)
    with torch.no_grad():
        assert torch.allclose(whole.denoise(*given), trained.denoise(*given), atol=1e-5)
    assert trained.bare_network.peft_config  # and the trained one still has them


def test_a_model_without_an_adapter_saves_none(tango, tmp_path):
    with pytest.raises(CheckpointError, match="got 'a network without an adapter'"):
        tango.save_adapter(tmp_path / "adapter")
