"""A frozen linear layer whose weights take one byte each, and that trains through like any other.

Weights alone are narrow; the product is computed in the inputs' precision. So the error of a weight is the
same in every pass, for the policy and for a reference that switches adapters off, and does not depend on what
flows through. (Kernels that round the inputs, too, make errors that move with every adapter update.)

Written here because libraries keep the widened weights of every layer for the backward pass: torchao 0.18's
`Float8WeightOnlyConfig` and diffusers' layerwise casting hand autograd a full copy each, so that a network
under training needs more memory than before. Here autograd keeps the narrow weights.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["NarrowKind", "NarrowLinear"]

NarrowKind = Literal["int8", "fp8"]
"""int8: integers from -127 to 127. fp8: float8 e4m3 (1 sign, 4 exponent, 3 mantissa bits; up to 448)."""

_LARGEST = {"int8": 127.0, "fp8": 448.0}


class NarrowLinear(nn.Linear):
    """`inputs @ weight.T + bias` with frozen weights of one byte and a float32 scale per output channel.

    The bytes are kept under integer types, also those of float8: code that casts, counts or averages floating
    point weights must leave them alone.

    Args:
        linear: whose weights are narrowed; not changed. On the meta device shapes alone are made.
        kind: of the stored numbers.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear, kind: NarrowKind) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind: NarrowKind = kind
        stored, scale = _narrowed(linear.weight.detach(), kind)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """The product in autocast's precision, or in that of the inputs."""
        device_type = inputs.device.type
        if device_type != "meta" and torch.is_autocast_enabled(device_type):
            inputs = inputs.to(torch.get_autocast_dtype(device_type))
        product: Tensor = _Product.apply(inputs, self.weight, self.scale, self.kind)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def widened(self) -> Float[Tensor, "out in"]:
        """The weights as the products see them, float32."""
        return _widened(self.weight, self.scale, self.kind, torch.float32)

    def extra_repr(self) -> str:
        """What `print` says of the layer."""
        return f"{super().extra_repr()}, {self.kind}"


class _Product(torch.autograd.Function):
    """The product, which keeps narrow weights for its backward pass and widens them once more there."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, stored: Tensor, scale: Tensor, kind: NarrowKind) -> Tensor:
        ctx.save_for_backward(stored, scale)
        ctx.kind = kind
        return nn.functional.linear(inputs, _widened(stored, scale, kind, inputs.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        stored, scale = ctx.saved_tensors
        return grad @ _widened(stored, scale, ctx.kind, grad.dtype), None, None, None


def _narrowed(weight: Tensor, kind: NarrowKind) -> tuple[Tensor, Tensor]:
    """Bytes and scales; the largest weight of a channel becomes the largest number of the kind."""
    wide = weight.to(torch.float32)
    largest = wide.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * 1e6)
    scale = largest / _LARGEST[kind]
    share = (wide / scale).clamp(-_LARGEST[kind], _LARGEST[kind])
    if kind == "int8":
        return share.round().to(torch.int8), scale
    return share.to(torch.float8_e4m3fn).view(torch.uint8), scale


def _widened(stored: Tensor, scale: Tensor, kind: NarrowKind, dtype: torch.dtype) -> Tensor:
    numbers = stored if kind == "int8" else stored.view(torch.float8_e4m3fn)
    # The product with the scale is rounded once: the scales are float32 whatever the products are in.
    return (numbers.to(torch.float32) * scale).to(dtype)
