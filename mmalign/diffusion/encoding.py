"""From rows to latents and conditioning: what every diffusion model does with its data and its prompts.

A medium says what becomes of its clips or pictures (`cache_moments`, `_of_media`) and what its texts need;
prompt dropout, caches, prompts of a candidate's own and draws from the VAE's posterior are here, once.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mmalign.batch import Conditioning, PreferenceRow, RowKeys
from mmalign.data.config import ImageLimits
from mmalign.diffusion.autoencoder import LatentCodec, Moments
from mmalign.diffusion.examples import OWN, TextReader
from mmalign.diffusion.traits import FamilyTraits
from mmalign.seeding import row_normal, row_uniform
from mmalign.shapes import flatten_candidates, unflatten_candidates

__all__ = ["EncodesRows", "MediaSection"]


@runtime_checkable
class MediaSection(Protocol):
    """What the sections of all media have: `image`, `audio`, `video`.

    Attributes:
        prompt_dropout: share of rows trained with the empty prompt.
        cache: folder of encoded inputs.
    """

    @property
    def prompt_dropout(self) -> float:
        """Share of rows."""
        ...

    @property
    def cache(self) -> str | None:
        """Folder, or None."""
        ...


class EncodesRows(FamilyTraits):
    """How a loaded model reads and encodes rows and prompts.

    Attributes:
        device: where everything runs.
        dtype: of frozen parts.
        tokenizers: of the text parts that are present.
        autoencoder: media to latents and back.
        reader: rows to examples.
    """

    at_mean: bool = False
    """Encode media as the mean of the VAE's posterior, without the sample that training draws."""

    device: torch.device
    dtype: torch.dtype
    tokenizers: list[Any]
    autoencoder: LatentCodec
    reader: TextReader
    _empty_text: dict[str, Tensor] | None

    @property
    @abstractmethod
    def media(self) -> MediaSection:
        """The run's section of what this model makes."""

    @property
    @abstractmethod
    def encoders(self) -> list[Any]:
        """The text encoders, loaded when they are first needed."""

    @abstractmethod
    def encoders_ready(self) -> AbstractContextManager[None]:
        """Text encoders on the device meanwhile."""

    # --- data -----------------------------------------------------------------------------------------------

    @abstractmethod
    def _make_reader(self) -> TextReader:
        """What turns rows into examples, without any network."""

    def _text_reading(self) -> dict[str, Any]:
        """How the reader treats prompts: settings of `TextReader`."""
        return {
            "tokenizers": tuple(self.tokenizers),
            "lengths": self._token_lengths(),
            "masks": self.text_masks,
            "lowercase": self.lowercase,
        }

    def limit_images(self, limits: ImageLimits) -> None:
        """Nothing, by default: sound has no pictures, and clips have limits of their own."""
        del limits

    def example(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """Decoded and cut media, and prompts; on the CPU, decided by `key`.

        Raises:
            RowError: a medium cannot be read, or the cache lacks it.
        """
        return self.reader(row, key=key)

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One micro-batch of readable examples."""
        return self.reader.collate(examples)

    # --- encoding -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, collated: Mapping[str, Any], keys: RowKeys
    ) -> tuple[Float[Tensor, "prompt candidate channel *size"], Conditioning]:
        """Clean latents and conditioning of a micro-batch.

        Latents are sampled from the VAE's posterior per candidate (unless `at_mean`), text states computed
        once per prompt, and the prompt dropped for all candidates of a prompt together; every draw is decided
        by the rows' keys.
        """
        keys = keys.to(self.device)
        own = any(name.startswith(OWN) for name in collated)
        clean = self._drawn(self._moments_of(collated), keys, own=own)
        text = self._conditions(collated, keys, count=clean.shape[1])
        clean, told = self._of_media(collated, keys, clean)
        if own:
            return clean, Conditioning(shared=told.shared, per_candidate={**text, **told.per_candidate})
        return clean, Conditioning(shared={**text, **told.shared}, per_candidate=told.per_candidate)

    def _of_media(
        self, collated: Mapping[str, Any], keys: RowKeys, clean: Float[Tensor, "prompt candidate ..."]
    ) -> tuple[Float[Tensor, "prompt candidate ..."], Conditioning]:
        """Latents as they are trained on, and what the network is told of the media besides text."""
        del collated, keys
        return clean, Conditioning(shared=self._whole_media(clean.shape[0]))

    @torch.no_grad()
    def text_states(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Text conditioning `[prompt, ...]` in the frozen parts' dtype, on the device."""
        return self._states_of(self.reader.tokens(prompts))

    def cache_text(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Text states `[...]` of each prompt on its own, as a cache keeps them."""
        states = self.text_states(prompts)
        return [{name: value[number] for name, value in states.items()} for number in range(len(prompts))]

    @abstractmethod
    def cache_moments(self, inputs: Shaped[Tensor, "row ..."]) -> Moments:
        """Moments of media as the reader gives them, as a cache keeps them."""

    @property
    def numbers_per_entry(self) -> int:
        """What a cache keeps of one medium: mean and standard deviation of its latents."""
        return 2 * math.prod(self.latent_shape)

    def _states_of(self, tokens: Sequence[Tensor]) -> dict[str, Tensor]:
        with self.encoders_ready():
            placed = [ids.to(self.device, non_blocking=True) for ids in tokens]
            return self._placed(self.text_from_tokens(placed, self.encoders))

    def _placed(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Text states on the device, in the frozen parts' dtype; masks stay what they are."""
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for name, value in states.items()
        }

    def _drawn(
        self, moments: Moments, keys: RowKeys, *, own: bool
    ) -> Float[Tensor, "prompt candidate channel *size"]:
        """Scaled latents of moments `[prompt, candidate, ...]`: a sample per candidate, or the mean.

        Args:
            moments: of the posterior.
            keys: decide the sample.
            own: whether candidates have prompts of their own.
        """
        latents = moments.mean
        if not self.at_mean:
            # One medium under two prompts is one latent: where prompts differ, the sample does not.
            event = tuple(latents.shape[2:] if own else latents.shape[1:])
            draw = row_normal(keys.key, event, purpose="vae")
            latents = latents + moments.std * (draw.unsqueeze(1) if own else draw)
        return self.autoencoder.scale(latents)

    def _moments_of(self, collated: Mapping[str, Any]) -> Moments:
        """Moments `[prompt, candidate, ...]` from the cache's, or of the media."""
        if "latent_mean" in collated:
            wide = self.autoencoder.wide
            return Moments(*(collated[name].to(self.device, wide) for name in ("latent_mean", "latent_std")))
        inputs = collated[self.reader.media]
        flat, count = self.cache_moments(flatten_candidates(inputs)), inputs.shape[1]
        return Moments(unflatten_candidates(flat.mean, count), unflatten_candidates(flat.std, count))

    def _conditions(self, collated: Mapping[str, Any], keys: RowKeys, *, count: int) -> dict[str, Tensor]:
        """Text states `[prompt, ...]`, with own prompts `[prompt, candidate, ...]`; some prompts dropped."""
        own = any(name.startswith(OWN) for name in collated)
        text = self._own_text(collated, count) if own else self._text(collated)
        if self.media.prompt_dropout > 0:
            chance = row_uniform(keys.key, 1, purpose="caption_dropout").squeeze(1)
            text = self._drop(text, chance < self.media.prompt_dropout)
        return text

    def _text(self, collated: Mapping[str, Any]) -> dict[str, Tensor]:
        cached = {
            name.removeprefix("text."): value for name, value in collated.items() if name.startswith("text.")
        }
        if cached:
            return self._placed(cached)
        return self._states_of([collated[f"tokens_{number}"] for number in range(self.reader.num_tensors)])

    def _own_text(self, collated: Mapping[str, Any], count: int) -> dict[str, Tensor]:
        """Text states `[prompt, candidate, ...]` of candidates with prompts of their own."""
        own = {
            name.removeprefix(OWN): flatten_candidates(value)
            for name, value in collated.items()
            if name.startswith(OWN)
        }
        return {name: unflatten_candidates(value, count) for name, value in self._text(own).items()}

    def _drop(self, text: Mapping[str, Tensor], dropped: Bool[Tensor, " prompt"]) -> dict[str, Tensor]:
        """Text states with those of the empty prompt where `dropped`."""
        empty = self._empty_states()
        return {
            name: torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), empty[name], value)
            for name, value in text.items()
        }

    def _empty_states(self) -> dict[str, Tensor]:
        """Text states `[1, ...]` of the empty prompt, computed once."""
        if self._empty_text is None:
            self._empty_text = self._placed(self.reader.cached_text("") or self.text_states([""]))
        return self._empty_text

    @torch.no_grad()
    def prompt_conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning `[prompt, ...]` of prompts alone, as at inference: whole media of full size.

        Text states come from the cache where it has them; the rest is encoded.
        """
        cached = {prompt: self.reader.cached_text(prompt) for prompt in dict.fromkeys(prompts)}
        missing = [prompt for prompt, states in cached.items() if states is None]
        for prompt, states in zip(missing, self.cache_text(missing) if missing else [], strict=True):
            cached[prompt] = {name: value.unsqueeze(0) for name, value in states.items()}
        text = self._joined([self._placed(cached[prompt] or {}) for prompt in prompts])
        return Conditioning(shared={**text, **self._whole_media(len(prompts))}, per_candidate={})

    def _joined(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Text states `[1, ...]` of several prompts as one `[prompt, ...]`."""
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _meta_conditioning(self) -> Conditioning:
        """Conditioning of one prompt and candidate, for its shapes."""
        return Conditioning(shared={**self._empty_states(), **self._whole_media(1)})

    def _whole_media(self, num_prompts: int) -> dict[str, Tensor]:
        """What the network is told besides text, `[prompt, ...]`, of media that nothing was cut from."""
        del num_prompts
        return {}

    def guidance_conditioning(self) -> Conditioning:
        """What guidance contrasts with, `[1, ...]`: the empty prompt, as the pipeline has it."""
        return self.prompt_conditioning([""])
