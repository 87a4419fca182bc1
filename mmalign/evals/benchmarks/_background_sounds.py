"""A set of sounds that distances are taken from, beside the references of the prompts or instead.

FAD of music is taken from a large set of studio recordings, whatever was generated: such a set has nothing to
do with the prompts. Its name and the digest of its files stand in the names of the metrics.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.evals.adopted_pictures import is_sound
from mmalign.evals.audio.listeners import Listener, Loading
from mmalign.rewards.weights import file_sha256

__all__ = ["Background", "hear_background", "read_background"]


@dataclass(frozen=True)
class Background:
    """The files of a set.

    Args:
        name: of the folder, and the first digits of the digest of all files' bytes.
        files: in the order of their names.
    """

    name: str
    files: tuple[Path, ...]


def read_background(folder: str | Path) -> Background:
    """The sounds under a folder, named by their bytes: a set that was moved has its old name.

    Args:
        folder: with sounds, at any depth.

    Raises:
        ConfigError: there are fewer than two.

    Source: 1812.08466, section 2 (the reference statistics are of a background set of clean music).
    """
    root = Path(folder).expanduser()
    files = tuple(sorted(path for path in root.rglob("*") if is_sound(path))) if root.is_dir() else ()
    if len(files) < 2:
        got = f"{root} with {len(files)} sounds" if root.is_dir() else str(root)
        message = explain("options.background", got=got, expected="a folder with two sounds or more")
        raise ConfigError(message)
    hashes = "".join(sorted(file_sha256(path) for path in files))
    digest = hashlib.sha256(hashes.encode()).hexdigest()
    return Background(f"{root.resolve().name} {digest[:8]}", files)


def hear_background(
    listener: Listener, background: Background, loading: Loading
) -> tuple[Float[Tensor, "window feature"], list[str]]:
    """Features of all clips that could be heard, and why the others could not.

    Args:
        listener: what hears.
        background: the set.
        loading: how files of other rates are read.
    """
    heard = listener.hear(background.files, loading=loading)
    features = [one.features for one in heard if not isinstance(one, str)]
    problems = [one for one in heard if isinstance(one, str)]
    return (torch.cat(features) if features else torch.zeros(0, 0)), problems
