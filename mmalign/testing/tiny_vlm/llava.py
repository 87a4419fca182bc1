"""LLaVA 1.5: a CLIP tower, a projector of two layers, Llama. And what its successors share with it."""

from typing import Any

from mmalign.testing.tiny_vlm.parts import VISION_WIDTH, TinyVlm, image_settings, llama_like, token_id
from mmalign.testing.tiny_vlm.templates import VICUNA
from mmalign.testing.tiny_vlm.tokenizer import TokenizerPlan

__all__ = ["LLAMA_ROLES", "LLAVA", "PATCH", "clip_tower"]

_SIDE, PATCH = 56, 14
LLAMA_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def clip_tower(side: int) -> dict[str, Any]:
    """Config of a CLIP tower for pictures of this side."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 2 * VISION_WIDTH,
        "projection_dim": VISION_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": PATCH,
    }


def _llava_config(tokenizer: Any) -> Any:
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config=clip_tower(_SIDE),
        text_config={"model_type": "llama", **llama_like(tokenizer, num_key_value_heads=4)},
        image_token_index=token_id(tokenizer, "<image>"),
        image_seq_length=(_SIDE // PATCH) ** 2,
    )


def _llava_processor(tokenizer: Any) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**image_settings(_SIDE)),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


LLAVA = TinyVlm(
    what="LLaVA 1.5: CLIP of the last layer but one without its class token, Llama",
    images=16,
    videos=None,
    tokenizer=TokenizerPlan(
        first=("<unk>", "<s>", "</s>"),
        last=("<image>", "<pad>"),
        roles=LLAMA_ROLES,
        named={"image_token": "<image>"},
        bos=True,
        padding_side="left",
    ),
    template=VICUNA,
    config=_llava_config,
    processor=_llava_processor,
    stops=("</s>",),
)
