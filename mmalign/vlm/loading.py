"""Configs, processors and weights of language models: from a folder or the hub, never remote code."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmalign.errors import ConfigError, explain
from mmalign.train.quantization import quantize, require_bitsandbytes, train_through
from mmalign.train.recomputing import recompute_layers
from mmalign.vlm.flex import require_flex

if TYPE_CHECKING:
    from mmalign.train.config import ModelConfig

__all__ = ["load_config", "load_model", "load_processor"]

_ATTENTION = {"auto": "sdpa", "sdpa": "sdpa", "flash": "flash_attention_2", "flex": "sdpa"}
"""Of transformers. flex is asked for by the masks of packed rows; all else stays with torch's SDPA."""


def _load(what: str, settings: "ModelConfig", loader: Callable[..., Any], **options: Any) -> Any:
    """What a loader of transformers finds at the run's source, with our message where it finds nothing."""
    try:
        return loader(
            settings.source, revision=settings.revision or "main", trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        where = "folder" if Path(settings.source).is_dir() else "hub id or folder"
        reason = next(iter(str(error).strip().splitlines()), "nothing there")
        message = explain(
            f"model.source: {what}",
            got=settings.source,
            expected=f"a {where} with a model of transformers",
            do=f"({reason})",
        )
        raise ConfigError(message) from error


def load_config(settings: "ModelConfig", family: str, model_types: tuple[str, ...]) -> Any:
    """The model's config.

    Raises:
        ConfigError: nothing is there, or it is another family's.
    """
    from transformers import AutoConfig

    config = _load("config", settings, AutoConfig.from_pretrained)
    if model_types and config.model_type not in model_types:
        message = explain(
            "model.family",
            got=family,
            expected=f"the family of {settings.source}, whose config says {config.model_type!r}",
            do=f"Family {family} loads {', '.join(model_types)}.",
        )
        raise ConfigError(message)
    return config


def load_processor(settings: "ModelConfig", *, sees: bool) -> Any:
    """The model's processor; of a language model alone, its tokenizer.

    Raises:
        ConfigError: nothing is there.
    """
    from transformers import AutoProcessor, AutoTokenizer

    loader = AutoProcessor.from_pretrained if sees else AutoTokenizer.from_pretrained
    return _load("processor", settings, loader)


def load_model(
    settings: "ModelConfig", config: Any, *, dtype: torch.dtype, device: torch.device | str, sees: bool
) -> Any:
    """The model with its head: in evaluation mode, on the device, its layers checkpointed where asked.

    Raises:
        ConfigError: nothing is there, or its attention cannot run as asked.
        MissingExtraError: quantisation without bitsandbytes.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if settings.attention not in _ATTENTION:
        message = explain(
            "model.attention",
            got=settings.attention,
            expected="auto, sdpa, flash or flex for language models",
        )
        raise ConfigError(message)
    if settings.attention == "flex":
        text = config.get_text_config()
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        require_flex(torch.device(device), dtype, int(size))
    loader = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_pretrained
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": _ATTENTION[settings.attention],
    }
    by_loader = settings.quantization == "nf4"
    if by_loader:
        options |= {"quantization_config": _quantised(settings, dtype), "device_map": {"": device}}
    try:
        model = _load("weights", settings, loader, **options)
    except ImportError as error:
        message = explain("model.attention", got=settings.attention, expected="sdpa", do=f"({error})")
        raise ConfigError(message) from error
    model.eval()
    if by_loader:
        train_through(model)
    else:
        if settings.quantization is not None:
            quantize(model, settings.quantization, dtype=dtype, wide=("lm_head", *_SEEING))
        model.to(device)
    if settings.gradient_checkpointing:
        recompute_layers(model, settings.gradient_checkpointing)
    return model


def _quantised(settings: "ModelConfig", dtype: torch.dtype) -> Any:
    """The quantisation that a run asks for; the head stays as it is, its weights are read without it.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    require_bitsandbytes(str(settings.quantization))
    from transformers import BitsAndBytesConfig

    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_WIDE_PARTS)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,  # a run in full precision has its products in it
        llm_int8_skip_modules=_WIDE_PARTS,
    )


_SEEING = (
    *("vision_tower", "vision_model", "visual", "image_tower", "video_tower"),
    *("multi_modal_projector", "connector"),
)
_WIDE_PARTS = ["lm_head", *_SEEING, *(f"model.{name}" for name in _SEEING)]
"""What quantisation leaves alone: the head, and what is small beside the language model and sees.

Names are compared from their beginning: of the base model in some versions, of the whole one in others.
"""
