"""The rows of `listwise.py`, `rankings.py` and `answer_rankings.py`, typed from their papers.

Written with loops over the candidates, as the papers' sums are. Padding is left out by `real`: the candidates
of each prompt that count.
"""

import math

import torch
from torch.nn.functional import logsigmoid, relu, softplus


def total(values, scores):
    return values if values.ndim == 2 else (values * scores.mask).sum(-1)


def mean(values, scores):
    return values if values.ndim == 2 else (values * scores.mask).sum(-1) / scores.mask.sum(-1)


def log_ratio(scores):
    return total(scores.policy, scores) - total(scores.reference, scores)


def real(row, labels, count):
    """Numbers of the candidates that count."""
    return [i for i in range(count) if labels.valid is None or bool(labels.valid[row, i])]


def per_list(loss, scores, labels, *, floor=2):
    """`loss(row, candidates)` of every prompt with at least `floor` real candidates, else 0."""
    count = scores.policy.shape[1]
    rows = []
    for row in range(scores.policy.shape[0]):
        who = real(row, labels, count)
        rows.append(loss(row, who) if len(who) >= floor else 0.0 * scores.policy.nan_to_num().sum())
    return torch.stack(rows)


def grades(labels, row, who):
    """Relevance; by position where the labels say nothing more."""
    if labels.relevance is None:
        return {i: -float(i) for i in who}
    return {i: float(labels.relevance[row, i]) for i in who}


def ordered(labels, row, who):
    grade = grades(labels, row, who)
    return sorted(who, key=lambda i: -grade[i])  # stable: ties keep their order


def better_pairs(labels, row, who):
    grade = grades(labels, row, who)
    return [(i, j) for i in who for j in who if grade[i] > grade[j]]


def log_softmax_of(values, who):
    picked = torch.stack([values[i] for i in who])
    return dict(zip(who, (picked - picked.logsumexp(0)).unbind(), strict=True))


def softmax_of(numbers, who, temperature):
    picked = torch.stack([numbers[i] for i in who]) / temperature
    return dict(zip(who, picked.softmax(0).unbind(), strict=True))


def cross_entropy(beta, temperature):
    def loss(scores, labels, h):
        u = h[beta] * log_ratio(scores) if isinstance(beta, str) else beta(h) * log_ratio(scores)

        def one(row, who):
            q = softmax_of(scores.reward[row], who, h[temperature])
            p = log_softmax_of(u[row], who)
            return -sum(q[i] * p[i] for i in who)

        return per_list(one, scores, labels)

    return loss


infonca = dpo_rw = cross_entropy("beta", "temperature")


def exo_listwise(scores, labels, h):
    u = h["beta"] * log_ratio(scores)

    def one(row, who):
        q = softmax_of(scores.reward[row], who, h["temperature"])
        p = log_softmax_of(u[row], who)
        return sum(p[i].exp() * (p[i] - q[i].log()) for i in who)

    return per_list(one, scores, labels)


def two_sided_kl(scores, h, log_target):
    p = (h["beta"] * log_ratio(scores)).log_softmax(1)
    return (p.exp() * (p - torch.tensor(log_target, dtype=p.dtype))).sum(1)


def exo_pair(scores, labels, h):
    e = h["label_smoothing"]
    return two_sided_kl(scores, h, [math.log(1 - e), math.log(e)])


def exo_pref_official(scores, labels, h):
    return two_sided_kl(scores, h, [0.0, h["log_epsilon"]])


def nca(scores, labels, h):
    u = h["beta"] * log_ratio(scores)

    def one(row, who):
        q = softmax_of(scores.reward[row], who, h["temperature"])
        return sum(-q[i] * logsigmoid(u[row, i]) - logsigmoid(-u[row, i]) / len(who) for i in who)

    return per_list(one, scores, labels, floor=1)


def adpo_listwise(scores, labels, h):
    u = log_ratio(scores) / h["anchor_temperature"]

    def one(row, who):
        reward = torch.stack([scores.reward[row, i] for i in who])
        if h["rewards"] == "standardised":
            reward = (reward - reward.mean()) / (reward.std() + 1e-8)
        q = (reward / h["reward_temperature"]).softmax(0)
        p = log_softmax_of(u[row], who)
        return -sum(weight * p[i] for i, weight in zip(who, q, strict=True))

    return per_list(one, scores, labels)


def s_dpo(scores, labels, h):
    u = h["beta"] * log_ratio(scores)

    def one(row, who):
        best, *others = ordered(labels, row, who)
        inner = sum(torch.exp(u[row, j] - u[row, best]) for j in others)
        return -logsigmoid(-torch.log(inner))

    return per_list(one, scores, labels)


def dmpo_recommendation(scores, labels, h):
    u = h["beta"] * log_ratio(scores)

    def one(row, who):
        best, *others = ordered(labels, row, who)
        return -logsigmoid(u[row, best] - sum(u[row, j] for j in others) / len(others))

    return per_list(one, scores, labels)


def plackett_luce_dpo(scores, labels, h):
    u = h["beta"] * log_ratio(scores)

    def one(row, who):
        order = ordered(labels, row, who)
        stages = [
            torch.stack([u[row, j] for j in order[k:]]).logsumexp(0) - u[row, order[k]]
            for k in range(len(order) - 1)
        ]
        return sum(stages) / (len(stages) if h["aggregate"] == "mean" else 1)

    return per_list(one, scores, labels)


def over_pairs(link, weight=None):
    def loss(scores, labels, h):
        s = h["beta"] * log_ratio(scores)

        def one(row, who):
            pairs = better_pairs(labels, row, who)
            if not pairs:
                return 0.0 * s[row].nan_to_num().sum()
            w = weight(labels, row, who, s[row], h) if weight else dict.fromkeys(pairs, 1.0)
            found = sum(w[i, j] * link(s[row, i] - s[row, j]) for i, j in pairs)
            return found / (len(pairs) if h.get("aggregate") == "mean" else 1)

        return per_list(one, scores, labels)

    return loss


def exchange_cost(by):
    def weights(labels, row, who, s, h):
        grade = grades(labels, row, who)
        by_scores = h.get(by, by) == "scores"
        order = sorted(who, key=lambda i: -s[i].item()) if by_scores else ordered(labels, row, who)
        rank = {i: place for place, i in enumerate(order, start=1)}
        return {
            (i, j): abs((2 ** grade[i] - 1) - (2 ** grade[j] - 1))
            * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
            for i in who
            for j in who
        }

    return weights


lipo_pair_logistic = over_pairs(lambda d: torch.log1p(torch.exp(-d)))
lipo_pair_hinge = over_pairs(lambda d: relu(1 - d))
lipo_lambda = over_pairs(lambda d: torch.log1p(torch.exp(-d)), exchange_cost("scores"))
rankdpo = over_pairs(lambda d: -logsigmoid(d), exchange_cost("ranks"))


def lipo_point_mse(scores, labels, h):
    s = h["beta"] * log_ratio(scores)

    def one(row, who):
        return sum((labels.relevance[row, i] - s[row, i]) ** 2 for i in who)

    return per_list(one, scores, labels, floor=1)


def lipo_point_sigmoid(scores, labels, h):
    s = h["beta"] * log_ratio(scores)

    def one(row, who):
        y = labels.relevance[row]
        return -sum(y[i] * logsigmoid(s[row, i]) + (1 - y[i]) * logsigmoid(-s[row, i]) for i in who)

    return per_list(one, scores, labels, floor=1)


def lipo_softmax(scores, labels, h):
    s = h["beta"] * log_ratio(scores)

    def one(row, who):
        y, p = labels.relevance[row], log_softmax_of(s[row], who)
        return -sum(y[i] * p[i] for i in who) / sum(y[i] for i in who)

    return per_list(one, scores, labels)


def in_context(scores, labels, h, residue):
    u = h["beta"] * log_ratio(scores)

    def one(row, who):
        found = 0.0
        for i in who:
            weight = (2 ** labels.relevance[row, i] - 1) / torch.log2(1 + scores.extras["rank"][row, i])
            rest = sum(torch.exp(u[row, j] - u[row, i]) for j in who if j != i) + residue(h)
            found = found - weight * logsigmoid(-torch.log(rest / (len(who) - 1)))
        return found / len(who)

    return per_list(one, scores, labels)


def irpo_incontext_ranking(scores, labels, h):
    return in_context(scores, labels, h, lambda h: 0.0)


def irpo_incontext_ranking_official(scores, labels, h):
    return in_context(scores, labels, h, lambda h: math.exp(-100 * h["beta"]))


def tree_po_rank(scores, labels, h, u=None):
    u = h["beta"] * log_ratio(scores) if u is None else u

    def one(row, who):
        grade, found = grades(labels, row, who), 0.0
        for i in who:
            for j in who:
                sign = (grade[i] > grade[j]) - (grade[i] < grade[j])
                found = found - logsigmoid(sign * (u[row, i] - u[row, j]))
        return found / (len(who) * (len(who) - 1))

    return per_list(one, scores, labels)


def tree_po(scores, labels, h):
    if scores.policy.ndim == 2:
        return tree_po_rank(scores, labels, h)
    weight = scores.extras["step_weight"] * scores.mask
    u = (weight * (scores.policy - scores.reference)).sum(-1) / weight.sum(-1)
    return tree_po_rank(scores, labels, h, h["beta"] * u)


def curry_dpo(scores, labels, h):
    u = h["beta"] * log_ratio(scores)
    return -logsigmoid(u[:, 0] - u[:, 1])


def pro(scores, labels, h):
    p, whole = mean(scores.policy, scores), total(scores.policy, scores)

    def one(row, who):
        order, found = ordered(labels, row, who), 0.0
        for k, i in enumerate(order[:-1]):
            heat = {j: scores.reward[row, i] - scores.reward[row, j] for j in order[k + 1 :]}
            own = max(heat.values())
            rest = sum(torch.exp(heat[j] * p[row, j]) for j in heat)
            found = found + torch.log(torch.exp(own * p[row, i]) + rest) - own * p[row, i]
        return found - h["sft_weight"] * (len(order) - 1) ** 2 * whole[row, order[0]]

    return per_list(one, scores, labels)


def knowpat_align(scores, labels, h):
    p = mean(scores.policy, scores)

    def one(row, who):
        order, found = ordered(labels, row, who), 0.0
        values = [p[row, i].item() for i in who]
        for k, i in enumerate(order[:-1]):
            later = order[k + 1 :]
            weight = (p[row, i].item() - min(values)) / (max(values) - min(values))
            down = sum(softplus(p[row, j]) for j in later) / len(later)
            found = found + weight * (softplus(-p[row, i]) + down)
        return found / h["divisor"]

    return per_list(one, scores, labels)


def reward_ranking(scores, labels, h, factor=None):
    p, count = total(scores.policy, scores), scores.policy.shape[1]
    lists = [real(row, labels, count) for row in range(len(p))]
    pairs = [better_pairs(labels, row, who) for row, who in enumerate(lists)]
    share = sum(len(who) >= 2 for who in lists) / sum(len(found) for found in pairs)
    zero = 0.0 * p.nan_to_num().sum()
    return torch.stack(
        [
            zero
            + share
            * (factor[row] if factor else 1.0)
            * sum(softplus(p[row, j] - p[row, i]) for i, j in found)
            for row, found in enumerate(pairs)
        ]
    )


def more_ranking(scores, labels, h):
    return reward_ranking(scores, labels, h, [h["tasks"] * w for w in scores.extras["task_weight"]])


PLAIN = {
    name: globals()[name]
    for name in (
        "adpo_listwise",
        "curry_dpo",
        "dmpo_recommendation",
        "dpo_rw",
        "exo_listwise",
        "exo_pair",
        "exo_pref_official",
        "infonca",
        "irpo_incontext_ranking",
        "irpo_incontext_ranking_official",
        "knowpat_align",
        "lipo_lambda",
        "lipo_pair_hinge",
        "lipo_pair_logistic",
        "lipo_point_mse",
        "lipo_point_sigmoid",
        "lipo_softmax",
        "more_ranking",
        "nca",
        "plackett_luce_dpo",
        "pro",
        "rankdpo",
        "reward_ranking",
        "s_dpo",
        "tree_po",
        "tree_po_rank",
    )
}
