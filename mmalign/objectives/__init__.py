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
    answer_rankings,
    composites,
    denoising,
    diagnostics,
    discovered,
    distillation,
    extras,
    grounded,
    item_rankings,
    labels,
    links,
    margins,
    modifiers,
    one_stage,
    policy_gradient,
    rankings,
    reductions,
    score_shapes,
    structures,
    tokenwise,
)
from mmalign.objectives.adaptive import alpha_dpo, beta_dpo
from mmalign.objectives.answer_rankings import knowpat_align, more_ranking, pro, reward_ranking
from mmalign.objectives.base import Computed, Context, ObjectiveOutput, ObjectiveState, Scores
from mmalign.objectives.binary_classifier import bco, bco_udm
from mmalign.objectives.clips import densedpo, densedpo_per_segment, videodpo, videodpo_columns
from mmalign.objectives.composites import (
    bco_pair_delta_mix,
    irpo_reasoning,
    mapl,
    mpo,
    rationale_dpo,
    rpo_sft,
    three_properties,
)
from mmalign.objectives.curricula import curry_dpo
from mmalign.objectives.denoising import crpo, diffusion_dro, dmpo, flow_dpo, flow_rwr, smpo, tango2_dpo
from mmalign.objectives.discovered import discopop, discovered_cell, discovered_padll, discovered_pfl
from mmalign.objectives.discovered_quantiles import discovered_aqfl, discovered_aql, discovered_dbaql
from mmalign.objectives.divergences import fdpo_alpha, fdpo_forward_kl, fdpo_js
from mmalign.objectives.extras import Extra
from mmalign.objectives.generalised import gpo_exponential, gpo_savage, gpo_truncated_quadratic
from mmalign.objectives.gold_answers import asft, logo, triple_po, triple_po_hinge, triple_po_ipo, triple_po_l
from mmalign.objectives.grounded import chip, mdpo, povid, vdpo_guided
from mmalign.objectives.human_utility import kto, kto_pair_legacy
from mmalign.objectives.humanline import humanline, humanline_dpo, humanline_kto
from mmalign.objectives.item_rankings import (
    irpo_incontext_ranking,
    irpo_incontext_ranking_official,
    tree_po,
    tree_po_rank,
)
from mmalign.objectives.linear_utility import linear_dpo
from mmalign.objectives.listwise import (
    adpo_listwise,
    dmpo_recommendation,
    dpo_rw,
    exo_listwise,
    exo_pair,
    exo_pref_official,
    s_dpo,
)
from mmalign.objectives.margins import arpo, flex_dpo, gapo_semantic, mallows_dpo, mallows_ipo
from mmalign.objectives.multi_objective import modpo, modpo_hinge
from mmalign.objectives.noise_contrast import infonca, nca
from mmalign.objectives.objective import Objective, build, names, objective, registered, row, signature
from mmalign.objectives.one_stage import alphapo, cpo, cpo_hinge, cpo_ipo, cpo_simpo
from mmalign.objectives.online import ipo_md, online_dpo, selm, spin, xpo
from mmalign.objectives.pair_weights import gapo_gap_aware, madpo, sem_dpo, wpo, wpo_unclamped
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
    nca_pair,
)
from mmalign.objectives.predictions import dspo, dspo_sdxl, sdpo
from mmalign.objectives.rankings import (
    lipo_lambda,
    lipo_pair_hinge,
    lipo_pair_logistic,
    lipo_point_mse,
    lipo_point_sigmoid,
    lipo_softmax,
    plackett_luce_dpo,
    rankdpo,
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
from mmalign.objectives.revised_answers import opa_dpo, opa_dpo_released
from mmalign.objectives.segments import dense_dpo, rrpo
from mmalign.objectives.self_play import reward_ascent, seppo, sspo
from mmalign.objectives.soft_labels import (
    adpo_pair,
    cal_dpo,
    mcts_dpo,
    nemo_rpo_bwd_kl,
    nemo_rpo_fwd_kl,
    nemo_rpo_sq,
    osp,
)
from mmalign.objectives.state_values import oreo
from mmalign.objectives.stepwise import flow_grpo, spo
from mmalign.objectives.terms import Score, Term
from mmalign.objectives.token_divergences import mapo_masked, sparsepo, tdpo1, tdpo2
from mmalign.objectives.tokenwise import (
    d2po_temporal_decay,
    fdpo_js_ipo,
    ld_dpo,
    ld_dpo_policy_only,
    sampo,
    shared_subset,
    tgdpo,
)
from mmalign.objectives.variants import (
    aot,
    aot_unpaired,
    dpo_cauchy,
    dpo_shift,
    dpop,
    length_dpo,
    odpo,
    rainbow_mixed_reference,
    shift_at,
    slic,
)
from mmalign.objectives.vision_pairs import grape_tpo, hsa_dpo, lc_dpo_chexalign, mm_dpo, mm_dpo_released

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
    "adpo_listwise",
    "adpo_pair",
    "alpha_dpo",
    "alphapo",
    "answer_rankings",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "arpo",
    "asft",
    "bco",
    "bco_pair",
    "bco_pair_delta_mix",
    "bco_udm",
    "beta_dpo",
    "build",
    "cal_dpo",
    "cdpo",
    "chip",
    "composites",
    "cpo",
    "cpo_hinge",
    "cpo_ipo",
    "cpo_simpo",
    "crpo",
    "curry_dpo",
    "d2po_temporal_decay",
    "denoising",
    "dense_dpo",
    "densedpo",
    "densedpo_per_segment",
    "diagnostics",
    "diffusion_dro",
    "diffusion_ipo",
    "diffusion_orpo",
    "diffusion_orpo_official",
    "discopop",
    "discovered",
    "discovered_aqfl",
    "discovered_aql",
    "discovered_cell",
    "discovered_dbaql",
    "discovered_padll",
    "discovered_pfl",
    "distillation",
    "dmpo",
    "dmpo_recommendation",
    "dpo",
    "dpo_cauchy",
    "dpo_reference_free",
    "dpo_rw",
    "dpo_shift",
    "dpop",
    "dspo",
    "dspo_sdxl",
    "exo_listwise",
    "exo_pair",
    "exo_pref_official",
    "extras",
    "fdpo_alpha",
    "fdpo_forward_kl",
    "fdpo_js",
    "fdpo_js_ipo",
    "flex_dpo",
    "flow_dpo",
    "flow_grpo",
    "flow_rwr",
    "gapo_gap_aware",
    "gapo_semantic",
    "gpo_exponential",
    "gpo_savage",
    "gpo_truncated_quadratic",
    "grape_tpo",
    "grounded",
    "hinge",
    "hsa_dpo",
    "humanline",
    "humanline_dpo",
    "humanline_kto",
    "infonca",
    "ipo",
    "ipo_md",
    "ipo_reference_free",
    "irpo_incontext_ranking",
    "irpo_incontext_ranking_official",
    "irpo_reasoning",
    "item_rankings",
    "knowpat_align",
    "kto",
    "kto_pair_legacy",
    "labels",
    "lc_dpo_chexalign",
    "ld_dpo",
    "ld_dpo_policy_only",
    "length_dpo",
    "linear_dpo",
    "links",
    "lipo_lambda",
    "lipo_pair_hinge",
    "lipo_pair_logistic",
    "lipo_point_mse",
    "lipo_point_sigmoid",
    "lipo_softmax",
    "logo",
    "madpo",
    "mallows_dpo",
    "mallows_ipo",
    "mapl",
    "mapo",
    "mapo_masked",
    "margins",
    "mcts_dpo",
    "mdpo",
    "mm_dpo",
    "mm_dpo_released",
    "modifiers",
    "modpo",
    "modpo_hinge",
    "more_ranking",
    "mpo",
    "names",
    "nca",
    "nca_pair",
    "nemo_rpo_bwd_kl",
    "nemo_rpo_fwd_kl",
    "nemo_rpo_sq",
    "objective",
    "odpo",
    "one_stage",
    "online_dpo",
    "opa_dpo",
    "opa_dpo_released",
    "oreo",
    "orpo",
    "osp",
    "plackett_luce_dpo",
    "policy_gradient",
    "povid",
    "pro",
    "rainbow_mixed_reference",
    "rankdpo",
    "rankings",
    "rationale_dpo",
    "reductions",
    "registered",
    "reward_ascent",
    "reward_ranking",
    "robust_dpo",
    "row",
    "rpo_sft",
    "rrpo",
    "s_dpo",
    "sampo",
    "score_shapes",
    "sdpo",
    "selm",
    "sem_dpo",
    "seppo",
    "sft",
    "shared_subset",
    "shift_at",
    "signature",
    "simpo",
    "simpo_hinge",
    "slic",
    "smpo",
    "sparsepo",
    "spin",
    "spo",
    "sppo",
    "sppo_hard",
    "sppo_single",
    "sspo",
    "structures",
    "tango2_dpo",
    "tdpo1",
    "tdpo2",
    "tgdpo",
    "three_properties",
    "tokenwise",
    "tree_po",
    "tree_po_rank",
    "triple_po",
    "triple_po_hinge",
    "triple_po_ipo",
    "triple_po_l",
    "vdpo_guided",
    "videodpo",
    "videodpo_columns",
    "wpo",
    "wpo_unclamped",
    "xpo",
]
