"""Gemma 3 and PaliGemma: SigLIP, and attention that is not causal everywhere."""

from typing import Any

from mmalign.testing.tiny_vlm.parts import VISION_WIDTH, WIDTH, TinyVlm, llama_like, token_id
from mmalign.testing.tiny_vlm.templates import GEMMA
from mmalign.testing.tiny_vlm.tokenizer import TokenizerPlan

__all__ = ["GEMMA3", "PALIGEMMA", "PALIGEMMA2"]

_PATCH = 14
_FIRST = ("<pad>", "<eos>", "<bos>", "<unk>")
_ROLES = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}


def _siglip_tower(side: int, **changed: Any) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 2 * VISION_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": _PATCH,
        "vision_use_head": False,
        **changed,
    }


def _gemma3_config(tokenizer: Any) -> Any:
    from transformers import Gemma3Config

    return Gemma3Config(
        vision_config=_siglip_tower(84),
        text_config=llama_like(
            tokenizer,
            num_hidden_layers=6,
            head_dim=16,
            query_pre_attn_scalar=16,
            # Shorter than an image: its block reaches farther than the window.
            sliding_window=6,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        mm_tokens_per_image=9,
        boi_token_index=token_id(tokenizer, "<start_of_image>"),
        eoi_token_index=token_id(tokenizer, "<end_of_image>"),
        image_token_index=token_id(tokenizer, "<image_soft_token>"),
    )


def _gemma3_processor(tokenizer: Any) -> Any:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    return Gemma3Processor(
        image_processor=Gemma3ImageProcessor(
            size={"height": 84, "width": 84}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        image_seq_length=9,
    )


GEMMA3 = TinyVlm(
    what="Gemma 3 4B: five sliding layers and a full one, image blocks that see both ways, pooled patches",
    images=9,
    videos=None,
    tokenizer=TokenizerPlan(
        first=_FIRST,
        last=(
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_of_image>",
            "<end_of_image>",
            "<image_soft_token>",
        ),
        roles=_ROLES,
        named={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        bos=True,
        padding_side="left",
    ),
    template=GEMMA,
    config=_gemma3_config,
    processor=_gemma3_processor,
    stops=("<eos>", "<end_of_turn>"),
)


def _paligemma_config(tokenizer: Any, model_type: str, **changed: Any) -> Any:
    from transformers import PaliGemmaConfig

    text = llama_like(tokenizer, num_key_value_heads=1, head_dim=16, **changed)
    return PaliGemmaConfig(
        vision_config=_siglip_tower(56),
        text_config={"model_type": model_type, **text},
        image_token_index=token_id(tokenizer, "<image>"),
        vocab_size=text["vocab_size"],
        projection_dim=WIDTH,
        hidden_size=VISION_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _paligemma1_config(tokenizer: Any) -> Any:
    return _paligemma_config(tokenizer, "gemma")


def _paligemma2_config(tokenizer: Any) -> Any:
    return _paligemma_config(
        tokenizer,
        "gemma2",
        sliding_window=24,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=50.0,
        # The published 30 would hardly bend the small logits of random weights.
        final_logit_softcapping=3.0,
    )


def _paligemma_processor(tokenizer: Any) -> Any:
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    images = SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    return PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)


_PALIGEMMA_TOKENS = TokenizerPlan(
    first=_FIRST, last=("<image>",), roles=_ROLES, named={"image_token": "<image>"}, bos=True
)

PALIGEMMA = TinyVlm(
    what="PaliGemma 3B: image and prompt see both ways, only the answer is causal; no chat template",
    images=16,
    videos=None,
    tokenizer=_PALIGEMMA_TOKENS,
    template=None,
    config=_paligemma1_config,
    processor=_paligemma_processor,
    stops=("<eos>",),
)

PALIGEMMA2 = TinyVlm(
    what="PaliGemma 2 3B: as PaliGemma, on Gemma 2 with sliding layers and capped logits",
    images=16,
    videos=None,
    tokenizer=_PALIGEMMA_TOKENS,
    template=None,
    config=_paligemma2_config,
    processor=_paligemma_processor,
    stops=("<eos>",),
)
