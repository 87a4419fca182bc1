"""How the golden text cases call the public interface.

No formula stands here: what is computed is computed by mmalign. Hyperparameters come from the case, so that
another folder with other values runs through the same adapters.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.objectives import (
    Objective,
    ObjectiveOutput,
    Scores,
)
from mmalign.testing.parity import Case

Results = dict[str, Tensor]
Build = Callable[[Case], Objective]

_LOGGED = (
    "logged_reward_chosen_mean",
    "logged_reward_rejected_mean",
    "logged_reward_accuracy",
    "logged_reward_margin",
)


def pair(case: Case, chosen: str, rejected: str) -> Tensor:
    return torch.stack([case[chosen], case[rejected]], dim=1)


def token_scores(case: Case, **more: Tensor) -> Scores:
    """Token-level pairs: [pair, candidate, token] and their mask."""
    return Scores(
        policy=pair(case, "policy_chosen_token_logps", "policy_rejected_token_logps"),
        reference=pair(case, "ref_chosen_token_logps", "ref_rejected_token_logps"),
        mask=pair(case, "chosen_mask", "rejected_mask"),
        **more,
    )


def sequence_scores(case: Case, **more) -> Scores:
    """Sequence-level pairs: [pair, candidate]; the reference only where the case has one."""
    reference = (
        pair(case, "ref_chosen_logps", "ref_rejected_logps") if "ref_chosen_logps" in case.inputs else None
    )
    length = pair(case, "chosen_length", "rejected_length") if "chosen_length" in case.inputs else None
    reward = (
        pair(case, "chosen_external_reward", "rejected_external_reward")
        if "chosen_external_reward" in case.inputs
        else None
    )
    policy = pair(case, "policy_chosen_logps", "policy_rejected_logps")
    return Scores(policy=policy, reference=reference, length=length, reward=reward, **more)


def run(objective: Objective, scores: Scores) -> ObjectiveOutput:
    return objective(scores, Labels.pairs(scores.policy.shape[0]))


def tokens(build: Build) -> Callable[[Case], Results]:
    """An adapter of a token-level case: the loss and what the library logs."""

    def adapter(case: Case) -> Results:
        out = run(build(case), token_scores(case))
        chosen, rejected = out.metrics["reward_chosen"], out.metrics["reward_rejected"]
        accuracy = out.metrics["accuracy"].float().mean()  # the library counts in float32
        logged = (chosen.mean(), rejected.mean(), accuracy, (chosen - rejected).mean())
        found = {"loss": out.loss.mean(), **dict(zip(_LOGGED, logged, strict=True))}
        skipped = LEFT_OUT.get(case.name, {})
        return {name: value for name, value in found.items() if name not in skipped}

    return adapter


def sequences(build: Build) -> Callable[[Case], Results]:
    """An adapter of a sequence-level case: losses per pair and their mean."""

    def adapter(case: Case) -> Results:
        out = run(build(case), sequence_scores(case))
        return {"losses": out.loss, "loss": out.loss.mean()}

    return adapter


def orpo_logits(case: Case) -> Results:
    """TRL's ORPO from logits: log-probabilities of the labels, the supervised term over prompt and answer."""
    logits, ids = case["policy_logits"][:, :-1].log_softmax(-1), case["input_ids"][:, 1:].long()
    taken = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    answer = (case["labels"][:, 1:] != -100).to(taken.dtype)
    whole = case["attention_mask"][:, 1:].to(taken.dtype)
    pairs, chosen = len(ids) // 2, slice(0, len(ids) // 2)
    scores = Scores(
        policy=torch.stack([taken[:pairs], taken[pairs:]], dim=1),
        mask=torch.stack([answer[:pairs], answer[pairs:]], dim=1),
        extras={
            "whole_score": (taken * whole)[chosen].sum(-1),
            "whole_length": whole[chosen].sum(-1),
        },
    )
    out = run(objectives.orpo(beta=beta_of(case), normaliser="whole_mean"), scores)
    return {
        "loss": out.loss.mean(),
        "nll_loss": out.terms["nll"].mean(),
        "logps_chosen_mean": out.metrics["score_chosen"].mean(),
        "logps_rejected_mean": out.metrics["score_rejected"].mean(),
    }


def sft_chosen(case: Case) -> Results:
    return {"loss": run(objectives.sft(normaliser="batch_mean"), token_scores(case)).loss.mean()}


def kto(case: Case) -> Results:
    given = case.hyperparameters
    objective = objectives.kto(
        beta=given["beta"],
        desirable_weight=given["desirable_weight"],
        undesirable_weight=given["undesirable_weight"],
        zero_point="mismatched",
    )
    mismatched = Scores(
        policy=case["kl_policy_token_logps"].unsqueeze(1),
        reference=case["kl_ref_token_logps"].unsqueeze(1),
        mask=case["kl_mask"].unsqueeze(1),
    )
    labels = Labels.unpaired(torch.ones(mismatched.policy.shape[0], dtype=torch.bool))
    log_ratio = objectives.kto(beta=1.0)(mismatched, labels).metrics["log_ratio_chosen"]
    scores = Scores(
        policy=case["policy_token_logps"].unsqueeze(1),
        reference=case["ref_token_logps"].unsqueeze(1),
        mask=case["mask"].unsqueeze(1),
        extras={"mismatched_log_ratio": log_ratio},
    )
    return {"loss": objective(scores, Labels.unpaired(case["label_desirable"])).loss.mean()}


def dpo_reference_free(case: Case) -> Results:
    return sequences(lambda c: objectives.dpo_reference_free(beta=c.hyperparameters["beta"]))(case)


def _simpo_gamma(case: Case) -> float:
    return case.hyperparameters["gamma_beta_ratio"] * case.hyperparameters["beta"]


def simpo(case: Case) -> Objective:
    given = case.hyperparameters
    return objectives.simpo(
        beta=given["beta"], gamma=_simpo_gamma(case), label_smoothing=given["label_smoothing"]
    )


def beta_of(case: Case) -> float:
    return case.hyperparameters["beta"]


def given(case: Case, name: str) -> float:
    return case.hyperparameters[name]


def rewarded_list(build: Build) -> Callable[[Case], Results]:
    """An adapter of lists with external scores; the release lifts candidate 0 by 0.01, as its data pipeline
    does."""

    def adapter(case: Case) -> Results:
        lifted = case["scores"].clone()
        lifted[:, 0] += 0.01
        scores = Scores(case["policy_logps"], case["ref_logps"], reward=lifted)
        return {"loss": build(case)(scores, Labels()).loss.mean()}

    return adapter


def ranked_list(case: Case) -> Results:
    """One list, best first."""
    scores = Scores(case["policy_logps"].unsqueeze(0), case["ref_logps"].unsqueeze(0))
    objective = objectives.plackett_luce_dpo(beta=beta_of(case), aggregate=given(case, "reduction"))
    return {"loss": objective(scores, Labels()).loss.sum()}


def lipo_lambda(case: Case) -> Results:
    scores = Scores(case["policy_logps"].unsqueeze(0), case["ref_logps"].unsqueeze(0))
    labels = Labels(relevance=case["labels"].unsqueeze(0))
    objective = objectives.lipo_lambda(beta=beta_of(case), aggregate=given(case, "reduction"))
    return {"loss": objective(scores, labels).loss.sum()}


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "text_dpo": tokens(lambda case: objectives.dpo(beta=beta_of(case))),
    "text_dpo_sigmoid_norm": tokens(lambda case: objectives.dpo(beta=beta_of(case), reduction="mean")),
    "text_dpo_hinge": tokens(lambda case: objectives.hinge(beta=beta_of(case))),
    "text_ipo": tokens(lambda case: objectives.ipo(tau=beta_of(case), reduction="mean")),
    "text_ipo_sum": sequences(lambda case: objectives.ipo(tau=beta_of(case), reduction="sum")),
    "text_rdpo_robust": tokens(
        lambda case: objectives.robust_dpo(
            beta=beta_of(case), label_smoothing=case.hyperparameters["label_smoothing"]
        )
    ),
    "text_cdpo_label_smoothing": sequences(
        lambda case: objectives.cdpo(
            beta=beta_of(case), label_smoothing=case.hyperparameters["label_smoothing"]
        )
    ),
    "text_dpo_reference_free": dpo_reference_free,
    "text_simpo": sequences(simpo),
    "text_simpo_hinge": sequences(
        lambda case: objectives.simpo_hinge(beta=beta_of(case), gamma=_simpo_gamma(case))
    ),
    "text_sft_chosen": sft_chosen,
    "text_orpo": orpo_logits,
    "text_orpo_llamafactory": sequences(lambda case: objectives.orpo(beta=beta_of(case))),
    "text_kto": kto,
    "text_apo_zero": tokens(lambda case: objectives.apo_zero(beta=beta_of(case))),
    "text_apo_down": tokens(lambda case: objectives.apo_down(beta=beta_of(case))),
    "text_bco_pair_nodelta": tokens(lambda case: objectives.bco_pair(beta=beta_of(case))),
    "text_nca_biased_pair": sequences(lambda case: objectives.bco_pair(beta=beta_of(case))),
    "text_nca_pair": tokens(lambda case: objectives.nca_pair(beta=beta_of(case))),
    "text_sppo_hard": tokens(lambda case: objectives.sppo_hard(beta=beta_of(case))),
    "text_exo_pair": tokens(
        lambda case: objectives.exo_pair(beta=beta_of(case), label_smoothing=given(case, "label_smoothing"))
    ),
    "text_aot": tokens(lambda case: objectives.aot(beta=beta_of(case))),
    "text_aot_unpaired": tokens(lambda case: objectives.aot_unpaired(beta=beta_of(case))),
    "text_discopop": tokens(
        lambda case: objectives.discopop(beta=beta_of(case), temperature=given(case, "discopop_tau"))
    ),
    "text_fdpo_forward_kl": tokens(lambda case: objectives.fdpo_forward_kl(beta=beta_of(case))),
    "text_fdpo_js": tokens(lambda case: objectives.fdpo_js(beta=beta_of(case))),
    "text_fdpo_alpha": tokens(
        lambda case: objectives.fdpo_alpha(
            beta=beta_of(case), alpha=1 - given(case, "f_alpha_divergence_coef")
        )
    ),
    "text_fdpo_forward_kl_official": sequences(lambda case: objectives.fdpo_forward_kl(beta=beta_of(case))),
    "text_fdpo_js_official": sequences(lambda case: objectives.fdpo_js(beta=beta_of(case))),
    "text_fdpo_alpha_official": sequences(
        lambda case: objectives.fdpo_alpha(beta=beta_of(case), alpha=given(case, "alpha"))
    ),
    "text_dpo_cauchy": sequences(lambda case: objectives.dpo_cauchy(beta=beta_of(case))),
    "text_dpo_shift": sequences(
        lambda case: objectives.dpo_shift(beta=beta_of(case), shift=given(case, "lambda"))
    ),
    "text_dpop": sequences(lambda case: objectives.dpop(beta=beta_of(case), penalty=given(case, "lambda"))),
    "text_length_dpo": sequences(
        lambda case: objectives.length_dpo(beta=beta_of(case), alpha=given(case, "lambda"))
    ),
    "text_length_rdpo_minus": sequences(
        lambda case: objectives.length_dpo(
            beta=beta_of(case), alpha=-beta_of(case) * given(case, "gamma_beta_ratio")
        )
    ),
    "text_rainbow_mixed_reference": sequences(
        lambda case: objectives.rainbow_mixed_reference(
            beta=beta_of(case), mixing=given(case, "mixing_alpha"), margin=given(case, "home_advantage")
        )
    ),
    "text_slic": sequences(
        lambda case: objectives.slic(margin=beta_of(case), coefficient=given(case, "lambda_coef"))
    ),
    "text_infonca_listwise": rewarded_list(
        lambda case: objectives.infonca(beta=beta_of(case), temperature=given(case, "temperature_alpha"))
    ),
    "text_nca_listwise": rewarded_list(
        lambda case: objectives.nca(beta=beta_of(case), temperature=given(case, "temperature_alpha"))
    ),
    "text_plackett_luce_dpo": ranked_list,
    "text_lipo_lambda": lipo_lambda,
}

_SHAPED = dict.fromkeys(_LOGGED, "the library logs the log-ratio, whatever the shape")
_OTHER_UNIT = dict.fromkeys(_LOGGED, "the library logs beta times the sum; ours is in the term's own unit")
_SUPERVISED = dict.fromkeys(_LOGGED, "a supervised loss has no reward of ours")
LEFT_OUT: dict[str, dict[str, str]] = {
    "text_ipo": _OTHER_UNIT,
    "text_dpo_sigmoid_norm": _OTHER_UNIT,
    "text_sft_chosen": _SUPERVISED,
    "text_sppo_hard": _OTHER_UNIT,
    "text_kto": {"kl": "the zero point is a part of the loss, not an output"},
}
