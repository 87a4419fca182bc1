"""Preference losses as data: numbers per candidate in, one loss per prompt out. Torch only.

    from mmalign import objectives
    loss = objectives.dpo(beta=0.1)
    out = loss(objectives.Scores(policy=..., reference=...), objectives.Labels.pairs(8))
    out.loss.mean().backward()

Builders return an `Objective`, which adds (`dpo(...) + 0.2 * sft()`), scales, and prints its formula. The
parts (scores, shapes, structures, links, labels, modifiers, extras) are public, so that an unnamed method is
a few lines of data.
"""

from mmalign.batch import Labels
from mmalign.objectives import extras, labels, links, modifiers, reductions, score_shapes, structures
from mmalign.objectives.base import Computed, Context, ObjectiveOutput, ObjectiveState, Scores
from mmalign.objectives.extras import Extra
from mmalign.objectives.objective import Objective, build, names, objective, registered, row, signature
from mmalign.objectives.pairwise import (
    cdpo,
    diffusion_ipo,
    dpo,
    dpo_reference_free,
    hinge,
    ipo,
    ipo_reference_free,
    robust_dpo,
)
from mmalign.objectives.pointwise import kto
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.reference_free import (
    diffusion_orpo,
    diffusion_orpo_official,
    mapo,
    orpo,
    sft,
    simpo,
    simpo_hinge,
)
from mmalign.objectives.terms import Score, Term

__all__ = [
    "Computed",
    "Context",
    "Extra",
    "Labels",
    "Objective",
    "ObjectiveOutput",
    "ObjectiveState",
    "Reduction",
    "Score",
    "Scores",
    "Term",
    "build",
    "cdpo",
    "diffusion_ipo",
    "diffusion_orpo",
    "diffusion_orpo_official",
    "dpo",
    "dpo_reference_free",
    "extras",
    "hinge",
    "ipo",
    "ipo_reference_free",
    "kto",
    "labels",
    "links",
    "mapo",
    "modifiers",
    "names",
    "objective",
    "orpo",
    "reductions",
    "registered",
    "robust_dpo",
    "row",
    "score_shapes",
    "sft",
    "signature",
    "simpo",
    "simpo_hinge",
    "structures",
]
