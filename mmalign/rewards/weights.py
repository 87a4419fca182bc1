"""Where a reward's weights are: a folder of the user's, or the hub's cache; and their hashes."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import torch

from mmalign.errors import CheckpointError, ConfigError
from mmalign.rewards.card import Card, Weights

__all__ = ["FOLDER_VARIABLE", "Missing", "file_sha256", "find_weights", "hashes", "missing", "resolve"]

FOLDER_VARIABLE = "MMALIGN_REWARD_WEIGHTS"
"""Environment variable: a folder that holds `<repository's last part>/` for every model."""


@dataclass(frozen=True)
class Missing:
    """Weights that are not on this machine.

    Args:
        weights: which.
        command: what fetches them.
    """

    weights: Weights
    command: str


def find_weights(weights: Weights, *, folder: str | Path | None = None) -> Path | None:
    """The local folder that holds all files of `weights`, or None; nothing is downloaded.

    Looked for in `folder` (the folder itself, or its sub-folder of the repository's name), in such a
    sub-folder of the folder that MMALIGN_REWARD_WEIGHTS names, and in the cache at the pinned revision.
    """
    if folder is not None:
        found = _inside(Path(folder), weights, itself=True)
        if found is not None:
            return found
    named = os.environ.get(FOLDER_VARIABLE)
    found = _inside(Path(named), weights, itself=False) if named else None
    return found or _cached(weights)


def _inside(root: Path, weights: Weights, *, itself: bool) -> Path | None:
    """The sub-folder of `root` with the files, or `root` itself where that one model is what it is for."""
    candidates = [root / weights.repository, root / weights.repository.rpartition("/")[2]]
    for candidate in [*candidates, root] if itself else candidates:
        if candidate.is_dir() and _complete(candidate, weights.files):
            return candidate
    return None


def _complete(folder: Path, patterns: Iterable[str]) -> bool:
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return all(any(fnmatch(name, pattern) for name in names) for pattern in patterns)


def _cached(weights: Weights) -> Path | None:
    if weights.host != "hub":
        kept = _kept_folder(weights)
        return kept if kept.is_dir() and _complete(kept, weights.files) else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = snapshot_download(
            weights.repository,
            revision=weights.revision,
            allow_patterns=list(weights.files),
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    return Path(path) if _complete(Path(path), weights.files) else None


def resolve(weights: Weights, *, folder: str | Path | None = None, reward: str = "") -> Path:
    """The folder with the files, downloaded to the cache if they are nowhere.

    A `folder` that is given is the only place that is looked in: other weights never stand in for it.

    Raises:
        CheckpointError: they are nowhere and cannot be fetched; says where they were looked for and the
            command that fetches them.
        ConfigError: `folder` was given and lacks a file.
    """
    found = find_weights(weights) if folder is None else _inside(Path(folder), weights, itself=True)
    if found is not None:
        return found
    if folder is not None:
        message = (
            f"reward {reward or weights.repository}: {folder} lacks {', '.join(weights.files)} of "
            f"{weights.repository}. {_command(weights)} fetches them."
        )
        raise ConfigError(message)
    try:
        return _fetched(weights)
    except (OSError, ValueError) as error:  # offline, no such repository, gated, disk full
        message = (
            f"reward {reward or weights.repository}: the weights {weights.repository} are not on this "
            f"machine and cannot be fetched ({type(error).__name__}). Run `{_command(weights)}` where there "
            f"is a network, or set {FOLDER_VARIABLE} to a folder that holds them."
        )
        raise CheckpointError(message) from error


def _fetched(weights: Weights) -> Path:
    if weights.host != "hub":
        return _fetched_by_name(weights)
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(weights.repository, revision=weights.revision, allow_patterns=list(weights.files))
    )


def _kept_folder(weights: Weights) -> Path:
    return Path(torch.hub.get_dir()) / "mmalign" / weights.repository / (weights.revision or "main")


def _address(weights: Weights, name: str) -> str:
    if weights.host == "web":
        return f"{weights.address}/{quote(name)}"
    return f"https://github.com/{weights.repository}/raw/{weights.revision or 'main'}/{quote(name)}"


def _fetched_by_name(weights: Weights) -> Path:
    """Files by their names, each checked against its hash where the card knows it.

    Raises:
        OSError: no network, or HF_HUB_OFFLINE is set.
        CheckpointError: a file is not the published one.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        message = "HF_HUB_OFFLINE is set"
        raise OSError(message)
    folder = _kept_folder(weights)
    folder.mkdir(parents=True, exist_ok=True)
    for name in weights.files:
        address = _address(weights, name)
        try:
            torch.hub.download_url_to_file(
                address, str(folder / name), hash_prefix=weights.sha256.get(name), progress=False
            )
        except RuntimeError as error:
            message = f"{address} is not the file the card names ({error}). Download it by hand and compare."
            raise CheckpointError(message) from error
    return folder


def _command(weights: Weights) -> str:
    if weights.host != "hub":
        folder = weights.repository.rpartition("/")[2]
        return " && ".join(
            f"curl -L --create-dirs -o '{folder}/{name}' '{_address(weights, name)}'"
            for name in weights.files
        )
    pinned = f" --revision {weights.revision}" if weights.revision else ""
    included = " ".join(f"--include '{pattern}'" for pattern in weights.files)
    return f"hf download {weights.repository}{pinned} {included}"


def missing(card: Card, *, folder: str | Path | None = None) -> list[Missing]:
    """Weights of a reward that are not here, each with the command that fetches them."""
    return [
        Missing(weights, _command(weights))
        for weights in card.weights
        if find_weights(weights, folder=folder) is None
    ]


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file; remembered while its size and time of change stay."""
    path = Path(path).resolve()
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: str, _size: int, _changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(folder: Path, patterns: Iterable[str]) -> Mapping[str, str]:
    """File name to hash, of the files in `folder` that match, sorted by name."""
    wanted = list(patterns)
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(fnmatch(str(path.relative_to(folder)), pattern) for pattern in wanted)
    )
    return {name: file_sha256(folder / name) for name in names}
