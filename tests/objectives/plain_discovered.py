"""The rows of `discovered.py` and `discovered_quantiles.py`, typed from the listings of their paper."""

import torch
from torch.nn.functional import logsigmoid, relu


def total(values, scores):
    return values if values.ndim == 2 else (values * scores.mask).sum(-1)


def gap(values):
    return values[:, 0] - values[:, 1]


def margin(scores, h):
    return h["beta"] * gap(total(scores.policy, scores) - total(scores.reference, scores))


def discopop(scores, labels, h):
    z = margin(scores, h)
    modulation = torch.sigmoid(z / h["temperature"])
    return -logsigmoid(z) * (1 - modulation) + torch.exp(-z) * modulation


def discovered_cell(scores, labels, h):
    z, alpha = margin(scores, h), h["share"]
    return alpha * torch.exp(-z) - (1 - alpha) * logsigmoid(z)


def discovered_padll(scores, labels, h):
    z = margin(scores, h)
    mismatch = (z < 0).to(z)
    return h["decay"] * (1 - mismatch * h["penalty"]) * -logsigmoid(z)


def discovered_pfl(scores, labels, h):
    z = margin(scores, h)
    right = gap(total(scores.policy, scores)) > 0
    return torch.where(right, -logsigmoid(z) / h["focus"], relu(1 - z) * h["focus"])


def blend(gate, z):
    return gate * -logsigmoid(z) + (1 - gate) * relu(1 - z)


def discovered_aql(scores, labels, h):
    z = margin(scores, h)
    x = z / h["temperature"]
    quantile = h["quantile"] + h["rate"] * (torch.sigmoid(x.mean()) - h["quantile"])
    return blend(torch.sigmoid(-(x - quantile)), z)


def discovered_aqfl(scores, labels, h):
    z = margin(scores, h)
    x = z / h["temperature"]
    quantile = x.std() * torch.sigmoid(-x).mean()
    quantile = quantile + h["rate"] * (torch.sigmoid(x.mean()) - quantile)
    return blend(torch.sigmoid(h["scale"] * (x - quantile).abs()), z)


def discovered_dbaql(scores, labels, h):
    z, t = margin(scores, h), h["sharpness"]
    gate = torch.sigmoid((z / h["temperature"]).var())
    return gate * -logsigmoid(z / t) + (1 - gate) * torch.exp(-z * t)


PLAIN = {
    function.__name__: function
    for function in (
        discopop,
        discovered_aqfl,
        discovered_aql,
        discovered_cell,
        discovered_dbaql,
        discovered_padll,
        discovered_pfl,
    )
}
