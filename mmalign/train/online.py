"""Methods that learn from their own samples: rounds of prompts become items, items become micro-batches.

A round samples with the policy as it is now, has the samples scored, and puts what can be trained on into a
queue; a micro-batch takes from its front. When the queue runs dry the next round begins. So one loop trains
offline and online methods alike: it asks for batches, and what is asked for here is made on the spot.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.batch import Batch, PreferenceRow
from mmalign.errors import CheckpointError, TrainingError
from mmalign.likelihood.snapshots import SnapshotPool
from mmalign.rollout.collectors import Collector
from mmalign.rollout.items import Items, Queue
from mmalign.seeding import derive_seed, generator_for
from mmalign.train.metrics import Meter

__all__ = ["AnswerReward", "OnlineSource", "PixelReward", "RunReward", "WaveReward", "is_offline"]

_MAX_EMPTY_ROUNDS = 50


@runtime_checkable
class PixelReward(Protocol):
    """What a run scores its samples with; whoever starts the run hands it in: training knows no reward.

    Attributes:
        name: of the reward, for messages and the identity of the run.
        takes_timestep: it judges estimates of noised samples and wants to know at which timestep.
        is_differentiable: gradients reach the pixels.
    """

    name: str
    takes_timestep: bool
    is_differentiable: bool

    def __call__(
        self,
        pixels: Float[Tensor, "row 3 height width"],
        prompts: Sequence[str],
        timestep: Shaped[Tensor, " row"] | None = None,
    ) -> Float[Tensor, " row"]:
        """Rewards, higher is better; NaN where one could not be had.

        Args:
            pixels: in [0, 1], on the device.
            prompts: one per row.
            timestep: for step-aware models; None says finished samples.
        """


@runtime_checkable
class WaveReward(Protocol):
    """What the samples of a model of sound are scored with.

    Attributes:
        name: of the reward, for messages.
    """

    name: str

    def score_waves(
        self, waves: Float[Tensor, "row channel sample"], sampling_rate: int, prompts: Sequence[str]
    ) -> Float[Tensor, " row"]:
        """Rewards, higher is better; NaN where one could not be had.

        Args:
            waves: in [-1, 1], on the device.
            sampling_rate: Hz.
            prompts: one per row.
        """


@runtime_checkable
class AnswerReward(Protocol):
    """What a language model's own answers are scored with.

    Attributes:
        name: of the reward, for messages.
    """

    name: str

    def score_answers(self, rows: Sequence[PreferenceRow], answers: Sequence[str]) -> Sequence[float]:
        """A number per row and answer, higher is better; NaN where one could not be had.

        Args:
            rows: what was asked, with images, videos and extra columns; candidates are those of the data.
            answers: one per row.
        """


RunReward: TypeAlias = PixelReward | WaveReward | AnswerReward
"""What a run may be handed: each kind of model has its own."""


def is_offline(seed: int, number: int, share: float) -> bool:
    """Whether a micro-batch is one of the data's pairs: true with probability `share`.

    Decided by (seed, number of the micro-batch): equal on all ranks, and after an interruption.

    Args:
        seed: of the run.
        number: micro-batches before this one, over the whole run.
        share: in [0, 1].

    Source: arXiv 2407.02477, Mixed-DPO (share 0.5).
    """
    return derive_seed(seed, "mixing", number) < share * 2**63


def _alone(value: Tensor) -> Tensor:
    """The sum over the ranks of a run that has one."""
    return value


@dataclass
class OnlineSource:
    """The batches of an online run.

    Args:
        collector: makes items of a round.
        batch_size: items of a micro-batch.
        seed: of the order of items.
        autocast: the arithmetic of training, in which the policy samples too.
        device: where rounds are sampled.
        rank: this device; ranks sample different prompts.
        sum_across: sums a tensor over ranks.
        snapshot: an earlier state of the policy that samples, where that is not the reference itself.
        num_rounds: rounds begun so far, which is where the prompts go on after an interruption.
        offline: makes items of the data's own pairs, for methods that mix both; it asks no other rank.
        offline_share: of the micro-batches, in [0, 1].
        restored: a queue of what its `state_dict` gave; default: that of samples.
        num_taken: micro-batches given so far.
    """

    collector: Collector
    batch_size: int
    seed: int
    autocast: Callable[[], AbstractContextManager[None]]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    sum_across: Callable[[Tensor], Tensor] = _alone
    snapshot: SnapshotPool | None = None
    num_rounds: int = 0
    offline: Collector | None = None
    offline_share: float = 0.0
    restored: Callable[[Mapping[str, Tensor]], Queue] | None = None
    num_taken: int = 0
    _facts: Meter = field(default_factory=Meter)
    _queues: dict[str, Queue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Name the facts at once: reading them is a collective, also before a rank's first round."""
        names = list(self.collector.facts)
        self._facts.load({"names": names, "sums": [[0.0] * len(names)] * 2}, self.device)

    @property
    def num_queued(self) -> int:
        """Items that wait to be trained on."""
        return sum(len(queue) for queue in self._queues.values())

    def over(self, rounds: Iterator[Batch]) -> Iterator[Batch]:
        """Micro-batches, as long as there are prompts.

        Raises:
            TrainingError: round after round gives nothing to train on.
        """
        while True:
            lane, collector = self._lane()
            num_empty = 0
            while self._lacks_items(lane, collector):
                before = len(self._queues.get(lane, ()))
                try:
                    prompts = next(rounds)
                except StopIteration:
                    return
                self._begin(prompts, lane, collector)
                num_empty = num_empty + 1 if len(self._queues.get(lane, ())) == before else 0
                if num_empty >= _MAX_EMPTY_ROUNDS:
                    raise TrainingError(_nothing_found(num_empty, self._facts))
            queue = self._queues.get(lane)
            if queue is None:
                return
            taken, self._queues[lane] = queue.take(self.batch_size), queue.after(self.batch_size)
            self.num_taken += 1
            yield taken

    def _lane(self) -> tuple[str, Collector]:
        """Which queue the next micro-batch comes from, and who fills it."""
        if self.offline is not None and is_offline(self.seed, self.num_taken, self.offline_share):
            return "offline", self.offline
        return "queue", self.collector

    def _lacks_items(self, lane: str, collector: Collector) -> bool:
        """Whether to begin a round; all ranks give one answer where a round is a collective."""
        lacks = len(self._queues.get(lane, ())) < self.batch_size
        if not collector.together:
            return lacks
        return bool(self.sum_across(torch.tensor(float(lacks), device=self.device)) > 0)

    def _begin(self, prompts: Batch, lane: str, collector: Collector) -> None:
        """One round: sample, score, choose, shuffle, queue."""
        number = self.num_rounds
        self.num_rounds += 1
        if not collector.together and not bool(prompts.valid.any()):
            return
        with self.autocast():
            found = collector.collect(prompts)
        if found.facts:
            self._facts.add(*_means(found.facts))
        if not len(found.items):
            return
        order = torch.randperm(
            len(found.items), generator=generator_for(self.seed, "items", number, self.rank)
        )
        items = found.items.selected(order.to(self.device))
        waiting = self._queues.get(lane)
        self._queues[lane] = items if waiting is None else waiting.joined(items)

    def read_facts(self) -> dict[str, float]:
        """Means of what the rounds since the last reading reported, over all ranks; a collective."""
        if not self._facts.names:
            return {}
        return {f"rollout/{name}": value for name, value in self._facts.read(self.sum_across).items()}

    def updated(self, step: int) -> None:
        """Called after optimiser step `step`."""
        if self.snapshot is not None:
            self.snapshot.update(step)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the next batches and records depend on besides the weights, as CPU tensors."""
        queued = {lane: queue.state_dict() for lane, queue in self._queues.items()}
        snapshot = {} if self.snapshot is None else self.snapshot.state_dict()
        sums = self._facts.state(lambda value: value)["sums"]
        return {
            "num_rounds": torch.tensor(self.num_rounds),
            "num_taken": torch.tensor(self.num_taken),
            "facts": torch.tensor(sums, dtype=torch.float64),
            **{name: value for lane, state in queued.items() for name, value in _under(lane, state).items()},
            **_under("collector", self.collector.state_dict()),
            **_under("snapshot", snapshot),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            CheckpointError: it holds nothing of this rank.
        """
        if "num_rounds" not in state:
            message = (
                f"train.resume: the checkpoint holds no samples of process {self.rank}. Continue the run on "
                "as many processes as it was started on."
            )
            raise CheckpointError(message)
        self.num_rounds = int(state["num_rounds"])
        # Runs of an earlier version, none of which mixed, did not count.
        self.num_taken = int(state.get("num_taken", torch.tensor(0)))
        self._queues = {}
        for lane in ("queue", "offline"):
            if queued := _within(lane, state):
                self._queues[lane] = self._restored(queued)
        names = list(self.collector.facts)
        self._facts.load({"names": names, "sums": state["facts"].tolist()}, self.device)
        self.collector.load_state_dict(_within("collector", state))
        if self.snapshot is not None:
            self.snapshot.load_state_dict(_within("snapshot", state))

    def _restored(self, state: Mapping[str, Tensor]) -> Queue:
        if self.restored is not None:
            return self.restored(state)
        return Items.from_state(state).to(self.device)


def _means(facts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean and number of the finite values of every fact, as a meter adds them."""
    values, weights = {}, {}
    for name, found in facts.items():
        finite = found.isfinite()
        weights[name] = finite.sum().to(torch.float32)[None]
        values[name] = (torch.where(finite, found, 0.0).sum() / weights[name].clamp(min=1.0)).reshape(1)
    return values, weights | {"": torch.ones(1)}


def _nothing_found(num_rounds: int, facts: Meter) -> str:
    seen = facts.read(_alone)
    failed = seen.get("reward_failed", 0.0)
    known = ", ".join(f"{name} {value:.3g}" for name, value in seen.items())
    remedy = "lower rollout.threshold, raise rollout.samples, or look at what the reward says of the samples"
    if failed == 1.0:
        remedy = "the reward fails on every sample: try it by `mmalign rewards score`"
    return (
        f"{num_rounds} rounds of samples in a row gave nothing to train on (since the last record: "
        f"{known or 'no facts'}). Do this: {remedy}."
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value.detach().to("cpu") for name, value in tensors.items()}


def _within(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
