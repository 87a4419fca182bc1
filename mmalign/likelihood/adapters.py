"""Adapters switched off and on again: a tuned network that answers as its base, without a second model."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from mmalign.errors import ConfigError, explain

__all__ = ["Toggle", "adapter_toggle", "adapters_off", "switched_off"]

Toggle = Callable[[], AbstractContextManager[None]]
"""Makes a context in which the network answers without its adapters."""


@contextlib.contextmanager
def switched_off(layers: Sequence[Any]) -> Iterator[None]:
    """Adapter layers without their adapters inside, and as they were before afterwards.

    The flag alone: peft's public switches walk every module and flip `requires_grad` too. It is set past
    `nn.Module.__setattr__`, which looks for parameters first: ten milliseconds a step on SDXL.

    Args:
        layers: of peft.
    """
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        object.__setattr__(layer, "_disable_adapters", True)
    try:
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            object.__setattr__(layer, "_disable_adapters", flag)


def adapters_off(network: nn.Module) -> AbstractContextManager[None]:
    """A context in which `network` runs without its peft adapters, where it has any.

    For one use; `adapter_toggle` lists the layers once and refuses what would not be the base model.
    """
    return switched_off(_adapter_layers(network))


def adapter_toggle(network: nn.Module) -> Toggle:
    """A factory of contexts in which `network` runs without its peft adapters.

    The adapter layers are listed now; a step only flips one flag on each. The public switches walk every
    module and flip `requires_grad` too, which costs tens of milliseconds per step on SDXL. Use it for
    forwards under no_grad: a gradient-checkpointed forward that is recomputed outside the context would run
    with the adapters on.

    Raises:
        ConfigError: the network has no adapters, or switching them off does not give the base model back.
    """
    layers = _adapter_layers(network)
    if not layers:
        message = explain(
            "reference adapters_off",
            got="a network without adapters",
            expected="peft adapter layers",
            do="Add the adapter first, or use the frozen reference.",
        )
        raise ConfigError(message)
    _require_untouched_base(network, layers)

    return functools.partial(switched_off, layers)


def _adapter_layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if _is_adapter_layer(module)]


def _is_adapter_layer(module: nn.Module) -> bool:
    """Whether peft made this layer, told by its flag; a model that holds such layers has only the switch."""
    has_flag = "_disable_adapters" in module.__dict__ or hasattr(type(module), "_disable_adapters")
    return has_flag and callable(getattr(type(module), "enable_adapters", None))


# Initialisations that move part of the base weights into the adapter.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


def _require_untouched_base(network: nn.Module, layers: list[nn.Module]) -> None:
    """Refuse the two set-ups in which "adapters off" is silently not the base model."""
    for config in dict(getattr(network, "peft_config", None) or {}).values():
        kind = str(getattr(config, "init_lora_weights", ""))
        if kind.startswith(_CHANGES_BASE):
            message = explain(
                "reference adapters_off",
                got=f"init_lora_weights={kind}, which changes the base weights",
                expected="an initialisation that leaves the base alone (True or gaussian)",
                do="Use the frozen reference, copied before the adapter is added.",
            )
            raise ConfigError(message)
    switched = {id(parameter) for layer in layers for parameter in _adapter_parameters(layer)}
    stray = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and id(parameter) not in switched
    ]
    if stray:
        message = explain(
            "reference adapters_off",
            got=f"{len(stray)} trainable weights outside the adapters, first: {', '.join(stray[:3])}",
            expected="only adapter weights to train",
            do="They would train with adapters off too. Freeze them, or use the frozen reference.",
        )
        raise ConfigError(message)


def _adapter_parameters(layer: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that a layer's switch takes out of the forward."""
    for name in getattr(layer, "adapter_layer_names", ()):
        held = getattr(layer, name, None)
        if isinstance(held, nn.Module | nn.ParameterList | nn.ParameterDict):
            yield from held.parameters()
        elif isinstance(held, nn.Parameter):
            yield held
