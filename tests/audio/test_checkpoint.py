"""Official repositories: names, settings, both layouts there and back, and everything that can be wrong."""

import json
import pickle
import shutil

import pytest
import torch

from mmalign.audio.checkpoint import OfficialSource, open_source
from mmalign.audio.key_maps import (
    vae_from_official,
    vae_to_official,
    vocoder_from_official,
    vocoder_to_official,
)
from mmalign.audio.official_configs import (
    FLAN_T5_LARGE,
    HIFIGAN,
    SCHEDULER,
    VAE_FILE,
    unet_config,
    vae_config,
)
from mmalign.audio.official_layout import read_weights
from mmalign.audio.saving import fourier_bases
from mmalign.errors import CheckpointError, ConfigError

OFFICIAL_NAMES = {
    "encoder.conv_in.weight": "encoder.conv_in.weight",
    "quant_conv.bias": "quant_conv.bias",
    "encoder.norm_out.weight": "encoder.conv_norm_out.weight",
    "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.down.0.downsample.conv.bias": "encoder.down_blocks.0.downsamplers.0.conv.bias",
    "decoder.up.2.block.1.norm1.weight": "decoder.up_blocks.0.resnets.1.norm1.weight",
    "decoder.up.0.block.2.conv2.bias": "decoder.up_blocks.2.resnets.2.conv2.bias",
    "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.1.upsamplers.0.conv.weight",
    "encoder.mid.block_1.conv1.bias": "encoder.mid_block.resnets.0.conv1.bias",
    "decoder.mid.block_2.norm2.bias": "decoder.mid_block.resnets.1.norm2.bias",
    "decoder.mid.attn_1.norm.bias": "decoder.mid_block.attentions.0.group_norm.bias",
    "decoder.mid.attn_1.k.bias": "decoder.mid_block.attentions.0.to_k.bias",
    "encoder.mid.attn_1.proj_out.bias": "encoder.mid_block.attentions.0.to_out.0.bias",
}


@pytest.fixture
def folder(tango_folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(tango_folder, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(path, change):
    state = torch.load(path, weights_only=True)
    torch.save(change(dict(state)), path)


@pytest.mark.parametrize(("official", "ours"), OFFICIAL_NAMES.items())
def test_names_of_the_vae_are_mapped_both_ways(official, ours):
    state = {official: torch.zeros(3)}
    assert set(vae_from_official(state, 3)) == {ours}
    assert set(vae_to_official({ours: torch.zeros(3)}, 3)) == {official}


def test_attention_is_a_convolution_there_and_a_matrix_here():
    state = {"encoder.mid.attn_1.q.weight": torch.arange(6.0).reshape(2, 3, 1, 1)}
    ours = vae_from_official(state, 3)
    assert ours["encoder.mid_block.attentions.0.to_q.weight"].shape == (2, 3)
    assert torch.equal(
        vae_to_official(ours, 3)["encoder.mid.attn_1.q.weight"], state["encoder.mid.attn_1.q.weight"]
    )


def test_prefixes_of_training_checkpoints_are_stripped_and_the_vocoder_is_apart():
    state = {"first_stage_model.quant_conv.bias": torch.ones(2), "vocoder.ups.3.bias": torch.ones(5)}
    assert set(vae_from_official(state, 3)) == {"quant_conv.bias"}
    vocoder = vocoder_from_official(state, 7)
    assert set(vocoder) == {"upsampler.3.bias", "mean", "scale"}
    assert vocoder["mean"].shape == (7,)
    assert set(vocoder_to_official(vocoder)) == {"vocoder.ups.3.bias"}


def test_shipped_settings_are_those_of_the_real_model():
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig, T5Config, T5EncoderModel

    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(unet_config(1024))
        vae = AutoencoderKL.from_config(vae_config(VAE_FILE))
        vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(**HIFIGAN))
        text = T5EncoderModel(T5Config(**FLAN_T5_LARGE))
    assert len(network.state_dict()) == 686
    assert sum(value.numel() for value in network.parameters()) == 865_933_768
    sound = vae_to_official(vae.state_dict(), 3) | vocoder_to_official(vocoder.state_dict())
    assert len(sound) == 398
    assert sum(value.numel() for value in sound.values()) / 1e6 == pytest.approx(110.6, abs=0.1)
    assert sum(value.numel() for value in text.parameters()) / 1e6 == pytest.approx(341, abs=0.5)
    scheduler = DDPMScheduler(**SCHEDULER)
    assert scheduler.alphas_cumprod[[0, 500, 999]].tolist() == pytest.approx(
        [0.9991, 0.2763, 0.0047], abs=1e-4
    )
    scheduler.set_timesteps(100)
    assert scheduler.timesteps[[0, 1, -1]].tolist() == [991, 981, 1]
    assert vae_config(VAE_FILE)["block_out_channels"] == [128, 256, 512]


def test_frozen_parts_are_in_evaluation_mode_and_in_the_dtype_asked_for(tango_folder):
    source = open_source(str(tango_folder))
    for name in ("unet", "vae", "vocoder", "text_encoder"):
        part = source.part(name, dtype=torch.bfloat16)
        assert not part.training
        assert {value.dtype for value in part.parameters()} == {torch.bfloat16}
        assert not any(value.requires_grad for value in part.parameters())
    text = source.part("text_encoder")
    assert text.shared.weight is text.encoder.embed_tokens.weight


def test_trained_weights_do_not_lie_in_the_file(folder):
    unet = open_source(str(folder)).part("unet")
    before = (folder / "pytorch_model_main.bin").read_bytes()
    with torch.no_grad():
        unet.conv_in.weight.add_(1.0)
    assert (folder / "pytorch_model_main.bin").read_bytes() == before


def test_a_source_travels_without_its_weights(tango_folder):
    source = open_source(str(tango_folder))
    source.part("unet")
    assert len(pickle.dumps(source)) < 20_000


class TestRoundTrips:
    def trained(self, load_tango):
        model = load_tango()
        with torch.no_grad():
            model.bare_network.conv_in.weight.add_(0.25)
        return model

    def test_official_repositories_are_written_bit_for_bit(self, load_tango, tango_folder, tmp_path):
        model = self.trained(load_tango)
        model.save_official(tmp_path / "again")
        for name in ("pytorch_model_main.bin", "pytorch_model_vae.bin"):
            before, after = (read_weights(place / name) for place in (tango_folder, tmp_path / "again"))
            assert before.keys() == after.keys()
            moved = {key for key in before if not torch.equal(before[key], after[key])}
            assert moved == ({"unet.conv_in.weight"} if "main" in name else set())
        bases = read_weights(tmp_path / "again" / "pytorch_model_stft.bin")
        assert {name: list(value.shape) for name, value in bases.items()} == {
            "mel_basis": [64, 513],
            "stft_fn.forward_basis": [1026, 1, 1024],
            "stft_fn.inverse_basis": [1026, 1, 1024],
        }
        assert json.loads((tmp_path / "again" / "vae_config.json").read_text()) == json.loads(
            (tango_folder / "vae_config.json").read_text()
        )

    def test_both_layouts_give_the_same_model(self, load_tango, tmp_path):
        model = self.trained(load_tango)
        model.save_official(tmp_path / "official")
        model.save_model(tmp_path / "converted")
        load_tango(tmp_path / "converted").save_official(tmp_path / "back")
        expected = model.sample(["a dog"], seed=0, num_steps=1, guidance_scale=2.0)[0].samples
        for name in ("official", "converted", "back"):
            found = load_tango(tmp_path / name).sample(["a dog"], seed=0, num_steps=1, guidance_scale=2.0)[0]
            assert torch.equal(found.samples, expected), name

    def test_parts_of_a_converted_folder_load_in_plain_libraries(self, load_tango, tmp_path):
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import AutoTokenizer, SpeechT5HifiGan, T5EncoderModel

        model = self.trained(load_tango)
        folder = str(model.save_model(tmp_path / "converted"))
        network = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        assert torch.equal(network.conv_in.weight, model.bare_network.conv_in.weight)
        for part in (AutoencoderKL, DDPMScheduler, SpeechT5HifiGan, T5EncoderModel, AutoTokenizer):
            names = {"AutoencoderKL": "vae", "DDPMScheduler": "scheduler", "SpeechT5HifiGan": "vocoder"}
            names |= {"T5EncoderModel": "text_encoder", "AutoTokenizer": "tokenizer"}
            part.from_pretrained(folder, subfolder=names[part.__name__])
        assert not list((tmp_path / "converted").rglob("*.bin"))

    def test_the_kernels_for_the_official_code_are_its_transform(self, tango):
        bases = fourier_bases(tango.front)
        wave = torch.rand(1, 1024, generator=torch.Generator().manual_seed(0)) - 0.5
        padded = torch.nn.functional.pad(wave.unsqueeze(1), (512, 512), mode="reflect")
        found = torch.nn.functional.conv1d(padded, bases["stft_fn.forward_basis"], stride=160)
        real, imaginary = found.chunk(2, dim=1)
        magnitude = (real.square() + imaginary.square()).sqrt().transpose(1, 2)
        assert torch.allclose(magnitude, tango.front.magnitudes(wave), atol=1e-4)


class TestWhatCanBeWrong:
    def opened(self, source):
        found = open_source(str(source))
        return [found.part(name) for name in ("unet", "vae", "vocoder", "text_encoder")]

    def refused(self, source, match, error=ConfigError):
        with pytest.raises(error, match=match):
            self.opened(source)

    @pytest.mark.parametrize("name", ["pytorch_model_main.bin", "pytorch_model_vae.bin"])
    def test_a_missing_weight_file_is_named_with_the_command_that_fetches_it(self, folder, name):
        (folder / name).unlink()
        self.refused(folder, rf"{name}: got 'no such file'.*hf download declare-lab/tango2")

    @pytest.mark.parametrize("name", ["main_config.json", "vae_config.json", "stft_config.json"])
    def test_a_missing_or_broken_settings_file_is_named(self, folder, name):
        (folder / name).write_text("{")
        self.refused(folder, rf"{name}: cannot be read as JSON")
        (folder / name).unlink()
        self.refused(folder, rf"{name}: cannot be read as JSON")

    def test_a_vae_without_its_scale_is_refused(self, folder):
        edit(folder / "vae_config.json", scale_factor=1.0)
        content = json.loads((folder / "vae_config.json").read_text())
        del content["scale_factor"]
        (folder / "vae_config.json").write_text(json.dumps(content))
        self.refused(folder, r"vae_config.json: got .*expected settings with scale_factor")

    def test_a_file_that_is_cut_off_is_refused(self, folder):
        path = folder / "pytorch_model_vae.bin"
        path.write_bytes(path.read_bytes()[:20_000])
        self.refused(folder, r"pytorch_model_vae.bin: no checkpoint that can be read", CheckpointError)

    def test_nothing_in_a_file_is_run(self, folder, tmp_path):
        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "run"), "w"))

        (folder / "pytorch_model_vae.bin").write_bytes(pickle.dumps({"x": Trap()}))
        self.refused(folder, r"no checkpoint that can be read without running code", CheckpointError)
        assert not (tmp_path / "run").exists()

    def test_a_file_of_something_else_than_tensors_is_refused(self, folder):
        torch.save({"state_dict": {"x": torch.ones(2)}}, folder / "pytorch_model_vae.bin")
        self.refused(folder, r"got dict, expected tensors by name", CheckpointError)

    def test_missing_unknown_and_misshapen_weights_are_named(self, folder):
        path = folder / "pytorch_model_main.bin"

        def spoil(state):
            del state["unet.conv_in.bias"]
            state["unet.extra.weight"] = torch.ones(2)
            state["unet.conv_out.bias"] = torch.ones(3)
            return state

        rewrite(path, spoil)
        self.refused(
            folder,
            r"part unet of .*missing: conv_in.bias; unexpected: extra.weight; other shape",
            CheckpointError,
        )

    def test_an_unknown_width_without_settings_names_the_official_ones(self, folder):
        edit(folder / "main_config.json", unet_model_config_path="configs/gone.json")
        self.refused(folder, r"text states of width 32.*expected 1024 \(standard\) or 2048 \(XL\)")

    def test_settings_outside_the_folder_are_not_read(self, folder, tmp_path):
        (tmp_path / "outside.json").write_text("{}")
        edit(folder / "main_config.json", unet_model_config_path="../outside.json")
        self.refused(folder, r"text states of width 32")

    def test_mustango_is_refused_with_what_of_it_can_be_used(self, folder):
        rewrite(
            folder / "pytorch_model_main.bin",
            lambda state: {**state, "beat_embedding_layer.beat_embedding.weight": torch.ones(2, 2)},
        )
        self.refused(folder, r"weights of Mustango.*VAE and vocoder fit any Tango: model.vae takes them")

    def test_models_started_from_stable_diffusion_are_refused(self, folder):
        rewrite(
            folder / "pytorch_model_main.bin", lambda state: {**state, "group_in.0.weight": torch.ones(2)}
        )
        self.refused(folder, r"weights of group_in.*Stable Diffusion's UNet")

    def test_folders_and_files_that_are_no_tango_are_refused(self, tmp_path):
        (tmp_path / "empty").mkdir()
        self.refused(tmp_path / "empty", r"a folder without main_config.json")
        (tmp_path / "one.safetensors").write_bytes(b"")
        self.refused(tmp_path / "one.safetensors", r"got 'a single file'")

    def test_a_tokenizer_that_cannot_be_had_says_how(self, folder, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        edit(folder / "main_config.json", text_encoder_name="nobody/no-such-tokenizer")
        source = OfficialSource("here", folder)
        with pytest.raises(ConfigError, match=r"tokenizer nobody/no-such-tokenizer.*model.config_source"):
            source.part("tokenizer")
        assert OfficialSource("here", folder, text_source=str(folder / "text_encoder")).part("tokenizer")


def test_vae_and_vocoder_can_be_those_of_a_mustango(tango_folder, load_tango, tmp_path):
    place = tmp_path / "mustango"
    (place / "configs").mkdir(parents=True)
    (place / "vae").mkdir()
    for name in ("main_config.json", "vae_config.json", "stft_config.json"):
        shutil.copy(tango_folder / name, place / "configs" / name)
    rewritten = read_weights(tango_folder / "pytorch_model_vae.bin")
    torch.save(
        {name: value + 0.0 for name, value in rewritten.items()}, place / "vae" / "pytorch_model_vae.bin"
    )
    model = load_tango(model={"vae": str(place)})
    assert model.autoencoder.vocoder is not None
    assert any(f"VAE {place}" in note for note in model.notes)
