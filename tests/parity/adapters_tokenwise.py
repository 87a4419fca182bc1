"""How the golden cases of token-aware methods call the public interface.

No formula stands here. Every hyperparameter is read from the case.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.likelihood import sum_by_segment, token_log_probs, vocabulary_kl
from mmalign.likelihood.token_statistics import IGNORED
from mmalign.objectives import Objective, ObjectiveOutput, Scores
from mmalign.objectives.reductions import reduce_inner
from mmalign.testing.parity import Case

Results = dict[str, Tensor]
Build = Callable[[Case], Objective]

_LOGGED = (
    "logged_reward_chosen_mean",
    "logged_reward_rejected_mean",
    "logged_reward_accuracy",
    "logged_reward_margin",
)


def sides(values: Tensor) -> Tensor:
    """Chosen rows, then rejected rows, as [pair, candidate, ...]."""
    return torch.stack(values.chunk(2), dim=1)


def rows(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Back to the order of the files."""
    return torch.cat([chosen, rejected])


def given(case: Case, name: str) -> float:
    return case.hyperparameters[name]


def beta_of(case: Case) -> float:
    return given(case, "beta")


def run(objective: Objective, scores: Scores) -> ObjectiveOutput:
    return objective(scores, Labels.pairs(scores.policy.shape[0]))


def logit_scores(case: Case, reference: str = "ref_logits", **more: Tensor) -> Scores:
    """Token-level pairs from the logits of both models."""
    labels, ignored = case["labels"].long(), case.hyperparameters.get("label_pad", IGNORED)
    policy, mask = token_log_probs(case["policy_logits"], labels, ignored=ignored)
    reference_scores, _ = token_log_probs(case[reference], labels, ignored=ignored)
    return Scores(sides(policy), sides(reference_scores), mask=sides(mask), **more)


def position_kl(case: Case, reference: str = "ref_logits") -> Tensor:
    return vocabulary_kl(case[reference], case["policy_logits"])[:, :-1]


def pair(case: Case, name: str) -> Tensor:
    """`name` with {} for the two sides."""
    return torch.stack([case[name.format(side)] for side in ("chosen", "rejected")], dim=1)


def token_scores(case: Case, **more: Tensor) -> Scores:
    """Token-level pairs from log-probabilities."""
    mask = pair(case, "{}_mask") if "chosen_mask" in case.inputs else None
    policy, reference = pair(case, "policy_{}_token_logps"), pair(case, "ref_{}_token_logps")
    return Scores(policy, reference, mask=mask, **more)


def tdpo(build: Build) -> Callable[[Case], Results]:
    def adapter(case: Case) -> Results:
        scores = logit_scores(case)
        kl = sides(position_kl(case))
        out = run(build(case), replace(scores, kl=kl))
        total = reduce_inner(kl, scores.mask, "sum")
        return {
            "losses": out.loss,
            "loss": out.loss.mean(),
            "logps_margin": rows(out.metrics["log_ratio_chosen"], out.metrics["log_ratio_rejected"]),
            "position_kl": rows(*total.unbind(1)),
        }

    return adapter


def scores_of(out: ObjectiveOutput) -> Tensor:
    return rows(out.metrics["score_chosen"], out.metrics["score_rejected"])


def weighted(objective: Objective, scores: Scores) -> Results:
    """Losses, and what policy and reference score under the method's weights."""
    out = run(objective, scores)
    reference = run(objective, replace(scores, policy=scores.reference))
    return {
        "losses": out.loss,
        "loss": out.loss.mean(),
        "policy_logps": scores_of(out),
        "ref_logps": scores_of(reference),
    }


def sampo(case: Case) -> Results:
    kept = sides(case["kept_token_mask"])
    return weighted(objectives.sampo(beta=beta_of(case)), logit_scores(case, extras={"kept_positions": kept}))


def d2po_temporal_decay(case: Case) -> Results:
    objective = objectives.d2po_temporal_decay(beta=beta_of(case), gamma=given(case, "gamma"))
    return weighted(objective, logit_scores(case))


def ld_dpo_policy_only(case: Case) -> Results:
    scores = logit_scores(case)
    out = run(objectives.ld_dpo_policy_only(beta=beta_of(case), alpha=given(case, "ld_alpha")), scores)
    return {
        "losses": out.loss,
        "loss": out.loss.mean(),
        "policy_logps": scores_of(out),
        "ref_logps": rows(*reduce_inner(scores.reference, scores.mask, "sum").unbind(1)),
    }


def trl(build: Build) -> Callable[[Case], Results]:
    """The loss, and what TRL logs where it has our unit."""

    def adapter(case: Case) -> Results:
        out = run(build(case), token_scores(case))
        chosen, rejected = out.metrics["reward_chosen"], out.metrics["reward_rejected"]
        accuracy = out.metrics["accuracy"].float().mean()  # the library counts in float32
        logged = (chosen.mean(), rejected.mean(), accuracy, (chosen - rejected).mean())
        found = {"loss": out.loss.mean(), **dict(zip(_LOGGED, logged, strict=True))}
        return {name: value for name, value in found.items() if name not in LEFT_OUT.get(case.name, {})}

    return adapter


def tgdpo(case: Case) -> Results:
    extras = {"reward_model_score": pair(case, "reward_model_{}_token_logps")}
    objective = objectives.tgdpo(beta=beta_of(case), alpha=given(case, "tgdpo_alpha"))
    out = run(objective, token_scores(case, extras=extras))
    return {"losses": out.loss, "loss": out.loss.mean()}


def sparsepo_mask(case: Case) -> Results:
    """The file's divergence is negative, and its mask holds the completion's. Both rows give its numbers."""
    mask = pair(case, "{}_mask_weights")
    extras = {"reward_mask": mask, "kl_mask": mask, "token_mask": mask}
    scores = Scores(
        pair(case, "policy_{}_token_logps"),
        pair(case, "ref_{}_token_logps"),
        kl=-pair(case, "{}_token_neg_kl"),
        extras=extras,
    )
    fixed = run(objectives.mapo_masked(beta=beta_of(case)), scores)
    learned = run(objectives.sparsepo(beta=beta_of(case)), scores)
    return {"losses": learned.loss, "loss": fixed.loss.mean()}


def rrpo(case: Case) -> Results:
    signs = case["signs"].long()[:, 1:]
    kl = sides(position_kl(case, "reference_logits"))
    scores = logit_scores(case, "reference_logits", kl=kl, extras={"phrase": sides(signs > 0).to(kl)})
    out = run(objectives.rrpo(beta=beta_of(case), alpha=given(case, "alpha")), scores)
    log_ratio = torch.where(scores.mask, scores.policy - scores.reference, 0.0)
    return {
        "losses": out.loss,
        "loss": out.loss.mean(),
        "chosen_rewards": out.metrics["reward_chosen"],
        "rejected_rewards": out.metrics["reward_rejected"],
        "phrase_logratios": rows(*sum_by_segment(log_ratio, sides(signs), int(signs.max())).unbind(1)),
        "position_kl_ref_policy": rows(*reduce_inner(kl, scores.mask, "sum").unbind(1)),
        "sum_logps": rows(*reduce_inner(scores.policy, scores.mask, "sum").unbind(1)),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "rrpo": rrpo,
    "text_d2po_temporal_decay": d2po_temporal_decay,
    "text_fdpo_js_ipo": trl(lambda case: objectives.fdpo_js_ipo(tau=beta_of(case))),
    "text_ld_dpo": trl(lambda case: objectives.ld_dpo(beta=beta_of(case), alpha=given(case, "ld_alpha"))),
    "text_ld_dpo_policy_only": ld_dpo_policy_only,
    "text_sampo": sampo,
    "text_sparsepo_mask": sparsepo_mask,
    "text_tdpo1": tdpo(lambda case: objectives.tdpo1(beta=beta_of(case))),
    "text_tdpo2": tdpo(lambda case: objectives.tdpo2(beta=beta_of(case), alpha=given(case, "alpha"))),
    "text_tgdpo": tgdpo,
}

_WITH_DIVERGENCE = "the official code adds the divergence to the rewards that it logs"
LEFT_OUT: dict[str, dict[str, str]] = {
    "text_fdpo_js_ipo": dict.fromkeys(
        _LOGGED, "the library logs beta times the sum; ours is in the term's own unit"
    ),
    **{
        name: dict.fromkeys(("logged_chosen_rewards", "logged_rejected_rewards"), _WITH_DIVERGENCE)
        for name in ("text_tdpo1", "text_tdpo2")
    },
}
