"""Wan: what its variants take, which noise levels an expert is trained on, its files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmalign.diffusion.adapter_files import LORA_FILE
from mmalign.errors import CheckpointError, ConfigError, HyperparameterError
from mmalign.likelihood import LogitNormalTimesteps, UniformTimesteps
from mmalign.likelihood.timesteps import ListedTimesteps
from mmalign.testing.network_conformance import encoded, example_inputs, keys_of, trained_by
from mmalign.testing.video_families import row_of_clips
from mmalign.train.config import AdapterConfig
from mmalign.video.expert_schedule import ExpertSchedule
from mmalign.video.saving import put_adapter_on, renamed_tensors, save_comfyui

SMALL = {"height": 64, "width": 96}


# ---------------------------------------------------------------------------------------- what a folder holds


def test_the_folder_decides_what_a_wan_is(load_wan) -> None:
    found = {
        name: load_wan(name, **(SMALL if name == "ti2v" else {}))
        for name in ("t2v", "i2v", "a14b", "a14b_i2v", "ti2v")
    }
    assert {name for name, model in found.items() if model.conditioned} == {"i2v", "a14b_i2v"}
    assert {name for name, model in found.items() if model.sees_pictures} == {"i2v"}
    assert {name: model.boundary for name, model in found.items() if model.boundary} == {
        "a14b": 0.875,
        "a14b_i2v": 0.9,
    }
    assert found["ti2v"].latent_shape == (6, 3, 4, 6)
    assert found["t2v"].latent_shape == (4, 3, 4, 6)
    assert (found["t2v"].default_clip, found["ti2v"].default_clip) == (
        (81, (480, 832), 16.0),
        (121, (704, 1280), 24.0),
    )
    assert found["t2v"].duration == 9 / 8


def test_a_clip_of_latents_holds_its_frames_causally(load_wan) -> None:
    assert load_wan().frame_grid == (range(1), range(1, 5), range(5, 9))


@pytest.mark.parametrize(
    ("variant", "video", "message"),
    [
        ("t2v", {"conditioning": "image"}, r"video.conditioning: got 'image', expected text alone"),
        ("i2v", {"conditioning": "text"}, r"video.conditioning: got 'text', expected image: clips go on"),
        ("t2v", {"expert": "low"}, r"video.expert: got 'low', expected nothing: this model has one"),
    ],
)
def test_what_a_checkpoint_was_not_made_for_is_refused(load_wan, variant, video, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load_wan(variant, **video)


def test_another_vae_is_refused(load_wan) -> None:
    with pytest.raises(ConfigError, match=r"model.vae: got 'elsewhere', expected nothing"):
        load_wan(model={"vae": "elsewhere"})


def test_a_transformer_of_other_channels_is_refused(load_wan, wan_folder, tmp_path: Path) -> None:
    import shutil

    mixed = tmp_path / "mixed"
    shutil.copytree(wan_folder("t2v"), mixed)
    shutil.rmtree(mixed / "vae")
    shutil.copytree(wan_folder("ti2v") / "vae", mixed / "vae")
    from mmalign.train.sections import ModelConfig
    from mmalign.train.video_sections import VideoConfig
    from mmalign.video.families.wan import FAMILY

    with pytest.raises(ConfigError, match=r"got 'a transformer of 4 input channels', expected 6"):
        FAMILY.load(
            ModelConfig(family="wan", source=str(mixed)),
            VideoConfig(num_frames=9, **SMALL),
            device="cpu",
            dtype=torch.float32,
        )


def test_pictures_are_asked_for_where_clips_go_on_from_them(load_wan) -> None:
    settings = {"seed": 0, "num_steps": 1, "guidance_scale": 1.0}
    with pytest.raises(ConfigError, match=r"images: got 'none', expected a picture per prompt"):
        load_wan("i2v").sample(["a"], **settings)
    picture = torch.zeros(3, 32, 48, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"images: got '1', expected none"):
        load_wan().sample(["a"], images=[picture], **settings)
    with pytest.raises(
        ConfigError, match=r"negative_prompts: got '1 for 2 prompts', expected one per prompt"
    ):
        load_wan().sample(["a", "b"], negative_prompts=["c"], **settings)


# ----------------------------------------------------------------------------------------------- noise levels


def test_the_shift_of_sampling_is_the_shift_of_training(load_wan) -> None:
    plain, moved = load_wan(), load_wan(flow_shift=5.0)
    assert (plain.schedule.shift, moved.schedule.shift) == (3.0, 5.0)
    for model, shift in ((plain, 3.0), (moved, 5.0)):
        sampler = model.sampler(None)
        model.set_steps(sampler, 4)
        level = sampler.sigmas[1].double()
        unshifted = level / (shift - (shift - 1) * level)
        torch.testing.assert_close(unshifted, torch.tensor(0.75, dtype=torch.float64), atol=1e-3, rtol=0)


def test_an_expert_is_trained_on_its_own_noise_levels(load_wan) -> None:
    keys = keys_of(*range(400))
    whole = load_wan("t2v").schedule
    for expert, low, high in (("high", 0.875, 1.0), ("low", 0.0, 0.875)):
        schedule = load_wan("a14b", expert=expert).schedule
        for sampler in (UniformTimesteps(), LogitNormalTimesteps(0.0, 1.0), LogitNormalTimesteps(0.3, 0.7)):
            drawn = sampler.sample(keys, schedule)
            assert low <= drawn.min()
            assert drawn.max() <= high
            # What is drawn is as likely as for the whole model, given the range: quantiles agree.
            free = sampler.place(torch.linspace(0.0005, 0.9995, 4000), whole)
            inside = free[(free >= low) & (free <= high)]
            own = sampler.place(torch.linspace(0.0005, 0.9995, 4000), schedule)
            for share in (0.1, 0.5, 0.9):
                torch.testing.assert_close(own.quantile(share), inside.quantile(share), atol=5e-3, rtol=0)


def test_levels_of_the_other_expert_are_refused() -> None:
    schedule = ExpertSchedule(shift=3.0, lowest=0.875, highest=1.0)
    with pytest.raises(HyperparameterError, match=r"noise levels of this expert, 0.875 to 1, among them"):
        UniformTimesteps(low=0.1, high=0.5).sample(keys_of(1), schedule)
    with pytest.raises(HyperparameterError, match=r"got 0.5, expected a sigma of this expert"):
        ListedTimesteps(values=(0.9, 0.5)).check(schedule)
    with pytest.raises(HyperparameterError, match=r"ExpertSchedule: got .*, expected two sigmas"):
        ExpertSchedule(lowest=0.9, highest=0.3)
    assert "sigma 0.875 to 1.0" in schedule.describe()["schedule"]


def test_the_experts_are_told_apart_when_sampling(load_wan) -> None:
    """Moving the trained expert's weights changes clips of either; the other's weights are not in the way."""
    settings = {"seed": 0, "num_steps": 4, "guidance_scale": 1.0}
    high, low = (load_wan("a14b", expert=expert) for expert in ("high", "low"))
    same = [model.sample(["a"], **settings)[0].frames for model in (high, low)]
    assert torch.equal(*same)
    trained_by(high, AdapterConfig(rank=2))
    with high.sampling():
        networks = {level: high.network_at(torch.tensor(level)) for level in (999, 875, 874, 10)}
    assert networks[999] is networks[875] is high.bare_network
    assert networks[874] is networks[10]
    assert networks[10] is not high.bare_network
    assert not any("lora" in name for name, _ in networks[10].named_parameters())


def test_the_other_expert_is_loaded_once_for_a_session_and_freed_after_it(load_wan, monkeypatch) -> None:
    model = load_wan("a14b", expert="high")
    loaded = []
    real = type(model.source).part

    def part(source, name, **options):
        loaded.append(name)
        return real(source, name, **options)

    monkeypatch.setattr(type(model.source), "part", part)
    settings = {"num_steps": 2, "guidance_scale": 1.0}
    with model.sampling():
        assert "transformer_2" not in loaded, "nothing needs it yet"
        kept = [model.sample(["a"], seed=seed, **settings)[0].frames for seed in (0, 1)]
        assert loaded.count("transformer_2") == 1
        assert model.network_at(torch.tensor(10)) is not model.bare_network
    assert model.network_at(torch.tensor(10)) is model.bare_network
    alone = [model.sample(["a"], seed=seed, **settings)[0].frames for seed in (0, 1)]
    assert loaded.count("transformer_2") == 3
    assert all(torch.equal(*pair) for pair in zip(kept, alone, strict=True))


# ------------------------------------------------------------------------------------------ text and pictures


def test_texts_are_zero_beyond_their_true_length(load_wan) -> None:
    states = load_wan().text_states(["a red circle", ""])
    text, mask = states["text"], states["text_mask"]
    assert text.shape[1] == 512
    assert int(mask[0].sum()) > int(mask[1].sum()) > 0
    assert not text[~mask].any()
    assert text[mask].abs().sum(-1).min() > 0


def test_prompts_are_cleaned_as_in_the_pipeline(load_wan) -> None:
    model = load_wan()
    first, second = (
        model.text_states([prompt])["text"] for prompt in ("red &amp;amp; blue", " red  &\n blue ")
    )
    assert torch.equal(first, second)


def test_the_first_frame_of_the_small_model_is_the_picture_and_has_no_error(load_wan) -> None:
    model = load_wan("ti2v", conditioning="image", **SMALL)
    row = row_of_clips("a", size=(64, 96))
    clean, conditioning = encoded(model, [row], (3,))
    start = conditioning.per_candidate["start"]
    assert torch.equal(clean[:, :, :, :1], start)
    rows = conditioning.rows(2)
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0.7, 0.2])
    noised = model.schedule.add_noise(clean[0], noise, level)
    with torch.no_grad():
        found = model.denoise(noised, model.schedule.network_time(level), rows)
    target = noise - clean[0]
    torch.testing.assert_close(found[:, :, 0], target[:, :, 0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, :, 1:], target[:, :, 1:], atol=0.1)
    with torch.no_grad():
        still = model.denoise(clean[0], torch.zeros(2), rows)
    assert torch.isfinite(still).all()


def test_the_rows_own_picture_comes_before_the_first_frames(load_wan, tmp_path: Path) -> None:
    from dataclasses import replace

    from PIL import Image

    picture = tmp_path / "own.png"
    Image.new("RGB", (96, 64), (10, 200, 30)).save(picture)
    model = load_wan("i2v")
    row = row_of_clips("a")
    without, own = (
        encoded(model, [each], (3,))[1].per_candidate["start"]
        for each in (row, replace(row, images=(str(picture),)))
    )
    assert not torch.allclose(without[0, 0], without[0, 1])
    assert torch.equal(own[0, 0], own[0, 1])
    keys = model.clips.keys(model.clips.encoded(replace(row, images=(str(picture),))))
    assert not set(keys) & set(model.clips.keys(model.clips.encoded(row)))


def test_what_clip_is_shown_is_made_where_the_pictures_are(load_wan, monkeypatch) -> None:
    model = load_wan("i2v")
    pictures = torch.randint(0, 256, (2, 3, 71, 53), generator=torch.Generator().manual_seed(0)).byte()
    shown = []
    encoder = model.image_encoder
    encoder.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    wanted = model.image_processor(
        images=[picture.permute(1, 2, 0).numpy() for picture in pictures], return_tensors="pt"
    ).pixel_values

    def no_numpy(*_args, **_options):
        message = "a way over the CPU"
        raise AssertionError(message)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "numpy", no_numpy)
        states = model._seen(pictures)
    torch.testing.assert_close(shown[0], wanted, rtol=0, atol=1e-5)
    assert torch.isfinite(states).all()


# ------------------------------------------------------------------------------------------------------ files


def test_adapters_lie_on_attention_and_feed_forward_layers(load_wan) -> None:
    model = load_wan("i2v")
    trainables = trained_by(model, AdapterConfig(rank=2))
    layers = {name.split(".lora_")[0].split(".", 2)[2] for name in trainables.parameters}
    attention = {f"attn{number}.{name}" for number in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    assert layers == attention | {"ffn.net.0.proj", "ffn.net.2"}


@pytest.mark.parametrize("variant", ["t2v", "a14b"])
def test_files_for_comfyui_are_the_trained_adapter(load_wan, tmp_path: Path, variant: str) -> None:
    model = load_wan(variant)
    trained_by(model, AdapterConfig(rank=2, alpha=7.0))
    save_comfyui(model, tmp_path / "lora.safetensors")
    keys = load_file(tmp_path / "lora.safetensors")
    assert all(key.startswith("diffusion_model.blocks.") for key in keys)
    fresh = put_adapter_on(model, load_wan(variant).bare_network, tmp_path, "lora.safetensors")
    inputs = example_inputs(model)
    with torch.no_grad():
        wanted = model.denoise(*inputs)
        torch.testing.assert_close(model.denoise(*inputs, network=fresh), wanted, rtol=1e-5, atol=1e-5)


def test_adapters_on_layers_without_a_name_there_are_refused(load_wan, monkeypatch) -> None:
    from mmalign.video.families import wan

    model = load_wan()
    trained_by(model, AdapterConfig(rank=2))
    monkeypatch.setattr(wan, "WAN_NAMES", wan.WAN_NAMES[:4])
    with pytest.raises(CheckpointError, match=r"got 'an adapter on .*ffn.*expected layers that have"):
        renamed_tensors(model)


def test_the_second_experts_adapter_says_its_settings(load_wan, tmp_path: Path) -> None:
    from safetensors import safe_open

    model = load_wan("a14b", expert="low")
    trained_by(model, AdapterConfig(rank=3, alpha=5.0))
    model.save_adapter(tmp_path)
    with safe_open(str(tmp_path / LORA_FILE), framework="pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (3, 5.0)


def test_a_saved_model_of_two_experts_changes_the_trained_one(load_wan, wan_folder, tmp_path: Path) -> None:
    model = load_wan("a14b", expert="low")
    trained_by(model, AdapterConfig(rank=2))
    saved = model.save_model(tmp_path / "whole")
    for part, changed in (("transformer", False), ("transformer_2", True)):
        before, after = (
            load_file(folder / part / "diffusion_pytorch_model.safetensors")
            for folder in (wan_folder("a14b"), saved)
        )
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[name], after[name]) for name in before) == changed


def test_what_the_checkpoint_keeps_in_float32_stays_so(load_wan) -> None:
    network = load_wan(dtype=torch.bfloat16).bare_network
    kept = {name for name, value in network.named_parameters() if value.dtype == torch.float32}
    assert "scale_shift_table" in kept
    assert any("time_embedder" in name for name in kept)
    assert "blocks.0.attn1.to_q.weight" not in kept


def test_the_codec_works_as_the_pipelines_do(load_wan, wan_folder) -> None:
    """Latents of a clip with mean and deviation per channel, tiles or not; wide where the run is."""
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(str(wan_folder()), subfolder="vae", dtype=torch.float64)
    model = load_wan(dtype=torch.float64, vae_tiling=True)
    clip = torch.rand(1, 9, 3, 32, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        raw = vae.encode((2 * clip - 1).transpose(1, 2)).latent_dist.mode()
        mean, std = (
            torch.tensor(vae.config[name], dtype=torch.float64).view(1, -1, 1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        wanted = (raw - mean) / std
        found = model.codec.scale(model.moments(2 * clip - 1).mean)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        back = vae.decode(wanted * std + mean).sample.transpose(1, 2) / 2 + 0.5
        torch.testing.assert_close(model.decode_clips(found), back.float().clamp(0, 1), rtol=1e-5, atol=1e-5)
    assert model.vae.use_tiling
    assert model.moments((clip * 255).round().to(torch.uint8)).mean.shape == (1, *model.latent_shape)


def test_statistics_of_latents_are_placed_once(load_wan) -> None:
    """No step waits for a copy of a few numbers to the device."""
    codec = load_wan().codec
    (mean, _), (again, _) = (codec._statistics(torch.zeros(1, dtype=torch.float32)) for _ in range(2))
    assert mean.flatten().tolist() == pytest.approx(codec.config["latents_mean"])
    assert mean.data_ptr() == again.data_ptr()


def test_a_saved_pipeline_samples_with_the_runs_shift(load_wan, tmp_path: Path) -> None:
    for model, shift in ((load_wan(), 3.0), (load_wan(flow_shift=5.0), 5.0)):
        saved = model.save_model(tmp_path / f"{shift:g}")
        written = json.loads((saved / "scheduler" / "scheduler_config.json").read_text())
        assert written["flow_shift"] == model.schedule.shift == shift
        kept = {name: value for name, value in written.items() if name != "_diffusers_version"}
        assert kept.items() <= {**model.scheduler_config, "_class_name": model.scheduler_class}.items()
