"""The rows of `variants.py` and `divergences.py`, typed from their papers and official codes."""

import math

import torch
from torch.nn.functional import logsigmoid, relu


def total(values, scores):
    return values if values.ndim == 2 else (values * scores.mask).sum(-1)


def mean(values, scores):
    return values if values.ndim == 2 else (values * scores.mask).sum(-1) / scores.mask.sum(-1)


def sides(scores):
    """Log-ratios of chosen and rejected."""
    u = total(scores.policy, scores) - total(scores.reference, scores)
    return u[:, 0], u[:, 1]


def lengths(scores):
    return scores.length if scores.length is not None else scores.mask.sum(-1)


def fdpo_forward_kl(scores, labels, h):
    won, lost = sides(scores)
    return -logsigmoid(h["beta"] * (torch.exp(-lost) - torch.exp(-won)))


def fdpo_js(scores, labels, h):
    won, lost = sides(scores)
    return -logsigmoid(h["beta"] * (logsigmoid(won) - logsigmoid(lost)))


def fdpo_alpha(scores, labels, h):
    won, lost = sides(scores)
    a = h["alpha"]
    return -logsigmoid(h["beta"] * (torch.exp(-a * lost) - torch.exp(-a * won)) / a)


def dpo_cauchy(scores, labels, h):
    won, lost = sides(scores)
    return -torch.log(torch.atan(h["beta"] * (won - lost)) / math.pi + 0.5)


def odpo(scores, labels, h):
    won, lost = sides(scores)
    offset = h["alpha"] * torch.log(scores.reward[:, 0] - scores.reward[:, 1])
    return -logsigmoid(h["beta"] * (won - lost) - offset)


def dpo_shift(scores, labels, h):
    won, lost = sides(scores)
    return -logsigmoid(h["beta"] * (won - h["shift"] * lost))


def dpop(scores, labels, h):
    won, lost = sides(scores)
    return -logsigmoid(h["beta"] * (won - h["penalty"] * relu(-won) - lost))


def length_dpo(scores, labels, h):
    won, lost = sides(scores)
    size = lengths(scores)
    return -logsigmoid(h["beta"] * (won - lost) + h["alpha"] * (size[:, 0] - size[:, 1]))


def rainbow_mixed_reference(scores, labels, h):
    p, r = mean(scores.policy, scores), mean(scores.reference, scores)
    gap = (p[:, 0] - p[:, 1]) - h["mixing"] * (r[:, 0] - r[:, 1])
    return -logsigmoid(h["beta"] * (gap - (1 - h["mixing"]) * h["margin"]))


def slic(scores, labels, h):
    p = total(scores.policy, scores)
    return relu(h["margin"] - (p[:, 0] - p[:, 1])) - h["coefficient"] * p[:, 0]


def ranked(first, second, h):
    """First minus second, both sorted, given back in the first's order."""
    order = torch.argsort(first)
    z = torch.empty_like(first)
    z[order] = h["beta"] * (first[order] - torch.sort(second).values)
    e = h["label_smoothing"]
    return -(1 - e) * logsigmoid(z) - e * logsigmoid(-z)


def aot(scores, labels, h):
    p, r = total(scores.policy, scores), total(scores.reference, scores)
    return ranked(p[:, 0] - p[:, 1], r[:, 0] - r[:, 1], h)


def aot_unpaired(scores, labels, h):
    return ranked(*sides(scores), h)


PLAIN = {
    "fdpo_forward_kl": fdpo_forward_kl,
    "fdpo_js": fdpo_js,
    "fdpo_alpha": fdpo_alpha,
    "dpo_cauchy": dpo_cauchy,
    "odpo": odpo,
    "dpo_shift": dpo_shift,
    "dpop": dpop,
    "length_dpo": length_dpo,
    "rainbow_mixed_reference": rainbow_mixed_reference,
    "slic": slic,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
}
