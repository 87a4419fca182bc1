"""The catalogue of methods without a reference: SimPO, MaPO, ORPO, supervised fine-tuning.

Without a reference the scores of two different images differ for reasons that are no preference; bounded
shapes (MaPO) or a supervised term on the chosen candidate (ORPO) hold such methods in place.
"""

from mmalign.objectives import extras, labels, links, score_shapes
from mmalign.objectives.base import require
from mmalign.objectives.extras import Normaliser
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = ["diffusion_orpo", "diffusion_orpo_official", "mapo", "orpo", "sft", "simpo", "simpo_hinge"]

_TOKEN_MEAN = Score(Reduction("mean"), anchor=0.0)


@objective(
    "simpo",
    fixes="length",
    on_errors="reference_free",
    title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    paper="2405.14734",
    year=2024,
    equation="6",
    sample={"beta": 2.0, "gamma": 0.5},
    parity=("text_simpo",),
    official_code="princeton-nlp/SimPO 1b3e8f3",
    status="parity",
    published={
        "beta": (2.0, "code", "2.0 to 2.5 for Mistral and Llama 3, 10 for v0.2 and Gemma 2"),
        "gamma": (0.5, "code", "gamma / beta 0.1 to 0.8 by model"),
        "label_smoothing": (0.0, "code"),
    },
    symbolic="W vs L",
    departures=(
        "gamma is in units of z, as in TRL and LLaMA-Factory (0.5) and ms-swift (1); the authors "
        "configure gamma / beta",
        "no supervised term: TRL and ms-swift add one with weight 1 unless cpo_alpha is set to 0 (that "
        "is cpo_simpo)",
        "align-anything divides by the length of prompt plus answer; here only the answer's tokens count",
    ),
)
def simpo(*, beta: float, gamma: float, label_smoothing: float = 0.0) -> Objective:
    """Logistic loss on the scaled difference of mean scores, with a margin.

    z = beta * (p of chosen - p of rejected) - gamma, p the mean over the inner axis
    loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z), e = label_smoothing

    Scores without an inner axis must already be means.

    Args:
        beta: > 0, per unit of mean score. Text 2 to 10.
        gamma: >= 0, in units of z. Official configs give gamma / beta, 0.1 to 0.8.
        label_smoothing: in [0, 0.5]; flips the whole of z with its margin, as the official code does.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2405.14734, equation 6; princeton-nlp/SimPO `simpo_loss`.
    """
    positive_beta("simpo", beta)
    require("simpo gamma", gamma, gamma >= 0, "a number >= 0")
    return Objective(
        "simpo",
        (Term(Pair(), _TOKEN_MEAN, beta=beta, margin=gamma, labels=labels.smoothed(label_smoothing)),),
    )


@objective(
    "simpo_hinge",
    fixes="length",
    on_errors="reference_free",
    title="SimPO: Simple Preference Optimization with a Reference-Free Reward",
    paper="2405.14734",
    year=2024,
    sample={"beta": 2.0, "gamma": 0.5},
    parity=("text_simpo_hinge",),
    official_code="princeton-nlp/SimPO 1b3e8f3",
    status="parity",
    published={"beta": (2.0, "code"), "gamma": (0.5, "code")},
    symbolic="W vs L",
    departures=("gamma is in units of z; the authors configure gamma / beta",),
)
def simpo_hinge(*, beta: float, gamma: float) -> Objective:
    """SimPO with a hinge: loss = max(0, 1 - z), z = beta * (p of chosen - p of rejected) - gamma.

    Scores without an inner axis must already be means.

    Args:
        beta: > 0, per unit of mean score.
        gamma: >= 0, in units of z.

    Raises:
        HyperparameterError: out of range.

    Source: princeton-nlp/SimPO `simpo_loss`, loss type "hinge".
    """
    positive_beta("simpo_hinge", beta)
    require("simpo_hinge gamma", gamma, gamma >= 0, "a number >= 0")
    return Objective("simpo_hinge", (Term(Pair(), _TOKEN_MEAN, beta=beta, margin=gamma, link=links.hinge()),))


@objective(
    "mapo",
    fixes="reference_cost",
    on_errors="reference_free",
    title="Margin-aware Preference Optimization for Aligning Diffusion Models without Reference",
    paper="2406.06424",
    year=2024,
    sample={"beta": 0.1},
    parity=("mapo",),
    departures=(
        "the shape is computed by expm1 and is 1 at error 0 (official: 0/0 there)",
        "not the mask-based MaPO of text, which is the row mapo_masked",
        "made for errors: the supervised term holds the chosen error, the comparison still sees how "
        "difficult each image is",
    ),
    official_code="mapo-t2i/mapo 374b3d3",
    status="parity",
    published={"beta": (0.1, "code"), "kappa": (0.5, "code"), "scale": (1000.0, "code")},
)
def mapo(*, beta: float, kappa: float = 0.5, scale: float = 1000.0) -> Objective:
    """Denoising error of the chosen image plus a bounded margin term (not the mask-based MaPO of text).

    h(error) = kappa * error / (exp(kappa * error) - 1), error = -2 * score
    loss = error of chosen - beta * log sigmoid(scale * (h of chosen - h of rejected))

    Args:
        beta: >= 0, weight of the margin term (official 0.1).
        kappa: > 0, per unit of error (official 0.5, there `snr_value`).
        scale: > 0 (official 1000, the number of training timesteps).

    Raises:
        HyperparameterError: out of range.

    Source: mapo-t2i/mapo `utils.py` compute_loss. Parity: mapo.
    """
    require("mapo beta", beta, beta >= 0, "a number >= 0 (official 0.1)")
    require("mapo scale", scale, scale > 0, "a number > 0 (official 1000)")
    score = Score(Reduction("mean"), anchor=0.0, shape=score_shapes.mapo(kappa))
    margin = Term(Pair(), score, beta=scale, coefficient=beta, name="margin")
    return Objective("mapo", (margin,), (extras.denoising_error(),))


@objective(
    "orpo",
    fixes="reference_cost",
    on_errors="reference_free",
    title="ORPO: Monolithic Preference Optimization without Reference Model",
    paper="2403.07691",
    year=2024,
    equation="6",
    sample={"beta": 0.1},
    parity=("text_orpo", "text_orpo_llamafactory"),
    official_code="xfactlab/orpo; hiyouga/LLaMA-Factory ff6d4d1",
    status="parity",
    published={"beta": (0.1, "code", "TRL; 0.05 to 0.1 in official runs, 1.0 as argparse default")},
    symbolic="W & ~L vs L & ~W",
    departures=(
        "log(1 - e^p) by two safe branches (TRL: NaN gradient for p above -1e-8; official: log of a "
        "sigmoid, cast to bfloat16)",
        "normaliser of the supervised term is explicit: prompt and answer in TRL and the official "
        "code, the answer's mean per pair in LLaMA-Factory",
        "with whole_mean the supervised term is given for the chosen answer: it does not turn with an "
        "uncertain label",
    ),
)
def orpo(*, beta: float, normaliser: Normaliser = "sequence_mean") -> Objective:
    """Supervised loss on the chosen answer plus the log-odds ratio of the two (scores: log-probabilities).

    odds(p) = p - log(1 - exp(p)), p the token mean of log-probabilities
    loss = nll of chosen - beta * log sigmoid(odds of chosen - odds of rejected)

    Meaningless on denoising errors, which are no log-probabilities: use `diffusion_orpo` there.

    Scores without an inner axis must already be means.

    Args:
        beta: >= 0, weight of the ratio term (0.05 to 0.1 in official runs).
        normaliser: of the supervised term: "sequence_mean" (LLaMA-Factory), or "whole_mean" over prompt and
            answer (official code and TRL; needs `extras["whole_score"]` and `extras["whole_length"]`).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2403.07691, equation 6.
    """
    require("orpo beta", beta, beta >= 0, "a number >= 0 (official 0.1)")
    score = Score(Reduction("mean"), anchor=0.0, shape=score_shapes.odds())
    ratio = Term(Pair(), score, coefficient=beta, name="odds_ratio")
    return Objective("orpo", (ratio,), (extras.nll(normaliser),))


@objective(
    "diffusion_orpo",
    fixes="reference_cost",
    on_errors="reference_free",
    title="ORPO: Monolithic Preference Optimization without Reference Model",
    paper="2403.07691",
    year=2024,
    sample={"beta": 0.1, "scale": 1000.0},
    parity=("diffusion_orpo",),
    departures=(
        "the sign of the ratio term is corrected; the official form is diffusion_orpo_official",
        "the ratio term has a scale: error differences of 1e-3 leave the unscaled one at log 2",
        "made for errors: the supervised term holds the chosen error, the comparison still sees how "
        "difficult each image is",
    ),
    official_code="huggingface/diffusers 58eb52c",
    status="parity",
    published={"beta": (0.1, "code")},
)
def diffusion_orpo(*, beta: float, scale: float = 1000.0) -> Objective:
    """Denoising error of the chosen image plus a logistic term on the errors' difference, sign corrected.

    loss = error of chosen - beta * log sigmoid(scale * (error of rejected - error of chosen)), error = -2 *
    score

    Args:
        beta: >= 0, weight of the ratio term (official 0.1).
        scale: > 0, per unit of error; 1 is the official code's, 1000 MaPO's.

    Raises:
        HyperparameterError: out of range.

    Source: huggingface/diffusers research project diffusion_orpo, sign corrected. Parity: diffusion_orpo.
    """
    require("diffusion_orpo beta", beta, beta >= 0, "a number >= 0 (official 0.1)")
    require("diffusion_orpo scale", scale, scale > 0, "a number > 0 (1 official, 1000 as MaPO)")
    ratio = Term(
        Pair(), Score(Reduction("mean"), anchor=0.0), beta=2.0 * scale, coefficient=beta, name="error_ratio"
    )
    return Objective("diffusion_orpo", (ratio,), (extras.denoising_error(),))


@objective(
    "diffusion_orpo_official",
    fixes="reference_cost",
    on_errors="reference_free",
    title="ORPO: Monolithic Preference Optimization without Reference Model",
    paper="2403.07691",
    year=2024,
    sample={"beta": 0.1},
    parity=("diffusion_orpo",),
    official_code="huggingface/diffusers 58eb52c",
    status="parity",
    allows={"gradient signs": "the official sign is reversed", "logit": "the official sign is reversed"},
    published={"beta": (0.1, "code")},
    departures=(
        "made for errors: the supervised term holds the chosen error, the comparison still sees how "
        "difficult each image is",
        "the sign of the ratio term is reversed as released: for comparison, not for training",
    ),
)
def diffusion_orpo_official(*, beta: float) -> Objective:
    """Diffusion ORPO as released, with its reversed sign: for comparison, not for training.

    loss = error of chosen - beta * log sigmoid(error of chosen - error of rejected), error = -2 * score

    Minimising the second part raises the chosen error above the rejected one; the first part hides it.

    Args:
        beta: >= 0, weight of the ratio term (official 0.1).

    Raises:
        HyperparameterError: out of range.

    Source: huggingface/diffusers research project diffusion_orpo. Parity: diffusion_orpo.
    """
    require("diffusion_orpo_official beta", beta, beta >= 0, "a number >= 0 (official 0.1)")
    ratio = Term(
        Pair(), Score(Reduction("mean"), anchor=0.0), beta=-2.0, coefficient=beta, name="error_ratio"
    )
    return Objective("diffusion_orpo_official", (ratio,), (extras.denoising_error(),))


@objective(
    "sft",
    fixes="baseline",
    title="Supervised fine-tuning on the chosen candidates (no paper)",
    year=2022,
    sample={},
    parity=("text_sft_chosen",),
    official_code="trl 1.16.0",
    status="parity",
    on_errors="supervised",
    symbolic="W vs ~W",
    departures=(
        "the normaliser is explicit: all tokens of the micro-batch in TRL, CPO, TPO and ms-swift; per "
        "pair in LLaMA-Factory and SamPO; sums in HALOs, RainbowPO and PRO; the prompt included in "
        "ORPO",
        "with whole_mean the supervised term is given for the chosen answer: it does not turn with an "
        "uncertain label",
    ),
)
def sft(*, normaliser: Normaliser = "sequence_mean") -> Objective:
    """Negative log-likelihood of the chosen candidate: half its denoising error for diffusion scores.

    Args:
        normaliser: "sequence_mean", "sequence_sum", "batch_mean" (all tokens of the batch: couples rows) or
            "whole_mean" (the same with the prompt). Coefficients cannot be carried from one to another.

    Raises:
        HyperparameterError: unknown normaliser.

    Source: trl 1.16.0, loss type "sft" (batch_mean).
    """
    return Objective("sft", (), (extras.nll(normaliser),))
