"""The is-it-learning panel: sums on the device, one copy to the host per interval, and a verdict in words.

Every method is watched through the same numbers: the logit and the implicit accuracy, the errors of chosen
and rejected candidates relative to the reference, how saturated the link is, how large its gradient is, the
drift from the reference, all of it also by timestep.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.batch import Labels

__all__ = ["NUM_TIMESTEP_BINS", "SATURATION_LOGIT", "Meter", "Quantity", "panel_values", "verdict"]

Quantity = Literal["error", "distance", "reward"]
"""What a likelihood reports as a candidate's error."""

NUM_TIMESTEP_BINS = 5
SATURATION_LOGIT = 5.0  # |logit| beyond which the logistic link passes less than 0.7 % of its gradient


class Meter:
    """Weighted means accumulated on the device, read once per logging interval.

    The names are fixed by the first call; sums are kept in one float64 tensor `[2, name]` (weighted sum,
    weight), so that a reduction over ranks is one call and a copy to the host another.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None

    @torch.no_grad()
    def add(
        self, values: Mapping[str, Float[Tensor, " prompt"]], weights: Mapping[str, Float[Tensor, " prompt"]]
    ) -> None:
        """Add one micro-batch.

        Args:
            values: per-prompt numbers; non-finite ones count with weight 0.
            weights: name to weight per prompt; the entry "" is the default.
        """
        names = list(values)
        dtype = _accumulator_dtype(values[names[0]].device)
        # Stacked first and widened together: two kernels instead of two for every name.
        stacked = torch.stack([values[name] for name in names]).to(dtype)
        weight = torch.stack([weights.get(name, weights[""]) for name in names]).to(dtype)
        finite = torch.isfinite(stacked)
        weight = torch.where(finite, weight, 0.0)
        sums = torch.stack([(torch.where(finite, stacked, 0.0) * weight).sum(1), weight.sum(1)])
        if self.sums is None:
            self.names, self.sums = names, sums
            return
        if names != self.names:
            # Restored accumulators keep their order; a new set of names means a programming error upstream.
            order = [names.index(name) for name in self.names]
            sums = sums[:, order]
        self.sums = self.sums + sums

    def read(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last read, over all ranks; clears the sums. Names without weight are left out."""
        if self.sums is None:
            return {}
        total = reduce_sum(self.sums).tolist()
        self.sums = torch.zeros_like(self.sums)
        return {
            name: weighted / weight
            for name, weighted, weight in zip(self.names, *total, strict=True)
            if weight > 0
        }

    def state(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, object]:
        """Names and sums over all ranks as JSON values, for a checkpoint between two readings."""
        return {"names": self.names, "sums": [] if self.sums is None else reduce_sum(self.sums).tolist()}

    def load(self, state: Mapping[str, object], device: torch.device | str) -> None:
        """Continue from `state`."""
        names, sums = state.get("names"), state.get("sums")
        if isinstance(names, list) and isinstance(sums, list) and sums:
            self.names = [str(name) for name in names]
            self.sums = torch.tensor(sums, dtype=_accumulator_dtype(torch.device(device)), device=device)


def _accumulator_dtype(device: torch.device) -> torch.dtype:
    """float64, except where the device has none (Apple GPUs)."""
    return torch.float32 if device.type == "mps" else torch.float64


def panel_values(
    *,
    metrics: Mapping[str, Float[Tensor, " prompt"]],
    applies: Mapping[str, Bool[Tensor, " prompt"]],
    loss: Float[Tensor, " prompt"],
    logit: Float[Tensor, " prompt"],
    error_policy: Float[Tensor, "prompt candidate"],
    error_reference: Float[Tensor, "prompt candidate"] | None,
    drift: Float[Tensor, " prompt"] | None,
    level: Float[Tensor, " prompt"],
    valid: Bool[Tensor, " prompt"],
    labels: Labels,
    quantity: Quantity = "error",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Per-prompt values and weights of the panel.

    Args:
        metrics: what the objective reported.
        applies: on which prompts some of them mean something.
        loss: per-prompt loss.
        logit: what went into the link.
        error_policy: denoising error per candidate, or what `quantity` says.
        error_reference: the same under the reference (or the base model), NaN where it was not computed; None
            if there is nothing to compare with.
        drift: mean squared distance of the two predictions, NaN where it was not computed, or None.
        level: noise level of the prompt in [0, 1): timestep / number of timesteps.
        valid: False for rows that count nowhere.
        labels: say which side an error belongs to; lists are reported as a whole.
        quantity: what the errors are: denoising errors, distances of a step from where the model would have
            gone, or rewards with their sign turned. The last two are no measure of divergence, and are named
            so that nothing takes them for one.
    """
    weight = valid.to(torch.float32)
    values: dict[str, Tensor] = {"loss": loss, "logit": logit, **metrics}
    weights: dict[str, Tensor] = {"": weight} | {name: weight * where for name, where in applies.items()}
    values["saturated"] = (logit.abs() > SATURATION_LOGIT).to(torch.float32)
    for side, (column, share) in _sides(labels, error_policy.shape[1], weight).items():
        policy = error_policy[:, column].mean(1)
        reference = None if error_reference is None else error_reference[:, column].mean(1)
        found = _named(quantity, side, policy, reference)
        values |= found
        weights |= dict.fromkeys(found, share)
    if error_reference is not None and labels.probability is not None:
        gain = error_reference - error_policy
        difference = gain[:, 0] - gain[:, 1]
        # A sign is -1, 0 or 1: ties count half. NaN stays NaN and counts nowhere.
        values["implicit_accuracy"] = 0.5 * (difference.sign() + 1.0) + 0.0 * difference
    if drift is not None:
        values["drift"] = drift
    bins = torch.clamp((level * NUM_TIMESTEP_BINS).to(torch.int64), 0, NUM_TIMESTEP_BINS - 1)
    for number in range(NUM_TIMESTEP_BINS):
        inside = weight * (bins == number)
        for name in ("logit", "accuracy"):
            if name in values:
                key = f"by_timestep/{name}_{number}"
                values[key] = values[name]
                weights[key] = inside
    return values, weights


def _named(quantity: Quantity, side: str, policy: Tensor, reference: Tensor | None) -> dict[str, Tensor]:
    """One side's numbers under names that say what they are."""
    if quantity == "reward":
        found = {"reward/policy": -policy}
        return found if reference is None else found | {"reward/base": -reference}
    found = {f"{quantity}/policy_{side}": policy}
    if reference is not None:
        found[f"{quantity}/reference_{side}"] = reference
        if quantity == "error":
            found[f"error/relative_{side}"] = policy / reference - 1.0
    return found


def _sides(
    labels: Labels, num_candidates: int, weight: Float[Tensor, " prompt"]
) -> dict[str, tuple[slice, Float[Tensor, " prompt"]]]:
    """Name of a side to (its candidates, the weight of each prompt in its mean)."""
    if labels.probability is not None:
        return {"chosen": (slice(0, 1), weight), "rejected": (slice(1, 2), weight)}
    if labels.desirable is not None and num_candidates == 1:
        liked = labels.desirable[:, 0].to(weight.dtype)
        return {"chosen": (slice(0, 1), weight * liked), "rejected": (slice(0, 1), weight * (1.0 - liked))}
    return {"candidates": (slice(None), weight)}


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> float:
    found = [record[name] for record in records if name in record]
    return sum(found) / len(found) if found else math.nan


def verdict(records: Sequence[Mapping[str, Any]], *, num_dropped: int = 0) -> list[str]:
    """What a run's records say, in plain words.

    Args:
        records: logged metrics in order.
        num_dropped: updates dropped because they were not finite.

    Returns:
        One sentence per finding; the first says whether the policy separates chosen from rejected.
    """
    if len(records) < 2:
        return ["Too few records to say anything: log more often or train longer."]
    tail = list(records[-max(len(records) // 4, 1) :])
    head = list(records[: max(len(records) // 4, 1)])
    findings: list[str] = _reward_findings(head, tail)
    logit = _mean(tail, "logit")
    accuracy = _mean(tail, "implicit_accuracy")
    # Imitation compares nothing: its logit is 0, and no gradient comes of it.
    compares = any(record.get("gradient_factor", 1.0) != 0 for record in tail)
    compared = compares and any("error/relative_chosen" in record for record in tail)
    if math.isnan(accuracy) and compared:
        accuracy = _mean(tail, "accuracy")
    if math.isnan(accuracy) and compares and not math.isnan(_mean(tail, "accuracy")):
        first, last = _mean(head, "accuracy"), _mean(tail, "accuracy")
        findings.append(
            "There is no reference to compare with: the chosen side is the likelier one in "
            f"{first:.0%} of the pairs at the start and {last:.0%} at the end (mean logit {logit:.3f})."
        )
    elif not math.isnan(accuracy):
        sampled = any(name.startswith("rollout/") for record in tail for name in record)
        seen = sum(record.get("prompts", math.inf) for record in tail)
        findings.append(_separation(accuracy, logit, seen, sampled=sampled))
    elif not findings:
        change = _mean(tail, "loss") - _mean(head, "loss")
        findings.append(
            f"The loss went from {_mean(head, 'loss'):.4f} to {_mean(tail, 'loss'):.4f} ({change:+.4f})."
        )
    findings += _error_findings(tail)
    saturated = _mean(tail, "saturated")
    if saturated > 0.5:
        findings.append(
            f"{saturated:.0%} of the pairs are saturated (|logit| > {SATURATION_LOGIT:.0f}): "
            "they no longer teach. Lower beta, lower the learning rate, or stop earlier."
        )
    if num_dropped:
        findings.append(
            f"{num_dropped} updates were not finite and were dropped; look at grad_norm before them."
        )
    return findings


_REWARDS = ("rollout/reward", "rollout/score", "reward/policy")


def _reward_findings(head: Sequence[Mapping[str, Any]], tail: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the reward of fresh samples rose by more than records scatter (two standard errors)."""
    name = next((each for each in _REWARDS if any(each in record for record in tail)), None)
    before, after = (
        [record[name] for record in records if name in record] if name else [] for records in (head, tail)
    )
    if not before or not after:
        return []
    first, last = statistics.fmean(before), statistics.fmean(after)
    moved = f"from {first:.4g} to {last:.4g} ({last - first:+.3g})"
    if min(len(before), len(after)) < 2:
        return [f"The reward of fresh samples went {moved}; too few records to know their scatter."]
    scatter = math.sqrt(sum(statistics.variance(each) / len(each) for each in (before, after)))
    if last - first > 2 * scatter:
        return [
            f"The reward of fresh samples rose {moved}, beyond the scatter of records (+-{2 * scatter:.2g}). "
            "Score the run's samples by a reward it was not trained on: a climbed reward is no proof of "
            "better pictures."
        ]
    if last - first < -2 * scatter:
        return [
            f"The reward of fresh samples fell {moved}, beyond the scatter of records (+-{2 * scatter:.2g}): "
            "the run unlearns. Lower the learning rate, or take an earlier checkpoint."
        ]
    return [
        f"The reward of fresh samples went {moved}, within the scatter of records (+-{2 * scatter:.2g}): "
        "nothing is learned yet. Train longer, or sample more prompts per record."
    ]


def _separation(accuracy: float, logit: float, num_prompts: float, *, sampled: bool = False) -> str:
    """Whether the implicit accuracy is away from one half by more than chance (three standard errors)."""
    chance = 1.5 / math.sqrt(max(num_prompts, 1.0))
    if accuracy > 0.5 + max(chance, 0.02):
        return (
            "It is learning: the policy prefers the chosen side more than the reference does in "
            f"{accuracy:.0%} of the pairs (mean logit {logit:.2f})."
        )
    if accuracy < 0.5 - max(chance, 0.02):
        question = "" if sampled else " Are the labels swapped?"
        return f"It is learning the opposite: implicit accuracy is {accuracy:.0%}.{question}"
    remedy = (
        "Train longer, raise the learning rate, or check with `mmalign data check` that the pairs differ."
    )
    if sampled:
        remedy = "Pairs are fresh samples, so there is nothing to remember: the reward of samples decides."
    return (
        f"It is not separating yet: implicit accuracy {accuracy:.0%} (chance alone: 50% +- {chance:.0%}), "
        f"mean logit {logit:.3f}. {remedy}"
    )


def _error_findings(tail: Sequence[Mapping[str, Any]]) -> list[str]:
    """How both sides' denoising errors moved against the reference."""
    chosen, rejected = _mean(tail, "error/relative_chosen"), _mean(tail, "error/relative_rejected")
    if math.isnan(chosen) or math.isnan(rejected):
        return []
    if chosen > 0.02 and rejected > 0.02:
        return [
            f"Both errors rise against the reference (chosen {chosen:+.1%}, rejected "
            f"{rejected:+.1%}): the margin "
            "grows by making rejected samples unlikely, not chosen ones likely. Expect worse "
            "samples; lower the "
            "learning rate, raise beta, or add a supervised term."
        ]
    if chosen <= 0:
        found = f"chosen {chosen:+.1%}; rejected {rejected:+.1%}"
        return [f"The chosen side is denoised better than by the reference ({found})."]
    return [f"The chosen side's error is nearly unchanged ({chosen:+.1%}; rejected {rejected:+.1%})."]
