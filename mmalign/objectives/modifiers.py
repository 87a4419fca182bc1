"""Parts F, G, J and the moving pieces of A and D: numbers computed from the batch.

Each function returns a `Computed`: detached unless its docstring says otherwise. Margins and zero points are
in units of z; where a temperature belongs to them they take it as an argument.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import ConfigError, explain
from mmalign.objectives.base import CHOSEN, REJECTED, Computed, Context, per_candidate, require, wide
from mmalign.objectives.labels import is_desirable
from mmalign.objectives.reductions import reduce_inner
from mmalign.objectives.structures import ranking

__all__ = [
    "adaptive_rejection",
    "batch_zero_point",
    "class_balanced_zero_point",
    "displacement_penalty",
    "given",
    "graded_gain",
    "inverse_length",
    "kl_bonus",
    "lambda_weights",
    "length_bonus",
    "log_reward_gap",
    "log_reward_ratio",
    "mismatched_zero_point",
    "of_pairs",
    "on_policy_weight",
    "opposite_zero_point",
    "position_decay",
    "reward_gap",
    "reward_gap_temperature",
    "reward_power_gap",
    "reward_preference",
    "roles",
    "running_batch_zero_point",
    "running_gap",
    "running_zero_point",
    "scaled",
    "standardised_gap",
    "tail_weights",
]

_CLASS_SHARE = 1e-6  # the official divisor of class means; keeps an absent class at 0


def _reward(context: Context, wanted_by: str) -> Float[Tensor, "prompt candidate"]:
    reward = context.scores.reward
    if reward is None:
        message = explain(
            f"Scores.reward, needed by {wanted_by}",
            got=None,
            expected="one external reward per candidate",
            do="Pass it with the scores.",
        )
        raise ConfigError(message)
    return wide(reward)


def _length(context: Context, wanted_by: str) -> Float[Tensor, "prompt candidate"]:
    """Positions of each candidate: `Scores.length`, or what the mask counts."""
    scores = context.scores
    if scores.length is not None:
        return scores.length.to(context.policy.dtype)
    if scores.policy.ndim == 3:
        if scores.mask is None:
            return torch.full_like(context.policy, scores.policy.shape[2])
        return scores.mask.to(context.policy.dtype).sum(-1)
    message = explain(
        f"Scores.length, needed by {wanted_by}",
        got=None,
        expected="one length per candidate, or scores with an inner axis",
        do="Pass it with the scores.",
    )
    raise ConfigError(message)


def _needs_length(*more: str) -> frozenset[str]:
    return frozenset({"length", *more})


def given(name: str, *, attached: bool = False) -> Computed:
    """`Scores.extras[name]`: [prompt] or [prompt, candidate], whatever its place asks for.

    Args:
        name: of the extra input.
        attached: keep its gradient.
    """

    def compute(context: Context) -> Tensor:
        return wide(context.scores.extra(name, "a given number"))

    return Computed(compute, name, frozenset({name}), attached=attached)


def of_pairs(context: Context, name: str, wanted_by: str, neutral: float = 0.0) -> Tensor:
    """`Scores.extras[name]` of every pair or candidate, and `neutral` where a pair is incomplete.

    Whatever padding holds there, even NaN, then reaches no loss and no gradient.

    Args:
        context: of the batch.
        name: of the extra input, [prompt] or [prompt, candidate, ...].
        wanted_by: who needs it, for the message.
        neutral: harmless number.
    """
    value = wide(context.scores.extra(name, wanted_by)).to(context.policy.dtype)
    complete = context.real().all(1)
    return torch.where(complete.reshape(-1, *(1,) * (value.ndim - 1)), value, neutral)


def scaled(factor: float, value: Computed) -> Computed:
    """`factor` times a computed number."""
    return Computed(
        lambda context: factor * value.compute(context),
        f"{factor:g} * {value.formula}",
        value.needs,
        value.couples_rows,
        value.attached,
        value.tokens_only,
    )


def roles(chosen: float, rejected: float) -> Computed:
    """One number for the chosen candidate, another for the rejected one (DPO-Shift, Flex-DPO)."""

    def compute(context: Context) -> Tensor:
        value = torch.full_like(context.policy, rejected)
        value[:, CHOSEN] = chosen
        return value

    return Computed(compute, f"(chosen: {chosen:g}, rejected: {rejected:g})")


# ---------------------------------------------------------------------------------------------- zero points


def batch_zero_point(beta: float) -> Computed:
    """KTO's zero point on unpaired rows: beta * max(0, mean of u over the batch and all ranks)."""

    def compute(context: Context) -> Tensor:
        return beta * context.mean_over(context.log_ratio.detach(), context.real()).clamp(min=0.0)

    return Computed(compute, f"{beta:g} * max(0, mean of u)", couples_rows=True)


def class_balanced_zero_point(beta: float) -> Computed:
    """Beta * half the sum of the mean of u over liked rows and the mean over the others, not clamped.

    Source: jacklishufan/diffusion-kto, `bce_offset=sigmoid`; the divisors are counts plus 1e-6, as there.
    """

    def compute(context: Context) -> Tensor:
        u, real = context.log_ratio.detach(), context.real()
        liked = is_desirable(context)
        sums = []
        for where in (liked & real, ~liked & real):
            sums += [torch.where(where, u, 0.0).sum(), where.to(u.dtype).sum()]
        total = context.sum_across(torch.stack(sums))
        means = total[0] / (total[1] + _CLASS_SHARE) + total[2] / (total[3] + _CLASS_SHARE)
        return beta * 0.5 * means

    return Computed(compute, f"{beta:g} * mean of the class means of u", couples_rows=True)


def mismatched_zero_point(beta: float) -> Computed:
    """Beta * max(0, mean of `extras["mismatched_log_ratio"]` over all ranks): KTO's zero point for text.

    The extra holds u of answers that belong to other prompts; it may have another length than the batch.
    """

    def compute(context: Context) -> Tensor:
        u = wide(context.scores.extra("mismatched_log_ratio", "the mismatched zero point")).detach()
        total = context.sum_across(torch.stack([u.sum(), torch.full_like(u.sum(), u.numel())]))
        return beta * (total[0] / total[1].clamp(min=1.0)).clamp(min=0.0)

    return Computed(
        compute,
        f"{beta:g} * max(0, mean of mismatched u)",
        frozenset({"mismatched_log_ratio"}),
        couples_rows=True,
    )


def opposite_zero_point(beta: float) -> Computed:
    """Beta * max(0, batch mean of u over the other role), with gradient: the paired KTO of old releases."""

    def compute(context: Context) -> Tensor:
        real = context.real().to(context.log_ratio.dtype)
        mean = (context.log_ratio * real).sum(0) / real.sum(0).clamp(min=1.0)
        return beta * mean.flip(0).clamp(min=0.0).expand_as(context.log_ratio)

    return Computed(
        compute, f"{beta:g} * max(0, mean of u of the other role)", couples_rows=True, attached=True
    )


def running_zero_point(beta: float, name: str = "zero_point") -> Computed:
    """Mean of beta * u over everything seen so far, this batch included (BCO's delta).

    Kept in the state as `<name>.mean` and `<name>.count`; without a state it is this batch's mean.

    Args:
        beta: temperature.
        name: of the statistic.
    """

    def compute(context: Context) -> Tensor:
        u, real = context.log_ratio.detach(), context.real()
        total = context.sum_across(
            torch.stack([torch.where(real, beta * u, 0.0).sum(), real.to(u.dtype).sum()])
        )
        mean, count = _recall(context, name, u, ("mean", "count"))
        if context.state is not None and not context.state.updating:
            return mean
        after = count + total[1]
        mean = mean + (total[0] - mean * total[1]) / after.clamp(min=1.0)
        _remember(context, name, {"mean": mean, "count": after})
        return mean

    return Computed(compute, f"running mean of {beta:g} * u", couples_rows=True)


def running_batch_zero_point(beta: float, name: str = "zero_point") -> Computed:
    """Mean over the batches seen so far, this one included, of each batch's mean of beta * u.

    Every batch counts once, whatever its size: LLaMA-Factory's and ms-swift's delta. The batch is that of all
    ranks; with gradient accumulation every micro-batch is one. Kept in the state as `<name>.mean` and
    `<name>.count`; without a state it is this batch's mean.

    Args:
        beta: temperature.
        name: of the statistic.
    """

    def compute(context: Context) -> Tensor:
        u, real = context.log_ratio.detach(), context.real()
        total = context.sum_across(
            torch.stack([torch.where(real, beta * u, 0.0).sum(), real.to(u.dtype).sum()])
        )
        mean, count = _recall(context, name, u, ("mean", "count"))
        if context.state is not None and not context.state.updating:
            return mean
        seen = (total[1] > 0).to(u.dtype)
        after = count + seen
        mean = mean + seen * (total[0] / total[1].clamp(min=1.0) - mean) / after.clamp(min=1.0)
        _remember(context, name, {"mean": mean, "count": after})
        return mean

    return Computed(compute, f"running mean of batch means of {beta:g} * u", couples_rows=True)


def _recall(context: Context, name: str, like: Tensor, fields: tuple[str, ...]) -> list[Tensor]:
    """Statistics from the state, 0 at the start."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    values = {} if context.state is None else context.state.values
    return [values.get(f"{name}.{field}", zero).to(like) for field in fields]


def _remember(context: Context, name: str, values: dict[str, Tensor]) -> None:
    """Keep statistics in the state; one that is not finite is not kept: the loop drops that update, too."""
    if context.state is None or not context.state.updating:
        return
    finite = torch.stack([torch.isfinite(value).all() for value in values.values()]).all()
    for field, value in values.items():
        old = context.state.values.get(f"{name}.{field}", torch.zeros_like(value))
        context.state.values[f"{name}.{field}"] = torch.where(finite, value.detach(), old.to(value))


# ---------------------------------------------------------------------------------------------- margins


def reward_gap(factor: float) -> Computed:
    """Factor * (reward of chosen - reward of rejected)."""

    def compute(context: Context) -> Tensor:
        reward = _reward(context, "the reward gap")
        return factor * (reward[:, CHOSEN] - reward[:, REJECTED])

    return Computed(compute, f"{factor:g} * (reward[chosen] - reward[rejected])", frozenset({"reward"}))


def log_reward_gap(factor: float) -> Computed:
    """Factor * log(reward of chosen - reward of rejected); 0 where the gap is not positive (ODPO).

    Gaps below 1 give a negative margin, a bonus. The method presumes positive gaps.
    """

    def compute(context: Context) -> Tensor:
        reward = _reward(context, "the logarithmic reward gap")
        gap = reward[:, CHOSEN] - reward[:, REJECTED]
        positive = gap > 0
        return factor * torch.where(positive, torch.where(positive, gap, 1.0).log(), 0.0)

    return Computed(compute, f"{factor:g} * log(reward[chosen] - reward[rejected])", frozenset({"reward"}))


def log_reward_ratio(factor: float) -> Computed:
    """Factor * log(reward of chosen / reward of rejected); 0 where the ratio is not positive (ODPO)."""

    def compute(context: Context) -> Tensor:
        reward = _reward(context, "the logarithmic reward ratio")
        chosen, rejected = reward[:, CHOSEN], reward[:, REJECTED]
        positive = chosen * rejected > 0
        ratio = torch.where(positive, chosen, 1.0) / torch.where(positive, rejected, 1.0)
        return factor * ratio.log()

    return Computed(compute, f"{factor:g} * log(reward[chosen] / reward[rejected])", frozenset({"reward"}))


def reward_power_gap(base: float, scale: float) -> Computed:
    """max(0, base^(reward of chosen / scale) - base^(reward of rejected / scale)) (GAPO of video)."""

    def compute(context: Context) -> Tensor:
        power = torch.pow(base, _reward(context, "the gap of powers") / scale)
        return (power[:, CHOSEN] - power[:, REJECTED]).clamp(min=0.0)

    powers = (f"{base:g}^(reward[{role}] / {scale:g})" for role in ("chosen", "rejected"))
    return Computed(compute, f"max(0, {' - '.join(powers)})", frozenset({"reward"}))


def reward_preference(factor: float) -> Computed:
    """Probability that a Bradley-Terry reward model gives the label: sigmoid(factor * reward gap)."""
    gap = reward_gap(factor)
    return Computed(lambda context: torch.sigmoid(gap.compute(context)), f"sigmoid({gap.formula})", gap.needs)


def running_gap(context: Context, name: str, decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """(gap of u per pair, its running mean, its running deviation), over all ranks, this batch included.

    The gap is chosen minus rejected. Where a label is uncertain, both orders of the pair enter the statistics
    with their probability, so that exchanging candidates and mirroring the label changes nothing. Both start
    at 0; a batch of one pair, whose deviation is undefined, leaves the deviation as it was.

    Args:
        context: of the batch; its state keeps `<name>.mean` and `<name>.deviation`.
        name: of the statistic.
        decay: weight of the past, in [0, 1).
    """
    reference = torch.zeros_like(context.policy) if context.reference is None else context.reference
    u = (context.policy - reference).detach()
    gap, rows = u[:, CHOSEN] - u[:, REJECTED], context.real().all(1)
    mean, deviation = _recall(context, name, gap, ("mean", "deviation"))
    if context.state is not None and not context.state.updating:
        return gap, mean, deviation
    kept, given = rows.to(gap.dtype), context.labels.probability
    right = torch.ones_like(gap) if given is None else given.to(gap.dtype)
    first = context.sum_across(torch.stack([((2.0 * right - 1.0) * gap * kept).sum(), kept.sum()]))
    batch_mean = first[0] / first[1].clamp(min=1.0)
    spread = right * (gap - batch_mean).square() + (1.0 - right) * (gap + batch_mean).square()
    squares = context.sum_across((spread * kept).sum())
    batch_deviation = (squares / (first[1] - 1.0).clamp(min=1.0)).sqrt()
    mean = torch.where(first[1] > 0, decay * mean + (1.0 - decay) * batch_mean, mean)
    deviation = torch.where(first[1] > 1, decay * deviation + (1.0 - decay) * batch_deviation, deviation)
    _remember(context, name, {"mean": mean, "deviation": deviation})
    return gap, mean, deviation


def standardised_gap(factor: float, name: str = "gap", decay: float = 0.9) -> Computed:
    """Factor * z-score of (u of chosen - u of rejected) under running mean and deviation (alpha-DPO).

    See `running_gap`. A deviation of 0 (nothing seen yet but one pair) gives a z-score of 0.

    Args:
        factor: in units of z.
        name: of the statistic in the state.
        decay: of the running statistics, in [0, 1).
    """
    require("standardised_gap decay", decay, 0 <= decay < 1, "a number in [0, 1)")

    def compute(context: Context) -> Tensor:
        gap, mean, deviation = running_gap(context, name, decay)
        tiny = torch.finfo(gap.dtype).tiny
        return torch.where(deviation > 0, factor * (gap - mean) / deviation.clamp(min=tiny), 0.0)

    return Computed(compute, f"{factor:g} * zscore(gap of u)", frozenset({"reference"}), couples_rows=True)


# ---------------------------------------------------------------------------------------------- scales and
# bonuses


def inverse_length() -> Computed:
    """1 / length of each candidate, for scores that are summed first and normalised after their shape."""

    def compute(context: Context) -> Tensor:
        return 1.0 / _length(context, "length normalisation").clamp(min=1.0)

    return Computed(compute, "1 / length", _needs_length())


def adaptive_rejection(first: float, second: float) -> Computed:
    """ARPO's scale of the rejected score, min(1, first * e^(second * |gap of means|) - 1), with gradient.

    At equal token means it is first - 1, which is negative for the released 0.9: the rejected candidate is
    rewarded.
    """

    def compute(context: Context) -> Tensor:
        mean = context.policy / _length(context, "adaptive rejection").clamp(min=1.0)
        gap = (mean[:, CHOSEN] - mean[:, REJECTED]).abs()
        # Beyond an exponent of 20 the minimum is 1 whatever the coefficients; the clamp keeps the gradient
        # finite.
        factor = (first * torch.exp((second * gap).clamp(max=20.0)) - 1.0).clamp(max=1.0)
        return torch.stack([torch.ones_like(factor), factor], dim=1)

    formula = f"(chosen: 1, rejected: min(1, {first:g} * exp({second:g} * |gap of means|) - 1))"
    return Computed(compute, formula, _needs_length(), attached=True)


def displacement_penalty(weight: float) -> Computed:
    """-weight * max(0, -u) on the chosen candidate, with gradient: it may not become less likely (DPOP)."""

    def compute(context: Context) -> Tensor:
        penalty = -weight * torch.relu(-context.log_ratio)
        chosen = torch.zeros_like(penalty)
        chosen[:, CHOSEN] = 1.0
        return penalty * chosen

    return Computed(compute, f"(chosen: -{weight:g} * max(0, -u))", attached=True)


def length_bonus(factor: float) -> Computed:
    """Bonus factor * length; a positive factor credits length inside the loss, so the policy need not."""

    def compute(context: Context) -> Tensor:
        return factor * _length(context, "the length term")

    return Computed(compute, f"{factor:g} * length", _needs_length())


def kl_bonus(chosen: float, rejected: float, *, detach_chosen: bool) -> Computed:
    """Factor by role times `Scores.kl`, with gradient except, on request, through the chosen side (TDPO).

    Args:
        chosen: factor of the chosen side.
        rejected: factor of the rejected side.
        detach_chosen: stop the gradient there (TDPO2).
    """

    def compute(context: Context) -> Tensor:
        kl = context.scores.kl
        if kl is None:
            message = explain(
                "Scores.kl, needed by the token divergence", got=None, expected="[prompt, candidate]"
            )
            raise ConfigError(message)
        total = wide(kl)
        if total.ndim == 3:
            mask = context.scores.mask
            total = (total if mask is None else torch.where(mask != 0, total, 0.0)).sum(-1)
        liked = total[:, CHOSEN].detach() if detach_chosen else total[:, CHOSEN]
        return torch.stack([chosen * liked, rejected * total[:, REJECTED]], dim=1)

    return Computed(
        compute,
        f"(chosen: {chosen:g} * {'sg(kl)' if detach_chosen else 'kl'}, rejected: {rejected:g} * kl)",
        frozenset({"kl"}),
        attached=True,
        tokens_only="a divergence over a vocabulary",
    )


# ---------------------------------------------------------------------------------------------- weights


def on_policy_weight(limit: float | None) -> Computed:
    """e^(a of chosen + a of rejected), a = mean over positions of log p - log sum of p^2 (WPO).

    `extras["log_sum_squares"]` holds log sum over the vocabulary of p^2 per position, [prompt, candidate,
    inner]; with scores that have no inner axis, its mean over positions, and then the scores are means, too.

    Args:
        limit: upper bound of the weight (1 in the official code), or None for no bound (TRL).
    """

    def compute(context: Context) -> Tensor:
        scores = context.scores
        difference = wide(scores.policy) - wide(scores.extra("log_sum_squares", "the on-policy weight"))
        mean = difference if difference.ndim == 2 else reduce_inner(difference, scores.mask, "mean")
        # Beyond e^80 a float32 overflows; no probability gets there, a badly scaled score does.
        weight = mean.sum(1).clamp(max=80.0).exp()
        return weight if limit is None else weight.clamp(max=limit)

    bound = "" if limit is None else f", at most {limit:g}"
    return Computed(
        compute,
        f"on-policy weight{bound}",
        frozenset({"log_sum_squares"}),
        tokens_only="the probability that a policy samples its own most likely token",
    )


def lambda_weights(by: Literal["scores", "labels"] = "scores") -> Computed:
    """Weights of LiPO-lambda: |gain of i - gain of j| * |1 / discount of i - 1 / discount of j|.

    gain = 2^relevance - 1, discount = ln(1 + rank), rank 1 = highest. Keep relevance in [0, 1].

    Args:
        by: whether ranks follow the current scores or the labels (ties in their given order).
    """

    def compute(context: Context) -> Tensor:
        relevance, real = context.labels.relevance, context.real()
        if relevance is None:
            message = explain("Labels.relevance", got=None, expected="graded relevance of every candidate")
            raise ConfigError(message)
        score = torch.where(real, context.log_ratio.detach(), torch.finfo(context.log_ratio.dtype).min)
        order = score.argsort(dim=1, descending=True, stable=True) if by == "scores" else ranking(context)
        rank = order.argsort(dim=1) + 1
        gain = torch.exp2(relevance.to(score.dtype)) - 1.0
        inverse = 1.0 / torch.log1p(rank.to(score.dtype))
        return (gain.unsqueeze(2) - gain.unsqueeze(1)).abs() * (
            inverse.unsqueeze(2) - inverse.unsqueeze(1)
        ).abs()

    return Computed(
        compute, f"|gain[i] - gain[j]| * |1 / ln(1 + rank[i]) - 1 / ln(1 + rank[j])|, ranks by {by}"
    )


def graded_gain() -> Computed:
    """(2^relevance - 1) / log2(1 + rank) of every item, rank from `extras["rank"]` (in-context ranking)."""

    def compute(context: Context) -> Tensor:
        relevance = context.labels.relevance
        if relevance is None:
            message = explain("Labels.relevance", got=None, expected="graded relevance of every candidate")
            raise ConfigError(message)
        rank = context.scores.extra("rank", "the graded gain").to(context.policy.dtype)
        return (torch.exp2(relevance.to(rank.dtype)) - 1.0) / torch.log2(1.0 + rank)

    return Computed(compute, "(2^relevance - 1) / log2(1 + rank)", frozenset({"rank"}))


def reward_gap_temperature() -> Computed:
    """Stage temperatures of PRO: reward of i minus reward of j.

    Its own temperature is the largest of the stage, over the j ranked after i.
    """

    def compute(context: Context) -> Tensor:
        reward = _reward(context, "the stage temperatures")
        gap = reward.unsqueeze(2) - reward.unsqueeze(1)
        place = ranking(context).argsort(dim=1)
        later = (place.unsqueeze(2) < place.unsqueeze(1)) & context.real().unsqueeze(1)
        own = torch.where(later, gap, torch.finfo(gap.dtype).min).amax(2)
        own = torch.where(later.any(2), own, 0.0)
        return torch.where(
            torch.eye(gap.shape[1], dtype=torch.bool, device=gap.device), own.unsqueeze(2), gap
        )

    return Computed(compute, "reward[i] - reward[j]", frozenset({"reward"}))


# ---------------------------------------------------------------------------------------------- inner weights


def tail_weights(factor: float) -> Computed:
    """1 up to the length of the shortest candidate of the prompt, `factor` after it (LD-DPO).

    Args:
        factor: in [0, 1]; 1 is the plain sum.
    """
    require("tail_weights factor", factor, 0 <= factor <= 1, "a number in [0, 1]")

    def compute(context: Context) -> Tensor:
        position = _position(context)
        shortest = _length(context, "tail weights").amin(1, keepdim=True).unsqueeze(2)
        return torch.where(position <= shortest, 1.0, factor).to(context.policy.dtype)

    return Computed(compute, f"(1 up to the shorter length, then {factor:g})")


def position_decay(factor: float) -> Computed:
    """factor^k at the k-th position that counts, k from 1 (D2PO).

    Args:
        factor: in (0, 1].
    """
    require("position_decay factor", factor, 0 < factor <= 1, "a number in (0, 1]")

    def compute(context: Context) -> Tensor:
        return torch.pow(factor, _position(context))

    return Computed(compute, f"{factor:g}^position")


def _position(context: Context) -> Float[Tensor, "prompt candidate inner"]:
    """1, 2, ... along the unmasked positions of each candidate."""
    scores = context.scores
    kept = torch.ones_like(scores.policy) if scores.mask is None else (scores.mask != 0)
    return per_candidate(kept.to(context.policy.dtype).cumsum(-1))  # type: ignore[return-value]
