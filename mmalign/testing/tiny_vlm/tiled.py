"""Models that cut a picture into tiles and merge patches by shuffling: InternVL and Idefics 3."""

from typing import Any

from mmalign.testing.tiny_vlm.parts import VISION_WIDTH, TinyVlm, llama_like, token_id
from mmalign.testing.tiny_vlm.templates import IDEFICS, INTERNVL
from mmalign.testing.tiny_vlm.tokenizer import TokenizerPlan

__all__ = ["INTERNVL3", "SMOLVLM"]

_SIDE, _PATCH = 56, 14
_PER_TILE = (_SIDE // _PATCH // 2) ** 2


def _internvl_config(tokenizer: Any) -> Any:
    from transformers import InternVLConfig

    text = llama_like(tokenizer, bos_token_id=token_id(tokenizer, "<|endoftext|>"))
    return InternVLConfig(
        vision_config={
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "attention_bias": True,
            "image_size": [_SIDE, _SIDE],
            "patch_size": [_PATCH, _PATCH],
        },
        text_config={"model_type": "qwen2", **text},
        image_token_id=token_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=_PER_TILE,
        tie_word_embeddings=False,
    )


def _internvl_processor(tokenizer: Any) -> Any:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    square = {"height": _SIDE, "width": _SIDE}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=square, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=square),
        image_seq_length=_PER_TILE,
    )


INTERNVL3 = TinyVlm(
    what="InternVL 3: tiles with a thumbnail, layer scales, four patches to a token, Qwen2",
    images=_PER_TILE,
    videos=4 * _PER_TILE,
    tokenizer=TokenizerPlan(
        first=(),
        last=(
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<img>",
            "</img>",
            "<IMG_CONTEXT>",
            "<video>",
        ),
        roles={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    template=INTERNVL,
    config=_internvl_config,
    processor=_internvl_processor,
    stops=("<|im_end|>",),
)


def _idefics_config(tokenizer: Any) -> Any:
    from transformers import Idefics3Config

    return Idefics3Config(
        vision_config={
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": _SIDE,
            "patch_size": _PATCH,
        },
        text_config={"model_type": "llama", **llama_like(tokenizer)},
        image_token_id=token_id(tokenizer, "<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )


def _idefics_processor(tokenizer: Any) -> Any:
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    images = Idefics3ImageProcessor(size={"longest_edge": 2 * _SIDE}, max_image_size={"longest_edge": _SIDE})
    return Idefics3Processor(image_processor=images, tokenizer=tokenizer, image_seq_len=_PER_TILE)


_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))

SMOLVLM = TinyVlm(
    what="SmolVLM (Idefics 3): tiles between row and column tags, and the whole picture behind them",
    images=5 * _PER_TILE,
    videos=None,
    tokenizer=TokenizerPlan(
        first=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        last=("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *_TILES),
        roles={
            "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
    ),
    template=IDEFICS,
    config=_idefics_config,
    processor=_idefics_processor,
    stops=("<end_of_utterance>",),
)
