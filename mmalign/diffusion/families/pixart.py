"""PixArt-alpha and PixArt-Sigma: a noise-predicting transformer with T5 text and cross-attention.

The network is told which text tokens are padding, and answers with twice the channels (noise, then a learned
variance that is left alone). PixArt-alpha at 1024 pixels is told the picture size and aspect ratio too.
Prompts are lowered and stripped as the pipeline does; its further cleaning of web captions is not done. The
pipelines read no LoRA files: adapters are written in peft's own layout.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmalign.diffusion.family import ImageFamily, ImageModel
from mmalign.diffusion.loading import PartSource
from mmalign.errors import ConfigError, explain

__all__ = ["FAMILY", "PixArt"]

_TEXT_LENGTHS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


class PixArt(ImageModel):
    """A loaded PixArt-alpha or PixArt-Sigma."""

    family: ClassVar[str] = "pixart"
    network_part: ClassVar[str] = "transformer"
    network_class: ClassVar[str] = "PixArtTransformer2DModel"
    patch: ClassVar[int] = 2
    long_tokenizer: ClassVar[str | None] = "tokenizer"
    text_masks: ClassVar[bool] = True
    lowercase: ClassVar[bool] = True
    vae_overflows: ClassVar[bool] = True
    # Source: PixArt-alpha/PixArt-alpha train_scripts/train_pixart_lora_hf.py.
    adapter_targets: tuple[str, ...] = (
        "to_k",
        "to_q",
        "to_v",
        "to_out.0",
        "proj_in",
        "proj_out",
        "ff.net.0.proj",
        "ff.net.2",
        "proj",
        "linear",
        "linear_1",
        "linear_2",
    )

    def __init__(self, source: PartSource, *settings: Any, **options: Any) -> None:
        self.text_to_image = source.pipeline_class
        super().__init__(source, *settings, **options)

    @property
    def default_text_length(self) -> int:
        """120 for alpha, 300 for Sigma."""
        return _TEXT_LENGTHS[self.text_to_image]

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """The pipelines' own."""
        return 20, 4.5

    def sampler_options(self, guidance_scale: float) -> dict[str, Any]:
        """No second cleaning of prompts, and the size that was asked for."""
        plain = {"clean_caption": False, "use_resolution_binning": False}
        return {**super().sampler_options(guidance_scale), **plain}

    def check_network(self, network: Any) -> None:
        """The transformer takes the VAE's latents and answers with noise, or noise and variance.

        Raises:
            ConfigError: it does not.
        """
        config, channels = network.config, self.latent_shape[0]
        if config.in_channels != channels or config.out_channels not in (channels, 2 * channels):
            message = explain(
                f"model.source {self.settings.source}",
                got=f"a transformer from {config.in_channels} to {config.out_channels} channels",
                expected=f"from {channels} to {channels} or {2 * channels}",
            )
            raise ConfigError(message)
        self.told_sizes = bool(network.use_additional_conditions)

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`text` [prompt, token, channel] and `text_mask` [prompt, token], True where it is no padding."""
        ids, mask = tokens
        return {"text": encoders[0](ids, attention_mask=mask)[0], "text_mask": mask.bool()}

    def size_conditioning(
        self, geometry: Shaped[Tensor, "prompt candidate 6"]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(height, width) and aspect ratio of each picture, for the networks that are told them.

        Crops are square, so the ratio is 1; with `image.micro_conditioning: true` the size is the original's.
        """
        if not self.told_sizes:
            return {}, {}
        if self.image.micro_conditioning == "true":
            sizes = geometry[..., :2].to(torch.float32)
            return {}, {"resolution": sizes, "aspect_ratio": torch.ones_like(sizes[..., :1])}
        ratio = torch.ones(geometry.shape[0], 1, device=geometry.device)
        return {"resolution": (self.image.resolution * ratio).expand(-1, 2), "aspect_ratio": ratio}, {}

    def network_arguments(self, conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
        """Text states and their mask, and sizes as added conditions."""
        return {
            "encoder_hidden_states": conditioning["text"],
            "encoder_attention_mask": conditioning["text_mask"],
            "added_cond_kwargs": {name: conditioning.get(name) for name in ("resolution", "aspect_ratio")},
        }


FAMILY = ImageFamily(name="pixart", pipelines=("PixArtSigmaPipeline", "PixArtAlphaPipeline"), model=PixArt)
