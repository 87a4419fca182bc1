"""Trained models on disk: as an official repository, as a folder of today's libraries, as an adapter.

Frozen parts are read again from where the model came from, in float32: what a run held in half precision is
written back with every bit it had.
"""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmalign.audio.checkpoint import PIPELINE_CLASS, OfficialSource
from mmalign.audio.key_maps import vae_to_official, vocoder_to_official
from mmalign.audio.mel import MelFrontEnd
from mmalign.audio.official_configs import STFT_FILE
from mmalign.audio.official_configs import VAE_FILE as VAE_SETTINGS
from mmalign.audio.official_layout import LAYOUTS, MAIN_FILE, STFT_WEIGHTS, VAE_FILE
from mmalign.diffusion.adapter_files import LORA_FILE, adapter_settings, adapter_state, save_adapter
from mmalign.diffusion.export import merged_network
from mmalign.files import atomic_directory, save_tensors, write_json

if TYPE_CHECKING:
    from mmalign.audio.families.tango import Tango
    from mmalign.audio.family import AudioModel

__all__ = ["fourier_bases", "how_to_load", "save_audio_adapter", "save_converted", "save_official"]

_UNET_FILE = "configs/diffusion_model_config.json"


def save_audio_adapter(model: "AudioModel", folder: str | Path) -> Path:
    """Write the adapter twice: for `PeftModel.from_pretrained`, and for diffusers. Returns `folder`.

    `adapter_model.safetensors` with `adapter_config.json` is peft's; `pytorch_lora_weights.safetensors` is
    read by `network.load_lora_adapter(folder, prefix="unet", weight_name="pytorch_lora_weights.safetensors")`
    (see `how_to_load`). Both carry the adapter's settings: without them loaders take alpha for rank.

    Raises:
        CheckpointError: there is no adapter.
    """
    folder = save_adapter(model, folder)
    part = model.network_part
    layers = {f"{part}.{name}": value for name, value in adapter_state(model.bare_network).items()}
    settings = {f"{part}.{name}": value for name, value in adapter_settings(model.bare_network).items()}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True)}
    save_tensors(folder / LORA_FILE, layers, header)
    return folder


def how_to_load(model: "AudioModel", folder: str | Path) -> str:
    """One line of Python that puts a saved adapter onto the family's network.

    Without the file's name diffusers looks for a pickle in a folder, and fails under HF_HUB_OFFLINE for a hub
    id. Networks that read no adapters themselves (Stable Audio's) take peft's files.
    """
    if hasattr(model.bare_network, "load_lora_adapter"):
        place = f"{str(folder)!r}, prefix={model.network_part!r}, weight_name={LORA_FILE!r}"
        return f"{model.network_part}.load_lora_adapter({place})"
    return f"peft.PeftModel.from_pretrained({model.network_part}, {str(folder)!r})"


def _frozen(model: "Tango", name: str) -> Any:
    """A frozen part in float32, as the model's source has it."""
    if name in ("vae", "vocoder") and model.settings.vae is not None:
        part = model.vae if name == "vae" else model.autoencoder.vocoder
        return copy.deepcopy(part).float()
    return model.source.part(name, dtype=torch.float32)


def _network(model: "Tango") -> Any:
    """The trained network with its adapters folded in, float32."""
    return merged_network(model.bare_network).float().to("cpu")


def save_converted(model: "Tango", folder: str | Path) -> Path:
    """Write the parts in folders of their own, `unet/` and its like, and `model_index.json`.

    Every part loads by its class's `from_pretrained(folder, subfolder=...)`, weights are safetensors; the
    folder is a `model.source`. No library has a pipeline class of this name. Returns the folder.
    """
    parts: dict[str, tuple[str, Any]] = {
        "unet": ("diffusers", _network(model)),
        "scheduler": ("diffusers", model.source.part("scheduler")),
        "vae": ("diffusers", _frozen(model, "vae")),
        "vocoder": ("transformers", _frozen(model, "vocoder")),
        "text_encoder": ("transformers", _frozen(model, "text_encoder")),
        "tokenizer": ("transformers", model.tokenizers[0]),
    }
    with atomic_directory(folder) as partial:
        for name, (_, part) in parts.items():
            part.save_pretrained(str(partial / name))
        index = {name: [library, type(part).__name__] for name, (library, part) in parts.items()}
        index["tokenizer"] = ["transformers", "AutoTokenizer"]
        write_json(partial / "model_index.json", {"_class_name": PIPELINE_CLASS, **index})
        write_json(partial / STFT_FILE, model.front.config())
    return Path(folder)


def fourier_bases(front: MelFrontEnd) -> dict[str, Tensor]:
    """`pytorch_model_stft.bin`: filterbank, and the windowed Fourier transform as convolutions.

    Kernel k is the windowed cosine (then minus sine) of frequency k; the inverse kernels are the
    pseudo-inverse of the transform at this hop, windowed.

    Source: declare-lab/tango, tango2/audioldm/audio/stft.py, `STFT` and `TacotronSTFT`.
    """
    length, cut = front.filter_length, front.filter_length // 2 + 1
    transform = np.fft.fft(np.eye(length))
    basis = np.vstack([np.real(transform[:cut]), np.imag(transform[:cut])])
    inverse = np.linalg.pinv(length / front.hop_length * basis).T
    window = torch.hann_window(front.win_length, periodic=True, dtype=torch.float64).numpy()
    before = (length - front.win_length) // 2
    window = np.pad(window, (before, length - front.win_length - before))

    def kernels(values: Any) -> Tensor:
        return torch.from_numpy((values * window).astype(np.float32)).unsqueeze(1)

    return {
        "mel_basis": front.filterbank.clone(),
        "stft_fn.forward_basis": kernels(basis),
        "stft_fn.inverse_basis": kernels(inverse),
    }


def save_official(model: "Tango", folder: str | Path) -> Path:
    """Write an official repository, for Tango's own code and for `model.source`. Returns the folder.

    Weights that were not trained are those of the source, bit for bit. The network's settings are written
    where `unet_model_config_path` says, which official repositories leave to the code.
    """
    source, layout = model.source, LAYOUTS[0]
    official = source if isinstance(source, OfficialSource) else None
    unet, vae = _network(model), _frozen(model, "vae")
    text = _frozen(model, "text_encoder")
    levels = len(vae.config["block_out_channels"])
    main = {f"unet.{name}": value for name, value in unet.state_dict().items()}
    main |= {f"text_encoder.{name}": value for name, value in text.state_dict().items()}
    sound = vae_to_official(vae.state_dict(), levels)
    sound |= vocoder_to_official(_frozen(model, "vocoder").state_dict())
    settings = {
        "text_encoder_name": "google/flan-t5-large",
        "scheduler_name": "stabilityai/stable-diffusion-2-1",
        "unet_model_name": None,
        "snr_gamma": None,
        "freeze_text_encoder": True,
        "uncondition": False,
        **({} if official is None else official.main_config),
        "unet_model_config_path": _UNET_FILE,
    }
    with atomic_directory(folder) as partial:
        if official is None or Path(official.text_name).is_dir():
            # A tokenizer that is on no hub travels with the model.
            text.config.save_pretrained(str(partial / "text_encoder"))
            model.tokenizers[0].save_pretrained(str(partial / "text_encoder"))
            settings["text_encoder_name"] = "text_encoder"
        source.part("scheduler").save_pretrained(str(partial / "scheduler"))
        write_json(partial / MAIN_FILE, settings)
        write_json(partial / VAE_FILE, _vae_settings(vae) if official is None else official.vae_config)
        write_json(partial / STFT_FILE, model.front.config())
        network = {name: value for name, value in dict(unet.config).items() if not name.startswith("_")}
        write_json(partial / _UNET_FILE, {"_class_name": type(unet).__name__, **network})
        # The official code opens these names, in this format, and no other.
        for name, state in (
            (layout.main, main),
            (layout.vae, sound),
            (STFT_WEIGHTS, fourier_bases(model.front)),
        ):
            torch.save({key: value.detach().contiguous() for key, value in state.items()}, partial / name)
    return Path(folder)


def _vae_settings(vae: Any) -> dict[str, Any]:
    """An official `vae_config.json` of a diffusers VAE."""
    config = vae.config
    widths = config["block_out_channels"]
    inner = {
        **VAE_SETTINGS["ddconfig"],
        "z_channels": config["latent_channels"],
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
    }
    own = {"embed_dim": config["latent_channels"], "scale_factor": config["scaling_factor"]}
    return {**VAE_SETTINGS, **own, "ddconfig": inner}
