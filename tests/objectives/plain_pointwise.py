"""The rows of `pointwise.py`, `binary_classifier.py`, `humanline.py`, `regression.py`, from their papers."""

import torch
from torch.nn.functional import logsigmoid


def total(values, scores):
    """Sum over the positions that count."""
    return values if values.ndim == 2 else (values * scores.mask).sum(-1)


def log_ratio(scores):
    return total(scores.policy, scores) - total(scores.reference, scores)


def liked(scores, labels):
    if labels.desirable is not None:
        return labels.desirable
    first = torch.zeros(scores.policy.shape[:2], dtype=torch.bool)
    first[:, 0] = True
    return first


def by_role(scores, labels, chosen, rejected):
    """One loss per candidate, added up over each prompt."""
    return torch.where(liked(scores, labels), chosen, rejected).sum(1)


def kto_loss(u, scores, labels, h):
    zero = u.detach().mean().clamp(min=0)
    return by_role(
        scores,
        labels,
        h["desirable_weight"] * (1 - torch.sigmoid(h["beta"] * (u - zero))),
        h["undesirable_weight"] * (1 - torch.sigmoid(h["beta"] * (zero - u))),
    )


def kto(scores, labels, h):
    assert (h["utility"], h["zero_point"]) == ("sigmoid", "batch")
    return kto_loss(log_ratio(scores), scores, labels, h)


def apo_zero(scores, labels, h):
    x = h["beta"] * log_ratio(scores)
    return by_role(scores, labels, 1 - torch.sigmoid(x), torch.sigmoid(x))


def apo_zero_unpaired(scores, labels, h):
    x = h["beta"] * log_ratio(scores)
    chosen, rejected = 1 - torch.sigmoid(x), torch.sigmoid(x)
    return by_role(scores, labels, h["desirable_weight"] * chosen, h["undesirable_weight"] * rejected)


def apo_down(scores, labels, h):
    x = h["beta"] * log_ratio(scores)
    return torch.sigmoid(x[:, 0]) + 1 - torch.sigmoid(x[:, 0] - x[:, 1])


def bco_pair(scores, labels, h):
    x = h["beta"] * log_ratio(scores)
    return -logsigmoid(x[:, 0]) - logsigmoid(-x[:, 1])


def nca_pair(scores, labels, h):
    x = h["beta"] * log_ratio(scores)
    return -logsigmoid(x[:, 0]) - logsigmoid(-x).sum(1) / 2


def bco(scores, labels, h):
    assert h["delta_rule"] == "running_samples"
    x = h["beta"] * log_ratio(scores)
    z = x - x.detach().mean()
    return by_role(
        scores, labels, -h["desirable_weight"] * logsigmoid(z), -h["undesirable_weight"] * logsigmoid(-z)
    )


def bco_udm(scores, labels, h):
    x = h["beta"] * log_ratio(scores)
    z = x - x.detach().mean()
    p = scores.extras["desirable_prompt_probability"]
    ratio = torch.minimum(
        torch.maximum(p / (1 - p + 1e-8), torch.full_like(p, h["lowest"])), torch.full_like(p, h["highest"])
    )
    return by_role(scores, labels, -logsigmoid(z), -ratio * logsigmoid(-z))


def kto_pair_legacy(scores, labels, h):
    u = log_ratio(scores)
    chosen = 1 - torch.sigmoid(h["beta"] * (u[:, 0] - u[:, 1].mean().clamp(min=0)))
    rejected = 1 - torch.sigmoid(h["beta"] * (u[:, 0].mean().clamp(min=0) - u[:, 1]))
    return (chosen + rejected) / 2


def clamped(scores, h):
    if scores.policy.ndim == 2:
        return scores.policy - scores.reference
    ratio = torch.minimum(scores.policy - scores.reference, torch.tensor(h["high"], dtype=torch.float64))
    return (torch.maximum(ratio, torch.tensor(h["low"], dtype=torch.float64)) * scores.mask).sum(-1)


def humanline_dpo(scores, labels, h):
    assert h["reduction"] == "sum"
    u = clamped(scores, h)
    return -logsigmoid(h["beta"] * (u[:, 0] - u[:, 1]))


def humanline_kto(scores, labels, h):
    return kto_loss(clamped(scores, h), scores, labels, h)


def sppo(scores, labels, h):
    target = (scores.extras["win_probability"] - 0.5) / h["beta"]
    return ((log_ratio(scores) - target) ** 2).sum(1) / 2


def sppo_single(scores, labels, h):
    u, target = log_ratio(scores), (labels.probability - 0.5) / h["beta"]
    return ((u[:, 0] - target) ** 2 + (u[:, 1] + target) ** 2) / 2


def sppo_hard(scores, labels, h):
    u, target = log_ratio(scores), 0.5 / h["beta"]
    return (u[:, 0] - target) ** 2 + (u[:, 1] + target) ** 2


def a2po_regression(scores, labels, h):
    advantage = scores.reward - scores.extras["optimal_value"]
    return ((h["beta"] * log_ratio(scores) - advantage) ** 2)[:, 0]


PLAIN = {
    "kto": kto,
    "apo_zero": apo_zero,
    "apo_zero_unpaired": apo_zero_unpaired,
    "apo_down": apo_down,
    "bco_pair": bco_pair,
    "nca_pair": nca_pair,
    "bco": bco,
    "bco_udm": bco_udm,
    "kto_pair_legacy": kto_pair_legacy,
    "humanline_dpo": humanline_dpo,
    "humanline_kto": humanline_kto,
    "sppo": sppo,
    "sppo_single": sppo_single,
    "sppo_hard": sppo_hard,
    "a2po_regression": a2po_regression,
}
