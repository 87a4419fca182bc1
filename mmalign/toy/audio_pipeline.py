"""The model of the toy world of sound: a small Tango in the official folder layout, its sound, its scores.

A UNet over latents of log-mel spectrograms, a T5 encoder with a tokenizer of the world's words, a variational
autoencoder, a HiFi-GAN vocoder and Tango's noise schedule, all from configs of the real classes, about two
million parameters together.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign.audio.key_maps import vae_to_official, vocoder_to_official
from mmalign.audio.mel import MelFrontEnd
from mmalign.audio.official_configs import HIFIGAN, SCHEDULER, STFT_FILE, unet_config, vae_config
from mmalign.audio.official_configs import VAE_FILE as VAE_SETTINGS
from mmalign.audio.official_layout import LAYOUTS, MAIN_FILE, VAE_FILE
from mmalign.files import atomic_directory, write_json
from mmalign.toy.audio_reward import Score, score_clips
from mmalign.toy.audio_scenes import DURATION, EVENTS, held_out_prompts
from mmalign.toy.griffin_lim import played_by_griffin_lim

if TYPE_CHECKING:
    from mmalign.audio.family import AudioModel

__all__ = [
    "ASSETS",
    "FRONT",
    "NUM_FRAMES",
    "Parts",
    "evaluate",
    "levelled",
    "load_base",
    "mels_of",
    "new_text_encoder",
    "new_unet",
    "new_vae",
    "new_vocoder",
    "play_held_out",
    "sample",
    "write_model",
    "write_tokenizer",
]

ASSETS = Path(__file__).parent / "assets" / "audio"

FRONT = MelFrontEnd(filter_length=512, win_length=512, num_mels=32)
"""From waveforms to spectrograms: half of Tango's window and bands, for short clips."""

NUM_FRAMES = 128
TEXT_WIDTH = 64
LATENT_CHANNELS = 8
VOCODER_WIDTH = 96
_LIFT = 1.0

Parts = dict[str, nn.Module]
"""`unet`, `text_encoder`, `vae` and `vocoder`."""


def levelled(waves: Float[Tensor, "clip sample"]) -> Float[Tensor, "clip sample"]:
    """As the model's own reader gives them: the peak at 0.5."""
    from mmalign.audio.mel import prepared

    return prepared(waves, waves.shape[-1])


def mels_of(waves: Float[Tensor, "clip sample"]) -> Float[Tensor, "clip 1 frame mel"]:
    """Log-mel spectrograms of clips, a picture of one channel each."""
    frames = waves.shape[-1] // FRONT.hop_length
    parts = [FRONT.log_mel(part, num_frames=frames) for part in waves.split(256)]
    return torch.cat(parts).unsqueeze(1)


def vae_file(scale_factor: float = 1.0) -> dict[str, Any]:
    """An official `vae_config.json`: 32 channels at every level, one block each."""
    inner = {**VAE_SETTINGS["ddconfig"], "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    inner |= {"z_channels": LATENT_CHANNELS, "resolution": NUM_FRAMES}
    own = {"embed_dim": LATENT_CHANNELS, "scale_factor": scale_factor, "ddconfig": inner}
    return {**VAE_SETTINGS, **own}


def new_vae() -> Any:
    """An untrained autoencoder: log-mel spectrograms of 128 x 32 to latents of 8 x 16 x 4."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(vae_config(vae_file()))


def network_config() -> dict[str, Any]:
    """Settings of the UNet: two narrow levels with attention in both, otherwise as the official one."""
    return {
        **unet_config(TEXT_WIDTH),
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "attention_head_dim": [3, 4],
        "block_out_channels": [48, 64],
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }


def new_unet() -> Any:
    """An untrained UNet."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(network_config())


def new_text_encoder(vocabulary: int) -> Any:
    """An untrained T5 encoder of two layers, FLAN-T5's in kind."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


@torch.no_grad()
def new_vocoder() -> Any:
    """An untrained HiFi-GAN generator, AudioLDM's but for its width and bands, that is easy to train.

    Its first transposed convolution is zero; what comes after passes its channels on as the samples of the
    wave, in order: 48 channels at 500 Hz hold the 32 samples of a step, then 24 hold 8, and so on. So the
    network starts as one hidden layer with overlapping frames of 512 samples, and nothing is in the way of
    the gradient. `_LIFT` keeps all values above 0, where leaky units change nothing, until the last layer
    takes it off.
    """
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    own = {"model_in_dim": FRONT.num_mels, "upsample_initial_channel": VOCODER_WIDTH}
    vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**{**HIFIGAN, **own}))
    for name, value in vocoder.named_parameters():
        if "convs2" in name or "upsampler" in name or "conv_post" in name:
            value.zero_()
        elif value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)
    samples = FRONT.hop_length
    for stage, layer in enumerate(vocoder.upsampler):
        stride, first = layer.stride[0], layer.padding[0]
        samples //= stride
        if stage == 0:
            layer.bias[:samples] = _LIFT
            continue
        for phase in range(stride):
            for channel in range(samples):
                layer.weight[phase * samples + channel, channel, first + phase] = 1.0
    vocoder.conv_post.weight[0, 0, vocoder.conv_post.padding[0]] = 1.0
    vocoder.conv_post.bias.fill_(-_LIFT)
    return vocoder


def write_tokenizer(folder: Path) -> int:
    """A T5 tokenizer with one piece per word of the captions. Returns the size of its vocabulary.

    Other words fall apart into letters. Ids as in the published vocabulary: padding 0, end 1, unknown 2.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = sorted({word for event in EVENTS for word in event.split()})
    words += ["a", "after", "before", "finally", "first", "then"]
    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in words]
    pieces += [("▁", -8.0), *((letter, -8.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": 64,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(pieces)


def write_model(parts: Parts, folder: Path) -> Path:
    """Write the parts as an official Tango repository in float16. Returns the folder."""
    layout, vae = LAYOUTS[0], parts["vae"]
    settings = vae_file(float(vae.config["scaling_factor"]))  # type: ignore[index]
    main = {
        f"{name}.{key}": value
        for name in ("unet", "text_encoder")
        for key, value in parts[name].state_dict().items()
        # A second name of the same table.
        if f"{name}.{key}" != "text_encoder.encoder.embed_tokens.weight"
    }
    sound = vae_to_official(vae.state_dict(), len(settings["ddconfig"]["ch_mult"]))
    sound |= vocoder_to_official(parts["vocoder"].state_dict())
    texts: Any = parts["text_encoder"]
    with atomic_directory(folder) as partial:
        write_tokenizer(partial / "text_encoder")
        texts.config.save_pretrained(str(partial / "text_encoder"))
        for name, state in ((layout.main, main), (layout.vae, sound)):
            halves = {key: value.detach().to(torch.float16).clone() for key, value in state.items()}
            torch.save(halves, partial / name)
        write_json(partial / MAIN_FILE, _MAIN)
        write_json(partial / VAE_FILE, settings)
        write_json(partial / STFT_FILE, FRONT.config())
        write_json(partial / "configs" / "diffusion_model_config.json", network_config())
        write_json(
            partial / "scheduler" / "scheduler_config.json", {"_class_name": "DDPMScheduler", **SCHEDULER}
        )
    return folder


_MAIN: dict[str, Any] = {
    "text_encoder_name": "text_encoder",
    "scheduler_name": "scheduler",
    "unet_model_name": None,
    "unet_model_config_path": "configs/diffusion_model_config.json",
    "snr_gamma": 5.0,
    "freeze_text_encoder": True,
    "uncondition": False,
}


def load_base(folder: Path = ASSETS) -> "AudioModel":
    """The shipped base model (or another folder of its kind) in float32, on the CPU."""
    from mmalign.audio.families.tango import FAMILY
    from mmalign.train.audio_sections import AudioConfig
    from mmalign.train.sections import ModelConfig

    return FAMILY.load(
        ModelConfig(source=str(folder), family="tango"),
        AudioConfig(duration=DURATION),
        device="cpu",
        dtype=torch.float32,
    )


def sample(
    model: "AudioModel",
    prompts: Sequence[str],
    *,
    seed: int,
    num_steps: int = 25,
    guidance_scale: float = 2.5,
    batch_size: int = 32,
    copies: int = 1,
) -> list[Float[Tensor, " sample"]]:
    """Clips of captions, adapters as they stand; the noise of prompt i depends on (seed, i) only.

    Spectrograms become sound by Griffin and Lim, through whom the ear hears every true clip right. Through
    the small vocoder, which the folder holds for all other programs, it hears two thirds.
    """
    with played_by_griffin_lim(model):
        clips = model.sample(
            prompts,
            seed=seed,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            batch_size=batch_size,
            copies=copies,
        )
    return [clip.samples[0] for clip in clips]


def play_held_out(model: "AudioModel", num: int, *, seed: int) -> list[Score]:
    """Exact scores of what the model makes of held-out captions."""
    prompts = held_out_prompts(num, seed=seed)
    return score_clips(sample(model, prompts, seed=seed), prompts)


def evaluate(model: "AudioModel", *, num: int, seed: int = 0) -> dict[str, float]:
    """Means over held-out captions: presence, order, and the share of perfect clips."""
    scores = play_held_out(model, num, seed=seed)
    return {
        "presence": sum(score.presence for score in scores) / num,
        "order": sum(score.order for score in scores) / num,
        "perfect": sum(score.perfect for score in scores) / num,
    }
