"""Every family does what families must, on its tiny model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmalign import registry
from mmalign.testing.tiny_vlm import TINY_VLMS
from mmalign.testing.vlm_dialogues import dialogue, load_vlm, own_sums, token_log_probs
from mmalign.testing.vlm_families import VlmFamilyConformance, VlmTrainingConformance


class _Scores(VlmFamilyConformance):
    @pytest.fixture
    def folder(self, tiny_vlm_folder: Callable[[str], Path]) -> Path:
        return tiny_vlm_folder(self.family)


class _Trains(VlmTrainingConformance):
    @pytest.fixture
    def folder(self, tiny_vlm_folder: Callable[[str], Path]) -> Path:
        return tiny_vlm_folder(self.family)


class TestLlava(_Scores):
    family = "llava"


@pytest.mark.slow
class TestLlavaNext(_Scores):
    family = "llava_next"


@pytest.mark.slow
class TestLlavaOnevision(_Scores):
    family = "llava_onevision"


@pytest.mark.slow
class TestLlavaNextVideo(_Scores):
    family = "llava_next_video"


@pytest.mark.slow
class TestVideoLlava(_Scores):
    family = "video_llava"


@pytest.mark.slow
class TestQwen2VL(_Scores):
    family = "qwen2_vl"


class TestQwen25VL(_Scores):
    family = "qwen2_5_vl"


@pytest.mark.slow
class TestQwen3VL(_Scores):
    family = "qwen3_vl"


@pytest.mark.slow
class TestInternVL(_Scores):
    family = "internvl"


@pytest.mark.slow
class TestSmolVLM(_Scores):
    family = "smolvlm"


class TestGemma3(_Scores):
    family = "gemma3"


@pytest.mark.slow
class TestPaliGemma(_Scores):
    family = "paligemma"


@pytest.mark.slow
class TestCausalLM(_Scores):
    family = "causal_lm"


@pytest.mark.slow
class TestLlavaTrains(_Trains):
    family = "llava"


@pytest.mark.slow
class TestLlavaNextTrains(_Trains):
    family = "llava_next"


@pytest.mark.slow
class TestLlavaOnevisionTrains(_Trains):
    family = "llava_onevision"


@pytest.mark.slow
class TestLlavaNextVideoTrains(_Trains):
    family = "llava_next_video"


@pytest.mark.slow
class TestVideoLlavaTrains(_Trains):
    family = "video_llava"


@pytest.mark.slow
class TestQwen2VLTrains(_Trains):
    family = "qwen2_vl"


class TestQwen25VLTrains(_Trains):
    family = "qwen2_5_vl"


@pytest.mark.slow
class TestQwen3VLTrains(_Trains):
    family = "qwen3_vl"


@pytest.mark.slow
class TestInternVLTrains(_Trains):
    family = "internvl"


@pytest.mark.slow
class TestSmolVLMTrains(_Trains):
    family = "smolvlm"


@pytest.mark.slow
class TestGemma3Trains(_Trains):
    family = "gemma3"


@pytest.mark.slow
class TestPaliGemmaTrains(_Trains):
    family = "paligemma"


@pytest.mark.slow
class TestCausalLMTrains(_Trains):
    family = "causal_lm"


@pytest.mark.parametrize("family", sorted(TINY_VLMS))
def test_every_family_packs_and_scores_as_its_own_loss_does(
    family: str, tiny_vlm_folder: Callable[[str], Path]
) -> None:
    model = load_vlm(family, tiny_vlm_folder(family))
    assert model.mode.packed, model.notes
    row = dialogue(1, images=1 if "image" in model.traits.sees else 0)
    expected = torch.tensor(own_sums(model, model.bare_network, row), dtype=torch.float64)
    torch.testing.assert_close(token_log_probs(model, [row]).sum(-1)[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("suite", [_Scores, _Trains])
def test_every_family_of_language_models_is_held_to_the_conformance_suite(suite: type) -> None:
    tested = {case.family for case in suite.__subclasses__()}
    registered = {name for name in registry.names("families") if registry.modality(name) == "language"}
    assert tested == registered == set(TINY_VLMS)
