"""Whole pipeline folders of diffusers: their parts, settings of parts that are not loaded, writing them back.

Classes that live beside a pipeline are found, too; nothing that is no part of diffusers or transformers is
loaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmalign.diffusion.export import merged_network
from mmalign.diffusion.loading import HUB_ADVICE, PartSource, PipelineSource, told_as_settings
from mmalign.diffusion.model import DiffusionModel
from mmalign.diffusion.opened_family import OpenSource
from mmalign.files import atomic_directory, write_json

__all__ = ["SettingsSource", "pipeline_opener", "write_pipeline_folder"]


class SettingsSource(PipelineSource):
    """Where the parts of one pipeline come from, and what their settings are before they are loaded.

    `model_index.json` names classes that live beside a pipeline by its module, `audioldm2` for one; the
    library exports them, too.

    Attributes:
        written_index: `model_index.json` as it was found.
    """

    def __init__(self, source: str, **settings: Any) -> None:
        super().__init__(source, **settings)
        self.written_index = dict(self.index)
        for name, entry in self.written_index.items():
            if isinstance(entry, list | tuple) and len(entry) == 2 and _beside_a_pipeline(*entry):
                self.index[name] = ["diffusers", entry[1]]

    def settings_of(self, name: str) -> dict[str, Any]:
        """The settings of a network or scheduler, without its weights.

        Raises:
            ConfigError: there are none.
        """
        import diffusers
        from transformers import PretrainedConfig

        library, class_name = self.index.get(name) or ("diffusers", "ModelMixin")
        keywords = {"revision": self.revision} if self.kind == "hub" else {}
        with told_as_settings(f"model.source {self.source}, part {name}", HUB_ADVICE):
            if library == "transformers":
                return dict(PretrainedConfig.get_config_dict(self.source, subfolder=name, **keywords)[0])
            reader = diffusers.DDPMScheduler if name == "scheduler" else getattr(diffusers, class_name)
            return dict(reader.load_config(self.source, subfolder=name, **keywords))


def _beside_a_pipeline(library: object, class_name: object) -> bool:
    """Whether diffusers has the class, in the module of a pipeline of this name."""
    if not (isinstance(library, str) and isinstance(class_name, str) and library.isidentifier()):
        return False
    import diffusers

    found = getattr(diffusers, class_name, None)
    return found is not None and str(found.__module__).startswith(f"diffusers.pipelines.{library}.")


def pipeline_opener(
    family: str,
    pipelines: tuple[str, ...],
    network: tuple[str, str],
    *,
    source_class: type[SettingsSource] = SettingsSource,
) -> OpenSource:
    """`open_source` of a family whose checkpoints are pipeline folders.

    Args:
        family: its name, for messages.
        pipelines: class names of the pipelines it reads.
        network: the trained network's name in the pipeline, and its class.
        source_class: what reads the folder.
    """

    def open_source(
        source: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        config_source: str | None = None,
    ) -> PartSource:
        return source_class(
            source,
            pipelines=pipelines,
            family=family,
            network=network,
            revision=revision,
            variant=variant,
            config_source=config_source,
        )

    return open_source


def write_pipeline_folder(
    model: DiffusionModel,
    folder: str | Path,
    *,
    after: Callable[[str, Any, Path], None] | None = None,
) -> Path:
    """Write a pipeline folder for `from_pretrained`, adapters merged in. Returns the folder.

    Frozen parts are read again from where they came from, in float32; a VAE that the run put in the place of
    the model's own is written instead of it.

    Args:
        model: of a family whose checkpoints are pipeline folders.
        folder: replaced when it exists.
        after: called with each part's name, the part and its folder, when it is written.
    """
    source: Any = model.source
    written: dict[str, Any] = getattr(source, "written_index", source.index)
    with atomic_directory(folder) as partial:
        for name, entry in written.items():
            if not isinstance(entry, list | tuple) or entry[0] is None:
                continue
            part = _part(model, name)
            part.save_pretrained(str(partial / name))
            if after is not None:
                after(name, part, partial / name)
        write_json(partial / "model_index.json", {**written})
    return Path(folder)


def _part(model: DiffusionModel, name: str) -> Any:
    """A part as it is written: the trained network in float32, all else as the source has it."""
    if name == model.trained_part:
        return merged_network(model.bare_network).float().to("cpu")
    if name == "vae" and model.settings.vae is not None:
        return model.vae.to("cpu", torch.float32)
    plain = name.startswith(("tokenizer", "scheduler", "feature_extractor", "image_processor"))
    return model.source.part(name, dtype=None if plain else torch.float32)
