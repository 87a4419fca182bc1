"""The catalogue of methods for denoising errors: margins, temperatures by reward and noise level, anchors.

Scores are -error / 2, with the error a mean over the elements, so that beta has the unit of the official
Diffusion-DPO code. u is the log-ratio, e = -2 p the error. Methods that look at predictions stand in
`predictions`.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import labels, links, modifiers
from mmalign.objectives.base import Computed, Context, require, wide
from mmalign.objectives.extras import Extra, denoising_error
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.readings import reward_of
from mmalign.objectives.reductions import reduce_inner
from mmalign.objectives.structures import ListReverse, Pair
from mmalign.objectives.terms import Term

__all__ = [
    *("crpo", "diffusion_dro", "dmpo", "flow_dpo", "flow_rwr", "smpo", "soft_preference", "tango2_dpo"),
]

# ------------------------------------------------------------------------------------------ links and margins

_LARGEST_EXPONENT = 20.0  # of a weight: a reward of 20 deviations is a mistake
_CERTAIN = 1e-6  # the released code keeps the label this far from certainty


@objective(
    "dmpo",
    fixes="overfitting",
    title="Divergence Minimization Preference Optimization for Diffusion Model Alignment",
    paper="2507.07510",
    year=2025,
    sample={"beta": 0.5, "alpha": 0.01},
    parity=("dmpo",),
    official_code="AIDC-AI/Diffusion-SDPO 84fb241",
    status="parity",
    published={"beta": (2000.0, "code", "6000 for SDXL"), "alpha": (0.01, "code")},
    departures=(
        "the loss of exo_pair on errors; the gradient vanishes on pairs that are very wrong",
        "a label probability becomes the soft target (not the average over the two orders)",
    ),
)
def dmpo(*, beta: float, alpha: float) -> Objective:
    """Reverse KL of the policy's preference from the smoothed label.

    z = beta * (u of chosen - u of rejected), p = sigmoid(z), q = 1 - alpha
    loss = p log(p / q) + (1 - p) log((1 - p) / (1 - q))

    Args:
        beta: > 0, per unit of score; diffusion with mean errors 2000 (SD1.5) to 6000 (SDXL).
        alpha: in [0, 0.5]; 0.01 released. It is kept above 1e-6: its logarithm is in the loss.

    Raises:
        HyperparameterError: out of range.

    Source: AIDC-AI/Diffusion-SDPO, train.py, method dmpo; arXiv 2507.07510.
    """
    positive_beta("dmpo", beta)
    require("dmpo alpha", alpha, 0 <= alpha <= 0.5, "a number in [0, 0.5]")
    target = labels.best_first(max(alpha, _CERTAIN))
    return Objective("dmpo", (Term(ListReverse(), beta=beta, labels=target, name="dmpo"),))


@objective(
    "diffusion_dro",
    fixes="exploration",
    title="Ranking-based Preference Optimization for Diffusion Models from Implicit User Feedback",
    paper="2510.18353",
    year=2025,
    sample={"margin": 0.001},
    parity=("dro",),
    official_code="basiclab/DiffusionDRO b0693ec",
    status="parity",
    published={"margin": (0.001, "code")},
    departures=(
        "expert and policy rows are one pair: the two share prompt and timestep, not the noise",
        "the authors say DRO, which is Direct Reward Optimisation (arXiv 2405.19107) elsewhere, hence the "
        "qualified name",
    ),
    allows={"logit": "z contains the margin"},
)
def diffusion_dro(*, margin: float) -> Objective:
    """Max-margin ranking of an expert's image before the policy's own state.

    loss = max(0, (e - e_ref of the expert) - (e - e_ref of the policy's state) + margin)

    candidates: 0 = a real image with fresh noise, 1 = a state of a trajectory of a policy snapshot, whose
    target is that snapshot's own prediction.

    Args:
        margin: > 0, in mean squared error; 0.001 released.

    Raises:
        HyperparameterError: margin <= 0.

    Source: basiclab/DiffusionDRO, train.py; arXiv 2510.18353.
    """
    require("diffusion_dro margin", margin, 0 < margin < float("inf"), "a number > 0, in mean squared error")
    # Half errors: 2 (u of expert - u of policy) = -(difference of whole errors); hinge is max(0, 1 - z).
    term = Term(Pair(), beta=2.0, margin=margin - 1.0, link=links.hinge())
    return Objective("diffusion_dro", (term,))


# ----------------------------------------------------------------------------------------------- temperatures


def soft_preference(
    first: Float[Tensor, "*batch"], second: Float[Tensor, "*batch"], *, low: float, high: float
) -> Float[Tensor, "*batch"]:
    """Probability that the first is better: softmax over the two rewards after scaling [low, high] to [0, 1].

    Args:
        first: rewards of the first candidates.
        second: of the second ones.
        low: smallest reward of the data set.
        high: largest one, > low.

    Raises:
        HyperparameterError: low is not below high.

    Source: JaydenLyh/SmPO, train.py.
    """
    require("soft_preference high", high, high > low > -float("inf"), f"a number above low = {low:g}")
    return torch.sigmoid((first - second) / (high - low))


@objective(
    "smpo",
    fixes="temperature",
    title="Smoothed Preference Optimization via ReNoise Inversion for Aligning Diffusion Models with Varied "
    "Human Preferences",
    paper="2506.02698",
    year=2025,
    sample={"beta": 0.5, "low": 0.0, "high": 1.0},
    parity=("smpo",),
    official_code="JaydenLyh/SmPO 8922d54",
    status="parity",
    published={
        "beta": (2000.0, "code", "5000 for SDXL"),
        "gamma": (10.0, "code"),
        "low": (0.11543526500463486, "code", "PickScore as a bare cosine"),
        "high": (0.28201571106910706, "code", "PickScore as a bare cosine"),
    },
    departures=(
        "every pair has its own factor (released: the first pair's factor for the whole micro-batch)",
        "the reward decides which candidate is better, whatever the label says; pairs need no re-ordering",
        "the likelihood of its images, by inversion, is chosen outside the objective",
    ),
)
def smpo(*, beta: float, low: float, high: float, gamma: float = 10.0) -> Objective:
    """DPO whose temperature follows how clearly a reward model prefers one candidate.

    z = beta * gamma * (2 p - 1) * (u of 0 - u of 1), p = sigmoid((reward_0 - reward_1) / (high - low))
    loss = -log sigmoid(z)

    Args:
        beta: > 0, per unit of score; 2000 (SD1.5) to 5000 (SDXL).
        low: smallest reward of the data set, see `soft_preference`.
        high: largest one.
        gamma: > 0; 10 released: the factor is at most 4.6.

    Raises:
        HyperparameterError: out of range.

    Source: JaydenLyh/SmPO, train.py; arXiv 2506.02698.
    """
    positive_beta("smpo", beta)
    require("smpo gamma", gamma, 0 < gamma < float("inf"), "a number > 0")
    require("smpo high", high, high > low > -float("inf"), "a number above low")
    gap = modifiers.reward_gap(1.0)

    def temperature(context: Context) -> Tensor:
        difference = gap.compute(context)
        probability = soft_preference(difference, torch.zeros_like(difference), low=low, high=high)
        return beta * gamma * (2.0 * probability - 1.0)

    text = f"{beta * gamma:g} * (2 * sigmoid((reward[0] - reward[1]) / {high - low:g}) - 1)"
    return Objective("smpo", (Term(Pair(), beta=Computed(temperature, text, gap.needs)),))


Decay = Literal["constant", "one_minus_t_squared"]


@objective(
    "flow_dpo",
    fixes="baseline",
    title="Improving Video Generation with Human Feedback",
    paper="2501.13918",
    year=2025,
    sample={"beta": 0.5, "schedule": "one_minus_t_squared"},
    parity=("flow_dpo", "flow_dpo_image"),
    official_code="yifan123/flow_grpo ac4c86e, scripts/train_sd3_dpo.py",
    status="parity",
    published={"beta": (100.0, "code", "SD3.5-M"), "schedule": ("constant", "paper")},
    departures=("the cases pin the constant schedule; the other follows from the derivation",),
)
def flow_dpo(*, beta: float, schedule: Decay) -> Objective:
    """DPO on velocity errors, with a temperature that is constant or follows the noise level.

    z = b * (u of chosen - u of rejected), b = beta (constant) or beta * (1 - t)^2
    t = `extras["noise_level"]` [prompt] in [0, 1], 1 = pure noise

    Args:
        beta: > 0, per unit of score; 100 released for SD3.5-M.
        schedule: "constant" (what the authors train with: the decay led to reward hacking and weak text
            alignment) or "one_minus_t_squared" (what the derivation from noise errors gives).

    Raises:
        HyperparameterError: out of range, or an unknown schedule.

    Source: arXiv 2501.13918; yifan123/flow_grpo.
    """
    positive_beta("flow_dpo", beta)
    if schedule not in ("constant", "one_minus_t_squared"):
        message = explain("flow_dpo schedule", got=schedule, expected="'constant' or 'one_minus_t_squared'")
        raise HyperparameterError(message)
    if schedule == "constant":
        return Objective("flow_dpo", (Term(Pair(), beta=beta),))

    def temperature(context: Context) -> Tensor:
        level = wide(context.scores.extra("noise_level", "flow_dpo"))
        return beta * (1.0 - level).square()

    decayed = Computed(temperature, f"{beta:g} * (1 - noise_level)^2", frozenset({"noise_level"}))
    return Objective("flow_dpo", (Term(Pair(), beta=decayed),))


@objective(
    "flow_rwr",
    fixes="strength",
    title="Improving Video Generation with Human Feedback",
    paper="2501.13918",
    year=2025,
    sample={"temperature": 1.0},
    data="lists",
    status="formula",
    on_errors="supervised",
    departures=(
        "rewards are normalised by whoever passes them; temperature 1 is the paper's weight",
        "weights are bounded at e^20 and not divided by their sum",
    ),
    allows={"gradient signs": "it compares nothing: every candidate's error falls, that of good ones faster"},
    published={"temperature": (1.0, "paper", "the weight is e^reward")},
)
def flow_rwr(*, temperature: float) -> Objective:
    """Supervised fine-tuning on every candidate, weighted by its exponentiated reward.

    loss = mean over candidates of e^(reward / temperature) * e, e the mean squared error of the candidate

    `Scores.reward` holds normalised rewards (mean 0 and deviation 1 over the data set). Labels only say how
    many candidates there are. There is no comparison: candidates need not share timestep or noise.

    Args:
        temperature: > 0, in units of reward; 1 in the paper.

    Raises:
        HyperparameterError: temperature <= 0.

    Source: arXiv 2501.13918, Flow-RWR.
    """
    require("flow_rwr temperature", temperature, 0 < temperature < float("inf"), "a number > 0")

    def weighted(context: Context) -> Tensor:
        real, mask, policy = context.real(), context.scores.mask, wide(context.scores.policy)
        error = -2.0 * (policy if policy.ndim == 2 else reduce_inner(policy, mask, "mean"))
        reward = reward_of(context, "flow_rwr") / temperature
        weight = torch.where(real, reward, 0.0).clamp(max=_LARGEST_EXPONENT).exp().detach()
        kept = torch.where(real, weight * error, 0.0)
        return kept.sum(1) / real.sum(1).clamp(min=1)

    scaled = "reward" if temperature == 1.0 else f"reward / {temperature:g}"
    text = f"mean over candidates of exp({scaled}) * (-2 * policy)"
    return Objective("flow_rwr", (), (Extra("weighted_error", weighted, text, needs=frozenset({"reward"})),))


@objective(
    "crpo",
    fixes="displacement",
    title="TangoFlux: Super Fast and Faithful Text to Audio Generation with Flow Matching and Clap-Ranked "
    "Preference Optimization",
    paper="2412.21037",
    year=2024,
    sample={"beta": 0.5},
    parity=("tangoflux_crpo",),
    official_code="declare-lab/TangoFlux 164420f",
    status="parity",
    published={"beta": (2000.0, "code"), "coefficient": (1.0, "code")},
    departures=(
        "the whole reference is frozen (released: its pooled text and duration come from the trained policy)",
        "CRPO here is the audio method of TangoFlux; other papers use the letters for other methods",
    ),
)
def crpo(*, beta: float, coefficient: float = 1.0) -> Objective:
    """DPO plus the chosen sample's own denoising error, so that it cannot grow with the margin.

    z = beta * (u of chosen - u of rejected)
    loss = -log sigmoid(z) + coefficient * e of chosen

    Args:
        beta: > 0, per unit of score; 2000 released for latents of audio.
        coefficient: >= 0, of the mean squared error; 1 released.

    Raises:
        HyperparameterError: out of range.

    Source: declare-lab/TangoFlux, tangoflux/model.py; arXiv 2412.21037. Reg-DPO (arXiv 2511.01450) has the
    same form, with real videos as the chosen ones.
    """
    positive_beta("crpo", beta)
    require("crpo coefficient", coefficient, 0 <= coefficient < float("inf"), "a number >= 0")
    return Objective("crpo", (Term(Pair(), beta=beta),), (denoising_error(coefficient),))


@objective(
    "tango2_dpo",
    fixes="displacement",
    title="Tango 2: Aligning Diffusion-based Text-to-Audio Generations through Direct Preference "
    "Optimization",
    paper="2404.09956",
    year=2024,
    sample={"beta": 0.5, "sft_weight": 0.25},
    parity=("tango2_dpo",),
    official_code="declare-lab/tango 34ecd38",
    status="parity",
    published={"beta": (2000.0, "paper", "the README agrees; 5000 is the script's default")},
    departures=(
        "released: the epoch of supervised training ends on the first process alone, so that on two GPUs the "
        "others keep imitating winners; sft_weight=1 with the learning rate halved says that openly",
        "a dropped prompt is dropped for both sides of a pair (released: for winners alone)",
    ),
)
def tango2_dpo(*, beta: float, sft_weight: float = 0.0) -> Objective:
    """DPO on denoising errors, and, where asked for, imitation of the chosen sample beside it.

    z = beta * (u of chosen - u of rejected)
    loss = -log sigmoid(z) + sft_weight * e of chosen

    Args:
        beta: > 0, per unit of score; 2000 released.
        sft_weight: >= 0, of the chosen sample's mean squared error; 0 is the paper's method.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2404.09956; declare-lab/tango, tango2/models.py, `DPOAudioDiffusion`, and tango2-train.py.
    """
    positive_beta("tango2_dpo", beta)
    require("tango2_dpo sft_weight", sft_weight, 0 <= sft_weight < float("inf"), "a number >= 0")
    imitation = (denoising_error(sft_weight),) if sft_weight else ()
    return Objective("tango2_dpo", (Term(Pair(), beta=beta),), imitation)
