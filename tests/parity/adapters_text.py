"""How the golden text cases call the public interface.

No formula stands here: what is computed is computed by mmalign. Hyperparameters come from the case, so that
another folder with other values runs through the same adapters.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.objectives import Objective, ObjectiveOutput, Scores
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


TEXT_ADAPTERS: dict[str, Callable[[Case], Results]] = {
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
    "text_orpo_llamafactory": sequences(lambda case: objectives.orpo(beta=beta_of(case))),
    "text_kto": kto,
}

_OTHER_UNIT = dict.fromkeys(_LOGGED, "the library logs beta times the sum; ours is in the term's own unit")
_SUPERVISED = dict.fromkeys(_LOGGED, "a supervised loss has no reward of ours")
LEFT_OUT: dict[str, dict[str, str]] = {
    "text_ipo": _OTHER_UNIT,
    "text_dpo_sigmoid_norm": _OTHER_UNIT,
    "text_sft_chosen": _SUPERVISED,
    "text_kto": {"kl": "the zero point is a part of the loss, not an output"},
}
