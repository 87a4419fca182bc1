"""Training of rewards of noised latents, on pairs at drawn noise levels.

Source: arXiv 2501.13918, Flow-NRG.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmalign.batch import Batch
from mmalign.diffusion.latent_reward import LatentReward
from mmalign.errors import ShapeError, explain
from mmalign.likelihood.schedules import FlowSchedule
from mmalign.likelihood.timesteps import TimestepSampler
from mmalign.seeding import row_normal

__all__ = ["fit_reward", "fit_step", "noised_margin", "pair_loss"]


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
