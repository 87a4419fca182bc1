"""A VAE of pictures for clips: every frame on its own, as AnimateDiff and ModelScope's models have it."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.diffusion.autoencoder import Moments
from mmalign.video.codec import VideoCodec

__all__ = ["FrameCodec", "frame_ratios"]

_AT_ONCE = 4
"""Frames per call: at 512 pixels a float32 encode holds about half a gigabyte of feature maps per frame."""


def frame_ratios(config: Mapping[str, Any]) -> tuple[int, int]:
    """(1, pixels per latent along one side) of the config of a VAE of pictures."""
    return 1, int(2 ** (len(config["block_out_channels"]) - 1))


class FrameCodec(VideoCodec):
    """A VAE of pictures: latents `[channel, frame, height, width]`, one latent frame per frame."""

    def posterior(self, media: Float[Tensor, "1 3 frame height width"]) -> Moments:
        """Mean and standard deviation over unscaled latents `[1, channel, frame, ...]` of a clip's frames."""
        found = [self.module.encode(part).latent_dist for part in media[0].transpose(0, 1).split(_AT_ONCE)]
        mean, std = (
            torch.cat([getattr(gaussian, name) for gaussian in found]).transpose(0, 1).unsqueeze(0)
            for name in ("mean", "std")
        )
        return Moments(mean, std)

    def frames_of(
        self, latents: Float[Tensor, "1 channel frame height width"]
    ) -> Float[Tensor, "1 3 frame picture_height picture_width"]:
        """The clip in [-1, 1] of unscaled latents."""
        parts = latents[0].transpose(0, 1).split(_AT_ONCE)
        frames = torch.cat([self.module.decode(part, return_dict=False)[0] for part in parts])
        return frames.transpose(0, 1).unsqueeze(0)
