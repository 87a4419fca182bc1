"""Attention that needs a mask for the queries behind a shared prompt alone."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mmalign.testing.vlm_dialogues import batch_of, dialogue, load_vlm
from mmalign.vlm.attention import (
    SHARED_PROMPT,
    attend,
    restore_last_layer,
    share_prompts,
    shares_prompts,
    shorten_last_layer,
)
from mmalign.vlm.capability import choose_mode
from mmalign.vlm.network import bare

ROWS, HEADS, LENGTH, CAUSAL, WIDTH = 2, 3, 11, 7, 5


@pytest.fixture
def states() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(ROWS, HEADS, LENGTH, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    ]


def _layer() -> nn.Module:
    layer = nn.Module()
    layer.num_key_value_groups, layer.is_causal = 1, True
    return layer


def _square() -> torch.Tensor:
    """Two answers of two tokens behind a prompt of seven, the second blind to the first."""
    sees = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    sees[9:, 7:9] = False
    return sees.expand(ROWS, 1, -1, -1)


def test_a_mask_of_the_last_queries_gives_the_numbers_of_the_whole_square(states: list[torch.Tensor]) -> None:
    narrow, _ = attend(_layer(), *states, _square()[:, :, CAUSAL:], scaling=0.3)
    slopes = torch.autograd.grad(narrow.square().sum(), states)
    whole, _ = attend(_layer(), *states, _square(), scaling=0.3)
    for found, expected in zip(slopes, torch.autograd.grad(whole.square().sum(), states), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(narrow, whole, rtol=0, atol=1e-12)
    assert narrow.shape == (ROWS, LENGTH, HEADS, WIDTH)


def test_without_a_mask_it_is_causal_and_the_later_tokens_are_not_seen(states: list[torch.Tensor]) -> None:
    query, key, value = states
    whole, _ = attend(_layer(), query, key, value, None, scaling=0.3)
    short = (tensor[:, :, :CAUSAL] for tensor in (query, key, value))
    first, _ = attend(_layer(), *short, None, scaling=0.3)
    torch.testing.assert_close(whole[:, :CAUSAL], first, rtol=0, atol=1e-12)


def test_only_torchs_fused_attention_is_replaced() -> None:
    for before, after in (("sdpa", SHARED_PROMPT), ("eager", "eager"), ("flash_attention_2",) * 2):
        decoder = SimpleNamespace(config=SimpleNamespace(_attn_implementation=before))
        assert share_prompts(decoder) is (after == SHARED_PROMPT)
        assert decoder.config._attn_implementation == after
        assert shares_prompts(decoder) is (after == SHARED_PROMPT)


@pytest.mark.parametrize(
    ("family", "is_narrow"), [("llava", True), ("qwen2_5_vl", True), ("causal_lm", True), ("gemma3", False)]
)
def test_packed_rows_get_a_mask_from_the_last_token_of_the_shortest_prompt_where_prompts_are_causal(
    family: str, is_narrow: bool, tiny_vlm_folder: Callable[[str], Path]
) -> None:
    model = load_vlm(family, tiny_vlm_folder(family))
    images = 1 if "image" in model.traits.sees else 0
    rows = [dialogue(1, images=images), dialogue(2, images=images, prompt="And what is in the corner?")]
    inputs = batch_of(model, rows).context
    assert inputs.is_packed
    shortest = min(int((row == 0).sum()) for row in inputs.segment)
    assert inputs.num_causal == (shortest - 1 if is_narrow else 0)
    masks = bare(model.network).masks(inputs)
    length = inputs.ids.shape[1]
    for mask in masks.values() if isinstance(masks, dict) else (masks,):
        assert mask.shape == (2, 1, length - inputs.num_causal, length)


def test_an_attention_chosen_later_gets_the_whole_square(tiny_vlm_folder: Callable[[str], Path]) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    inputs = batch_of(model, [dialogue(1)]).context
    network = bare(model.network)
    with torch.no_grad():
        narrow = network(inputs)
        network.model.set_attn_implementation("eager")
        length = inputs.ids.shape[1]
        assert network.masks(inputs).shape[-2:] == (length, length)
        torch.testing.assert_close(network(inputs), narrow, rtol=0, atol=1e-6)


def test_what_is_saved_names_no_attention_of_ours(
    tmp_path: Path, tiny_vlm_folder: Callable[[str], Path]
) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    assert shares_prompts(model.traits.decoder(model.network.model))
    model.save_model(tmp_path / "saved")
    for config in (tmp_path / "saved").glob("*.json"):
        assert SHARED_PROMPT not in config.read_text()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "causal_lm"])
def test_the_last_layer_computes_what_predicts_answers_and_nothing_else(
    family: str, tiny_vlm_folder: Callable[[str], Path]
) -> None:
    model = load_vlm(family, tiny_vlm_folder(family), dtype=torch.float64)
    images = 1 if "image" in model.traits.sees else 0
    inputs = batch_of(
        model, [dialogue(1, images=images), dialogue(2, images=images, prompt="And in the corner?")]
    ).context
    network = bare(model.network)
    decoder = model.traits.decoder(network.model)
    seen: list[int] = []
    decoder.layers[-1].mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()  # a copy computes with weights of its own
        short = network(inputs)
        assert not copied(inputs).any()
        restore_last_layer(decoder)
        whole = network(inputs)
    length = inputs.ids.shape[1]
    assert seen == [length - inputs.num_causal, length - inputs.num_causal, length]
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-12)


def test_a_last_layer_of_another_kind_stays_as_it_is(tiny_vlm_folder: Callable[[str], Path]) -> None:
    gemma = load_vlm("gemma3", tiny_vlm_folder("gemma3"))
    decoder = gemma.traits.decoder(bare(gemma.network).model)
    before = type(decoder.layers[-1])
    assert shorten_last_layer(decoder) is False
    assert type(decoder.layers[-1]) is before


def test_a_shortened_layer_that_gives_other_numbers_is_given_up(
    tiny_vlm_folder: Callable[[str], Path],
) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    decoder = model.traits.decoder(bare(model.network).model)
    layer = decoder.layers[-1]
    short, whole = type(layer), type(layer).whole_class

    def wrong(self: nn.Module, states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        mask = kwargs["attention_mask"]
        is_narrow = mask is not None and mask.shape[-2] < states.shape[1]
        return torch.zeros_like(states) if is_narrow else whole.forward(self, states, **kwargs)

    layer.__class__ = type("Wrong", (short,), {"forward": wrong})
    assert choose_mode(model).packed
    assert type(decoder.layers[-1]).__name__ == "LlamaDecoderLayer"
    assert not hasattr(type(decoder.layers[-1]), "whole_class")
