"""MPS: CLIP-H scores a picture by the prompt's words that bear on a condition.

Source: arXiv 2405.14705; Kwai-Kolors/MPS, trainer/models and eval_overall_mps_on_hpdv2.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.rewards.card import Card
from mmalign.rewards.checkpoints import blank, fill, read_state
from mmalign.rewards.pixels import Preprocessing
from mmalign.rewards.preference_attention import CrossModel, condition_mask
from mmalign.rewards.prompt_image import PromptImageReward
from mmalign.rewards.prompt_tokens import PromptTokens

__all__ = ["OVERALL_CONDITION", "ConditionedPreference", "MpsReward", "load_mps", "scaled_cosine"]

OVERALL_CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, "
    "instance, texture, quantity, attributes, position, number, location, word, things."
)
"""The one condition whose weights are released, as the evaluation script spells it."""

_PREFIX = "mps."


def scaled_cosine(
    text: Float[Tensor, "sample width"], image: Float[Tensor, "sample width"], log_scale: Float[Tensor, ""]
) -> Float[Tensor, " sample"]:
    """exp(log_scale) * cos(text, image), row by row, in float32 at least.

    Half precision would round scores near 20 to steps of 1/8.
    """
    fine = torch.promote_types(text.dtype, torch.float32)
    cosine: Tensor = F.cosine_similarity(text.to(fine), image.to(fine), dim=-1)
    return log_scale.to(fine).exp() * cosine


class ConditionedPreference(nn.Module):
    """MPS: score = exp(logit_scale) * cos(prompt's EOS feature, first image token after `CrossModel`).

    Both projections of CLIP run over all tokens; the image's tokens do not pass CLIP's last layer norm, which
    belongs to the pooled token. Each sample is scored as if alone.

    Args:
        clip: a transformers `CLIPModel`.
        cross_model: the tower on top.
    """

    def __init__(self, clip: Any, cross_model: CrossModel) -> None:
        super().__init__()
        self.model = clip
        self.cross_model = cross_model

    def text_features(
        self, ids: Int[Tensor, "sample token"]
    ) -> tuple[Float[Tensor, "sample token width"], Float[Tensor, "sample width"]]:
        """Projected features of every token, and of the pooled EOS token; no padding is masked."""
        found = self.model.text_model(input_ids=ids)
        project = self.model.text_projection
        return project(found.last_hidden_state), project(found.pooler_output)

    def forward(
        self,
        pixel_values: Float[Tensor, "sample 3 height width"],
        input_ids: Int[Tensor, "sample token"],
        condition_ids: Int[Tensor, "1 condition"],
        *,
        threshold: float = 0.3,
    ) -> Float[Tensor, " sample"]:
        """Scores, typically 5 to 20.

        Args:
            pixel_values: normalised pixels.
            input_ids: prompts, padded to the full length: the padding takes part.
            condition_ids: the condition, padded likewise.
            threshold: see `condition_mask`.
        """
        text, pooled = self.text_features(input_ids)
        condition, _ = self.text_features(condition_ids)
        hidden = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
        keep = condition_mask(text, condition[0], threshold=threshold)
        image = self.cross_model(self.model.visual_projection(hidden), text, keep)[:, 0]
        return scaled_cosine(pooled, image, self.model.logit_scale)


# ---------------------------------------------------------------------------------------------- loading


def load_mps(weights: Path, settings: Path, *, dtype: torch.dtype) -> ConditionedPreference:
    """The network with released weights, on the CPU, ready to score.

    CLIP's sizes come from `config.json`, the tower's from the weights.

    Args:
        weights: `model.safetensors` of RE-N-Y/mpsv1, or the state dict of the official module.
        settings: CLIP's `config.json`.
        dtype: of the network.

    Raises:
        CheckpointError: a key is missing, unexpected or of another shape, or a constant the network does not
            have is none.
    """
    from transformers import CLIPConfig, CLIPModel

    state = {name.removeprefix(_PREFIX): value for name, value in read_state(weights).items()}
    config = CLIPConfig.from_pretrained(str(settings))
    sizes = _sizes(state, where=str(weights))
    network = blank(lambda: ConditionedPreference(CLIPModel(config), CrossModel(**sizes)))
    fill(network, _without_constants(state, str(weights)), where=str(weights), ignored=("*.position_ids",))
    return network.to(dtype).eval().requires_grad_(False)


def _sizes(state: Mapping[str, Tensor], *, where: str) -> dict[str, int]:
    layers = {name.split(".")[2] for name in state if name.startswith("cross_model.layers.")}
    names = [f"cross_model.layers.0.0.fn.{part}.weight" for part in ("to_q", "to_kv", "ff.2")]
    absent = [name for name in names if name not in state]
    if absent:
        message = explain(
            where,
            got=f"[no key {absent[0]}]",
            expected="CLIP under model and MPS's tower under cross_model",
            do="Use model.safetensors of RE-N-Y/mpsv1.",
        )
        raise CheckpointError(message)
    query, shared, out = (state[name] for name in names)
    dim, dim_head = int(query.shape[1]), int(shared.shape[0]) // 2
    return {
        "dim": dim,
        "layers": len(layers),
        "heads": int(query.shape[0]) // dim_head,
        "dim_head": dim_head,
        "ff_mult": int(out.shape[1]) // dim,
    }


def _without_constants(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The state without buffers that are constants: biases of 0, and the rotary frequencies.

    They are checked, not skipped: another value would be another network.
    """
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        if not name.startswith("cross_model."):
            kept[name] = value
            continue
        if name.endswith(".norm.bias"):
            constant = torch.zeros_like(value)
        elif name.endswith(".rotary_emb.inv_freq"):
            width = 2 * len(value)
            constant = 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width)).to(value.dtype)
        else:
            kept[name] = value
            continue
        if not torch.allclose(value.float(), constant.float(), rtol=1e-2, atol=1e-6):
            message = explain(
                where, got=f"[other values in {name}]", expected="the constant it is as released"
            )
            raise CheckpointError(message)
    return kept


# ---------------------------------------------------------------------------------------------- the reward


class MpsReward(PromptImageReward):
    """MPS as a reward.

    Args:
        card: what it is.
        network: of `load_mps`.
        tokens: of prompts and of the condition.
        weights: file name to hash.
        device: where the network stands.
        dtype: of the network.
        threshold: see `condition_mask`.
        condition: what the score is about.

    Raises:
        ConfigError: the threshold leaves no token, or the condition does not fit.
    """

    network: ConditionedPreference

    def __init__(
        self,
        card: Card,
        network: ConditionedPreference,
        *,
        tokens: PromptTokens,
        weights: Mapping[str, str],
        device: str | torch.device,
        dtype: torch.dtype,
        threshold: float = 0.3,
        condition: str = OVERALL_CONDITION,
    ) -> None:
        if not 0.0 <= threshold < 1.0:
            message = explain(
                f"reward {card.name} option threshold", got=threshold, expected="0 <= threshold < 1"
            )
            raise ConfigError(message)
        row = tokens.encode(condition)
        if row.truncated:
            expected = f"at most {tokens.length} tokens"
            message = explain(f"reward {card.name} option condition", got=condition[:80], expected=expected)
            raise ConfigError(message)
        size = int(network.model.config.vision_config.image_size)
        super().__init__(
            card,
            network,
            tokens=tokens,
            preprocessing=Preprocessing(size=size, crop="floor"),
            weights=weights,
            device=device,
            dtype=dtype,
            options={"threshold": threshold, "condition": condition},
        )
        self.condition, self.threshold = row.ids[None].to(self.device), threshold

    def run(
        self,
        pixel_values: Float[Tensor, "sample 3 height width"],
        ids: Int[Tensor, "sample token"],
        mask: Int[Tensor, "sample token"],  # noqa: ARG002 - the padding takes part
    ) -> Float[Tensor, " sample"]:
        """Scores of normalised pixels and padded prompts."""
        return self.network(pixel_values, ids, self.condition, threshold=self.threshold)  # type: ignore[no-any-return]
