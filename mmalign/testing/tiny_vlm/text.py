"""A text model without eyes, through the same path as the others."""

from typing import Any

from mmalign.testing.tiny_vlm.parts import TinyVlm, llama_like
from mmalign.testing.tiny_vlm.templates import CHATML
from mmalign.testing.tiny_vlm.tokenizer import TokenizerPlan

__all__ = ["CAUSAL_LM"]


def _config(tokenizer: Any) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**llama_like(tokenizer), tie_word_embeddings=True)


def _no_processor(tokenizer: Any) -> Any:
    return tokenizer


CAUSAL_LM = TinyVlm(
    what="Qwen2.5 0.5B: a causal language model with a tied head",
    images=None,
    videos=None,
    tokenizer=TokenizerPlan(
        first=(),
        last=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        roles={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    template=CHATML,
    config=_config,
    processor=_no_processor,
    stops=("<|im_end|>", "<|endoftext|>"),
)
