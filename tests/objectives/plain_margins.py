"""The rows of margins, pair weights, soft labels and generalised losses, typed from papers and codes."""

import torch
from torch.nn.functional import logsigmoid, relu, softplus


def total(values, scores):
    return values if values.ndim == 2 else (values * scores.mask).sum(-1)


def mean(values, scores):
    return values if values.ndim == 2 else (values * scores.mask).sum(-1) / scores.mask.sum(-1)


def lengths(scores):
    return scores.length if scores.length is not None else scores.mask.sum(-1)


def gap(scores):
    u = total(scores.policy, scores) - total(scores.reference, scores)
    return u[:, 0] - u[:, 1]


def reward_gap(scores):
    return scores.reward[:, 0] - scores.reward[:, 1]


def smoothed(z, e):
    return -(1 - e) * logsigmoid(z) - e * logsigmoid(-z)


def alpha_dpo(scores, labels, h):
    p, r = mean(scores.policy, scores), mean(scores.reference, scores)
    policy_gap = p[:, 0] - p[:, 1]
    between = (policy_gap - r[:, 0] + r[:, 1]).detach()
    # One step from statistics that start at 0.
    running_mean = (1 - h["decay"]) * between.mean()
    running_std = (1 - h["decay"]) * between.std()
    margin = h["gamma"] / h["beta"] + h["alpha"] * (between - running_mean) / running_std
    return smoothed(h["beta"] * (policy_gap - margin), h["label_smoothing"])


def beta_dpo(scores, labels, h):
    g, kept = gap(scores), scores.extras["selected"]
    running = (1 - h["decay"]) * g.detach().mean()
    selected = (kept * g.detach()).sum() / kept.sum()
    temperature = torch.clamp(h["beta"] * (1 + h["scale"] * (selected - running)), min=h["floor"])
    return -logsigmoid(temperature * g) * kept / kept.mean()


def mallows_dpo(scores, labels, h):
    temperature = -h["beta"] * h["dispersion"] * torch.log(scores.extras["reference_entropy"])
    return smoothed(temperature * gap(scores), h["label_smoothing"])


def mallows_ipo(scores, labels, h):
    temperature = -h["beta"] * h["dispersion"] * torch.log(scores.extras["reference_entropy"])
    return (temperature * gap(scores) - 0.5) ** 2


def flex_dpo(scores, labels, h):
    u = total(scores.policy, scores) - total(scores.reference, scores)
    return -logsigmoid(h["beta_chosen"] * u[:, 0] - h["beta_rejected"] * u[:, 1])


def multi_objective(scores, h):
    others = scores.extras["margin_rewards"]
    apart = others[:, 0] - others[:, 1]
    return (h["beta"] * gap(scores) - (1 - h["weight"]) * apart) / h["weight"]


def modpo(scores, labels, h):
    return -logsigmoid(multi_objective(scores, h))


def modpo_hinge(scores, labels, h):
    return relu(1 - multi_objective(scores, h))


def gapo_semantic(scores, labels, h):
    p = mean(scores.policy, scores)
    return -logsigmoid(h["beta"] * (p[:, 0] - p[:, 1]) - h["gamma"] * scores.extras["semantic_gap"])


def arpo(scores, labels, h):
    p, length = total(scores.policy, scores), lengths(scores)
    average = p / length
    factor = torch.clamp(
        h["level"] * torch.exp(h["growth"] * (average[:, 0] - average[:, 1]).abs()) - 1, max=1
    )
    contrast = smoothed(h["beta"] * (p[:, 0] - factor * p[:, 1]), h["label_smoothing"])
    values = scores.policy[:, 0]
    supervised = -p[:, 0] / (length[:, 0] if values.ndim == 1 else scores.mask[:, 0].sum(-1))
    return contrast + h["coefficient"] * supervised


def on_policy(scores):
    apart = mean(scores.policy - scores.extras["log_sum_squares"], scores)
    return torch.exp(apart.sum(1)).detach()


def wpo(scores, labels, h):
    weight = on_policy(scores).clamp(max=1)
    return weight * smoothed(h["beta"] * gap(scores), h["label_smoothing"])


def wpo_unclamped(scores, labels, h):
    return on_policy(scores) * smoothed(h["beta"] * gap(scores), h["label_smoothing"])


def madpo(scores, labels, h):
    r = reward_gap(scores)
    ratio = (h["high"] - 1) / (1 - h["low"])
    grow = torch.exp(h["steepness"] * (r.abs() - h["threshold"]))
    c = h["low"] + (h["high"] - h["low"]) / (1 + ratio * grow)
    weight = torch.where(r > -h["threshold"], torch.sigmoid(c * r) / torch.sigmoid(r), torch.ones_like(r))
    return -weight * logsigmoid(h["beta"] * gap(scores))


def sem_dpo(scores, labels, h):
    weight = torch.exp(-h["alpha"] * scores.extras["semantic_distance"][:, 0])
    return -weight * logsigmoid(h["beta"] * gap(scores))


def gapo_gap_aware(scores, labels, h):
    power = h["base"] ** (scores.reward / h["reward_scale"])
    return -(power[:, 0] - power[:, 1]) * logsigmoid(h["beta"] * gap(scores))


def soft(z, q):
    return -q * logsigmoid(z) - (1 - q) * logsigmoid(-z)


def osp(scores, labels, h):
    return soft(h["beta"] * gap(scores), labels.probability)


def adpo_pair(scores, labels, h):
    return soft(gap(scores) / h["temperature"], torch.sigmoid(h["reward_scale"] * reward_gap(scores)))


def mcts_dpo(scores, labels, h):
    visits = scores.extras["visits"]
    confidence = 1 / (1 + visits[:, 1] / torch.clamp(visits[:, 0], min=1))
    smoothing = torch.clamp(1 - confidence, max=0.5)
    return smoothed(h["beta"] * gap(scores), smoothing)


def nemo_rpo_bwd_kl(scores, labels, h):
    z, q = h["beta"] * gap(scores), torch.sigmoid(h["reward_scale"] * reward_gap(scores))
    return q * (torch.log(q) - logsigmoid(z)) + (1 - q) * (torch.log(1 - q) - logsigmoid(-z))


def nemo_rpo_fwd_kl(scores, labels, h):
    z, d = h["beta"] * gap(scores), h["reward_scale"] * reward_gap(scores)
    p = torch.sigmoid(z)
    return p * (logsigmoid(z) - logsigmoid(d)) + (1 - p) * (logsigmoid(-z) - logsigmoid(-d))


def nemo_rpo_sq(scores, labels, h):
    return (h["beta"] * gap(scores) - h["reward_scale"] * reward_gap(scores)) ** 2


def cal_dpo(scores, labels, h):
    u = total(scores.policy, scores) - total(scores.reference, scores)
    level = (u[:, 0] - 0.5 / h["beta"]) ** 2 + (u[:, 1] + 0.5 / h["beta"]) ** 2
    return softplus(u[:, 1] - u[:, 0]) + h["calibration"] * level


def gpo_exponential(scores, labels, h):
    return torch.exp(-h["beta"] * gap(scores))


def gpo_truncated_quadratic(scores, labels, h):
    return relu(1 - h["beta"] * gap(scores)) ** 2


def gpo_savage(scores, labels, h):
    return 1 / (1 + torch.exp(h["beta"] * gap(scores))) ** 2


PLAIN = {
    "adpo_pair": adpo_pair,
    "alpha_dpo": alpha_dpo,
    "arpo": arpo,
    "beta_dpo": beta_dpo,
    "cal_dpo": cal_dpo,
    "flex_dpo": flex_dpo,
    "gapo_gap_aware": gapo_gap_aware,
    "gapo_semantic": gapo_semantic,
    "gpo_exponential": gpo_exponential,
    "gpo_savage": gpo_savage,
    "gpo_truncated_quadratic": gpo_truncated_quadratic,
    "madpo": madpo,
    "mallows_dpo": mallows_dpo,
    "mallows_ipo": mallows_ipo,
    "mcts_dpo": mcts_dpo,
    "modpo": modpo,
    "modpo_hinge": modpo_hinge,
    "nemo_rpo_bwd_kl": nemo_rpo_bwd_kl,
    "nemo_rpo_fwd_kl": nemo_rpo_fwd_kl,
    "nemo_rpo_sq": nemo_rpo_sq,
    "osp": osp,
    "sem_dpo": sem_dpo,
    "wpo": wpo,
    "wpo_unclamped": wpo_unclamped,
}
