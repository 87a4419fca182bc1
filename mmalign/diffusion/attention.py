"""Attention backends and checkpointing of a diffusers network, verified after they are applied.

diffusers accepts a backend for networks that then ignore it, so a request counts only when the processors
that will really run have been looked at. UNets know three: torch's own choice, torch's flash kernel and
nothing else, xformers. `auto` takes the fastest verified one (attention_choice.py).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmalign.diffusion.attention_choice import choose_backend
from mmalign.errors import ConfigError, MissingExtraError, explain

__all__ = ["AttentionReport", "FlashOnly", "apply_attention"]

Backend = Literal["sdpa", "xformers", "flash"]

_DISPATCHED = {"sdpa": "native", "xformers": "xformers", "flash": "_native_flash"}
"""Names of the backends for networks that honour diffusers' dispatcher."""


@dataclass(frozen=True)
class AttentionReport:
    """What a network's attention really runs on.

    Args:
        requested: the setting.
        processors: class name of each kind of processor found afterwards, and how many there are.
        detail: one sentence for the run's opening lines.
    """

    requested: Backend | Literal["auto"]
    processors: Mapping[str, int] = field(default_factory=dict)
    detail: str = ""


class FlashOnly:
    """An attention processor that lets torch pick its flash kernel and no other.

    The restriction is taken at every call and not around the whole forward pass: gradient checkpointing runs
    the forward again during backward, and must meet the same kernel there.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """The inner processor's result; torch raises when its flash kernel cannot take these tensors.

        Where text is masked there is no flash kernel at all, and torch picks another.
        """
        if keywords.get("attention_mask") is not None:
            return self.inner(*arguments, **keywords)
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            return self.inner(*arguments, **keywords)


def apply_attention(
    network: nn.Module,
    backend: Backend | Literal["auto", "flex"],
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> AttentionReport:
    """Set the attention backend of a diffusers network and report what it runs on now.

    Args:
        network: UNet or transformer of diffusers; changed in place.
        backend: "auto", "sdpa", "flash" or "xformers"; "flex" is refused.
        device: where the network will run.
        dtype: of its matrix products (the autocast dtype, where that differs from the weights').

    Raises:
        ConfigError: the backend cannot run here, or the network ignored it.
        MissingExtraError: xformers is not installed.
    """
    device = torch.device(device)
    processors = getattr(network, "attn_processors", None)
    if not processors:
        message = explain(
            "model.attention",
            got=type(network).__name__,
            expected="a diffusers network with attention processors",
        )
        raise ConfigError(message)
    is_dispatched = any(hasattr(processor, "_attention_backend") for processor in processors.values())
    if backend == "flex":
        expected = "auto, sdpa, flash or xformers: flex serves packed rows of language models"
        raise ConfigError(explain("model.attention", got="flex", expected=expected))
    if backend == "auto":
        chosen, why = choose_backend(network, device=device, dtype=dtype, is_dispatched=is_dispatched)
        report = _dispatch(network, chosen) if is_dispatched else _replace_processors(network, chosen)
        return replace(report, requested="auto", detail=f"{report.detail}; {why}")
    if backend == "flash":
        _require_flash(device, dtype)
    elif backend == "xformers":
        _require_xformers(device)
    if is_dispatched:
        return _dispatch(network, backend)
    return _replace_processors(network, backend)


_PROCESSORS = {
    "AttnProcessor2_0": ("AttnProcessor2_0", "XFormersAttnProcessor"),
    "AttnProcessor": ("AttnProcessor2_0", "XFormersAttnProcessor"),
    "XFormersAttnProcessor": ("AttnProcessor2_0", "XFormersAttnProcessor"),
    "JointAttnProcessor2_0": ("JointAttnProcessor2_0", "XFormersJointAttnProcessor"),
    "StableAudioAttnProcessor2_0": ("StableAudioAttnProcessor2_0", None),
    "CogVideoXAttnProcessor2_0": ("CogVideoXAttnProcessor2_0", None),
}
"""Processor class as loaded: the one on torch's kernels, the one on xformers', if there is one."""


def _replace_processors(network: Any, backend: Backend) -> AttentionReport:
    """The path of networks that ignore the dispatcher: exchange the processors themselves."""
    from diffusers.models import attention_processor

    loaded = {type(processor).__name__ for processor in network.attn_processors.values()}
    if len(loaded) != 1 or not loaded <= set(_PROCESSORS):
        message = explain(
            f"model.attention {backend}",
            got=f"processors {sorted(loaded)}",
            expected=f"one of {sorted(_PROCESSORS)}",
            do="This version of diffusers builds this network in another way; please report it.",
        )
        raise ConfigError(message)
    plain, other = _PROCESSORS[loaded.pop()]
    on_torch = getattr(attention_processor, plain)
    if backend == "xformers":
        if other is None:
            message = explain(
                "model.attention",
                got="xformers",
                expected=f"sdpa or flash: {plain} has no other kernels",
            )
            raise ConfigError(message)
        network.enable_xformers_memory_efficient_attention()
        wanted, detail = other, "xformers memory-efficient attention"
    elif backend == "flash":
        network.set_attn_processor(FlashOnly(on_torch()))
        wanted, detail = (
            "FlashOnly",
            "torch scaled_dot_product_attention, flash kernel only (but for masked text)",
        )
    else:
        network.set_attn_processor(on_torch())
        wanted, detail = plain, "torch scaled_dot_product_attention, torch picks the kernel"
    found = Counter(type(processor).__name__ for processor in network.attn_processors.values())
    _verify(backend, wanted, found)
    return AttentionReport(backend, dict(found), f"{detail} ({found[wanted]} attention layers)")


def _dispatch(network: Any, backend: Backend) -> AttentionReport:
    """The path of networks that honour diffusers' dispatcher, in all layers but those of older kinds.

    HunyuanVideo's refiner of text has such layers: few tokens, masked; they stay on torch's kernels.
    """
    wanted = _DISPATCHED[backend]
    network.set_attention_backend(wanted)
    processors = network.attn_processors.values()
    older = Counter(
        type(processor).__name__ for processor in processors if not hasattr(processor, "_attention_backend")
    )
    if not set(older) <= {"AttnProcessor2_0"}:
        _verify(backend, "AttnProcessor2_0", older)
    found = Counter(
        str(getattr(processor._attention_backend, "value", processor._attention_backend))
        for processor in processors
        if hasattr(processor, "_attention_backend")
    )
    _verify(backend, wanted, found)
    rest = f"; {older.total()} more on torch scaled_dot_product_attention" if older else ""
    detail = f"dispatcher backend {wanted} ({found[wanted]} attention layers){rest}"
    return AttentionReport(backend, dict(found + older), detail)


def _verify(backend: Backend, wanted: str, found: Counter[str]) -> None:
    if set(found) != {wanted}:
        message = explain(
            f"model.attention {backend}",
            got=f"processors {dict(found)} after the request",
            expected=f"{wanted} everywhere",
            do="This network does not honour the backend; set model.attention: sdpa.",
        )
        raise ConfigError(message)


def _require_flash(device: torch.device, dtype: torch.dtype) -> None:
    """Run torch's flash kernel once on a small input of this device and dtype, forward and backward."""
    where = "model.attention flash"
    if device.type != "cuda":
        message = explain(
            where, got=f"device {device.type}", expected="a CUDA device", do="Set model.attention: sdpa."
        )
        raise ConfigError(message)
    if dtype not in (torch.float16, torch.bfloat16):
        message = explain(
            where,
            got=str(dtype),
            expected="float16 or bfloat16",
            do="Set train.mixed_precision: bf16, or model.attention: sdpa.",
        )
        raise ConfigError(message)
    probe = torch.zeros(1, 2, 16, 64, device=device, dtype=dtype, requires_grad=True)
    try:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            torch.nn.functional.scaled_dot_product_attention(probe, probe, probe).sum().backward()
    except RuntimeError as error:
        message = explain(
            where,
            got=f"torch's flash kernel does not run on {torch.cuda.get_device_name(device)} ({error})",
            expected="a card of compute capability 8.0 or newer",
            do="Set model.attention: sdpa.",
        )
        raise ConfigError(message) from error


def _require_xformers(device: torch.device) -> None:
    where = "model.attention xformers"
    if device.type != "cuda":
        message = explain(
            where,
            got=f"device {device.type}",
            expected="a CUDA device (xformers has no kernels elsewhere)",
            do="Set model.attention: sdpa.",
        )
        raise ConfigError(message)
    try:
        import xformers.ops  # noqa: F401 - asked whether it can be imported
    except ImportError as error:
        message = (
            f"{where}: xformers cannot be imported ({error}). Install it: `pip install mmalign[xformers]`; "
            "or set model.attention: sdpa, which runs the same kernels on current torch."
        )
        raise MissingExtraError(message) from error
