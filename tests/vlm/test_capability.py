"""The test at the start: it takes the fastest right layout, and notices wrong ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.errors import ConfigError
from mmalign.testing.vlm_dialogues import dialogue, load_vlm, token_log_probs
from mmalign.vlm.families.gemma3 import Gemma3Traits
from mmalign.vlm.families.llava import LlavaTraits
from mmalign.vlm.families.qwen2_5_vl import Qwen25VLTraits
from mmalign.vlm.inputs import Features, VlmInputs
from mmalign.vlm.packing import visible
from mmalign.vlm.traits import VlmTraits

Folder = Callable[[str], Path]


def _all_before(self: VlmTraits, inputs: VlmInputs, **_: Any) -> Tensor:
    """Answers that see the answers before them."""
    length = inputs.ids.shape[1]
    del self
    return torch.ones(length, length).tril().bool().expand(inputs.ids.shape[0], 1, -1, -1)


def test_answers_that_see_each_other_are_noticed_and_rows_of_their_own_taken(
    tiny_vlm_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = token_log_probs(load_vlm("llava", tiny_vlm_folder("llava")), [dialogue(1)])
    monkeypatch.setattr(LlavaTraits, "masks", _all_before)
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    assert (model.mode.packed, model.mode.shared) == (False, True)
    assert "log-probabilities differ by" in model.notes[0]
    torch.testing.assert_close(token_log_probs(model, [dialogue(1)]), right, rtol=0, atol=1e-7)


def test_a_wrong_layout_that_was_insisted_on_is_an_error(
    tiny_vlm_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlavaTraits, "masks", _all_before)
    with pytest.raises(ConfigError, match=r"tokens.packing and tokens.share_vision: got .*packed and auto"):
        load_vlm("llava", tiny_vlm_folder("llava"), tokens={"packing": "packed"})


def test_wrong_features_lead_to_the_models_own_forward(
    tiny_vlm_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = token_log_probs(load_vlm("llava", tiny_vlm_folder("llava")), [dialogue(1)])
    encode = LlavaTraits.features

    def turned(self: VlmTraits, base: Any, kind: Any, tensors: Any) -> Features:
        return Features(encode(self, base, kind, tensors).values.flip(0))

    monkeypatch.setattr(LlavaTraits, "features", turned)
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    assert (model.mode.packed, model.mode.shared) == (False, False)
    torch.testing.assert_close(token_log_probs(model, [dialogue(1)]), right, rtol=0, atol=1e-7)
    with pytest.raises(ConfigError, match="auto and on"):
        load_vlm("llava", tiny_vlm_folder("llava"), tokens={"share_vision": "on"})


def test_pictures_that_were_made_causal_are_noticed(
    tiny_vlm_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gemma3Traits, "blocks", VlmTraits.blocks)
    model = load_vlm("gemma3", tiny_vlm_folder("gemma3"))
    assert not model.mode.shared


def test_windows_that_were_forgotten_are_noticed(
    tiny_vlm_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Gemma3Traits,
        "masks",
        lambda self, inputs: {"full_attention": visible(inputs), "sliding_attention": visible(inputs)},
    )
    assert not load_vlm("gemma3", tiny_vlm_folder("gemma3")).mode.packed


def test_positions_in_one_dimension_are_noticed(
    tiny_vlm_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Qwen25VLTraits, "positions", VlmTraits.positions)
    model = load_vlm("qwen2_5_vl", tiny_vlm_folder("qwen2_5_vl"))
    assert not model.mode.shared
    assert "differ" in model.notes[0]


def test_a_device_without_memory_is_no_reason_for_a_slower_way(
    tiny_vlm_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: VlmTraits, base: Any, kind: Any, tensors: Any) -> Features:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(LlavaTraits, "features", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_vlm("llava", tiny_vlm_folder("llava"))


def test_a_packed_row_cannot_show_its_images_more_than_once(tiny_vlm_folder: Folder) -> None:
    with pytest.raises(ConfigError, match="a packed row shows its images once"):
        load_vlm("llava", tiny_vlm_folder("llava"), tokens={"packing": "packed", "share_vision": "off"})


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "paligemma"])
def test_bfloat16_passes_the_test_too(family: str, tiny_vlm_folder: Folder) -> None:
    model = load_vlm(family, tiny_vlm_folder(family), dtype=torch.bfloat16)
    assert model.mode.packed, model.notes
