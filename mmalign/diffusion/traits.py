"""What sets one family of diffusion models apart: names of its parts, its inputs, its habits.

A family file overrides what differs from a UNet with one text encoder; the rest of `DiffusionModel` asks here
and nowhere else. `ImageTraits` adds what only families of pictures have.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmalign.errors import ConfigError, explain
from mmalign.likelihood.schedules import Prediction, Schedule, schedule_from_config

if TYPE_CHECKING:
    from mmalign.diffusion.autoencoder import Autoencoder
    from mmalign.train.config import ImageConfig, ModelConfig

__all__ = ["FamilyTraits", "ImageTraits"]


class FamilyTraits(ABC):
    """The contract of a family file.

    Attributes:
        settings: the run's `model` section.
        notes: what was decided while loading, for the run's opening lines.
        text_parts_present: those of `text_parts` that the pipeline has.
        scheduler_class: the pipeline's own sampler.
        scheduler_config: its settings.
        prediction: what the network predicts.
        schedule: its noise schedule.
        latent_shape: of one sample as the run makes them.
        bare_network: the diffusers network itself.
    """

    settings: "ModelConfig"
    notes: list[str]
    text_parts_present: tuple[tuple[str, str], ...]
    scheduler_class: str
    scheduler_config: dict[str, Any]
    prediction: Prediction
    schedule: Schedule
    latent_shape: tuple[int, ...]
    bare_network: Any

    # --- names and habits -----------------------------------------------------------------------------------

    family: ClassVar[str]
    network_part: ClassVar[str] = "unet"
    """The trained network's name in the pipeline."""
    network_class: ClassVar[str] = "UNet2DConditionModel"
    """Its class in diffusers."""
    text_parts: ClassVar[tuple[tuple[str, str], ...]] = (("tokenizer", "text_encoder"),)
    """(tokenizer, encoder) names; those the pipeline lacks are left out."""
    long_tokenizer: ClassVar[str | None] = None
    """The T5 tokenizer, whose length is chosen (`model.text_length`) and not its own."""
    text_masks: ClassVar[bool] = False
    """Whether the network is told which text tokens are padding."""
    lowercase: ClassVar[bool] = False
    """Whether the pipeline lowers and strips prompts."""
    half_dtype: ClassVar[torch.dtype] = torch.float16
    """The half precision that the model is run in."""
    embeds_guidance: bool = False
    """Whether guidance is an input of the network: one call per step then, and no empty prompt."""
    adapter_targets: tuple[str, ...] | str = ("to_q", "to_k", "to_v", "to_out.0")

    # --- the network ----------------------------------------------------------------------------------------

    @abstractmethod
    def check_network(self, network: Any) -> None:
        """Raise `ConfigError` when the network is not this family's."""

    @abstractmethod
    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """Text conditioning `[prompt, ...]` of token ids, one tensor and one encoder per text part.

        With `text_masks` each tensor of ids is followed by its mask (1 where a token is no padding).
        """

    def network_arguments(self, conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
        """Keyword arguments of the network besides sample and timestep."""
        return {"encoder_hidden_states": conditioning["text"]}

    def network_time(self, timestep: Shaped[Tensor, " row"]) -> Shaped[Tensor, " row"]:
        """The network's own time input of one from 0 to 1000."""
        return timestep

    def input_dtype(self, network: nn.Module) -> torch.dtype:
        """The dtype of the network's inputs: of its first weight, since no adapter replaces it.

        Quantised weights are integers and say nothing of inputs.
        """
        return next(value.dtype for value in network.parameters() if value.is_floating_point())

    def pack(self, latents: Float[Tensor, "row channel *size"]) -> Float[Tensor, "row ..."]:
        """Latents as the network takes them; as they are, by default."""
        return latents

    def unpack(self, packed: Float[Tensor, "row ..."]) -> Float[Tensor, "row channel *size"]:
        """Inverse of `pack`."""
        return packed

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """(steps, guidance scale) that suit the model."""
        return 30, 7.5

    @property
    def suggested_timesteps(self) -> dict[str, Any]:
        """Settings of the run's `likelihood` section that fit how this model was trained."""
        return {"timesteps": "uniform"}

    @property
    def default_text_length(self) -> int:
        """Tokens that the pipeline gives its T5 encoder unless told otherwise."""
        return 256

    @property
    def adapter_pipeline(self) -> str | None:
        """Class name of the diffusers pipeline that users put adapters on; None where there is none."""
        return None

    def _make_schedule(self) -> Schedule:
        return schedule_from_config(self.scheduler_config)

    @property
    def trained_part(self) -> str:
        """The name of the network that this run trains; another one where a model has two experts."""
        return self.network_part

    # --- text lengths ---------------------------------------------------------------------------------------

    @property
    def text_length(self) -> int:
        """Tokens of the T5 encoder: the run's, else the pipeline's."""
        return self.settings.text_length or self.default_text_length

    def _token_lengths(self) -> tuple[int | None, ...]:
        """Length of each present tokenizer's output; None is its own.

        Raises:
            ConfigError: `model.text_length` is set for a family whose lengths are fixed.
        """
        if self.long_tokenizer is None and self.settings.text_length is not None:
            message = explain(
                "model.text_length",
                got=self.settings.text_length,
                expected=f"nothing: family {self.family} always takes its tokenizers' own length",
            )
            raise ConfigError(message)
        return tuple(
            self.text_length if name == self.long_tokenizer else None for name, _ in self.text_parts_present
        )

    def _check_class(self, network: Any) -> None:
        """Raise `ConfigError` unless the part is of the family's network class."""
        if type(network).__name__ != self.network_class:
            message = explain(
                f"model.source {self.settings.source}, part {self.network_part}",
                got=type(network).__name__,
                expected=self.network_class,
                do="Set model.family to the one that trains it: `mmalign families`.",
            )
            raise ConfigError(message)


class ImageTraits(FamilyTraits):
    """The contract of a family file of pictures.

    Attributes:
        text_to_image: class name of the diffusers pipeline that paints from text.
        image: the run's `image` section.
        autoencoder: the VAE.
    """

    image: "ImageConfig"
    autoencoder: "Autoencoder"

    text_to_image: str
    patch: ClassVar[int] = 1
    """Latents per token, along one side: the latent size must be a multiple of it."""
    vae_overflows: ClassVar[bool] = False
    """Whether a VAE that asks for `force_upcast` may give infinities in float16."""
    vae_remedy: ClassVar[str] = ""
    """What lets it run in float16 all the same."""

    def size_conditioning(
        self, geometry: Shaped[Tensor, "prompt candidate 6"]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(shared, per candidate) conditioning from image geometry; none by default."""
        del geometry
        return {}, {}

    @property
    def adapter_pipeline(self) -> str | None:
        """Whatever paints from text, though a refiner generates by another."""
        return self.text_to_image

    @property
    def generation_pipeline(self) -> str:
        """Class name of the diffusers pipeline that generates with this model."""
        return self.text_to_image

    @property
    def paints_over(self) -> bool:
        """Whether the model only reworks pictures (a refiner)."""
        return False

    def sampler_options(self, guidance_scale: float) -> dict[str, Any]:
        """Keyword arguments of the generating pipeline besides prompts, steps and noise."""
        length = {} if self.long_tokenizer is None else {"max_sequence_length": self.text_length}
        return {"guidance_scale": guidance_scale, **length}

    def _make_schedule(self) -> Schedule:
        return schedule_from_config(self.scheduler_config, sequence_length=self.num_image_tokens)

    @property
    def num_image_tokens(self) -> int:
        """Patches of a picture's latents; what resolution-dependent schedules count."""
        return self.latent_shape[1] * self.latent_shape[2] // self.patch**2
