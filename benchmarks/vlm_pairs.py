"""What the comparison of vision-language steps runs on: a LLaVA made of noise, and pairs about noise.

Model and rows are files that any trainer reads: a folder of the hub layout, a parquet file with TRL's columns
`prompt, chosen, rejected, images`. The chat template begins with the token of the beginning and ends an
answer with the token of the end, so that trainers which add neither, or both, still train on the same tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmalign.testing.tiny_vlm.llava import LLAVA, PATCH
from mmalign.testing.tiny_vlm.parts import image_settings, llama_like, token_id, write_folder

CHOSEN_TOKENS, REJECTED_TOKENS, PROMPT_WORDS = 60, 50, 30

_WORDS = (
    "the",
    "circle",
    "is",
    "square",
    "picture",
    "red",
    "there",
    "a",
    "shape",
    "of",
    "and",
    "two",
    "yellow",
)
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ ' ' }}{% else %}{{ 'USER: ' }}{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' %}{{ '<image>\n' }}{% elif item.type == 'text' %}{{ item.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ ' ASSISTANT:' }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the model.

    Args:
        width: features of the language model, in heads of 64.
        layers: of the language model.
        tower_width: features of the vision tower, in heads of 64.
        tower_layers: of the vision tower.
        vocabulary: rows of the head; LLaVA 1.5 has 32 064.
        side: pixels; an image becomes `(side / 14) ** 2` tokens.
    """

    width: int = 256
    layers: int = 8
    tower_width: int = 256
    tower_layers: int = 6
    vocabulary: int = 32_064
    side: int = 224

    @property
    def image_tokens(self) -> int:
        """Of one image."""
        return (self.side // PATCH) ** 2


def write_model(shape: Shape, folder: Path) -> Path:
    """The model of these sizes with random weights; returns its folder."""

    def config(tokenizer: Any) -> Any:
        from transformers import LlavaConfig

        text = llama_like(
            tokenizer,
            hidden_size=shape.width,
            intermediate_size=8 * shape.width // 3,
            num_hidden_layers=shape.layers,
            num_attention_heads=max(1, shape.width // 64),
            num_key_value_heads=max(1, shape.width // 64),
            vocab_size=shape.vocabulary,
        )
        tower = {
            "model_type": "clip_vision_model",
            "hidden_size": shape.tower_width,
            "intermediate_size": 4 * shape.tower_width,
            "projection_dim": shape.tower_width,
            "num_hidden_layers": shape.tower_layers,
            "num_attention_heads": max(1, shape.tower_width // 64),
            "image_size": shape.side,
            "patch_size": PATCH,
        }
        return LlavaConfig(
            vision_config=tower,
            text_config={"model_type": "llama", **text},
            image_token_index=token_id(tokenizer, "<image>"),
            image_seq_length=shape.image_tokens,
        )

    def processor(tokenizer: Any) -> Any:
        made = LLAVA.processor(tokenizer)
        made.image_processor = type(made.image_processor)(**image_settings(shape.side))
        return made

    return write_folder(
        replace(LLAVA, config=config, processor=processor, template=_TEMPLATE), folder, seed=0
    )


def write_pairs(
    model: Path, path: Path, number: int, *, words: tuple[int, int] = (CHOSEN_TOKENS, REJECTED_TOKENS)
) -> Path:
    """Pairs about noise as a parquet file in the layout of TRL's conversational rows; returns its path.

    Args:
        model: its tokenizer has the words.
        path: of the file.
        number: of rows; prompts have 30 words.
        words: of chosen and rejected answers, tokens with the end of the turn.
    """
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageColumn
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    single = [word for word in _WORDS if len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1]
    side = int(_side_of(model))
    message = List({"role": Value("string"), "content": Value("string")})
    columns = Features(
        {"images": List(ImageColumn()), "prompt": message, "chosen": message, "rejected": message}
    )

    def rows() -> Iterator[dict[str, Any]]:
        for row in range(number):
            random = np.random.default_rng(row)

            def said(count: int, random: np.random.Generator = random) -> str:
                return " ".join(random.choice(single, count))

            pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            buffer = BytesIO()
            Image.fromarray(pixels).save(buffer, format="PNG")
            yield {
                "images": [{"bytes": buffer.getvalue(), "path": None}],
                "prompt": [{"role": "user", "content": said(PROMPT_WORDS)}],
                "chosen": [{"role": "assistant", "content": said(words[0] - 1)}],
                "rejected": [{"role": "assistant", "content": said(words[1] - 1)}],
            }

    Dataset.from_list(list(rows()), features=columns).to_parquet(str(path))
    return path


def _side_of(model: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(str(model)).vision_config.image_size)
