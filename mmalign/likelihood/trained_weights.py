"""Other weights in the place of the trained ones for a moment: no second network."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mmalign.sharded import is_sharded, local_part, place, reshard

__all__ = ["TrainedWeights"]


class TrainedWeights:
    """The weights of a network that train, by name.

    Args:
        network: whose parameters require gradients where they train.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}

    def copy(self) -> dict[str, Tensor]:
        """The weights as they are now."""
        return {name: value.detach().clone() for name, value in self._parameters.items()}

    def values(self) -> list[Tensor]:
        """The live weights without their graph, in a fixed order."""
        return [value.detach() for value in self._parameters.values()]

    def misfits(self, weights: Mapping[str, Tensor]) -> list[str]:
        """Names that `weights` lacks, has beyond the trained ones, or holds in another shape."""
        return sorted(set(self._parameters) ^ set(weights)) or [
            name for name, value in self._parameters.items() if value.shape != weights[name].shape
        ]

    @torch.no_grad()
    def placed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of `weights` on the devices of the trained ones, spread over processes as these are."""
        copies = {name: torch.empty_like(self._parameters[name], requires_grad=False) for name in weights}
        for name, value in weights.items():
            place(copies[name], value)
        return copies

    @contextlib.contextmanager
    def swapped(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The network with other weights; the trained ones are back afterwards, also after an error.

        Storage is exchanged, not copied: nothing is written, and a live policy graph keeps its own tensors.
        Of a sharded network the parts are written over: what gathers them looks at their storage.
        """
        if any(is_sharded(value) for value in self._parameters.values()):
            with self._written_over(weights):
                yield
            return
        kept = {name: value.data for name, value in self._parameters.items()}
        try:
            for name, value in self._parameters.items():
                value.data = weights[name]
            yield
        finally:
            for name, value in self._parameters.items():
                value.data = kept[name]

    @contextlib.contextmanager
    def _written_over(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """`swapped` for a sharded network, before whose next forward pass the weights are gathered anew."""
        kept = {name: local_part(value.detach()).clone() for name, value in self._parameters.items()}
        reshard(self._network)
        with torch.no_grad():
            for name, value in self._parameters.items():
                place(value.detach(), weights[name])
        try:
            yield
        finally:
            reshard(self._network)
            with torch.no_grad():
                for name, value in self._parameters.items():
                    local_part(value.detach()).copy_(kept[name])
