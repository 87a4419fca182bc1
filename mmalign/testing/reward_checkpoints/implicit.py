"""A tiny language model before and after "training", for the implicit reward."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmalign.rewards.sample import Sample

__all__ = ["BAD_SAMPLES", "CHECKPOINTS", "OTHER_OPTIONS", "SAMPLES", "write_implicit", "write_language_model"]

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, as Qwen and many others render a conversation."""


def _tokenizer(*, chat: bool) -> Any:
    """Every byte a token, and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={one: place for place, one in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None if chat else "<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    )
    if chat:
        fast.chat_template = CHAT
    return fast


def write_language_model(folder: Path, seed: int, *, chat: bool = True) -> Path:
    """A two-layer Llama with its tokenizer, in the layout of the hub. Returns the folder.

    Args:
        folder: where to write.
        seed: decides the random weights.
        chat: with a chat template; without one the tokenizer has a start token.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(chat=chat)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def write_implicit(folder: Path, seed: int = 0) -> Path:
    """`tuned/` and `reference/`. Returns the folder that holds both."""
    write_language_model(folder / "tuned", 2 * seed + 1)
    write_language_model(folder / "reference", 2 * seed)
    return folder


def _answers() -> list[Sample]:
    questions = {"what is it?": "a cat", "where?": "under the old table", "how many?": "3"}
    several = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who?"}]
    return [
        *(Sample(prompt=question, text=answer) for question, answer in questions.items()),
        Sample(text="nobody", extras={"messages": several}),
    ]


CHECKPOINTS: dict[str, Callable[..., Path]] = {"implicit": write_implicit}
SAMPLES = {"implicit": _answers}
BAD_SAMPLES = {"implicit": Sample(prompt="a question without an answer")}
OTHER_OPTIONS = {"implicit": {"beta": 0.5, "average": True, "max_length": 99}}
