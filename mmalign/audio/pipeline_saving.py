"""Trained models of sound as whole pipeline folders of diffusers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.audio.cosine_sampler import COSINE_SCHEDULER, CosineSampler
from mmalign.diffusion.pipeline_parts import write_pipeline_folder
from mmalign.files import write_json

if TYPE_CHECKING:
    from mmalign.audio.family import AudioModel

__all__ = ["save_pipeline_folder"]


def save_pipeline_folder(model: "AudioModel", folder: str | Path) -> Path:
    """Write a pipeline folder for `from_pretrained`, adapters merged in. Returns the folder.

    Args:
        model: of a family whose checkpoints are pipeline folders.
        folder: replaced when it exists.
    """
    return write_pipeline_folder(model, folder, after=_name_the_librarys_scheduler)


def _name_the_librarys_scheduler(name: str, part: Any, folder: Path) -> None:
    del name
    if isinstance(part, CosineSampler):
        settings = {key: value for key, value in part.config.items() if not key.startswith("_")}
        write_json(folder / "scheduler_config.json", {"_class_name": COSINE_SCHEDULER, **settings})
