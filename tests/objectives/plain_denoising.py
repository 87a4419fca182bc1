"""The rows of `denoising.py` and `clips.py`, typed from their papers and official codes."""

import torch
from torch.nn.functional import logsigmoid, relu


def total(values, scores):
    return values if values.ndim == 2 else (values * scores.mask).sum(-1)


def ratios(scores):
    return total(scores.policy - scores.reference, scores)


def gap(values):
    return values[:, 0] - values[:, 1]


def errors(scores):
    """Errors of policy and reference."""
    return -2 * total(scores.policy, scores), -2 * total(scores.reference, scores)


def inside(scores, beta):
    """-beta / 2 * ((e_w - e_l) - (r_w - r_l))."""
    policy, reference = errors(scores)
    return -beta / 2 * (gap(policy) - gap(reference))


def sdpo(scores, labels, h):
    u = ratios(scores)
    share = scores.extras["safeguard"][:, 1]
    rejected = u[:, 1].detach() + share * (u[:, 1] - u[:, 1].detach())
    return -logsigmoid(h["beta"] * (u[:, 0] - rejected))


def dspo(scores, labels, h):
    policy, reference = errors(scores)
    drift = scores.extras["drift"][:, 0]
    step = h["beta"] * torch.sigmoid(-inside(scores, h["beta"]))
    # |a - step * d|^2 with |a|^2 = e, |d|^2 = drift and 2 <a, d> = e - e of the reference + drift
    return policy[:, 0] - step * (policy[:, 0] - reference[:, 0] + drift) + step**2 * drift


def dspo_sdxl(scores, labels, h):
    wrong = 1 - torch.sigmoid(inside(scores, h["beta"]))
    drift = scores.extras["drift"][:, 0]
    return torch.where(drift >= h["threshold"], wrong**2 * drift, wrong**2)


def dmpo(scores, labels, h):
    z, q = inside(scores, h["beta"]), torch.tensor(1 - h["alpha"], dtype=torch.float64)
    p = torch.sigmoid(z)
    return p * (logsigmoid(z) - q.log()) + (1 - p) * (logsigmoid(-z) - (1 - q).log())


def diffusion_dro(scores, labels, h):
    policy, reference = errors(scores)
    difference = policy - reference
    return relu(difference[:, 0] - difference[:, 1] + h["margin"])


def flow_rwr(scores, labels, h):
    squared = -2 * scores.policy
    if squared.ndim == 3:
        squared = (squared * scores.mask).sum(-1) / scores.mask.sum(-1)
    return (torch.exp(scores.reward / h["temperature"]) * squared).mean(1)


def smpo(scores, labels, h):
    scaled = (scores.reward - h["low"]) / (h["high"] - h["low"])
    p = torch.softmax(scaled, dim=1)[:, 0]
    return -logsigmoid(h["gamma"] * (2 * p - 1) * inside(scores, h["beta"]))


def flow_dpo(scores, labels, h):
    return -logsigmoid((1 - scores.extras["noise_level"]) ** 2 * inside(scores, h["beta"]))


def linear_dpo(scores, labels, h):
    """Integral of the released weight clamp(0.5 - 0.4 z, floor, 1 - floor) from z to 1.25, times 2 / beta."""
    z, floor = inside(scores, h["beta"]), h["floor"]
    end = (0.5 - floor) / 0.4

    def parabola(z):
        return 0.5 * (1.25 - z) - 0.2 * (1.25**2 - z**2)

    above = parabola(torch.tensor(end)) - floor * (z - end)
    below = parabola(torch.tensor(-end)) + (1 - floor) * (-end - z)
    return 2 / h["beta"] * torch.where(z > end, above, torch.where(z < -end, below, parabola(z)))


def crpo(scores, labels, h):
    chosen = scores.policy[:, 0]
    if chosen.ndim == 2:
        mask = scores.mask[:, 0]
        chosen = (chosen * mask).sum(1) / mask.sum(1)
    return -logsigmoid(inside(scores, h["beta"])) + h["coefficient"] * -2 * chosen


def tango2_dpo(scores, labels, h):
    policy, reference = (-2 * part for part in (scores.policy, scores.reference))
    if policy.ndim == 3:
        mask = scores.mask
        winner = (policy[:, 0] * mask[:, 0]).sum(1) / mask[:, 0].sum(1)
        policy, reference = (policy * mask).sum(2), (reference * mask).sum(2)
    else:
        winner = policy[:, 0]
    drift = (policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1])
    return -logsigmoid(-h["beta"] / 2 * drift) + h["sft_weight"] * winner


def densedpo(scores, labels, h):
    u = scores.policy - scores.reference
    signed = scores.extras["preference"][:, 0] * (u[:, 0] - u[:, 1])
    if u.ndim == 2:
        return -logsigmoid(h["beta"] * signed)
    label = scores.extras["preference"][:, 0]
    sides = [(label * u[:, k] * scores.mask[:, k]).sum(1) / scores.mask[:, k].sum(1) for k in (0, 1)]
    return -logsigmoid(h["beta"] * (sides[0] - sides[1]))


def densedpo_per_segment(scores, labels, h):
    u, label = scores.policy - scores.reference, scores.extras["preference"][:, 0]
    if u.ndim == 2:
        return -logsigmoid(h["beta"] * label * (u[:, 0] - u[:, 1]))
    u, here = u * scores.mask, scores.mask.amax(1)
    each = -logsigmoid(h["beta"] * label * (u[:, 0] - u[:, 1]))
    return (each * here).sum(1) / here.sum(1)


def videodpo(scores, labels, h):
    u = scores.policy - scores.reference
    u = u if u.ndim == 2 else (u * scores.mask).sum(-1) / scores.mask.sum(-1)
    return scores.extras["pair_weight"] * -logsigmoid(h["beta"] * gap(u))


def videodpo_columns(scores, labels, h):
    u, weight = scores.policy - scores.reference, scores.extras["pair_weight"]
    if u.ndim == 2:
        return weight * -logsigmoid(h["beta"] * gap(u))
    u, here = u * scores.mask, scores.mask.amax(1)
    return weight * (-logsigmoid(h["beta"] * gap(u)) * here).sum(1) / here.sum(1)


PLAIN = {
    "sdpo": sdpo,
    "dspo": dspo,
    "dspo_sdxl": dspo_sdxl,
    "dmpo": dmpo,
    "diffusion_dro": diffusion_dro,
    "flow_rwr": flow_rwr,
    "smpo": smpo,
    "flow_dpo": flow_dpo,
    "linear_dpo": linear_dpo,
    "crpo": crpo,
    "tango2_dpo": tango2_dpo,
    "densedpo": densedpo,
    "densedpo_per_segment": densedpo_per_segment,
    "videodpo": videodpo,
    "videodpo_columns": videodpo_columns,
}
