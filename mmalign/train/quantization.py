"""Frozen weights in 4 or 8 bits under LoRA: which layers, by what, and how many there are afterwards.

nf4 is bitsandbytes' (arXiv:2305.14314), with quantised scales; int8 and fp8 are `NarrowLinear`. All three
keep weights alone narrow and compute products in the run's precision. LLM.int8 of bitsandbytes is not used:
it rounds activations, too, so that its errors move with every update of the adapter.

What stays as it is, is said once, by `_WIDE_PARTS` and `is_narrowed`: convolutions, biases, everything
outside the repeated blocks (input and output projections, embeddings of time and of text), and inside of them
norms with their modulation and projections of the time embedding. Every layer reads what they give.
diffusers' `enable_layerwise_casting` keeps the same (`DEFAULT_SKIP_MODULES_PATTERN` and the models'
`_skip_layerwise_casting_patterns`).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from mmalign.errors import CheckpointError, ConfigError, MissingExtraError, explain
from mmalign.train.narrow_linear import NarrowLinear

__all__ = [
    "PER_WEIGHT",
    "Quantization",
    "QuantizationReport",
    "frozen_bytes",
    "is_narrowed",
    "quantize",
    "report_of",
    "require_bitsandbytes",
    "require_readable",
    "require_wide",
    "train_through",
]

Quantization = Literal["nf4", "int8", "fp8"]

PER_WEIGHT: dict[str, float] = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "fp8": 1.0}
"""Bytes of a weight; nf4 with a byte per 64 weights and a float32 per 256 of those."""

_BLOCK = 64
"""Weights of nf4 that share a scale."""

_WIDE_PARTS = ("norm", "emb", "adaln", "modulation")
"""In the name of a module, or of one that holds it: its linear layers stay as they are."""


_BY_KEYWORD = {"AnimateDiffTransformer3D": ("proj_in", "proj_out")}
"""Linear layers that diffusers calls with `input=`, which narrow layers name otherwise; few weights."""


@dataclass(frozen=True)
class QuantizationReport:
    """What a network's linear layers are held in, as found in the network.

    Args:
        layers: how many there are of each kind of narrow layer.
        wide: linear layers that are held as they were.
        narrow_weights: weights of the narrow layers.
        narrow_bytes: that they take, with their scales.
    """

    layers: dict[str, int]
    wide: int
    narrow_weights: int
    narrow_bytes: int

    def __str__(self) -> str:
        """One line for the run's opening."""
        found = ", ".join(f"{number} linear layers in {kind}" for kind, number in self.layers.items())
        size = f"{self.narrow_weights:,} weights in {self.narrow_bytes:,} bytes"
        return f"quantization: {found or 'no linear layer is narrow'} ({size}); {self.wide} stay as they are"


def is_narrowed(network: nn.Module, name: str, kind: str, *, wide: Collection[str] = ()) -> bool:
    """Whether a linear layer of a network is quantised, by its name.

    Args:
        network: that holds it.
        name: of the layer.
        kind: of weights.
        wide: further names of modules that stay as they are, with all inside of them.
    """
    parts = name.split(".")
    if any(word in part for word in _WIDE_PARTS for part in parts) or not set(wide).isdisjoint(parts):
        return False
    holder = type(network.get_submodule(".".join(parts[:-1]))).__name__
    if parts[-1] in _BY_KEYWORD.get(holder, ()):
        return False
    layer = network.get_submodule(name)
    if type(layer) is not nn.Linear or (kind == "nf4" and layer.weight.numel() % _BLOCK):
        return False
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    return any(isinstance(network.get_submodule(one), nn.ModuleList) for one in above)


def quantize(
    network: nn.Module, kind: Quantization, *, dtype: torch.dtype, wide: Collection[str] = ()
) -> QuantizationReport:
    """Put narrow layers in the place of a frozen network's linear layers.

    Weights of nf4 become narrow when the network is moved to its device, as bitsandbytes does it. On the meta
    device, where plans count, they take a byte: `frozen_bytes` knows what they will take.

    Args:
        network: changed in place.
        kind: of weights.
        dtype: in which products of nf4 are computed.
        wide: further names of modules that stay as they are.

    Raises:
        ConfigError: no linear layer of the network would be narrow.
        MissingExtraError: nf4 without bitsandbytes.
    """
    if kind == "nf4" and next(network.parameters()).device.type != "meta":
        require_bitsandbytes(kind)
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and is_narrowed(network, name, kind, wide=wide)
    ]
    if not names:
        message = explain(
            "model.quantization",
            got=kind,
            expected=f"a network with linear layers in its blocks, which {type(network).__name__} has not",
            do="Leave model.quantization out.",
        )
        raise ConfigError(message)
    for name in names:
        parent, _, last = name.rpartition(".")
        layer: Any = network.get_submodule(name)
        setattr(network.get_submodule(parent), last, _narrow(layer, kind, dtype))
    return report_of(network)


def _narrow(layer: nn.Linear, kind: Quantization, dtype: torch.dtype) -> nn.Module:
    if kind != "nf4" or layer.weight.device.type == "meta":
        return NarrowLinear(layer, "int8" if kind == "nf4" else kind)
    from bitsandbytes.nn import Linear4bit, Params4bit

    narrow: Any = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=False,
        compute_dtype=dtype,
        quant_type="nf4",
        device="meta",
    )
    narrow.weight = Params4bit(
        layer.weight.detach(), requires_grad=False, compress_statistics=True, quant_type="nf4", module=narrow
    )
    narrow.bias = layer.bias
    narrow.to(layer.weight.device)
    return train_through(narrow)


def train_through(network: nn.Module) -> nn.Module:
    """Keep bitsandbytes' 4-bit layers in the format that has gradients; returns the network.

    On CPUs with bfloat16 instructions bitsandbytes 0.50 repacks a layer's weights in the first pass without
    gradients in evaluation mode, as the reference's is, for a kernel that has no backward pass. Policy passes
    would then go through it, and gradients would end there without an error.
    """
    layers: list[Any] = [layer for layer in network.modules() if type(layer).__name__ == "Linear4bit"]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return network


def _kind_of(module: nn.Module) -> str | None:
    """The kind of a narrow layer; None of others."""
    if isinstance(module, NarrowLinear):
        return module.kind
    # Known by name: bitsandbytes need not be here.
    return "nf4" if type(module).__name__ == "Linear4bit" else None


def report_of(network: nn.Module) -> QuantizationReport:
    """What the network's linear layers are held in, by looking at them.

    Args:
        network: before adapters are put on.
    """
    layers: dict[str, int] = {}
    wide = weights = size = 0
    for module in network.modules():
        kind = _kind_of(module)
        if kind is not None:
            narrow: Any = module
            layers[kind] = layers.get(kind, 0) + 1
            count = int(narrow.in_features) * int(narrow.out_features)
            weights += count
            size += round(count * PER_WEIGHT[kind]) + (0 if kind == "nf4" else 4 * int(narrow.out_features))
        elif type(module) is nn.Linear:
            wide += 1
    return QuantizationReport(layers, wide, weights, size)


def frozen_bytes(network: nn.Module, kind: Quantization) -> int:
    """Bytes of the frozen weights of a network that `quantize` has seen, on the meta device."""
    layers = [module for module in network.modules() if isinstance(module, NarrowLinear)]
    own = {id(layer.weight) for layer in layers}
    rest = sum(
        value.numel() * value.element_size()
        for value in network.parameters()
        if id(value) not in own and not value.requires_grad
    )
    return rest + sum(round(layer.weight.numel() * PER_WEIGHT[kind]) for layer in layers)


def require_wide(network: nn.Module, what: str) -> None:
    """Refuse what would round trained weights away.

    Args:
        network: that is to be merged or written as a whole.
        what: is to be done, for the message.

    Raises:
        CheckpointError: some of its layers are quantised.
    """
    kinds = sorted({kind for module in network.modules() if (kind := _kind_of(module))})
    if kinds:
        message = explain(
            what,
            got=f"a network with weights in {' and '.join(kinds)}",
            expected="weights in full precision: a sum rounded to so few bits would lose the adapter",
            do="Use `mmalign export`, which merges into the base model's own weights, or save the adapter.",
        )
        raise CheckpointError(message)


def require_readable(network: nn.Module) -> None:
    """Refuse DoRA on `NarrowLinear`: peft would take the norms of the bytes for those of the weights.

    Raises:
        ConfigError: the network has such layers.
    """
    kinds = sorted({module.kind for module in network.modules() if isinstance(module, NarrowLinear)})
    if kinds:
        message = explain(
            "adapter.use_dora",
            got=True,
            expected=f"false over frozen weights in {' and '.join(kinds)}, whose norms peft cannot take",
            do="Set model.quantization: nf4 to train DoRA over few bits.",
        )
        raise ConfigError(message)


def require_bitsandbytes(kind: str) -> None:
    """Raise `MissingExtraError` where bitsandbytes is not installed.

    Args:
        kind: of weights, for the message.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        others = ", ".join(other for other in get_args(Quantization) if other != kind)
        message = explain(
            "model.quantization",
            got=kind,
            expected="bitsandbytes",
            do=f"pip install 'mmalign[8bit]' (other kinds: {others})",
        )
        raise MissingExtraError(message) from error
