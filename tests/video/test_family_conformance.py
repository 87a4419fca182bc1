"""Every family of video does what the training loop, the samplers and the exporters rely on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmalign import registry
from mmalign.diffusion.adapter_files import LORA_FILE
from mmalign.testing.tiny_video.wan import WAN_FPS, WAN_FRAMES, WAN_SIZE, WanVariant, write_tiny_wan
from mmalign.testing.video_families import VideoFamilyConformance


def pil(picture: Tensor) -> Image.Image:
    return Image.fromarray(np.asarray(picture.permute(1, 2, 0)))


class WanConformance(VideoFamilyConformance):
    """What the variants of Wan share."""

    family = "wan"
    media: ClassVar[Mapping[str, Any]] = {
        "num_frames": WAN_FRAMES,
        "height": WAN_SIZE[0],
        "width": WAN_SIZE[1],
        "fps": WAN_FPS,
    }
    wide_tolerance: ClassVar[float] = 1e-7  # its norms and modulation work in float32
    part = "transformer"
    variant: ClassVar[WanVariant]

    def plain_prediction(
        self, folder: Path, dtype: torch.dtype
    ) -> Callable[[Tensor, Tensor, str, Tensor], Tensor]:
        """Text, picture and network by the pipeline's own methods."""
        from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel

        goes_on = self.variant in ("i2v", "a14b_i2v")
        pipeline_class: Any = WanImageToVideoPipeline if goes_on else WanPipeline
        pipeline = pipeline_class.from_pretrained(str(folder), torch_dtype=dtype)
        # Loaded on its own: what it keeps in float32 stays so.
        network = WanTransformer3DModel.from_pretrained(str(folder), subfolder=self.part, dtype=dtype)

        def predict(noised: Tensor, timestep: Tensor, prompt: str, picture: Tensor) -> Tensor:
            text, _ = pipeline.encode_prompt(
                prompt, do_classifier_free_guidance=False, max_sequence_length=512
            )
            inputs, more = noised.unsqueeze(0), {}
            if goes_on:
                pixels = pipeline.video_processor.preprocess(
                    pil(picture), height=WAN_SIZE[0], width=WAN_SIZE[1]
                )
                _, condition = pipeline.prepare_latents(
                    pixels.to(dtype),
                    1,
                    noised.shape[0],
                    *WAN_SIZE,
                    WAN_FRAMES,
                    dtype,
                    torch.device("cpu"),
                    latents=inputs,
                )
                inputs = torch.cat([inputs, condition], dim=1)
            if network.config.image_dim is not None:
                seen = pipeline.encode_image(pil(picture), "cpu")
                more["encoder_hidden_states_image"] = seen.to(dtype)
            time = (1000 * timestep).reshape(1)
            if self.variant == "ti2v":
                time = time.unsqueeze(1).expand(1, noised[0, :, ::2, ::2].numel())
            found: Tensor = network(
                inputs.to(dtype), timestep=time, encoder_hidden_states=text.to(dtype), **more
            ).sample
            return found.squeeze(0)

        return predict


class TestWan21(WanConformance):
    """Wan 2.1 of text."""

    variant: ClassVar[WanVariant] = "t2v"
    write = staticmethod(write_tiny_wan)


def write_i2v(folder: str | Path) -> Path:
    return write_tiny_wan(folder, variant="i2v")


def write_a14b(folder: str | Path) -> Path:
    return write_tiny_wan(folder, variant="a14b")


def write_a14b_i2v(folder: str | Path) -> Path:
    return write_tiny_wan(folder, variant="a14b_i2v")


def write_ti2v(folder: str | Path) -> Path:
    return write_tiny_wan(folder, variant="ti2v")


@pytest.mark.slow
class TestWan21OfPictures(WanConformance):
    """Wan 2.1 that goes on from a picture, and sees it by CLIP, too."""

    variant: ClassVar[WanVariant] = "i2v"
    write = staticmethod(write_i2v)

    def pipeline_options(self, picture: Tensor) -> dict[str, Any]:
        """The picture."""
        return {"image": pil(picture)}


@pytest.mark.slow
class TestWan22HighNoise(WanConformance):
    """Wan 2.2 of two experts, the one for much noise trained."""

    variant: ClassVar[WanVariant] = "a14b"
    write = staticmethod(write_a14b)


@pytest.mark.slow
class TestWan22LowNoiseOfPictures(WanConformance):
    """Wan 2.2 of two experts that go on from a picture, the one for little noise trained."""

    variant: ClassVar[WanVariant] = "a14b_i2v"
    write = staticmethod(write_a14b_i2v)
    part = "transformer_2"
    media: ClassVar[Mapping[str, Any]] = {**WanConformance.media, "expert": "low"}

    def pipeline_options(self, picture: Tensor) -> dict[str, Any]:
        """The picture."""
        return {"image": pil(picture)}

    def adapted(self, pipeline: Any, folder: Path) -> Any:
        """Adapters of the second expert are put on as such."""
        pipeline.load_lora_weights(str(folder), weight_name=LORA_FILE, load_into_transformer_2=True)
        return pipeline.transformer_2


@pytest.mark.slow
class TestWan22Small(WanConformance):
    """Wan 2.2 5B: tokens with times of their own, told text alone."""

    variant: ClassVar[WanVariant] = "ti2v"
    write = staticmethod(write_ti2v)
    media: ClassVar[Mapping[str, Any]] = {**WanConformance.media, "height": 64, "width": 96}


def test_every_family_of_video_is_held_to_it() -> None:
    """Each has a class of these tests, here or in a file of its own."""
    known = {name for name in registry.names("families") if registry.modality(name) == "video"}
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    held = {
        name
        for name in known
        for text in texts
        if f'family = "{name}"' in text and "VideoFamilyConformance" in text
    }
    assert held == known
