"""The catalogue of methods that learn from the policy's own samples: a known comparison and a sampling rule.

The loss is a pair's; what makes the method is where its candidates come from, which `mmalign methods NAME`
prints under data. Nothing here samples.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.methods.row import Taxonomy
from mmalign.objectives import links
from mmalign.objectives.base import require
from mmalign.objectives.composites import summed
from mmalign.objectives.extras import linear
from mmalign.objectives.links import Link
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import dpo, hinge, ipo, positive_beta
from mmalign.objectives.reductions import ReductionName
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Term

__all__ = ["ipo_md", "online_dpo", "selm", "spin", "xpo"]

Base = Literal["dpo", "ipo", "hinge"]
SpinLink = Literal["logistic", "hinge", "exponential", "linear"]


def _linear() -> Link:
    """1 - z: no saturation on either side, unbounded below."""

    def slope(z: Tensor) -> Tensor:
        return torch.full_like(z, -1.0)

    return Link("linear", lambda z: 1.0 - z, slope, "(1 - {z})")


_SPIN_LINKS: Mapping[str, Callable[[], Link]] = MappingProxyType(
    {"logistic": links.logistic, "hinge": links.hinge, "exponential": links.exponential, "linear": _linear}
)


def _base(where: str, name: str, beta: float, known: tuple[str, ...]) -> Objective:
    """The pairwise loss called `name`; IPO sums over tokens and takes beta as its tau.

    Raises:
        HyperparameterError: unknown name.
    """
    makers: Mapping[str, Callable[[], Objective]] = {
        "dpo": lambda: dpo(beta=beta),
        "ipo": lambda: ipo(tau=beta, reduction="sum"),
        "hinge": lambda: hinge(beta=beta),
    }
    if name not in known:
        message = explain(f"{where} base", got=name, expected="one of " + ", ".join(known))
        raise HyperparameterError(message)
    return makers[name]()


_SUMMED_IPO = (
    "base ipo: target 1 / (2 beta) on summed log-ratios, as in TRL (its offline trainer takes means)"
)


@objective(
    "selm",
    fixes="exploration",
    title="Self-Exploring Language Models: Active Preference Elicitation for Online Alignment",
    paper="2405.19332",
    year=2024,
    sample={"beta": 0.1, "alpha": 0.01},
    parity=("text_selm",),
    departures=("the sign is that of the released code: minimising it lowers the third answer's log-ratio",),
    official_code="shenao-zhang/SELM 0ba546a",
    status="parity",
    published={"beta": (0.01, "code"), "alpha": (0.001, "code", "1e-4 to 1e-3")},
    rollout="answers of the current policy, ranked together with the pair of the data",
)
def selm(*, beta: float, alpha: float) -> Objective:
    """DPO with optimism: the policy is moved off a third answer, towards what it has not tried.

    loss = -log sigmoid(beta * (u of chosen - u of rejected)) + alpha * beta * u of a third answer

    u of the third answer is `extras["response_log_ratio"]`, [prompt], with gradient.

    Args:
        beta: > 0, per unit of score (0.01 released).
        alpha: >= 0, optimism (1e-4 to 1e-3 released).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2405.19332; shenao-zhang/SELM, `optimistic_dpo_loss`. Parity: text_selm.
    """
    require("selm alpha", alpha, 0 <= alpha < float("inf"), "a finite number >= 0")
    optimism = Objective("optimism", extras=(linear("response_log_ratio", alpha * beta),))
    return summed("selm", dpo(beta=beta), optimism)


@objective(
    "xpo",
    fixes="exploration",
    title="Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for Sample-Efficient "
    "RLHF",
    paper="2405.21046",
    year=2024,
    sample={"beta": 0.1, "alpha": 0.01, "base": "dpo"},
    parity=("text_xpo",),
    departures=(_SUMMED_IPO,),
    official_code="huggingface/trl f2cd577, trl/experimental/xpo",
    status="parity",
    published={"beta": (0.1, "code"), "alpha": (1e-5, "code"), "base": ("dpo", "code")},
    rollout="one answer of the current policy and one of the reference per prompt, judged online",
)
def xpo(*, beta: float, alpha: float, base: Literal["dpo", "ipo"]) -> Objective:
    """Online DPO with an exploration bonus: answers the reference gives are made less likely.

    loss = base(u of chosen - u of rejected) + alpha * log-likelihood of the reference's own answer

    The answer the reference drew is one of the pair, chosen or not; its summed log-probability under the
    policy is `extras["reference_sample_score"]`, [prompt], with gradient.

    Args:
        beta: > 0, per unit of score; the tau of base "ipo".
        alpha: >= 0, exploration, per nat (1e-5 released).
        base: "dpo" or "ipo".

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2405.21046; huggingface/trl, `XPOTrainer._compute_losses`. Parity: text_xpo.
    """
    require("xpo alpha", alpha, 0 <= alpha < float("inf"), "a finite number >= 0")
    exploration = Objective("exploration", extras=(linear("reference_sample_score", alpha),))
    return summed("xpo", _base("xpo", base, beta, ("dpo", "ipo")), exploration)


@objective(
    "online_dpo",
    fixes="exploration",
    title="Direct Language Model Alignment from Online AI Feedback",
    paper="2402.04792",
    year=2024,
    sample={"beta": 0.1, "base": "dpo"},
    departures=(_SUMMED_IPO,),
    official_code="trl 1.16.0, trl/experimental/online_dpo",
    published={"beta": (0.1, "code"), "base": ("dpo", "code")},
    rollout="two answers of the current policy per prompt, drawn in every step and judged online",
    symbolic="W & RL vs L & RW",
)
def online_dpo(*, beta: float, base: Base) -> Objective:
    """A pairwise loss on two fresh answers of the policy: the data move with it.

    loss = base(u of chosen - u of rejected), the pair drawn from the policy that is being trained

    Args:
        beta: > 0, per unit of score; the tau of base "ipo".
        base: "dpo", "ipo" or "hinge" (SLiC): the three losses of the paper.

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2402.04792; trl 1.16.0, `OnlineDPOTrainer` (dpo, ipo).
    """
    return summed("online_dpo", _base("online_dpo", base, beta, ("dpo", "ipo", "hinge")))


@objective(
    "ipo_md",
    fixes="exploration",
    title="Human Alignment of Large Language Models through Online Preference Optimisation",
    paper="2403.08635",
    year=2024,
    sample={"tau": 0.1, "reduction": "mean"},
    departures=(
        "reduction is explicit: neither IPO paper speaks of length; see ipo for what libraries do",
        "TRL's mixture coefficient (0.5) weighs the reference's logits: 0 is online IPO, 1 samples from "
        "the reference",
    ),
    rollout="two answers per prompt from the geometric mixture policy^(1 - c) * reference^c, judged online",
    symbolic="W & RL vs L & RW",
)
def ipo_md(*, tau: float, reduction: ReductionName) -> Objective:
    """IPO on pairs drawn between the policy and its reference: IPO-MD.

    loss = (u of chosen - u of rejected - 1 / (2 tau))^2

    Answers come from the normalised geometric mixture of policy and reference with weight c on the reference,
    in every step; c = 0 is online IPO.

    Args:
        tau: > 0; the target margin is 1 / (2 tau) in units of the reduced score.
        reduction: "mean" or "sum" over the inner axis: the same tau means other targets.

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2403.08635.
    """
    return summed("ipo_md", ipo(tau=tau, reduction=reduction))


@objective(
    "spin",
    fixes="exploration",
    title="Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
    paper="2401.01335",
    year=2024,
    sample={"beta": 0.1, "link": "logistic"},
    departures=(
        "link linear is the correlation loss 1 - t of the paper; the official code has two of the four links",
        "the reference is the iterate that wrote the rejected answers: set it anew in every round",
    ),
    official_code="uclaml/SPIN a12ba80",
    published={"beta": (0.1, "code"), "link": ("logistic", "code")},
    rollout="the supervised data (chosen) and the previous iterate (rejected)",
    symbolic="W & RL vs L & RW",
    taxonomy=Taxonomy(framework="self-play", constraint="moving reference"),
)
def spin(*, beta: float, link: SpinLink) -> Objective:
    """The policy against its previous iterate: human answers are to win over its own.

    loss = link(beta * (u of chosen - u of rejected)), the reference being the previous iterate

    Needs demonstrations only: it stops where the policy's answers cannot be told from them.

    Args:
        beta: > 0, per unit of score (lambda of the paper; 0.1 released).
        link: "logistic" -log sigmoid(t), "hinge" max(0, 1 - t), "exponential" exp(-t), "linear" 1 - t.

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2401.01335, section 4; uclaml/SPIN, loss types sigmoid and hinge.
    """
    positive_beta("spin", beta)
    if link not in _SPIN_LINKS:
        raise HyperparameterError(explain("spin link", got=link, expected="one of " + ", ".join(_SPIN_LINKS)))
    return Objective("spin", (Term(Pair(), beta=beta, link=_SPIN_LINKS[link]()),))
