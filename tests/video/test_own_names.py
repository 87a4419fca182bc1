"""Adapters under the names of the models' own code: joined layers of HunyuanVideo, motion LoRAs."""

import pytest
import torch

from mmalign.errors import CheckpointError
from mmalign.testing.network_conformance import trained_by
from mmalign.testing.tiny_video.animatediff import write_tiny_animatediff
from mmalign.testing.tiny_video.hunyuan_video import write_tiny_hunyuan_video
from mmalign.train.config import AdapterConfig, ModelConfig
from mmalign.train.video_sections import VideoConfig
from mmalign.video.families.animatediff import FAMILY as ANIMATEDIFF
from mmalign.video.families.hunyuan_video import FAMILY as HUNYUAN
from mmalign.video.motion_lora import from_official
from mmalign.video.saving import renamed_tensors

DOUBLE, SINGLE = "diffusion_model.double_blocks.0.", "diffusion_model.single_blocks.0."
A, B = ".lora_A.weight", ".lora_B.weight"


@pytest.fixture
def hunyuan(tmp_path):
    settings = ModelConfig(family="hunyuan_video", source=str(write_tiny_hunyuan_video(tmp_path / "tiny")))
    section = VideoConfig(num_frames=5, height=32, width=48)
    return HUNYUAN.load(settings, section, device="cpu", dtype=torch.float32)


def change(tensors, name):
    """What a layer's weight changes by."""
    return tensors[name + B] @ tensors[name + A]


def test_queries_keys_and_values_are_one_layer(hunyuan):
    trained_by(hunyuan, AdapterConfig(rank=2, alpha=6.0))
    found = renamed_tensors(hunyuan)
    layers = {name.rsplit(".lora_", 1)[0] for name in found}
    attention = {f"{DOUBLE}{side}_attn_{layer}" for side in ("img", "txt") for layer in ("qkv", "proj")}
    assert layers == attention | {f"{SINGLE}linear1", f"{SINGLE}linear2"}
    network = hunyuan.bare_network
    for layer, block, parts in (
        (
            f"{DOUBLE}txt_attn_qkv",
            "transformer_blocks.0",
            ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        ),
        (
            f"{SINGLE}linear1",
            "single_transformer_blocks.0",
            ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        ),
    ):
        wanted = torch.cat(
            [network.get_submodule(f"{block}.{part}").get_delta_weight("default") for part in parts]
        )
        torch.testing.assert_close(change(found, layer), wanted, rtol=1e-5, atol=1e-6)


def test_parts_without_an_adapter_are_zero_and_come_back_as_such(hunyuan):
    trained_by(hunyuan, AdapterConfig(rank=2, targets=(r"single_transformer_blocks.0.attn.to_k",)))
    found = renamed_tensors(hunyuan)
    assert set(found) == {f"{SINGLE}linear1{A}", f"{SINGLE}linear1{B}"}
    again = hunyuan.split_layers(found)
    block = "single_transformer_blocks.0."
    wanted = hunyuan.bare_network.get_submodule(f"{block}attn.to_k").get_delta_weight("default")
    torch.testing.assert_close(change(again, f"{block}attn.to_k"), wanted, rtol=1e-5, atol=1e-6)
    for part in ("attn.to_q", "attn.to_v", "proj_mlp"):
        assert not change(again, block + part).any()
    assert hunyuan.split_layers({"transformer.a.lora_A.weight": torch.zeros(1)}) is None


def test_layers_outside_of_the_blocks_are_refused(hunyuan):
    trained_by(hunyuan, AdapterConfig(rank=2, targets=("attn.to_q",)))
    with pytest.raises(
        CheckpointError, match=r"an adapter on context_embedder.*expected layers of the blocks"
    ):
        renamed_tensors(hunyuan)


@pytest.fixture
def animatediff(tmp_path):
    settings = ModelConfig(family="animatediff", source=str(write_tiny_animatediff(tmp_path / "tiny")))
    section = VideoConfig(num_frames=2, height=16, width=16)
    return ANIMATEDIFF.load(settings, section, device="cpu", dtype=torch.float32)


def test_motion_loras_have_the_names_of_official_ones(animatediff):
    trained_by(animatediff, AdapterConfig(rank=2, alpha=6.0))
    found = renamed_tensors(animatediff)
    first = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks"
    assert {
        f"{first}.{number}.processor.to_{layer}_lora.{side}.weight"
        for number in (0, 1)
        for layer in ("q", "out")
        for side in ("down", "up")
    } <= set(found)
    layer = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn2.to_out.0"
    wanted = animatediff.bare_network.get_submodule(layer).get_delta_weight("default")
    official = f"{first}.1.processor.to_out_lora"
    got = found[f"{official}.up.weight"] @ found[f"{official}.down.weight"]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(change(from_official(found), layer), wanted, rtol=1e-5, atol=1e-6)
    assert from_official({"unet.x.lora_A.weight": wanted}) is None


def test_adapters_on_the_layers_of_pictures_are_no_motion_loras(animatediff):
    trained_by(animatediff, AdapterConfig(rank=2, targets=("attn1.to_q",)))
    with pytest.raises(CheckpointError, match=r"expected attention of motion modules"):
        renamed_tensors(animatediff)
