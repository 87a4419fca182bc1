"""Official TangoFlux repositories as parts: `config.json`, `tangoflux.safetensors`, `vae.safetensors`.

The names of `tangoflux.safetensors` are those of the official class: `transformer.*`, `fc.*`,
`duration_emebdder.*` (spelled so) and `text_encoder.*`. The VAE's settings are the library's defaults, unless
the folder holds a `vae_config.json` of its own.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmalign.audio.official_configs import FLAN_T5_LARGE
from mmalign.audio.official_layout import read_config
from mmalign.diffusion.export import merged_network
from mmalign.diffusion.loading import (
    HUB_ADVICE,
    PartSource,
    is_offline,
    kind_of_source,
    quiet_loaders,
    told_as_settings,
)
from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.files import atomic_directory, save_tensors, write_json
from mmalign.rewards.checkpoints import fill, read_state

if TYPE_CHECKING:
    from mmalign.audio.families.tangoflux import TangoFlux

__all__ = [
    "CONFIG_FILE",
    "VAE_SETTINGS",
    "VAE_WEIGHTS",
    "WEIGHTS",
    "TangoFluxSource",
    "open_tangoflux",
    "save_tangoflux",
]

CONFIG_FILE, WEIGHTS, VAE_WEIGHTS = "config.json", "tangoflux.safetensors", "vae.safetensors"
VAE_SETTINGS = "vae_config.json"
_TEXT_FOLDER = "text_encoder"

_DURATION = "duration_emebdder."
"""As the official class spells it."""

_DEFAULTS: dict[str, Any] = {
    "num_layers": 6,
    "num_single_layers": 18,
    "in_channels": 64,
    "attention_head_dim": 128,
    "joint_attention_dim": 1024,
    "num_attention_heads": 8,
    "audio_seq_len": 645,
    "max_duration": 30,
    "text_encoder_name": "google/flan-t5-large",
}
"""Source: declare-lab/TangoFlux, tangoflux/model.py, `TangoFlux.__init__`."""


class TangoFluxSource:
    """An official repository as parts of diffusers and transformers.

    Args:
        source: as in `model.source`, for messages.
        folder: where its files are.
        text_source: hub id or folder of the text encoder's settings and tokenizer; default what the
            repository names, or its own `text_encoder/`.

    Raises:
        ConfigError: a file is missing or says something else than it should.
    """

    pipeline_class = "TangoFlux"

    def __init__(self, source: str, folder: Path, *, text_source: str | None = None) -> None:
        self.source, self.folder = source, folder
        self.index: dict[str, Any] = {}
        for name in (CONFIG_FILE, WEIGHTS, VAE_WEIGHTS):
            if not (folder / name).is_file():
                message = explain(
                    f"model.source {source}",
                    got=f"a folder without {name}",
                    expected=f"an official TangoFlux: {CONFIG_FILE}, {WEIGHTS}, {VAE_WEIGHTS}",
                    do="Download all of it: `hf download declare-lab/TangoFlux --local-dir FOLDER`.",
                )
                raise ConfigError(message)
        self.config = {**_DEFAULTS, **read_config(folder / CONFIG_FILE, ())}
        self._text_source = text_source

    def has(self, name: str) -> bool:
        """Whether there is a part of this name."""
        return name in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")

    def part(self, name: str, *, dtype: torch.dtype | None = None) -> Any:
        """One loaded part: a frozen network in evaluation mode on the CPU, a tokenizer, or a scheduler.

        Raises:
            ConfigError: weights are missing, unknown or of another size.
        """
        readers = {
            "transformer": self._transformer,
            "vae": self._vae,
            "text_encoder": self._text_encoder,
            "tokenizer": self._tokenizer,
            "scheduler": self._scheduler,
        }
        loaded = readers[name]()
        if isinstance(loaded, nn.Module):
            wanted = dtype or torch.float32
            if next(loaded.parameters()).dtype != wanted:
                loaded = loaded.to(wanted)
            loaded.requires_grad_(False)
            loaded.eval()
        return loaded

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        return read_state(self.folder / WEIGHTS)

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights."""
        return {key: value for key, value in self.__dict__.items() if key != "_state"}

    def _filled(self, module: nn.Module, state: Mapping[str, Tensor], file: str) -> nn.Module:
        try:
            # Copies: the network is trained, and the tensors of the file may be shared.
            fill(
                module,
                {name: value.clone() for name, value in state.items()},
                where=f"model.source {self.source}, {file}",
                assign=True,
            )
        except CheckpointError as error:
            raise ConfigError(str(error)) from error
        return module

    def _transformer(self) -> nn.Module:
        from mmalign.audio.tangoflux_network import TangoFluxTransformer

        text_width = self._state.get("fc.0.weight")
        if text_width is None:
            message = explain(
                f"model.source {self.source}, {WEIGHTS}",
                got="no fc.0.weight",
                expected="the weights of a TangoFlux",
            )
            raise ConfigError(message)
        sizes = ("num_layers", "num_single_layers", "in_channels", "attention_head_dim")
        more = ("joint_attention_dim", "num_attention_heads", "max_duration")
        settings = {name: self.config[name] for name in (*sizes, *more)}
        with torch.device("meta"):
            network: nn.Module = TangoFluxTransformer(**settings, text_width=int(text_width.shape[1]))
        state = {}
        for name, value in self._state.items():
            if name.startswith("transformer."):
                state[name.removeprefix("transformer.")] = value
            elif name.startswith("fc."):
                state[name] = value
            elif name.startswith(_DURATION):
                state[f"duration_embedder.{name.removeprefix(_DURATION)}"] = value
        return self._filled(network, state, WEIGHTS)

    def _vae(self) -> nn.Module:
        from diffusers import AutoencoderOobleck

        own = self.folder / VAE_SETTINGS
        with torch.device("meta"):
            vae: nn.Module = AutoencoderOobleck(**(read_config(own, ()) if own.is_file() else {}))
        return self._filled(vae, read_state(self.folder / VAE_WEIGHTS), VAE_WEIGHTS)

    @property
    def text_name(self) -> str:
        """Hub id or folder of the text encoder's settings and tokenizer."""
        if self._text_source is not None:
            return self._text_source
        own = self.folder / _TEXT_FOLDER
        return str(own) if own.is_dir() else str(self.config["text_encoder_name"])

    def _text_encoder(self) -> nn.Module:
        from transformers import T5Config, T5EncoderModel

        here = (Path(self.text_name) / "config.json").is_file()
        config = T5Config.from_pretrained(self.text_name) if here else T5Config(**FLAN_T5_LARGE)
        prefix = "text_encoder."
        state = {
            name.removeprefix(prefix): value for name, value in self._state.items() if name.startswith(prefix)
        }
        if not state:
            with told_as_settings(f"model.source {self.source}, text encoder", HUB_ADVICE):
                loaded: nn.Module = T5EncoderModel.from_pretrained(self.text_name, use_safetensors=True)
            return loaded
        with torch.device("meta"):
            encoder = T5EncoderModel(config)
        # One table under two names; the released file holds the first.
        for name, other in (
            ("shared.weight", "encoder.embed_tokens.weight"),
            ("encoder.embed_tokens.weight", "shared.weight"),
        ):
            if name not in state and other in state:
                state[name] = state[other]
        filled: Any = self._filled(encoder, state, WEIGHTS)
        filled.tie_weights()
        return filled  # type: ignore[no-any-return]

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        advice = (
            "Official repositories do not hold their tokenizer: it is that of google/flan-t5-large. Without "
            "network, point model.config_source at a folder with that tokenizer. " + HUB_ADVICE
        )
        with told_as_settings(f"model.source {self.source}, tokenizer {self.text_name}", advice):
            return AutoTokenizer.from_pretrained(self.text_name, trust_remote_code=False)

    def _scheduler(self) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)


def open_tangoflux(
    source: str, *, revision: str | None = None, variant: str | None = None, config_source: str | None = None
) -> PartSource:
    """The parts of a TangoFlux: an official folder or hub id.

    Args:
        source: as in `model.source`.
        revision: of a hub repository.
        variant: unused: there is one.
        config_source: hub id or folder of the text encoder's settings and tokenizer.

    Raises:
        ConfigError: nothing is there, or something else.
    """
    del variant
    quiet_loaders()
    kind = kind_of_source(source)
    if kind == "file":
        message = explain(
            f"model.source {source}",
            got="a single file",
            expected=f"a folder or hub id with {CONFIG_FILE}, {WEIGHTS} and {VAE_WEIGHTS}",
        )
        raise ConfigError(message)
    folder = Path(source)
    if kind == "hub":
        from huggingface_hub import snapshot_download

        with told_as_settings(f"model.source {source}", HUB_ADVICE):
            found = snapshot_download(
                source,
                revision=revision,
                allow_patterns=[CONFIG_FILE, WEIGHTS, VAE_WEIGHTS],
                local_files_only=is_offline(),
            )
        folder = Path(found)
    return TangoFluxSource(source, folder, text_source=config_source)


def save_tangoflux(model: "TangoFlux", folder: str | Path) -> Path:
    """Write an official repository, adapters merged in: its own code reads it, and so does `model.source`.

    Frozen parts are read again from where they came from, in float32. A tokenizer that is on no hub travels
    in `text_encoder/`, settings of an unusual VAE in `vae_config.json`. Returns the folder.
    """
    source = model.source
    network = merged_network(model.bare_network).float().to("cpu").state_dict()
    names = {"fc.": "fc.", "duration_embedder.": _DURATION}
    weights = {}
    for name, value in network.items():
        known = next((ours for ours in names if name.startswith(ours)), None)
        prefix = "transformer." if known is None else names[known]
        weights[prefix + name.removeprefix(known or "")] = value
    text = source.part("text_encoder", dtype=torch.float32)
    weights |= {
        f"text_encoder.{name}": value
        for name, value in text.state_dict().items()
        if name != "encoder.embed_tokens.weight"
    }
    vae = model.vae.float() if model.settings.vae else source.part("vae", dtype=torch.float32)
    official = source if isinstance(source, TangoFluxSource) else None
    settings = {**_DEFAULTS, **({} if official is None else official.config)}
    settings["audio_seq_len"] = model.latent_shape[-1]
    with torch.device("meta"):
        usual = {name: value for name, value in type(vae)().config.items() if not name.startswith("_")}
    own = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    with atomic_directory(folder) as partial:
        write_json(partial / CONFIG_FILE, settings)
        save_tensors(partial / WEIGHTS, weights)
        save_tensors(partial / VAE_WEIGHTS, vae.state_dict())
        if own != usual:
            write_json(partial / VAE_SETTINGS, own)
        if official is not None and Path(official.text_name).is_dir():
            text.config.save_pretrained(str(partial / _TEXT_FOLDER))
            model.tokenizers[0].save_pretrained(str(partial / _TEXT_FOLDER))
    return Path(folder)
