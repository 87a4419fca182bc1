"""Trained models as whole pipeline folders of diffusers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmalign.audio.cosine_sampler import COSINE_SCHEDULER, CosineSampler
from mmalign.audio.pipeline_source import AudioPipelineSource
from mmalign.diffusion.export import merged_network
from mmalign.files import atomic_directory, write_json

if TYPE_CHECKING:
    from mmalign.audio.family import AudioModel

__all__ = ["save_pipeline_folder"]


def save_pipeline_folder(model: "AudioModel", folder: str | Path) -> Path:
    """Write a pipeline folder for `from_pretrained`, adapters merged in. Returns the folder.

    Frozen parts are read again from where they came from, in float32; a VAE that the run put in the place of
    the model's own is written instead of it.

    Args:
        model: of a family whose checkpoints are pipeline folders.
        folder: replaced when it exists.
    """
    source: Any = model.source
    written = source.written_index if isinstance(source, AudioPipelineSource) else source.index
    with atomic_directory(folder) as partial:
        for name, entry in written.items():
            if not isinstance(entry, list | tuple) or entry[0] is None:
                continue
            part = _part(model, name)
            part.save_pretrained(str(partial / name))
            if isinstance(part, CosineSampler):
                settings = {key: value for key, value in part.config.items() if not key.startswith("_")}
                path = partial / name / "scheduler_config.json"
                write_json(path, {"_class_name": COSINE_SCHEDULER, **settings})
        write_json(partial / "model_index.json", {**written})
    return Path(folder)


def _part(model: "AudioModel", name: str) -> Any:
    """A part as it is written: the trained network in float32, all else as the source has it."""
    if name == model.network_part:
        return merged_network(model.bare_network).float().to("cpu")
    if name == "vae" and model.settings.vae is not None:
        return model.vae.to("cpu", torch.float32)
    plain = name.startswith(("tokenizer", "scheduler", "feature_extractor"))
    return model.source.part(name, dtype=None if plain else torch.float32)
