"""The forward pass of a plain LoRA layer in three products, where peft takes three and two passes more.

peft computes `base(x) + B(A(x)) * scaling`: it writes the product with B, reads and writes it for the
scaling, and reads and writes it for the sum. Here the product with B is added to the base's result as it is
made, scaling included (BLAS has both in one call, `addmm`), and inputs under autocast are cast once for both
branches and not once for each. Modules, names of weights and files stay peft's: only the class of a layer
changes, and anything but the plain case runs peft's own forward pass.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.train.adapter_library import LoraLinear

__all__ = ["LeanLoraLinear", "make_lean"]

_ADAPTER = "default"
_ALONE = (_ADAPTER, [_ADAPTER])
"""How peft writes that this adapter is the active one."""


class LeanLoraLinear(LoraLinear):  # type: ignore[misc]  # peft has no types
    """A LoRA layer of peft on an `nn.Linear`, with a shorter forward pass.

    Equal to peft's up to rounding: in low precision the sum is rounded once, where peft rounds three times.
    The base's product is the one that it makes without adapters, bit for bit.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[..., in]` to `[..., out]`; what is not plain goes through peft's forward pass."""
        result: Tensor
        # Sharding that cuts single layers gives them another class, and must be called layer by layer.
        base = self._modules["base_layer"]
        if args or kwargs or self.merged_adapters or type(base) is not nn.Linear:
            result = super().forward(x, *args, **kwargs)
            return result
        # A flag of Python: compiled code has one version with adapters and one without.
        if self._disable_adapters:
            result = base(x)
            return result
        down, up = self.lora_A[_ADAPTER].weight, self.lora_B[_ADAPTER].weight
        # Plans are counted on the meta device, which has no autocast.
        is_cast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
        has_one_dtype = is_cast or x.dtype == down.dtype == up.dtype == base.weight.dtype
        # Inputs of other layouts are multiplied by other kernels than rows of them.
        is_rows = x.ndim <= 3 and x.is_contiguous()
        if not has_one_dtype or not is_rows or self._active_adapter not in _ALONE:
            result = super().forward(x)
            return result
        rows = x.view(-1, x.shape[-1])
        if is_cast:
            rows = rows.to(torch.get_autocast_dtype(x.device.type))
        narrow = nn.functional.linear(rows, down)
        wide = torch.addmm(base(rows), narrow, up.t(), alpha=self.scaling[_ADAPTER])
        return wide.view(*x.shape[:-1], wide.shape[-1])


def make_lean(network: nn.Module) -> int:
    """Shorten the forward pass of all plain LoRA layers, in place; returns how many there are.

    Plain is one adapter named "default" on an `nn.Linear` itself, without dropout, bias or a variant such as
    DoRA. Quantised bases, convolutions and embeddings stay peft's.

    Args:
        network: with peft's layers.
    """
    layers = [module for module in network.modules() if _is_plain(module)]
    for layer in layers:
        # A class, not a bound function: a deep copy must compute with its own weights.
        layer.__class__ = LeanLoraLinear
    return len(layers)


def _is_plain(layer: Any) -> bool:
    return (
        type(layer) is LoraLinear
        and type(layer.base_layer) is nn.Linear
        and list(layer.lora_A) == [_ADAPTER]
        and isinstance(layer.lora_dropout[_ADAPTER], nn.Identity)
        and layer.lora_B[_ADAPTER].bias is None
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and isinstance(layer.scaling[_ADAPTER], int | float)
    )
