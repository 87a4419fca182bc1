"""Rows of preferences in time, for every medium that has one: which of two is better, stretch by stretch."""

from mmalign.methods.row import Default, Method, Taxonomy

__all__ = ["ROWS"]

_TITLE = "DenseDPO: Fine-Grained Temporal Preference Optimization for Video Diffusion Models"
_TAXONOMY = Taxonomy(data="pairwise, segment")
_FRAMES = (
    "u_f = -(error of the policy in latent frame f - error of the reference there) / 2\n"
    "l_f = 1 where the chosen one is better in f, -1 where the rejected one is, 0 for a tie or no label\n"
)
_SHARED = (
    "labels lie on latent frames: each takes the label that holds most of it",
    "clips without a decided frame count nowhere",
)

_BETA = Default(1000.0, "paper", "500 on whole errors, of videos")

_DENSE = Method(
    name="densedpo",
    title=_TITLE,
    paper="2506.03517",
    year=2025,
    objective="densedpo",
    likelihood="elbo",
    formula=f"{_FRAMES}logit = beta * mean over decided f of l_f * (u_f of chosen - u_f of rejected)\n"
    "loss = -log sigmoid(logit)",
    defaults={"*": {"beta": _BETA, "reduction": Default("mean", "paper", "its appendix")}},
    departures=(
        *_SHARED,
        "sides have noise of their own, as in the paper, on models of video, whose pairs share their layout; "
        "on sound they share it (likelihood.share_noise)",
    ),
    needs=frozenset({"reference", "preference"}),
    taxonomy=_TAXONOMY,
)

_PER_SEGMENT = Method(
    name="densedpo_per_segment",
    title=_TITLE,
    paper="2506.03517",
    year=2025,
    objective="densedpo_per_segment",
    likelihood="elbo",
    formula=f"{_FRAMES}loss = mean over decided f of "
    "-log sigmoid(beta * l_f * (u_f of chosen - u_f of rejected))",
    defaults={"*": {"beta": _BETA}},
    departures=(*_SHARED, "a reading that uses every label, not the paper's: one log-sigmoid per frame"),
    needs=frozenset({"reference", "preference"}),
    taxonomy=_TAXONOMY,
)

ROWS: tuple[Method, ...] = (_DENSE, _PER_SEGMENT)
