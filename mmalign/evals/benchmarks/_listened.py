"""What a network heard of answers and of their references."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.evals.audio.listeners import Heard, Listener, Loading
from mmalign.evals.base import Answer

__all__ = ["Listened", "file_of", "listen"]


@dataclass(frozen=True)
class Listened:
    """What one network heard; None where it could not.

    Args:
        clips: of every answer.
        references: of every answer, again for each of several answers to an item.
        of_items: every reference once.
        problems: why something was not heard.
    """

    clips: Sequence[Heard | None]
    references: Sequence[Heard | None]
    of_items: Sequence[Heard | None]
    problems: tuple[str, ...]

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Features of all clips and of all references, each reference once."""
        return _features(self.clips), _features(self.of_items)

    def paired(self) -> list[int]:
        """Places of which both sides were heard."""
        pairs = enumerate(zip(self.clips, self.references, strict=True))
        return [place for place, (one, other) in pairs if one is not None and other is not None]


def _features(heard: Sequence[Heard | None]) -> Tensor:
    kept = [one.features for one in heard if one is not None]
    return torch.cat(kept) if kept else torch.zeros(0, 0)


def listen(listener: Listener, answers: Sequence[Answer], loading: Loading) -> Listened:
    """Every answer and its reference, in order."""
    references: dict[str, Heard | None] = {}
    clips: list[Heard | None] = []
    problems: dict[str, None] = {}

    def heard(media: Any) -> Heard | None:
        (found,) = listener.hear([file_of(media)], loading=loading)
        if isinstance(found, str):
            problems[found] = None
            return None
        return found

    for answer in answers:
        made = answer.error is None and answer.media
        clips.append(heard(answer.media[0]) if made else None)
        if answer.item.id not in references:
            references[answer.item.id] = heard(answer.item.media[0]) if answer.item.media else None
    each = [references[answer.item.id] for answer in answers]
    return Listened(clips, each, list(references.values()), tuple(problems))


def file_of(media: Any) -> str | Path | bytes:
    """The file or the bytes of a sound.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(media, str | Path | bytes):
        message = explain("answer", got=type(media).__name__, expected="the file or the bytes of a sound")
        raise ConfigError(message)
    return media
