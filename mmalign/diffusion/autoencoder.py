"""The VAE of a pipeline: media to latents and back, in a dtype in which it does not overflow.

`LatentCodec` is what all media share, `Autoencoder` the one of pictures. SDXL's own VAE gives infinities in
float16, so it runs in float32 unless the fp16 fix replaces it; bfloat16 has too few bits for latents and is
never used. Loaded when first needed, freed on request, optionally kept on the CPU.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmalign.files import fingerprint

__all__ = ["Autoencoder", "LatentCodec", "Moments", "on_device", "weight_digest"]

_AT_ONCE = 4
"""Images per call: at 1024 pixels a float32 encode holds about 2 GB of feature maps per image."""


@dataclass(frozen=True)
class Moments:
    """The VAE's Gaussian over unscaled latents of each image.

    Args:
        mean: `[..., channel, height, width]`.
        std: of the same shape, positive; all axes but the first of size 1, and zero, where nobody samples.
    """

    mean: Float[Tensor, "*shape"]
    std: Float[Tensor, "..."]


@contextmanager
def on_device(*modules: Any, device: torch.device, home: torch.device) -> Iterator[None]:
    """Frozen modules on the device, outside of any autocast (which would undo the dtype chosen for them)."""
    travels = home != device
    for module in modules if travels else ():
        module.to(device)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module in modules if travels else ():
            module.to(home)


class LatentCodec:
    """A VAE that is there when it is needed; what turns media into its inputs is a subclass's.

    Args:
        load: reads the VAE in a dtype.
        device: where it works.
        home: where it waits between uses.
        dtype: of the run's frozen parts.

    Attributes:
        config: of the VAE.
        wide: float64 in runs of that dtype, else float32; what moments and latents are in.
        dtype: in which the VAE works.
    """

    def __init__(
        self,
        load: Callable[[torch.dtype], Any],
        *,
        device: torch.device,
        home: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._load, self.device, self.home = load, device, home
        self._vae: Any = load(torch.float32)
        self.config: Mapping[str, Any] = dict(self._vae.config)
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.dtype = self._working_dtype(dtype)
        self._vae = (self._vae if self.dtype == torch.float32 else load(self.dtype)).to(home)

    def _working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """In which the VAE works in a run of this dtype; wide unless a subclass knows better."""
        del dtype
        return self.wide

    @property
    def module(self) -> Any:
        """The VAE itself, loaded again if it was released."""
        if self._vae is None:
            self._vae = self._load(self.dtype).to(self.home)
        return self._vae

    def release(self) -> None:
        """Free its memory."""
        self._vae = None

    def posterior(self, media: Float[Tensor, "row ..."]) -> Any:
        """The distribution (`mean`, `std`) over unscaled latents of media as the VAE takes them."""
        return self.module.encode(media).latent_dist

    def _moments(self, parts: Iterable[Tensor], prepared: Callable[[Tensor], Tensor]) -> Moments:
        """Moments of media, part after part; `prepared(part)` is what the VAE takes, on the device."""
        means, stds = [], []
        with on_device(self.module, device=self.device, home=self.home):
            for part in parts:
                gaussian = self.posterior(prepared(part).to(self.dtype))
                means.append(gaussian.mean.to(self.wide))
                stds.append(gaussian.std.to(self.wide))
        return Moments(torch.cat(means), torch.cat(stds))

    def scale(self, latents: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Unscaled latents to what the network is trained on."""
        shift, factor = self._statistics(latents)
        return (latents - shift) * factor

    def unscale(self, latents: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Inverse of `scale`."""
        shift, factor = self._statistics(latents)
        return latents / factor + shift

    def _statistics(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(shift, factor): per channel where the config has statistics, else its two factors."""
        factor = float(self.config["scaling_factor"])
        mean, std = self.config.get("latents_mean"), self.config.get("latents_std")
        if mean is None or std is None:
            return float(self.config.get("shift_factor") or 0.0), factor
        return latents.new_tensor(mean).view(-1, 1, 1), factor / latents.new_tensor(std).view(-1, 1, 1)

    def fingerprint(self) -> str:
        """Identity of what turns media into moments: config, dtype and the encoder's weights."""
        vae = self.module
        config = {name: value for name, value in self.config.items() if not name.startswith("_")}
        return fingerprint(config, str(self.dtype), weight_digest(vae.encoder), weight_digest(vae.quant_conv))


class Autoencoder(LatentCodec):
    """The VAE of pictures.

    Args:
        load: reads the VAE in a dtype.
        device: where it works.
        home: where it waits between uses.
        dtype: of the run's frozen parts.
        overflows: whether it may give infinities in float16 when its config asks for `force_upcast`.
        remedy: what lets it run in float16 all the same, for the note.
        origin: what it is called in notes.

    Attributes:
        note: what dtype was chosen, and why.
    """

    def __init__(
        self,
        load: Callable[[torch.dtype], Any],
        *,
        device: torch.device,
        home: torch.device,
        dtype: torch.dtype,
        overflows: bool,
        origin: str,
        remedy: str = "",
    ) -> None:
        self._overflows = overflows
        super().__init__(load, device=device, home=home, dtype=dtype)
        why = ""
        if self._cannot_halve and dtype in (torch.float16, torch.bfloat16):
            why = f" (it may overflow in float16{f'; {remedy}' if remedy else ''})"
        self.note = f"latents: {origin} in {str(self.dtype).removeprefix('torch.')}{why}"

    @property
    def _cannot_halve(self) -> bool:
        return self._overflows and bool(self.config.get("force_upcast", True))

    def _working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """float16 in runs of half precision, where it does not overflow."""
        half = dtype in (torch.float16, torch.bfloat16) and self.device.type == "cuda"
        return torch.float16 if half and not self._cannot_halve else self.wide

    @property
    def shrink(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.config["block_out_channels"]) - 1))

    @torch.no_grad()
    def moments(self, pixels: UInt8[Tensor, "row 3 height width"]) -> Moments:
        """Mean and standard deviation of the unscaled latents, float32."""

        def prepared(part: Tensor) -> Tensor:
            return part.to(self.device, non_blocking=True).to(self.wide) / 127.5 - 1.0

        return self._moments(pixels.split(_AT_ONCE), prepared)

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "row channel latent_height latent_width"]
    ) -> UInt8[Tensor, "row 3 height width"]:
        """Pixels of scaled latents, on the CPU."""
        with on_device(self.module, device=self.device, home=self.home):
            pictures = [
                (self._pixels_of(part) * 255).round().to(torch.uint8).cpu()
                for part in latents.to(self.device, self.wide).split(_AT_ONCE)
            ]
        return torch.cat(pictures)

    def decode_pixels(
        self, latents: Float[Tensor, "row channel latent_height latent_width"]
    ) -> Float[Tensor, "row 3 height width"]:
        """Pixels in [0, 1] of scaled latents, float32, on the device; differentiable where gradients are on.

        With gradients each picture is decoded again in the backward pass, so that one picture's feature maps
        are held at a time; the VAE then stays on the device, where that pass looks for it.
        """
        placed = latents.to(self.device, self.wide)
        if torch.is_grad_enabled() and placed.requires_grad:
            with on_device(self.module.to(self.device), device=self.device, home=self.device):
                parts = placed.split(1)
                return torch.cat([checkpoint(self._pixels_of, part, use_reentrant=False) for part in parts])
        with on_device(self.module, device=self.device, home=self.home):
            return torch.cat([self._pixels_of(part) for part in placed.split(_AT_ONCE)])

    def _pixels_of(self, latents: Tensor) -> Tensor:
        values: Tensor = self.module.decode(self.unscale(latents).to(self.dtype)).sample
        return (values.to(torch.float32) / 2 + 0.5).clamp(0, 1)


def weight_digest(module: Any) -> list[float]:
    """Sums of a module's weights and of their squares, in float64."""
    if module is None:
        return []
    sums: list[float] = []
    for value in module.parameters():
        wide = value.detach().double()
        sums += [float(f"{wide.sum().item():.6e}"), float(f"{wide.square().sum().item():.6e}")]
    return sums
