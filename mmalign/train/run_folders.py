"""Run folders found again: where a run lies, its checkpoint, and the configuration it was trained with."""

from pathlib import Path
from typing import Any

import yaml

from mmalign import registry
from mmalign.errors import CheckpointError, UnknownNameError, explain
from mmalign.train.checkpoint import find_latest
from mmalign.train.config import RUN_SECTIONS
from mmalign.train.sections import RunConfig

__all__ = ["locate_run", "read_run_config", "run_modality"]

_CONFIG_FILE = "mmalign_config.yaml"
_CHECKPOINTS = "checkpoints"


def locate_run(path: Path) -> tuple[Path, Path]:
    """(run folder, checkpoint folder) of a run or of one of its checkpoints.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint yet.
    """
    if (path / _CONFIG_FILE).is_file():
        newest = find_latest(path / _CHECKPOINTS)
        if newest is None:
            message = (
                f"{path}: this run has no complete checkpoint yet. Let it reach train.checkpoint_every steps."
            )
            raise CheckpointError(message)
        return path, newest
    parent = path.parent.parent
    if path.parent.name == _CHECKPOINTS and (parent / _CONFIG_FILE).is_file():
        return parent, path
    message = explain(
        f"run {path}",
        got="no mmalign_config.yaml",
        expected="a run folder (train.output), or RUN/checkpoints/step-NNNNNNNN",
    )
    raise CheckpointError(message)


def read_run_config(folder: Path) -> RunConfig:
    """The configuration a run wrote; prompts that it answered while training are left out.

    Raises:
        CheckpointError: it cannot be read.
    """
    content = _content(folder)
    try:
        modality = _modality(content)
        if modality == "language":
            # Their pictures need not be there any more.
            content = {**content, "answers": {}}
        return RUN_SECTIONS.get(modality, RunConfig).model_validate(content)
    except ValueError as error:
        message = f"{folder / _CONFIG_FILE}: cannot be read as the configuration of a run ({error})."
        raise CheckpointError(message) from error


def run_modality(path: Path) -> str:
    """What a run, or the run of a checkpoint, trained: image, language, ...

    Raises:
        CheckpointError: it is not a run.
    """
    return _modality(_content(locate_run(path)[0]))


def _content(folder: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        message = f"{folder / _CONFIG_FILE}: cannot be read as the configuration of a run ({error})."
        raise CheckpointError(message) from error
    return content if isinstance(content, dict) else {}


def _modality(content: dict[str, Any]) -> str:
    model = content.get("model")
    family = model.get("family") if isinstance(model, dict) else None
    try:
        return registry.modality(family) if isinstance(family, str) else "image"
    except UnknownNameError:  # the validation of the configuration complains of it
        return "image"
