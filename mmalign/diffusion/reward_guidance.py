"""Guidance of flow models by a reward while they sample: Flow-NRG.

A small reward reads noised latents at the flow's own time t (0 clean, 1 noise). It is trained on pairs at
drawn noise levels, and its gradient bends the velocity:

    v' = v - weight * t / (1 - t) * d reward(x_t, t) / d x_t

since v = -(x_t + t * score) / (1 - t), and the score of p_t(x) * e^(weight * reward(x, t)) has that much
more. Samples then follow p(x) * e^(weight * reward(x)) exactly where weight * reward(x_t, t) is the log of
the mean of e^(weight * reward) over the clean samples that x_t may have come from. Weights, of one reward or
of several, are chosen when sampling. Nothing here is of one medium.

Source: arXiv 2501.13918, Flow-NRG.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmalign.batch import Batch
from mmalign.errors import CheckpointError, ConfigError, HyperparameterError, ShapeError, explain
from mmalign.files import load_tensors, save_tensors
from mmalign.likelihood.base import Denoiser
from mmalign.likelihood.schedules import FlowSchedule, Schedule
from mmalign.likelihood.timesteps import TimestepSampler
from mmalign.seeding import row_normal

__all__ = [
    "BackboneReward",
    "Guide",
    "LatentReward",
    "block_of",
    "fit_reward",
    "fit_step",
    "guided_denoiser",
    "noised_margin",
    "pair_loss",
    "reward_gradient",
]


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


def noised_margin(
    reward: LatentReward,
    schedule: FlowSchedule,
    clean: Float[Tensor, "prompt 2 *event"],
    conditioning: Mapping[str, Tensor],
    *,
    timestep: Shaped[Tensor, " prompt"],
    noise: Float[Tensor, "prompt 2 *event"],
) -> Float[Tensor, " prompt"]:
    """Reward of the noised chosen side minus that of the noised rejected one.

    Args:
        reward: of noised latents.
        schedule: of the flow.
        clean: latents of chosen and rejected.
        conditioning: `[prompt, ...]`, of both.
        timestep: the noise level of each pair, the same for both sides.
        noise: of every side.
    """
    rows = {name: value.repeat_interleave(2, dim=0) for name, value in conditioning.items()}
    return _margin(reward, schedule, clean, rows, timestep=timestep, noise=noise)


def _margin(
    reward: LatentReward,
    schedule: FlowSchedule,
    clean: Float[Tensor, "prompt 2 *event"],
    rows: Mapping[str, Tensor],
    *,
    timestep: Shaped[Tensor, " prompt"],
    noise: Float[Tensor, "prompt 2 *event"],
) -> Float[Tensor, " prompt"]:
    """`noised_margin` with conditioning `[prompt * 2, ...]`: of each side its own."""
    both = timestep.unsqueeze(1).expand(-1, 2)
    noised = schedule.add_noise(clean, noise, both)
    scores = reward(noised.flatten(0, 1), schedule.network_time(both.flatten()), rows).view(-1, 2)
    return scores[:, 0] - scores[:, 1]


def pair_loss(
    reward: LatentReward,
    schedule: FlowSchedule,
    clean: Float[Tensor, "prompt 2 *event"],
    conditioning: Mapping[str, Tensor],
    *,
    timestep: Shaped[Tensor, " prompt"],
    noise: Float[Tensor, "prompt 2 *event"],
) -> Float[Tensor, " prompt"]:
    """Bradley-Terry loss on noised pairs, -log sigmoid of the margin; arguments as of `noised_margin`.

    Source: arXiv 2501.13918, Flow-NRG (the reward is trained at all noise levels).
    """
    margin = noised_margin(reward, schedule, clean, conditioning, timestep=timestep, noise=noise)
    return -nn.functional.logsigmoid(margin)


def fit_reward(
    reward: nn.Module,
    schedule: FlowSchedule,
    batches: Iterable[Batch],
    *,
    timesteps: TimestepSampler,
    learning_rate: float = 1e-4,
    weight_decay: float = 1e-2,
) -> list[float]:
    """Train a reward on noised pairs by AdamW, one step per batch. Returns the loss of every step.

    What is drawn is decided by the rows' keys. Rows that could not be read count nowhere, others by their
    weight; the label's probability stands in for a hard one.

    Args:
        reward: a `LatentReward` with weights; those that require gradients are trained.
        schedule: of the flow.
        batches: of pairs, in the order of training.
        timesteps: how noise levels are drawn; all of them should occur.
        learning_rate: above 0.
        weight_decay: of AdamW.

    Raises:
        ShapeError: a batch is not one of pairs.

    Source: arXiv 2501.13918, Flow-NRG.
    """
    weights = [weight for weight in reward.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    return [fit_step(reward, schedule, batch, optimizer, timesteps=timesteps)[0] for batch in batches]


def fit_step(
    reward: nn.Module,
    schedule: FlowSchedule,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    timesteps: TimestepSampler,
) -> tuple[float, float]:
    """One step of `fit_reward`: (loss, weighted share of pairs ranked as labelled), both before the step.

    Args:
        reward: a `LatentReward` with weights.
        schedule: of the flow.
        batch: of pairs.
        optimizer: of the weights.
        timesteps: how noise levels are drawn.

    Raises:
        ShapeError: the batch is not one of pairs.
    """
    if batch.num_candidates != 2:
        message = explain("fit_reward", got=f"{batch.num_candidates} candidates", expected="pairs")
        raise ShapeError(message)
    noise = row_normal(batch.keys.key, tuple(batch.clean.shape[1:]), purpose="noise_candidate")
    margin = _margin(
        reward,
        schedule,
        batch.clean,
        batch.conditioning.rows(2),
        timestep=timesteps.sample(batch.keys, schedule),
        noise=noise.to(batch.clean.dtype),
    )
    certain = torch.ones_like(margin)
    given = certain if batch.labels.probability is None else batch.labels.probability.to(margin.dtype)
    each = nn.functional.binary_cross_entropy_with_logits(margin, given, reduction="none")
    counted = batch.valid.to(margin.dtype) * batch.weight.to(margin.dtype)
    whole = counted.sum().clamp(min=1e-12)
    loss = (each * counted).sum() / whole
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    right = ((margin > 0) == (given > 0.5)).to(margin.dtype)
    return float(loss.detach()), float((right * counted).sum() / whole)


def reward_gradient(
    reward: LatentReward,
    noised: Float[Tensor, " row *event"],
    timestep: Shaped[Tensor, " row"],
    conditioning: Mapping[str, Tensor],
) -> Float[Tensor, " row *event"]:
    """The gradient of the rewards with respect to the noised latents; also inside `torch.no_grad`."""
    with torch.enable_grad():
        given = noised.detach().requires_grad_()
        total = reward(given, timestep, conditioning).sum()
        (gradient,) = torch.autograd.grad(total, given)
    return gradient.detach()


@dataclass(frozen=True)
class Guide:
    """One reward and how strongly it counts.

    Args:
        reward: of noised latents.
        weight: any finite number; 0 leaves the sampler as it is, a negative one steers away.
        low: guidance is off below this time; near 0 the factor vanishes anyway.
        high: guidance is off above this time. The factor t / (1 - t) grows without bound towards noise, where
            rewards know nothing; the published factor is met wherever it is on.

    Raises:
        HyperparameterError: out of range.
    """

    reward: LatentReward
    weight: float
    low: float = 0.0
    high: float = 0.98

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not math.isfinite(self.weight):
            raise HyperparameterError(explain("Guide weight", got=self.weight, expected="a finite number"))
        if not 0.0 <= self.low < self.high < 1.0:
            message = explain(
                "Guide low, high", got=f"{self.low}, {self.high}", expected="0 <= low < high < 1"
            )
            raise HyperparameterError(message)


def guided_denoiser(
    denoise: Denoiser, schedule: Schedule, guides: Sequence[Guide], *, prediction: str = "flow"
) -> Denoiser:
    """A flow model bent towards rewards: `v - sum of weight * t / (1 - t) * gradient of the reward`.

    Whatever samples with `denoise` samples with the result. Classifier-free guidance belongs inside
    `denoise`, or outside with the same rewards for both halves, whose terms then add up to one.

    Args:
        denoise: predicts the velocity noise - clean.
        schedule: of the flow: says which time a `network_time` is.
        guides: rewards with weights.
        prediction: of the network.

    Raises:
        ConfigError: the model predicts no velocity of a flow.

    Source: arXiv 2501.13918, Flow-NRG.
    """
    if not isinstance(schedule, FlowSchedule) or prediction != "flow":
        message = explain(
            "reward guidance",
            got=f"{type(schedule).__name__}, prediction {prediction}",
            expected="a flow model that predicts a velocity",
        )
        raise ConfigError(message)

    def guided(
        noised: Float[Tensor, " row *event"],
        timestep: Shaped[Tensor, " row"],
        conditioning: Mapping[str, Tensor],
    ) -> Float[Tensor, " row *event"]:
        velocity = denoise(noised, timestep, conditioning)
        level = timestep.to(torch.float32) / schedule.num_timesteps
        factor = level / (1.0 - level).clamp(min=1e-6)
        for guide in guides:
            if guide.weight == 0.0:
                continue
            on = (level >= guide.low) & (level <= guide.high)
            if not bool(on.any()):
                continue
            gradient = reward_gradient(guide.reward, noised, timestep, conditioning)
            scale = torch.where(on, guide.weight * factor, 0.0).to(velocity.dtype)
            velocity = velocity - scale.view(-1, *[1] * (velocity.ndim - 1)) * gradient.to(velocity.dtype)
        return velocity

    return guided
