"""A tiny Wan: pipeline folders of random weights in every variant there is, about a megabyte, in a second."""

from pathlib import Path
from typing import Any, Literal

import torch

from mmalign.files import atomic_directory
from mmalign.testing.tiny_audio.waveforms import write_short_tokenizer

__all__ = ["WAN_FPS", "WAN_FRAMES", "WAN_SIZE", "WanVariant", "write_tiny_wan"]

WAN_FRAMES, WAN_SIZE, WAN_FPS = 9, (32, 48), 8.0
"""Clips that suit it: 3 latent frames of 4 by 6."""

WanVariant = Literal["t2v", "i2v", "a14b", "a14b_i2v", "ti2v"]
"""Wan 2.1 of text, of a picture; Wan 2.2 of two experts, of text, of a picture; Wan 2.2 5B."""

_TEXT_WIDTH, _TEXT_LENGTH, _PICTURE_WIDTH = 24, 512, 20


def _vae(*, large: bool) -> Any:
    """A causal VAE of 4 frames per latent and 8 by 8 pixels, or 16 by 16 with `large`."""
    from diffusers import AutoencoderKLWan

    channels = 6 if large else 4
    shape: dict[str, Any] = {}
    if large:
        shape = {
            "is_residual": True,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "scale_factor_spatial": 16,
        }
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=torch.linspace(-0.3, 0.4, channels).tolist(),
        latents_std=torch.linspace(0.4, 0.9, channels).tolist(),
        **shape,
    )


def _transformer(channels: int, *, conditioned: bool, pictured: bool) -> Any:
    from diffusers import WanTransformer3DModel

    network = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=2 * channels + 4 if conditioned else channels,
        out_channels=channels,
        text_dim=_TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        image_dim=_PICTURE_WIDTH if pictured else None,
        added_kv_proj_dim=24 if pictured else None,
        rope_max_seq_len=32,
    )
    with torch.no_grad():
        network.proj_out.weight.normal_(std=0.2)
    return network


def _text_encoder(vocabulary: int) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=_TEXT_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=3,
        is_encoder_decoder=False,
        use_cache=False,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def _picture_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=_PICTURE_WIDTH,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return CLIPVisionModel(config)


def write_tiny_wan(folder: str | Path, *, variant: WanVariant = "t2v", seed: int = 0) -> Path:
    """A pipeline folder of a tiny Wan. Returns the folder.

    Args:
        folder: where to write; replaced when it exists.
        variant: see `WanVariant`.
        seed: decides the random weights.
    """
    from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
    from transformers import CLIPImageProcessor, T5Tokenizer

    conditioned, experts = variant.endswith("i2v") and variant != "ti2v", variant.startswith("a14b")
    pictured = variant == "i2v"
    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        torch.manual_seed(seed)
        vocabulary = write_short_tokenizer(partial / "tokenizer", length=_TEXT_LENGTH)
        vae = _vae(large=variant == "ti2v")
        channels = vae.config.z_dim
        parts: dict[str, Any] = {
            "tokenizer": T5Tokenizer.from_pretrained(str(partial / "tokenizer")),
            "text_encoder": _text_encoder(vocabulary),
            "vae": vae,
            "scheduler": UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            "transformer": _transformer(channels, conditioned=conditioned, pictured=pictured),
            "expand_timesteps": variant == "ti2v",
        }
        if experts:
            parts["transformer_2"] = _transformer(channels, conditioned=conditioned, pictured=False)
            parts["boundary_ratio"] = 0.9 if conditioned else 0.875
        if conditioned:
            size = {"height": 16, "width": 16}
            parts["image_encoder"] = _picture_encoder() if pictured else None
            parts["image_processor"] = (
                CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size) if pictured else None
            )
        pipeline_class: Any = WanImageToVideoPipeline if conditioned else WanPipeline
        pipeline_class(**parts).save_pretrained(str(partial))
    return Path(folder)
