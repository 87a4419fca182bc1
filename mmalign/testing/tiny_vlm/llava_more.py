"""What came after LLaVA 1.5: any resolution, OneVision, and the video models."""

from typing import Any

from mmalign.testing.tiny_vlm.llava import LLAMA_ROLES, PATCH, clip_tower
from mmalign.testing.tiny_vlm.parts import VISION_WIDTH, TinyVlm, image_settings, llama_like, token_id
from mmalign.testing.tiny_vlm.templates import LLAMA_CHAT, ONEVISION, VICUNA
from mmalign.testing.tiny_vlm.tokenizer import TokenizerPlan

__all__ = ["LLAVA_NEXT", "LLAVA_NEXT_VIDEO", "LLAVA_ONEVISION", "VIDEO_LLAVA"]

_VIDEO_TOKENIZER = TokenizerPlan(
    first=("<unk>", "<s>", "</s>"),
    last=("<pad>", "<image>", "<video>"),
    roles=LLAMA_ROLES,
    named={"image_token": "<image>", "video_token": "<video>"},
    bos=True,
    padding_side="left",
)

_CLIP: dict[str, Any] = {
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
"""What every processor before a CLIP tower is told: one class token, which is dropped."""


def _grid(side: int) -> list[list[int]]:
    """The resolutions of LLaVA 1.6 for towers of this side: two and three in a row, and two by two."""
    return [[side * rows, side * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def _next_config(tokenizer: Any) -> Any:
    from transformers import LlavaNextConfig

    return LlavaNextConfig(
        vision_config=clip_tower(28),
        text_config={"model_type": "mistral", **llama_like(tokenizer), "sliding_window": None},
        image_token_index=token_id(tokenizer, "<image>"),
        image_grid_pinpoints=_grid(28),
        image_seq_length=4,
    )


def _next_processor(tokenizer: Any) -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(image_grid_pinpoints=_grid(28), **image_settings(28)),
        tokenizer=tokenizer,
        **_CLIP,
    )


LLAVA_NEXT = TinyVlm(
    what="LLaVA 1.6 on Mistral: tiles of the best resolution, unpadded, a newline feature behind each row",
    images=24,
    videos=None,
    tokenizer=TokenizerPlan(
        first=("<unk>", "<s>", "</s>"),
        last=("<image>", "<pad>"),
        roles=LLAMA_ROLES,
        named={"image_token": "<image>"},
        bos=True,
        padding_side="left",
    ),
    template=LLAMA_CHAT,
    config=_next_config,
    processor=_next_processor,
    stops=("</s>",),
)

_ONE_SIDE = 42
_ONE_GRID = [[_ONE_SIDE * rows, _ONE_SIDE * columns] for rows in range(1, 4) for columns in range(1, 4)]
_ONE_RATIO = "anyres_max_4"
"""Published: 6 by 6 and at most 9. Pictures of three tiles in each direction are shrunk here too."""


def _onevision_config(tokenizer: Any) -> Any:
    from transformers import LlavaOnevisionConfig

    text = llama_like(tokenizer, bos_token_id=token_id(tokenizer, "<|endoftext|>"))
    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": _ONE_SIDE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        text_config={"model_type": "qwen2", **text},
        image_token_index=token_id(tokenizer, "<image>"),
        video_token_index=token_id(tokenizer, "<video>"),
        image_grid_pinpoints=_ONE_GRID,
        vision_aspect_ratio=_ONE_RATIO,
    )


def _onevision_processor(tokenizer: Any) -> Any:
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    square = {"height": _ONE_SIDE, "width": _ONE_SIDE}
    middle = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=_ONE_GRID, **middle),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=square, **middle),
        num_image_tokens=(_ONE_SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=_ONE_RATIO,
    )


LLAVA_ONEVISION = TinyVlm(
    what="LLaVA-OneVision on Qwen2: SigLIP with an odd grid, any resolution with shrinking, pooled frames",
    images=51,
    videos=17,
    tokenizer=TokenizerPlan(
        first=(),
        last=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"),
        roles={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        named={"image_token": "<image>", "video_token": "<video>"},
    ),
    template=ONEVISION,
    config=_onevision_config,
    processor=_onevision_processor,
    stops=("<|im_end|>",),
)


def _next_video_config(tokenizer: Any) -> Any:
    from transformers import LlavaNextVideoConfig

    return LlavaNextVideoConfig(
        vision_config=clip_tower(56),
        text_config={"model_type": "llama", **llama_like(tokenizer, num_key_value_heads=4)},
        image_token_index=token_id(tokenizer, "<image>"),
        video_token_index=token_id(tokenizer, "<video>"),
        image_grid_pinpoints=_grid(56),
        image_seq_length=16,
        video_seq_length=4,
    )


def _next_video_processor(tokenizer: Any) -> Any:
    from transformers import (
        LlavaNextImageProcessor,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    return LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(**image_settings(56)),
        image_processor=LlavaNextImageProcessor(image_grid_pinpoints=_grid(56), **image_settings(56)),
        tokenizer=tokenizer,
        **_CLIP,
    )


LLAVA_NEXT_VIDEO = TinyVlm(
    what="LLaVA-NeXT-Video: pictures as LLaVA 1.6, frames pooled two by two",
    images=36,
    videos=16,
    tokenizer=_VIDEO_TOKENIZER,
    template=VICUNA,
    config=_next_video_config,
    processor=_next_video_processor,
    stops=("</s>",),
)


def _video_llava_config(tokenizer: Any) -> Any:
    from transformers import VideoLlavaConfig

    return VideoLlavaConfig(
        vision_config=clip_tower(28),
        text_config={"model_type": "llama", **llama_like(tokenizer, num_key_value_heads=4)},
        image_token_index=token_id(tokenizer, "<image>"),
        video_token_index=token_id(tokenizer, "<video>"),
        image_seq_length=4,
        video_seq_length=40,
    )


def _video_llava_processor(tokenizer: Any) -> Any:
    from transformers import VideoLlavaImageProcessor, VideoLlavaProcessor, VideoLlavaVideoProcessor

    return VideoLlavaProcessor(
        image_processor=VideoLlavaImageProcessor(**image_settings(28)),
        video_processor=VideoLlavaVideoProcessor(**image_settings(28)),
        tokenizer=tokenizer,
        **_CLIP,
    )


VIDEO_LLAVA = TinyVlm(
    what="Video-LLaVA: one tower for pictures, one for frames, which keep their class token",
    images=4,
    videos=20,
    tokenizer=_VIDEO_TOKENIZER,
    template=VICUNA,
    config=_video_llava_config,
    processor=_video_llava_processor,
    stops=("</s>",),
)
