"""Pipelines of diffusers that make sound, as parts: classes of the pipelines' own modules included."""

from typing import Any

import torch

from mmalign.diffusion.loading import HUB_ADVICE, PartSource, PipelineSource, told_as_settings

__all__ = ["AudioPipelineSource", "pipeline_opener"]


class AudioPipelineSource(PipelineSource):
    """Where the parts of one pipeline come from.

    `model_index.json` names classes that live beside a pipeline by its module, `audioldm2` for one; the
    library exports them, too. Nothing that is no part of diffusers or transformers is loaded.

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

    def _part_of_folder(self, name: str, dtype: torch.dtype | None) -> Any:
        from mmalign.audio.cosine_sampler import COSINE_SCHEDULER, CosineSampler

        if (self.index.get(name) or ("", ""))[1] != COSINE_SCHEDULER:
            return super()._part_of_folder(name, dtype)
        # diffusers' own class cannot be made without a further library; its settings can be read.
        return CosineSampler.from_config(self.settings_of(name))


def _beside_a_pipeline(library: object, class_name: object) -> bool:
    """Whether diffusers has the class, in the module of a pipeline of this name."""
    if not (isinstance(library, str) and isinstance(class_name, str) and library.isidentifier()):
        return False
    import diffusers

    found = getattr(diffusers, class_name, None)
    return found is not None and str(found.__module__).startswith(f"diffusers.pipelines.{library}.")


def pipeline_opener(family: str, pipelines: tuple[str, ...], network: tuple[str, str]) -> Any:
    """`open_source` of a family whose checkpoints are pipeline folders.

    Args:
        family: its name, for messages.
        pipelines: class names of the pipelines it reads.
        network: the trained network's name in the pipeline, and its class.
    """

    def open_source(
        source: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        config_source: str | None = None,
    ) -> PartSource:
        return AudioPipelineSource(
            source,
            pipelines=pipelines,
            family=family,
            network=network,
            revision=revision,
            variant=variant,
            config_source=config_source,
        )

    return open_source
