"""The Qwen-VL line: packed patches, three-part rotary positions, images and videos."""

from typing import Any

from mmalign.testing.tiny_vlm.parts import VISION_WIDTH, WIDTH, TinyVlm, llama_like, token_id
from mmalign.testing.tiny_vlm.templates import QWEN, QWEN3
from mmalign.testing.tiny_vlm.tokenizer import TokenizerPlan

__all__ = ["QWEN2_5_VL", "QWEN2_VL", "QWEN3_VL"]

_TOKENIZER = TokenizerPlan(
    first=(),
    last=(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
    roles={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    named={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
)
_STOPS = ("<|im_end|>", "<|endoftext|>")
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}


def _tokens(tokenizer: Any) -> dict[str, int]:
    return {
        "image_token_id": token_id(tokenizer, "<|image_pad|>"),
        "video_token_id": token_id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": token_id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": token_id(tokenizer, "<|vision_end|>"),
    }


def _text(tokenizer: Any, **changed: Any) -> dict[str, Any]:
    start = token_id(tokenizer, "<|endoftext|>")
    return llama_like(tokenizer, **{"bos_token_id": start, "rope_parameters": _ROPE, **changed})


def _sizes(smallest: int, largest: int, pixels: int) -> dict[str, int]:
    """Limits of the picture's area: from so many to so many tokens of `pixels` x `pixels` pixels."""
    return {"shortest_edge": smallest * pixels**2, "longest_edge": largest * pixels**2}


def _qwen2_5_config(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "tokens_per_second": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        text_config=_text(tokenizer),
        tie_word_embeddings=True,
        **_tokens(tokenizer),
    )


def _qwen2_5_processor(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=_sizes(4, 24, 28)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=_sizes(4, 12, 28), cap_pixels_per_frame=False),
    )


QWEN2_5_VL = TinyVlm(
    what="Qwen2.5-VL 3B: windowed vision with one full layer, tied head, time in the positions of a video",
    images=4,
    videos=8,
    tokenizer=_TOKENIZER,
    template=QWEN,
    config=_qwen2_5_config,
    processor=_qwen2_5_processor,
    stops=_STOPS,
)


def _qwen2_config(tokenizer: Any) -> Any:
    from transformers import Qwen2VLConfig

    return Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": VISION_WIDTH,
            "hidden_size": WIDTH,
            "mlp_ratio": 2,
            "num_heads": 2,
        },
        text_config=_text(tokenizer),
        **_tokens(tokenizer),
    )


def _qwen2_processor(tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=_sizes(4, 24, 28)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=_sizes(4, 12, 28), cap_pixels_per_frame=False),
    )


QWEN2_VL = TinyVlm(
    what="Qwen2-VL 7B: full vision attention, a head of its own",
    images=4,
    videos=8,
    tokenizer=_TOKENIZER,
    template=QWEN,
    config=_qwen2_config,
    processor=_qwen2_processor,
    stops=_STOPS,
)


def _qwen3_config(tokenizer: Any) -> Any:
    from transformers import Qwen3VLConfig

    rope = {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default", "rope_theta": 5e6}
    return Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config=_text(tokenizer, num_hidden_layers=3, head_dim=16, rope_parameters=rope),
        tie_word_embeddings=True,
        **_tokens(tokenizer),
    )


def _qwen3_processor(tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    middle = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=_sizes(4, 24, 32), patch_size=16, **middle),
        tokenizer=tokenizer,
        # The limits of a video count its frames: the area is that of all frames together.
        video_processor=Qwen3VLVideoProcessor(size=_sizes(16, 48, 32), cap_pixels_per_frame=False),
    )


QWEN3_VL = TinyVlm(
    what="Qwen3-VL 4B: features of three depths, interleaved rotary parts, timestamps between frames",
    images=4,
    videos=8,
    tokenizer=_TOKENIZER,
    template=QWEN3,
    config=_qwen3_config,
    processor=_qwen3_processor,
    stops=_STOPS,
)
