"""A loaded model: settings, errors, references, precision, wrapping, files."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmalign.data.config import ImageLimits
from mmalign.errors import CheckpointError, ConfigError, MissingExtraError, RowError, ShapeError
from mmalign.likelihood.reference import make_reference
from mmalign.likelihood.tokens import Tokens
from mmalign.testing.tiny_vlm import TINY_VLMS
from mmalign.testing.tiny_vlm.parts import write_folder
from mmalign.testing.vlm_dialogues import batch_of, dialogue, load_vlm, token_log_probs, with_adapter
from mmalign.vlm.network import bare

Folder = Callable[[str], Path]


def test_another_familys_model_is_refused_by_name(tiny_vlm_folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"model.family: got 'gemma3', expected .*'llava'.* loads gemma3"):
        load_vlm("gemma3", tiny_vlm_folder("llava"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.source: config: got "):
        load_vlm("llava", tmp_path)


def test_attention_that_language_models_do_not_have_is_refused(tiny_vlm_folder: Folder) -> None:
    message = r"model.attention: got 'xformers', expected auto, sdpa, flash or flex"
    with pytest.raises(ConfigError, match=message):
        load_vlm("llava", tiny_vlm_folder("llava"), model={"attention": "xformers"})


def test_a_batch_of_pictures_is_no_batch_of_dialogues(tiny_vlm_folder: Folder) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    batch = replace(batch_of(model, [dialogue(1)]), context=None)
    with pytest.raises(ShapeError, match=r"Batch.context: got 'NoneType', expected VlmInputs"):
        model.policy(model.network)(batch)


def test_references_without_adapters_and_by_a_copy_agree_with_the_start(tiny_vlm_folder: Folder) -> None:
    model, likelihood = load_vlm("qwen2_5_vl", tiny_vlm_folder("qwen2_5_vl")), Tokens()
    batch = batch_of(model, [dialogue(1)])
    draw = likelihood.draw(batch)
    start = likelihood.evaluate(model.policy(model.network), batch, draw).inner
    frozen = make_reference("frozen", network=model.network, make_denoise=model.policy)
    with_adapter(model)
    off = make_reference("adapters_off", network=model.network, make_denoise=model.policy)
    moved = likelihood.evaluate(model.policy(model.network), batch, draw).inner
    assert start is not None
    assert moved is not None
    assert not torch.allclose(moved, start)
    for reference in (frozen, off):
        found = reference.evaluate(likelihood, batch, draw)
        assert found is not None
        assert found.inner is not None
        assert torch.equal(found.inner, start)


def test_a_wrapped_network_is_called_as_a_whole(tiny_vlm_folder: Folder) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *arguments: Any) -> Any:
            self.calls += 1
            return self.module(*arguments)

    model = load_vlm("llava", tiny_vlm_folder("llava"))
    expected = token_log_probs(model, [dialogue(1)])
    wrapper = Wrapper(model.network)
    model.network = wrapper
    assert torch.equal(token_log_probs(model, [dialogue(1)]), expected)
    assert wrapper.calls == 1
    assert bare(wrapper).model is model.bare_network


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_eager_attention_gets_masks_that_can_be_added(family: str, tiny_vlm_folder: Folder) -> None:
    model = load_vlm(family, tiny_vlm_folder(family))
    rows = [dialogue(1, other=True), dialogue(2)]
    expected = token_log_probs(model, rows)
    model.bare_network.set_attn_implementation("eager")
    assert model.traits.text_config._attn_implementation == "eager"
    torch.testing.assert_close(
        token_log_probs(model, rows), expected, rtol=0, atol=1e-5
    )  # its softmax is in float32


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_half_precision_is_near_the_truth(family: str, tiny_vlm_folder: Folder) -> None:
    folder = tiny_vlm_folder(family)
    exact, half = (load_vlm(family, folder, dtype=dtype) for dtype in (torch.float64, torch.bfloat16))
    with_adapter(half)
    for module in half.network.modules():
        if hasattr(module, "lora_A"):
            module._disable_adapters = True
    truth, found = (token_log_probs(model, [dialogue(1)]) for model in (exact, half))
    assert found.dtype == torch.float32
    assert (found - truth).abs().mean() < 0.05
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (token_log_probs(half, [dialogue(1)]) - truth).abs().mean() < 0.05


def test_full_training_leaves_tower_and_projector_alone_unless_told(tiny_vlm_folder: Folder) -> None:
    for family in ("llava", "qwen3_vl", "llava_next", "smolvlm"):
        folder = tiny_vlm_folder(family)
        plain = load_vlm(family, folder, dtype=torch.float32)
        both = load_vlm(
            family, folder, tokens={"train_vision": True, "train_projector": True}, dtype=torch.float32
        )
        groups = plain.parameter_groups(dict(plain.network.named_parameters()))
        assert all(groups.values()), family
        names = [name for name, _ in plain.network.named_parameters()]
        assert sum(map(plain.trains, names)) == len(groups["language"])
        assert all(map(both.trains, names))
        assert plain.vision_is_frozen
        assert not both.vision_is_frozen


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_adapters_on_tower_and_projector_are_asked_for_by_name(family: str, tiny_vlm_folder: Folder) -> None:
    folder = tiny_vlm_folder(family)
    for asked in ("vision", "projector"):
        model = load_vlm(family, folder, tokens={f"train_{asked}": True}, dtype=torch.float32)
        trainables = with_adapter(model)
        assert {model.traits.part_of(name) for name in trainables.parameters} == {"language", asked}
        token_log_probs(model, [dialogue(1)]).sum().backward()
        grads = [
            parameter.grad
            for name, parameter in trainables.parameters.items()
            if model.traits.part_of(name) == asked
        ]
        # LLaVA reads the last layer but one: what lies behind it has no part in the answer.
        assert any(grad is not None and bool(grad.abs().max() > 0) for grad in grads)


def test_a_policy_with_a_trained_tower_does_not_lend_its_features_to_the_reference(
    tiny_vlm_folder: Folder,
) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), tokens={"train_projector": True})
    before = token_log_probs(model, [dialogue(1)])
    with_adapter(model)
    off = make_reference("adapters_off", network=model.network, make_denoise=model.policy)
    batch, likelihood = batch_of(model, [dialogue(1)]), Tokens()
    found = off.evaluate(likelihood, batch, likelihood.draw(batch))
    assert found is not None
    assert found.inner is not None
    assert torch.equal(found.inner, before)


def test_limits_of_images_reach_the_reader(tiny_vlm_folder: Folder) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    model.limit_images(ImageLimits(max_pixels=100))
    with pytest.raises(RowError, match="expected at most 100"):
        model.example(dialogue(1), key=0)


def test_only_an_adapter_can_be_saved_as_one(tiny_vlm_folder: Folder, tmp_path: Path) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    with pytest.raises(CheckpointError, match="a model without adapter"):
        model.save_adapter(tmp_path)


def test_saving_a_merged_model_leaves_the_trained_one_as_it_is(
    tiny_vlm_folder: Folder, tmp_path: Path
) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"), dtype=torch.float32)
    with_adapter(model)
    before = copy.deepcopy(model.network.state_dict())
    model.save_model(tmp_path / "merged")
    assert model.network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())


def test_what_scores_depend_on_is_described(tiny_vlm_folder: Folder) -> None:
    folder = tiny_vlm_folder("llava")
    one, same, other = (
        load_vlm("llava", folder, tokens=tokens).describe()
        for tokens in ({}, {"packing": "plain"}, {"max_completion_length": 3})
    )
    assert one == same
    assert one["tokens"] != other["tokens"]


@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
def test_quantised_weights_take_adapters(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = TINY_VLMS["llava"]

    def config(tokenizer: Any) -> Any:
        made = recipe.config(tokenizer)
        made.text_config.intermediate_size = 128  # blocks of 64 weights share a scale
        return made

    folder = write_folder(replace(recipe, config=config), tmp_path / "wide", seed=0)
    model = load_vlm("llava", folder, model={"quantization": kind}, dtype=torch.bfloat16)
    kinds = {type(module).__name__ for module in model.traits.decoder(model.bare_network).modules()}
    narrow = {"Linear4bit", "NarrowLinear"}
    assert kinds & narrow
    assert f"linear layers in {kind}" in " ".join(model.notes)
    tower = model.bare_network.model.vision_tower
    assert not {type(module).__name__ for module in tower.modules()} & narrow
    with torch.no_grad():  # as a reference does: layers must not forget their gradients over it
        token_log_probs(model, [dialogue(1)])
    trainables = with_adapter(model)
    token_log_probs(model, [dialogue(1)]).sum().backward()
    assert all(parameter.grad is not None for parameter in trainables.parameters.values())
    slopes = {name: value.grad for name, value in trainables.parameters.items()}
    assert all(bool(slope.any()) for name, slope in slopes.items() if "lora_B" in name and slope is not None)


def test_quantisation_names_the_extra_it_needs(
    tiny_vlm_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmalign\[8bit\]'"):
        load_vlm("llava", tiny_vlm_folder("llava"), model={"quantization": "nf4"})


def test_text_alone_goes_through_a_model_that_could_see(tiny_vlm_folder: Folder) -> None:
    for family in ("llava", "qwen2_5_vl", "gemma3"):
        folder = tiny_vlm_folder(family)
        rows = [dialogue(1, images=0), dialogue(2, images=0, prompt="More?")]
        packed, own = (
            load_vlm(family, folder, tokens=tokens)
            for tokens in ({}, {"packing": "plain", "share_vision": "off"})
        )
        torch.testing.assert_close(
            token_log_probs(packed, rows), token_log_probs(own, rows), rtol=0, atol=1e-7
        )
