"""The rows that look inside a response, typed from their papers and official codes.

They stand in `tokenwise.py`, `token_divergences.py`, `segments.py` and `state_values.py`. Reduced scores
are taken as they are: what weighs positions is in them already.
"""

import math

import torch
from torch.nn.functional import logsigmoid


def total(values, scores, weight=1.0):
    return values if values.ndim == 2 else (values * weight * scores.mask).sum(-1)


def dpo(beta, won_minus_lost):
    return -logsigmoid(beta * won_minus_lost)


def gap(values):
    return values[:, 0] - values[:, 1]


def ratio(scores):
    return scores.policy - scores.reference


def weighted(scores, weight):
    return gap(total(ratio(scores), scores, weight))


def divergence(scores):
    return total(scores.kl, scores)


def tdpo1(scores, labels, h):
    return dpo(h["beta"], weighted(scores, 1.0) + gap(divergence(scores)))


def tdpo2(scores, labels, h):
    kl = divergence(scores)
    return dpo(h["beta"], weighted(scores, 1.0) - h["alpha"] * (kl[:, 1] - kl[:, 0].detach()))


def sparsepo(scores, labels, h):
    reward_mask, kl_mask = scores.extras["reward_mask"], scores.extras["kl_mask"]
    z = weighted(scores, reward_mask) + gap(total(scores.kl, scores, kl_mask))
    loss = dpo(h["beta"], z)
    if scores.policy.ndim == 2:
        return loss
    sizes = [(mask * scores.mask).sum((1, 2)) for mask in (reward_mask, kl_mask)]
    return loss + h["reward_norm"] * sizes[0] + h["kl_norm"] * sizes[1]


def mapo_masked(scores, labels, h):
    mask = scores.extras["token_mask"]
    return dpo(h["beta"], gap(total(ratio(scores), scores, mask) + total(scores.kl, scores, mask)))


def sampo(scores, labels, h):
    return dpo(h["beta"], weighted(scores, scores.extras["kept_positions"]))


def tail(scores, alpha):
    """1 for the first so many unmasked positions as the shorter response has, then alpha."""
    if scores.policy.ndim == 2:
        return 1.0
    weights = torch.full_like(scores.mask, alpha)
    for pair, mask in enumerate(scores.mask):
        shorter = int(mask.sum(-1).min())
        for candidate in range(2):
            kept = mask[candidate].nonzero().flatten()[:shorter]
            weights[pair, candidate, kept] = 1.0
    return weights


def ld_dpo(scores, labels, h):
    return dpo(h["beta"], weighted(scores, tail(scores, h["alpha"])))


def ld_dpo_policy_only(scores, labels, h):
    policy = total(scores.policy, scores, tail(scores, h["alpha"]))
    return dpo(h["beta"], gap(policy - total(scores.reference, scores)))


def fdpo_js_ipo(scores, labels, h):
    u = total(ratio(scores), scores)
    length = scores.length if scores.length is not None else scores.mask.sum(-1)
    return (gap((math.log(2) + logsigmoid(u)) / length) - 1 / (2 * h["tau"])) ** 2


def d2po_temporal_decay(scores, labels, h):
    weight = 1.0 if scores.policy.ndim == 2 else h["gamma"] ** scores.mask.cumsum(-1)
    return dpo(h["beta"], weighted(scores, weight))


def dense_dpo(scores, labels, h):
    return dpo(h["beta"], weighted(scores, 1 + (h["weight"] - 1) * scores.extras["changed"]))


def rrpo(scores, labels, h):
    loss = dpo(h["beta"], weighted(scores, scores.extras["phrase"]))
    return loss + h["alpha"] * divergence(scores)[:, 0]


def tgdpo(scores, labels, h):
    reward = h["beta"] * (scores.extras["reward_model_score"] - scores.reference)
    won = total(ratio(scores), scores, 1 + h["alpha"] * reward)[:, 0]
    lost = total(ratio(scores), scores, 1 - h["alpha"] * reward)[:, 1]
    return dpo(h["beta"], won - lost)


def oreo(scores, labels, h):
    deep = scores.policy.ndim == 3
    losses = []
    for row in range(len(scores.policy)):
        kept = scores.mask[row, 0] > 0 if deep else ...
        u, v, kl = ratio(scores)[row, 0], scores.extras["value"][row, 0], scores.kl[row, 0]
        u, v, kl = (x[kept] if deep else x.reshape(1) for x in (u, v, kl))
        reward, loss = scores.reward[row, 0], 0.0
        for t in range(len(u)):
            later = u[t + 1 :].sum().detach()
            loss = loss + (v[t].detach() - reward + h["beta"] * (u[t] + later)) ** 2
            loss = loss + (v[t] - reward + h["beta"] * (u[t].detach() + later)) ** 2
            loss = loss + h["alpha"] * kl[t]
        losses.append(loss / len(u))
    return torch.stack(losses)


PLAIN = {
    function.__name__: function
    for function in (
        d2po_temporal_decay,
        dense_dpo,
        fdpo_js_ipo,
        ld_dpo,
        ld_dpo_policy_only,
        mapo_masked,
        oreo,
        rrpo,
        sampo,
        sparsepo,
        tdpo1,
        tdpo2,
        tgdpo,
    )
}
