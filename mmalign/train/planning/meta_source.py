"""The parts of a pipeline without their weights: settings of a folder, of the hub, or of a released model.

It stands where a family looks for its parts (`mmalign.diffusion.loading.PartSource`): networks come on the
meta device, schedulers as they are, tokenizers where there are any.
"""

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmalign.errors import ConfigError, explain
from mmalign.train.planning.published import PublishedPipeline

__all__ = ["MetaSource", "TokenizerLength", "empty_network"]


class TokenizerLength:
    """A tokenizer that is not there: nothing is known of it but its length.

    Args:
        model_max_length: tokens.
    """

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length


class MetaSource:
    """Parts of a pipeline on the meta device.

    Args:
        source: as in `model.source`.
        index: of `model_index.json`.
        folder: with a config per part; None: `settings` has them.
        settings: of the parts, by name.
        lengths: tokens of each tokenizer, where there is no folder.

    Attributes:
        written_index: `model_index.json`.
        pipeline_class: name of the pipeline.
    """

    kind = "folder"

    def __init__(
        self,
        source: str,
        index: Mapping[str, Any],
        *,
        folder: Path | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        lengths: Mapping[str, int] | None = None,
    ) -> None:
        self.source, self.folder = source, folder
        self.written_index = dict(index)
        self.index: dict[str, Any] = dict(index)
        self.pipeline_class = str(index["_class_name"])
        self._settings, self._lengths = dict(settings or {}), dict(lengths or {})
        self.made: dict[str, nn.Module] = {}

    @classmethod
    def of_folder(cls, folder: Path) -> "MetaSource":
        """Of a pipeline folder, whose weights may be missing."""
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        return cls(str(folder), index, folder=folder)

    @classmethod
    def of_published(cls, source: str, pipeline: PublishedPipeline) -> "MetaSource":
        """Of a released model."""
        index = {name: [library, made] for name, (library, made, _) in pipeline.parts.items()}
        return cls(
            source,
            {"_class_name": pipeline.pipeline_class, **pipeline.options, **index},
            settings={name: settings for name, (_, _, settings) in pipeline.parts.items()},
            lengths=pipeline.lengths,
        )

    def has(self, name: str) -> bool:
        """Whether the pipeline has a part of this name."""
        entry = self.index.get(name) or (None, None)
        return entry[0] is not None

    def settings_of(self, name: str) -> dict[str, Any]:
        """The settings of a part.

        Raises:
            ConfigError: there are none.
        """
        if self.folder is None:
            return {**self._defaults_of(name), **self._settings.get(name, {})}
        for file in ("config.json", "scheduler_config.json", "preprocessor_config.json"):
            path = self.folder / name / file
            if path.is_file():
                found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                return found
        message = explain(
            f"model.source {self.source}, part {name}",
            got="no config",
            expected=f"{name}/config.json",
            do="Weights may be missing; the settings of every part are needed.",
        )
        raise ConfigError(message)

    def _defaults_of(self, name: str) -> dict[str, Any]:
        """What the class of a part of diffusers takes where nothing is said; config files spell it out."""
        library, class_name = self.index.get(name) or ("", "")
        if library != "diffusers":
            return {}
        made = _class_of(library, class_name, where=f"model.source {self.source}, part {name}")
        parameters = inspect.signature(made.__init__).parameters.values()
        return {
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.default is not inspect.Parameter.empty
        }

    def part(self, name: str, *, dtype: torch.dtype | None = None) -> Any:
        """One part: a network on the meta device, a tokenizer, or a scheduler.

        Raises:
            ConfigError: it has no settings, or is of code that is not run.
        """
        library, class_name = self.index.get(name) or ("", "")
        if "okenizer" in class_name or class_name.endswith(("Processor", "Extractor")):
            return self._reader_of(name, class_name)
        part_class = _class_of(library, class_name, where=f"model.source {self.source}, part {name}")
        settings = self.settings_of(name)
        if not issubclass(part_class, nn.Module):
            return part_class.from_config(settings)
        network = empty_network(part_class, settings, dtype or torch.float32)
        self.made[name] = network
        return network

    def _reader_of(self, name: str, class_name: str) -> Any:
        """A tokenizer or an image processor: the folder's, or its length alone."""
        if self.folder is None or not (self.folder / name).is_dir():
            return TokenizerLength(self._lengths.get(name, 77))
        return getattr(importlib.import_module("transformers"), class_name).from_pretrained(
            str(self.folder / name)
        )


def _class_of(library: str, class_name: str, *, where: str) -> Any:
    """A class of diffusers or transformers; the former exports those that live beside a pipeline, too."""
    module = importlib.import_module("transformers" if library == "transformers" else "diffusers")
    found = getattr(module, class_name, None)
    if found is None:
        message = explain(
            where, got=f"{library}.{class_name}", expected="a class of diffusers or transformers"
        )
        raise ConfigError(message)
    return found


def empty_network(network_class: Any, settings: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A network of these settings on the meta device: frozen, in evaluation mode.

    Args:
        network_class: of diffusers or transformers.
        settings: of its config file.
        dtype: of its weights; parts that the class keeps in float32 stay so.
    """
    with torch.device("meta"):
        if hasattr(network_class, "from_config"):  # diffusers
            network: Any = network_class.from_config(dict(settings))
        else:
            network = network_class(network_class.config_class(**settings))
    network.to("meta")  # tables that numpy made
    wide = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    if not hasattr(network_class, "from_config") and dtype is not torch.float16:
        wide = ()  # transformers widens what overflows, and bfloat16 does not
    for name, parameter in network.named_parameters():
        if not any(part in name.split(".") for part in wide):
            parameter.data = parameter.data.to(dtype)
    found: nn.Module = network.requires_grad_(False).eval()
    return found
