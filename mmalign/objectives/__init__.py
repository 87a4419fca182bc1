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
from mmalign.objectives import (
    composites,
    denoising,
    diagnostics,
    discovered,
    distillation,
    extras,
    grounded,
    labels,
    links,
    margins,
    modifiers,
    one_stage,
    policy_gradient,
    reductions,
    score_shapes,
    structures,
    tokenwise,
)
from mmalign.objectives.base import Computed, Context, ObjectiveOutput, ObjectiveState, Scores
from mmalign.objectives.binary_classifier import bco, bco_udm
from mmalign.objectives.extras import Extra
from mmalign.objectives.humanline import humanline_dpo, humanline_kto
from mmalign.objectives.listwise import exo_pair, infonca, lipo_lambda, nca, plackett_luce_dpo
from mmalign.objectives.objective import Objective, build, names, objective, registered, row, signature
from mmalign.objectives.one_stage import (
    alphapo,
    asft,
    cpo,
    cpo_hinge,
    cpo_ipo,
    cpo_simpo,
    logo,
    triple_po,
    triple_po_l,
)
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
from mmalign.objectives.pointwise import (
    apo_down,
    apo_zero,
    apo_zero_unpaired,
    bco_pair,
    kto,
    kto_pair_legacy,
    nca_pair,
)
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
from mmalign.objectives.regression import a2po_regression, sppo, sppo_hard, sppo_single
from mmalign.objectives.terms import Score, Term
from mmalign.objectives.variants import (
    aot,
    aot_unpaired,
    discopop,
    dpo_cauchy,
    dpo_shift,
    dpop,
    fdpo_alpha,
    fdpo_forward_kl,
    fdpo_js,
    length_dpo,
    odpo,
    rainbow_mixed_reference,
    slic,
)

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
    "a2po_regression",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "asft",
    "bco",
    "bco_pair",
    "bco_udm",
    "build",
    "cdpo",
    "composites",
    "cpo",
    "cpo_hinge",
    "cpo_ipo",
    "cpo_simpo",
    "denoising",
    "diagnostics",
    "diffusion_ipo",
    "diffusion_orpo",
    "diffusion_orpo_official",
    "discopop",
    "discovered",
    "distillation",
    "dpo",
    "dpo_cauchy",
    "dpo_reference_free",
    "dpo_shift",
    "dpop",
    "exo_pair",
    "extras",
    "fdpo_alpha",
    "fdpo_forward_kl",
    "fdpo_js",
    "grounded",
    "hinge",
    "humanline_dpo",
    "humanline_kto",
    "infonca",
    "ipo",
    "ipo_reference_free",
    "kto",
    "kto_pair_legacy",
    "labels",
    "length_dpo",
    "links",
    "lipo_lambda",
    "logo",
    "mapo",
    "margins",
    "modifiers",
    "names",
    "nca",
    "nca_pair",
    "objective",
    "odpo",
    "one_stage",
    "orpo",
    "plackett_luce_dpo",
    "policy_gradient",
    "rainbow_mixed_reference",
    "reductions",
    "registered",
    "robust_dpo",
    "row",
    "score_shapes",
    "sft",
    "signature",
    "simpo",
    "simpo_hinge",
    "slic",
    "sppo",
    "sppo_hard",
    "sppo_single",
    "structures",
    "tokenwise",
    "triple_po",
    "triple_po_l",
]
