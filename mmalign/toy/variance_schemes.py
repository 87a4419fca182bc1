"""Ways of drawing timesteps and noise, and the variance of a batch's gradient under each.

The batch is fixed and drawn again and again by the training step itself. What is measured is the trace of the
gradient's covariance, before clipping and before the optimiser:

    variance = sum over weights of Var(gradient of the mean loss).

One optimiser step of twice the cost could as well take two batches, so that a scheme is worth its

    variance * FLOPs, relative to the standard one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmalign.batch import Batch
from mmalign.errors import ConfigError, explain
from mmalign.likelihood import Draws, Elbo
from mmalign.likelihood.draws import unmirrored
from mmalign.seeding import generator_for, keys_under
from mmalign.train.loop import Loop
from mmalign.train.step import StepParts, preference_step

__all__ = ["SCHEMES", "STANDARD", "Measured", "Scheme", "measure"]


class _OneTimestep(Elbo):
    """One timestep for the whole batch, as code has it that inverts a batch along one trajectory."""

    def _timesteps(self, batch: Batch) -> Any:
        return super()._timesteps(batch)[:1].expand(batch.num_prompts, batch.num_candidates)


class _MirroredTimestep(Elbo):
    """The second of two draws has the timestep at the other end of the distribution: u, then 1 - u."""

    def _timesteps(self, batch: Batch) -> Any:
        first = self.timesteps.fractions(unmirrored(batch.keys))[::2]
        fraction = torch.stack([first, (1.0 - first) % 1.0], dim=1).flatten()
        timestep = self.timesteps.place(fraction, self.schedule)
        return timestep.unsqueeze(1).expand(-1, batch.num_candidates)


def _as(kind: type[Elbo], elbo: Elbo) -> Elbo:
    return kind(**{item.name: getattr(elbo, item.name) for item in fields(elbo)})


def _stratified(elbo: Elbo) -> Elbo:
    return replace(elbo, timesteps=replace(elbo.timesteps, stratified=True))


def _same(elbo: Elbo) -> Elbo:
    return elbo


@dataclass(frozen=True)
class Scheme:
    """How the draws of a step are made.

    Args:
        title: as in the table.
        likelihood: made of the recipe's, whose candidates share timestep and noise.
        draws: per row.
        setting: how a configuration asks for it; "" where it cannot.
    """

    title: str
    likelihood: Callable[[Elbo], Elbo] = _same
    draws: Draws = field(default_factory=Draws)
    setting: str = ""


STANDARD = "standard"

SCHEMES: Mapping[str, Scheme] = {
    STANDARD: Scheme("shared timestep and noise (standard)"),
    "noise apart": Scheme(
        "shared timestep, independent noise",
        lambda elbo: replace(elbo, share_noise=False),
        setting="share_noise=false",
    ),
    "all apart": Scheme(
        "independent timestep and noise",
        lambda elbo: replace(elbo, share_noise=False, share_timestep=False),
        setting="share_noise=false share_timestep=false",
    ),
    "stratified": Scheme("shared, timesteps stratified", _stratified, setting="stratified=true"),
    "one timestep": Scheme(
        "shared, one timestep for the batch", lambda elbo: _as(_OneTimestep, elbo), setting=""
    ),
    "two": Scheme("2 draws, independent", draws=Draws(2), setting="draws=2"),
    "two, noise mirrored": Scheme(
        "2 draws, one timestep, antithetic noise", draws=Draws(2, True), setting="draws=2 antithetic=true"
    ),
    "two, timestep mirrored": Scheme(
        "2 draws, antithetic timesteps", lambda elbo: _as(_MirroredTimestep, elbo), Draws(2)
    ),
    "two, stratified": Scheme(
        "2 draws, timesteps stratified over all", _stratified, Draws(2), "draws=2 stratified=true"
    ),
    "two, noise mirrored, stratified": Scheme(
        "2 draws, antithetic noise, timesteps stratified",
        _stratified,
        Draws(2, True),
        "draws=2 antithetic=true stratified=true",
    ),
}
"""By short name."""


@dataclass(frozen=True)
class Measured:
    """What a scheme gave in one world at one moment.

    Args:
        variance: of the gradient of each batch.
        means: inner products of the batches' mean gradients, which hold the scatter of rows.
        distance: squared distance of each batch's mean gradient from the standard scheme's; 0 for that.
        flops: of one step, policy and reference, forward and backward.
        repeats: draws of each batch.
    """

    variance: Float[Tensor, " batch"]
    means: Float[Tensor, "batch batch"]
    distance: Float[Tensor, " batch"]
    flops: int
    repeats: int


def measure(
    loop: Loop,
    batches: Sequence[Batch],
    names: Sequence[str],
    *,
    repeats: int,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Measured]:
    """Draw every batch again and again under some schemes; the standard one comes first.

    Args:
        loop: whose policy is measured, as it stands.
        batches: pairs that stay as they are.
        names: of `SCHEMES`.
        repeats: draws of every batch.
        tell: called with the name of each scheme when it is done.
    """
    found: dict[str, Measured] = {}
    standard: list[Tensor] = []
    for name in dict.fromkeys([STANDARD, *names]):
        parts = _parts(loop.parts, SCHEMES[name])
        flops = _flops(loop, parts, batches[0])
        variance, means, distance = [], [], []
        for number, batch in enumerate(batches):
            gradients = torch.stack(
                [_gradient(loop, parts, _again(batch, repeat, repeats)) for repeat in range(repeats)]
            )
            mean = gradients.mean(0)
            variance.append((gradients - mean).square().sum() / (repeats - 1))
            means.append(mean)
            if name == STANDARD:
                standard.append(mean)
            distance.append((mean - standard[number]).square().sum())
        stacked = torch.stack(means)
        found[name] = Measured(
            torch.stack(variance), stacked @ stacked.T, torch.stack(distance), flops, repeats
        )
        tell(name)
    return found


def _parts(parts: StepParts, scheme: Scheme) -> StepParts:
    if not isinstance(parts.likelihood, Elbo):
        message = explain("variance", got=f"likelihood {parts.likelihood.kind}", expected="elbo")
        raise ConfigError(message)
    return replace(parts, likelihood=scheme.likelihood(parts.likelihood), draws=scheme.draws)


def _again(batch: Batch, repeat: int, repeats: int) -> Batch:
    """The rows with other draws, and in another order over the strata, as a shuffled run has them."""
    keys = batch.keys
    generator = generator_for(0, "variance", repeat, int(keys.key[0]))
    order = torch.randperm(batch.num_prompts, generator=generator)
    drawn = keys_under(keys.key, repeats, purpose="variance")[:, repeat]
    return replace(batch, keys=replace(keys, key=drawn, stratum=keys.stratum[order]))


def _gradient(loop: Loop, parts: StepParts, batch: Batch) -> Float[Tensor, " weight"]:
    output = preference_step(parts, batch)
    weights = list(loop.trainables.parameters.values())
    gradients = torch.autograd.grad(output.loss / output.num_valid, weights, allow_unused=True)
    flat = [
        torch.zeros_like(weight) if gradient is None else gradient
        for weight, gradient in zip(weights, gradients, strict=True)
    ]
    return torch.cat([each.flatten() for each in flat]).to(torch.float64)


def _flops(loop: Loop, parts: StepParts, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        _gradient(loop, parts, batch)
    return int(counter.get_total_flops())
