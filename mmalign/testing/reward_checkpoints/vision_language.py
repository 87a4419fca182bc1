"""Tiny chat models that see, as judges: Qwen2-VL with random weights, or with answers it picks from."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmalign.rewards.published_texts import text_sha256
from mmalign.rewards.sample import Sample

__all__ = [
    "BAD_SAMPLES",
    "CHECKPOINTS",
    "LOAD_OPTIONS",
    "OTHER_OPTIONS",
    "SAMPLES",
    "TOLERANCES",
    "byte_tokenizer",
    "clips",
    "qwen_sizes",
    "write_chat_model",
]

JUDGE_TEXT = "Judge what you see. It was asked for: [{}]"
"""Stands in for UnifiedReward's questions."""

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SPECIAL = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def byte_tokenizer(written: Sequence[str] = ()) -> Any:
    """Every byte a token, a few words merged; each text of `written` is one more token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o"), ("y", "e"), ("ye", "s"), ("n", "o")]
    vocabulary = {
        token: number for number, token in enumerate([*letters, *("".join(pair) for pair in merges)])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(_SPECIAL),
    )
    if written:
        fast.add_tokens(list(written))
    return fast


def qwen_sizes(tokenizer: Any) -> dict[str, Any]:
    """A flat configuration, as Qwen2-VL's published config.json is."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vocab_size": len(tokenizer) + 40,  # published embeddings have more rows than tokens
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


# -------------------------------------------------------------------------------- chat models


def write_chat_model(folder: str | Path, seed: int = 0, *, written: Sequence[str] = ()) -> Path:
    """A Qwen2-VL chat model as `save_pretrained` writes it.

    With `written` it answers one of these texts and stops; which one hangs on what it is shown and asked.
    """
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    folder = Path(folder)
    tokenizer = byte_tokenizer(written)
    sizes = {"min_pixels": 784, "max_pixels": 4 * 784}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**qwen_sizes(tokenizer)))
        head, table = model.lm_head.weight.data, model.get_input_embeddings().weight.data
        torch.nn.init.normal_(head, std=0.4)
        torch.nn.init.normal_(table, std=0.4)
        if written:
            _rig(model, tokenizer, tokenizer.convert_tokens_to_ids(list(written)))
    model.generation_config.update(
        do_sample=True, temperature=5.0, top_p=0.9, top_k=7, repetition_penalty=1.05, pad_token_id=None
    )
    model.save_pretrained(str(folder))
    processor.save_pretrained(str(folder))
    (folder / "question.txt").write_text(JUDGE_TEXT)
    return folder


def _rig(model: Any, tokenizer: Any, said: list[int]) -> None:
    """The line break that opens an answer is followed by one of `said`, and that by the end.

    The line break's hidden state keeps the direction of its embedding, and so do those of `said`: along these
    the head says what comes next. Across them, and across what hidden states share, it says which text.
    """
    for name, value in model.model.language_model.named_parameters():
        if name.endswith(("_proj.weight", "_proj.bias")):
            # Attention to single tokens, not to an average, so that samples differ.
            pointed = ".q_proj." in name or ".k_proj." in name
            torch.nn.init.normal_(value, std=0.7 if pointed else 0.15)
    head, table = model.lm_head.weight.data, model.get_input_embeddings().weight.data
    first, second = torch.linalg.qr(torch.randn(32, 2)).Q.T
    table[tokenizer.encode("\n")[0]] = 8.0 * first
    table[said] = 40.0 * second
    probes = torch.randint(0, 256, (16, 40))
    probes[:, -1] = tokenizer.encode("\n")[0]
    with torch.no_grad():
        states = model.model(input_ids=probes).last_hidden_state[:, -1]
    shared = torch.linalg.qr(torch.stack([first, second, states.mean(dim=0)]).T).Q
    across = 60.0 * torch.randn(len(said), 32)
    head[said] = 60.0 * first + across - across @ shared @ shared.T
    head[tokenizer.eos_token_id] = 60.0 * second


def _judge(written: Sequence[str]) -> Callable[..., Path]:
    def write(folder: Path, seed: int = 0) -> Path:
        return write_chat_model(folder, seed, written=written)

    return write


def _checklist(folder: Path, seed: int = 0) -> Path:
    write_chat_model(folder, seed)
    (folder / "checklist.yaml").write_text(
        "name: tiny\nintercept: 0.5\nquestions:\n"
        "- {id: hands, question: 'Are there hands?'}\n"
        "- {id: fingers, question: 'Five fingers each?', weight: 7.0, requires: hands}\n"
        "- {id: shown, question: 'Does it show [{}]?', weight: 3.0}\n"
    )
    return folder


# -------------------------------------------------------------------------------- tables


def _picture(seed: int, width: int = 40, height: int = 35) -> Image.Image:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def clips() -> list[Sample]:
    """Clips of several lengths and sizes, prompts of several lengths."""
    sizes = ((5, 40, 35), (2, 56, 28), (7, 35, 60), (3, 28, 28), (4, 70, 30))
    return [
        Sample(
            prompt=f"a clip {'of a cat ' * number}".strip(),
            frames=[_picture(10 * number + frame, width, height) for frame in range(frames)],
        )
        for number, (frames, width, height) in enumerate(sizes)
    ]


def _pairs() -> list[Sample]:
    return [
        Sample(
            prompt="a picture " * (number + 1),
            image=_picture(number, 40 + 30 * number, 35),
            extras={"other": _picture(50 + number)},
        )
        for number in range(5)
    ]


def _clip_pairs() -> list[Sample]:
    return [
        Sample(prompt=clip.prompt, frames=clip.frames, extras={"other": list(reversed(clip.frames or ()))})
        for clip in clips()
    ]


def _spread(text: str, low: int, high: int) -> list[str]:
    """The text once per number from low to high at its first `#`; further ones go on by two, in a circle."""
    count = high - low + 1
    found = []
    for first in range(count):
        parts = text.split("#")
        numbers = [str(low + (first + 2 * place) % count) for place in range(len(parts) - 1)]
        found.append("".join(part + number for part, number in zip(parts, [*numbers, ""], strict=True)))
    return found


def _shares(first: int) -> str:
    axes = ("Alignment", "Coherence", "Style")
    both = f"Image 1: 0.{first}\nImage 2: 0.{10 - first}\n"
    return "".join(f"{axis} Score:\n{both}" for axis in axes)


_ACS_TEXT = "Alignment Score (1-5): #\nCoherence Score (1-5): #\nStyle Score (1-5): #"
_IMAGE_CHOICES = [f"{so} Image {number} is better." for so in ("So", "Then", "Hence") for number in (1, 2)]
_WRITTEN: dict[str, list[str]] = {
    "unifiedreward_image": _spread("cat (animal): 1\nFinal Score: #", 1, 5),
    "unifiedreward_image_acs": _spread(_ACS_TEXT, 1, 5),
    "unifiedreward2_image_acs": _spread(_ACS_TEXT, 1, 5),
    "unifiedreward_video": _spread("Final Score: #", 1, 10),
    "unifiedreward2_video_aps": _spread(_ACS_TEXT.replace("Coherence", "Physics"), 1, 5),
    "unifiedreward_image_pair": _IMAGE_CHOICES,
    "unifiedreward_video_pair": [text.replace("Image", "Video") for text in _IMAGE_CHOICES],
    "unifiedreward2_image_pair": [_shares(first) for first in range(1, 10)],
    "unifiedreward_think_image_pair": [
        f"<think>{thought}</think><answer>Image {number} is better</answer>"
        for thought in ("Well.", "Hm.", "Now.")
        for number in (1, 2)
    ],
    "unifiedreward_flex_image_pair": [
        json.dumps({"winner": f"Image {number}", "categories": [], "reason": reason})
        for reason in ("a", "b", "c")
        for number in (1, 2)
    ],
    "vlm_judge": _spread("It fits. [RESULT] #", 1, 5),
    "vlm_pairwise_judge": _IMAGE_CHOICES,
}

CHECKPOINTS: dict[str, Callable[..., Path]] = {
    "checklist": _checklist,
    "vqascore": write_chat_model,
    "yes_no_ratio": write_chat_model,
    **{name: _judge(written) for name, written in _WRITTEN.items()},
}

SAMPLES: dict[str, Callable[[], list[Sample]]] = {
    "vlm_pairwise_judge": _pairs,
    **{
        name: {
            (True, True): _clip_pairs,
            (True, False): _pairs,
            (False, True): clips,
        }[name.endswith("_pair"), "video" in name]
        for name in _WRITTEN
        if name.startswith("unified") and (name.endswith("_pair") or "video" in name)
    },
}

BAD_SAMPLES: dict[str, Sample] = {
    **{name: Sample(prompt="a clip", frames=[b"no picture", b"none"]) for name in SAMPLES if "video" in name},
    **{
        name: Sample(prompt="a picture", image=_picture(1))  # nothing to compare it with
        for name in SAMPLES
        if name.endswith("_pair") or name == "vlm_pairwise_judge"
    },
}

LOAD_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"template_sha256": text_sha256(JUDGE_TEXT)} for name in _WRITTEN if name.startswith("unified")
}

OTHER_OPTIONS: dict[str, dict[str, Any]] = {
    "vqascore": {"question": "Is this {}?", "answer": "yes", "opposite": "no", "temperature": 2.0},
    "yes_no_ratio": {"question": "Is this {}?", "temperature": 2.0, "max_pixels": 999},
    "vlm_judge": {"rubric": "image_quality", "max_new_tokens": 7},
    "vlm_pairwise_judge": {"max_new_tokens": 7},
    "unifiedreward_image": {"max_new_tokens": 7, "max_pixels": 999},
}

TOLERANCES: dict[str, float] = dict.fromkeys(_WRITTEN, 1.0)  # another rounding may choose another answer
