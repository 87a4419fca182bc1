"""What is trained: LoRA through peft, or the whole network; always in float32.

Low-precision weights do not move at the learning rates of preference training (1e-5 is below the spacing of
bfloat16 around 1), so trainable weights are float32 whatever the frozen ones are held in.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmalign.errors import CheckpointError, ConfigError, explain
from mmalign.likelihood.adapters import switched_off
from mmalign.sharded import is_sharded, kept_copy, num_elements, place, reshard
from mmalign.train.adapter_library import (
    BaseTunerLayer,
    LoraConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
    without_unused_kernels,
)
from mmalign.train.config import AdapterConfig
from mmalign.train.distributed.shards import fill
from mmalign.train.lean_lora import make_lean
from mmalign.train.quantization import require_readable

__all__ = ["Trainables", "attach"]


@dataclass(frozen=True)
class Trainables:
    """The trained weights of a network, listed once.

    Args:
        network: the network they live in.
        parameters: name to float32 parameter, in a fixed order.
        lora: the peft configuration, None for full fine-tuning.
        layers: peft layers, for switching adapters off without walking the network.
    """

    network: nn.Module
    parameters: dict[str, nn.Parameter]
    lora: LoraConfig | None = None
    layers: tuple[BaseTunerLayer, ...] = field(default=())

    @property
    def dropouts(self) -> tuple[nn.Module, ...]:
        """The adapter's dropout modules."""
        return tuple(layer.lora_dropout for layer in self.layers if hasattr(layer, "lora_dropout"))

    @property
    def count(self) -> int:
        """Number of trained scalars."""
        return sum(num_elements(parameter) for parameter in self.parameters.values())

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The network without its adapters, for example to draw the base model's samples."""
        with switched_off(self.layers):
            yield

    def state(self) -> dict[str, Tensor]:
        """Trained weights by name; adapters use peft's names."""
        if self.lora is not None:
            state: dict[str, Tensor] = get_peft_model_state_dict(self.network, adapter_name="default")
            return state
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave.

        Raises:
            CheckpointError: names are missing or unknown.
        """
        expected, got = set(self.state()), set(state)
        if expected != got:
            message = (
                f"checkpoint weights: {len(expected - got)} missing (first: {sorted(expected - got)[:3]}), "
                f"{len(got - expected)} unknown (first: {sorted(got - expected)[:3]}). "
                "Was the run made with another adapter.rank, adapter.targets or adapter.kind?"
            )
            raise CheckpointError(message)
        if any(is_sharded(parameter) for parameter in self.parameters.values()):
            reshard(self.network)
            fill(self.state(), state)
            return
        if self.lora is not None:
            device = next(iter(self.parameters.values())).device
            placed = {name: value.to(device) for name, value in state.items()}
            set_peft_model_state_dict(self.network, placed, adapter_name="default")
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def relisted(self) -> "Trainables":
        """The same weights after the network was sharded, which puts other parameters in their place."""
        named = dict(self.network.named_parameters())
        return replace(self, parameters={name: named[name] for name in self.parameters})

    @contextmanager
    def swapped(self, weights: list[Tensor]) -> Iterator[None]:
        """The network with other trained weights (the average), given in the order of `parameters`."""
        kept = [kept_copy(parameter) for parameter in self.parameters.values()]
        self._write(weights)
        try:
            yield
        finally:
            self._write(kept)

    def _write(self, weights: list[Tensor]) -> None:
        reshard(self.network)
        for parameter, weight in zip(self.parameters.values(), weights, strict=True):
            place(parameter, weight)


def attach(
    network: nn.Module,
    config: AdapterConfig,
    *,
    default_targets: tuple[str, ...] | str,
    seed: int,
    trains: Callable[[str], bool] | None = None,
) -> Trainables:
    """Freeze what is not trained, put LoRA on the network if asked, and list what trains.

    Args:
        network: changed in place.
        config: LoRA or none.
        default_targets: the family's module name endings, or one regular expression.
        seed: of the adapter's initial weights; drawn without touching the global generator.
        trains: without adapter: which parameters train, by name; None trains all.

    Raises:
        ConfigError: the targets match no module, or weights are held in a way that DoRA cannot read.
    """
    if config.kind == "none":
        network.requires_grad_(True)
        if trains is not None:
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(trains(name))
        _widen(network)
        return Trainables(network, _named(network))
    network.requires_grad_(False)
    targets = config.targets if config.targets is not None else default_targets
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha if config.alpha is not None else config.rank,
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=config.dropout,
        use_dora=config.use_dora,
        use_rslora=config.use_rslora,
        init_lora_weights="gaussian" if config.init == "gaussian" else True,
    )
    try:
        with torch.random.fork_rng(devices=[]), without_unused_kernels():
            torch.manual_seed(seed)
            if _is_of_diffusers(network):
                cast("Any", network).add_adapter(lora)
            else:
                inject_adapter_in_model(lora, network, adapter_name="default")
    except ValueError as error:
        if "not found" not in str(error) and "No modules" not in str(error):
            raise
        endings = sorted(
            {name.rsplit(".", 1)[-1] for name, module in network.named_modules() if _is_linear(module)}
        )
        message = explain(
            "adapter.targets",
            got=str(targets),
            expected="endings of module names of the network",
            do=f"It has: {endings}.",
        )
        raise ConfigError(message) from error
    _widen(network)
    if config.use_dora:
        require_readable(network)
    make_lean(network)
    layers = tuple(module for module in network.modules() if isinstance(module, BaseTunerLayer))
    return Trainables(network, _named(network), lora, layers)


def _widen(network: nn.Module) -> None:
    """Hold what trains in float32."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def _is_of_diffusers(network: nn.Module) -> bool:
    """Whether diffusers' own `add_adapter` serves it, asked without loading diffusers for other networks."""
    return any(base.__module__ == "diffusers.loaders.peft" for base in type(network).__mro__)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def _named(network: nn.Module) -> dict[str, nn.Parameter]:
    named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    if not named:
        message = explain(
            "adapter", got="no trainable weights", expected="at least one", do="Check adapter.targets."
        )
        raise ConfigError(message)
    return named
