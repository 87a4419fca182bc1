"""Numbers about preference data and runs: displacement, information, calibration. No loss, no gradient.

Every function takes tensors and returns tensors of the same device, so that it can run beside a training step
without a host sync. Counting happens in float64.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmalign.errors import explain, unknown_name
from mmalign.objectives.base import wide
from mmalign.objectives.calibration import Calibration, best_temperature, calibration, preference_calibration
from mmalign.shapes import require_same_shape, require_shape

__all__ = [
    "Calibration",
    "DifferentialInformation",
    "Displacement",
    "ThreeDProperties",
    "best_temperature",
    "calibration",
    "ches_score",
    "differential_information",
    "differential_information_entropy",
    "displacement",
    "preference_calibration",
    "response_positions",
    "three_d_properties",
]


# ------------------------------------------------------------------------------------------------ CHES


def response_positions(
    last_prompt: Int[Tensor, " pair"], num_positions: int, *, last: Int[Tensor, " pair"] | None = None
) -> Bool[Tensor, "pair position"]:
    """True at the positions whose hidden states predict the response: from the last prompt token on.

    The state at the response's last token predicts what comes after it, so that one is left out.

    Args:
        last_prompt: index of the last prompt token.
        num_positions: positions of the padded sequence.
        last: index of the response's last token (of the end-of-text token, where there is one). None: the
            final position of every row, which is right only without padding on the right.
    """
    places = torch.arange(num_positions, device=last_prompt.device)
    end = torch.full_like(last_prompt, num_positions - 1) if last is None else last
    return (places >= last_prompt.unsqueeze(1)) & (places < end.unsqueeze(1))


def ches_score(
    chosen: Float[Tensor, "pair position feature"],
    rejected: Float[Tensor, "pair other_position feature"],
    *,
    chosen_mask: Shaped[Tensor, "pair position"],
    rejected_mask: Shaped[Tensor, "pair other_position"],
    form: Literal["sum", "mean"],
) -> Float[Tensor, " pair"]:
    """CHES per pair: how much training on it risks lowering the likelihood of its own chosen response.

    sum:  <H_w, H_l> - |H_w|^2,  H = sum of last-layer hidden states that predict the response's tokens
    mean: the same with H divided by the number of those positions (length-normalised)

    Higher = the two responses look alike to the model = likelihood displacement. The published filter keeps
    the pairs with the lowest length-normalised scores (see `mmalign.data.curation.keep_lowest`).

    The official function takes every position up to the last but one of the padded batch, so that padding on
    the right enters its sums. Here a mask says what counts, and values elsewhere are ignored, NaN included.

    Args:
        chosen: last-layer hidden states of prompt and chosen response.
        rejected: the same of the rejected response; its length may differ.
        chosen_mask: nonzero at positions that count; see `response_positions`.
        rejected_mask: the same of the rejected response.
        form: `sum` or `mean`.

    Raises:
        UnknownNameError: another form.
        ShapeError: a mask of another shape than its states.

    Source: arXiv 2410.08847, definition 2; princeton-nlp/unintentional-unalignment ches/ches.py.
    """
    if form not in ("sum", "mean"):
        raise unknown_name("form of the CHES score", form, ("sum", "mean"))
    require_shape("ches_score chosen_mask", chosen_mask, tuple(chosen.shape[:2]), "pair, position")
    require_shape("ches_score rejected_mask", rejected_mask, tuple(rejected.shape[:2]), "pair, position")
    sums = []
    for states, mask in ((chosen, chosen_mask), (rejected, rejected_mask)):
        counts = (mask != 0).unsqueeze(-1)
        total = torch.where(counts, wide(states), 0.0).sum(dim=1)
        sums.append(total / counts.sum(dim=1).clamp(min=1) if form == "mean" else total)
    winner, loser = sums
    # <w, l> - <w, w> as one product: the two terms are of one size and nearly cancel where it matters.
    return (winner * (loser - winner)).sum(dim=-1)


# ------------------------------------------------------------------------------------------------ information


def differential_information(
    policy: Float[Tensor, "prompt outcome"], reference: Float[Tensor, "prompt outcome"]
) -> Float[Tensor, "prompt outcome"]:
    """Logarithm of the differential information distribution q, over outcomes that are all there are.

    q(y) = (pi(y) / pi_ref(y)) / sum_y' pi(y') / pi_ref(y')

    Args:
        policy: log-probability of each outcome under the updated policy.
        reference: the same under the policy it started from.

    Source: arXiv 2505.23761, theorem 3.2 of version 1 (normalised likelihood ratio).
    """
    require_same_shape("differential_information", policy, reference, ("policy", "reference"))
    return (wide(policy) - wide(reference)).log_softmax(dim=-1)


@dataclass(frozen=True)
class DifferentialInformation:
    """Entropy of what an update teaches.

    Args:
        entropy: in nats, per prompt.
        effective_samples: how many equally weighted samples the estimate is worth, from 1 to their number;
            below about 10 the entropy is noise. The number of outcomes where the sum is exact.
    """

    entropy: Float[Tensor, " prompt"]
    effective_samples: Float[Tensor, " prompt"]


def differential_information_entropy(
    policy: Float[Tensor, "prompt sample"],
    reference: Float[Tensor, "prompt sample"],
    *,
    proposal: Float[Tensor, "prompt sample"] | None = None,
) -> DifferentialInformation:
    """Entropy of the differential information distribution q ~ pi / pi_ref, exact or from samples.

    H(q) = log Z - E_q[u],  u = log pi - log pi_ref,  Z = sum_y exp(u(y))

    Low entropy: the update concentrates on few responses (it sharpens). High entropy: it spreads, which
    lowers the likelihood of the chosen responses as well.

    Without `proposal` the samples are all outcomes there are, and the result is exact. With it they are drawn
    from a distribution whose log-probability is `proposal` (pass `policy` itself when they come from the
    policy), and Z and E_q are self-normalised importance estimates:

    w_i = exp(u_i - proposal_i),  Z = mean w_i,  E_q[u] = sum w_i u_i / sum w_i

    The estimate is consistent, biased for few samples, and too low when `effective_samples` is small.

    Args:
        policy: log-probability of each sample under the updated policy.
        reference: the same under the policy it started from.
        proposal: log-probability of each sample under what drew it.

    Status: experimental. The distribution is the paper's; how the paper estimates its entropy has not been
    verified.

    Source: arXiv 2505.23761, theorem 3.2 of version 1; the estimator is ours.
    """
    require_same_shape("differential_information_entropy", policy, reference, ("policy", "reference"))
    ratio = wide(policy) - wide(reference)
    weight = ratio
    count = ratio.shape[-1]
    log_size = 0.0
    if proposal is not None:
        require_same_shape("differential_information_entropy", policy, proposal, ("policy", "proposal"))
        weight, log_size = ratio - wide(proposal), math.log(count)
    share = weight.softmax(dim=-1)
    entropy = weight.logsumexp(dim=-1) - log_size - (share * ratio).sum(dim=-1)
    worth = torch.full_like(entropy, count) if proposal is None else 1.0 / share.square().sum(dim=-1)
    return DifferentialInformation(entropy=entropy, effective_samples=worth)


# ----------------------------------------------------------------------------------------------- displacement


@dataclass(frozen=True)
class Displacement:
    """Where likelihood went during training. Shares are in [0, 1], log-ratios in nats.

    Args:
        chosen: mean log-ratio (policy over reference) of chosen candidates; negative = displaced.
        rejected: the same of rejected ones.
        chosen_fell: share of pairs whose chosen candidate became less likely.
        both_fell: share of pairs where both did.
        wrong_way: share of pairs whose chosen candidate fell and whose rejected one rose.
        margin: mean difference of the two log-ratios, what pairwise losses look at.
        worst_chosen: lowest log-ratio of a chosen candidate.
    """

    chosen: Float[Tensor, ""]
    rejected: Float[Tensor, ""]
    chosen_fell: Float[Tensor, ""]
    both_fell: Float[Tensor, ""]
    wrong_way: Float[Tensor, ""]
    margin: Float[Tensor, ""]
    worst_chosen: Float[Tensor, ""]


def _log_ratios(where: str, policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    require_shape(f"{where} policy", policy, (None, 2), "pair, candidate: 0 = chosen, 1 = rejected")
    require_same_shape(where, policy, reference, ("policy", "reference"))
    if policy.shape[0] == 0:
        raise ValueError(explain(where, got="no pairs", expected="at least one"))
    ratio = policy.detach().double() - reference.detach().double()
    return ratio[:, 0], ratio[:, 1]


def displacement(
    policy: Float[Tensor, "pair candidate"], reference: Float[Tensor, "pair candidate"]
) -> Displacement:
    """Whether training raised the margin by pushing the rejected candidates down and the chosen ones along.

    A margin that grows while `chosen` falls is likelihood displacement (arXiv 2410.08847): the mass went to
    responses nobody judged.

    Args:
        policy: log-likelihood (or bound) of chosen and rejected under the trained model; not divided by
            length unless both are.
        reference: the same before training.

    Raises:
        ShapeError: not two candidates, or another shape of the reference.
        ValueError: no pairs.
    """
    chosen, rejected = _log_ratios("displacement", policy, reference)
    fell = chosen < 0
    return Displacement(
        chosen=chosen.mean(),
        rejected=rejected.mean(),
        chosen_fell=fell.double().mean(),
        both_fell=(fell & (rejected < 0)).double().mean(),
        wrong_way=(fell & (rejected > 0)).double().mean(),
        margin=(chosen - rejected).mean(),
        worst_chosen=chosen.min(),
    )


@dataclass(frozen=True)
class ThreeDProperties:
    """Indicators of the three D's of DPO; each one is harmless near 0. Log-ratios in nats.

    Args:
        drastic_drop: by how much the rejected likelihood fell more than the chosen one moved:
            mean(-u_l) - mean |u_w|.
        degradation: mean fall of the chosen likelihood, mean max(0, -u_w).
        dispersion: mean rise of responses nobody trained on, mean u of `unseen`; 0 without them.
        gradient_log_ratio: mean log pi(y_w) - log pi(y_l): the logarithm of how many times steeper DPO's loss
            is in the probability of the rejected response than in that of the chosen one.
    """

    drastic_drop: Float[Tensor, ""]
    degradation: Float[Tensor, ""]
    dispersion: Float[Tensor, ""]
    gradient_log_ratio: Float[Tensor, ""]


def three_d_properties(
    policy: Float[Tensor, "pair candidate"],
    reference: Float[Tensor, "pair candidate"],
    *,
    unseen_policy: Float[Tensor, " response"] | None = None,
    unseen_reference: Float[Tensor, " response"] | None = None,
) -> ThreeDProperties:
    """Drastic drop of the rejected, degradation of the chosen, dispersion onto unseen responses.

    For DPO  |dL / d pi(y_l)| / |dL / d pi(y_w)| = pi(y_w) / pi(y_l): as the rejected response becomes
    unlikely its gradient explodes and the chosen one's dies, which is what the three symptoms come from.

    Args:
        policy: log-likelihood of chosen and rejected under the trained model.
        reference: the same before training.
        unseen_policy: log-likelihood, under the trained model, of responses that are in no pair.
        unseen_reference: the same before training.

    Raises:
        ShapeError: not two candidates, another shape of the reference, or only one of the unseen inputs.
        ValueError: no pairs.

    Status: the symptoms and the gradient ratio are the paper's; these summaries of them are ours.

    Source: arXiv 2406.07327.
    """
    chosen, rejected = _log_ratios("three_d_properties", policy, reference)
    dispersion = torch.zeros_like(chosen[0])
    if unseen_policy is not None or unseen_reference is not None:
        empty = policy.new_zeros(0)
        after = empty if unseen_policy is None else unseen_policy
        before = empty if unseen_reference is None else unseen_reference
        require_same_shape("three_d_properties", after, before, ("unseen_policy", "unseen_reference"))
        dispersion = (after.detach().double() - before.detach().double()).mean()
    scores = policy.detach().double()
    return ThreeDProperties(
        drastic_drop=-rejected.mean() - chosen.abs().mean(),
        degradation=(-chosen).clamp(min=0.0).mean(),
        dispersion=dispersion,
        gradient_log_ratio=(scores[:, 0] - scores[:, 1]).mean(),
    )
