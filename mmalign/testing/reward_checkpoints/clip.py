"""Tiny CLIP-type checkpoints: Hugging Face folders, open_clip state dicts, aesthetic heads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmalign.rewards.aesthetic_head import AestheticHead
from mmalign.rewards.pixels import CLIP_MEAN, CLIP_STD
from mmalign.rewards.sample import Sample
from mmalign.testing.tiny import write_clip_tokenizer

__all__ = [
    "CHECKPOINTS",
    "LOAD_OPTIONS",
    "OTHER_OPTIONS",
    "SAMPLES",
    "SIZE",
    "picture_samples",
    "write_aesthetic_v1",
    "write_aesthetic_v2",
    "write_clip_folder",
    "write_clipscore",
    "write_hps",
    "write_pickscore",
]

SIZE = 28
"""Native picture size of the tiny Hugging Face towers."""

_PATCH = 14
_PROJECTION = 24


def write_clip_folder(
    folder: Path, seed: int = 0, *, weight_file: str = "model.safetensors", size: int = SIZE
) -> Path:
    """A `CLIPModel` folder as the hub has them: configuration, weights, tokenizer, preprocessing. Returns it.

    Args:
        folder: where to write.
        seed: decides the random weights.
        weight_file: `model.safetensors`, or `pytorch_model.bin` as older repositories have.
        size: native picture size.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    source = folder / "slow_tokenizer"
    vocabulary = write_clip_tokenizer(source, pad_token="<|endoftext|>")
    CLIPTokenizer.from_pretrained(str(source)).save_pretrained(str(folder))
    for file in source.iterdir():
        file.unlink()
    source.rmdir()
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": _PROJECTION}
    config = CLIPConfig(
        text_config={
            **sizes,
            "vocab_size": vocabulary,
            "hidden_size": 16,
            "intermediate_size": 32,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
        vision_config={
            **sizes,
            "hidden_size": 20,
            "intermediate_size": 40,
            "image_size": size,
            "patch_size": _PATCH,
        },
        projection_dim=_PROJECTION,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config).eval()
        for parameter in model.parameters():  # the library's own start is too small to tell pictures apart
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.4)
        model.logit_scale.data.fill_(4.6052)
    if weight_file.endswith(".safetensors"):
        model.save_pretrained(str(folder))
    else:
        model.config.architectures = ["CLIPModel"]
        model.config.save_pretrained(str(folder))
        torch.save(model.state_dict(), folder / weight_file)
    _write_preprocessing(folder, size)
    return folder


def _write_preprocessing(folder: Path, size: int) -> None:
    settings = {
        "crop_size": size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "resample": 3,
        "size": size,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))


def write_pickscore(folder: Path, seed: int = 0) -> Path:
    """What `yuvalkirstain/PickScore_v1` holds."""
    return write_clip_folder(folder, seed)


def write_clipscore(folder: Path, seed: int = 0) -> Path:
    """The backbones that CLIPScore can be asked for, each in a folder of its repository's name."""
    names = {
        "clip-vit-base-patch32": "pytorch_model.bin",
        "clip-vit-large-patch14": "model.safetensors",
    }
    for number, (name, weight_file) in enumerate(names.items()):
        write_clip_folder(folder / name, seed + 100 * number, weight_file=weight_file)
    return folder


def write_hps(file: str) -> Callable[[Path, int], Path]:
    """A writer of an HPS checkpoint: `{"state_dict": ...}` of an open_clip model, in half precision.

    The architecture is written beside it; real checkpoints are ViT-H-14.
    """

    def write(folder: Path, seed: int = 0) -> Path:
        from open_clip.model import CLIP

        described: dict[str, Any] = {
            "embed_dim": _PROJECTION,
            "vision_cfg": {"image_size": 224, "layers": 2, "width": 24, "head_width": 12, "patch_size": 56},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = CLIP(**described)
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.data.normal_(0.0, 0.3)
        state = {name: value.half() for name, value in model.state_dict().items()}
        torch.save({"epoch": 1, "state_dict": state}, folder / file)
        return folder

    return write


def write_aesthetic_v2(folder: Path, seed: int = 0) -> Path:
    """ViT-L/14's folder beside the heads with and without activations."""
    write_clip_folder(folder / "clip-vit-large-patch14", seed)
    heads = folder / "improved-aesthetic-predictor"
    heads.mkdir()
    for name, places in (
        ("sac+logos+ava1-l14-linearMSE", (0, 2, 4, 6, 7)),
        ("ava+logos-l14-reluMSE", (0, 3, 6, 9, 11)),
    ):
        torch.save(_head_state((_PROJECTION, 17, 13, 11, 7, 1), places, seed), heads / f"{name}.pth")
    return folder


def write_aesthetic_v1(folder: Path, seed: int = 0) -> Path:
    """ViT-L/14's and ViT-B/32's folders beside the linear layers of `LAION-AI/aesthetic-predictor`."""
    write_clipscore(folder, seed)
    heads = folder / "aesthetic-predictor"
    heads.mkdir()
    for number, name in enumerate(("sa_0_4_vit_l_14_linear.pth", "sa_0_4_vit_b_32_linear.pth")):
        state = _head_state((_PROJECTION, 1), (0,), seed + number)
        torch.save({key.removeprefix("layers.0."): value for key, value in state.items()}, heads / name)
    return folder


def _head_state(sizes: tuple[int, ...], places: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
    """The published keys of a head: linear layers at `places` of a sequence."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = AestheticHead(sizes).linear
    return {
        f"layers.{place}.{part}": getattr(layer, part).detach().clone() * 3.0
        for place, layer in zip(places, linear, strict=True)
        for part in ("weight", "bias")
    }


def picture_samples() -> list[Sample]:
    """Pictures of several shapes and prompts of several lengths, one of them too long for 77 tokens."""
    generator = torch.Generator().manual_seed(7)
    sizes = ((61, 43), (37, 59), (53, 53), (29, 83), (67, 47))
    prompts = ("a red cube", "", "zwei blaue Würfel 🐈", "many words " * 60, "a photo of a cat, 4k")
    return [
        Sample(prompt, image=(torch.rand(3, *size, generator=generator) * 255).to(torch.uint8))
        for prompt, size in zip(prompts, sizes, strict=True)
    ]


def _referenced() -> list[Sample]:
    captions = (["a cube"], ["nothing", "an empty page"], ["Würfel", "two cubes", "cubes"])
    return [
        Sample(sample.prompt, image=sample.image, extras={"references": references})
        for sample, references in zip(picture_samples(), captions, strict=False)
    ]


CHECKPOINTS: dict[str, Callable[[Path, int], Path]] = {
    "aesthetic_v1": write_aesthetic_v1,
    "aesthetic_v2": write_aesthetic_v2,
    "clipscore": write_clipscore,
    "hpsv2": write_hps("HPS_v2_compressed.pt"),
    "hpsv21": write_hps("HPS_v2.1_compressed.pt"),
    "pickscore_v1": write_pickscore,
    "refclipscore": write_clipscore,
}
SAMPLES: dict[str, Callable[[], list[Sample]]] = {"refclipscore": _referenced}
LOAD_OPTIONS: dict[str, dict[str, Any]] = {}
OTHER_OPTIONS: dict[str, dict[str, Any]] = {
    "aesthetic_v1": {"backbone": "vit-b-32"},
    "aesthetic_v2": {"head": "ava+logos-l14-reluMSE"},
    "clipscore": {"backbone": "vit-l-14", "variant": "cosine"},
    "hpsv2": {"antialias": False, "backend": "pil"},
    "hpsv21": {"antialias": False, "backend": "pil"},
    "refclipscore": {"backbone": "vit-l-14"},
}
