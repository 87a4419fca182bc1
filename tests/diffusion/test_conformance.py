"""Every image family against the conformance suite."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from diffusers import FluxPipeline
from peft import PeftModel
from torch import Tensor

from mmalign.testing import tiny, tiny_transformers
from mmalign.testing.families import FamilyConformance


class TestStableDiffusion1(FamilyConformance):
    family = "sd15"
    write = staticmethod(tiny.write_tiny_sd15)


@pytest.mark.slow
class TestStableDiffusion2(FamilyConformance):
    family = "sd15"
    write = staticmethod(partial(tiny.write_tiny_sd15, prediction="v_prediction"))


class TestSDXL(FamilyConformance):
    family = "sdxl"
    write = staticmethod(tiny.write_tiny_sdxl)
    text_names = ("text", "", "pooled")


@pytest.mark.slow
class TestSDXLTurbo(FamilyConformance):
    family = "sdxl"
    write = staticmethod(partial(tiny.write_tiny_sdxl, variant="turbo"))
    text_names = ("text", "", "pooled")


@pytest.mark.slow
class TestSDXLRefiner(FamilyConformance):
    family = "sdxl"
    text_names = ("text", "", "pooled")
    write = staticmethod(partial(tiny.write_tiny_sdxl, variant="refiner"))


class TestStableDiffusion3(FamilyConformance):
    family = "sd3"
    write = staticmethod(tiny_transformers.write_tiny_sd3)
    text_names = ("text", "", "pooled")
    text_options: ClassVar = {"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False}
    # The last block drops what its text tokens have seen, so their queries do nothing.
    idle = ("transformer_blocks.1.attn.add_q_proj",)


@pytest.mark.slow
class TestStableDiffusion3WithoutT5(TestStableDiffusion3):
    write = staticmethod(partial(tiny_transformers.write_tiny_sd3, t5=False, newer=True))


class TestFluxDev(FamilyConformance):
    family = "flux"
    write = staticmethod(tiny_transformers.write_tiny_flux)
    text_names = ("text", "pooled")
    text_options: ClassVar = {}

    def pipeline_latents(self, noise: Tensor) -> Tensor:
        packed: Tensor = FluxPipeline._pack_latents(noise, *noise.shape)
        return packed


@pytest.mark.slow
class TestFluxSchnell(TestFluxDev):
    write = staticmethod(partial(tiny_transformers.write_tiny_flux, variant="schnell"))


class TestPixArtSigma(FamilyConformance):
    family = "pixart"
    write = staticmethod(tiny_transformers.write_tiny_pixart)
    text_names = ("text", "text_mask")
    sampler_options: ClassVar = {"clean_caption": False, "use_resolution_binning": False}

    def with_adapter(self, pipeline: Any, folder: Path) -> Any:
        return PeftModel.from_pretrained(pipeline.transformer, str(folder))


class TestPixArtAlpha(TestPixArtSigma):
    write = staticmethod(partial(tiny_transformers.write_tiny_pixart, variant="alpha"))
