"""Tiny HPSv3 and VideoReward: Qwen2-VL bodies with heads, in the key names of transformers 4.45."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmalign.rewards.published_texts import text_sha256
from mmalign.rewards.sample import Sample
from mmalign.testing.reward_checkpoints.vision_language import CHAT, byte_tokenizer, clips, qwen_sizes

__all__ = [
    "BAD_SAMPLES",
    "CHECKPOINTS",
    "HPSV3_TEXTS",
    "LOAD_OPTIONS",
    "OTHER_OPTIONS",
    "SAMPLES",
    "VIDEO_TEXT",
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


def write_qwen_base(folder: str | Path) -> Path:
    """Qwen2-VL-Instruct without its weights, in the files of its repository. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer()
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
        ("config.json", qwen_sizes(tokenizer)),
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
    state = _qwen_body(base, len(byte_tokenizer()) + 1, seed)
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
    state = _qwen_body(base, len(byte_tokenizer()) + 3, seed)
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


CHECKPOINTS: dict[str, Callable[..., Path]] = {"hpsv3": write_hpsv3, "videoreward": write_videoreward}

SAMPLES: dict[str, Callable[[], list[Sample]]] = {"videoreward": clips}

BAD_SAMPLES: dict[str, Sample] = {"videoreward": Sample(prompt="a clip", frames=[b"no picture", b"none"])}

LOAD_OPTIONS: dict[str, dict[str, Any]] = {
    "hpsv3": {"template_sha256": ",".join(text_sha256(text) for text in HPSV3_TEXTS), "pixels": 3136},
    "videoreward": {"template_sha256": text_sha256(VIDEO_TEXT)},
}

OTHER_OPTIONS: dict[str, dict[str, Any]] = {
    "hpsv3": {"positions": "mrope", "pixels": 6272},
    "videoreward": {"positions": "mrope", "normalised": False},
}
