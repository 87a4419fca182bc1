"""Parts of a diffusers pipeline, loaded one at a time from a hub id, a folder or a single file.

Only what training needs is read (no safety checker, no second copy of anything), each part in the dtype it is
used in, from safetensors only. What can go wrong on the way is said in terms of the run's settings.
"""

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn

from mmalign.errors import ConfigError, explain

__all__ = [
    "HUB_ADVICE",
    "PartSource",
    "PipelineSource",
    "is_offline",
    "kind_of_source",
    "load_autoencoder",
    "quiet_loaders",
    "told_as_settings",
]

_LIBRARIES = ("diffusers", "transformers")


@contextmanager
def told_as_settings(where: str, do: str) -> Iterator[None]:
    """Turn the loaders' errors into one message about the run's settings."""
    from safetensors import SafetensorError

    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        message = (
            f"{where}: could not be loaded ({type(error).__name__}: {lines[0] if lines else error}). {do}"
        )
        raise ConfigError(message) from error


def quiet_loaders() -> None:
    """One bar per run, not one per file that is loaded."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def is_offline() -> bool:
    """Whether the environment forbids the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@runtime_checkable
class PartSource(Protocol):
    """Where a model's parts come from, whatever its layout on disk.

    Attributes:
        source: as the run's `model.source` has it.
        index: options and classes of the parts, as in `model_index.json`.
        pipeline_class: name of the pipeline.
    """

    source: str
    index: dict[str, Any]
    pipeline_class: str

    def has(self, name: str) -> bool:
        """Whether there is a part of this name."""
        ...

    def part(self, name: str, *, dtype: torch.dtype | None = None) -> Any:
        """One loaded part: a frozen network in evaluation mode on the CPU, a tokenizer, or a scheduler."""
        ...


class PipelineSource:
    """Where the parts of one pipeline come from.

    Args:
        source: hub id, diffusers folder, or a single .safetensors file.
        pipelines: class names of the pipelines the family can train; the first reads single files.
        family: name of the family, for messages.
        network: the trained network's name in the pipeline, and its class in diffusers.
        revision: hub revision.
        variant: file variant ("fp16").
        config_source: diffusers folder or hub id whose configs describe a single file.

    Raises:
        ConfigError: nothing is there, or it is the pipeline of another family.
    """

    def __init__(
        self,
        source: str,
        *,
        pipelines: tuple[str, ...],
        family: str,
        network: tuple[str, str] = ("unet", "UNet2DConditionModel"),
        revision: str | None = None,
        variant: str | None = None,
        config_source: str | None = None,
    ) -> None:
        self.source, self.revision, self.variant = source, revision, variant
        self.config_source, self.network = config_source, network
        quiet_loaders()
        self.kind = kind_of_source(source)
        self.index = self._read_index(pipelines)
        got = str(self.index.get("_class_name", ""))
        if got not in pipelines:
            message = explain(
                f"model.source {source}",
                got=got or "no pipeline class",
                expected=f"one of {', '.join(pipelines)} (family {family})",
                do=_right_family(got),
            )
            raise ConfigError(message)
        self.pipeline_class: str = got

    def _read_index(self, pipelines: tuple[str, ...]) -> dict[str, Any]:
        """The content of `model_index.json`: which class each part has."""
        from diffusers import DiffusionPipeline

        if self.kind == "file" and self.config_source is None:
            return {"_class_name": pipelines[0]}
        place = self.config_source if self.kind == "file" else self.source
        if place is not None and Path(place).is_dir():
            path = Path(place) / "model_index.json"
            if not path.is_file():
                message = explain(
                    f"model.source {place}",
                    got="a folder without model_index.json",
                    expected="a diffusers pipeline folder",
                    do=f"Point at the folder that holds {self.network[0]}/, vae/, ...: a network is "
                    "trained with its VAE and text encoders.",
                )
                raise ConfigError(message)
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return index
        revision = self.revision if self.kind == "hub" else None
        with told_as_settings(f"model.source {place}", HUB_ADVICE):
            config: dict[str, Any] = DiffusionPipeline.load_config(place, revision=revision)
        return config

    def has(self, name: str) -> bool:
        """Whether the pipeline has a part of this name (an SDXL refiner has no first text encoder)."""
        if self.kind == "file" and self.config_source is None:
            return True
        entry = self.index.get(name) or (None, None)
        return entry[0] is not None

    def part(self, name: str, *, dtype: torch.dtype | None = None) -> Any:
        """One loaded part: a network in evaluation mode on the CPU, a tokenizer, or a scheduler.

        Args:
            name: as in `model_index.json`.
            dtype: of a network's weights; None for parts without weights.

        Raises:
            ConfigError: it is missing, truncated, or not safetensors.
        """
        where = f"model.source {self.source}, part {name}"
        with told_as_settings(where, _PART_ADVICE):
            if self.kind == "file" and self._in_file(name):
                loaded = self._part_of_file(name, dtype)
            else:
                loaded = self._part_of_folder(name, dtype)
        if isinstance(loaded, nn.Module):
            loaded.requires_grad_(False)
            loaded.eval()
        return loaded

    def _part_of_folder(self, name: str, dtype: torch.dtype | None) -> Any:
        library, class_name = self.index.get(name) or ("", "")
        if library not in _LIBRARIES:
            message = explain(
                f"model.source {self.source}, part {name}",
                got=f"code from {library!r}",
                expected="a class of diffusers or transformers",
                do="Code shipped inside model repositories is never run.",
            )
            raise ConfigError(message)
        part_class = getattr(importlib.import_module(library), class_name)
        # What a single file lacks lies where its configs do.
        place = self.source if self.kind != "file" else str(self.config_source)
        keywords: dict[str, Any] = {"revision": self.revision} if self.kind == "hub" else {}
        if dtype is not None:
            keywords |= {"dtype": dtype, "use_safetensors": True}
            if self.variant and self.kind != "file":
                keywords["variant"] = self.variant
        if Path(place).is_dir():
            return part_class.from_pretrained(str(Path(place) / name), **keywords)
        return part_class.from_pretrained(place, subfolder=name, **keywords)

    def _in_file(self, name: str) -> bool:
        """Whether a single file is where this part comes from.

        Raises:
            ConfigError: it holds no such weights (many files of FLUX and SD3 hold the network alone), and
                nothing says where they are.
        """
        if name == self.network[0]:
            return True
        markers = _VAE_NAMES if name == "vae" else _TEXT_NAMES
        if any(key.startswith(markers) for key in self._file_names):
            return True
        if self.config_source is None:
            what = "VAE" if name == "vae" else "text encoder"
            message = explain(
                f"model.source {self.source}",
                got=f"a file without {what}",
                expected="a whole checkpoint, or model.config_source",
                do="Set model.config_source to the hub id or diffusers folder of the base model: what the "
                "file lacks is read there.",
            )
            raise ConfigError(message)
        return False

    @cached_property
    def _file_names(self) -> list[str]:
        from safetensors import safe_open

        with safe_open(self.source, framework="pt") as file:
            return list(file.keys())

    def _part_of_file(self, name: str, dtype: torch.dtype | None) -> Any:
        """Networks are read by their own class; the rest by the pipeline without those networks."""
        import diffusers

        pipeline_class = getattr(diffusers, self.pipeline_class)
        if not hasattr(pipeline_class, "from_single_file"):
            message = explain(
                f"model.source {self.source}",
                got="a single file",
                expected=f"a diffusers folder or hub id: {self.pipeline_class} reads no single files",
            )
            raise ConfigError(message)
        keywords: dict[str, Any] = {"local_files_only": is_offline()}
        if self.config_source:
            keywords["config"] = self.config_source
        part, network_class = self.network
        owners = {part: getattr(diffusers, network_class), "vae": diffusers.AutoencoderKL}
        if name in owners:
            return owners[name].from_single_file(self.source, subfolder=name, dtype=dtype, **keywords)
        without: dict[str, Any] = {part: None, "vae": None}
        pipeline = pipeline_class.from_single_file(
            self.source, **without, dtype=dtype or torch.float32, **keywords
        )
        return getattr(pipeline, name)


_VAE_NAMES = ("first_stage_model.", "vae.")
_TEXT_NAMES = ("cond_stage_model.", "conditioner.", "text_encoders.")
"""How the names of a single file's VAE and text encoders begin."""

HUB_ADVICE = (
    "If it is a folder, check the path; if it is a hub id, check its spelling, that you are online "
    "(HF_HUB_OFFLINE is not set) and that you have accepted its licence with `hf auth login`."
)
_PART_ADVICE = (
    "Weights must be safetensors: convert older repositories first. Check model.variant and model.revision; "
    "a single file on a machine without network needs model.config_source, a diffusers folder with the "
    "configs of that model."
)


def kind_of_source(source: str, setting: str = "model.source") -> Literal["folder", "file", "hub"]:
    """What a setting names.

    Raises:
        ConfigError: a file that is no safetensors, or a path where nothing is.
    """
    path = Path(source)
    if path.is_dir():
        return "folder"
    if path.is_file():
        if path.suffix == ".safetensors":
            return "file"
        message = explain(
            f"{setting} {source}",
            got=f"a {path.suffix or 'nameless'} file",
            expected=".safetensors",
            do="Files that unpickle can run code and are not opened: convert it first.",
        )
        raise ConfigError(message)
    looks_like_path = (
        source.startswith((".", "/", "~")) or source.count("/") != 1 or path.suffix == ".safetensors"
    )
    if looks_like_path:
        message = explain(
            f"{setting} {source}",
            got="nothing at this path",
            expected="a diffusers folder, a .safetensors file or a hub id",
            do="Check the path; a hub id has the form owner/name.",
        )
        raise ConfigError(message)
    return "hub"


def _right_family(pipeline_class: str) -> str:
    """Advice naming the family that trains this pipeline, if there is one."""
    from mmalign import registry

    for name in registry.names("families"):
        if pipeline_class in getattr(registry.find("families", name), "pipelines", ()):
            return f"Set model.family: {name}."
    return "`mmalign families` lists what can be trained."


def load_autoencoder(source: str, *, dtype: torch.dtype) -> Any:
    """A VAE on its own: hub id, VAE folder, pipeline folder, or single file.

    Raises:
        ConfigError: nothing is there, or it is not a VAE.
    """
    from diffusers import AutoencoderKL

    kind = kind_of_source(source, "model.vae")
    with told_as_settings(f"model.vae {source}", "It must be the hub id or folder of an AutoencoderKL."):
        if kind == "file":
            vae = AutoencoderKL.from_single_file(source, dtype=dtype, local_files_only=is_offline())
        else:
            inside = kind == "folder" and (Path(source) / "vae").is_dir()
            place = str(Path(source) / "vae") if inside else source
            vae = AutoencoderKL.from_pretrained(place, dtype=dtype, use_safetensors=True)
    vae.requires_grad_(False)
    return vae.eval()
