"""Models of video that were made of models of pictures: Stable Diffusion's VAE, text encoder and noise."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.video.codec import VideoCodec
from mmalign.video.family import VideoModel
from mmalign.video.frame_codec import FrameCodec, frame_ratios

__all__ = ["PictureModel"]


class PictureModel(VideoModel):
    """A UNet that was made of one of pictures: a VAE of pictures, one CLIP text encoder of a fixed length."""

    network_part: ClassVar[str] = "unet"
    half_dtype: ClassVar[torch.dtype] = torch.float16
    codec_class: ClassVar[type[VideoCodec]] = FrameCodec
    fills_texts: ClassVar[bool] = False

    def ratios(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """One latent frame per frame."""
        return frame_ratios(config)

    def check_network(self, network: Any) -> None:
        """The UNet takes the VAE's latents and nothing beside them.

        Raises:
            ConfigError: it does not.
        """
        channels = self.latent_shape[0]
        if (network.config.in_channels, network.config.out_channels) != (channels, channels):
            message = explain(
                f"model.source {self.settings.source}",
                got=f"a UNet from {network.config.in_channels} to {network.config.out_channels} channels",
                expected=f"from {channels} to {channels}, as the VAE has",
            )
            raise ConfigError(message)

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`text` [prompt, token, channel]: the encoder's last hidden state, final norm included."""
        return {"text": encoders[0](tokens[0])[0]}

    def network_inputs(
        self,
        noised: Float[Tensor, "row channel frame height width"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """The latents as `sample`."""
        return {"sample": noised, "timestep": timestep, **self.network_arguments(conditioning)}
