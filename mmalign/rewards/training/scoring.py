"""Heads as functions of feature batches, and what a pair's label costs under each way of training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.errors import ConfigError, explain
from mmalign.objectives import Objective, Scores
from mmalign.rewards.ideal_point_models import PalHead, PalSettings
from mmalign.rewards.training.config import LossConfig, RewardRunConfig
from mmalign.rewards.training.heads import HeadSettings, PreferenceHead
from mmalign.rewards.training.losses import (
    bradley_terry,
    entropy_shortfall,
    gaussian_losses,
    gaussian_probability,
    ideal_point_hinge,
    smallest_norm_weights,
)
from mmalign.rewards.training.pairs import FeatureBatch, FeaturePairs

__all__ = ["Head", "PairLoss", "logit_of", "make_head", "make_loss", "outputs_of", "rewards_of"]

Head = PreferenceHead | PalHead

PairLoss = Callable[[Head, FeaturePairs], Float[Tensor, " pair"]]
"""Loss of every pair, with its graph."""


def rewards_of(head: Head, batch: FeatureBatch) -> Float[Tensor, "sample output"]:
    """What a head says of some samples: [sample, 1], or (mu, log sigma).

    Raises:
        ConfigError: PAL's head without users or mixtures.
    """
    if isinstance(head, PreferenceHead):
        found: Tensor = head(batch.items, batch.prompts, batch.contexts)
        return found
    if batch.mixtures is not None:
        weights = batch.mixtures
    elif batch.users is not None:
        weights = head.weights_of(head.logits)[batch.users]
    else:
        raise ConfigError(explain("PAL head", got="[neither users nor mixtures]", expected="one of them"))
    prompts = batch.prompts if head.settings.needs_prompt else None
    rewards: Tensor = head(batch.items, weights, prompts)
    return rewards[:, None]


def outputs_of(
    head: Head, pairs: FeaturePairs
) -> tuple[Float[Tensor, "pair output"], Float[Tensor, "pair output"]]:
    """What a head says of the first and of the second candidate of every pair."""
    return rewards_of(head, pairs.side("first")), rewards_of(head, pairs.side("second"))


def logit_of(
    first: Float[Tensor, "pair output"], second: Float[Tensor, "pair output"], *, temperature: float = 1.0
) -> Float[Tensor, " pair"]:
    """Logit of P(the first is better), float64: the difference of rewards / temperature.

    Normal rewards have their means and deviations divided; the logit is that of E sigmoid(z).
    """
    one, other = first.double(), second.double()
    if one.shape[1] == 1:
        return (one[:, 0] - other[:, 0]) / temperature
    scaled = [
        torch.stack([side[:, 0] / temperature, side[:, 1] - math.log(temperature)], dim=1)
        for side in (one, other)
    ]
    tiny = torch.finfo(torch.float64).tiny
    won = gaussian_probability(scaled[0], scaled[1]).clamp(min=tiny)
    lost = gaussian_probability(scaled[1], scaled[0]).clamp(min=tiny)
    return won.log() - lost.log()


# -------------------------------------------------------------------------------------------------- heads


def make_head(
    config: RewardRunConfig,
    *,
    item: int,
    prompt: int,
    context: int,
    users: tuple[str, ...],
    generator: torch.Generator,
) -> Head:
    """An untrained head for a method.

    Args:
        config: of the run.
        item: width of an item's features.
        prompt: of a prompt's, 0 where there are none.
        context: of a context's, 0 where none is read.
        users: names, for PAL.
        generator: draws the weights.

    Raises:
        ConfigError: PAL's form b, or prompts beside items, with features that do not allow it.
    """
    head = config.head
    if config.method != "reward_pal":
        settings = HeadSettings(
            item=item,
            prompt=prompt,
            context=context,
            width=head.width,
            hidden=head.hidden,
            dropout=head.dropout,
            gaussian=config.method == "reward_pearl",
        )
        return PreferenceHead(settings, generator=generator)
    if prompt not in (0, item) or (head.form == "b" and prompt == 0):
        message = explain(
            "reward_pal backbone",
            got=f"[pictures of width {item}, prompts of width {prompt}]",
            expected="one space of pictures and prompts (form b), or pictures alone (form a)",
            do="Take a clip backbone, or head.form: a with one that reads both together.",
        )
        raise ConfigError(message)
    return PalHead(_pal_settings(config, item, prompt), users, generator=generator)


def _pal_settings(config: RewardRunConfig, item: int, prompt: int) -> PalSettings:
    head = config.head
    return PalSettings(
        form=head.form,
        input=item,
        width=head.width,
        prototypes=head.prototypes,
        hidden=head.hidden,
        dropout=head.dropout,
        items="prompt_and_image" if head.form == "a" and prompt else "image",
    )


# -------------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class _OfObjective:
    """Loss of an objective of the catalogue, with rewards as its scores."""

    objective: Objective

    def __call__(self, head: Head, pairs: FeaturePairs) -> Tensor:
        first, second = outputs_of(head, pairs)
        scores = Scores(torch.cat([first, second], dim=1))
        return self.objective(scores, Labels(probability=pairs.probability)).loss


@dataclass(frozen=True)
class _OfGaussian:
    """Loss of normal rewards, with a price for too little entropy."""

    expectation: Literal["loss", "likelihood"]
    weight: float
    floor: float

    def __call__(self, head: Head, pairs: FeaturePairs) -> Tensor:
        first, second = outputs_of(head, pairs)
        losses = gaussian_losses(first, second, pairs.probability, expectation=self.expectation)
        if self.weight:
            short = entropy_shortfall(first, self.floor) + entropy_shortfall(second, self.floor)
            losses = losses + self.weight * short / 2.0
        return losses


@dataclass(frozen=True)
class _OfTasks:
    """MORE: the ranking loss, its tasks weighted so that the mixture of their gradients is the shortest."""

    tasks: int

    def __call__(self, head: Head, pairs: FeaturePairs) -> Tensor:
        first, second = outputs_of(head, pairs)
        policy = torch.cat([first, second], dim=1)
        labels = Labels(relevance=torch.stack([pairs.probability, 1.0 - pairs.probability], dim=1))
        decided = pairs.probability != 0.5
        counts = torch.bincount(pairs.task[decided], minlength=self.tasks)
        weights = torch.full((self.tasks,), 1.0 / self.tasks, dtype=policy.dtype, device=policy.device)
        if torch.is_grad_enabled():
            weights = self._weights(head, policy, labels, pairs).to(policy)
        # The objective divides by the pairs of all tasks; a task that is rare here counts by its own mean.
        weights = weights * counts.sum() / (self.tasks * counts.clamp(min=1))
        scores = Scores(policy, extras={"task_weight": weights[pairs.task]})
        return objectives.more_ranking(tasks=float(self.tasks))(scores, labels).loss

    def _weights(self, head: nn.Module, policy: Tensor, labels: Labels, pairs: FeaturePairs) -> Tensor:
        """Of each task: 0 for one without decided pairs in the batch."""
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        decided = pairs.probability != 0.5
        present = pairs.task[decided].unique()
        weights = torch.zeros(self.tasks, dtype=torch.float64)
        if len(present) == 0:
            return weights
        gradients = []
        for task in present.tolist():
            of_task = (pairs.task == task) & decided
            objective = objectives.reward_ranking()
            part = Labels(relevance=(labels.relevance if labels.relevance is not None else policy)[of_task])
            loss = (objective(Scores(policy[of_task]), part).loss * pairs.weight[of_task]).mean()
            found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
            gradients.append(
                torch.cat(
                    [
                        torch.zeros(p.numel(), device=p.device) if g is None else g.flatten()
                        for g, p in zip(found, trained, strict=True)
                    ]
                )
            )
        weights[present.cpu()] = smallest_norm_weights(torch.stack(gradients)).cpu()
        return weights


def make_loss(method: str, loss: LossConfig, *, form: Literal["a", "b"], tasks: int) -> PairLoss:
    """What a pair's label costs.

    Args:
        method: of `REWARD_ROWS`.
        loss: settings.
        form: of PAL's head.
        tasks: different preferences in the data, for MORE.

    Raises:
        HyperparameterError: a margin outside its range.
        ConfigError: MORE on a single task.
    """
    if method == "reward_pearl":
        return _OfGaussian(loss.expectation, loss.entropy_weight, loss.entropy_floor)
    if method == "reward_more":
        if tasks < 2:
            message = explain(
                "reward_more tasks",
                got=tasks,
                expected="2 or more",
                do="Name columns.task, or give several data.sources; one task is reward_bradley_terry.",
            )
            raise ConfigError(message)
        return _OfTasks(tasks)
    if method == "reward_pal" and form == "a":
        return _OfObjective(ideal_point_hinge(margin=1.0 if loss.margin is None else loss.margin))
    return _OfObjective(bradley_terry(margin=loss.margin or 0.0))
