"""Which model it is: a hash of its files, and whether it is there before anything is painted."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.evals.adopted_pictures import adopted_folder, adopted_media
from mmalign.evals.suite import ModelSpec
from mmalign.rewards.weights import file_sha256

__all__ = ["model_fingerprint", "require_models", "require_on_hub", "require_unchanged", "run_of"]

_MODEL_FILES = (".safetensors", ".bin", ".pt", ".pth", ".json", ".yaml", ".model")
_VOCABULARIES = ("merges.txt", "vocab.txt")
_INDICES = ("model_index.json", "main_config.json")
"""Small files of which a repository of a model has one: diffusers' index, or Tango's settings."""
_RUN_CONFIG = "mmalign_config.yaml"
_CHECKPOINTS = "checkpoints"
_NOT_PAINTING = ("optimizer.safetensors", "state.json")


def model_fingerprint(spec: ModelSpec) -> str:
    """Hexadecimal hash of what paints: weights and configs of a folder, the commit of a hub id.

    Of a run folder: its configuration, the base model it trained, and the weights of its newest checkpoint
    (which its base side does not depend on).
    """
    run = run_of(spec.source)
    if run is None:
        content = _content(spec.source)
    else:
        folder, checkpoint = run
        configured = yaml.safe_load((folder / _RUN_CONFIG).read_text(encoding="utf-8"))
        base = str((configured.get("model") or {}).get("source") or "")
        content = [[_RUN_CONFIG, file_sha256(folder / _RUN_CONFIG)], *_content(base)]
        if spec.weights == "trained" and checkpoint is not None:
            content += [entry for entry in _content(str(checkpoint)) if entry[0] not in _NOT_PAINTING]
    text = json.dumps([spec.weights, content])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _content(source: str) -> list[list[str]]:
    """Names and hashes of a model's files, or id and commit on the hub; a renamed folder is the same."""
    path = Path(source)
    if path.is_file():
        return [[path.suffix, file_sha256(path)]]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        kept = [file for file in files if file.suffix in _MODEL_FILES or file.name in _VOCABULARIES]
        return [[file.relative_to(path).as_posix(), file_sha256(file)] for file in kept]
    return [[source, _hub_commit(source)]]


def run_of(source: str) -> tuple[Path, Path | None] | None:
    """(run folder, checkpoint) where `source` is a run or one of its checkpoints; else None."""
    from mmalign.train.checkpoint import find_latest

    path = Path(source)
    if (path / _RUN_CONFIG).is_file():
        return path, find_latest(path / _CHECKPOINTS)
    parent = path.parent.parent
    if path.parent.name == _CHECKPOINTS and (parent / _RUN_CONFIG).is_file():
        return parent, path
    return None


def _hub_commit(source: str) -> str:
    """The commit of a hub id that a load would take now; "unknown" where hub and cache do not tell.

    The small index is fetched first: before a download the cache knows no commit, after it another one, and
    what was painted in between would lie under a name that nobody looks for.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    for name in _INDICES:
        try:
            return Path(hf_hub_download(source, name)).parent.name
        except (OSError, ValueError, HFValidationError):  # no network, no such id or file, no id at all
            continue
    return "unknown"


def require_unchanged(spec: ModelSpec, fingerprint: str) -> None:
    """Refuse a model whose files are no longer those its pictures would be stored under.

    A run that still trains may save a checkpoint between the fingerprint and the load, and pictures of the
    new weights would lie under the name of the old ones.

    Raises:
        CheckpointError: names the model.
    """
    if model_fingerprint(spec) != fingerprint:
        message = (
            f"--model {spec.name}: {spec.source} changed while it was loaded; it may still be training. Name "
            "one of its checkpoints (RUN/checkpoints/...), or run again when it has ended."
        )
        raise CheckpointError(message)


def require_models(models: Sequence[ModelSpec]) -> None:
    """Refuse models that are not there, all of them before the first one paints.

    Raises:
        ConfigError: no such folder; a path that does not exist; a base side of what is no run.
        CheckpointError: a run without a complete checkpoint.
    """
    for spec in models:
        where = f"--model {spec.name}"
        path = Path(spec.source)
        adopted = adopted_folder(spec.source)
        if adopted is not None:
            if not adopted.is_dir():
                expected = f"a folder of {adopted_media(spec.source)}"
                raise ConfigError(explain(where, got=str(adopted), expected=expected))
            continue
        run = run_of(spec.source)
        if run is not None and run[1] is None:
            message = f"{where}: {path} is a run without a complete checkpoint yet. Let it train, run again."
            raise CheckpointError(message)
        # Ids of the hub are NAME or OWNER/NAME; all else can only be a path.
        looks_local = path.is_absolute() or spec.source.startswith((".", "~")) or spec.source.count("/") != 1
        if looks_local and not path.exists() and "/" in spec.source:
            expected = "a hub id, diffusers folder, run folder or .safetensors file that is there"
            raise ConfigError(explain(where, got=spec.source, expected=expected))


def require_on_hub(models: Sequence[ModelSpec]) -> None:
    """Refuse hub ids that neither the cache nor the hub knows, before the first model paints.

    Raises:
        ConfigError: names the model.
    """
    for spec in models:
        local = adopted_folder(spec.source) is not None or Path(spec.source).exists()
        if not local and _hub_commit(spec.source) == "unknown":
            message = explain(
                f"--model {spec.name}",
                got=spec.source,
                expected="a folder or file that is there, or a hub id that is cached or can be fetched",
            )
            raise ConfigError(message)
