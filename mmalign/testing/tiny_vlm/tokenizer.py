"""A byte-level BPE tokenizer, trained here on a few sentences, with the special tokens of a real model.

Every text can be written (all 256 bytes are tokens), frequent words are one token, and two line breaks are
one token too: an answer that begins with a line break merges with the end of a prompt, as under the published
vocabularies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TokenizerPlan", "train_tokenizer"]

_SENTENCES = (
    "There is a red circle above the blue square in the picture.",
    "Is there a green triangle to the left of the yellow star? Yes, there is.",
    "How many circles are in the image? There are three circles and two squares.",
    "No, the picture does not show a triangle; it shows a small purple square.",
    "Describe this image in detail. A large orange star is near the right edge.",
    "What colour is the shape at the top? It is white, on a black background.",
    "What happens in the video? The circle moves from left to right, then it stops.",
    "You are a helpful assistant. Answer the question using yes or no.",
    "user: what do you see? assistant: I see two shapes, and nothing else.",
    "USER: what is below the square? ASSISTANT: The answer is a dog and a cat.",
    "First.\n\nSecond.\n\n\nThird.\n\nFourth.\n\nFifth.",
)
_LEARNED = 96


@dataclass(frozen=True)
class TokenizerPlan:
    """Which special tokens a tokenizer has, and where.

    Attributes:
        first: special tokens with the lowest ids, in order.
        last: special tokens behind the vocabulary, in order.
        roles: of transformers: `bos_token`, `eos_token`, `pad_token`, `unk_token`.
        named: further names by which the processor asks for a token: `image_token`, `boi_token` ...
        bos: whether a text that is encoded with special tokens begins with `bos_token`.
        padding_side: of the published tokenizer; training pads right whatever it says.
    """

    first: tuple[str, ...]
    last: tuple[str, ...]
    roles: Mapping[str, str]
    named: Mapping[str, str] = field(default_factory=dict)
    bos: bool = False
    padding_side: str = "right"


def train_tokenizer(plan: TokenizerPlan, *, max_length: int = 4096) -> Any:
    """The tokenizer of a plan: a fast tokenizer of transformers, the same one at every call.

    Args:
        plan: its special tokens.
        max_length: what it gives as the longest row of its model.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Line breaks that follow each other are one word, as Qwen and Llama 3 split; GPT-2 cuts off the last one.
    lines = pre_tokenizers.Split(Regex(r"\s*[\r\n]+"), behavior="isolated")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(plan.first) + 256 + _LEARNED,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in plan.first],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in plan.last])
    if plan.bos:
        bos = plan.roles["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        padding_side=plan.padding_side,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=dict(plan.named),
        **plan.roles,
    )
