"""The rows of `reference_free.py`, typed from their papers and official codes."""

import torch
from torch.nn.functional import logsigmoid, relu


def mean(scores):
    policy = scores.policy
    return policy if policy.ndim == 2 else (policy * scores.mask).sum(-1) / scores.mask.sum(-1)


def error(scores):
    """Denoising errors behind scores of -error / 2."""
    return -2 * mean(scores)


def simpo(scores, labels, h):
    p, e = mean(scores), h["label_smoothing"]
    z = h["beta"] * (p[:, 0] - p[:, 1]) - h["gamma"]
    return -(1 - e) * logsigmoid(z) - e * logsigmoid(-z)


def simpo_hinge(scores, labels, h):
    p = mean(scores)
    return relu(1 - (h["beta"] * (p[:, 0] - p[:, 1]) - h["gamma"]))


def mapo(scores, labels, h):
    loss = error(scores)
    shaped = h["kappa"] * loss / (torch.exp(h["kappa"] * loss) - 1)
    return loss[:, 0] - h["beta"] * logsigmoid(h["scale"] * (shaped[:, 0] - shaped[:, 1]))


def orpo(scores, labels, h):
    p = mean(scores)
    log_odds = p - torch.log1p(-torch.exp(p))
    return -p[:, 0] - h["beta"] * logsigmoid(log_odds[:, 0] - log_odds[:, 1])


def diffusion_orpo(scores, labels, h):
    loss = error(scores)
    return loss[:, 0] - h["beta"] * logsigmoid(h["scale"] * (loss[:, 1] - loss[:, 0]))


def diffusion_orpo_official(scores, labels, h):
    loss = error(scores)
    return loss[:, 0] - h["beta"] * logsigmoid(loss[:, 0] - loss[:, 1])


def sft(scores, labels, h):
    return -mean(scores)[:, 0]


PLAIN = {
    "simpo": simpo,
    "simpo_hinge": simpo_hinge,
    "mapo": mapo,
    "orpo": orpo,
    "diffusion_orpo": diffusion_orpo,
    "diffusion_orpo_official": diffusion_orpo_official,
    "sft": sft,
}
