"""What families of video do differently: sizes, what the network is given, what comes back.

A family file overrides what differs; the rest of the package asks here and nowhere else. Latents are
`[channel, frame, height, width]` everywhere outside of a family's own calls.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from mmalign.diffusion.guided import GuidedModel
from mmalign.likelihood.schedules import Schedule, schedule_from_config

if TYPE_CHECKING:
    from mmalign.train.video_sections import VideoConfig

__all__ = ["PICTURED", "VideoTraits", "pictured"]

PICTURED = "pictured"
"""Name of the conditioning `[row]` that says which rows are told of their picture; all, where it is not."""


def pictured(
    conditioning: Mapping[str, Tensor], shown: Shaped[Tensor, "row ..."], otherwise: Tensor | float
) -> Shaped[Tensor, "row ..."]:
    """`shown` in the rows that are told of their picture, `otherwise` in those whose picture was dropped."""
    kept = conditioning.get(PICTURED)
    if kept is None:
        return shown
    return torch.where(kept.view(-1, *[1] * (shown.ndim - 1)), shown, otherwise)


class VideoTraits(GuidedModel):
    """The contract of a family file of video.

    Attributes:
        video: the run's `video` section.
        num_frames: of its clips.
        size: (height, width) of its clips, pixels.
        fps: of its clips.
    """

    video: "VideoConfig"
    num_frames: int
    size: tuple[int, int]
    fps: float

    network_part: ClassVar[str] = "transformer"
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    default_num_frames: ClassVar[int]
    """Frames of its clips unless the run says otherwise."""
    default_size: ClassVar[tuple[int, int]]
    """(height, width) of its clips, the same."""
    default_fps: ClassVar[float]
    """Frames per second of its clips, the same."""
    patch: ClassVar[int] = 1
    """Latents per token, along height and along width: latent sizes must be multiples of it."""
    default_posterior: ClassVar[Literal["sample", "mean"]] = "sample"
    """What the model was trained on."""
    time_axis: ClassVar[int] = 1
    """Of its latents, channels being axis 0: where labels in time lie."""
    fills_texts: ClassVar[bool] = True
    """Whether text states are filled up to `text_length` with zeros, which the network sees or is told of."""

    cleans_prompts: ClassVar[bool] = False
    """Whether the pipeline unescapes HTML in prompts and joins white space."""

    # --- sizes ----------------------------------------------------------------------------------------------

    @property
    def default_clip(self) -> tuple[int, tuple[int, int], float]:
        """(frames, (height, width), frames per second) unless the run says otherwise."""
        return self.default_num_frames, self.default_size, self.default_fps

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """(frames per latent frame, pixels per latent along one side) of a VAE's config."""
        return int(config["scale_factor_temporal"]), int(config["scale_factor_spatial"])

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        """Channels of the VAE's latents."""
        return int(config["latent_channels"] if "latent_channels" in config else config["z_dim"])

    @property
    def num_tokens(self) -> int:
        """Tokens of a clip's latents; what schedules that depend on the size count."""
        return self.latent_shape[1] * self.latent_shape[2] * self.latent_shape[3] // self.patch**2

    def _make_schedule(self) -> Schedule:
        # UniPC and its like call the shift of flow models by another name.
        shift = self.scheduler_config.get("flow_shift", self.scheduler_config.get("shift", 1.0))
        return schedule_from_config(
            {**self.scheduler_config, "shift": shift}, sequence_length=self.num_tokens
        )

    # --- pictures that clips go on from ---------------------------------------------------------------------

    @property
    def takes_images(self) -> bool | None:
        """Whether the checkpoint goes on from a picture: always, never, or None: as one likes."""
        return False

    def image_state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what `image_states` gives of one picture."""
        return {}

    def image_states(self, pictures: UInt8[Tensor, "row 3 height width"]) -> dict[str, Tensor]:
        """Conditioning `[row, ...]` of the pictures that clips go on from, as the network takes it."""
        del pictures
        return {}

    def begun(
        self, clean: Float[Tensor, "row channel frame height width"], states: Mapping[str, Tensor]
    ) -> Float[Tensor, "row channel frame height width"]:
        """Clean latents where a family holds the first frame to the picture; as they are, by default.

        That frame's error is exactly 0 and counts in the mean: a constant factor (F - 1) / F of F frames, the
        same for every row, as in labels in time.
        """
        del states
        return clean

    # --- the network ----------------------------------------------------------------------------------------

    def input_dtype(self, network: nn.Module) -> torch.dtype:
        """The dtype of the network's inputs: of its first weight that is not kept in float32."""
        kept = tuple(getattr(self.bare_network, "_keep_in_fp32_modules", None) or ())
        for name, parameter in network.named_parameters():
            if parameter.is_floating_point() and not any(part in name.split(".") for part in kept):
                return parameter.dtype
        return next(network.parameters()).dtype

    def network_inputs(
        self,
        noised: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """Every argument of the network.

        Args:
            noised: in the network's dtype.
            timestep: `network_time` of each row.
            conditioning: rows, floating point ones in the network's dtype.
        """
        return {"hidden_states": noised, "timestep": timestep, **self.network_arguments(conditioning)}

    def prediction_of(
        self,
        output: Tensor,
        noised: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, "row channel frame height width"]:
        """What the network gave, which is a prediction of the latents' shape."""
        del noised, timestep, conditioning
        return output

    def call_network(
        self,
        network: nn.Module,
        noised: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Tensor:
        """The network's first result, of `network_inputs`."""
        inputs = self.network_inputs(noised, timestep, conditioning)
        output: Tensor = network(**inputs, return_dict=False)[0]
        return output

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Whatever sampling needs besides the trained network, at hand meanwhile."""
        yield

    # --- files ----------------------------------------------------------------------------------------------

    def original_name(self, name: str) -> str | None:
        """A module's name in the model's own code, for ComfyUI; None where it has no name there."""
        del name
        return None

    def joined_layers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """An adapter as a model's own code has it, under whole names of its file; None: by `original_name`.

        Args:
            tensors: `<module in diffusers>.lora_A.weight` and `.lora_B.weight`, strength multiplied in.
        """
        del tensors
        return None

    def split_layers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """What `joined_layers` gave, under diffusers' names again; None for other files."""
        del tensors
        return None

    @abstractmethod
    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """As every family; `text_mask` [prompt, token], if given, says which tokens a cache keeps."""
