"""The rows of `pairwise.py`, typed from their papers."""

from torch.nn.functional import logsigmoid, relu


def total(values, scores):
    """Sum over the positions that count."""
    return values if values.ndim == 2 else (values * scores.mask).sum(-1)


def mean(values, scores):
    """Mean over the positions that count."""
    return values if values.ndim == 2 else (values * scores.mask).sum(-1) / scores.mask.sum(-1)


def gap(values):
    """Chosen minus rejected."""
    return values[:, 0] - values[:, 1]


def log_ratio(scores, how=total):
    """Policy minus reference, reduced."""
    return how(scores.policy, scores) - how(scores.reference, scores)


def dpo(scores, labels, h):
    how = {"sum": total, "mean": mean}[h["reduction"]]
    return -logsigmoid(h["beta"] * gap(log_ratio(scores, how)))


def dpo_reference_free(scores, labels, h):
    return -logsigmoid(h["beta"] * gap(total(scores.policy, scores)))


def cdpo(scores, labels, h):
    z, e = h["beta"] * gap(log_ratio(scores)), h["label_smoothing"]
    return -(1 - e) * logsigmoid(z) - e * logsigmoid(-z)


def robust_dpo(scores, labels, h):
    z, e = h["beta"] * gap(log_ratio(scores)), h["label_smoothing"]
    return (-(1 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1 - 2 * e)


def hinge(scores, labels, h):
    return relu(1 - h["beta"] * gap(log_ratio(scores)))


def ipo(scores, labels, h):
    how = {"sum": total, "mean": mean}[h["reduction"]]
    return (gap(log_ratio(scores, how)) - 1 / (2 * h["tau"])) ** 2


def diffusion_ipo(scores, labels, h):
    return (h["beta"] * gap(log_ratio(scores)) - 0.5) ** 2


def ipo_reference_free(scores, labels, h):
    return (gap(mean(scores.policy, scores)) - 1 / (2 * h["tau"])) ** 2


PLAIN = {
    "dpo": dpo,
    "dpo_reference_free": dpo_reference_free,
    "cdpo": cdpo,
    "robust_dpo": robust_dpo,
    "hinge": hinge,
    "ipo": ipo,
    "diffusion_ipo": diffusion_ipo,
    "ipo_reference_free": ipo_reference_free,
}
