"""What every tiny vision-language model is made of, and how its folder is written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmalign.files import atomic_directory
from mmalign.testing.tiny_vlm.tokenizer import TokenizerPlan, train_tokenizer

__all__ = ["TinyVlm", "image_settings", "llama_like", "token_id", "write_folder"]

WIDTH = 64
"""Features of every language model: four heads of 16, two of them for keys and values."""

VISION_WIDTH = 32
"""Features of every vision tower."""


@dataclass(frozen=True)
class TinyVlm:
    """A tiny model: what it is, and how its config and processor are made.

    Attributes:
        what: the published model whose structure it has, in words.
        images: how many visual tokens the processor writes for a picture of 56 x 56 pixels; None: it takes
            none.
        videos: how many it writes for a clip of four frames of 56 x 56 pixels; None: it takes none.
        tokenizer: the special tokens.
        template: the chat template; None: the model has none.
        config: makes the config from the tokenizer.
        processor: makes the processor from the tokenizer; the tokenizer itself where there is nothing to see.
        stops: tokens that end an answer, as the generation config lists them.
    """

    what: str
    images: int | None
    videos: int | None
    tokenizer: TokenizerPlan
    template: str | None
    config: Callable[[Any], Any]
    processor: Callable[[Any], Any]
    stops: tuple[str, ...]


def token_id(tokenizer: Any, token: str) -> int:
    """The id of a token that the tokenizer must have.

    Raises:
        ValueError: it has no such token.
    """
    number = tokenizer.get_vocab().get(token)
    if number is None:
        message = f"the tokenizer has no token {token!r}"
        raise ValueError(message)
    return int(number)


def image_settings(side: int) -> dict[str, Any]:
    """Settings of an image processor that makes squares: resize the shorter edge, crop the middle."""
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def llama_like(tokenizer: Any, **changed: Any) -> dict[str, Any]:
    """Settings of a small language model of the Llama kind for this tokenizer.

    The vocabulary is rounded up, as that of the published models: its last rows belong to no token.
    """
    return {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **changed,
    }


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Draw every parameter: none stays all zero or all one, so that a forgotten bias or norm shows.

    Matrices and convolutions are scaled by their fan-in, which keeps activations of order one; embeddings and
    positions have standard deviation 1/4; vectors move by a tenth around what they were built with.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            elif id(parameter) in tables or parameter.shape[0] == 1:
                parameter.copy_(0.25 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)


def write_folder(recipe: TinyVlm, folder: str | Path, *, seed: int) -> Path:
    """Write model, processor, chat template and tokenizer. Returns the folder, replaced when it existed.

    Args:
        recipe: what to build.
        folder: where.
        seed: decides the weights; the global generator is left as it was.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    tokenizer = train_tokenizer(recipe.tokenizer)
    processor = recipe.processor(tokenizer)
    processor.chat_template = recipe.template
    config = recipe.config(tokenizer)
    sees = recipe.images is not None
    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as partial:
        # Tokens of one vector (class, newline) are drawn while the model is built.
        torch.manual_seed(seed)
        model = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_config(
            config, dtype=torch.float32
        )
        _randomise(model, seed)
        stops = [token_id(tokenizer, token) for token in recipe.stops]
        model.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.bos_token_id = tokenizer.bos_token_id
        model.save_pretrained(str(partial))
        processor.save_pretrained(str(partial))
    return Path(folder)
