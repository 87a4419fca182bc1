"""How the golden case of a whole Tango calls the public interface: from an official folder to its numbers.

The folder is written under official names, with weights that are a function of their names, and loaded as a
user's would be. No formula of the suite stands here.
"""

import json
import math
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from mmalign import objectives
from mmalign.audio.families.tango import FAMILY, Tango
from mmalign.audio.key_maps import vae_to_official, vocoder_to_official
from mmalign.audio.official_configs import HIFIGAN, vae_config
from mmalign.batch import Batch, Conditioning, Labels
from mmalign.diffusion.guided import denoised_latents
from mmalign.diffusion.sampling import scheduler_for
from mmalign.likelihood import Elbo, UniformTimesteps
from mmalign.likelihood.weighting import MinSnr, signal_to_noise
from mmalign.objectives import Scores
from mmalign.testing.parity import Case, adapter_module
from mmalign.testing.tiny_transformers import write_t5_tokenizer
from mmalign.train.audio_sections import AudioConfig
from mmalign.train.sections import ModelConfig

IMAGE = adapter_module(Path(__file__).with_name("adapters_image.py"))
AUDIO = adapter_module(Path(__file__).with_name("adapters_audio.py"))

Results = dict[str, Any]


# --- numbers that are a function of a name, as the case describes them --------------------------------------


def uniform(name: str, size: int) -> np.ndarray:
    value = (np.arange(size, dtype=np.uint64) + zlib.crc32(name.encode())) % 2**32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        value = ((value ^ (value >> np.uint64(shift))) * np.uint64(factor)) % 2**32
    return value.astype(np.float64) / 2**32


def parameter(name: str, shape: tuple[int, ...]) -> Tensor:
    value = 2 * uniform(name, math.prod(shape)) - 1
    if len(shape) >= 2:
        value = value * math.sqrt(3 / math.prod(shape[1:]))
    else:
        value = 1 + 0.1 * value if name.endswith("weight") else 0.1 * value
    return torch.from_numpy(value.astype(np.float32)).reshape(shape)


def gauss(name: str, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape)
    first = (uniform(f"{name}/u1", size) * 2**32 + 1) / (2**32 + 1)
    value = np.sqrt(-2 * np.log(first)) * np.cos(2 * math.pi * uniform(f"{name}/u2", size))
    return torch.from_numpy(value.astype(np.float32)).reshape(shape)


def filled(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors of these names and shapes; the two names of T5's table are filled under the first."""
    return {
        name: parameter(prefix + name.replace("encoder.embed_tokens.", "shared."), tuple(value.shape))
        for name, value in state.items()
    }


def write_folder(folder: Path, given: Mapping[str, Any]) -> None:
    """The case's model as an official repository."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig, T5Config, T5EncoderModel

    text_config = T5Config(**given["t5_config"])
    vae = AutoencoderKL.from_config(vae_config(given["vae_config"]))
    vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**{**HIFIGAN, **given["vocoder_override"]}))
    unet = UNet2DConditionModel.from_config(given["unet_config"])
    salt, levels = given["salt"], len(given["vae_config"]["ddconfig"]["ch_mult"])
    sound = vae_to_official(vae.state_dict(), levels) | vocoder_to_official(vocoder.state_dict())
    main = {
        f"{part}.{name}": value
        for part, module in (("unet", unet), ("text_encoder", T5EncoderModel(text_config)))
        for name, value in filled(module.state_dict(), f"{salt}{part}.").items()
    }
    torch.save(main, folder / "pytorch_model_main.bin")
    torch.save(filled(sound, f"{salt}vae."), folder / "pytorch_model_vae.bin")
    write_t5_tokenizer(folder / "text_encoder")
    text_config.save_pretrained(str(folder / "text_encoder"))
    length, hop, window, bands, rate, low, high = given["stft"]
    files = {
        "main_config.json": {
            "text_encoder_name": "text_encoder",
            "scheduler_name": "gone",
            "unet_model_config_path": "unet.json",
        },
        "unet.json": given["unet_config"],
        "vae_config.json": given["vae_config"],
        "stft_config.json": {
            "filter_length": length,
            "hop_length": hop,
            "win_length": window,
            "n_mel_channels": bands,
            "sampling_rate": rate,
            "mel_fmin": low,
            "mel_fmax": high,
        },
        "scheduler/scheduler_config.json": given["scheduler_config"],
    }
    (folder / "scheduler").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def loaded(hyperparameters: str) -> Tango:
    given = json.loads(hyperparameters)
    _, hop, _, _, rate, _, _ = given["stft"]
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), given)
        settings = ModelConfig(family="tango", source=folder)
        audio = AudioConfig(duration=given["mel_target_length"] * hop / rate)
        model = FAMILY.load(settings, audio, device="cpu", dtype=torch.float32)
        _ = model.encoders, model.vae, model.autoencoder.vocoder
    return model


# --- the case -----------------------------------------------------------------------------------------------


@dataclass
class Whole:
    """The model of the case and its inputs."""

    case: Case

    @property
    def given(self) -> Mapping[str, Any]:
        return self.case.hyperparameters

    @property
    def salt(self) -> str:
        return self.given["salt"]

    @cached_property
    def model(self) -> Tango:
        return loaded(json.dumps(self.given))

    @property
    def prompts(self) -> list[str]:
        return self.case["prompts"]

    def text(self, prompts: list[str], length: int = 0) -> dict[str, Tensor]:
        """Text states of the table's tokens, filled up with 0."""
        rows = [self.case["token_table"][prompt] for prompt in prompts]
        length = max(length, *(len(row) for row in rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        with torch.no_grad():
            return self.model.text_from_tokens([ids, mask], self.model.encoders)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        rows, *event = self.case.outputs["dpo_policy_prediction"]["shape"]
        return (rows // 2, *event)

    def latents(self, *sides: str) -> Tensor:
        return torch.stack([gauss(f"{self.salt}latents.{side}", self.latent_shape) for side in sides], dim=1)

    def batch(self, clean: Tensor, labels: Labels) -> Batch:
        return replace(IMAGE.batch_of(clean, labels), conditioning=Conditioning(self.text(self.prompts)))


def sound(whole: Whole) -> Results:
    model, case = whole.model, whole.case
    codec = model.autoencoder
    wave = model.clips.waveform(AUDIO.sines(case["waveform"]).unsqueeze(0))
    mel = codec.spectrogram(wave.unsqueeze(0))
    moments = codec.moments(wave.unsqueeze(0))
    noise = gauss(f"{whole.salt}noise.vae", tuple(moments.mean.shape))
    latent = codec.scale(moments.mean + moments.std * noise)
    with torch.no_grad():
        decoded = codec.mel_of(latent)
        heard = codec.sound_of(decoded).squeeze(1)
        logvar = model.vae.encode(mel).latent_dist.logvar
    return {
        "mel": mel,
        "vae_posterior_mean": moments.mean,
        "vae_posterior_logvar": logvar,
        "latent_sampled_scaled": latent,
        "vae_decoded_mel": decoded,
        "vocoder_waveform_float": heard,
        "waveform_int16": (heard * 32768).to(torch.int16),
    }


def gradients(model: Tango, loss: Tensor, name: str) -> Results:
    parameters = dict(model.bare_network.named_parameters())
    found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    total = sum(value.double().square().sum() for value in found.values())
    return {f"{name}_grad_conv_in_weight": found["conv_in.weight"], f"{name}_grad_sq_norm_unet": total}


def supervised(whole: Whole) -> Results:
    model, given = whole.model, whole.given
    weighting = MinSnr(given["snr_gamma"], form="epsilon")
    elbo = Elbo(model.schedule, model.prediction, UniformTimesteps(), weighting=weighting)
    clean = whole.latents("w")
    batch = whole.batch(clean, Labels.unpaired(torch.ones(len(clean), dtype=torch.bool)))
    noise = gauss(f"{whole.salt}noise.sft", whole.latent_shape).unsqueeze(1)

    def loss(timestep: Tensor) -> Tensor:
        draw = elbo.draw_at(clean, timestep=timestep.unsqueeze(1), noise=noise)
        return elbo.evaluate(model.denoise, batch, draw).error.mean()

    timestep = torch.tensor(given["t_sft"])
    trained = loss(timestep)
    return {
        "sft_loss": trained,
        "sft_snr": signal_to_noise(model.schedule, timestep),
        "validation_loss_t500": loss(torch.full_like(timestep, 500)),
        **gradients(model, trained, "sft"),
    }


def reference_network(whole: Whole) -> torch.nn.Module:
    import copy

    network = copy.deepcopy(whole.model.bare_network).requires_grad_(False)
    state = network.state_dict()
    other = filled(state, f"{whole.salt}ref_unet.")
    share = whole.given["ref_mix"]
    network.load_state_dict({name: value + share * (other[name] - value) for name, value in state.items()})
    return network


def preferred(whole: Whole) -> Results:
    model, given = whole.model, whole.given
    elbo = Elbo(model.schedule, model.prediction, UniformTimesteps())
    clean = whole.latents("w", "l")
    batch = whole.batch(clean, Labels.pairs(len(clean)))
    count, *event = whole.latent_shape
    noise = gauss(f"{whole.salt}noise.dpo", (2 * count, *event))[:count].unsqueeze(1).expand_as(clean)
    timestep = torch.tensor(given["t_dpo"]).unsqueeze(1).expand(-1, 2)
    draw = elbo.draw_at(clean, timestep=timestep, noise=noise)
    policy = elbo.evaluate(model.denoise, batch, draw, keep_prediction=True)
    other = reference_network(whole)
    with torch.no_grad():
        reference = elbo.evaluate(lambda *inputs: model.denoise(*inputs, network=other), batch, draw)
        shared = batch.conditioning.shared
        seen = {**shared, "text_mask": torch.ones_like(shared["text_mask"])}
        unmasked = elbo.evaluate(
            model.denoise, replace(batch, conditioning=Conditioning(seen)), draw, keep_prediction=True
        )
    out = objectives.dpo(beta=given["beta_dpo"])(Scores(policy.score, reference.score), batch.labels)
    loss = out.loss.mean()
    return {
        "dpo_loss": loss,
        "dpo_policy_prediction": IMAGE.rows(policy.prediction),
        "dpo_policy_mse": IMAGE.rows(policy.error),
        "dpo_ref_mse": IMAGE.rows(reference.error),
        "unet_unmasked_prediction_for_contrast": IMAGE.rows(unmasked.prediction),
        **gradients(model, loss, "dpo"),
    }


def sampled(whole: Whole) -> Results:
    model, given = whole.model, whole.given
    shape = tuple(whole.case.outputs["inference_latents"]["shape"])
    scheduler, draws = scheduler_for(model), [0]

    def drawn(wanted: tuple[int, ...], **options: Any) -> Tensor:
        assert tuple(wanted) == shape
        draws[0] += 1
        return gauss(f"{whole.salt}noise.inference.{draws[0]}", shape)

    text = whole.text(whole.prompts)
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", drawn):
        latents = denoised_latents(
            model,
            gauss(f"{whole.salt}noise.inference.0", shape),
            text,
            whole.text([""] * len(whole.prompts), text["text"].shape[1]),
            scheduler=scheduler,
            num_steps=given["steps"],
            guidance_scale=given["guidance"],
            generators=[torch.Generator() for _ in whole.prompts],
        )
    with torch.no_grad():
        mel = model.autoencoder.mel_of(latents)
    return {
        "inference_latents": latents,
        "inference_mel": mel,
        "inference_noise_draws": torch.tensor(draws[0] + 1),
        "inference_timesteps": scheduler.timesteps,
    }


_FOUND: dict[str, Results] = {}
"""Results by what the case says: the model is float32 whatever the case is read in."""


def tango_tiny_model(case: Case) -> Results:
    key = json.dumps([case.hyperparameters, case.inputs], default=str)
    if key not in _FOUND:
        _FOUND[key] = computed(case)
    return _FOUND[key]


def computed(case: Case) -> Results:
    whole = Whole(case)
    whole.model.bare_network.requires_grad_(True)
    text = whole.text(whole.prompts)
    return {
        "text_hidden_states": text["text"],
        "text_mask": text["text_mask"].long(),
        **sound(whole),
        **supervised(whole),
        **preferred(whole),
        **sampled(whole),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {"tango_tiny_model": tango_tiny_model}

LEFT_OUT: dict[str, dict[str, str]] = {}
