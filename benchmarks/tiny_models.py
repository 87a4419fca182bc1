"""Tiny models that are true to a family's structure, and pairs for them: what the step benchmarks run on.

Depth, number of modules, kinds of blocks, text encoders and the VAE's steps are those of the published models
(or a stated share of them); widths and pictures are small. So the share of a step that is not arithmetic is
as large as in life, and a step still takes a fraction of a second on one core.

    sd15    UNet 32/64/128/128 for 320/640/1280/1280, one text encoder of 12 layers
    sdxl    UNet 32/64/128 for 320/640/1280 with 1, 2 and 10 transformer layers, text encoders of 12 and 32
    sd3     8 of 24 joint blocks, normalised queries and keys, T5 and two CLIP encoders
    flux    2 + 4 of 19 + 38 blocks, width 128
    video   Wan: 4 of 30 blocks, width 128, 17 frames of 128 pixels: latents of 5 x 16 x 16
    audio   Tango: UNet 40/80/160/160 for 320/640/1280/1280, 2.56 s: latents of 8 x 64 x 16
    vlm     LLaVA: 8 layers of width 256, tower of 3, see vlm_pairs.py

Weights are random, of a fixed seed. Nothing is downloaded.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["TINY", "TinyModel", "write_photos"]

SIDE = 128
"""Pixels of pictures and clips."""


@dataclass(frozen=True)
class TinyModel:
    """A family's tiny model.

    Args:
        family: name in the registry.
        media: sections of the run's configuration that suit it.
        write_model: writes the model's folder.
        write_rows: writes a file of that many pairs.
        method: name of the row that is trained.
    """

    family: str
    media: Mapping[str, Any]
    write_model: Callable[[Path], object]
    write_rows: Callable[[Path, int], Path]
    method: str = "diffusion_dpo"
    objective: Mapping[str, Any] = field(default_factory=lambda: {"beta": 2000.0})

    def files(self, folder: Path, num_rows: int) -> tuple[Path, Path]:
        """(model, rows), written where they are missing."""
        model = folder / "model"
        if not model.exists():
            folder.mkdir(parents=True, exist_ok=True)
            self.write_model(model)
        rows = folder / f"pairs-{num_rows}"
        found = sorted(folder.glob(f"{rows.name}.*"))
        return model, found[0] if found else self.write_rows(rows, num_rows)


# --- rows ---------------------------------------------------------------------------------------------------


def _picture(seed: int, side: int) -> Any:
    """Smooth noise: JPEG files of it are as large as those of photographs."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def _jpeg(seed: int, side: int) -> bytes:
    buffer = io.BytesIO()
    _picture(seed, side).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _write_pairs(path: Path, number: int, make: Callable[[int], bytes], ending: str) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "prompt": f"a picture of {place % 7} red circles beside a blue square, number {place}",
            "chosen": {"bytes": make(2 * place), "path": f"{place:06d}_0.{ending}"},
            "rejected": {"bytes": make(2 * place + 1), "path": f"{place:06d}_1.{ending}"},
        }
        for place in range(number)
    ]
    target = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), target, row_group_size=32)
    return target


def write_photos(path: Path, number: int, side: int = SIDE) -> Path:
    """Pairs of JPEG files as parquet; returns the file."""
    return _write_pairs(path, number, lambda seed: _jpeg(seed, side), "jpg")


def _write_clips(path: Path, number: int) -> Path:
    from mmalign.testing.video_families import moving_clip

    return _write_pairs(
        path, number, lambda seed: moving_clip(seed, num_frames=17, size=(SIDE, SIDE), fps=8.0), "png"
    )


def _write_sounds(path: Path, number: int) -> Path:
    from mmalign.data.audio_writers import write_audio_alpaca
    from mmalign.testing.audio_families import row_of_sound

    rows = [
        row_of_sound(f"a dog barks {place} times", seed=place, seconds=2.56, rate=16_000)
        for place in range(number)
    ]
    return Path(write_audio_alpaca(path.with_suffix(".parquet"), rows))


def _write_dialogues(path: Path, number: int) -> Path:
    from vlm_pairs import write_pairs

    return write_pairs(path.parent / "model", path.with_suffix(".parquet"), number)


# --- parts --------------------------------------------------------------------------------------------------


def _clip(vocabulary: int, width: int, layers: int, *, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 16),
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _t5(vocabulary: int, width: int = 64, layers: int = 6) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=16,
        d_ff=5 * width // 2,
        num_layers=layers,
        num_heads=width // 16,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def _vae(channels: int, scaling: float, **settings: Any) -> Any:
    """Four levels of two layers, as all of these families have: 8 pixels to a latent."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8,
        latent_channels=channels,
        sample_size=SIDE,
        scaling_factor=scaling,
        **settings,
    )


def _beta_schedule(**more: Any) -> dict[str, Any]:
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "steps_offset": 1,
        **more,
    }


# --- models -------------------------------------------------------------------------------------------------


def _write_sd15(folder: Path) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTokenizer

    from mmalign.testing.tiny import END, write_clip_tokenizer

    vocabulary = write_clip_tokenizer(folder / "tokenizer", pad_token=END)
    StableDiffusionPipeline(
        vae=_vae(4, 0.18215),
        text_encoder=_clip(vocabulary, 96, 12, projected=False),
        tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer")),
        unet=UNet2DConditionModel(
            sample_size=SIDE // 8,
            block_out_channels=(32, 64, 128, 128),
            layers_per_block=2,
            cross_attention_dim=96,
            attention_head_dim=8,
            norm_num_groups=8,
        ),
        scheduler=DDIMScheduler(**_beta_schedule(clip_sample=False, set_alpha_to_one=False)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(str(folder))


def sdxl_unet(width: int = 32, text: int = 256, pooled: int = 160, time: int = 32, side: int = SIDE) -> Any:
    """An SDXL UNet of another width: 320 is the real one."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=side // 8,
        block_out_channels=(width, 2 * width, 4 * width),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=text,
        attention_head_dim=(5, 10, 20) if width == 320 else (2, 4, 8),
        norm_num_groups=32 if width == 320 else 8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time,
        projection_class_embeddings_input_dim=pooled + 6 * time,
    )


def _write_sdxl(folder: Path) -> None:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    from mmalign.testing.tiny import END, write_clip_tokenizer

    vocabulary = write_clip_tokenizer(folder / "tokenizer", pad_token=END)
    write_clip_tokenizer(folder / "tokenizer_2", pad_token="!")
    StableDiffusionXLPipeline(
        vae=_vae(4, 0.13025),
        text_encoder=_clip(vocabulary, 96, 12, projected=False),
        text_encoder_2=_clip(vocabulary, 160, 32, projected=True),
        tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer")),
        tokenizer_2=CLIPTokenizer.from_pretrained(str(folder / "tokenizer_2")),
        unet=sdxl_unet(),
        scheduler=EulerDiscreteScheduler(**_beta_schedule(timestep_spacing="leading")),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(str(folder))


def _write_sd3(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTokenizer, T5Tokenizer

    from mmalign.testing.tiny import END, write_clip_tokenizer
    from mmalign.testing.tiny_transformers import write_t5_tokenizer

    vocabulary = write_clip_tokenizer(folder / "tokenizer", pad_token=END)
    write_clip_tokenizer(folder / "tokenizer_2", pad_token="!")
    words = write_t5_tokenizer(folder / "tokenizer_3")
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=SIDE // 8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=8,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=256,
            caption_projection_dim=128,
            pooled_projection_dim=256,
            pos_embed_max_size=96,
            dual_attention_layers=(0, 1, 2, 3),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=_vae(16, 1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(vocabulary, 96, 12, projected=True),
        tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer")),
        text_encoder_2=_clip(vocabulary, 160, 32, projected=True),
        tokenizer_2=CLIPTokenizer.from_pretrained(str(folder / "tokenizer_2")),
        text_encoder_3=_t5(words, 256),
        tokenizer_3=T5Tokenizer.from_pretrained(str(folder / "tokenizer_3")),
    ).save_pretrained(str(folder))


def _write_flux(folder: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTokenizer, T5Tokenizer

    from mmalign.testing.tiny import END, write_clip_tokenizer
    from mmalign.testing.tiny_transformers import write_t5_tokenizer

    vocabulary = write_clip_tokenizer(folder / "tokenizer", pad_token=END)
    words = write_t5_tokenizer(folder / "tokenizer_2")
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        ),
        vae=_vae(16, 0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(vocabulary, 96, 12, projected=False),
        tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer")),
        text_encoder_2=_t5(words),
        tokenizer_2=T5Tokenizer.from_pretrained(str(folder / "tokenizer_2")),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=64,
            pooled_projection_dim=96,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        ),
    ).save_pretrained(str(folder))


def _write_wan(folder: Path) -> None:
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    from mmalign.testing.tiny_audio.waveforms import write_short_tokenizer

    words = write_short_tokenizer(folder / "tokenizer", length=512)
    encoder = UMT5Config(
        vocab_size=words,
        d_model=64,
        d_kv=16,
        d_ff=160,
        num_layers=6,
        num_heads=4,
        is_encoder_decoder=False,
        use_cache=False,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    WanPipeline(
        tokenizer=T5Tokenizer.from_pretrained(str(folder / "tokenizer")),
        text_encoder=UMT5EncoderModel(encoder),
        vae=AutoencoderKLWan(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=WanTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=32,
            text_dim=64,
            freq_dim=64,
            ffn_dim=768,
            num_layers=4,
        ),
    ).save_pretrained(str(folder))


def tango_unet(width: int = 40, text: int = 32) -> dict[str, Any]:
    """Settings of a Tango UNet of another width: 320 is the real one."""
    from mmalign.audio.official_configs import unet_config

    heads = [5, 10, 20, 20] if width == 320 else [1, 2, 4, 4]
    return {
        **unet_config(text),
        "attention_head_dim": heads,
        "block_out_channels": [width, 2 * width, 4 * width, 4 * width],
        "norm_num_groups": 32 if width == 320 else 8,
    }


def _write_tango(folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    from mmalign.audio.official_layout import LAYOUTS
    from mmalign.testing.tiny_audio.tango import write_tiny_tango

    write_tiny_tango(folder)
    settings, main = tango_unet(), folder / LAYOUTS[0].main
    state = torch.load(main, weights_only=True)
    kept = {name: value for name, value in state.items() if not name.startswith("unet.")}
    unet = UNet2DConditionModel.from_config(settings)
    torch.save({**kept, **{f"unet.{name}": value for name, value in unet.state_dict().items()}}, main)
    (folder / "configs" / "diffusion_model_config.json").write_text(json.dumps(settings))


def _write_llava(folder: Path) -> None:
    from vlm_pairs import Shape, write_model

    write_model(Shape(tower_width=128, tower_layers=3), folder)


def _seeded(write: Callable[[Path], object]) -> Callable[[Path], object]:
    """The same random weights whoever drew before."""

    def written(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            folder.mkdir(parents=True, exist_ok=True)
            write(folder)

    return written


_IMAGE = {"image": {"resolution": SIDE, "flip": False}}

TINY: dict[str, TinyModel] = {
    "sd15": TinyModel("sd15", _IMAGE, _seeded(_write_sd15), write_photos),
    "sdxl": TinyModel("sdxl", _IMAGE, _seeded(_write_sdxl), write_photos),
    "sd3": TinyModel("sd3", _IMAGE, _seeded(_write_sd3), write_photos),
    "flux": TinyModel("flux", _IMAGE, _seeded(_write_flux), write_photos),
    "video": TinyModel(
        "wan",
        {"video": {"num_frames": 17, "height": SIDE, "width": SIDE, "fps": 8.0}},
        _seeded(_write_wan),
        _write_clips,
    ),
    "audio": TinyModel("tango", {"audio": {"duration": 2.56}}, _seeded(_write_tango), _write_sounds),
    "vlm": TinyModel("llava", {}, _seeded(_write_llava), _write_dialogues, "dpo", {"beta": 0.1}),
}
"""Name of a step benchmark to what it runs on."""
