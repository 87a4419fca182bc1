"""Pipelines of diffusers that make sound, as parts."""

from typing import Any

import torch

from mmalign.diffusion.opened_family import OpenSource
from mmalign.diffusion.pipeline_parts import SettingsSource
from mmalign.diffusion.pipeline_parts import pipeline_opener as opener

__all__ = ["AudioPipelineSource", "pipeline_opener"]


class AudioPipelineSource(SettingsSource):
    """Where the parts of one pipeline come from; one of its schedulers is ours."""

    def _part_of_folder(self, name: str, dtype: torch.dtype | None) -> Any:
        from mmalign.audio.cosine_sampler import COSINE_SCHEDULER, CosineSampler

        if (self.index.get(name) or ("", ""))[1] != COSINE_SCHEDULER:
            return super()._part_of_folder(name, dtype)
        # diffusers' own class cannot be made without a further library; its settings can be read.
        return CosineSampler.from_config(self.settings_of(name))


def pipeline_opener(family: str, pipelines: tuple[str, ...], network: tuple[str, str]) -> OpenSource:
    """`open_source` of a family of sound whose checkpoints are pipeline folders; see the one it calls."""
    return opener(family, pipelines, network, source_class=AudioPipelineSource)
