"""What every loaded diffusion model shares, whatever it makes: parts, text, noise prediction, identity.

Pictures, sound and clips differ in what becomes of a row's media, in the shape of a latent and in how a
latent becomes media again; `ImageModel`, `AudioModel` and their like add that. The rest is here, once.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from mmalign.batch import Conditioning, PreferenceRow, RowKeys
from mmalign.data.cache import CacheIdentity, LatentCache
from mmalign.diffusion.attention import AttentionReport, apply_attention, enable_checkpointing
from mmalign.diffusion.autoencoder import LatentCodec, Moments, on_device, weight_digest
from mmalign.diffusion.examples import OWN, TextReader
from mmalign.diffusion.loading import PartSource
from mmalign.diffusion.traits import FamilyTraits
from mmalign.files import fingerprint
from mmalign.likelihood.schedules import Prediction, Schedule, prediction_from_config
from mmalign.seeding import row_normal, row_uniform
from mmalign.shapes import flatten_candidates, unflatten_candidates

if TYPE_CHECKING:
    from mmalign.train.config import ModelConfig

__all__ = ["DiffusionModel", "MediaSection"]


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


class DiffusionModel(FamilyTraits):
    """A loaded model of one family; what the training loop and the exporters work with.

    Args:
        source: where the parts come from.
        settings: the run's `model` section.
        device: where everything runs.
        dtype: of frozen parts.
        network_dtype: of the trained network (float32 for full fine-tuning); default `dtype`.

    Attributes:
        network: the trained UNet or transformer; the loop may replace it by its wrapped form.
        bare_network: the diffusers network itself, however the loop has wrapped `network`.
        notes: what was decided while loading, for the run's opening lines.
        attention: what the network's attention really runs on.
        autoencoder: media to latents and back.
        reader: rows to examples.
    """

    at_mean: bool = False
    """Encode media as the mean of the VAE's posterior, without the sample that training draws."""

    autoencoder: LatentCodec
    reader: TextReader

    def __init__(
        self,
        source: PartSource,
        settings: "ModelConfig",
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        network_dtype: torch.dtype | None = None,
    ) -> None:
        self.source, self.settings = source, settings
        self.device, self.dtype = torch.device(device), dtype
        self.notes: list[str] = []
        self.text_parts_present = tuple(pair for pair in self.text_parts if source.has(pair[1]))
        self.tokenizers: list[Any] = [source.part(name) for name, _ in self.text_parts_present]
        scheduler = source.part("scheduler")
        self.scheduler_class: str = type(scheduler).__name__
        self.scheduler_config: dict[str, Any] = dict(scheduler.config)
        self.prediction: Prediction = prediction_from_config(self.scheduler_config)
        self._encoders: list[Any] | None = None
        self._empty_text: dict[str, Tensor] | None = None
        self._load_codec()
        self.schedule: Schedule = self._make_schedule()
        self.reader = self._make_reader()
        if self.media.cache is not None:
            self.attach_cache(self.media.cache)
        self._load_network(network_dtype or dtype)

    @property
    @abstractmethod
    def media(self) -> MediaSection:
        """The run's section of what this model makes."""

    @abstractmethod
    def _load_codec(self) -> None:
        """Set `autoencoder` and `latent_shape`, and say in `notes` what was decided."""

    @abstractmethod
    def _make_reader(self) -> TextReader:
        """What turns rows into examples, without any network."""

    # --- parts ----------------------------------------------------------------------------------------------

    def _load_network(self, dtype: torch.dtype) -> None:
        network = self.source.part(self.trained_part, dtype=dtype)
        self._check_class(network)
        self.check_network(network)
        self.attention: AttentionReport = apply_attention(
            network, self.settings.attention, device=self.device, dtype=self.dtype
        )
        self.notes.append(f"attention: {self.attention.detail}")
        if self.settings.gradient_checkpointing:
            self.notes.append(f"gradient checkpointing: {self.recompute(network)} blocks")
        if self.dtype == torch.float16 and self.half_dtype != self.dtype:
            remark = "in which this family may overflow: it is made for bfloat16"
            self.notes.append(f"precision: float16, {remark}")
        self.bare_network: Any = network.to(self.device)
        self.network: nn.Module = self.bare_network

    def recompute(self, network: Any) -> int:
        """Recompute activations in the backward pass. Returns how many blocks do so. Raises ConfigError."""
        return enable_checkpointing(network)

    @property
    def _home(self) -> torch.device:
        """Where encoders wait between uses."""
        return torch.device("cpu") if self.settings.offload_encoders else self.device

    @property
    def vae(self) -> Any:
        """The VAE itself, loaded when it is needed."""
        return self.autoencoder.module

    @property
    def encoders(self) -> list[Any]:
        """The text encoders, loaded when they are first needed."""
        if self._encoders is None:
            parts = [self.source.part(name, dtype=self.dtype) for _, name in self.text_parts_present]
            self._encoders = [part.to(self._home) for part in parts]
        return self._encoders

    @contextmanager
    def encoders_ready(self) -> Iterator[None]:
        """Text encoders on the device, for the diffusers pipelines, which do not move them."""
        with on_device(*self.encoders, device=self.device, home=self._home):
            yield

    def release_encoders(self) -> None:
        """Free VAE and text encoders; they are loaded again if something needs them."""
        self.autoencoder.release()
        self._encoders = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # --- data -----------------------------------------------------------------------------------------------

    def attach_cache(self, folder: str | Path) -> None:
        """Take latents and text states from a folder made by `mmalign data cache`, and free the encoders."""
        self.reader = replace(self.reader, cache=LatentCache(folder, expect=self.cache_identity()))
        self._empty_text = None
        self.release_encoders()
        self.notes.append(f"latents and text states: cache {folder}")

    @abstractmethod
    def example(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """Decoded media of a row; on the CPU, decided by `key`. Raises RowError."""

    @abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One micro-batch of readable examples."""

    # --- encoding -------------------------------------------------------------------------------------------

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

    def _moments_of(self, collated: Mapping[str, Any], media: str) -> Moments:
        """Moments `[prompt, candidate, ...]` from the cache's, or of the media under a name."""
        if "latent_mean" in collated:
            wide = self.autoencoder.wide
            return Moments(*(collated[name].to(self.device, wide) for name in ("latent_mean", "latent_std")))
        inputs = collated[media]
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

    def _whole_media(self, num_prompts: int) -> dict[str, Tensor]:
        """What the network is told besides text, `[prompt, ...]`, of media that nothing was cut from."""
        del num_prompts
        return {}

    def guidance_conditioning(self) -> Conditioning:
        """What guidance contrasts with, `[1, ...]`: the empty prompt, as the pipeline has it."""
        return self.prompt_conditioning([""])

    # --- the network ----------------------------------------------------------------------------------------

    def denoise(
        self,
        noised: Float[Tensor, "row channel *size"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
        *,
        network: nn.Module | None = None,
    ) -> Float[Tensor, "row channel *size"]:
        """The network's prediction in its own space, with whatever adapters are on now.

        Args:
            noised: noised latents.
            timestep: what `schedule.network_time` says of each row's noise level, from 0 to 1000.
            conditioning: rows of what `encode` gave.
            network: another network of the same kind, for example a frozen copy; default the trained one.
        """
        network = self.network if network is None else network
        dtype = self.input_dtype(network)
        ready = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in conditioning.items()
        }
        output = network(
            self.pack(noised.to(dtype)),
            timestep=self.network_time(timestep),
            return_dict=False,
            **self.network_arguments(ready),
        )[0]
        # A learned variance follows the prediction as further channels; no objective here uses it.
        return self.unpack(output)[:, : noised.shape[1]]

    def _meta_conditioning(self) -> Conditioning:
        """Conditioning of one prompt and candidate, for its shapes."""
        return Conditioning(shared={**self._empty_states(), **self._whole_media(1)})

    def meta_inputs(self, num_rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs of `denoise` for `num_rows` rows on the meta device, for counting memory."""
        rows = {
            name: torch.empty(num_rows, *value.shape[1:], dtype=value.dtype, device="meta")
            for name, value in self._meta_conditioning().rows(1).items()
        }
        noised = torch.empty(num_rows, *self.latent_shape, dtype=self.autoencoder.wide, device="meta")
        level = self.schedule.network_time(self.schedule.timestep_at(torch.zeros(1)))
        return noised, torch.empty(num_rows, dtype=level.dtype, device="meta"), rows

    # --- saving, identity -----------------------------------------------------------------------------------

    def save_adapter(self, folder: str | Path) -> Path:
        """Write the adapter file that the ecosystem reads, with its settings, into a folder; returns it."""
        from mmalign.diffusion.adapter_files import save_adapter

        return save_adapter(self, folder)

    @abstractmethod
    def save_model(self, folder: str | Path) -> Path:
        """Write the whole model, adapters merged in. Returns the folder."""

    @abstractmethod
    def cache_identity(self) -> CacheIdentity:
        """What a cache of encoded inputs must have been made with to serve this model."""

    def vae_fingerprint(self) -> str:
        """Identity of what turns media into moments."""
        return self.autoencoder.fingerprint()

    def text_fingerprint(self) -> str:
        """Identity of what turns prompts into text states."""
        return fingerprint(
            self.family,
            str(self.dtype),
            [weight_digest(encoder) for encoder in self.encoders],
            # Families whose tokenizers have one length keep the fingerprint they always had.
            *([] if self.long_tokenizer is None else [self.text_length]),
        )
