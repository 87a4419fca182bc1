"""The rows of `composites.py` and `online.py`, typed from their papers."""

from torch.nn.functional import logsigmoid


def total(values, scores):
    """Sum over the positions that count."""
    return values if values.ndim == 2 else (values * scores.mask).sum(-1)


def log_ratio(scores):
    return total(scores.policy, scores) - total(scores.reference, scores)


def gap(scores):
    u = log_ratio(scores)
    return u[:, 0] - u[:, 1]


def dpo(scores, h):
    return -logsigmoid(h["beta"] * gap(scores))


def nll_per_token(scores):
    """Of the chosen answer."""
    chosen = scores.policy[:, 0]
    if chosen.ndim == 1:
        return -chosen
    mask = scores.mask[:, 0]
    return -(chosen * mask).sum(-1) / mask.sum(-1)


def bco(scores, h):
    x = h["beta"] * log_ratio(scores)
    shift = 0.0 if h["delta_rule"] == "none" else x.detach().mean()
    return -logsigmoid(x[:, 0] - shift) - logsigmoid(-(x[:, 1] - shift))


def rpo_sft(scores, labels, h):
    assert h["normaliser"] == "sequence_mean"
    return dpo(scores, h) + h["coefficient"] * nll_per_token(scores)


def irpo_reasoning(scores, labels, h):
    return dpo(scores, h) + h["alpha"] * nll_per_token(scores)


def mpo(scores, labels, h):
    assert h["normaliser"] == "sequence_mean"
    compared = h["preference"] * dpo(scores, h) + h["quality"] * bco(scores, h)
    return compared + h["generation"] * nll_per_token(scores)


def bco_pair_delta_mix(scores, labels, h):
    assert h["coefficient"] == 0
    return (dpo(scores, h) + h["weight"] * bco(scores, h)) / (1 + h["weight"])


def rationale_dpo(scores, labels, h):
    return dpo(scores, h) - logsigmoid(h["gamma"] * scores.extras["rationale_score"])


def three_properties(scores, labels, h):
    u = log_ratio(scores)
    z = h["beta_chosen"] * u[:, 0] - h["beta_rejected"] * u[:, 1]
    return -logsigmoid(z) + h["coefficient"] * nll_per_token(scores)


def mapl(scores, labels, h):
    intra = -logsigmoid(h["beta"] * scores.extras["intra_log_ratio_gap"])
    inter = -logsigmoid(h["beta"] * scores.extras["inter_log_ratio_gap"])
    return dpo(scores, h) + h["intra"] * intra + h["inter"] * inter


def selm(scores, labels, h):
    return dpo(scores, h) + h["alpha"] * h["beta"] * scores.extras["response_log_ratio"]


def xpo(scores, labels, h):
    assert h["base"] == "dpo"
    return dpo(scores, h) + h["alpha"] * scores.extras["reference_sample_score"]


def online_dpo(scores, labels, h):
    assert h["base"] == "dpo"
    return dpo(scores, h)


def ipo_md(scores, labels, h):
    assert h["reduction"] == "mean"
    margin = gap(scores)
    if scores.policy.ndim == 3:
        count = scores.mask.sum(-1)
        u = log_ratio(scores) / count
        margin = u[:, 0] - u[:, 1]
    return (margin - 1 / (2 * h["tau"])) ** 2


def spin(scores, labels, h):
    assert h["link"] == "logistic"
    return dpo(scores, h)


PLAIN = {
    "rpo_sft": rpo_sft,
    "irpo_reasoning": irpo_reasoning,
    "mpo": mpo,
    "bco_pair_delta_mix": bco_pair_delta_mix,
    "rationale_dpo": rationale_dpo,
    "three_properties": three_properties,
    "mapl": mapl,
    "selm": selm,
    "xpo": xpo,
    "online_dpo": online_dpo,
    "ipo_md": ipo_md,
    "spin": spin,
}
