"""Models as they are used after training, or without any: found, loaded, restored, compared with their base.

A medium says which families it has and what its section is; how a folder is told from another, and how a run
becomes a model again, is the same for all that `OpenedFamily` describes.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from mmalign.devices import best_device
from mmalign.diffusion.encoding import MediaSection
from mmalign.diffusion.model import DiffusionModel
from mmalign.diffusion.opened_family import OpenedFamily
from mmalign.errors import ConfigError, explain
from mmalign.train.config import ModelConfig, RunConfig
from mmalign.train.run_folders import locate_run, read_run_config
from mmalign.train.sections import MediaConfig
from mmalign.train.trained import LoadedModel, inference_dtype, restored

__all__ = [
    "ReopenedModel",
    "check_one_of",
    "families_in",
    "file_of",
    "open_base",
    "pipeline_class",
    "reopen",
]

Model = TypeVar("Model", bound=DiffusionModel)
Made = TypeVar("Made")


class ReopenedModel(LoadedModel[Model, RunConfig]):
    """A model, how to see it without its training, and how it is sampled from."""

    @property
    def num_steps(self) -> int:
        """Sampler steps: the run's, else what suits the model."""
        return self.config.samples.num_steps if self.config else self.model.sampler_defaults[0]

    @property
    def guidance_scale(self) -> float:
        """Guidance: the run's, else what suits the model."""
        return self.config.samples.guidance_scale if self.config else self.model.sampler_defaults[1]

    @property
    def title(self) -> str:
        """Method and step of the run, else where the model came from."""
        return f"{self.config.method}, step {self.step}" if self.config else self.model.settings.source

    def sampler_settings(
        self, *, seed: int, steps: int | None, guidance_scale: float | None, copies: int
    ) -> dict[str, Any]:
        """Settings of `sample`; what is None is the run's, else what suits the model.

        Args:
            seed: of the comparison.
            steps: of the sampler.
            guidance_scale: of classifier-free guidance.
            copies: per prompt.
        """
        return {
            "seed": seed,
            "num_steps": self.num_steps if steps is None else steps,
            "guidance_scale": self.guidance_scale if guidance_scale is None else guidance_scale,
            "copies": copies,
        }

    def base_and_tuned(self, make: Callable[[str], Made]) -> dict[str, Made]:
        """What `make(name)` gives: "base" with the base model, "tuned" with what the run trained, if any."""
        with self.base_weights():
            made = {"base": make("base")}
        return made if self.config is None else {**made, "tuned": make("tuned")}


Reopened = TypeVar("Reopened", bound=ReopenedModel[Any])


def check_one_of(model: str | None, run: Path | None) -> None:
    """Raise `ConfigError` unless `mmalign sample` is given a model or a run, and not both."""
    if (model is None) == (run is None):
        got = "both" if run is not None else "neither"
        raise ConfigError(explain("mmalign sample", got=got, expected="one of --model and --run"))


def families_in(package: ModuleType) -> dict[str, Any]:
    """The `FAMILY` of every module of a package, by name; modules that begin with `_` have none."""
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name[0] != "_"]
    found = [importlib.import_module(f"{package.__name__}.{name}").FAMILY for name in names]
    return {family.name: family for family in found}


def file_of(source: str, name: str) -> Path | None:
    """A file of a folder, or of a hub id; None where it has none."""
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(source, name))
    except (OSError, ValueError, HFValidationError):  # no network, no such id or file, no id at all
        return None


def pipeline_class(source: str) -> str | None:
    """What `model_index.json` of a folder, or of a hub id, names; None where there is none."""
    index = file_of(source, "model_index.json")
    found = None if index is None else json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    return None if found is None else str(found)


def open_base(
    kind: type[Reopened],
    family: OpenedFamily[Any],
    source: str,
    section: MediaSection,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> Reopened:
    """A base model of a family.

    Args:
        kind: what holds it.
        family: that reads it.
        source: hub id, folder or file.
        section: of what it makes.
        device: where to load it; default the best there is.
        dtype: of all parts but the VAE; default the family's half precision on CUDA, else float32.

    Raises:
        ConfigError: nothing is there, or a part cannot be loaded.
    """
    chosen = best_device(device)
    if dtype is None:
        dtype = inference_dtype(chosen, family.model.half_dtype)
    settings = ModelConfig(family=family.name, source=source)
    return kind(family.load(settings, section, device=chosen, dtype=dtype))


def reopen(
    kind: type[Reopened],
    run: str | Path,
    families: Mapping[str, OpenedFamily[Any]],
    section: type[MediaConfig],
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    changes: Mapping[str, Any] | None = None,
    quantised: bool = True,
) -> Reopened:
    """What a run trained: its base model with the newest weights, the average where the run kept one.

    Args:
        kind: what holds it.
        run: run folder, or one of its checkpoints.
        families: of the medium.
        section: the class of the medium's section.
        device: where to load it; default the best there is.
        dtype: of the frozen weights; default as `open_base`, for runs in mixed precision.
        changes: settings of the medium's section in the place of the run's.
        quantised: whether weights that the run quantised are so here.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint yet.
        ConfigError: it is a run of another kind, or the base model cannot be loaded.
    """
    folders = locate_run(Path(run))
    config = read_run_config(folders[0])
    family = families.get(config.model.family)
    if family is None or not isinstance(config.media, section):
        expected = f"a run of {' or '.join(families)}"
        raise ConfigError(explain(str(run), got=f"a run of {config.model.family}", expected=expected))
    media = config.media.model_copy(update={**(changes or {}), "cache": None})  # it need not be here, either
    half = family.model.half_dtype
    wide = {} if quantised else {"quantization": None}
    return restored(kind, family.load, config, media, folders, half=half, device=device, dtype=dtype, **wide)
