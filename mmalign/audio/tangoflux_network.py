"""TangoFlux's network: FLUX's transformer over latent frames, with what it makes of text and duration.

The projection of the pooled text and the embedding of the duration belong to the network: a frozen copy then
holds its own, full fine-tuning trains them, and adapters leave them as they are.
"""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioNumberConditioner
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["TangoFluxTransformer"]


class TangoFluxTransformer(FluxTransformer2DModel):  # type: ignore[misc]
    """The transformer and its two small inputs, under one name.

    Args:
        in_channels: of a latent frame.
        num_layers: blocks with separate weights for text and sound.
        num_single_layers: blocks with common ones.
        attention_head_dim: width of a head; 128, which the rotary embedding is made for.
        num_attention_heads: heads.
        joint_attention_dim: width of text states and of the duration's token.
        text_width: of the text encoder.
        max_duration: seconds; longer ones are told as this.

    Source: declare-lab/TangoFlux, tangoflux/model.py, `TangoFlux`.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 64,
        num_layers: int = 6,
        num_single_layers: int = 18,
        attention_head_dim: int = 128,
        num_attention_heads: int = 8,
        joint_attention_dim: int = 1024,
        text_width: int = 1024,
        max_duration: int | float = 30.0,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            pooled_projection_dim=text_width,
            guidance_embeds=False,
        )
        self.fc = nn.Sequential(nn.Linear(text_width, joint_attention_dim), nn.ReLU())
        self.duration_embedder = StableAudioNumberConditioner(text_width, 0, max_duration)

    def forward(
        self,
        hidden_states: Float[Tensor, "row frame channel"],
        *,
        timestep: Float[Tensor, " row"],
        encoder_hidden_states: Float[Tensor, "row token text"],
        text_mask: Bool[Tensor, "row token"],
        pooled: Float[Tensor, "row text"],
        seconds: Float[Tensor, " row"],
        return_dict: bool = True,
    ) -> Any:
        """The predicted velocity `[row, frame, channel]`, in a tuple or in diffusers' output.

        Args:
            hidden_states: noised latents.
            timestep: sigma, 0 to 1.
            encoder_hidden_states: text states.
            text_mask: tokens to look at; padding of a batch is not.
            pooled: mean of the text states over the real tokens.
            seconds: duration of the sound.
            return_dict: False gives a tuple.
        """
        duration = self.duration_embedder(seconds)
        text = torch.cat([encoder_hidden_states, duration.to(encoder_hidden_states.dtype)], dim=1)
        rows, frames, device = hidden_states.shape[0], hidden_states.shape[1], hidden_states.device
        seen = text_mask.new_ones(rows, 1 + frames)
        return super().forward(
            hidden_states=hidden_states,
            encoder_hidden_states=text,
            pooled_projections=self.fc(pooled),
            timestep=timestep,
            txt_ids=torch.zeros(text.shape[1], 3, device=device),
            img_ids=torch.arange(frames, device=device, dtype=torch.float32).unsqueeze(1).expand(-1, 3),
            joint_attention_kwargs={"attention_mask": torch.cat([text_mask, seen], dim=1)[:, None, None]},
            return_dict=return_dict,
        )
