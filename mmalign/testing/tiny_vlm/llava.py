"""The LLaVA line: CLIP or SigLIP towers, a two-layer projector and a Llama, Mistral or Qwen2 model."""

from typing import Any

from mmalign.testing.tiny_vlm.parts import VISION_WIDTH, TinyVlm, image_settings, llama_like, token_id
from mmalign.testing.tiny_vlm.templates import VICUNA
from mmalign.testing.tiny_vlm.tokenizer import TokenizerPlan

__all__ = ["LLAVA"]

_SIDE, _PATCH = 56, 14
_LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def _clip_tower(side: int = _SIDE) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 2 * VISION_WIDTH,
        "projection_dim": VISION_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": _PATCH,
    }


def _llava_config(tokenizer: Any) -> Any:
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config=_clip_tower(),
        text_config={"model_type": "llama", **llama_like(tokenizer, num_key_value_heads=4)},
        image_token_index=token_id(tokenizer, "<image>"),
        image_seq_length=(_SIDE // _PATCH) ** 2,
    )


def _llava_processor(tokenizer: Any) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**image_settings(_SIDE)),
        tokenizer=tokenizer,
        patch_size=_PATCH,
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
        roles=_LLAMA_TOKENS,
        named={"image_token": "<image>"},
        bos=True,
        padding_side="left",
    ),
    template=VICUNA,
    config=_llava_config,
    processor=_llava_processor,
    stops=("</s>",),
)
