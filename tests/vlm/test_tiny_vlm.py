"""The tiny vision-language models: they load offline, run, and have the structure that they stand for."""

from collections.abc import Callable
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.errors import UnknownNameError
from mmalign.testing.tiny_vlm import TINY_VLMS, VARIANTS, tiny_vlm

ALL = {**TINY_VLMS, **VARIANTS}
SEEING = [name for name, recipe in ALL.items() if recipe.images]
WATCHING = [name for name, recipe in ALL.items() if recipe.videos]
SIZES = [(56, 56), (90, 140), (150, 37)]
"""Height and width of pictures: square, wide, tall."""

QUESTION = "Is there a circle?"


@pytest.fixture(scope="module")
def load(tiny_vlm_folder: Callable[[str], Path]) -> Callable[[str], tuple[Any, Any]]:
    """`load(name)`: model and processor, each read once."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    loaded: dict[str, tuple[Any, Any]] = {}

    def read(name: str) -> tuple[Any, Any]:
        if name not in loaded:
            sees = ALL[name].images is not None
            folder = tiny_vlm_folder(name)
            model = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_pretrained(folder)
            processor = (AutoProcessor if sees else AutoTokenizer).from_pretrained(folder)
            loaded[name] = (model.eval(), processor)
        return loaded[name]

    return read


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip(frames: int, height: int, width: int) -> np.ndarray:
    return np.stack([np.asarray(picture(height, width, seed)) for seed in range(frames)])


def prompt(processor: Any, medium: str, count: int = 1) -> str:
    """The text of a question about so many media, with the prompt for an answer."""
    if processor.chat_template is None:
        return "<image>" * count + QUESTION
    content = [{"type": medium}] * count + [{"type": "text", "text": QUESTION}]
    rendered: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return rendered


def encode_picture(processor: Any, height: int, width: int, seed: int = 0) -> Any:
    text = prompt(processor, "image")
    return processor(text=text, images=[picture(height, width, seed)], return_tensors="pt")


def encode_clip(processor: Any, frames: int, height: int, width: int) -> Any:
    text, video = prompt(processor, "video"), clip(frames, height, width)
    # Qwen3-VL would choose frames by its rate.
    return processor(text=text, videos=[video], do_sample_frames=False, return_tensors="pt")


def placeholders(model: Any, medium: str, inputs: Any) -> int:
    """Positions where the model will put visual features."""
    wanted = model.config.image_token_id
    if medium == "video":
        wanted = getattr(model.config, "video_token_id", wanted)
    return int((inputs["input_ids"] == wanted).sum())


def features(output: Any) -> int:
    """Visual features of one medium, whatever shape the model gives them."""
    pooled = output.pooler_output
    parts = pooled if isinstance(pooled, (list, tuple)) else [pooled]
    return sum(part.numel() // part.shape[-1] for part in parts)


def unpadded(height: int, width: int, rows: int, columns: int, patches: int) -> tuple[int, int]:
    """Rows and columns of patches that are left of a tile grid without its padding."""
    high, wide = rows * patches, columns * patches
    if width / height > wide / high:
        high -= 2 * ((high - int(round(height * wide / width, 7))) // 2)
    else:
        wide -= 2 * ((wide - int(round(width * high / height, 7))) // 2)
    return high, wide


def best_grid(height: int, width: int, side: int, grids: list[tuple[int, int]]) -> tuple[int, int]:
    """The tile grid that keeps most of the picture's pixels, then wastes least."""

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        high, wide = grid[0] * side, grid[1] * side
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - high * wide

    return max(grids, key=worth)


NEXT_GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]


def next_tokens(height: int, width: int, *, side: int) -> int:
    patches = side // 14
    high, wide = unpadded(height, width, *best_grid(height, width, side, NEXT_GRIDS), patches)
    return high * wide + high + patches**2


def onevision_tokens(height: int, width: int) -> int:
    grids = [(rows, columns) for rows in range(1, 4) for columns in range(1, 4)]
    high, wide = unpadded(height, width, *best_grid(height, width, 42, grids), 3)
    ratio = (high * wide / (4 * 9)) ** 0.5
    if ratio > 1.1:
        return int(high // ratio) * int(wide // ratio) + int(high // ratio) + 9
    return high * wide + high + 9


def qwen_tokens(height: int, width: int, *, pixels: int) -> int:
    """One token for each square of so many pixels, after rounding and between 4 and 24 of them."""
    high, wide = round(height / pixels), round(width / pixels)
    if high * wide > 24:
        shrink = (height * width / (24 * pixels**2)) ** 0.5
        high, wide = (max(1, floor(edge / shrink / pixels)) for edge in (height, width))
    elif high * wide < 4:
        grow = (4 * pixels**2 / (height * width)) ** 0.5
        high, wide = (-(-int(edge * grow * 1e6) // int(pixels * 1e6)) for edge in (height, width))
    return high * wide


PICTURE_TOKENS: dict[str, Callable[[int, int], int]] = {
    "llava": lambda height, width: 16,
    "llava_next": lambda height, width: next_tokens(height, width, side=28),
    "llava_onevision": onevision_tokens,
    "qwen2_vl": lambda height, width: qwen_tokens(height, width, pixels=28),
    "qwen2_5_vl": lambda height, width: qwen_tokens(height, width, pixels=28),
    "qwen3_vl": lambda height, width: qwen_tokens(height, width, pixels=32),
    "gemma3": lambda height, width: 9,
    "paligemma": lambda height, width: 16,
    "paligemma2": lambda height, width: 16,
    "llava_next_video": lambda height, width: next_tokens(height, width, side=56),
    "video_llava": lambda height, width: 4,
}
"""Visual tokens of a picture by the published rules, at the sizes of the tiny models."""

CLIP_TOKENS: dict[str, Callable[[int], int]] = {
    "llava_onevision": lambda frames: frames * 4 + 1,
    "qwen2_vl": lambda frames: frames // 2 * 4,
    "qwen2_5_vl": lambda frames: frames // 2 * 4,
    "qwen3_vl": lambda frames: frames // 2 * 4,
    "internvl": lambda frames: frames * 4,
    "llava_next_video": lambda frames: frames * 4,
    "video_llava": lambda frames: frames * 5,
}
"""Visual tokens of a clip of 56 x 56 pixels."""


@pytest.mark.parametrize("name", SEEING)
def test_a_picture_goes_through_processor_and_model(name: str, load: Callable[..., Any]) -> None:
    model, processor = load(name)
    inputs = encode_picture(processor, 56, 56)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (1, inputs["input_ids"].shape[1], model.config.get_text_config().vocab_size)
    assert torch.isfinite(logits).all()
    assert placeholders(model, "image", inputs) == ALL[name].images


@pytest.mark.parametrize("name", WATCHING)
def test_a_clip_goes_through_processor_and_model(name: str, load: Callable[..., Any]) -> None:
    model, processor = load(name)
    inputs = encode_clip(processor, 4, 56, 56)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert torch.isfinite(logits).all()
    assert placeholders(model, "video", inputs) == ALL[name].videos


def test_the_text_model_answers_without_a_picture(load: Callable[..., Any]) -> None:
    model, tokenizer = load("causal_lm")
    messages = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize("name", SEEING)
def test_the_model_makes_one_feature_for_each_placeholder(name: str, load: Callable[..., Any]) -> None:
    model, processor = load(name)
    inputs = encode_picture(processor, 90, 140)
    expected = placeholders(model, "image", inputs)
    wanted = ("pixel_values", "pixel_values_images", "image_grid_thw", "image_sizes", "pixel_attention_mask")
    visual = {key: value for key, value in inputs.items() if key in wanted}
    with torch.no_grad():
        assert features(model.get_image_features(**visual)) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PICTURE_TOKENS)
def test_pictures_take_the_tokens_of_the_published_rule(
    name: str, size: tuple[int, int], load: Callable[..., Any]
) -> None:
    model, processor = load(name)
    inputs = encode_picture(processor, *size)
    assert placeholders(model, "image", inputs) == PICTURE_TOKENS[name](*size)


@pytest.mark.parametrize("frames", [4, 6])
@pytest.mark.parametrize("name", WATCHING)
def test_clips_take_the_tokens_of_the_published_rule(
    name: str, frames: int, load: Callable[..., Any]
) -> None:
    model, processor = load(name)
    inputs = encode_clip(processor, frames, 56, 56)
    assert placeholders(model, "video", inputs) == CLIP_TOKENS[name](frames)


@pytest.mark.parametrize("name", ["internvl", "smolvlm"])
def test_tiled_models_take_four_tokens_for_each_tile(name: str, load: Callable[..., Any]) -> None:
    model, processor = load(name)
    tiles = {}
    for size in SIZES:
        inputs = encode_picture(processor, *size)
        tiles[size] = inputs["pixel_values"].flatten(0, -4).shape[0]
        assert placeholders(model, "image", inputs) == 4 * tiles[size]
    assert tiles[56, 56] != tiles[150, 37]


@pytest.mark.parametrize("name", SEEING)
def test_another_picture_changes_what_the_model_says(name: str, load: Callable[..., Any]) -> None:
    model, processor = load(name)
    first, second = (encode_picture(processor, 56, 56, seed) for seed in (0, 1))
    with torch.no_grad():
        change = model(**first).logits[0, -1] - model(**second).logits[0, -1]
    assert change.abs().max() > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_a_second_call_writes_the_same_bytes(
    name: str, tiny_vlm_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    torch.rand(3)
    before = torch.get_rng_state()
    again = tiny_vlm(name, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    first = {path.name: path.read_bytes() for path in tiny_vlm_folder(name).iterdir()}
    assert {path.name: path.read_bytes() for path in again.iterdir()} == first


def test_another_seed_changes_the_weights_and_nothing_else(
    tiny_vlm_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    other = tiny_vlm("llava", tmp_path / "other", seed=1)
    differing = {
        path.name
        for path in tiny_vlm_folder("llava").iterdir()
        if path.read_bytes() != (other / path.name).read_bytes()
    }
    assert differing == {"model.safetensors"}


@pytest.mark.parametrize("name", ALL)
def test_no_weight_is_constant(name: str, load: Callable[..., Any]) -> None:
    """Biases of zero and norms of one would hide that somebody forgot them."""
    model, _ = load(name)
    constant = [key for key, weight in model.named_parameters() if weight.numel() > 1 and weight.std() < 1e-3]
    assert constant == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llava", "USER: <image>\nIs there a circle? ASSISTANT:"),
        ("llava_next", "[INST] <image>\nIs there a circle? [/INST]"),
        (
            "llava_onevision",
            "<|im_start|>user <image>\nIs there a circle?<|im_end|><|im_start|>assistant\n",
        ),
        (
            "qwen2_5_vl",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            "<|vision_start|><|image_pad|><|vision_end|>Is there a circle?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "qwen3_vl",
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Is there a circle?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "internvl",
            "<|im_start|>user\n<IMG_CONTEXT>\nIs there a circle?<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("smolvlm", "<|im_start|>User:<image>Is there a circle?<end_of_utterance>\nAssistant:"),
        (
            "gemma3",
            "<bos><start_of_turn>user\n<start_of_image>Is there a circle?<end_of_turn>\n"
            "<start_of_turn>model\n",
        ),
    ],
)
def test_chat_templates_have_the_published_form(name: str, text: str, load: Callable[..., Any]) -> None:
    _, processor = load(name)
    assert prompt(processor, "image") == text


@pytest.mark.parametrize(
    ("name", "turn"),
    [
        ("llava", "ASSISTANT: Yes. "),
        ("llava_next", " Yes.</s>"),
        ("llava_onevision", "<|im_start|>assistant \nYes.<|im_end|>"),
        ("qwen2_vl", "<|im_start|>assistant\nYes.<|im_end|>\n"),
        ("internvl", "<|im_start|>assistant\nYes.<|im_end|>\n"),
        ("smolvlm", "Assistant: Yes.<end_of_utterance>\n"),
        ("gemma3", "<start_of_turn>model\nYes.<end_of_turn>\n"),
        ("causal_lm", "<|im_start|>assistant\nYes.<|im_end|>\n"),
    ],
)
def test_an_answer_ends_as_in_the_published_template(name: str, turn: str, load: Callable[..., Any]) -> None:
    _, processor = load(name)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    assert processor.apply_chat_template(messages, tokenize=False).endswith(turn)


def test_paligemma_has_no_chat_template_and_marks_the_answer_as_suffix(load: Callable[..., Any]) -> None:
    _, processor = load("paligemma")
    assert processor.chat_template is None
    inputs = processor(
        text="<image>" + QUESTION, images=[picture(56, 56)], suffix="Yes.", return_tensors="pt"
    )
    suffix = inputs["input_ids"][inputs["token_type_ids"] == 1]
    assert processor.tokenizer.decode(suffix) == "Yes.<eos>"


def test_gemma_layers_slide_five_to_one_with_a_window_smaller_than_an_image(
    load: Callable[..., Any],
) -> None:
    model, _ = load("gemma3")
    text = model.config.text_config
    assert text.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert text.sliding_window < model.config.mm_tokens_per_image


@pytest.mark.parametrize("name", ALL)
def test_the_tokenizer_reads_back_every_text(name: str, load: Callable[..., Any]) -> None:
    _, processor = load(name)
    tokenizer = getattr(processor, "tokenizer", processor)
    text = "Größe: 3 µm\n\n  “quoted” 漢字 🙂 <not a tag>"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_line_breaks_merge_across_the_boundary_of_prompt_and_answer(load: Callable[..., Any]) -> None:
    _, processor = load("qwen2_5_vl")
    tokenizer = processor.tokenizer
    alone, joined = (
        tokenizer.encode(text, add_special_tokens=False) for text in ("assistant\n", "assistant\n\nYes")
    )
    assert joined[: len(alone)] != alone


@pytest.mark.parametrize("name", ALL)
def test_generation_stops_at_the_end_of_a_turn(name: str, load: Callable[..., Any]) -> None:
    model, processor = load(name)
    tokenizer = getattr(processor, "tokenizer", processor)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    assert tuple(tokenizer.convert_ids_to_tokens(ends)) == ALL[name].stops


@pytest.mark.parametrize("name", SEEING)
def test_a_model_generates(name: str, load: Callable[..., Any]) -> None:
    model, processor = load(name)
    inputs = encode_picture(processor, 56, 56)
    inputs.pop("labels", None)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] - inputs["input_ids"].shape[1] in (1, 2, 3)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown tiny model 'llava_nxt'.*llava_next"):
        tiny_vlm("llava_nxt", tmp_path / "model")
