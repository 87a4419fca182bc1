"""From a round of prompts to training batches: sample with the current policy, score, choose.

A collector gets a batch of prompts (and, where the method compares with data, their chosen samples) and gives
a batch whose likelihood and objective are those of offline training. Nothing here computes a loss. Those that
set the data's samples against the model's are in `mmalign.rollout.data_collectors`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmalign.batch import Batch, Conditioning, Labels
from mmalign.likelihood import Denoiser
from mmalign.likelihood.transition import UNCONDITIONAL
from mmalign.rollout.choices import Deviation, best_and_worst, group_advantages
from mmalign.rollout.items import Items, Queue
from mmalign.rollout.pools import PoolRule, stepwise_pool
from mmalign.rollout.sample_keys import sample_keys
from mmalign.rollout.trajectory import Sampler
from mmalign.seeding import row_uniform

__all__ = [
    "BestOfN",
    "Collected",
    "Collector",
    "Groups",
    "Prompts",
    "SampleReward",
    "Stateless",
    "StepReward",
    "Stepwise",
    "valid_rows",
    "with_empty_prompt",
]

SampleReward = Callable[[Float[Tensor, " row *event"], Sequence[str]], Float[Tensor, " row"]]
"""Latents of finished samples and their prompts to a reward each, higher is better; NaN where it failed."""

StepReward = Callable[
    [Float[Tensor, " row *event"], Shaped[Tensor, " row"], Sequence[str]], Float[Tensor, " row"]
]
"""Estimated clean latents, the timestep they were estimated at, and their prompts to a score as a logit."""


@dataclass(frozen=True)
class Collected:
    """What one round gave.

    Args:
        items: every one of them can be trained on.
        facts: numbers worth watching, by the collector's names; those that are not finite count nowhere.
    """

    items: Queue
    facts: Mapping[str, Float[Tensor, " number"]] = field(default_factory=dict)


@runtime_checkable
class Collector(Protocol):
    """Makes training items; see the module.

    Attributes:
        facts: names of what it reports of a round.
        together: a round asks all ranks for a sum, so they begin one together or not at all.
    """

    @property
    def facts(self) -> tuple[str, ...]:
        """Names of what it reports."""

    @property
    def together(self) -> bool:
        """Whether ranks begin rounds together."""

    def collect(self, batch: Batch) -> Collected:
        """The items of one round of prompts."""

    def state_dict(self) -> dict[str, Tensor]:
        """What has to survive an interruption, as tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""


@dataclass(frozen=True)
class Prompts:
    """What all collectors sample with.

    Args:
        denoise: who samples: the policy, or a snapshot of it.
        sampler: grid, kernel and guidance.
        event: shape of one sample.
        empty: conditioning `[1, ...]` of the empty prompt; nothing without guidance.
    """

    denoise: Denoiser
    sampler: Sampler
    event: tuple[int, ...]
    empty: Mapping[str, Tensor]

    def beside_empty(self, batch: Batch) -> dict[str, Tensor]:
        """Conditioning of every prompt and the empty prompt's, as transitions under guidance read it."""
        return with_empty_prompt(batch, self.empty)

    def rows(self, batch: Batch, copies: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(conditioning, empty conditioning), `copies` rows per prompt."""
        count = batch.num_prompts * copies
        empty = {name: value.expand(count, *value.shape[1:]) for name, value in self.empty.items()}
        return batch.conditioning.rows(copies), empty


class Stateless:
    """Nothing to remember between rounds, nothing to report, every rank for itself."""

    facts: ClassVar[tuple[str, ...]] = ()
    together: ClassVar[bool] = False

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to do."""
        del state


def with_empty_prompt(batch: Batch, empty: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Conditioning of a batch's prompts, that of the empty prompt beside each."""
    rows = {
        f"{UNCONDITIONAL}{name}": value.expand(batch.num_prompts, *value.shape[1:])
        for name, value in empty.items()
    }
    return {**batch.conditioning.rows(1), **rows}


def _failed(reward: Tensor) -> Tensor:
    """1 where a reward could not be had."""
    return reward.isnan().to(reward.dtype).flatten()


@dataclass(frozen=True)
class BestOfN(Stateless):
    """Online DPO: of n samples per prompt the one with the highest reward against the lowest.

    Args:
        prompts: who samples, and how.
        reward: scores samples.
        samples: per prompt, at least 2.
        threshold: smallest softmax difference of the two rewards (as logits) that makes a pair.
    """

    prompts: Prompts
    reward: SampleReward
    samples: int
    threshold: float | None = None
    facts: ClassVar[tuple[str, ...]] = ("reward", "spread", "kept", "reward_failed")

    @torch.no_grad()
    def collect(self, batch: Batch) -> Collected:
        """Pairs `[prompt, 2]` of clean latents, with both rewards."""
        batch = valid_rows(batch, batch.valid)
        keys = sample_keys(batch.keys.key, self.samples)
        rows, empty = self.prompts.rows(batch, self.samples)
        sampler = self.prompts.sampler
        drawn = sampler.sample(self.prompts.denoise, keys.flatten(), self.prompts.event, rows, empty)
        repeated = [prompt for prompt in batch.prompts for _ in range(self.samples)]
        reward = self.reward(drawn.final, repeated).view(-1, self.samples)
        chosen = best_and_worst(reward, threshold=self.threshold)
        samples = drawn.final.unflatten(0, (-1, self.samples))
        pairs = replace(
            batch,
            clean=_gathered(samples, chosen.index),
            labels=Labels.pairs(batch.num_prompts, device=samples.device),
            reward=reward.gather(1, chosen.index),
        )
        best, worst = reward.gather(1, chosen.index).unbind(1)
        facts = {
            "reward": reward.flatten(),
            "spread": best - worst,
            "kept": chosen.valid.to(reward.dtype),
            "reward_failed": _failed(reward),
        }
        return Collected(Items.each(valid_rows(pairs, chosen.valid)), facts)


@dataclass(frozen=True)
class Stepwise(Stateless):
    """SPO: at every step of one trajectory per prompt the best and the worst of a pool of successors.

    Args:
        prompts: who samples, and how; the kernel is random.
        reward: a step-aware preference model over clean estimates.
        rule: of the pools.

    Source: 2406.04314.
    """

    prompts: Prompts
    reward: StepReward
    rule: PoolRule
    facts: ClassVar[tuple[str, ...]] = ("score", "kept", "reward_failed")

    @torch.no_grad()
    def collect(self, batch: Batch) -> Collected:
        """Steps `[item, 2]`: next states as clean data, states and timesteps recorded."""
        batch = valid_rows(batch, batch.valid)
        rows, empty = self.prompts.rows(batch, 1)

        def score(clean: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
            return self.reward(clean, timestep, [batch.prompts[number] for number in prompt.tolist()])

        found = stepwise_pool(
            self.prompts.sampler,
            self.rule,
            self.prompts.denoise,
            score,
            batch.keys.key,
            self.prompts.event,
            rows,
            empty,
        )
        kept = found.selected()
        items = replace(
            replace(batch, conditioning=Conditioning()).rows(kept.prompt),
            clean=kept.next_state,
            labels=Labels.pairs(len(kept.prompt), device=kept.prompt.device),
            recorded={
                "state": kept.state,
                "timestep": kept.timestep,
                "next_timestep": kept.next_timestep,
            },
        )
        # At timestep 0 the score is that of a finished sample: the number that says whether training helps.
        facts = {
            "score": found.scores[-1].flatten(),
            "kept": found.valid.to(found.scores.dtype),
            "reward_failed": _failed(found.scores),
        }
        return Collected(Items(items, kept.prompt, self.prompts.beside_empty(batch)), facts)


@dataclass(frozen=True)
class Groups(Stateless):
    """Flow-GRPO: stochastic samples of a prompt, their advantages, and every step's log-probability.

    Args:
        prompts: who samples, and how; the kernel is random.
        reward: scores samples.
        samples: per prompt, at least 2.
        train_share: share of a trajectory's steps that becomes items, drawn for every sample. The last step
            is never trained on (as in both official codes), nor is one without density.
        deviation: what advantages are divided by.
        sum_across: sums a tensor over ranks.

    Samples whose advantage is 0 teach nothing and are left out: all of a group that agrees.

    Source: 2505.05470; yifan123/flow_grpo.
    """

    prompts: Prompts
    reward: SampleReward
    samples: int
    train_share: float = 1.0
    deviation: Deviation = "global"
    sum_across: Callable[[Tensor], Tensor] = field(default=lambda value: value)
    facts: ClassVar[tuple[str, ...]] = ("reward", "spread", "kept", "reward_failed")

    together: ClassVar[bool] = True  # the deviation of all rewards is one of all ranks

    @torch.no_grad()
    def collect(self, batch: Batch) -> Collected:
        """Steps `[item, 1]` with advantage and log-probability under the policy that took them."""
        keys = sample_keys(batch.keys.key, self.samples).flatten()
        rows, empty = self.prompts.rows(batch, self.samples)
        sampler = self.prompts.sampler
        drawn = sampler.sample(
            self.prompts.denoise, keys, self.prompts.event, rows, empty, keep=("state", "log_probability")
        )
        repeated = [prompt for prompt in batch.prompts for _ in range(self.samples)]
        reward = self.reward(drawn.final, repeated).view(-1, self.samples)
        # An unreadable row is sampled, for a rank may have no other and all take part in the sum; its rewards
        # count nowhere, or they would widen the deviation of all ranks.
        reward = torch.where(batch.valid.unsqueeze(1), reward, torch.nan)
        advantage = group_advantages(reward, deviation=self.deviation, sum_across=self.sum_across).flatten()
        state, ahead, known = drawn.state, drawn.next_state, drawn.log_probability
        if state is None or ahead is None or known is None:
            message = "a trajectory that was asked for its states has them"
            raise AssertionError(message)
        teaches = advantage.isfinite() & (advantage != 0)
        row, step = self._steps(keys, known, teaches)
        prompt = torch.div(row, self.samples, rounding_mode="floor")
        recorded = {
            "state": state[row, step],
            "timestep": drawn.timestep[row, step],
            "next_timestep": drawn.next_timestep[row, step],
            "advantage": advantage[row],
            "old_log_probability": known[row, step],
        }
        items = replace(
            replace(batch, conditioning=Conditioning()).rows(prompt),
            clean=ahead[row, step].unsqueeze(1),
            labels=Labels(desirable=(advantage[row] > 0).unsqueeze(1)),
            reward=reward.flatten()[row].unsqueeze(1),
            recorded={name: value.unsqueeze(1) for name, value in recorded.items()},
        )
        scored = reward[batch.valid]
        facts = {
            "reward": scored.flatten(),
            "spread": scored.std(1, correction=0),
            "kept": teaches.view_as(reward)[batch.valid].flatten().to(reward.dtype),
            "reward_failed": _failed(scored),
        }
        return Collected(Items(items, prompt, self.prompts.beside_empty(batch)), facts)

    def _steps(
        self, keys: Int[Tensor, " row"], known: Float[Tensor, "row step"], teaches: Bool[Tensor, " row"]
    ) -> tuple[Int[Tensor, " item"], Int[Tensor, " item"]]:
        """(row, step) of every item: a random share of the steps with a density, the last one excepted."""
        usable = known.isfinite() & teaches.unsqueeze(1)
        num_steps = known.shape[1]
        if num_steps > 1:
            usable = usable & (torch.arange(num_steps, device=known.device) < num_steps - 1)
        chance = row_uniform(keys, num_steps, purpose="trained_steps")
        count = max(round(self.train_share * num_steps), 1)
        ranked = torch.where(usable, chance, 2.0).argsort(dim=1).argsort(dim=1)
        row, step = (usable & (ranked < count)).nonzero(as_tuple=True)
        return row, step


def _gathered(
    samples: Float[Tensor, "prompt sample *event"], index: Int[Tensor, "prompt candidate"]
) -> Float[Tensor, "prompt candidate *event"]:
    wide = index.view(*index.shape, *[1] * (samples.ndim - 2)).expand(*index.shape, *samples.shape[2:])
    return samples.gather(1, wide)


def valid_rows(batch: Batch, valid: Bool[Tensor, " prompt"]) -> Batch:
    """The valid prompts alone; waits for the device, once per round."""
    return batch.rows(valid.nonzero().squeeze(1))
