"""Rows of methods that are more than an objective of scores, or none: rules outside the loss, and functions.

A rule outside the loss changes the reference, the samples or the weights between rounds and leaves the
objective alone: its row names both, the objective and the `function` that does the rest. A loss that needs
whole next-token distributions, or several scorings of one thing, is no row of the algebra: its row has no
`objective`, only the `function`.
"""

from mmalign.methods.row import Default, Method, Taxonomy

__all__ = ["ROWS"]

_RULES = "mmalign.likelihood.reference_rules"
_DISTILLATION = "mmalign.objectives.distillation"

_NO_VOCABULARY = dict.fromkeys(
    ("elbo", "inversion", "transition"), "needs the whole distribution of the next token, over a vocabulary"
)

_TR_DPO = Method(
    name="tr_dpo",
    title="Learn Your Reference Model for Real Good Alignment",
    paper="2404.09656",
    year=2024,
    objective="dpo",
    reference="synced",
    function=f"{_RULES}.SyncRule",
    defaults={
        "*": {
            "sync_every": Default(512, "code", "TRL"),
            "mixing": Default(0.6, "code", "TRL; 1 is the hard rule"),
        }
    },
    formula="loss = DPO\n"
    "every sync_every optimiser steps: reference <- (1 - mixing) * reference + mixing * policy",
    departures=(
        "only trained weights are mixed, so the rule works with an adapter and without a second network "
        "(TRL mixes every parameter of a second model)",
        "scores computed beforehand are refused: they belong to a reference that never moves",
    ),
    needs=frozenset({"reference"}),
    parity=("text_tr_dpo_sync",),
    official_code="trl 1.16.0, trl/trainer/callbacks.py SyncRefModelCallback",
    status="parity",
    taxonomy=Taxonomy(constraint="moving reference", model_property="likelihood"),
    fixes="stability",
    on_errors="outside",
)

_ACCELERATED = Method(
    name="accelerated_po",
    title="Accelerated Preference Optimization for Large Language Model Alignment",
    paper="2410.06293",
    year=2024,
    objective="dpo",
    rollout="the policy, anew in every round",
    function=f"{_RULES}.extrapolate",
    formula="in a round: loss = DPO against the policy the round started from, result trained_t\n"
    "between rounds: next start = trained_t + coefficient * (trained_t - trained_(t-1))",
    needs=frozenset({"reference"}),
    status="experimental",
    unverified="the idea is the abstract's; the extrapolation of weights (exact for policies log-linear in "
    "them) and the schedule of the coefficient were not checked in the paper. Its short name APO also means "
    "anchored preference optimisation (apo_zero, apo_down)",
    taxonomy=Taxonomy(framework="online", constraint="moving reference"),
    fixes="exploration",
    on_errors="outside",
)

_OFS = Method(
    name="ofs_dpo",
    title="Online DPO: Online Direct Preference Optimization with Fast-Slow Chasing",
    paper="2406.05534",
    year=2024,
    objective="",
    function=f"{_DISTILLATION}.fast_slow_loss",
    formula="margin_m = log-ratio margin of module m against the reference, z_m = beta * margin_m\n"
    "chase = -log sigmoid(z_fast - z_slow)\n"
    "loss of the fast module = -log sigmoid(z_fast) + strength * chase, the slow one detached\n"
    "loss of the slow module = -log sigmoid(z_slow) - strength * chase, the fast one detached\n"
    "the module with the smaller DPO loss takes the fast role",
    needs=frozenset({"reference"}),
    status="experimental",
    unverified="equations 3 to 6 were read as an independent implementation cites them, not in the paper; "
    "its numbers and the rule for exchanging the roles are not known",
    taxonomy=Taxonomy(framework="online", model_property="likelihood"),
    fixes="stability",
)

_COFS = Method(
    name="cofs_dpo",
    title="Online DPO: Online Direct Preference Optimization with Fast-Slow Chasing",
    paper="2406.05534",
    year=2024,
    objective="dpo",
    function=f"{_RULES}.merge_weights",
    formula="in a domain: loss = DPO (or ofs_dpo), result: the fast module of that domain\n"
    "between domains: module = sum over domains of coefficient_d * module_d",
    needs=frozenset({"reference"}),
    status="experimental",
    unverified="that fast modules are combined linearly is the abstract's; how the coefficients are found is "
    "not known, give them",
    taxonomy=Taxonomy(framework="online", model_property="robustness"),
    fixes="objectives",
    on_errors="outside",
)

_NASH_MD = Method(
    name="nash_md",
    title="Nash Learning from Human Feedback",
    paper="2312.00886",
    year=2023,
    objective="",
    rollout="one answer of the policy, one of the geometric mixture policy^(1 - c) * reference^c",
    function="mmalign.objectives.policy_gradient.nash_md_loss",
    formula="log_ratio_t = log-probability of token t under the policy - under the reference\n"
    "loss = beta * sum_t stop(log_ratio_t) * log p_t - (P(answer beats its rival) - 1/2) * sum_t log p_t\n"
    "with penalty_credit sequence, every token is charged the sum of all log-ratios",
    departures=(
        "the credit of the KL part is an explicit choice: token (TRL; biased, no token is charged for what "
        "follows it) or sequence (an unbiased estimate)",
        "mixture_coef is on the reference, as in TRL",
    ),
    needs=frozenset({"reference"}),
    parity=("text_nash_md", "text_geometric_mixture"),
    official_code="huggingface/trl f2cd5771, trl/experimental/nash_md/nash_md_trainer.py",
    status="parity",
    taxonomy=Taxonomy(framework="online"),
    fixes="exploration",
    refuses={
        "elbo": "needs the log-probability of what was sampled; an error is none",
        "inversion": "needs the log-probability of what was sampled, step by step",
    },
)

_DCKD = Method(
    name="dckd",
    title="Advantage-Guided Distillation for Preference Alignment in Small Language Models",
    paper="2502.17927",
    year=2025,
    objective="",
    reference="none",
    function=f"{_DISTILLATION}.dckd_loss",
    formula="loss = nll(chosen) + strength * (KL on chosen + KL on rejected)\n"
    "KL = mean over the answer's tokens of KL(teacher || student) of the next token",
    departures=(
        "the mean is over the tokens of one answer (official: of the whole micro-batch), so that rows do not "
        "depend on their batch mates",
        "student probabilities have no floor (official: 1e-7, where their gradient vanishes)",
    ),
    official_code="SLIT-AI/ADPA, scripts/run_distill_dpo.py",
    taxonomy=Taxonomy(data="pairwise, token", framework="supervised", constraint="forward KL to a teacher"),
    fixes="credit",
    refuses=_NO_VOCABULARY,
)

_ADPA = Method(
    name="adpa",
    title="Advantage-Guided Distillation for Preference Alignment in Small Language Models",
    paper="2502.17927",
    year=2025,
    objective="",
    reference="none",
    rollout="one answer of the student, before training, in the place of the rejected one",
    function=f"{_DISTILLATION}.adpa_loss",
    formula="advantage(v) = log p of v under the aligned teacher - under the teacher before alignment\n"
    "loss = nll(chosen) - strength * mean over tokens of sum_v p_student(v) * advantage(v)",
    departures=(
        "the advantage is over the whole vocabulary with both probabilities at least `floor` (official: the "
        "aligned teacher's most likely tokens, 1e-7)",
        "the mean is over the tokens of one answer (official: of the whole micro-batch)",
        "the importance weight p_student / p_start of the answer, off by default there, is left out",
    ),
    official_code="SLIT-AI/ADPA, scripts/run_distill_dpo.py, utils/merge_logits_adpa_dataset.py",
    taxonomy=Taxonomy(data="pairwise, token", framework="online", constraint="none"),
    fixes="credit",
    refuses=_NO_VOCABULARY,
)

_ALIGNDISTIL = Method(
    name="aligndistil",
    title="AlignDistil: Token-Level Language Model Alignment as Adaptive Policy Distillation",
    paper="2503.02832",
    year=2025,
    objective="",
    rollout="the policy",
    function=f"{_DISTILLATION}.aligndistil_loss",
    formula="teacher = softmax(base + extrapolation * (aligned - contrast)), logits of three models\n"
    "loss = mean over tokens of KL(student || teacher) of the next token",
    needs=frozenset({"reference"}),
    status="experimental",
    unverified="that the optimum under DPO's reward is such a teacher is derived and tested here; its "
    "rule for one extrapolation per token, and which logits its contrastive teacher starts from, are not",
    taxonomy=Taxonomy(data="pairwise, token", framework="online"),
    fixes="credit",
    refuses=_NO_VOCABULARY,
)

_SAMI = Method(
    name="sami",
    title="Self-Supervised Alignment with Mutual Information: Learning to Follow Principles without "
    "Preference Labels",
    paper="2404.14313",
    year=2024,
    objective="",
    reference="none",
    data="lists",
    rollout="one answer per constitution, of the policy or a stronger model",
    function=f"{_DISTILLATION}.sami_loss",
    formula="s_ij = mean log-probability of answer j under constitution i\n"
    "loss = -1/2 * mean_i (log softmax of row i at i + log softmax of column i at i)",
    departures=("the official trainer can add beta * KL to the reference; its released run has beta 0",),
    official_code="janphilippfranken/sami 1208371, src/sami/trainers/sami_trainer.py",
    taxonomy=Taxonomy(data="listwise", framework="self-play", constraint="none"),
    fixes="exploration",
    on_errors="reference_free",
)

_SCIR = Method(
    name="scir",
    title="Self-Consistency of the Internal Reward Models Improves Self-Rewarding Language Models",
    paper="2502.08922",
    year=2025,
    objective="dpo",
    rollout="the policy",
    function=f"{_DISTILLATION}.scir_penalty",
    formula="p_k = probability with which judge k of the same model prefers the first answer\n"
    "penalty = mean over pairs of judges of (KL(p_j || p_k) + KL(p_k || p_j)) / 2 "
    "+ confidence * mean entropy\n"
    "loss = DPO on the pairs on which all judges agree (are_consistent) + penalty on all pairs",
    needs=frozenset({"reference"}),
    status="experimental",
    unverified="summaries name a symmetric KL and an entropy term; the equation and its weights were not "
    "checked in the paper",
    taxonomy=Taxonomy(framework="self-play", model_property="calibration"),
    fixes="label_noise",
    on_errors="pointwise",
)

ROWS: tuple[Method, ...] = (
    _ACCELERATED,
    _ADPA,
    _ALIGNDISTIL,
    _COFS,
    _DCKD,
    _NASH_MD,
    _OFS,
    _SAMI,
    _SCIR,
    _TR_DPO,
)
