"""Official Tango repositories, read into diffusers and transformers modules without any of their code.

The official layout is `main_config.json`, `vae_config.json`, `stft_config.json` and PyTorch weight files.
Weight files are read with `weights_only`: nothing in them is run. What the repositories do not contain, or
name by places that are gone (the noise schedule, the network's settings, the vocoder's), is shipped here.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.audio.key_maps import VOCODER_PREFIX, vae_from_official, vocoder_from_official
from mmalign.audio.official_configs import (
    FLAN_T5_LARGE,
    HIFIGAN,
    SCHEDULER,
    STFT_FILE,
    UNET_WIDTHS,
    unet_config,
    vae_config,
)
from mmalign.audio.official_layout import (
    LAYOUTS,
    MAIN_FILE,
    VAE_FILE,
    Layout,
    layout_of,
    read_config,
    read_weights,
)
from mmalign.diffusion.loading import (
    HUB_ADVICE,
    PartSource,
    PipelineSource,
    is_offline,
    kind_of_source,
    quiet_loaders,
    told_as_settings,
)
from mmalign.errors import ConfigError, explain
from mmalign.rewards.checkpoints import fill

__all__ = ["PIPELINE_CLASS", "OfficialSource", "load_front_end_config", "open_source"]

PIPELINE_CLASS = "TangoPipeline"
"""What `model_index.json` of a converted folder names; no library has a class of this name."""

_WIDTH_KEY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"

_MUSTANGO = ("beat_embedding_layer.", "chord_embedding_layer.", ".attentions2.", ".attentions3.")
"""Parts of the names of weights that only Mustango has."""


class OfficialSource:
    """An official repository as parts of diffusers and transformers.

    Args:
        source: as in `model.source`, for messages.
        folder: where its files are.
        layout: how they are laid out.
        text_source: hub id or folder of the text encoder's settings and tokenizer; default what the
            repository names.

    Raises:
        ConfigError: a file is missing or says something else than it should.
    """

    pipeline_class = PIPELINE_CLASS

    def __init__(
        self, source: str, folder: Path, layout: Layout = LAYOUTS[0], *, text_source: str | None = None
    ) -> None:
        self.source, self.folder, self.layout = source, folder, layout
        self.index: dict[str, Any] = {}
        configs = folder / layout.configs
        self.main_config = read_config(configs / MAIN_FILE, ("text_encoder_name",))
        self.vae_config = read_config(configs / VAE_FILE, ("scale_factor", "embed_dim", "ddconfig"))
        self.stft_config = read_config(configs / STFT_FILE, ("filter_length",))
        self._text_source = text_source

    def has(self, name: str) -> bool:
        """Whether there is a part of this name."""
        return name in ("unet", "vae", "vocoder", "text_encoder", "tokenizer", "scheduler")

    def part(self, name: str, *, dtype: torch.dtype | None = None) -> Any:
        """One loaded part: a frozen network in evaluation mode on the CPU, a tokenizer, or a scheduler.

        Raises:
            ConfigError: weights are missing, unknown or of another size.
        """
        readers = {
            "unet": self._unet,
            "vae": self._vae,
            "vocoder": self._vocoder,
            "text_encoder": self._text_encoder,
            "tokenizer": self._tokenizer,
            "scheduler": self._scheduler,
        }
        loaded = readers[name](dtype)
        if isinstance(loaded, nn.Module):
            loaded.requires_grad_(False)
            loaded.eval()
        return loaded

    # --- weights --------------------------------------------------------------------------------------------

    @cached_property
    def _main(self) -> dict[str, Tensor]:
        return read_weights(self.folder / self.layout.main)

    @cached_property
    def _vae_and_vocoder(self) -> dict[str, Tensor]:
        return read_weights(self.folder / self.layout.vae)

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped weights."""
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_main", "_vae_and_vocoder")
        }

    def _of_main(self, part: str) -> dict[str, Tensor]:
        """Weights of one part of the main file.

        Raises:
            ConfigError: the file holds parts that no plain Tango has.
        """
        foreign = sorted({name.split(".")[0] for name in self._main} - {"unet", "text_encoder"})
        music = [name for name in self._main if any(mark in name for mark in _MUSTANGO)]
        where = f"model.source {self.source}, {self.layout.main}"
        if music:
            message = explain(
                where,
                got=f"weights of Mustango ({music[0]}, ...)",
                expected="those of a Tango: a UNet and a text encoder",
                do="Mustango's network hears beats and chords by encoders of its own, which are not read. "
                "Its VAE and vocoder fit any Tango: model.vae takes them.",
            )
            raise ConfigError(message)
        if foreign:
            started = any(name.startswith("group_") for name in foreign)
            message = explain(
                where,
                got=f"weights of {', '.join(foreign)}",
                expected="unet and text_encoder alone",
                do="Models that were started from Stable Diffusion's UNet squeeze their latents by layers "
                "that diffusers does not have."
                if started
                else "",
            )
            raise ConfigError(message)
        prefix = f"{part}."
        return {
            name.removeprefix(prefix): value for name, value in self._main.items() if name.startswith(prefix)
        }

    def _filled(
        self,
        module: nn.Module,
        state: Mapping[str, Tensor],
        part: str,
        file: str,
        dtype: torch.dtype | None,
    ) -> nn.Module:
        """The module with these weights, all of them and no others.

        Raises:
            CheckpointError: names or shapes differ.
        """
        # Copies: the network is trained, and the mapped file may go.
        own = {name: value.to(dtype or value.dtype, copy=True) for name, value in state.items()}
        fill(module, own, where=f"model.source {self.source}, part {part} of {file}", assign=True)
        return module

    # --- parts ----------------------------------------------------------------------------------------------

    def _inside(self, named: object) -> Path | None:
        """A file or folder of the repository that its settings name by a relative path; None elsewhere."""
        if not isinstance(named, str) or not named:
            return None
        path = (self.folder / named).resolve()
        return path if path.exists() and path.is_relative_to(self.folder.resolve()) else None

    def _unet(self, dtype: torch.dtype | None) -> nn.Module:
        from diffusers import UNet2DConditionModel

        state = self._of_main("unet")
        config = self._unet_config()
        with torch.device("meta"):
            unet: nn.Module = UNet2DConditionModel.from_config(config)
        return self._filled(unet, state, "unet", self.layout.main, dtype)

    def _unet_config(self) -> dict[str, Any]:
        """The repository's own settings of the UNet, else the shipped ones of its width.

        Raises:
            ConfigError: no official network reads text states of this width.
        """
        own = self._inside(self.main_config.get("unet_model_config_path"))
        if own is not None:
            return read_config(own, ("block_out_channels",))
        width = self._main[_WIDTH_KEY].shape[-1] if _WIDTH_KEY in self._main else None
        if width not in UNET_WIDTHS:
            known = " or ".join(f"{size} ({name})" for size, name in UNET_WIDTHS.items())
            message = explain(
                f"model.source {self.source}, {self.layout.main}",
                got=f"a UNet that reads text states of width {width}",
                expected=known,
                do="A network of your own needs its settings in the folder: put them where "
                "unet_model_config_path of main_config.json says.",
            )
            raise ConfigError(message)
        return unet_config(width)

    def _vae(self, dtype: torch.dtype | None) -> nn.Module:
        from diffusers import AutoencoderKL

        config = vae_config(self.vae_config)
        state = vae_from_official(self._vae_and_vocoder, len(config["block_out_channels"]))
        with torch.device("meta"):
            vae: nn.Module = AutoencoderKL.from_config(config)
        return self._filled(vae, state, "vae", self.layout.vae, dtype)

    def _vocoder(self, dtype: torch.dtype | None) -> nn.Module:
        from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

        bands = int(self.stft_config.get("n_mel_channels", 64))
        state = vocoder_from_official(self._vae_and_vocoder, bands)
        # Smaller copies differ in their first width alone, which the weights tell.
        first = self._vae_and_vocoder.get(f"{VOCODER_PREFIX}conv_pre.weight")
        width = HIFIGAN["upsample_initial_channel"] if first is None else int(first.shape[0])
        rate = int(self.stft_config.get("sampling_rate", HIFIGAN["sampling_rate"]))
        own = {"model_in_dim": bands, "upsample_initial_channel": width, "sampling_rate": rate}
        with torch.device("meta"):
            vocoder: nn.Module = SpeechT5HifiGan(SpeechT5HifiGanConfig(**{**HIFIGAN, **own}))
        return self._filled(vocoder, state, "vocoder", self.layout.vae, dtype)

    @property
    def text_name(self) -> str:
        """Hub id or folder of the text encoder's settings and tokenizer."""
        named = str(self.main_config["text_encoder_name"])
        inside = self._inside(named)
        return self._text_source or (str(inside) if inside is not None else named)

    def _text_encoder(self, dtype: torch.dtype | None) -> nn.Module:
        from transformers import T5Config, T5EncoderModel

        state = self._of_main("text_encoder")
        if Path(self.text_name).is_dir() and (Path(self.text_name) / "config.json").is_file():
            config = T5Config.from_pretrained(self.text_name)
        else:
            config = T5Config(**FLAN_T5_LARGE)
        with torch.device("meta"):
            encoder = T5EncoderModel(config)
        # One table under two names; checkpoints of some versions hold one of them.
        for name, other in (
            ("shared.weight", "encoder.embed_tokens.weight"),
            ("encoder.embed_tokens.weight", "shared.weight"),
        ):
            if name not in state and other in state:
                state[name] = state[other]
        filled: Any = self._filled(encoder, state, "text_encoder", self.layout.main, dtype)
        filled.tie_weights()
        return filled  # type: ignore[no-any-return]

    def _tokenizer(self, dtype: torch.dtype | None) -> Any:
        del dtype
        from transformers import AutoTokenizer

        advice = (
            "Official repositories do not hold their tokenizer: it is that of google/flan-t5-large. Without "
            "network, point model.config_source at a folder with that tokenizer. " + HUB_ADVICE
        )
        with told_as_settings(f"model.source {self.source}, tokenizer {self.text_name}", advice):
            return AutoTokenizer.from_pretrained(self.text_name, trust_remote_code=False)

    def _scheduler(self, dtype: torch.dtype | None) -> Any:
        del dtype
        from diffusers import DDPMScheduler

        own = self.folder / "scheduler" / "scheduler_config.json"
        if own.is_file():
            return DDPMScheduler.from_config(read_config(own, ("beta_schedule",)))
        # What main_config.json names was removed from the hub.
        return DDPMScheduler(**SCHEDULER)


# --- opening ------------------------------------------------------------------------------------------------


def _fetched(source: str, revision: str | None) -> Path | None:
    """The folder of an official repository of the hub; None where it is none."""
    from huggingface_hub import snapshot_download

    patterns = sorted({name for layout in LAYOUTS for name in layout.files})
    with told_as_settings(f"model.source {source}", HUB_ADVICE):
        folder = Path(
            snapshot_download(
                source, revision=revision, allow_patterns=patterns, local_files_only=is_offline()
            )
        )
    return folder if layout_of(folder) is not None else None


def open_source(
    source: str, *, revision: str | None = None, variant: str | None = None, config_source: str | None = None
) -> PartSource:
    """The parts of a Tango, whatever holds them: an official folder or hub id, or a converted folder.

    Args:
        source: as in `model.source`.
        revision: of a hub repository.
        variant: of the files of a converted folder.
        config_source: hub id or folder of the text encoder's settings and tokenizer, where they are not where
            the official repository says.

    Raises:
        ConfigError: nothing is there, or something else.
    """
    quiet_loaders()
    kind = kind_of_source(source)
    if kind == "file":
        message = explain(
            f"model.source {source}",
            got="a single file",
            expected="a folder or hub id",
            do="A Tango is several files: main_config.json and its neighbours, or a converted folder.",
        )
        raise ConfigError(message)
    folder: Path | None = Path(source)
    if kind == "hub":
        folder = _fetched(source, revision)
    layout = None if folder is None else layout_of(folder)
    if folder is not None and layout is not None:
        return OfficialSource(source, folder, layout, text_source=config_source)
    if folder is not None and not (folder / "model_index.json").is_file():
        message = explain(
            f"model.source {source}",
            got="a folder without main_config.json",
            expected="an official Tango repository, or a folder that mmalign converted from one",
            do="Download the whole repository: `hf download declare-lab/tango2 --local-dir FOLDER`.",
        )
        raise ConfigError(message)
    return PipelineSource(
        source, pipelines=(PIPELINE_CLASS,), family="tango", revision=revision, variant=variant
    )


def load_front_end_config(source: PartSource) -> dict[str, Any] | None:
    """The content of the repository's `stft_config.json`; None where there is none."""
    if isinstance(source, OfficialSource):
        return source.stft_config
    path = Path(source.source) / STFT_FILE
    return read_config(path, ("filter_length",)) if path.is_file() else None
