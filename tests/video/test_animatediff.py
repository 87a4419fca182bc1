"""AnimateDiff: the family's conformance, two sources or one, motion modules and what trains of them."""

import json
import shutil
from typing import ClassVar

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, UNet2DConditionModel

from mmalign.errors import ConfigError
from mmalign.testing.network_conformance import example_inputs, trained_by
from mmalign.testing.tiny import write_tiny_sd15
from mmalign.testing.tiny_video.animatediff import (
    LONGEST,
    write_tiny_animatediff,
    write_tiny_motion_adapter,
)
from mmalign.testing.video_families import VideoFamilyConformance
from mmalign.train.config import AdapterConfig, ModelConfig
from mmalign.train.video_sections import VideoConfig
from mmalign.video.families.animatediff import FAMILY

SIZE = {"num_frames": 3, "height": 16, "width": 32}


@pytest.mark.slow
class TestAnimateDiff(VideoFamilyConformance):
    """What every family does."""

    family = "animatediff"
    write = staticmethod(write_tiny_animatediff)
    media: ClassVar = {**SIZE, "fps": 8.0}

    def plain_prediction(self, folder, dtype):
        """Text and network by the pipeline's own methods."""
        pipeline = AnimateDiffPipeline.from_pretrained(str(folder), dtype=dtype)

        def predict(noised, timestep, prompt, picture):
            text, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
            frames = text.repeat_interleave(SIZE["num_frames"], dim=0)
            return pipeline.unet(noised[None].to(dtype), timestep, encoder_hidden_states=frames).sample[0]

        return predict


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A model of pictures, motion modules, both as one pipeline."""
    folder = tmp_path_factory.mktemp("animatediff")
    pictures, motion = write_tiny_sd15(folder / "pictures"), write_tiny_motion_adapter(folder / "motion")
    return {"pictures": pictures, "motion": motion, "whole": write_tiny_animatediff(folder / "whole")}


def load(source, *, motion=None, **media):
    settings = ModelConfig(
        family="animatediff", source=str(source), motion_adapter=None if motion is None else str(motion)
    )
    return FAMILY.load(settings, VideoConfig(**{**SIZE, **media}), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def joined(sources):
    """Tests that change it load their own."""
    return load(sources["pictures"], motion=sources["motion"])


def test_pictures_and_motion_are_joined_as_the_pipeline_joins_them(joined, sources):
    modules = MotionAdapter.from_pretrained(str(sources["motion"]))
    pipeline = AnimateDiffPipeline.from_pretrained(str(sources["pictures"]), motion_adapter=modules)
    inputs = example_inputs(joined)
    with torch.no_grad():
        wanted = joined.denoise(*inputs, network=pipeline.unet)
        assert torch.equal(joined.denoise(*inputs), wanted)


def test_the_schedule_is_that_of_motion_modules_and_not_of_pictures(joined, sources):
    assert json.loads((sources["pictures"] / "scheduler" / "scheduler_config.json").read_text())[
        "beta_schedule"
    ] == ("scaled_linear")
    assert joined.scheduler_config["beta_schedule"] == "linear"
    assert joined.schedule.describe() == load(sources["whole"]).schedule.describe()


def test_frames_see_each_other_through_motion_modules_alone(joined):
    noised, level, rows = example_inputs(joined, num_rows=1)
    other = noised.clone()
    other[:, :, 0] += 1
    with torch.no_grad():
        before, after = (joined.denoise(value, level, rows) for value in (noised, other))
        assert not torch.allclose(before[:, :, 2], after[:, :, 2], atol=1e-4)
        for name, value in joined.bare_network.named_parameters():
            if "motion_modules" in name and "proj_out" in name:
                value.zero_()
        before, after = (joined.denoise(value, level, rows) for value in (noised, other))
    torch.testing.assert_close(before[:, :, 1:], after[:, :, 1:])


def test_one_source_too_few_or_too_many_is_told(sources):
    with pytest.raises(ConfigError, match=r"model\.motion_adapter: got None, expected motion modules for"):
        load(sources["pictures"])
    with pytest.raises(ConfigError, match=r"model\.motion_adapter: got .*, expected nothing.*of its own"):
        load(sources["whole"], motion=sources["motion"])
    with pytest.raises(ConfigError, match=r"model\.motion_adapter .*could not be loaded"):
        load(sources["pictures"], motion=sources["pictures"])


def test_motion_modules_of_another_model_are_refused(sources, tmp_path):
    other = MotionAdapter(
        block_out_channels=(16, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
    )
    other.save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match=r"model\.motion_adapter .*does not fit .*Stable Diffusion 1\.x"):
        load(sources["pictures"], motion=tmp_path)


def test_clips_longer_than_the_positions_are_refused(sources):
    with pytest.raises(
        ConfigError, match=rf"video\.num_frames: got {LONGEST + 1}, expected at most {LONGEST}"
    ):
        load(sources["whole"], num_frames=LONGEST + 1)


def test_networks_of_more_channels_are_refused(sources, tmp_path):
    other = shutil.copytree(sources["pictures"], tmp_path / "inpainting")
    config = json.loads((other / "unet" / "config.json").read_text())
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(str(other / "unet"))
    with pytest.raises(ConfigError, match="a UNet from 9 to 4 channels"):
        load(other, motion=sources["motion"])


def test_adapters_go_on_the_attention_of_motion_modules(sources):
    names = trained_by(load(sources["whole"]), AdapterConfig(rank=2)).parameters
    layers = {name.rsplit(".lora_", 1)[0].rsplit(".attn", 1)[1][2:] for name in names}
    assert layers == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all("motion_modules" in name for name in names)


def test_full_training_moves_motion_modules_and_saves_them_as_such(sources, tmp_path):
    model = load(sources["pictures"], motion=sources["motion"])
    trained = {name: value for name, value in model.bare_network.named_parameters() if model.trains(name)}
    assert len(trained) == len(list(MotionAdapter.from_pretrained(str(sources["motion"])).parameters()))
    with torch.no_grad():
        for value in trained.values():
            value.add_(0.05)
    inputs = example_inputs(model)
    saved = model.save_model(tmp_path / "whole")
    modules = MotionAdapter.from_pretrained(str(saved / "motion_adapter"))
    pipelines = (
        AnimateDiffPipeline.from_pretrained(str(saved)),
        AnimateDiffPipeline.from_pretrained(str(sources["pictures"]), motion_adapter=modules),
    )
    with torch.no_grad():
        wanted = model.denoise(*inputs)
        for pipeline in pipelines:
            found = model.denoise(*inputs, network=pipeline.unet)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(load(saved).denoise(*inputs), wanted, rtol=1e-5, atol=1e-6)


def test_a_single_file_of_pictures_is_read_with_motion_modules(sources, tmp_path, monkeypatch):
    """The parts are asked of the file; reading files of pictures is tested where pictures are."""
    from mmalign.video.families import animatediff

    path = tmp_path / "pictures.safetensors"
    path.write_bytes(b"")
    opened = animatediff.open_source(str(path))
    assert opened.pipeline_class == "StableDiffusionPipeline"
    joined = animatediff.MotionSource(opened, str(sources["motion"]))
    assert [joined.has(name) for name in ("unet", "vae", "text_encoder", "tokenizer", "safety_checker")] == [
        True,
        True,
        True,
        True,
        False,
    ]
