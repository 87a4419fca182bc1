"""The image family contract over diffusers pipelines: everything that Stable Diffusion and its kin share.

A family file supplies what differs (`ImageTraits`): which pipelines it reads, how its text becomes
conditioning, what the network takes besides the noised latents. What pictures share with sound and clips is
in `DiffusionModel`; examples, VAE, sizes, sampling and saving of pictures are here, once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mmalign.batch import Conditioning, RowKeys
from mmalign.data.cache import CacheIdentity
from mmalign.data.config import ImageLimits
from mmalign.diffusion.autoencoder import Autoencoder, Moments
from mmalign.diffusion.examples import ExampleReader
from mmalign.diffusion.images import RESIZE_RULE, ImageLoader
from mmalign.diffusion.loading import PartSource, PipelineSource, load_autoencoder
from mmalign.diffusion.model import DiffusionModel
from mmalign.diffusion.traits import ImageTraits
from mmalign.errors import ConfigError, explain

if TYPE_CHECKING:
    from mmalign.train.config import ImageConfig, ModelConfig

__all__ = ["ImageFamily", "ImageModel"]


class ImageModel(DiffusionModel, ImageTraits):
    """A loaded pipeline of one family; what the training loop, the grids and the exporters work with.

    Args:
        source: where the parts come from.
        settings: the run's `model` section.
        image: the run's `image` section.
        device: where everything runs.
        dtype: of frozen parts.
        network_dtype: of the trained network (float32 for full fine-tuning); default `dtype`.
    """

    autoencoder: Autoencoder
    reader: ExampleReader

    def __init__(
        self,
        source: PartSource,
        settings: "ModelConfig",
        image: "ImageConfig",
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        network_dtype: torch.dtype | None = None,
    ) -> None:
        self.image = image
        super().__init__(source, settings, device=device, dtype=dtype, network_dtype=network_dtype)

    # --- parts ----------------------------------------------------------------------------------------------

    @property
    def media(self) -> "ImageConfig":
        """The run's `image` section."""
        return self.image

    def _load_codec(self) -> None:
        replacement = self.settings.vae

        def load(dtype: torch.dtype) -> Any:
            if replacement is None:
                return self._laid_out(self.source.part("vae", dtype=dtype))
            return self._laid_out(load_autoencoder(replacement, dtype=dtype))

        self.autoencoder = Autoencoder(
            load,
            device=self.device,
            home=self._home,
            dtype=self.dtype,
            overflows=self.vae_overflows,
            remedy=self.vae_remedy,
            origin="the model's own VAE" if replacement is None else f"VAE {replacement}",
        )
        self.notes.append(self.autoencoder.note)
        self.latent_shape = self._latent_shape()

    def _latent_shape(self) -> tuple[int, ...]:
        shrink, resolution = self.autoencoder.shrink, self.image.resolution
        multiple = shrink * self.patch
        if resolution % multiple:
            nearest = max(1, round(resolution / multiple)) * multiple
            patches = f" times the network's patch of {self.patch}" if self.patch > 1 else ""
            message = explain(
                "image.resolution",
                got=resolution,
                expected=f"a multiple of {multiple}, by which the VAE shrinks{patches}",
                do=f"The nearest is {nearest}.",
            )
            raise ConfigError(message)
        return (int(self.autoencoder.config["latent_channels"]), resolution // shrink, resolution // shrink)

    # --- data -----------------------------------------------------------------------------------------------

    def _make_reader(self) -> ExampleReader:
        image = self.image
        return ExampleReader(
            **self._text_reading(),
            images=ImageLoader(resolution=image.resolution, crop=image.crop, flip=image.flip),
        )

    def limit_images(self, limits: ImageLimits) -> None:
        """Refuse images beyond other sizes than the usual ones."""
        self.reader = replace(self.reader, images=replace(self.reader.images, limits=limits))

    # --- encoding -------------------------------------------------------------------------------------------

    def image_moments(self, pixels: UInt8[Tensor, "row 3 height width"]) -> Moments:
        """Mean and standard deviation of the unscaled latents, float32."""
        return self.autoencoder.moments(pixels)

    def cache_moments(self, inputs: UInt8[Tensor, "row 3 height width"]) -> Moments:
        """`image_moments`, under the name that all media have."""
        return self.image_moments(inputs)

    def _of_media(
        self, collated: Mapping[str, Any], keys: RowKeys, clean: Float[Tensor, "prompt candidate ..."]
    ) -> tuple[Float[Tensor, "prompt candidate ..."], Conditioning]:
        """The latents, and the sizes of their pictures."""
        del keys
        shared, per_candidate = self.size_conditioning(collated["geometry"].to(self.device))
        return clean, Conditioning(shared=shared, per_candidate=per_candidate)

    def _whole_media(self, num_prompts: int) -> dict[str, Tensor]:
        """Sizes of whole pictures at the run's resolution."""
        size = self.image.resolution
        geometry = torch.tensor([size, size, 0, 0, size, size], device=self.device)
        shared, own = self.size_conditioning(geometry.expand(num_prompts, 1, -1))
        return {**shared, **{name: value.squeeze(1) for name, value in own.items()}}

    def _meta_conditioning(self) -> Conditioning:
        """Of one picture, its sizes where training has them."""
        shared, per_candidate = self.size_conditioning(torch.zeros(1, 1, 6, device=self.device))
        return Conditioning(shared={**self._empty_states(), **shared}, per_candidate=per_candidate)

    def decode_pixels(
        self, latents: Float[Tensor, "row channel height width"]
    ) -> Float[Tensor, "row 3 picture_height picture_width"]:
        """Pictures in [0, 1] of scaled latents, float32, on the device; gradients flow where they are on."""
        return self.autoencoder.decode_pixels(latents)

    # --- generation, saving, identity -----------------------------------------------------------------------

    def sample(
        self, prompts: Sequence[str], *, seed: int, num_steps: int, guidance_scale: float, **options: Any
    ) -> list[Any]:
        """PIL images of prompts; the noise of prompt i depends on (seed, i) only. See `sampling.generate`."""
        from mmalign.diffusion.sampling import generate

        return generate(
            self, prompts, seed=seed, num_steps=num_steps, guidance_scale=guidance_scale, **options
        )

    def save_model(self, folder: str | Path) -> Path:
        """Write a whole pipeline folder, adapters merged in. Returns the folder."""
        from mmalign.diffusion.export import save_pipeline

        return save_pipeline(self, folder)

    def cache_identity(self) -> CacheIdentity:
        """What a cache of encoded inputs must have been made with to serve this model."""
        return CacheIdentity(
            vae=self.vae_fingerprint(),
            text=self.text_fingerprint(),
            resolution=self.image.resolution,
            resize=RESIZE_RULE,
        )


@dataclass(frozen=True)
class ImageFamily:
    """What the registry finds under a family's name.

    Args:
        name: as in configs.
        pipelines: class names of the diffusers pipelines it trains; the first reads single files.
        model: the class of its loaded models.
    """

    name: str
    pipelines: tuple[str, ...]
    model: type[ImageModel]

    def load(
        self,
        settings: "ModelConfig",
        image: "ImageConfig",
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        network_dtype: torch.dtype | None = None,
    ) -> ImageModel:
        """A model ready to train: frozen, in evaluation mode, on the device.

        Args:
            settings: the run's `model` section.
            image: the run's `image` section.
            device: where it runs.
            dtype: of the frozen parts.
            network_dtype: of the network; pass float32 for full fine-tuning, so that no bit of the checkpoint
                is lost on the way. Default `dtype`.

        Raises:
            ConfigError: nothing is there, it is another family's, or a part cannot be loaded.
        """
        source = PipelineSource(
            settings.source,
            pipelines=self.pipelines,
            family=self.name,
            network=(self.model.network_part, self.model.network_class),
            revision=settings.revision,
            variant=settings.variant,
            config_source=settings.config_source,
        )
        return self.model(source, settings, image, device=device, dtype=dtype, network_dtype=network_dtype)
