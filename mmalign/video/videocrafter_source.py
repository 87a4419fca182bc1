"""Official VideoCrafter2 checkpoints, read into diffusers and transformers modules without any of their code.

A checkpoint is one file of weights (`model.ckpt`, or its tensors as safetensors): network, VAE and OpenCLIP's
text encoder. Its settings are those of the repository's `inference_t2v_512_v2.0.yaml` unless a YAML file lies
beside it. The tokenizer is CLIP's, which checkpoints do not hold.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mmalign.diffusion.loading import HUB_ADVICE, quiet_loaders, told_as_settings
from mmalign.diffusion.vae_names import TRAINING_PREFIX, vae_from_official
from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.rewards.checkpoints import blank, fill, read_state
from mmalign.video.openclip_names import text_from_openclip, text_settings
from mmalign.video.videocrafter_keys import (
    NETWORK_PREFIX,
    fold_frame_rate,
    network_settings,
    to_diffusers,
)

__all__ = [
    "SETTINGS",
    "TEXT_PREFIX",
    "TOKENIZER",
    "TOLD_FPS",
    "VideoCrafterSource",
    "is_checkpoint",
    "open_source",
]

TEXT_PREFIX = "cond_stage_model.model."
"""Before the text encoder's names in a checkpoint."""

TOKENIZER = "openai/clip-vit-large-patch14"
"""Where the tokenizer is read unless the checkpoint's folder or `model.config_source` has one."""

TOLD_FPS = 28.0
"""What the network is told unless the run says otherwise. Source: scripts/run_text2video.sh."""

SETTINGS: dict[str, Any] = {
    "linear_start": 0.00085,
    "linear_end": 0.012,
    "timesteps": 1000,
    "scale_factor": 0.18215,
    "use_scale": True,
    "scale_b": 0.7,
    "unet_config": {
        "params": {
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "attention_resolutions": [4, 2, 1],
            "num_res_blocks": 2,
            "channel_mult": [1, 2, 4, 4],
            "num_head_channels": 64,
            "context_dim": 1024,
            "use_linear": True,
            "temporal_conv": True,
            "temporal_attention": True,
            "temporal_selfatt_only": True,
            "use_relative_position": False,
            "use_causal_attention": False,
            "temporal_length": 16,
            "addition_attention": True,
            "fps_cond": True,
        }
    },
    "first_stage_config": {
        "params": {
            "embed_dim": 4,
            "ddconfig": {
                "double_z": True,
                "z_channels": 4,
                "resolution": 512,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 128,
                "ch_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
            },
        }
    },
}
"""Source: AILab-CVC/VideoCrafter configs/inference_t2v_512_v2.0.yaml, `model.params`."""

_NAMES = ("model.safetensors", "model.ckpt")
_FADED_OVER, _FADED_TO = 400, 0.3
"""Defaults of the official code, where a configuration has `use_scale` and no more. Source: ddpm3d.py."""


class VideoCrafterSource:
    """A checkpoint as parts of diffusers and transformers.

    Args:
        source: as in `model.source`, for messages.
        weights: its file.
        config_source: folder or hub id of the tokenizer.

    Attributes:
        told_fps: frames per second that the network is told; set before the network is loaded.
        settings: `model.params` of its configuration.
        fading: (end, timesteps) of the fading of clean samples; None where there is none.
    """

    pipeline_class = "VideoCrafter"

    def __init__(self, source: str, weights: Path, *, config_source: str | None = None) -> None:
        quiet_loaders()
        self.source, self.weights, self.config_source = source, weights, config_source
        self.index: dict[str, Any] = {}
        self.told_fps = TOLD_FPS
        self.settings = _settings_beside(weights)
        self.fading: tuple[float, int] | None = None
        if self.settings.get("use_scale"):
            end, over = self.settings.get("scale_b", _FADED_TO), self.settings.get("mid_step", _FADED_OVER)
            self.fading = float(end), int(over)

    def has(self, name: str) -> bool:
        """Whether there is a part of this name."""
        return name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")

    def part(self, name: str, *, dtype: torch.dtype | None = None) -> Any:
        """One loaded part: a frozen network in evaluation mode on the CPU, a tokenizer, or a scheduler.

        Raises:
            ConfigError: it cannot be loaded.
        """
        readers = {
            "unet": self._network,
            "vae": self._vae,
            "text_encoder": self._text_encoder,
            "tokenizer": self._tokenizer,
            "scheduler": self._scheduler,
        }
        loaded = readers[name]()
        if isinstance(loaded, nn.Module):
            loaded.requires_grad_(False)
            loaded.eval()
            return loaded if dtype is None else loaded.to(dtype)
        return loaded

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped weights."""
        return {name: value for name, value in self.__dict__.items() if name != "state"}

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The checkpoint's tensors under official names, read as far as they are used."""
        try:
            return read_state(self.weights, mapped=True)
        except CheckpointError as error:
            message = f"model.source {self.source}: {error}"
            raise ConfigError(message) from error

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors behind a prefix, without it."""
        found = {key[len(prefix) :]: value for key, value in self.state.items() if key.startswith(prefix)}
        if not found:
            message = explain(
                f"model.source {self.source}",
                got=f"a checkpoint without {prefix}*",
                expected="a whole checkpoint of VideoCrafter2: network, VAE and text encoder",
            )
            raise ConfigError(message)
        return found

    @cached_property
    def network_settings(self) -> dict[str, Any]:
        """Of `UNet3DConditionModel`."""
        where = f"model.source {self.source}"
        return network_settings(self.settings["unet_config"]["params"], where=where)

    def _filled(self, build: Any, state: Mapping[str, Tensor]) -> Any:
        network = blank(build)
        wide = {name: value.to(torch.float32) for name, value in state.items()}
        try:
            fill(network, wide, where=f"model.source {self.source}", assign=True)
        except CheckpointError as error:
            advice = "Its settings are a YAML file beside it; without one they are those of VideoCrafter2."
            message = f"{error} {advice}"
            raise ConfigError(message) from error
        return network

    def _network(self) -> Any:
        from diffusers import UNet3DConditionModel

        official = self.under(NETWORK_PREFIX)
        state = fold_frame_rate(to_diffusers(official, self.network_settings), official, self.told_fps)
        return self._filled(lambda: UNet3DConditionModel(**self.network_settings), state)

    def _vae(self) -> Any:
        from diffusers import AutoencoderKL

        params = self.settings["first_stage_config"]["params"]
        inner = params["ddconfig"]
        levels = len(inner["ch_mult"])
        state = vae_from_official(self.under(TRAINING_PREFIX), levels)
        # Statistics of the loss are no part of the VAE.
        state = {name: value for name, value in state.items() if not name.startswith("loss.")}
        return self._filled(
            lambda: AutoencoderKL(
                in_channels=inner["in_channels"],
                out_channels=inner["out_ch"],
                latent_channels=params["embed_dim"],
                block_out_channels=tuple(inner["ch"] * multiple for multiple in inner["ch_mult"]),
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                layers_per_block=inner["num_res_blocks"],
                sample_size=inner["resolution"],
                scaling_factor=self.settings["scale_factor"],
            ),
            state,
        )

    def _text_encoder(self) -> Any:
        from transformers import CLIPTextConfig, CLIPTextModel

        official = self.under(TEXT_PREFIX)
        settings = text_settings(official)
        state = text_from_openclip(official, settings["num_hidden_layers"])
        return self._filled(lambda: CLIPTextModel(CLIPTextConfig(**settings)), state)

    def _tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        beside = self.weights.parent / "tokenizer"
        place = str(beside) if beside.is_dir() else self.config_source or TOKENIZER
        advice = (
            f"It must have CLIP's tokenizer, as {TOKENIZER} has; or {HUB_ADVICE[0].lower()}{HUB_ADVICE[1:]}"
        )
        with told_as_settings(f"model.config_source {place}", advice):
            inside = Path(place) / "tokenizer"
            tokenizer = CLIPTokenizer.from_pretrained(str(inside) if inside.is_dir() else place)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # OpenCLIP fills up with zeros
        return tokenizer

    def _scheduler(self) -> Any:
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            num_train_timesteps=self.settings["timesteps"],
            beta_start=self.settings["linear_start"],
            beta_end=self.settings["linear_end"],
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )


def _settings_beside(weights: Path) -> dict[str, Any]:
    """`model.params` of the YAML file in the checkpoint's folder; VideoCrafter2's where there is none."""
    paths = sorted(weights.parent.glob("*.yaml"))
    if not paths:
        return SETTINGS
    if len(paths) > 1:
        message = explain(
            str(weights.parent),
            got=f"{len(paths)} YAML files",
            expected="one, the configuration of the checkpoint, or none",
        )
        raise ConfigError(message)
    try:
        found = yaml.safe_load(paths[0].read_text(encoding="utf-8"))["model"]["params"]
        return {**SETTINGS, "use_scale": False, **dict(found)}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        message = f"{paths[0]}: no configuration of VideoCrafter ({type(error).__name__}: model.params)."
        raise ConfigError(message) from error


def is_checkpoint(source: str) -> bool:
    """Whether a file, folder or hub id holds a checkpoint of VideoCrafter, by its names of tensors.

    Tensors are mapped, not read. Of a hub id, only what was downloaded before is looked at.
    """
    path = Path(source)
    if path.is_dir():
        path = next((path / name for name in _NAMES if (path / name).is_file()), path)
    elif not path.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(source, _NAMES[1])
        except HFValidationError:  # no id at all
            return False
        if not isinstance(found, str):
            return False
        path = Path(found)
    if path.suffix not in (".ckpt", ".safetensors") or not path.is_file():
        return False
    names = _tensor_names(path)
    # Stable Diffusion's checkpoints have the network's prefix, too, and no layers along time.
    return any(name.startswith(NETWORK_PREFIX) and ".temopral_conv." in name for name in names) and any(
        name.startswith(TEXT_PREFIX) for name in names
    )


def _tensor_names(path: Path) -> list[str]:
    """Names of a file's tensors; none of a file that is no checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                return list(file.keys())
        return list(read_state(path, mapped=True))
    except (CheckpointError, SafetensorError, OSError):
        return []


def open_source(
    source: str, *, revision: str | None = None, variant: str | None = None, config_source: str | None = None
) -> VideoCrafterSource:
    """The parts of a checkpoint: its file, the folder it lies in, or a hub id.

    Raises:
        ConfigError: there is none.
    """
    del variant
    path = Path(source)
    if path.is_file():
        return VideoCrafterSource(source, path, config_source=config_source)
    if path.is_dir():
        for name in _NAMES:
            if (path / name).is_file():
                return VideoCrafterSource(source, path / name, config_source=config_source)
        message = explain(
            f"model.source {source}",
            got="a folder without weights",
            expected=f"a checkpoint of VideoCrafter2: {' or '.join(_NAMES)}",
        )
        raise ConfigError(message)
    from huggingface_hub import hf_hub_download

    with told_as_settings(f"model.source {source}", HUB_ADVICE):
        found = Path(hf_hub_download(source, _NAMES[1], revision=revision))
    return VideoCrafterSource(source, found, config_source=config_source)
