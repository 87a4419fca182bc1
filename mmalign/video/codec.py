"""Clips to latents and back: a VAE of video, clip by clip, in float32."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmalign.diffusion.autoencoder import LatentCodec, Moments, on_device, weight_digest
from mmalign.files import fingerprint
from mmalign.likelihood.schedules import DeviceTable

__all__ = ["VideoCodec"]


class VideoCodec(LatentCodec):
    """A VAE of clips. Families whose VAE is called otherwise override `posterior` and `frames_of`.

    Args:
        load: reads the VAE in a dtype.
        device: where it works.
        home: where it waits between uses.
        dtype: of the run's frozen parts.
        tiling: whether large clips are worked on in tiles.
        at_mean: whether nothing but the mean is wanted of the posterior.
        origin: what it is called in notes.

    Attributes:
        note: what dtype was chosen.
    """

    def __init__(
        self,
        load: Callable[[torch.dtype], Any],
        *,
        device: torch.device,
        home: torch.device,
        dtype: torch.dtype,
        tiling: bool = False,
        at_mean: bool = False,
        origin: str = "the model's own VAE",
    ) -> None:
        self.tiling, self.at_mean = tiling, at_mean

        def prepared(wanted: torch.dtype) -> Any:
            vae = load(wanted)
            if tiling:
                vae.enable_tiling()
            return vae

        super().__init__(prepared, device=device, home=home, dtype=dtype)
        said = f"{str(self.dtype).removeprefix('torch.')}{', in tiles' if tiling else ''}"
        self.note = f"latents: {origin} in {said}, {'the mean' if at_mean else 'a sample'} of its posterior"

    def frames_of(
        self, latents: Float[Tensor, "1 channel frame height width"]
    ) -> Float[Tensor, "1 3 time picture_height picture_width"]:
        """The clip in [-1, 1] of unscaled latents."""
        clip: Tensor = self.module.decode(latents, return_dict=False)[0]
        return clip

    @torch.no_grad()
    def moments(self, clips: Shaped[Tensor, "row frame 3 height width"]) -> Moments:
        """Mean and standard deviation of the unscaled latents, clip by clip.

        Args:
            clips: pixels in [-1, 1], or bytes from 0 to 255.
        """

        def prepared(clip: Tensor) -> Tensor:
            placed = clip.to(self.device, non_blocking=True).to(self.wide)
            if not clip.is_floating_point():
                placed = placed / 127.5 - 1.0
            return placed.transpose(1, 2)

        found = self._moments(clips.split(1), prepared)
        if not self.at_mean:
            return found
        # The mean alone is kept where nothing else is wanted: half of a cache.
        return Moments(found.mean, found.mean.new_zeros(len(clips), 1, 1, 1, 1))

    def decode(
        self, latents: Float[Tensor, "row channel frame height width"]
    ) -> Float[Tensor, "row time 3 picture_height picture_width"]:
        """Clips in [0, 1] of scaled latents, float32, on the device; gradients flow where they are on.

        With gradients each clip is decoded again in the backward pass; the VAE then stays on the device.
        """
        placed = latents.to(self.device, self.wide)
        if torch.is_grad_enabled() and placed.requires_grad:
            with on_device(self.module.to(self.device), device=self.device, home=self.device):
                return torch.cat(
                    [checkpoint(self._clip_of, part, use_reentrant=False) for part in placed.split(1)]
                )
        with on_device(self.module, device=self.device, home=self.home):
            return torch.cat([self._clip_of(part) for part in placed.split(1)])

    def _clip_of(self, latents: Tensor) -> Tensor:
        clip = self.frames_of(self.unscale(latents).to(self.dtype)).transpose(1, 2)
        return (clip.to(torch.float32) / 2 + 0.5).clamp(0, 1)

    def _statistics(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(shift, factor), `[channel, 1, 1, 1]` where the config has statistics."""
        factor = float(self.config.get("scaling_factor") or 1.0)
        if self._tables is None:
            return float(self.config.get("shift_factor") or 0.0), factor
        mean, std = (table.on(latents.device, latents.dtype).view(-1, 1, 1, 1) for table in self._tables)
        return mean, factor / std

    @cached_property
    def _tables(self) -> tuple[DeviceTable, DeviceTable] | None:
        """Mean and standard deviation of latents per channel, if the VAE has them: no step waits for them."""
        mean, std = self.config.get("latents_mean"), self.config.get("latents_std")
        if mean is None or std is None:
            return None
        return DeviceTable(torch.tensor(mean, dtype=torch.float64)), DeviceTable(
            torch.tensor(std, dtype=torch.float64)
        )

    def fingerprint(self) -> str:
        """Identity of what turns clips into moments."""
        vae = self.module
        config = {name: value for name, value in self.config.items() if not name.startswith("_")}
        weights = weight_digest(vae.encoder), weight_digest(getattr(vae, "quant_conv", None))
        return fingerprint(config, str(self.dtype), *weights, self.tiling, self.at_mean)
