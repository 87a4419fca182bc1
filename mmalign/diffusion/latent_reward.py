"""A small reward that reads noised latents at the flow's own time: a head on states of the frozen network.

Source: arXiv 2501.13918, Flow-NRG.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmalign.errors import CheckpointError, ConfigError, ShapeError, explain
from mmalign.files import load_tensors, save_tensors
from mmalign.likelihood.base import Denoiser

__all__ = ["BackboneReward", "LatentReward", "block_of"]


@runtime_checkable
class LatentReward(Protocol):
    """A reward of noised latents."""

    def __call__(
        self,
        noised: Float[Tensor, " row *event"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, " row"]:
        """The reward of every row; differentiable with respect to `noised`.

        Args:
            noised: latents at the flow's time.
            timestep: `network_time`, as the network gets it.
            conditioning: the network's other inputs, one entry per row.
        """


class _Reached(BaseException):
    """The states that were wanted are there: ends a forward pass early; no error, so nobody catches it."""


def block_of(network: nn.Module, name: str) -> nn.Module:
    """The module called `name` of a network, whose output a reward reads.

    Args:
        network: the backbone.
        name: dotted, for example "blocks.7".

    Raises:
        ConfigError: there is no such module; the message lists what is there.
    """
    modules = dict(network.named_modules())
    if name not in modules:
        near = [known for known in modules if known.count(".") == name.count(".") and known]
        message = explain(
            "reward guidance block", got=name, expected=f"a module of the network: {', '.join(near[:12])} ..."
        )
        raise ConfigError(message)
    found: nn.Module = modules[name]
    return found


class BackboneReward(nn.Module):
    """A reward that reads the states behind the first layers of the frozen backbone.

    The mean of the states over all axes but rows and features goes through a layer norm and two linear
    layers. The backbone runs up to `block` and no further.

    Args:
        denoise: calls the backbone.
        block: the module whose output is read, from `block_of`: `[row, token, feature]`.
        features: of its output.
        hidden: width of the head.
        seed: of the head's weights.

    Source: arXiv 2501.13918 (there six transformer blocks of 28, trained with the head).
    """

    def __init__(
        self, denoise: Denoiser, block: nn.Module, features: int, *, hidden: int = 256, seed: int = 0
    ) -> None:
        super().__init__()
        self._denoise = denoise
        self.features, self.hidden = features, hidden
        self._block = [block]  # in a list: the backbone's weights are not this module's
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Sequential(
                nn.LayerNorm(features), nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, 1)
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of the head."""
        return next(self.head.parameters()).dtype

    def forward(
        self,
        noised: Float[Tensor, " row *event"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, " row"]:
        """The reward of every row.

        Raises:
            ShapeError: the block gives no features of that number per row.
        """
        states = self._states(noised, timestep, conditioning)
        if states.shape[0] != noised.shape[0] or states.shape[-1] != self.features:
            message = explain(
                "BackboneReward states",
                got=f"{list(states.shape)}",
                expected=f"[{noised.shape[0]}, ..., {self.features}]",
            )
            raise ShapeError(message)
        pooled = states.flatten(1, -2).mean(1, dtype=self.dtype) if states.ndim > 2 else states
        # Rewards of two sides differ by little: half precision would round the difference away.
        with torch.autocast(states.device.type, enabled=False):
            found: Tensor = self.head(pooled.to(self.dtype)).squeeze(-1)
        return found

    def save(self, path: str | Path) -> None:
        """Write the head's weights (safetensors)."""
        save_tensors(path, self.head.state_dict())

    def load(self, path: str | Path) -> None:
        """Read the head's weights.

        Raises:
            CheckpointError: they cannot be read, or are of another head.
        """
        found = load_tensors(path)
        own = {name: tuple(value.shape) for name, value in self.head.state_dict().items()}
        if {name: tuple(value.shape) for name, value in found.items()} != own:
            message = explain(f"{path}", got=sorted(found), expected=f"weights of shapes {own}")
            raise CheckpointError(message)
        self.head.load_state_dict(found)

    def _states(self, noised: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        found: list[Tensor] = []

        def keep(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = self._block[0].register_forward_hook(keep)
        try:
            self._denoise(noised, timestep, conditioning)
        except _Reached:
            pass
        finally:
            handle.remove()
        if not found:
            message = explain(
                "BackboneReward", got="a forward pass that did not reach the block", expected="one that does"
            )
            raise ShapeError(message)
        return found[0]
