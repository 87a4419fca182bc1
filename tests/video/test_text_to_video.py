"""Text-to-video-ms: the family's conformance, its VAE frame by frame, its blocks recomputed."""

from typing import ClassVar

import pytest
import torch
from diffusers import TextToVideoSDPipeline
from peft import PeftModel

from mmalign.testing.network_conformance import example_inputs
from mmalign.testing.tiny_video.text_to_video import write_tiny_text_to_video
from mmalign.testing.video_families import VideoFamilyConformance
from mmalign.train.config import ModelConfig
from mmalign.train.video_sections import VideoConfig
from mmalign.video.families.text_to_video import FAMILY

SIZE = {"num_frames": 3, "height": 16, "width": 32}


@pytest.mark.slow
class TestTextToVideo(VideoFamilyConformance):
    """What every family does."""

    family = "text_to_video"
    write = staticmethod(write_tiny_text_to_video)
    media: ClassVar = {**SIZE, "fps": 8.0}

    def adapted(self, pipeline, folder):
        """By peft: the library's loader knows no network of this kind."""
        return PeftModel.from_pretrained(pipeline.unet, str(folder))

    def plain_prediction(self, folder, dtype):
        """Text and network by the pipeline's own methods."""
        pipeline = TextToVideoSDPipeline.from_pretrained(str(folder), dtype=dtype)

        def predict(noised, timestep, prompt, picture):
            text, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
            return pipeline.unet(noised[None].to(dtype), timestep, encoder_hidden_states=text).sample[0]

        return predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_text_to_video(tmp_path_factory.mktemp("text_to_video") / "tiny")


def load(folder, *, media=None, **model):
    settings = ModelConfig(family="text_to_video", source=str(folder), **model)
    section = VideoConfig(**{**SIZE, **(media or {})})
    return FAMILY.load(settings, section, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("tiling", [False, True])
def test_every_frame_is_a_picture_to_the_vae(folder, tiling):
    model = load(folder, media={"vae_tiling": tiling})
    pipeline = TextToVideoSDPipeline.from_pretrained(str(folder))
    if tiling:
        pipeline.vae.enable_tiling()
        for vae in (model.vae, pipeline.vae):
            vae.tile_sample_min_size, vae.tile_latent_min_size = 8, 4
    clips = torch.rand(2, 3, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = model.moments(clips)
    with torch.no_grad():
        for clip, mean, std in zip(clips, found.mean, found.std, strict=True):
            wanted = pipeline.vae.encode(clip).latent_dist
            torch.testing.assert_close(mean.transpose(0, 1), wanted.mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(std.transpose(0, 1), wanted.std, rtol=1e-5, atol=1e-6)
        latents = model.codec.scale(found.mean)
        decoded = pipeline.decode_latents(latents)
    shown = pipeline.video_processor.postprocess_video(decoded, output_type="pt")
    torch.testing.assert_close(model.decode_clips(latents), shown, rtol=1e-5, atol=1e-5)
    assert model.frame_grid == tuple(range(number, number + 1) for number in range(3))


def test_its_own_blocks_are_recomputed(folder):
    """diffusers has no checkpointing for this network."""
    model = load(folder, gradient_checkpointing=True)
    assert "gradient checkpointing: 5 blocks" in model.notes
    assert model.bare_network.state_dict().keys() == load(folder).bare_network.state_dict().keys()


def test_nothing_is_dropped_in_training(folder):
    """Its temporal convolutions have dropout, by which the policy would differ from its reference."""
    model = load(folder)
    inputs = example_inputs(model)
    with torch.no_grad():
        evaluated = model.denoise(*inputs)
        model.bare_network.train()
        assert torch.equal(model.denoise(*inputs), evaluated)
