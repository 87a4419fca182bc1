"""Files of official Tango repositories: their names, what they say, and the tensors in them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmalign.audio.official_configs import STFT_FILE
from mmalign.errors import ConfigError, explain
from mmalign.rewards.checkpoints import read_state

__all__ = [
    "LAYOUTS",
    "MAIN_FILE",
    "STFT_WEIGHTS",
    "VAE_FILE",
    "VAE_WEIGHTS",
    "Layout",
    "layout_of",
    "read_config",
    "read_weights",
]

MAIN_FILE, VAE_FILE = "main_config.json", "vae_config.json"
VAE_WEIGHTS, STFT_WEIGHTS = "pytorch_model_vae.bin", "pytorch_model_stft.bin"


@dataclass(frozen=True)
class Layout:
    """Where an official repository keeps its files.

    Args:
        name: for messages.
        configs: folder of the settings, relative to the repository's.
        main: weights of network and text encoder.
        vae: weights of VAE and vocoder.
    """

    name: str
    configs: str
    main: str
    vae: str

    @property
    def files(self) -> list[str]:
        """What is fetched of a hub repository; the weights of the Fourier transform are computed."""
        prefix = f"{self.configs}/" if self.configs else ""
        settings = [f"{prefix}{name}" for name in (MAIN_FILE, VAE_FILE, STFT_FILE)]
        return [*settings, self.main, self.vae]


LAYOUTS = (
    Layout("Tango", "", "pytorch_model_main.bin", VAE_WEIGHTS),
    Layout("Mustango", "configs", "ldm/pytorch_model_ldm.bin", f"vae/{VAE_WEIGHTS}"),
)
"""Source: declare-lab/tango, tango2/tango.py; AMAAI-Lab/mustango, mustango.py."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a PyTorch weight file, by name, on the CPU; nothing in it is run.

    Raises:
        CheckpointError: it is cut off, or holds something else than tensors by name.
        ConfigError: it is missing.
    """
    if not path.is_file():
        message = explain(
            str(path),
            got="no such file",
            expected="the weights of an official Tango repository",
            do="Download the whole repository: `hf download declare-lab/tango2 --local-dir FOLDER`.",
        )
        raise ConfigError(message)
    return read_state(path, inside=(), mapped=True)


def read_config(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    """Settings of a JSON file.

    Raises:
        ConfigError: it is missing, no JSON, or lacks one of the needed settings.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read as JSON ({error}). It is part of every official Tango repository."
        raise ConfigError(message) from error
    missing = [name for name in needed if not isinstance(content, dict) or name not in content]
    if missing:
        message = explain(str(path), got=content, expected=f"settings with {', '.join(missing)}")
        raise ConfigError(message)
    found: dict[str, Any] = content
    return found


def layout_of(folder: Path) -> Layout | None:
    """How a folder is laid out, if it is an official one; a folder that lacks some files counts."""
    for layout in LAYOUTS:
        if (folder / layout.configs / MAIN_FILE).is_file() or (folder / layout.vae).is_file():
            return layout
    return None
