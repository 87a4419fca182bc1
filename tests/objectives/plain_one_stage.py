"""The rows of `one_stage.py` and `gold_answers.py`, typed from their papers and official codes."""

import torch
from torch.nn.functional import logsigmoid, relu


def total(scores):
    policy = scores.policy
    return policy if policy.ndim == 2 else (policy * scores.mask).sum(-1)


def mean(scores):
    policy = scores.policy
    return policy if policy.ndim == 2 else (policy * scores.mask).sum(-1) / scores.mask.sum(-1)


def both_ways(z, smoothing):
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def cpo(scores, labels, h):
    p = total(scores)
    return (
        both_ways(h["beta"] * (p[:, 0] - p[:, 1]), h["label_smoothing"])
        - h["coefficient"] * mean(scores)[:, 0]
    )


def cpo_hinge(scores, labels, h):
    p = total(scores)
    return relu(1 - h["beta"] * (p[:, 0] - p[:, 1])) - h["coefficient"] * mean(scores)[:, 0]


def cpo_ipo(scores, labels, h):
    p = mean(scores)
    return (p[:, 0] - p[:, 1] - 0.5 / h["tau"]) ** 2 - h["coefficient"] * p[:, 0]


def cpo_simpo(scores, labels, h):
    p = mean(scores)
    z = h["beta"] * (p[:, 0] - p[:, 1]) - h["gamma"]
    return both_ways(z, h["label_smoothing"]) - h["coefficient"] * p[:, 0]


def alphapo(scores, labels, h):
    shaped = (1 - torch.exp(mean(scores)) ** -h["alpha"]) / h["alpha"]
    return both_ways(h["beta"] * (shaped[:, 0] - shaped[:, 1]) - h["gamma"], h["label_smoothing"])


def gold(scores):
    return scores.extras["gold_score"] / scores.extras["gold_length"]


def triple_po(scores, labels, h):
    p = total(scores)
    z = h["beta"] * (p[:, 0] - p[:, 1])
    return both_ways(z, h["label_smoothing"]) - h["coefficient"] * gold(scores)


def triple_po_hinge(scores, labels, h):
    p = total(scores)
    return relu(1 - h["beta"] * (p[:, 0] - p[:, 1])) - h["coefficient"] * gold(scores)


def triple_po_ipo(scores, labels, h):
    p = mean(scores)
    return (p[:, 0] - p[:, 1] - 0.5 / h["tau"]) ** 2 - h["coefficient"] * gold(scores)


def triple_po_l(scores, labels, h):
    p = mean(scores)
    z = h["beta"] * (p[:, 0] - p[:, 1]) - h["gamma"]
    return both_ways(z, h["label_smoothing"]) - h["coefficient"] * gold(scores)


def asft(scores, labels, h):
    p = mean(scores)
    log_odds = p - torch.log(1 - torch.exp(p))
    z = h["temperature"] * log_odds
    return -h["coefficient"] * p[:, 0] - h["beta"] * (logsigmoid(z[:, 0]) + logsigmoid(-z[:, 1]))


def logo(scores, labels, h):
    p = mean(scores)
    z = h["beta"] * (p[:, 0] - p[:, 1:].mean(1)) - h["gamma"]
    return -logsigmoid(z) - h["coefficient"] * p[:, 0]


PLAIN = {
    function.__name__: function
    for function in (
        alphapo,
        asft,
        cpo,
        cpo_hinge,
        cpo_ipo,
        cpo_simpo,
        logo,
        triple_po,
        triple_po_hinge,
        triple_po_ipo,
        triple_po_l,
    )
}
