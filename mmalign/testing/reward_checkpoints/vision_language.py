"""Tiny vision-language rewards: Qwen2-VL bodies with heads, chat models that judge, CLIP-FlanT5."""

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
    "HPSV3_TEXTS",
    "LOAD_OPTIONS",
    "OTHER_OPTIONS",
    "SAMPLES",
    "TOLERANCES",
    "VIDEO_TEXT",
    "write_chat_model",
    "write_clip_flant5",
    "write_hpsv3",
    "write_qwen_base",
    "write_videoreward",
]

HPSV3_TEXTS = ("Look at the picture. It was asked for: {text_prompt}\n", "How good is it? <|Reward|>\nEND\n")
"""Stands in for the published instruction and tail, which are not ours."""

VIDEO_TEXT = (
    "Look <|VQ_reward|>\nMove <|MQ_reward|>\nThe clip was asked for: {text_prompt}\nFit <|TA_reward|>\nEND\n"
)
"""Stands in for VideoReward's instruction."""

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


def _tokenizer(written: Sequence[str] = ()) -> Any:
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


def _qwen_sizes(tokenizer: Any) -> dict[str, Any]:
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


def write_qwen_base(folder: str | Path) -> Path:
    """Qwen2-VL-Instruct without its weights, in the files of its repository. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(str(folder))
    preprocessing = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    for name, content in (
        ("config.json", _qwen_sizes(tokenizer)),
        ("preprocessor_config.json", preprocessing),
        ("chat_template.json", {"chat_template": CHAT}),
    ):
        (folder / name).write_text(json.dumps(content))
    return folder


def _qwen_body(base: Path, rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Random weights by the names of transformers 4.45, with an embedding of `rows` rows."""
    from transformers import AutoConfig, Qwen2VLModel

    config = AutoConfig.from_pretrained(str(base))
    config.text_config.vocab_size = rows
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = Qwen2VLModel(config).state_dict()
        drawn = {name: torch.randn_like(value) for name, value in state.items()}
        lm_head = torch.randn(rows, 32)
    for name, value in state.items():  # large enough that attention, and so positions, matter
        scale = 0.02 if value.ndim == 1 else 1.0 if "embed_tokens" in name else 0.15
        state[name] = value + scale * drawn[name] if value.ndim == 1 else scale * drawn[name]
    renamed = {name.replace("language_model.", "model."): value for name, value in state.items()}
    return {**renamed, "lm_head.weight": lm_head}


def write_hpsv3(folder: str | Path, seed: int = 0) -> Path:
    """HPSv3.safetensors beside its base model and texts. Returns the folder."""
    from safetensors.torch import save_file

    folder = Path(folder)
    base = write_qwen_base(folder / "Qwen2-VL-7B-Instruct")
    (folder / "HPSv3").mkdir(parents=True, exist_ok=True)
    state = _qwen_body(base, len(_tokenizer()) + 1, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    for place, (inside, outside) in {0: (32, 1024), 3: (1024, 16), 5: (16, 2)}.items():
        state[f"rm_head.{place}.weight"] = torch.randn(outside, inside, generator=draw) / inside**0.5
        state[f"rm_head.{place}.bias"] = torch.randn(outside, generator=draw)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "HPSv3/HPSv3.safetensors")
    for number, text in enumerate(HPSV3_TEXTS):
        (folder / "HPSv3" / f"text_{number}.txt").write_text(text)
    return folder


def write_videoreward(folder: str | Path, seed: int = 0, *, output_dim: int = 1, step: int = 11352) -> Path:
    """model_config.json and checkpoint-*/model.pth, adapters unmerged, beside the base model."""
    folder = Path(folder)
    base = write_qwen_base(folder / "Qwen2-VL-2B-Instruct")
    home = folder / "VideoReward"
    (home / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
    state = _qwen_body(base, len(_tokenizer()) + 3, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    rank, prefix = 2, "base_model.model."
    wrapped: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.startswith("model.layers") and value.ndim == 2:
            root = prefix + name.removesuffix(".weight")
            wrapped[f"{root}.base_layer.weight"] = value
            wrapped[f"{root}.lora_A.default.weight"] = torch.randn(rank, value.shape[1], generator=draw) * 0.2
            wrapped[f"{root}.lora_B.default.weight"] = torch.randn(value.shape[0], rank, generator=draw) * 0.2
        elif name.startswith("model.layers") and "_proj.bias" in name:
            wrapped[prefix + name.replace(".bias", ".base_layer.bias")] = value
        else:
            wrapped[prefix + name] = value
    wrapped[f"{prefix}rm_head.weight"] = torch.randn(output_dim, 32, generator=draw)
    torch.save(wrapped, home / f"checkpoint-{step}/model.pth")
    configuration = {
        "data_config": {"fps": 2.0, "max_frame_pixels": 3136, "sample_type": "uniform"},
        "model_config": {"output_dim": output_dim, "reward_token": "special", "use_special_tokens": True},
        "peft_lora_config": {
            "lora_enable": True,
            "lora_r": rank,
            "lora_alpha": 2 * rank,
            "use_rslora": False,
        },
        "inference_config": {
            "VQ_mean": 3.6757,
            "VQ_std": 2.2476,
            "MQ_mean": 1.1646,
            "MQ_std": 1.3811,
            "TA_mean": 2.8105,
            "TA_std": 2.5121,
        },
    }
    (home / "model_config.json").write_text(json.dumps(configuration))
    (home / "text.txt").write_text(VIDEO_TEXT)
    return folder


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
    tokenizer = _tokenizer(written)
    sizes = {"min_pixels": 784, "max_pixels": 4 * 784}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**_qwen_sizes(tokenizer)))
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


# -------------------------------------------------------------------------------- CLIP-FlanT5


def _t5_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted({chr(number) for number in range(33, 127)} | {"\u2581"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581Yes", -1.0), ("\u2581No", -1.0)]
    pieces += [(letter, -5.0 - 0.01 * number) for number, letter in enumerate(letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def write_clip_flant5(folder: str | Path, seed: int = 0, *, with_tower: bool = True) -> Path:
    """CLIP-FlanT5-XXL, Flan-T5's tokenizer and CLIP's tower, each in its own folder. Returns theirs."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    folder = Path(folder)
    tokenizer = _t5_tokenizer()
    tokenizer.save_pretrained(str(folder / "flan-t5-xxl"))
    model_folder = folder / "clip-flant5-xxl"
    vision_folder = folder / "clip-vit-large-patch14-336"
    model_folder.mkdir(parents=True, exist_ok=True)
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower, language = CLIPVisionModel(vision), T5ForConditionalGeneration(text)
        first, second = torch.nn.Linear(24, 16), torch.nn.Linear(16, 16)
    vision.save_pretrained(str(vision_folder))
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessor(**size).save_pretrained(str(vision_folder))
    own = {name: value for name, value in language.state_dict().items() if ".embed_tokens." not in name}
    state = {**own, "embed_tokens.weight": own["shared.weight"].clone()}
    state.update({"encoder.embed_tokens.weight": own["shared.weight"].clone()})
    for place, layer in ((0, first), (2, second)):
        state.update({f"mm_projector.{place}.{name}": value for name, value in layer.state_dict().items()})
    seen = {f"vision_model.{name}": value for name, value in tower.state_dict().items()}
    # The published tower file is the whole of CLIP; only its vision half is ours.
    torch.save({**seen, "logit_scale": torch.tensor(2.0)}, vision_folder / "pytorch_model.bin")
    if with_tower:
        state.update({f"vision_tower.vision_tower.{name}": value for name, value in seen.items()})
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        torch.save(
            {name: state[name] for name in part}, model_folder / f"pytorch_model-{number:05d}-of-00002.bin"
        )
    extra = {"model_type": "clip_t5", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    (model_folder / "config.json").write_text(json.dumps({**text.to_dict(), **extra}))
    return folder


# -------------------------------------------------------------------------------- tables


def _picture(seed: int, width: int = 40, height: int = 35) -> Image.Image:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def _clips() -> list[Sample]:
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
        for clip in _clips()
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
_CHOICES = [
    f"{opening} {noun} {number} is better."
    for opening in ("So", "Then", "Hence")
    for noun, number in (("X", 1), ("X", 2))
]
_IMAGE_CHOICES = [text.replace("X", "Image") for text in _CHOICES]
_WRITTEN: dict[str, list[str]] = {
    "unifiedreward_image": _spread("cat (animal): 1\nFinal Score: #", 1, 5),
    "unifiedreward_image_acs": _spread(_ACS_TEXT, 1, 5),
    "unifiedreward2_image_acs": _spread(_ACS_TEXT, 1, 5),
    "unifiedreward_video": _spread("Final Score: #", 1, 10),
    "unifiedreward2_video_aps": _spread(_ACS_TEXT.replace("Coherence", "Physics"), 1, 5),
    "unifiedreward_image_pair": _IMAGE_CHOICES,
    "unifiedreward_video_pair": [text.replace("X", "Video") for text in _CHOICES],
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
    "hpsv3": write_hpsv3,
    "videoreward": write_videoreward,
    "vqascore": write_chat_model,
    "vqascore_flant5": write_clip_flant5,
    "yes_no_ratio": write_chat_model,
    **{name: _judge(written) for name, written in _WRITTEN.items()},
}

SAMPLES: dict[str, Callable[[], list[Sample]]] = {
    "videoreward": _clips,
    "vlm_pairwise_judge": _pairs,
    **{
        name: {
            (True, True): _clip_pairs,
            (True, False): _pairs,
            (False, True): _clips,
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
    "hpsv3": {"template_sha256": ",".join(text_sha256(text) for text in HPSV3_TEXTS), "pixels": 3136},
    "videoreward": {"template_sha256": text_sha256(VIDEO_TEXT)},
    **{name: {"template_sha256": text_sha256(JUDGE_TEXT)} for name in _WRITTEN if name.startswith("unified")},
}

OTHER_OPTIONS: dict[str, dict[str, Any]] = {
    "hpsv3": {"positions": "mrope", "pixels": 6272},
    "videoreward": {"positions": "mrope", "normalised": False},
    "vqascore": {"question": "Is this {}?", "answer": "yes", "opposite": "no", "temperature": 2.0},
    "vqascore_flant5": {"question": "Is this {}?"},
    "yes_no_ratio": {"question": "Is this {}?", "temperature": 2.0, "max_pixels": 999},
    "vlm_judge": {"rubric": "image_quality", "max_new_tokens": 7},
    "vlm_pairwise_judge": {"max_new_tokens": 7},
    "unifiedreward_image": {"max_new_tokens": 7, "max_pixels": 999},
}

TOLERANCES: dict[str, float] = dict.fromkeys(_WRITTEN, 1.0)  # another rounding may choose another answer
