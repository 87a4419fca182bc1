"""The catalogue of candidates that stand alone: thumbs up or down, or each side of a pair on its own.

The absolute level of a score matters here, so that one-sample diffusion scores need a zero point.
"""

from typing import Literal

from mmalign.errors import HyperparameterError, explain
from mmalign.objectives import labels, links, modifiers
from mmalign.objectives.base import Computed
from mmalign.objectives.labels import PointLabels
from mmalign.objectives.links import Link
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.structures import Pair, Point
from mmalign.objectives.terms import Term

__all__ = [
    "ZeroPoint",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco_pair",
    "kto",
    "kto_pair_legacy",
    "nca_pair",
    "zero_point_of",
]

Utility = Literal["sigmoid", "loss_averse", "risk_seeking_1", "risk_seeking_2", "risk_seeking_3"]
ZeroPoint = Literal["batch", "class_balanced", "mismatched"]


def _utility_links(utility: str) -> tuple[Link, Link | None]:
    """1 - utility(z) of liked rows and, if it differs, of the others."""
    if utility == "risk_seeking_1":
        return links.risk_seeking_signed(True), links.risk_seeking_signed(False)
    if utility == "risk_seeking_2":
        return links.risk_seeking_exponential(True), links.risk_seeking_exponential(False)
    same = {
        "sigmoid": links.flat,
        "loss_averse": links.loss_averse,
        "risk_seeking_3": links.risk_seeking_logistic,
    }
    if utility not in same:
        known = "one of sigmoid, loss_averse, risk_seeking_1, risk_seeking_2, risk_seeking_3"
        raise HyperparameterError(explain("kto utility", got=utility, expected=known))
    return same[utility](), None


def zero_point_of(kind: str, beta: float) -> Computed:
    """One of KTO's zero points, in units of z.

    Raises:
        HyperparameterError: unknown kind.
    """
    makers = {
        "batch": modifiers.batch_zero_point,
        "class_balanced": modifiers.class_balanced_zero_point,
        "mismatched": modifiers.mismatched_zero_point,
    }
    if kind not in makers:
        raise HyperparameterError(explain("kto zero_point", got=kind, expected="one of " + ", ".join(makers)))
    return makers[kind](beta)


@objective(
    "kto",
    fixes="unpaired",
    on_errors="pointwise",
    title="KTO: Model Alignment as Prospect Theoretic Optimization",
    paper="2402.01306",
    year=2024,
    equation="8",
    sample={"beta": 0.1},
    data="unpaired",
    parity=("text_kto", "diffusion_kto"),
    official_code="trl 1.16.0; jacklishufan/diffusion-kto 226bbd0",
    status="parity",
    published={
        "beta": (0.1, "code", "TRL and HALOs; 1000 on whole errors in Diffusion-KTO"),
        "desirable_weight": (1.0, "code"),
        "undesirable_weight": (1.0, "code"),
    },
    departures=(
        "the zero point is sum / count over all ranks and all mismatched answers, as in HALOs, which drops "
        "answers whose log-ratio is exactly 0 from the count; TRL takes the mean of the ranks' means",
        "where mismatched answers come from is up to the caller: TRL pairs a prompt with the answer before "
        "it in the batch",
        "Diffusion-KTO's score lacks the 1/2 of -error / 2: its beta is half of ours",
    ),
)
def kto(
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    utility: Utility = "sigmoid",
    zero_point: ZeroPoint = "batch",
) -> Objective:
    """Human utility of liked and disliked rows against a zero point, without pairs.

    z = beta * u - zero point, negated for disliked rows
    loss = weight * (1 - utility(z))

    Utilities (Diffusion-KTO): sigmoid sigma(z); loss_averse log sigma(z); risk_seeking_1 -+log sigma(-+z);
    risk_seeking_2 +-exp(+-z / 100) - 1; risk_seeking_3 -log sigma(-z), unbounded for large z.

    Zero points, detached, in units of z: batch beta * max(0, mean of u); class_balanced beta * mean of the
    two class means; mismatched beta * max(0, mean of u of answers to other prompts), from
    `extras["mismatched_log_ratio"]` (text). They are means over all ranks and couple the rows of a
    micro-batch.

    Args:
        beta: > 0, per unit of score. Text 0.1; diffusion 2000 (1000 in the official code, whose score lacks
            the 1/2).
        desirable_weight: >= 0, weight of liked rows.
        undesirable_weight: >= 0, weight of the others. Text: keep the ratio of weights times counts in [1,
            4/3].
        utility: shape of the utility.
        zero_point: what u is measured against.

    Raises:
        HyperparameterError: out of range or unknown.

    Source: arXiv 2402.01306, equation 8; arXiv 2404.04465 (Diffusion-KTO). Parity: text_kto, diffusion_kto.
    """
    positive_beta("kto", beta)
    liked, other = _utility_links(utility)
    term = Term(
        Point(),
        beta=beta,
        margin=zero_point_of(zero_point, beta),
        link=liked,
        labels=labels.likes(desirable_weight, undesirable_weight),
        link_rejected=other,
        name="kto",
    )
    return Objective("kto", (term,))


def _points(name: str, beta: float, link: Link, roles: PointLabels) -> Objective:
    positive_beta(name, beta)
    return Objective(name, (Term(Point(), beta=beta, link=link, labels=roles),))


@objective(
    "apo_zero",
    fixes="displacement",
    on_errors="pointwise",
    title="Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in "
    "Alignment",
    paper="2408.06266",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_apo_zero",),
    official_code="trl 1.16.0",
    status="parity",
    published={"beta": (0.1, "code")},
    departures=(
        "weights per role for unpaired rows stand in the row apo_zero_unpaired",
        "APO is anchored here; accelerated preference optimisation is the row accelerated_po",
    ),
)
def apo_zero(*, beta: float) -> Objective:
    """Chosen answers more likely, rejected ones less, each on its own.

    loss = (1 - sigmoid(beta u of chosen)) + sigmoid(beta u of rejected)

    For data whose chosen answers are better than the model. Works on unpaired rows too.

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2408.06266; trl 1.16.0, loss type "apo_zero".
    """
    return _points("apo_zero", beta, links.flat(), labels.likes())


@objective(
    "apo_down",
    fixes="displacement",
    on_errors="pointwise",
    title="Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in "
    "Alignment",
    paper="2408.06266",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_apo_down",),
    official_code="trl 1.16.0",
    status="parity",
    published={"beta": (0.1, "code")},
    departures=(
        "APO is anchored here; accelerated preference optimisation is the row accelerated_po",
        "at the start the gradient on the chosen answer is zero: its two parts cancel, and only the "
        "rejected one moves",
    ),
)
def apo_down(*, beta: float) -> Objective:
    """Both answers less likely, the rejected one more so.

    loss = sigmoid(beta u of chosen) + 1 - sigmoid(beta * (u of chosen - u of rejected))

    For data whose chosen answers are worse than the model. No gradient on the chosen answer at the start.

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2408.06266; trl 1.16.0, loss type "apo_down".
    """
    positive_beta("apo_down", beta)
    gap = Term(Pair(), beta=beta, link=links.flat(), name="gap")
    anchor = PointLabels(chosen=(0.0, 1.0), rejected=(0.0, 0.0))
    down = Term(Point(), beta=beta, link=links.flat(), labels=anchor, name="anchor")
    return Objective("apo_down", (gap, down))


@objective(
    "bco_pair",
    fixes="unpaired",
    on_errors="pointwise",
    title="Binary Classifier Optimization for Large Language Model Alignment",
    paper="2404.04656",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_bco_pair_nodelta", "text_nca_biased_pair"),
    departures=(
        "no reward shift, as in TRL 1.16 and Liger; LLaMA-Factory, ms-swift and older TRL subtract a "
        "running shift (mpo and bco_pair_delta_mix with a delta_rule; bco for unpaired rows)",
    ),
    published={"beta": (0.1, "code", "TRL; 0.01 in the NCA release")},
    official_code="trl 1.16.0; thu-ml/Noise-Contrastive-Alignment cbb9248",
    status="parity",
)
def bco_pair(*, beta: float) -> Objective:
    """Each side against zero: -log sigmoid(beta u of chosen) - log sigmoid(-beta u of rejected).

    Args:
        beta: > 0, per unit of score.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2404.04656; trl 1.16.0, loss type "bco_pair".
    """
    return _points("bco_pair", beta, links.logistic(), labels.likes())


@objective(
    "nca_pair",
    fixes="displacement",
    on_errors="pointwise",
    title="Noise Contrastive Alignment of Language Models with Explicit Rewards",
    paper="2402.05369",
    year=2024,
    sample={"beta": 0.01},
    parity=("text_nca_pair",),
    official_code="trl 1.16.0; thu-ml/Noise-Contrastive-Alignment cbb9248",
    status="parity",
    published={"beta": (0.01, "code")},
    departures=(
        "1 / K of the paper is 1/2 here; the noise term pushes the chosen answer down, too, as in the code",
    ),
)
def nca_pair(*, beta: float) -> Objective:
    """Chosen against noise: -log sigmoid(z_w) - (log sigmoid(-z_w) + log sigmoid(-z_l)) / 2, z = beta u.

    Args:
        beta: > 0, per unit of score (0.01 released).

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2402.05369; trl 1.16.0, loss type "nca_pair".
    """
    return _points("nca_pair", beta, links.logistic(), PointLabels((1.0, 0.5), (0.0, 0.5)))


@objective(
    "apo_zero_unpaired",
    fixes="unpaired",
    on_errors="pointwise",
    title="Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in "
    "Alignment",
    paper="2408.06266",
    year=2024,
    sample={"beta": 0.1},
    data="unpaired",
    parity=("text_apo_zero_unpaired",),
    official_code="trl 1.16.0, KTO trainer",
    status="parity",
    published={"beta": (0.1, "code"), "desirable_weight": (1.0, "code"), "undesirable_weight": (1.0, "code")},
)
def apo_zero_unpaired(
    *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Objective:
    """Liked answers more likely, the others less, each against zero.

    loss of liked rows = desirable_weight * (1 - sigmoid(beta * u))
    loss of the others = undesirable_weight * sigmoid(beta * u)

    KTO with its zero point at 0, for data whose liked answers are better than the model; couples no rows.

    Args:
        beta: > 0, per unit of score (0.1 for summed log-probabilities).
        desirable_weight: >= 0, of liked rows.
        undesirable_weight: >= 0, of the others.

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2408.06266; trl 1.16.0, KTO loss type "apo_zero_unpaired".
    """
    return _points(
        "apo_zero_unpaired", beta, links.flat(), labels.likes(desirable_weight, undesirable_weight)
    )


@objective(
    "kto_pair_legacy",
    fixes="unpaired",
    on_errors="pointwise",
    title="KTO: Model Alignment as Prospect Theoretic Optimization",
    paper="2402.01306",
    year=2024,
    sample={"beta": 0.1},
    parity=("text_kto_pair_legacy",),
    departures=(
        "gradient flows through the zero points, as in old TRL, SPPO, SELM and reds-lab: for comparison; kto "
        "stops it there, as the paper says",
        "half the sum of both sides, so that the mean over pairs is the official mean over 2 rows per pair",
        "the means are those of this rank's micro-batch, as in the official code",
    ),
    official_code="reds-lab/preference-learning-with-rationales 16111a1; uclaml/SPPO 5e61c4e",
    status="parity",
    published={"beta": (0.1, "code")},
    allows={"sharding": "the zero points carry gradient, so they stay within the micro-batch of a rank"},
)
def kto_pair_legacy(*, beta: float) -> Objective:
    """KTO on pairs as once released: each side against the batch mean of the other side.

    loss = 1/2 * [1 - sigmoid(beta * u of chosen - zero of chosen)]
         + 1/2 * sigmoid(beta * u of rejected - zero of rejected)

    zero of one role = beta * max(0, batch mean of u over the other role), not detached.

    Args:
        beta: > 0, per unit of score (0.1 released).

    Raises:
        HyperparameterError: beta <= 0.

    Source: reds-lab/preference-learning-with-rationales `SimpleKTOTrainer.loss`; TRL before 0.9, loss type
    "kto_pair". Parity: text_kto_pair_legacy.
    """
    positive_beta("kto_pair_legacy", beta)
    zero = modifiers.opposite_zero_point(beta)

    def side(name: str, roles: PointLabels) -> Term:
        return Term(
            Point(), beta=beta, margin=zero, link=links.flat(), labels=roles, coefficient=0.5, name=name
        )

    both = (side("chosen", labels.likes(1.0, 0.0)), side("rejected", labels.likes(0.0, 1.0)))
    return Objective("kto_pair_legacy", both)
