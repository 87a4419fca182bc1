"""The catalogue for clips: pairs weighted by rarity, comparisons per column, per frame and per segment.

Scores are -error / 2; with an inner axis (latent frames, segments or columns) one score per position, which
`errors_along` makes of predictions. u is the log-ratio.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mmalign.errors import HyperparameterError, ShapeError, explain
from mmalign.objectives import modifiers
from mmalign.objectives.base import Computed, Context, require, wide
from mmalign.objectives.objective import Objective, objective
from mmalign.objectives.pairwise import positive_beta
from mmalign.objectives.reductions import Reduction, ReductionName
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Score, Term

__all__ = [
    "densedpo",
    "densedpo_per_segment",
    "errors_along",
    "labels_of_frames",
    "mean_over_segments",
    "rarity_weights",
    "videodpo",
    "videodpo_columns",
]

# -------------------------------------------------------------------------------- errors along an axis


def errors_along(
    prediction: Float[Tensor, "prompt candidate *event"],
    target: Float[Tensor, "prompt candidate *event"],
    *,
    axis: int,
) -> Float[Tensor, "prompt candidate inner"]:
    """Squared error averaged over all event axes but one, in float32 or wider.

    Args:
        prediction: of the network.
        target: what it should have predicted.
        axis: the event axis to keep, counted among the event axes: 1 is the frames of [channel, frame,
            height, width].

    Raises:
        ShapeError: the shapes differ, or there is no such axis.
    """
    if prediction.shape != target.shape or not 0 <= axis < prediction.ndim - 2:
        message = explain(
            "errors_along",
            got=f"{list(prediction.shape)} and {list(target.shape)}, axis {axis}",
            expected="the same shape [prompt, candidate, ...] with that event axis",
        )
        raise ShapeError(message)
    squares = (wide(prediction) - wide(target)).square()
    return squares.movedim(axis + 2, 2).flatten(3).mean(-1)


def mean_over_segments(
    values: Float[Tensor, "prompt candidate frame"], frames_per_segment: int
) -> Float[Tensor, "prompt candidate segment"]:
    """Mean over every run of latent frames; the last segment may be shorter.

    Args:
        values: one number per latent frame.
        frames_per_segment: >= 1.

    Raises:
        HyperparameterError: frames_per_segment below 1.
    """
    _require_frames(frames_per_segment)
    frames = values.shape[2]
    segments = -(-frames // frames_per_segment)
    room = segments * frames_per_segment - frames
    padded = torch.cat([values, values.new_zeros(*values.shape[:2], room)], dim=2)
    total: Tensor = padded.unflatten(2, (segments, frames_per_segment)).sum(-1)
    count = torch.full((segments,), float(frames_per_segment), dtype=values.dtype, device=values.device)
    count[-1] -= room
    return total / count


def _require_frames(frames_per_segment: int) -> None:
    if frames_per_segment < 1:
        message = explain("frames_per_segment", got=frames_per_segment, expected="a number of frames >= 1")
        raise HyperparameterError(message)


def labels_of_frames(
    labels: Shaped[Tensor, "prompt segment"], *, frames: int, frames_per_segment: int
) -> Shaped[Tensor, "prompt frame"]:
    """The label of the segment that each latent frame lies in.

    Args:
        labels: 1 where candidate 0 is better, -1 where candidate 1 is, 0 for a tie.
        frames: latent frames of the clip.
        frames_per_segment: latent frames of one segment.

    Raises:
        HyperparameterError: frames_per_segment below 1.
        ShapeError: the segments do not cover the frames.
    """
    _require_frames(frames_per_segment)
    if labels.shape[1] != -(-frames // frames_per_segment):
        message = explain(
            "labels_of_frames",
            got=f"{labels.shape[1]} segments",
            expected=f"{-(-frames // frames_per_segment)} for {frames} frames",
        )
        raise ShapeError(message)
    return labels.repeat_interleave(frames_per_segment, dim=1)[:, :frames]


# -------------------------------------------------------------------------------- segments as labels


def _preference(context: Context) -> Tensor:
    """`extras["preference"]` of candidate 0, for both candidates."""
    value = wide(context.scores.extra("preference", "labels of segments"))
    return value[:, :1].expand_as(value)


def _segment_weights(reduction: ReductionName) -> Computed:
    """Labels of the positions; with the mean scaled so that only decided positions are counted."""

    def compute(context: Context) -> Tensor:
        label = _preference(context)
        label = label.unsqueeze(2) if label.ndim == 2 else label
        if reduction == "sum":
            return label
        scores = context.scores
        mask = torch.ones_like(scores.policy) if scores.mask is None else scores.mask
        decided = torch.where(label != 0, mask.to(label.dtype), 0.0).sum(-1, keepdim=True)
        whole = mask.to(label.dtype).sum(-1, keepdim=True)
        return label * whole / torch.where(decided == 0, 1.0, decided)

    text = "preference[0]" if reduction == "sum" else "preference[0] / share of decided positions"
    return Computed(compute, text, frozenset({"preference"}))


def _whole_label() -> Computed:
    """The label where scores come without positions, 1 where their positions are labelled."""

    def compute(context: Context) -> Tensor:
        reduced = context.scores.policy.ndim == 2
        return _preference(context) if reduced else torch.ones_like(context.policy)

    return Computed(compute, "(preference[0] of a reduced score)", frozenset({"preference"}))


_DENSE = "DenseDPO: Fine-Grained Temporal Preference Optimization for Video Diffusion Models"


@objective(
    "densedpo",
    fixes="credit",
    on_errors="axis",
    title=_DENSE,
    paper="2506.03517",
    year=2025,
    equation="7",
    sample={"beta": 0.5, "reduction": "mean"},
    parity=("densedpo_formula",),
    published={
        "beta": (1000.0, "paper", "500 on whole errors, which is 1000 on half errors"),
        "reduction": ("mean", "paper", "its appendix; equation 7 has the sum"),
    },
    departures=(
        "segments say which candidate is better, so a label's probability turns nothing",
        "no code is public: the case is an evaluation of the paper's equations",
        "mask ties out (mask = preference != 0): a pair without decided positions is then not counted",
    ),
)
def densedpo(*, beta: float, reduction: ReductionName) -> Objective:
    """DPO of clips whose segments are labelled one by one: one log-sigmoid over their signed sum.

    z = beta * reduce over positions f of l_f * (u_0,f - u_1,f), l_f in {-1, 0, 1}
    loss = -log sigmoid(z)

    `extras["preference"]` [prompt, candidate, position] holds l for candidate 0 and -l for candidate 1.

    Args:
        beta: > 0, per unit of score; 1000, which is the paper's 500 on whole errors.
        reduction: "mean" over the decided positions (the appendix), or "sum" (equation 7: positions are then
            segments, see `mean_over_segments`).

    Raises:
        HyperparameterError: out of range.

    Source: arXiv 2506.03517, equation 7 and appendix A.3.
    """
    positive_beta("densedpo", beta)
    score = Score(Reduction(reduction, weights=_segment_weights(reduction)), scale=_whole_label())
    return Objective("densedpo", (Term(Pair(), score, beta=beta),))


@objective(
    "densedpo_per_segment",
    fixes="credit",
    on_errors="axis",
    title=_DENSE,
    paper="2506.03517",
    year=2025,
    sample={"beta": 0.5},
    parity=("densedpo_formula",),
    published={"beta": (1000.0, "paper", "500 on whole errors")},
    departures=(
        "a reading that uses every label, not the paper's: one log-sigmoid per decided segment",
        "mask ties out (mask = preference != 0); weigh rows by their decided segments for a mean over the "
        "segments of the batch",
    ),
)
def densedpo_per_segment(*, beta: float) -> Objective:
    """DPO on every decided segment, averaged over the segments of the pair.

    loss = mean over positions f of -log sigmoid(beta * l_f * (u_0,f - u_1,f)), l_f in {-1, 1}

    `extras["preference"]` [prompt, candidate, position] holds l for candidate 0 and -l for candidate 1.

    Args:
        beta: > 0, per unit of score; 1000, which is the paper's 500 on whole errors.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2506.03517, a variant of equation 7.
    """
    positive_beta("densedpo_per_segment", beta)
    signed = Computed(_preference, "preference[0]", frozenset({"preference"}))
    term = Term(Pair(), Score(scale=signed), beta=beta, positions="apart")
    return Objective("densedpo_per_segment", (term,))


# -------------------------------------------------------------------------------- pairs by rarity


def rarity_weights(
    chosen: Float[Tensor, " row"],
    rejected: Float[Tensor, " row"],
    *,
    exponent: float = 0.72,
    width: float = 0.01,
) -> Float[Tensor, " row"]:
    """Weights of the pairs of a data set: rare scores count more, (p_max / p)^exponent.

    p = sqrt(p(score of chosen) * p(score of rejected)), p(.) the share of all scores of the data set that lie
    in the same bin, p_max the largest such share. Compute it once, on the whole data set.

    Args:
        chosen: score of the chosen clip of every pair.
        rejected: of the rejected one.
        exponent: >= 0; 0.72 in the paper, 0 weighs all pairs alike.
        width: > 0, of a bin; 0.01 in the paper.

    Raises:
        HyperparameterError: out of range.
        ShapeError: the two differ in length, or are empty.

    Source: arXiv 2412.14167.
    """
    require("rarity_weights exponent", exponent, 0 <= exponent < float("inf"), "a number >= 0")
    require("rarity_weights width", width, 0 < width < float("inf"), "a number > 0")
    if chosen.shape != rejected.shape or not chosen.numel():
        message = explain(
            "rarity_weights",
            got=f"{list(chosen.shape)} and {list(rejected.shape)}",
            expected="as many scores of chosen as of rejected clips, at least one",
        )
        raise ShapeError(message)
    scores = torch.stack([wide(chosen), wide(rejected)])
    bins = (scores / width).floor().to(torch.int64)
    bins = bins - bins.min()
    counts = torch.bincount(bins.flatten()).to(scores.dtype)
    share = counts[bins]
    return (counts.max() / share.prod(0).sqrt()).pow(exponent)


_VIDEO = "VideoDPO: Omni-Preference Alignment for Video Diffusion Generation"
_VIDEO_CODE = "CIntellifusion/VideoDPO 1febdb4"


@objective(
    "videodpo",
    fixes="strength",
    title=_VIDEO,
    paper="2412.14167",
    year=2024,
    sample={"beta": 0.5},
    parity=("videodpo",),
    official_code=_VIDEO_CODE,
    status="parity",
    published={"beta": (5000.0, "code")},
    departures=(
        "one log-sigmoid per pair, as in the paper (released: one per latent column, see videodpo_columns)",
        "weights are rarity_weights, the paper's (p_max / p)^0.72; the released config has them off, and "
        "its code has (0.72 / score)^dupbeta",
        "share noise and timestep within the pair (released: drawn for each side)",
    ),
)
def videodpo(*, beta: float) -> Objective:
    """DPO of clips whose pairs are weighted by how rare their scores are.

    loss = weight * -log sigmoid(beta * (u of chosen - u of rejected)), weight = `extras["pair_weight"]`
    [prompt], see `rarity_weights`

    Args:
        beta: > 0, per unit of score; 5000 released.

    Raises:
        HyperparameterError: beta <= 0.

    Source: arXiv 2412.14167.
    """
    positive_beta("videodpo", beta)
    score = Score(Reduction("mean"))
    return Objective("videodpo", (Term(Pair(), score, beta=beta, weight=modifiers.given("pair_weight")),))


@objective(
    "videodpo_columns",
    fixes="strength",
    on_errors="axis",
    title=_VIDEO,
    paper="2412.14167",
    year=2024,
    sample={"beta": 0.5},
    parity=("videodpo",),
    official_code=_VIDEO_CODE,
    status="parity",
    published={"beta": (5000.0, "code")},
    departures=("kept to compare with released numbers: its mean leaves the last latent axis out",),
)
def videodpo_columns(*, beta: float) -> Objective:
    """The released VideoDPO: one log-sigmoid per latent column, averaged.

    loss = weight * mean over columns x of -log sigmoid(beta * (u of chosen in x - u of rejected in x))
    weight = `extras["pair_weight"]` [prompt]; the inner axis of the scores is the latent width, see
    `errors_along`

    Args:
        beta: > 0, per unit of score; 5000 released.

    Raises:
        HyperparameterError: beta <= 0.

    Source: CIntellifusion/VideoDPO, lvdm/models/ddpm3d.py, dpo_loss.
    """
    positive_beta("videodpo_columns", beta)
    weight = modifiers.given("pair_weight")
    return Objective("videodpo_columns", (Term(Pair(), beta=beta, weight=weight, positions="apart"),))
