"""Trajectories of a robot's policy as preferences: windows of steps, their scores, and how they are ranked.

A step is a dialogue: what the camera shows, the instruction, and the action as words or action tokens. A
window is one row whose candidates are steps, those of the better trajectory first; the sums over each step's
tokens are then folded into the inner axis that `grape_tpo` reads:

    row = window_rows(better, worse)[0]
    batch = window_batch(model, [row])
    scores = window_scores(Tokens().evaluate(policy, batch, draw), reference)
    loss = objectives.grape_tpo(beta=0.1)(scores, batch.labels).loss

Source: aiming-lab/GRAPE, TPO-Train/finetune.py; arXiv 2411.19309.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.batch import Batch, Candidate, Conditioning, Labels, PreferenceRow, RowKeys
from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.likelihood import Evaluation, TokenPolicy, Tokens
from mmalign.objectives import Scores
from mmalign.seeding import derive_seed
from mmalign.vlm.family import VlmModel

__all__ = [
    "ActionStep",
    "Trajectory",
    "gcpg_reward",
    "ranked_pairs",
    "self_log_likelihood",
    "window_batch",
    "window_rows",
    "window_scores",
]

WINDOW = 8
"""Steps whose log-ratios stand in one log-sigmoid, as released."""


@dataclass(frozen=True, slots=True)
class ActionStep:
    """What the policy saw and did at one moment.

    Args:
        images: encoded bytes or paths, of every camera; as many in every step of a task.
        action: words, or the tokens that stand for the action.
    """

    images: tuple[bytes | str, ...]
    action: str


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One attempt at a task.

    Args:
        instruction: what was to be done.
        steps: in order.
        id: for messages.

    Raises:
        ConfigError: no steps, or steps with different numbers of images.
    """

    instruction: str
    steps: tuple[ActionStep, ...]
    id: str = ""

    def __post_init__(self) -> None:
        """A window puts steps side by side: they have to look alike."""
        cameras = sorted({len(step.images) for step in self.steps})
        if len(cameras) != 1:
            message = explain(
                f"trajectory {self.id}: images per step",
                got=cameras if self.steps else "no steps",
                expected="steps, each with the same number of images",
            )
            raise ConfigError(message)


def window_rows(
    better: Trajectory, worse: Trajectory, *, size: int = WINDOW, stride: int | None = None
) -> list[PreferenceRow]:
    """Rows of `size` steps of two attempts at one task: candidates 0 ... size - 1 are of the better one.

    Steps are compared by their number; those behind the shorter attempt's last whole window are left out.

    Args:
        better: the preferred attempt.
        worse: another one, of the same task from the same start.
        size: steps of a window; 8 released.
        stride: steps from one window's start to the next; None: windows do not overlap.

    Raises:
        ConfigError: different instructions or numbers of cameras, a size or stride below 1, or an attempt
            shorter than a window.
    """
    step = size if stride is None else stride
    shortest = min(len(better.steps), len(worse.steps))
    where = f"window of trajectories {better.id} and {worse.id}"
    if size < 1 or step < 1 or shortest < size:
        message = explain(
            where,
            got=f"size {size}, stride {step}, {shortest} steps in the shorter one",
            expected="size and stride >= 1, and at least one whole window",
        )
        raise ConfigError(message)
    told = [(item.instruction, len(item.steps[0].images)) for item in (better, worse)]
    if told[0] != told[1]:
        message = explain(
            where, got=f"{told[1]} (instruction, images)", expected=f"{told[0]}: attempts at one task"
        )
        raise ConfigError(message)
    return [
        _row(
            better.instruction,
            (*better.steps[start : start + size], *worse.steps[start : start + size]),
            name=f"{better.id}>{worse.id}@{start}",
        )
        for start in range(0, shortest - size + 1, step)
    ]


def _row(instruction: str, steps: Sequence[ActionStep], *, name: str) -> PreferenceRow:
    """Steps as candidates, each beside its own images."""
    candidates = tuple(Candidate(text=step.action, images=step.images) for step in steps)
    return PreferenceRow(
        prompt=instruction,
        candidates=candidates,
        images=steps[0].images,
        id=name,
        source=f"trajectory {name}",
    )


def window_batch(model: VlmModel, rows: Sequence[PreferenceRow], *, seed: int = 0) -> Batch:
    """A micro-batch of windows on the model's device; every distinct image is seen once.

    Args:
        model: reads and encodes the rows.
        rows: of `window_rows`, of one size.
        seed: of whatever the reader draws.

    Raises:
        RowError: images that cannot be read, or a step that does not fit.
    """
    numbers = [derive_seed(seed, "window", row.id) for row in rows]
    keys = RowKeys(
        key=torch.tensor(numbers), stratum=torch.arange(len(rows)) / len(rows), num_strata=len(rows)
    )
    examples = [model.example(row, key=key) for row, key in zip(rows, numbers, strict=True)]
    encoded = model.encode(model.collate(examples), keys)
    return Batch(
        clean=encoded.clean,
        conditioning=Conditioning(),
        labels=Labels.pairs(len(rows), device=model.device),
        weight=torch.ones(len(rows), device=model.device),
        valid=torch.ones(len(rows), dtype=torch.bool, device=model.device),
        keys=keys.to(model.device),
        element_mask=encoded.element_mask,
        recorded=encoded.recorded,
        context=encoded.context,
        ids=tuple(row.id for row in rows),
    )


def window_scores(policy: Evaluation, reference: Evaluation | None = None) -> Scores:
    """Scores `[window, 2, step]` for `grape_tpo`: each step's summed log-probability, the better first.

    Args:
        policy: of a batch of windows, candidates being steps; gradients pass.
        reference: of the same batch.

    Raises:
        ShapeError: an odd number of candidates cannot be two trajectories.
    """

    def folded(score: Float[Tensor, "window candidate"]) -> Float[Tensor, "window 2 step"]:
        if score.shape[1] % 2:
            message = explain(
                "window_scores",
                got=f"{score.shape[1]} steps",
                expected="as many of the better trajectory as of the worse",
            )
            raise ShapeError(message)
        return score.reshape(score.shape[0], 2, score.shape[1] // 2)

    stored = None if reference is None else folded(reference.score.detach())
    return Scores(policy=folded(policy.score), reference=stored, likelihood="tokens")


@torch.no_grad()
def self_log_likelihood(
    model: VlmModel, trajectory: Trajectory, *, policy: TokenPolicy | None = None, batch_size: int = WINDOW
) -> float:
    """Log-probability of a trajectory's actions under the model, summed over all steps, in nats.

    Args:
        model: as it is now, adapters included.
        trajectory: steps with what was seen.
        policy: another network of the model; default its own.
        batch_size: steps scored together.

    Raises:
        RowError: as `window_batch`.
        ConfigError: a batch of no steps.
    """
    if batch_size < 1:
        raise ConfigError(explain("self_log_likelihood batch_size", got=batch_size, expected="a number >= 1"))
    likelihood, network = Tokens(model.tokens.head_chunk), policy or model.policy(model.network)
    total = 0.0
    for start in range(0, len(trajectory.steps), batch_size):
        part = trajectory.steps[start : start + batch_size]
        batch = window_batch(model, [_row(trajectory.instruction, part, name=f"{trajectory.id}@{start}")])
        total += float(likelihood.evaluate(network, batch, likelihood.draw(batch)).score.sum())
    return total


def gcpg_reward(
    log_likelihood: Float[Tensor, " trajectory"],
    stage_costs: Float[Tensor, "trajectory stage"],
    success: Bool[Tensor, " trajectory"],
    *,
    self_weight: float = 1.0,
    stage_weight: float = 1.0,
    success_weight: float = 1.0,
) -> Float[Tensor, " trajectory"]:
    """GRAPE's guided-cost reward of trajectories, higher is better.

    reward = self_weight * log_likelihood + stage_weight * exp(-sum over stages of cost)
             + success_weight * success

    The three work well when they contribute comparably, which a log-likelihood of many tokens does not by
    itself: choose `self_weight` by its spread. The released code has no common weights; 1 is ours.

    Args:
        log_likelihood: of `self_log_likelihood`.
        stage_costs: >= 0, of every stage of the task; NaN makes the reward NaN.
        success: whether the task was done.
        self_weight: of the policy's own opinion.
        stage_weight: of the external cost, whose term lies in [0, 1].
        success_weight: of success.

    Raises:
        ShapeError: another number of trajectories in one of the inputs.
        ConfigError: a weight that is not finite or negative, or a negative cost.

    Source: arXiv 2411.19309, guided-cost preference generation; README of aiming-lab/GRAPE.
    """
    count = log_likelihood.shape[0]
    if stage_costs.shape[0] != count or success.shape[0] != count:
        message = explain(
            "gcpg_reward",
            got=f"{count} log-likelihoods, {stage_costs.shape[0]} rows of costs, {success.shape[0]} outcomes",
            expected="one of each per trajectory",
        )
        raise ShapeError(message)
    weights = (self_weight, stage_weight, success_weight)
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ConfigError(explain("gcpg_reward weights", got=str(weights), expected="finite numbers >= 0"))
    if bool((stage_costs < 0).any()):
        message = explain("gcpg_reward stage_costs", got=float(stage_costs.min()), expected="numbers >= 0")
        raise ConfigError(message)
    external = torch.exp(-stage_costs.sum(1))
    return self_weight * log_likelihood + stage_weight * external + success_weight * success


def ranked_pairs(
    reward: Float[Tensor, " trajectory"], *, top: int = 1, min_gap: float = 0.0
) -> list[tuple[int, int]]:
    """Numbers (better, worse) of trajectories of one task: the best against the worst, the next best next.

    Trajectories without a finite reward are left out, and so are pairs whose rewards do not differ by more
    than `min_gap`. Of equal rewards the earlier trajectory comes first.

    Args:
        reward: of every trajectory of the task.
        top: pairs at most.
        min_gap: >= 0, in units of the reward.

    Raises:
        ConfigError: no pairs asked for, or a negative gap.
    """
    if top < 1 or not min_gap >= 0:
        message = explain(
            "ranked_pairs", got=f"top {top}, min_gap {min_gap}", expected="top >= 1, min_gap >= 0"
        )
        raise ConfigError(message)
    values = reward.tolist()
    order = sorted(
        (number for number, value in enumerate(values) if math.isfinite(value)), key=lambda n: -values[n]
    )
    pairs = zip(order[: len(order) // 2], reversed(order), strict=False)
    return [(good, bad) for good, bad in list(pairs)[:top] if values[good] - values[bad] > min_gap]
