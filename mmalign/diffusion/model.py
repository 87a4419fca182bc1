"""What every loaded diffusion model shares, whatever it makes: parts, noise prediction, saving, identity.

Pictures, sound and clips differ in what becomes of a row's media, in the shape of a latent and in how a
latent becomes media again; `ImageModel`, `AudioModel` and their like add that. The rest is here and, of rows
and prompts, in `mmalign.diffusion.encoding`, once.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmalign.data.cache import CacheIdentity, LatentCache
from mmalign.diffusion.attention import AttentionReport, apply_attention
from mmalign.diffusion.autoencoder import on_device, weight_digest
from mmalign.diffusion.encoding import EncodesRows
from mmalign.diffusion.loading import PartSource
from mmalign.files import fingerprint
from mmalign.likelihood.schedules import Prediction, Schedule, prediction_from_config
from mmalign.train.quantization import quantize, report_of
from mmalign.train.recomputing import recompute_network

if TYPE_CHECKING:
    from mmalign.train.config import ModelConfig

__all__ = ["DiffusionModel"]

_REPEATED = ("TransformerBlock", "DiTBlock", "CogVideoXBlock")
"""How the classes of blocks end, of networks that do not say which of theirs are repeated."""


class DiffusionModel(EncodesRows):
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
    """

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

    @abstractmethod
    def _load_codec(self) -> None:
        """Set `autoencoder` and `latent_shape`, and say in `notes` what was decided."""

    # --- parts ----------------------------------------------------------------------------------------------

    def _load_network(self, dtype: torch.dtype) -> None:
        network = self.source.part(self.trained_part, dtype=dtype)
        self._check_class(network)
        self.check_network(network)
        self.attention: AttentionReport = apply_attention(
            network, self.settings.attention, device=self.device, dtype=self.dtype
        )
        self.notes.append(f"attention: {self.attention.detail}")
        if self.settings.quantization is not None:
            quantize(network, self.settings.quantization, dtype=dtype)
        if self.settings.gradient_checkpointing:
            way = ", selectively" if self.settings.gradient_checkpointing == "selective" else ""
            self.notes.append(f"gradient checkpointing: {self.recompute(network)} blocks{way}")
        if self.dtype == torch.float16 and self.half_dtype != self.dtype:
            remark = "in which this family may overflow: it is made for bfloat16"
            self.notes.append(f"precision: float16, {remark}")
        if self.settings.channels_last:
            self.notes.append("channels last: convolutions of network and VAE")
        self.bare_network: Any = self._laid_out(network.to(self.device))
        if self.settings.quantization is not None:
            self.notes.append(str(report_of(self.bare_network)))
        self.network: nn.Module = self.bare_network

    def _laid_out(self, module: Any) -> Any:
        """A network or VAE with its filters in the memory format of the run."""
        # In a new place even where nothing changes: not asked for, not touched.
        return module.to(memory_format=torch.channels_last) if self.settings.channels_last else module

    def repeated_blocks(self, network: nn.Module) -> list[nn.Module]:
        """What `model.compile` compiles: blocks that diffusers calls repeated, else of known kinds."""
        named = tuple(getattr(network, "_repeated_blocks", None) or _REPEATED)
        return [module for module in network.modules() if type(module).__name__.endswith(named)]

    def recompute(self, network: Any) -> int:
        """Recompute activations in the backward pass. Returns how many blocks do so. Raises ConfigError."""
        return recompute_network(network, self.settings.gradient_checkpointing)

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
        output = self.call_network(network, noised.to(dtype), self.network_time(timestep), ready)
        return self.prediction_of(output, noised, timestep, conditioning)

    def call_network(
        self,
        network: nn.Module,
        noised: Float[Tensor, "row channel *size"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Tensor:
        """The network's first result.

        Args:
            network: that is asked.
            noised: in the network's dtype.
            timestep: `network_time` of each row.
            conditioning: rows, floating point ones in the network's dtype.
        """
        arguments = self.network_arguments(conditioning)
        output: Tensor = network(self.pack(noised), timestep=timestep, return_dict=False, **arguments)[0]
        return output

    def prediction_of(
        self,
        output: Tensor,
        noised: Float[Tensor, "row channel *size"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, "row channel *size"]:
        """What the network gave, as a prediction of the latents' shape.

        Args:
            output: its first result.
            noised: as `denoise` was given it.
            timestep: from 0 to 1000, as `denoise` was given it.
            conditioning: as `denoise` was given it.
        """
        del timestep, conditioning
        # A learned variance follows the prediction as further channels; no objective here uses it.
        return self.unpack(output)[:, : noised.shape[1]]

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
