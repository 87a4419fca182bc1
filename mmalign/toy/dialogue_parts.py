"""The small model of the toy world of dialogues: LLaVA's structure, in the folder layout of the hub.

A CLIP tower whose patches are the cells of the pictures, LLaVA's projector of two layers, Llama, and a
tokenizer in which every word of the world is one token.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch

from mmalign.files import atomic_directory
from mmalign.seeding import derive_seed
from mmalign.toy.dialogue_answers import (
    COUNT_ANSWERS,
    DESCRIBE,
    WORDINGS,
    colour_question,
    count_question,
    describe,
    exists_question,
)
from mmalign.toy.dialogue_scenes import CELLS, KINDS
from mmalign.toy.scenes import COLOURS, IMAGE_SIZE, SHAPES, Group

__all__ = ["ASSETS", "IMAGE_TOKENS", "load_base", "new_model", "new_processor", "save_base"]

ASSETS = Path(str(files("mmalign.toy").joinpath("assets", "dialogue")))
"""The shipped base."""

IMAGE_TOKENS = CELLS * CELLS
MAX_TOKENS = 128

_PATCH = IMAGE_SIZE // CELLS
_WIDTH, _VISION_WIDTH = 64, 64

_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}USER: "
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for item in message.content if item.type == 'image' %}<image>\n{% endfor %}"
    "{% for item in message.content if item.type == 'text' %}{{ item.text }}{% endfor %}{% endif %} "
    "{% elif message.role == 'assistant' %}ASSISTANT: "
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for item in message.content if item.type == 'text' %}{{ item.text }}{% endfor %}{% endif %}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _sentences() -> list[str]:
    """Texts with every word of the world."""
    groups = [Group(1 + index % 3, *kind) for index, kind in enumerate(KINDS)]
    groups += [Group(1 + (index + 1) % 3, *kind) for index, kind in enumerate(KINDS)]
    texts = [f" {describe([group], wording)}" for group in groups for wording in WORDINGS]
    texts += [text for kind in KINDS for text in (exists_question(kind), count_question(kind))]
    texts += [*map(colour_question, SHAPES), *DESCRIBE]
    texts += [f" {colour.capitalize()}." for colour in COLOURS]
    texts += [f" {answer}" for answer in ("Yes.", "No.", *COUNT_ANSWERS)]
    return [*texts, "USER: ", " ASSISTANT: "]


def new_processor() -> Any:
    """Tokenizer, image processor and chat template; the same at every call."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = [
        AddedToken(token, special=True, normalized=False)
        for token in ("<unk>", "<s>", "</s>", "<pad>", "<image>")
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=2048,  # more than there are merges: every word becomes one token
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokens.train_from_iterator(_sentences(), trainer)
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokens.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        model_max_length=MAX_TOKENS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )


def new_model(processor: Any, *, seed: int) -> Any:
    """The model with random weights, in float32; the global generator is left as it was."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = processor.tokenizer
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": _VISION_WIDTH,
            "intermediate_size": 2 * _VISION_WIDTH,
            "projection_dim": _VISION_WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": _PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": _WIDTH,
            "intermediate_size": 3 * _WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": MAX_TOKENS,
            **ends,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "dialogue model"))
        model = LlavaForConditionalGeneration(config)
    for name, token in ends.items():
        setattr(model.generation_config, name, token)
    return model


def save_base(model: Any, processor: Any, folder: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write model and processor as `AutoModelForImageTextToText` and `AutoProcessor` read them.

    The model itself keeps its dtype.

    Returns the folder, replaced when it existed.
    """
    state = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items()}
    with atomic_directory(folder) as partial:
        model.save_pretrained(str(partial), state_dict=state)
        processor.save_pretrained(str(partial))
        _note_dtype(partial / "config.json", dtype)
    return folder


def _note_dtype(path: Path, dtype: torch.dtype) -> None:
    """Say in the config what the file of weights holds."""
    from mmalign.files import read_json, write_json

    config = read_json(path)
    name = str(dtype).removeprefix("torch.")
    parts: Sequence[dict[str, Any]] = [config, config["vision_config"], config["text_config"]]
    for part in parts:
        part["dtype"] = name
    write_json(path, config)


def load_base(folder: Path = ASSETS) -> tuple[Any, Any]:
    """Model in float32 and evaluation mode, and its processor."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = cast("Any", LlavaForConditionalGeneration).from_pretrained(str(folder), dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(str(folder))
