"""Rows of media in time to examples and micro-batches, on the CPU: what sound and video share.

A `ClipReader` holds tokenizers and settings and no network, so that it can travel to worker processes. Texts
are tokenised when rows meet in a micro-batch: they are filled up to the longest of them, or to a fixed length
where the network looks at all its tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.diffusion.examples import OWN, TextReader
from mmalign.errors import RowError

__all__ = ["ClipReader", "filled_up", "padded"]


def filled_up(value: Tensor, width: int) -> Tensor:
    """`[candidate, ...]` with its first entry repeated up to `width`."""
    missing = width - len(value)
    if missing <= 0:
        return value
    return torch.cat([value, value[:1].expand(missing, *value.shape[1:])])


def padded(rows: Sequence[Mapping[str, Tensor]], *, least: int = 0) -> dict[str, Tensor]:
    """Text states `[1, token, ...]` of several prompts as `[prompt, token, ...]`, filled up with zeros.

    Entries without a token axis (pooled states, `[1, channel]`) are stacked as they are; masks end in False.

    Args:
        rows: one per prompt.
        least: tokens that there are at least.
    """
    joined = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in ("text", "text_mask"):
            length = max(least, *(value.shape[1] for value in values))
            values = [
                torch.cat([value, value.new_zeros(1, length - value.shape[1], *value.shape[2:])], dim=1)
                for value in values
            ]
        joined[name] = torch.cat(values)
    return joined


@dataclass(frozen=True, kw_only=True)
class ClipReader(TextReader):
    """Turns rows into examples, and examples into micro-batches.

    Args:
        clips: reads, names and decodes the media of a row (`mmalign.data.cache.CandidateLoader`).
        text_room: tokens that texts are filled up to at least.

    Attributes:
        media: what decoded media are called in an example.
    """

    clips: Any
    text_room: int = 0
    media: ClassVar[str] = "waves"

    def __call__(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """Decoded media `[candidate, ...]` or cached moments, and the prompt (or one per candidate).

        Raises:
            RowError: a clip cannot be read, or the cache lacks the row.
        """
        own = [row.prompt if candidate.prompt is None else candidate.prompt for candidate in row.candidates]
        prompts = own if any(prompt != row.prompt for prompt in own) else [row.prompt]
        shared = {"prompts": prompts, "own": len(prompts) > 1 or prompts[0] != row.prompt}
        if self.cache is None:
            return {**self.decoded(row, key=key), **shared}
        mean, std, geometry = self.cache.row(row, self.clips, flipped=False)
        self._require_texts(row, prompts)
        return {"latent_mean": mean, "latent_std": std, "geometry": geometry, **shared}

    def decoded(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """The media of a row under their name, and their `geometry`; every choice is decided by `key`.

        Raises:
            RowError: a clip cannot be read.
        """
        del key
        loaded = self.clips.load(row)
        return {self.media: loaded.inputs, "geometry": loaded.geometry}

    def _require_texts(self, row: PreferenceRow, prompts: Sequence[str]) -> None:
        """Raise `RowError` unless the cache knows the prompts."""
        if self.cache is not None and any(self.cache.text(prompt) is None for prompt in prompts):
            message = (
                f"{row.source or row.id}: its prompt is not in the cache {self.cache.folder}. "
                "Run `mmalign data cache` on this config (it adds what is missing)."
            )
            raise RowError(message, reason="not_cached")

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One micro-batch: media or moments stacked, texts tokenised and filled up to the longest.

        Rows with fewer candidates than others are filled up with their first; labels say what counts.
        """
        width = max(len(example["geometry"]) for example in examples)
        stacked: dict[str, Any] = {
            name: torch.stack([filled_up(example[name], width) for example in examples])
            for name, value in examples[0].items()
            if isinstance(value, Tensor)
        }
        if not any(example["own"] for example in examples):
            return {**stacked, **self._texts([example["prompts"][0] for example in examples])}
        texts: list[str] = []
        for example in examples:
            own = (
                list(example["prompts"]) if example["own"] else example["prompts"] * len(example["geometry"])
            )
            texts += own + own[:1] * (width - len(own))
        found = self._texts(texts)
        return {
            **stacked,
            **{f"{OWN}{name}": value.unflatten(0, (-1, width)) for name, value in found.items()},
        }

    def _texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Tokens of prompts, or their cached states, filled up to the longest."""
        if self.cache is not None:
            states = [self.cache.text(prompt) or {} for prompt in prompts]
            return {f"text.{name}": value for name, value in padded(states, least=self.text_room).items()}
        return {f"tokens_{number}": ids for number, ids in enumerate(self.tokens(prompts))}
