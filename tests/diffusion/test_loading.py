"""Pipelines from folders and single files, what they say about themselves, and messages for what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mmalign.errors import ConfigError, MissingExtraError
from mmalign.likelihood.schedules import VPSchedule
from mmalign.testing.families import load


def test_prediction_and_schedule_come_from_the_scheduler(
    tiny_sd15_folder: Path, tiny_sd2_folder: Path, tiny_sdxl_folder: Path
) -> None:
    assert load("sd15", tiny_sd15_folder).prediction == "epsilon"
    assert load("sd15", tiny_sd2_folder).prediction == "v_prediction"
    schedule = load("sdxl", tiny_sdxl_folder).schedule
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - betas, 0).float()
    assert isinstance(schedule, VPSchedule)
    torch.testing.assert_close(schedule.alphas_cumprod.float(), expected, rtol=1e-5, atol=1e-7)


def test_turbo_is_trained_on_its_four_timesteps_with_zero_terminal_snr(tiny_turbo_folder: Path) -> None:
    model = load("sdxl", tiny_turbo_folder)
    assert model.suggested_timesteps == {"timesteps": "listed", "values": [249, 499, 749, 999]}
    assert model.schedule.zero_terminal_snr
    assert model.sampler_defaults == (4, 1.0)
    assert any("Turbo" in note for note in model.notes)


def test_the_base_model_suggests_all_timesteps(tiny_sdxl_folder: Path) -> None:
    model = load("sdxl", tiny_sdxl_folder)
    assert model.suggested_timesteps == {"timesteps": "uniform"}
    assert not model.schedule.zero_terminal_snr


def test_the_refiner_has_one_encoder_and_an_aesthetic_score(tiny_refiner_folder: Path) -> None:
    model = load("sdxl", tiny_refiner_folder)
    assert model.suggested_timesteps == {"timesteps": "uniform", "low": 0, "high": 200}
    assert len(model.encoders) == 1
    geometry = torch.tensor([[[71, 67, 5, 3, 32, 32], [53, 59, 0, 7, 32, 32]]])
    shared, _ = model.size_conditioning(geometry)
    assert shared["time_ids"].tolist() == [[32.0, 32.0, 0.0, 0.0, 6.0]]
    true = load("sdxl", tiny_refiner_folder, image={"micro_conditioning": "true"})
    _, own = true.size_conditioning(geometry)
    assert own["time_ids"].tolist() == [[[71.0, 67.0, 5.0, 3.0, 6.0], [53.0, 59.0, 0.0, 7.0, 6.0]]]


def test_size_conditioning_is_constant_unless_true_sizes_are_asked_for(tiny_sdxl_folder: Path) -> None:
    geometry = torch.tensor([[[71, 67, 5, 3, 32, 32], [53, 59, 0, 7, 32, 32]]])
    shared, own = load("sdxl", tiny_sdxl_folder).size_conditioning(geometry)
    assert shared["time_ids"].tolist() == [[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]]
    assert own == {}
    model = load("sdxl", tiny_sdxl_folder, image={"micro_conditioning": "true"})
    shared, own = model.size_conditioning(geometry)
    assert shared == {}
    assert own["time_ids"].tolist() == geometry.tolist()


def test_the_wrong_family_names_the_right_one(tiny_sd15_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"got 'StableDiffusionPipeline'.*Set model.family: sd15"):
        load("sdxl", tiny_sd15_folder)


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing at this path"):
        load("sdxl", tmp_path / "nowhere")


def test_a_folder_without_index_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"without model_index\.json"):
        load("sdxl", tmp_path)


def test_a_hub_id_without_network_says_what_to_check() -> None:
    with pytest.raises(ConfigError, match="you are online"):
        load("sdxl", Path("nobody-here/no-such-model"))


def test_pickled_checkpoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="unpickle can run code"):
        load("sd15", tmp_path / "model.ckpt")


def test_code_from_a_model_folder_is_never_imported(tiny_sdxl_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sdxl_folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["my_own_module", "Network"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="never run"):
        load("sdxl", folder)


def test_truncated_weights_name_the_part(tiny_sdxl_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sdxl_folder, tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="part unet: could not be loaded"):
        load("sdxl", folder)


def test_a_missing_variant_names_the_setting(tiny_sdxl_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"Check model\.variant"):
        load("sdxl", tiny_sdxl_folder, model={"variant": "fp16"})


def test_a_resolution_the_vae_cannot_shrink_names_the_nearest(tiny_sdxl_folder: Path) -> None:
    with pytest.raises(ConfigError, match="nearest is 32"):
        load("sdxl", tiny_sdxl_folder, image={"resolution": 33})


def test_a_replacement_vae_is_used_and_named(tiny_sd15_folder: Path, tiny_sdxl_folder: Path) -> None:
    model = load("sdxl", tiny_sdxl_folder, model={"vae": str(tiny_sd15_folder)})
    assert model.autoencoder.config["scaling_factor"] == pytest.approx(0.18215)
    assert any(f"VAE {tiny_sd15_folder}" in note for note in model.notes)
    with pytest.raises(ConfigError, match=r"model\.vae .*nothing at this path"):
        load("sdxl", tiny_sdxl_folder, model={"vae": "./nowhere"})


def test_an_overflowing_vae_stays_in_float32_and_says_why(
    tiny_sdxl_folder: Path, tiny_sd15_folder: Path
) -> None:
    model = load("sdxl", tiny_sdxl_folder, dtype=torch.bfloat16)
    assert model.vae.dtype == torch.float32
    assert next(model.bare_network.parameters()).dtype == torch.bfloat16
    assert any("may overflow in float16; madebyollin/sdxl-vae-fp16-fix" in note for note in model.notes)
    assert not any("overflow" in note for note in load("sd15", tiny_sd15_folder, dtype=torch.bfloat16).notes)


def test_latents_ignore_the_autocast_around_them(tiny_sdxl_folder: Path) -> None:
    model = load("sdxl", tiny_sdxl_folder)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    plain = model.image_moments(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.image_moments(pixels)
    assert torch.equal(plain.mean, inside.mean)


def test_released_encoders_come_back_when_they_are_needed(tiny_sdxl_folder: Path) -> None:
    model = load("sdxl", tiny_sdxl_folder)
    before = model.text_states(["a cat"])["text"]
    model.release_encoders()
    assert model._encoders is None
    assert torch.equal(model.text_states(["a cat"])["text"], before)


def test_fingerprints_tell_models_apart(
    tiny_sdxl_folder: Path, tiny_turbo_folder: Path, tmp_path: Path
) -> None:
    from mmalign.testing import tiny

    other = load("sdxl", tiny.write_tiny_sdxl(tmp_path / "other", seed=5))
    model, same = load("sdxl", tiny_sdxl_folder), load("sdxl", tiny_turbo_folder)
    assert model.cache_identity() == same.cache_identity()
    assert model.vae_fingerprint() != other.vae_fingerprint()
    assert model.text_fingerprint() != other.text_fingerprint()


def test_attention_backends_that_cannot_run_here_are_refused(tiny_sdxl_folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected a CUDA device"):
        load("sdxl", tiny_sdxl_folder, model={"attention": "flash"})
    with pytest.raises((ConfigError, MissingExtraError), match="xformers"):
        load("sdxl", tiny_sdxl_folder, model={"attention": "xformers"})


def test_the_attention_report_counts_what_runs(tiny_sdxl_folder: Path) -> None:
    report = load("sdxl", tiny_sdxl_folder).attention
    assert report.requested == "auto"
    assert report.processors == {"AttnProcessor2_0": 16}


def test_flash_only_restricts_the_kernel_at_every_call() -> None:
    from torch.nn.attention import SDPBackend

    from mmalign.diffusion.attention import FlashOnly

    seen: list[bool] = []

    def inner(query: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.math_sdp_enabled())
        return query

    FlashOnly(inner)(torch.zeros(2))
    assert seen == [True]
    assert torch.backends.cuda.math_sdp_enabled()
    assert SDPBackend.FLASH_ATTENTION is not None


def test_a_network_that_ignores_the_request_is_found_out() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    from mmalign.diffusion.attention import apply_attention

    class Deaf(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn_processors = {"a": AttnProcessor()}

        def set_attn_processor(self, processor: object) -> None:
            pass

    with pytest.raises(ConfigError, match="does not honour the backend"):
        apply_attention(Deaf(), "sdpa", device="cpu", dtype=torch.float32)


def test_networks_with_a_dispatcher_are_asked_through_it() -> None:
    from diffusers import FluxTransformer2DModel

    from mmalign.diffusion.attention import apply_attention

    network = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )
    report = apply_attention(network, "sdpa", device="cpu", dtype=torch.float32)
    assert report.processors == {"native": 2}


def test_a_network_without_checkpointed_blocks_is_refused() -> None:
    from mmalign.train.recomputing import recompute_network

    class Plain(torch.nn.Module):
        def enable_gradient_checkpointing(self) -> None:
            pass

    with pytest.raises(ConfigError, match=r"gradient_checkpointing: false"):
        recompute_network(Plain())
