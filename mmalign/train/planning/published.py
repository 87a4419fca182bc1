"""Settings of released models, so that a run can be planned where nothing of them has been downloaded.

What differs from the library's own defaults, part by part as in a pipeline folder; numbers of weights that
follow from them are tested against the published ones. Weights, tokenizers and words are not here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PIPELINES", "STANDS_FOR", "PublishedPipeline", "published"]

Parts = Mapping[str, tuple[str, str, Mapping[str, Any]]]


@dataclass(frozen=True)
class PublishedPipeline:
    """A released pipeline without weights.

    Args:
        pipeline_class: as in `model_index.json`.
        parts: name to (library, class, settings that are not the class's own).
        options: of `model_index.json`.
        lengths: tokens of each tokenizer.
        source: of the settings.
    """

    pipeline_class: str
    parts: Parts
    lengths: Mapping[str, int]
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)


_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_WIDE_VAE: dict[str, Any] = {
    **_VAE,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
_T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
    "tie_word_embeddings": False,
}
_UMT5_XXL = {**_T5_XXL, "vocab_size": 256384}
_FLAN_T5_LARGE = {**_T5_XXL, "d_model": 1024, "d_ff": 2816, "num_heads": 16}
_BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
_SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_D, _T = "diffusers", "transformers"
_CLIP, _CLIP_OUT = "CLIPTextModel", "CLIPTextModelWithProjection"

_SD15 = PublishedPipeline(
    "StableDiffusionPipeline",
    {
        "unet": (_D, "UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
        "vae": (_D, "AutoencoderKL", {**_VAE, "scaling_factor": 0.18215}),
        "text_encoder": (_T, _CLIP, _CLIP_L),
        "tokenizer": (_T, "CLIPTokenizer", {}),
        "scheduler": (_D, "DDIMScheduler", {**_BETAS, "clip_sample": False}),
    },
    {"tokenizer": 77},
    "the repository's configs; 860 million weights",
)
_SDXL = PublishedPipeline(
    "StableDiffusionXLPipeline",
    {
        "unet": (_D, "UNet2DConditionModel", _SDXL_UNET),
        "vae": (_D, "AutoencoderKL", {**_VAE, "scaling_factor": 0.13025, "force_upcast": True}),
        "text_encoder": (_T, _CLIP, _CLIP_L),
        "text_encoder_2": (_T, _CLIP_OUT, _CLIP_G),
        "tokenizer": (_T, "CLIPTokenizer", {}),
        "tokenizer_2": (_T, "CLIPTokenizer", {}),
        "scheduler": (_D, "EulerDiscreteScheduler", _BETAS),
    },
    {"tokenizer": 77, "tokenizer_2": 77},
    "the repository's configs; 2307.01952: 2.6 billion weights",
    {"force_zeros_for_empty_prompt": True},
)
_SD35_MEDIUM = PublishedPipeline(
    "StableDiffusion3Pipeline",
    {
        "transformer": (
            _D,
            "SD3Transformer2DModel",
            {
                "sample_size": 128,
                "num_layers": 24,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 384,
                "dual_attention_layers": tuple(range(13)),
                "qk_norm": "rms_norm",
            },
        ),
        "vae": (_D, "AutoencoderKL", {**_WIDE_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
        "text_encoder": (_T, _CLIP_OUT, _CLIP_L),
        "text_encoder_2": (_T, _CLIP_OUT, _CLIP_G),
        "text_encoder_3": (_T, "T5EncoderModel", _T5_XXL),
        "tokenizer": (_T, "CLIPTokenizer", {}),
        "tokenizer_2": (_T, "CLIPTokenizer", {}),
        "tokenizer_3": (_T, "T5TokenizerFast", {}),
        "scheduler": (_D, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    },
    {"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 512},
    "diffusers' converter of SD3; the model card: 2.5 billion weights",
)


def _flux(*, guidance: bool) -> PublishedPipeline:
    shifting = {"use_dynamic_shifting": True, "shift": 3.0} if guidance else {"shift": 1.0}
    return PublishedPipeline(
        "FluxPipeline",
        {
            "transformer": (_D, "FluxTransformer2DModel", {"guidance_embeds": guidance}),
            "vae": (_D, "AutoencoderKL", {**_WIDE_VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159}),
            "text_encoder": (_T, _CLIP, _CLIP_L),
            "text_encoder_2": (_T, "T5EncoderModel", _T5_XXL),
            "tokenizer": (_T, "CLIPTokenizer", {}),
            "tokenizer_2": (_T, "T5TokenizerFast", {}),
            "scheduler": (_D, "FlowMatchEulerDiscreteScheduler", shifting),
        },
        {"tokenizer": 77, "tokenizer_2": 512},
        "the class's own settings; the model card: 12 billion weights",
    )


_TANGO = PublishedPipeline(
    "TangoPipeline",
    {
        "unet": (
            _D,
            "UNet2DConditionModel",
            {
                "in_channels": 8,
                "out_channels": 8,
                "sample_size": [32, 2],
                "attention_head_dim": [5, 10, 20, 20],
                "cross_attention_dim": 1024,
                "use_linear_projection": True,
                "upcast_attention": True,
            },
        ),
        "vae": (
            _D,
            "AutoencoderKL",
            {
                "in_channels": 1,
                "out_channels": 1,
                "latent_channels": 8,
                "block_out_channels": (128, 256, 512),
                "down_block_types": ("DownEncoderBlock2D",) * 3,
                "up_block_types": ("UpDecoderBlock2D",) * 3,
                "layers_per_block": 2,
                "scaling_factor": 0.9227914214134216,
            },
        ),
        "text_encoder": (_T, "T5EncoderModel", _FLAN_T5_LARGE),
        "tokenizer": (_T, "T5TokenizerFast", {}),
        "scheduler": (_D, "DDPMScheduler", {**_BETAS, "prediction_type": "v_prediction"}),
    },
    {"tokenizer": 512},
    "declare-lab/tango configs/diffusion_model_config.json; 2304.13731: 866 million weights",
)


def _wan(**settings: int) -> PublishedPipeline:
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return PublishedPipeline(
        "WanPipeline",
        {
            "transformer": (_D, "WanTransformer3DModel", settings),
            "vae": (_D, "AutoencoderKLWan", {}),
            "text_encoder": (_T, "UMT5EncoderModel", _UMT5_XXL),
            "tokenizer": (_T, "T5TokenizerFast", {}),
            "scheduler": (_D, "UniPCMultistepScheduler", flow),
        },
        {"tokenizer": 512},
        "diffusers' converter of Wan; 2503.20314",
    )


def _cogvideox(**settings: Any) -> PublishedPipeline:
    betas = {**_BETAS, "beta_end": 0.012, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    del betas["steps_offset"]
    return PublishedPipeline(
        "CogVideoXPipeline",
        {
            "transformer": (_D, "CogVideoXTransformer3DModel", settings),
            "vae": (_D, "AutoencoderKLCogVideoX", {"scaling_factor": 0.7 if settings else 1.15258426}),
            "text_encoder": (_T, "T5EncoderModel", _T5_XXL),
            "tokenizer": (_T, "T5Tokenizer", {}),
            "scheduler": (_D, "CogVideoXDDIMScheduler", betas),
        },
        {"tokenizer": 226},
        "the class's own settings and diffusers' converter; 2408.06072",
    )


_COG_5B = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}

PIPELINES: Mapping[str, PublishedPipeline] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD15,
    "stabilityai/stable-diffusion-xl-base-1.0": _SDXL,
    "stabilityai/sdxl-turbo": _SDXL,
    "stabilityai/stable-diffusion-3.5-medium": _SD35_MEDIUM,
    "black-forest-labs/FLUX.1-dev": _flux(guidance=True),
    "black-forest-labs/FLUX.1-schnell": _flux(guidance=False),
    "declare-lab/tango": _TANGO,
    "declare-lab/tango-full": _TANGO,
    "declare-lab/tango-full-ft-audiocaps": _TANGO,
    "declare-lab/tango2": _TANGO,
    "declare-lab/tango2-full": _TANGO,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan(num_attention_heads=12, ffn_dim=8960, num_layers=30),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan(),
    "zai-org/CogVideoX-2b": _cogvideox(),
    "zai-org/CogVideoX-5b": _cogvideox(**_COG_5B),
}
"""By hub id."""

STANDS_FOR: Mapping[str, str] = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3.5-medium",
    "flux": "black-forest-labs/FLUX.1-dev",
    "tango": "declare-lab/tango-full",
    "wan": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "cogvideox": "zai-org/CogVideoX-2b",
}
"""What is counted for a source of a family whose settings cannot be read."""


def published(source: str) -> PublishedPipeline | None:
    """The pipeline of a hub id; None where its settings are not known here."""
    return PIPELINES.get(source)
