"""The rows of `grounded.py`, typed from their papers and official codes."""

import torch
from torch.nn.functional import logsigmoid


def total(values, scores):
    return values if values.ndim == 2 else (values * scores.mask).sum(-1)


def ratios(scores):
    """Log-ratio of every candidate."""
    return total(scores.policy - scores.reference, scores)


def mdpo(scores, labels, h):
    r = ratios(scores)
    answer = -logsigmoid(h["beta"] * (r[:, 0] - r[:, 1]))
    image = -logsigmoid(h["beta"] * (r[:, 0] - r[:, 2]))
    anchor = -logsigmoid(h["beta"] * r[:, 0] - h["anchor"])
    return answer + h["image_coefficient"] * image + h["anchor_coefficient"] * anchor


def chip(scores, labels, h):
    r, kl = ratios(scores), total(scores.kl, scores)
    token = kl[:, 1] - kl[:, 0]
    inside = (
        (r[:, 0] - r[:, 1]) + h["image_coefficient"] * (r[:, 0] - r[:, 2]) - h["token_coefficient"] * token
    )
    return -logsigmoid(h["beta"] * inside)


def povid(scores, labels, h):
    r = ratios(scores)
    written = -logsigmoid(h["beta"] * (r[:, 0] - r[:, 1]))
    own = -logsigmoid(h["beta"] * (r[:, 0] - r[:, 2]))
    return (1 - h["own_share"]) * written + h["own_share"] * own


def opa_dpo(scores, labels, h):
    beta = h["beta"]
    r = ratios(scores)

    def weighted(name):
        return total((scores.policy - scores.reference) * scores.extras[name], scores)

    def versus(values, i, j):
        return -logsigmoid(beta * (values[:, i] - values[:, j]))

    severe, seen = weighted("token_severity"), weighted("image_relation")
    anchors = -logsigmoid(beta * r[:, 0] - h["anchor"]) - logsigmoid(beta * r[:, 2] - h["anchor"])
    image = versus(r, 0, 3) + versus(seen, 2, 4)
    return (
        versus(r, 0, 1)
        + versus(severe, 2, 1)
        + h["image_coefficient"] * image
        + h["anchor_coefficient"] * anchors
    )


def opa_dpo_released(scores, labels, h):
    beta = h["beta"]
    r = scores.policy - scores.reference
    if r.ndim == 2:
        r, weights = r.unsqueeze(2), {name: value.unsqueeze(2) for name, value in scores.extras.items()}
        here = torch.ones_like(r)
    else:
        weights, here = scores.extras, scores.mask
    r = r * here

    def mean(values, *candidates):
        counts = torch.stack([here[:, k] for k in candidates]).amax(0)
        return (values * counts).sum(1) / counts.sum(1)

    def versus(i, j, name=None):
        first = r[:, i] if name is None else weights[name][:, i] * r[:, i]
        second = r[:, j] if name is None else weights[name][:, j] * r[:, j]
        return mean(-logsigmoid(beta * (first - second)), i, j)

    anchors = mean(-logsigmoid(beta * r[:, 0] - h["anchor"]), 0) + mean(
        -logsigmoid(h["anchor"] - beta * r[:, 2]), 2
    )
    true = versus(0, 1) + h["image_coefficient"] * versus(0, 3)
    revised = versus(2, 1, "token_severity") + h["image_coefficient"] * versus(2, 4, "image_relation")
    return (
        h["true_coefficient"] * true
        + h["revised_coefficient"] * revised
        + 2 * h["anchor_coefficient"] * anchors
    )


def hsa_dpo(scores, labels, h):
    r = ratios(scores)
    return -logsigmoid(h["beta"] * (r[:, 0] - scores.extras["severity"][:, 1] * r[:, 1]))


def mm_dpo(scores, labels, h):
    r = ratios(scores)
    gap = scores.reward[:, 0] - scores.reward[:, 1]
    beta = h["beta"] * (1 + h["strength"] * (1 - torch.exp(-h["rate"] * gap)))
    return -logsigmoid(beta * (r[:, 0] - r[:, 1]))


def mm_dpo_released(scores, labels, h):
    r = ratios(scores)
    beta = h["beta"] * (1 + h["strength"] * scores.extras["temperature_factor"])
    return -logsigmoid(beta * (r[:, 0] - r[:, 1]))


def lc_dpo_chexalign(scores, labels, h):
    r = ratios(scores)
    length = scores.length if scores.length is not None else scores.mask.sum(-1)
    return -logsigmoid(h["beta"] * (r[:, 0] - r[:, 1]) + h["alpha"] * (length[:, 0] - length[:, 1]))


def grape_tpo(scores, labels, h):
    steps = scores.policy - scores.reference
    difference = steps[:, 0] - steps[:, 1]
    if difference.ndim == 2:
        steps = steps * scores.mask
        difference = (steps[:, 0] - steps[:, 1]).sum(1)
    return -logsigmoid(h["beta"] * difference)


def vdpo_guided(scores, labels, h):
    blind = scores.extras["imageless_score"]
    guided = h["guidance"] * scores.policy - (h["guidance"] - 1) * blind
    s = total(guided - scores.reference, scores)
    return -logsigmoid(h["beta"] * (s[:, 0] - s[:, 1]))


PLAIN = {
    "mdpo": mdpo,
    "chip": chip,
    "povid": povid,
    "opa_dpo": opa_dpo,
    "opa_dpo_released": opa_dpo_released,
    "hsa_dpo": hsa_dpo,
    "mm_dpo": mm_dpo,
    "mm_dpo_released": mm_dpo_released,
    "lc_dpo_chexalign": lc_dpo_chexalign,
    "grape_tpo": grape_tpo,
    "vdpo_guided": vdpo_guided,
}
