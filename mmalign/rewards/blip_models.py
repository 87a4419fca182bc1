"""ImageReward: BLIP reads the prompt while looking at the image, a linear head reads off one number.

Source: arXiv 2304.05977; zai-org/ImageReward (ImageReward/ImageReward.py, models/BLIP).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmalign.errors import CheckpointError, explain
from mmalign.rewards.checkpoints import blank, fill, read_state
from mmalign.rewards.prompt_image import PromptImageReward

__all__ = [
    "IMAGE_REWARD_MEAN",
    "IMAGE_REWARD_STD",
    "ImageReward",
    "ImageRewardNetwork",
    "LinearStack",
    "load_image_reward",
    "ranks",
    "standardise",
]

IMAGE_REWARD_MEAN = 0.16717362830052426
IMAGE_REWARD_STD = 1.0333394966054072

_WIDTHS = (1024, 128, 64, 16, 1)
_POSITIONS = (0, 2, 4, 6, 7)
"""Of the linear layers in the published sequence, which counts dropouts."""

_BLIP_HEAD_WIDTH = 64
"""Width of an attention head in both published BLIP vision towers (768 / 12, 1024 / 16)."""

_UNUSED = (
    "blip.vision_proj.*",  # contrastive heads of BLIP, not part of the score
    "blip.text_proj.*",
    "blip.text_encoder.embeddings.position_ids",  # a counter, not a weight
)


class LinearStack(nn.Module):
    """Width -> 1024 -> 128 -> 64 -> 16 -> 1 without any activation: [..., 1].

    The published heads of ImageReward and of the LAION aesthetic predictor have this form, with dropouts
    between the layers in training; keys are `layers.{0,2,4,6,7}`.

    Args:
        width: of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, *_WIDTHS)
        linear = {
            str(position): nn.Linear(sizes[number], sizes[number + 1])
            for number, position in enumerate(_POSITIONS)
        }
        self.layers = nn.ModuleDict(linear)

    def forward(self, features: Float[Tensor, "*sample width"]) -> Float[Tensor, "*sample 1"]:
        """The raw output."""
        for layer in self.layers.values():
            features = layer(features)
        return features


def standardise(raw: Float[Tensor, "*sample"]) -> Float[Tensor, "*sample"]:
    """The reward, (raw - mean) / std with the published constants: roughly -2.3 to 2 on generated images.

    Source: ImageReward/ImageReward.py.
    """
    return (raw - IMAGE_REWARD_MEAN) / IMAGE_REWARD_STD


def ranks(values: Float[Tensor, " sample"]) -> Int[Tensor, " sample"]:
    """Place of each value, 1 = highest; of equal values the earlier one is in front.

    The official ranking sorts unstably, so that equal rewards change places between runs; this one does not.
    """
    order = torch.argsort(values, descending=True, stable=True)
    return torch.argsort(order, stable=True) + 1


class ImageRewardNetwork(nn.Module):
    """Rewards of (image, prompt) pairs.

    h = the prompt's [CLS] state after cross-attention to all image tokens; reward = standardise(head(h)).

    Args:
        vision: a transformers `BlipVisionModel`.
        text: a `BlipTextModel` whose config says `is_decoder`, so that it has cross-attention.
        head: reads the reward off.
    """

    def __init__(self, vision: Any, text: Any, head: LinearStack) -> None:
        super().__init__()
        self.vision, self.text, self.mlp = vision, text, head

    @property
    def image_size(self) -> int:
        """Side of the picture it takes."""
        return int(self.vision.config.image_size)

    def forward(
        self,
        pixel_values: Float[Tensor, "sample 3 height width"],
        input_ids: Int[Tensor, "sample token"],
        attention_mask: Int[Tensor, "sample token"],
    ) -> Float[Tensor, " sample"]:
        """Standardised rewards.

        Args:
            pixel_values: normalised pixels.
            input_ids: BERT tokens with [CLS] in front, padded.
            attention_mask: 1 where a token counts.
        """
        image = self.vision(pixel_values=pixel_values).last_hidden_state
        # `is_decoder` in the config only makes the cross-attention exist; attention is bidirectional.
        found = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long, device=image.device),
            is_decoder=False,
        )
        features = found.last_hidden_state[:, 0].to(next(self.mlp.parameters()).dtype)
        return standardise(self.mlp(features)[:, 0])


# ---------------------------------------------------------------------------------------------- loading

_VISION_NAMES = (
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layers.\1.layer_norm1."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layers.\1.layer_norm2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
)


def _renamed(name: str) -> str | None:
    """The published name as transformers' BLIP calls it; None for names of neither."""
    if name.startswith("blip.visual_encoder."):
        rest = name.removeprefix("blip.visual_encoder.")
        for pattern, replacement in _VISION_NAMES:
            found, count = re.subn(pattern, replacement, rest)
            if count:
                return "vision." + found
        return None
    if name.startswith("blip.text_encoder."):
        return "text." + name.removeprefix("blip.text_encoder.")
    return name if name.startswith("mlp.") else None


def load_image_reward(weights: Path, settings: Path, *, dtype: torch.dtype) -> ImageRewardNetwork:
    """The network with the published weights, on the CPU, ready to score.

    Sizes of the vision tower come from the weights, those of the text tower from `med_config.json`.

    Args:
        weights: `ImageReward.pt`.
        settings: `med_config.json`.
        dtype: of the network.

    Raises:
        CheckpointError: a key is missing, unexpected or of another shape.
    """
    state = read_state(weights)
    network = _empty(state, json.loads(settings.read_text(encoding="utf-8")), where=str(weights))
    fill(network, state, where=str(weights), ignored=_UNUSED, rename=_renamed)
    network.vision.to(dtype)
    network.text.to(dtype)
    network.mlp.to(torch.promote_types(dtype, torch.float32))
    return network.eval().requires_grad_(False)


def _empty(state: Mapping[str, Tensor], text: Mapping[str, Any], *, where: str) -> ImageRewardNetwork:
    """The network of the sizes the checkpoint has."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    prefix = "blip.visual_encoder."
    needed = [prefix + name for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")]
    absent = [name for name in needed if name not in state]
    if absent:
        expected = "BLIP's vision tower under blip.visual_encoder"
        message = explain(where, got=f"[no key {absent[0]}]", expected=expected, do="Use ImageReward.pt.")
        raise CheckpointError(message)
    patches, positions, inner = (state[name] for name in needed)
    width, side = int(patches.shape[0]), int(patches.shape[-1])
    depth = len({name.split(".")[3] for name in state if name.startswith(prefix + "blocks.")})
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=int(inner.shape[0]),
        num_hidden_layers=depth,
        num_attention_heads=max(1, width // _BLIP_HEAD_WIDTH),
        image_size=round((positions.shape[1] - 1) ** 0.5) * side,
        patch_size=side,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        attention_dropout=0.0,
    )
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = BlipTextConfig(
        **{name: text[name] for name in (*names, "max_position_embeddings", "layer_norm_eps", "hidden_act")},
        encoder_hidden_size=width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        bos_token_id=text["vocab_size"] - 2,  # BLIP's [DEC]; it plays no part in the score
    )

    def build() -> ImageRewardNetwork:
        encoder = BlipTextModel(config, add_pooling_layer=False)
        return ImageRewardNetwork(BlipVisionModel(vision), encoder, LinearStack(int(text["hidden_size"])))

    return blank(build)


# ---------------------------------------------------------------------------------------------- the reward


class ImageReward(PromptImageReward):
    """ImageReward as a reward; the head works in float32 whatever the towers' dtype, as published."""

    network: ImageRewardNetwork

    def run(
        self,
        pixel_values: Float[Tensor, "sample 3 height width"],
        ids: Int[Tensor, "sample token"],
        mask: Int[Tensor, "sample token"],
    ) -> Float[Tensor, " sample"]:
        """Standardised rewards of normalised pixels and tokens."""
        found: Tensor = self.network(pixel_values, ids, mask)
        return found
