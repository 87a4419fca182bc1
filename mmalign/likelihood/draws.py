"""Several draws of (timestep, noise) per row and visit, independent or in mirrored pairs.

A row that is drawn several times is several rows of the step, each with a key of its own: what follows (the
likelihood, the reference, the objective, the panel) sees rows and nothing else. So the loss is

    mean over rows and draws of loss(row, draw),

whose expectation is that of one draw per row: draws change the variance of the gradient and not what is
minimised. The mean of the errors inside the logit would be a better estimate of the evidence lower bound, and
another objective, for the link is not linear: its optimum would move with the number of draws.

In a mirrored (antithetic) pair the second draw has the timestep of the first and its noise with the sign
turned. What is odd in the noise then cancels within the pair. Source: J. Hammersley, K. Morton, A new Monte
Carlo technique: antithetic variates (1956).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmalign.batch import Batch, RowKeys
from mmalign.errors import HyperparameterError, explain
from mmalign.seeding import keys_under

__all__ = ["Draws", "noise_sign", "unmirrored"]


@dataclass(frozen=True)
class Draws:
    """How often a row is drawn at one visit.

    Args:
        num: draws per row.
        antithetic: in pairs (timestep, noise), (timestep, -noise).

    Raises:
        HyperparameterError: no draws, or an odd number of them in pairs.
    """

    num: int = 1
    antithetic: bool = False

    def __post_init__(self) -> None:
        """Pairs need an even number."""
        if self.num < 1 or (self.antithetic and self.num % 2):
            expected = "an even number: every draw has its mirror image" if self.antithetic else "at least 1"
            raise HyperparameterError(explain("Draws.num", got=self.num, expected=expected))

    @property
    def num_timesteps(self) -> int:
        """Timesteps of a row: mirrored draws share theirs."""
        return self.num // 2 if self.antithetic else self.num

    def over(self, batch: Batch) -> Batch:
        """The batch with every row as often as it is drawn, one after the other, each with its own key.

        Draw 0 of a row is the row as it was: more draws add to one, and do not change it.
        """
        if self.num == 1:
            return batch
        device, count = batch.clean.device, batch.num_prompts
        index = torch.arange(count * self.num, device=device) // self.num
        # Names by themselves: picking them by an index would wait for the device.
        repeated = replace(batch, ids=(), prompts=()).rows(index)
        return replace(
            repeated,
            keys=self.keys(batch.keys),
            ids=tuple(name for name in batch.ids for _ in range(self.num)),
            prompts=tuple(text for text in batch.prompts for _ in range(self.num)),
        )

    def keys(self, keys: RowKeys) -> RowKeys:
        """Keys of all draws, row by row.

        Strata: the timesteps of a row lie evenly apart, and those of a step share [0, 1) evenly, as rows do.
        """
        each = self.num_timesteps
        turn = torch.arange(each, device=keys.stratum.device, dtype=keys.stratum.dtype)
        stratum = (keys.stratum.unsqueeze(1) + turn) / each
        return replace(
            keys,
            key=self.row_keys(keys.key).flatten(),
            stratum=stratum.repeat_interleave(self.num // each, dim=1).flatten(),
            num_strata=keys.num_strata * each,
            mirrored=self.antithetic,
        )

    def row_keys(self, key: Int[Tensor, " prompt"]) -> Int[Tensor, "prompt draw"]:
        """Keys of a row's draws, of which the first is its own; a mirror image is below 0.

        The complement `-1 - key` is another number for every key, so that stored reference errors of both
        signs stand side by side in one table.
        """
        own = key.unsqueeze(1)
        if self.num_timesteps > 1:
            own = torch.cat([own, keys_under(key, self.num_timesteps - 1, purpose="draws")], dim=1)
        return torch.stack([own, ~own], dim=2).flatten(1) if self.antithetic else own


def unmirrored(keys: RowKeys) -> RowKeys:
    """The keys that numbers are drawn from: a mirror image draws what its original draws."""
    if not keys.mirrored:
        return keys
    return replace(keys, key=torch.where(keys.key < 0, ~keys.key, keys.key), mirrored=False)


def noise_sign(keys: RowKeys) -> Float[Tensor, " prompt"] | None:
    """-1 for mirror images, else 1; None where there are none."""
    return torch.where(keys.key < 0, -1.0, 1.0) if keys.mirrored else None
