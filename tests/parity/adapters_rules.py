"""How the golden cases of reference rules and score-function losses call the public interface."""

from collections.abc import Callable

from torch import Tensor

from mmalign.likelihood.reference_rules import SyncRule, geometric_mixture
from mmalign.objectives.policy_gradient import nash_md_loss
from mmalign.testing.parity import Case


def tr_dpo_sync(case: Case) -> dict[str, Tensor]:
    names = [name.removeprefix("ref_") for name in case.inputs if name.startswith("ref_")]
    sides = {side: {name: case[f"{side}_{name}"] for name in names} for side in ("ref", "policy")}
    rule = SyncRule(every=1, mixing=case.hyperparameters["ref_model_mixup_alpha"])
    moved = rule.updated(sides["ref"], sides["policy"], step=1)
    return {f"ref_{name}_after": value for name, value in moved.items()}


def mixture(case: Case) -> dict[str, Tensor]:
    mixed = geometric_mixture(
        case["policy_logits"], case["ref_logits"], mixture_coef=case.hyperparameters["mixture_coef"]
    )
    return {"mixture_log_probs": mixed}


def nash_md(case: Case) -> dict[str, Tensor]:
    out = nash_md_loss(
        case["policy_logps_on_policy_sample"],
        case["ref_logps_on_policy_sample"],
        case["win_probability"],
        beta=case.hyperparameters["beta"],
        penalty_credit="token",
    )
    return {"loss": out.loss.mean(), "score": out.score}


ADAPTERS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "text_geometric_mixture": mixture,
    "text_nash_md": nash_md,
    "text_tr_dpo_sync": tr_dpo_sync,
}
LEFT_OUT: dict[str, dict[str, str]] = {}
