"""What users meet when a checkpoint of TangoFlux, AudioLDM 2 or Stable Audio is not what it should be."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmalign import registry
from mmalign.audio.trained import recognise
from mmalign.errors import ConfigError
from mmalign.testing.tiny_audio import write_tiny_audioldm2, write_tiny_stable_audio, write_tiny_tangoflux
from mmalign.train.audio_sections import AudioConfig
from mmalign.train.sections import ModelConfig

WRITERS = {
    "tangoflux": write_tiny_tangoflux,
    "audioldm2": write_tiny_audioldm2,
    "stable_audio": write_tiny_stable_audio,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {name: write(folder / name) for name, write in WRITERS.items()}


@pytest.fixture
def copy(originals, tmp_path):
    return lambda name: shutil.copytree(originals[name], tmp_path / name)


def load(name, folder, **model):
    settings = ModelConfig(family=name, source=str(folder), **model)
    return registry.find("families", name).load(settings, AudioConfig(), device="cpu", dtype=torch.float32)


def change(path, **settings):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **settings}), encoding="utf-8")


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_folder_tells_its_family(originals, name):
    assert recognise(str(originals[name])).name == name


@pytest.mark.parametrize("file", ["config.json", "tangoflux.safetensors", "vae.safetensors"])
def test_missing_files_of_tangoflux_are_named(copy, file):
    folder = copy("tangoflux")
    (folder / file).unlink()
    with pytest.raises(ConfigError, match=f"a folder without {file}.*hf download declare-lab/TangoFlux"):
        load("tangoflux", folder)


def test_weights_that_do_not_fit_the_settings_are_named(copy):
    folder = copy("tangoflux")
    change(folder / "config.json", num_single_layers=2)
    with pytest.raises(ConfigError, match=r"tangoflux\.safetensors: the weights do not fit.*missing"):
        load("tangoflux", folder)


def test_files_of_another_model_are_no_tangoflux(copy):
    folder = copy("tangoflux")
    save_file({"weight": torch.zeros(2)}, folder / "tangoflux.safetensors")
    with pytest.raises(ConfigError, match=r"got .no fc\.0\.weight., expected the weights of a TangoFlux"):
        load("tangoflux", folder)


def test_the_text_encoder_is_read_elsewhere_where_the_file_lacks_it(copy):
    folder = copy("tangoflux")
    whole = load("tangoflux", folder)
    whole.encoders[0].save_pretrained(folder / "text_encoder")
    state = load_file(folder / "tangoflux.safetensors")
    rest = {name: value for name, value in state.items() if not name.startswith("text_encoder.")}
    save_file(rest, folder / "tangoflux.safetensors")
    found, wanted = (model.text_states(["a dog"])["text"] for model in (load("tangoflux", folder), whole))
    assert torch.equal(found, wanted)


def test_a_single_file_is_no_tangoflux(originals):
    with pytest.raises(ConfigError, match=r"got .a single file"):
        load("tangoflux", originals["tangoflux"] / "tangoflux.safetensors")


def test_kernels_without_masks_are_refused(originals):
    with pytest.raises(ConfigError, match=r"model\.attention: got 'flash', expected sdpa: padding of texts"):
        load("tangoflux", originals["tangoflux"], attention="flash")
    with pytest.raises(ConfigError, match=r"model\.attention"):
        load("stable_audio", originals["stable_audio"], attention="xformers")


def test_vaes_of_spectrograms_are_refused(originals):
    with pytest.raises(ConfigError, match=r"model\.vae .*got .AutoencoderKL.?, expected AutoencoderOobleck"):
        load("stable_audio", originals["stable_audio"], vae=str(originals["audioldm2"]))


def test_a_sampler_that_counts_noise_otherwise_is_refused(copy):
    folder = copy("stable_audio")
    change(folder / "model_index.json", scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"])
    with pytest.raises(ConfigError, match=r"EDMDPMSolverMultistepScheduler.*CosineDPMSolverMultistep"):
        load("stable_audio", folder)


def test_models_of_speech_and_other_vocoders_are_refused(copy):
    folder = copy("audioldm2")
    change(folder / "vocoder" / "config.json", sampling_rate=48_000)
    with pytest.raises(ConfigError, match=r"48000 Hz, hop 160, 64 bands.*16000 Hz, hop 160, 64 bands"):
        load("audioldm2", folder)
    change(folder / "model_index.json", text_encoder_2=["transformers", "VitsModel"])
    with pytest.raises(ConfigError, match="a model of speech"):
        load("audioldm2", folder)


def test_classes_of_other_libraries_are_never_loaded(copy):
    folder = copy("stable_audio")
    change(folder / "model_index.json", projection_model=["own_code", "StableAudioProjectionModel"])
    with pytest.raises(ConfigError, match=r"code from .own_code.*is never run"):
        load("stable_audio", folder).text_states(["a"])
