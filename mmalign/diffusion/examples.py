"""From a row of a data set to tensors on the CPU: what a loader worker does for an image family.

An `ExampleReader` holds tokenizers and settings and no network, so that it can travel to worker processes.
With a cache it opens no image at all.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mmalign.batch import PreferenceRow
from mmalign.data.cache import LatentCache
from mmalign.diffusion.images import ImageLoader
from mmalign.errors import RowError, ShapeError

__all__ = ["OWN", "ExampleReader", "TextReader", "collate"]

OWN = "own_"
"""Before the names of tokens and text states `[candidate, ...]` of candidates with prompts of their own."""


def _own_prompts(row: PreferenceRow) -> list[str]:
    """The prompt of every candidate where one differs from the row's; empty where all answer the row's."""
    own = [row.prompt if candidate.prompt is None else candidate.prompt for candidate in row.candidates]
    return own if any(prompt != row.prompt for prompt in own) else []


@dataclass(frozen=True, kw_only=True)
class TextReader(ABC):
    """Turns rows into examples; of prompts it makes token ids, or finds what a cache knows of them.

    Args:
        tokenizers: of the pipeline, in the order of its encoders.
        cache: moments and text states by content, or None.
        lengths: tokens of each tokenizer's output; None is its own length, and an empty tuple None for all.
        masks: give each tensor of ids its mask as the next tensor.
        lowercase: lower and strip prompts first.
        padding: fill all prompts up to the tokenizer's length, or to that of the longest.

    Attributes:
        media: what decoded media are called in an example.
    """

    media: ClassVar[str]

    tokenizers: tuple[Any, ...]
    cache: LatentCache | None = None
    lengths: tuple[int | None, ...] = ()
    masks: bool = False
    lowercase: bool = False
    padding: Literal["max_length", "longest"] = "max_length"

    @abstractmethod
    def __call__(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """Decoded media or cached moments of a row, and its prompts; every choice is decided by `key`.

        Raises:
            RowError: a medium cannot be read, or the cache lacks the row.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One micro-batch of examples; rows with fewer candidates than others are filled up."""

    @property
    def num_tensors(self) -> int:
        """How many tensors `tokens` gives."""
        return len(self.tokenizers) * (2 if self.masks else 1)

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """Prompts as the pipeline gives them to its tokenizers."""
        return [prompt.lower().strip() for prompt in prompts] if self.lowercase else list(prompts)

    def tokens(self, prompts: Sequence[str]) -> list[Int[Tensor, "prompt _"]]:
        """Token ids, padded and cut to each tokenizer's length, with masks if asked."""
        texts = self.texts(prompts)
        tensors = []
        with warnings.catch_warnings():
            # Long prompts are cut on purpose; `mmalign data check` counts them.
            warnings.simplefilter("ignore")
            for number, tokenizer in enumerate(self.tokenizers):
                length = self.lengths[number] if self.lengths else None
                encoded = tokenizer(
                    texts,
                    padding=self.padding,
                    max_length=length or tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                )
                tensors.append(encoded.input_ids)
                if self.masks:
                    tensors.append(encoded.attention_mask)
        return tensors

    def cached_text(self, prompt: str) -> dict[str, Tensor] | None:
        """Text states `[1, ...]` of a prompt from the cache; None where there is none."""
        return None if self.cache is None else self.cache.text(prompt)


@dataclass(frozen=True, kw_only=True)
class ExampleReader(TextReader):
    """Turns rows into examples; calling it with a row gives tensors, decided by the row's key.

    Args:
        images: decodes, crops and flips.
    """

    images: ImageLoader
    media: ClassVar[str] = "pixels"

    def __call__(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """Pixels [candidate 3 height width] or cached moments, geometry, tokens or cached text states.

        Raises:
            RowError: an image cannot be read, or the cache lacks the row.
        """
        if self.cache is not None:
            return self._cached(self.cache, row, key)
        loaded = self.images.load(row, key=key)
        own = _own_prompts(row)
        tokens = self.tokens(own or [row.prompt])
        return {
            "pixels": loaded.pixels,
            "geometry": loaded.geometry,
            **{
                f"{OWN}tokens_{number}" if own else f"tokens_{number}": ids if own else ids[0]
                for number, ids in enumerate(tokens)
            },
        }

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As `collate`. Raises ShapeError."""
        return collate(examples)

    def _cached(self, cache: LatentCache, row: PreferenceRow, key: int) -> dict[str, Any]:
        own = _own_prompts(row)
        states = [cache.text(prompt) for prompt in own or [row.prompt]]
        text = [found for found in states if found is not None]
        if len(text) < len(states):
            message = (
                f"{row.source or row.id}: its prompt is not in the cache {cache.folder}. "
                "Run `mmalign data cache` on this config (it adds what is missing)."
            )
            raise RowError(message, reason="not_cached")
        flipped = self.images.augmentation(key).flip
        mean, std, geometry = cache.row(row, self.images, flipped=flipped)
        return {
            "latent_mean": mean,
            "latent_std": std,
            "geometry": geometry,
            **{
                f"{OWN}text.{name}" if own else f"text.{name}": (
                    torch.cat([states[name] for states in text]) if own else text[0][name][0]
                )
                for name in text[0]
            },
        }


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Examples stacked along a new leading prompt axis, shorter lists filled up with their first candidate.

    Raises:
        ShapeError: their pictures or texts have different sizes.
    """
    stacked: dict[str, Any] = {}
    examples = _of_one_length(_of_one_kind(examples))
    for name, first in examples[0].items():
        if not isinstance(first, Tensor):
            stacked[name] = [example[name] for example in examples]
            continue
        shapes = {tuple(example[name].shape) for example in examples}
        if len(shapes) > 1:
            message = (
                f"collate: rows of one micro-batch differ in {name}: shapes {sorted(shapes)}, expected one. "
                "Were they made with different resolutions or text lengths? train.batch_size: 1 takes them."
            )
            raise ShapeError(message)
        stacked[name] = torch.stack([example[name] for example in examples])
    return stacked


def _of_one_kind(examples: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The examples, a prompt that all candidates share repeated where another row has several."""
    if not any(name.startswith(OWN) for example in examples for name in example):
        return examples
    return [_repeated(example) for example in examples]


_OF_CANDIDATES = ("pixels", "geometry", "latent_mean", "latent_std", OWN)


def _of_one_length(examples: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The examples with equally many candidates; what fills up is marked by the labels and counts nowhere."""
    width = max(len(example["geometry"]) for example in examples)
    return [example if len(example["geometry"]) == width else _filled(example, width) for example in examples]


def _filled(example: Mapping[str, Any], width: int) -> dict[str, Any]:
    missing = width - len(example["geometry"])
    return {
        name: torch.cat([value, value[:1].expand(missing, *value.shape[1:])])
        if name.startswith(_OF_CANDIDATES)
        else value
        for name, value in example.items()
    }


def _repeated(example: Mapping[str, Any]) -> dict[str, Any]:
    count = len(example["geometry"])
    return {
        **{name: value for name, value in example.items() if not name.startswith(("tokens_", "text."))},
        **{
            f"{OWN}{name}": value.unsqueeze(0).expand(count, *value.shape)
            for name, value in example.items()
            if name.startswith(("tokens_", "text."))
        },
    }
