"""Tango, Tango-Full and Tango 2: a UNet over latents of log-mel spectrograms, told what to make by FLAN-T5.

Official repositories and hub ids load as they are; so do folders that `save_model` wrote.

Source: declare-lab/tango; 2304.13731 (Tango), 2404.09956 (Tango 2).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmalign.audio.checkpoint import load_front_end_config, open_source
from mmalign.audio.family import AudioFamily
from mmalign.audio.mel import MelFrontEnd
from mmalign.audio.mel_model import MelModel
from mmalign.errors import ConfigError, explain

__all__ = ["DURATION", "FAMILY", "Tango"]

DURATION = 10.24
"""Seconds of the clips it was trained on: 1024 frames."""


class Tango(MelModel):
    """A loaded Tango."""

    family: ClassVar[str] = "tango"
    long_tokenizer: ClassVar[str | None] = "tokenizer"
    text_masks: ClassVar[bool] = True
    # FLAN-T5 overflows in float16.
    half_dtype: ClassVar[torch.dtype] = torch.bfloat16

    @property
    def default_text_length(self) -> int:
        """What the tokenizer says; texts are filled up to the longest of their batch and no further."""
        return min(512, int(self.tokenizers[0].model_max_length))

    @property
    def sampler_defaults(self) -> tuple[int, float]:
        """As `Tango.generate`; the papers evaluate with 200 steps."""
        return 100, 3.0

    def _load_codec(self) -> None:
        front = load_front_end_config(self.source)
        self.front = MelFrontEnd() if front is None else MelFrontEnd.from_config(front)
        replacement = self.settings.vae
        origin = "the model's own VAE" if replacement is None else f"VAE {replacement}"
        parts = self.source if replacement is None else open_source(replacement)
        self._open_codec(parts, origin=origin)

    def _default_duration(self) -> float:
        return DURATION

    def check_network(self, network: Any) -> None:
        """The UNet takes the VAE's latents and gives as many channels.

        Raises:
            ConfigError: it does not.
        """
        config, channels = network.config, self.latent_shape[0]
        if (config.in_channels, config.out_channels) != (channels, channels):
            message = explain(
                f"model.source {self.settings.source}",
                got=f"a UNet from {config.in_channels} to {config.out_channels} channels",
                expected=f"from {channels} to {channels}, as the VAE has",
            )
            raise ConfigError(message)

    def text_from_tokens(self, tokens: Sequence[Tensor], encoders: Sequence[Any]) -> dict[str, Tensor]:
        """`text` [prompt, token, channel] and `text_mask` [prompt, token], True where it is no padding."""
        ids, mask = tokens
        return {"text": encoders[0](ids, attention_mask=mask)[0], "text_mask": mask.bool()}

    def network_arguments(self, conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
        """Text states and their mask."""
        return {
            "encoder_hidden_states": conditioning["text"],
            "encoder_attention_mask": conditioning["text_mask"],
        }

    def save_model(self, folder: str | Path) -> Path:
        """Write a converted folder (safetensors of diffusers and transformers), adapters merged in."""
        from mmalign.audio.saving import save_converted

        return save_converted(self, folder)

    def save_official(self, folder: str | Path) -> Path:
        """Write an official repository, which Tango's own code reads, adapters merged in."""
        from mmalign.audio.saving import save_official

        return save_official(self, folder)


FAMILY = AudioFamily(name="tango", model=Tango, open_source=open_source, pipelines=("TangoPipeline",))
