"""Earlier states of the trained weights: what samples, and what the policy is compared with, in self-play.

Only trained weights are kept; for a forward they are exchanged for the policy's own, so there is never a
second network.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmalign.batch import Batch
from mmalign.errors import CheckpointError, HyperparameterError, explain
from mmalign.likelihood.base import AnyDraw, Denoiser, Evaluation, Likelihood
from mmalign.likelihood.trained_weights import TrainedWeights
from mmalign.seeding import derive_seed

__all__ = ["SnapshotPool"]


class SnapshotPool:
    """A reference that is one of the run's own earlier checkpoints, chosen anew for every optimiser step.

    The first snapshot is the start of the run. After every `every` steps the policy joins; a full pool drops
    its oldest member but keeps the first. Capacity 1 with `every` is a snapshot that follows the policy.

    Args:
        network: the trained network, before its first step.
        denoise: the policy's own denoiser.
        every: optimiser steps between two snapshots.
        capacity: snapshots that are kept, the first included.
        seed: of the choice.

    Raises:
        HyperparameterError: `every` or `capacity` below 1.

    Source: 2410.05255 (a reference drawn at random from the saved checkpoints of the run).
    """

    kind = "pool"

    def __init__(
        self, network: nn.Module, denoise: Denoiser, *, every: int, capacity: int, seed: int
    ) -> None:
        for name, value in (("every", every), ("capacity", capacity)):
            if value < 1:
                raise HyperparameterError(explain(f"SnapshotPool.{name}", got=value, expected="at least 1"))
        self.every, self.capacity, self.seed = every, capacity, seed
        self._denoise = denoise
        self._trained = TrainedWeights(network)
        self._snapshots = [self._trained.copy()]
        self._active = 0

    def __len__(self) -> int:
        """Snapshots that are there."""
        return len(self._snapshots)

    @property
    def active(self) -> int:
        """Number of the snapshot that samples and compares until the next optimiser step."""
        return self._active

    def denoise(self, noised: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """The active snapshot's prediction, without gradients."""
        with torch.no_grad(), self._trained.swapped(self._snapshots[self._active]):
            return self._denoise(noised, timestep, conditioning)

    def evaluate(
        self, likelihood: Likelihood, batch: Batch, draw: AnyDraw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Scores of the active snapshot; the policy's weights are back afterwards, also after an error."""
        with torch.no_grad(), self._trained.swapped(self._snapshots[self._active]):
            return likelihood.evaluate(self._denoise, batch, draw, keep_prediction=keep_prediction)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take a snapshot when it is time, then choose who is active for the next step."""
        if step % self.every == 0:
            if self.capacity == 1:
                self._snapshots = [self._trained.copy()]
            else:
                if len(self._snapshots) == self.capacity:
                    del self._snapshots[1]
                self._snapshots.append(self._trained.copy())
        self._active = derive_seed(self.seed, "snapshot", step) % len(self._snapshots)

    def state_dict(self) -> dict[str, Tensor]:
        """Every snapshot's weights, and which is active."""
        weights = {
            f"{number}.{name}": value
            for number, snapshot in enumerate(self._snapshots)
            for name, value in snapshot.items()
        }
        return {"active": torch.tensor(self._active), **weights}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            CheckpointError: other names or shapes than the trained weights.
        """
        found: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            number, _, name = key.partition(".")
            if name:
                found.setdefault(int(number), {})[name] = value
        snapshots = [found[number] for number in sorted(found)]
        if not snapshots or any(self._trained.misfits(snapshot) for snapshot in snapshots):
            message = (
                "reference snapshots: other weights than the network trains. "
                "Was the run made with another adapter or network?"
            )
            raise CheckpointError(message)
        self._snapshots = [self._trained.placed(snapshot) for snapshot in snapshots]
        self._active = int(state["active"])
