"""Settings that official Tango repositories leave to other places, some of which are gone.

The noise schedule lay in a repository that was removed from the hub in November 2025, the network's settings
lie in the code and not beside the weights, the vocoder's in the code of AudioLDM.
"""

from typing import Any

__all__ = [
    "FLAN_T5_LARGE",
    "HIFIGAN",
    "SCHEDULER",
    "STFT_FILE",
    "UNET_WIDTHS",
    "VAE_FILE",
    "unet_config",
    "vae_config",
]

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "variance_type": "fixed_small",
}
"""Of `stabilityai/stable-diffusion-2-1`, folder `scheduler`, with the defaults that `DDPMScheduler` adds."""

UNET_WIDTHS: dict[int, str] = {1024: "standard", 2048: "XL"}
"""Width of the text states to the name of the network that reads them."""

_UNET: dict[str, Any] = {
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 8,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "sample_size": [32, 2],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "use_linear_projection": True,
    "upcast_attention": True,
}

HIFIGAN: dict[str, Any] = {
    "model_in_dim": 64,
    "sampling_rate": 16_000,
    "upsample_initial_channel": 1024,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "leaky_relu_slope": 0.1,
    "normalize_before": False,
}
"""`SpeechT5HifiGanConfig` of AudioLDM's vocoder at 16 kHz with 64 bands.

Source: haoheliu/AudioLDM, audioldm/utils.py and hifigan/utilities.py; Tango carries the same.
"""

FLAN_T5_LARGE: dict[str, Any] = {
    "vocab_size": 32_128,
    "d_model": 1024,
    "d_kv": 64,
    "d_ff": 2816,
    "num_layers": 24,
    "num_heads": 16,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-06,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
"""`T5Config` of `google/flan-t5-large`, whose encoder official checkpoints hold."""

VAE_FILE: dict[str, Any] = {
    "image_key": "fbank",
    "subband": 1,
    "embed_dim": 8,
    "time_shuffle": 1,
    "scale_factor": 0.9227914214134216,
    "ddconfig": {
        "double_z": True,
        "z_channels": 8,
        "resolution": 256,
        "downsample_time": False,
        "in_channels": 1,
        "out_ch": 1,
        "ch": 128,
        "ch_mult": [1, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}
"""An official `vae_config.json`."""

STFT_FILE = "stft_config.json"


def unet_config(width: int) -> dict[str, Any]:
    """Settings of the official `UNet2DConditionModel` that reads text states of this width.

    Source: declare-lab/tango, configs/diffusion_model_config.json and diffusion_model_xl_config.json.
    """
    return {**_UNET, "cross_attention_dim": width}


def vae_config(official: dict[str, Any]) -> dict[str, Any]:
    """Settings of diffusers' `AutoencoderKL` for a `vae_config.json`.

    Args:
        official: its content, with `ddconfig`, `embed_dim` and `scale_factor`.
    """
    inner = official["ddconfig"]
    levels = len(inner["ch_mult"])
    return {
        "in_channels": inner["in_channels"],
        "out_channels": inner["out_ch"],
        "latent_channels": official["embed_dim"],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [inner["ch"] * factor for factor in inner["ch_mult"]],
        "layers_per_block": inner["num_res_blocks"],
        "norm_num_groups": 32,
        "act_fn": "silu",
        "sample_size": inner["resolution"],
        "scaling_factor": official["scale_factor"],
    }
