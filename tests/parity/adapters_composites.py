"""Golden cases of `composites.py`, `online.py`, `pointwise.py`, `binary_classifier.py`, `humanline.py` and
`regression.py`; no formula stands here."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.objectives import Objective, ObjectiveOutput, ObjectiveState, Scores
from mmalign.testing.parity import Case

Results = dict[str, Tensor]


def given(case: Case, name: str) -> float:
    return case.hyperparameters[name]


def pair(case: Case, chosen: str, rejected: str) -> Tensor:
    return torch.stack([case[chosen], case[rejected]], dim=1)


def sequences(case: Case, **extras: Tensor) -> Scores:
    """Pairs of reduced log-probabilities."""
    return Scores(
        policy=pair(case, "policy_chosen_logps", "policy_rejected_logps"),
        reference=pair(case, "ref_chosen_logps", "ref_rejected_logps"),
        extras=extras,
    )


def tokens(case: Case) -> Scores:
    """Pairs of log-probabilities per token, with their mask."""
    return Scores(
        policy=pair(case, "policy_chosen_token_logps", "policy_rejected_token_logps"),
        reference=pair(case, "ref_chosen_token_logps", "ref_rejected_token_logps"),
        mask=pair(case, "chosen_mask", "rejected_mask"),
    )


def run(objective: Objective, scores: Scores) -> ObjectiveOutput:
    return objective(scores, Labels.pairs(scores.policy.shape[0]))


def per_pair(out: ObjectiveOutput) -> Results:
    return {"losses": out.loss, "loss": out.loss.mean()}


def sppo(case: Case) -> Results:
    won = pair(case, "chosen_probs_win", "chosen_probs_lose")
    objective = objectives.sppo(beta=given(case, "beta"))
    return per_pair(run(objective, sequences(case, win_probability=won)))


def sppo_single(case: Case) -> Results:
    labels = Labels(probability=case["chosen_probs"])
    return per_pair(objectives.sppo_single(beta=given(case, "beta"))(sequences(case), labels))


def a2po_regression(case: Case) -> Results:
    scores = Scores(
        policy=case["policy_logps"].unsqueeze(1),
        reference=case["ref_logps"].unsqueeze(1),
        reward=case["rewards"].unsqueeze(1),
        extras={"optimal_value": case["v_star"].unsqueeze(1)},
    )
    return {"loss": objectives.a2po_regression(beta=given(case, "beta2"))(scores, Labels()).loss.mean()}


def apo_zero_unpaired(case: Case) -> Results:
    scores = Scores(
        policy=case["policy_token_logps"].unsqueeze(1),
        reference=case["ref_token_logps"].unsqueeze(1),
        mask=case["mask"].unsqueeze(1),
    )
    objective = objectives.apo_zero_unpaired(
        beta=given(case, "beta"),
        desirable_weight=given(case, "desirable_weight"),
        undesirable_weight=given(case, "undesirable_weight"),
    )
    return {"loss": objective(scores, Labels.unpaired(case["label_desirable"])).loss.mean()}


def bco_running_delta(case: Case) -> Results:
    """Consecutive steps with one state; each step's losses carry its own gradient."""
    objective = objectives.bco(beta=given(case, "beta"), delta_rule="running_samples")
    state, found = ObjectiveState(), {}
    for step in range(int(given(case, "steps"))):
        sides = [case[f"step{step}_policy_{role}_logps"] for role in ("desirable", "undesirable")]
        policy = torch.cat(sides).detach().unsqueeze(1).requires_grad_()
        reference = torch.cat([case[f"step{step}_ref_{role}_logps"] for role in ("desirable", "undesirable")])
        liked = torch.arange(policy.shape[0]) < sides[0].shape[0]
        loss = objective(Scores(policy, reference.unsqueeze(1)), Labels.unpaired(liked), state).loss
        (gradient,) = torch.autograd.grad(loss.mean(), policy)
        found |= {
            f"step{step}_losses": loss,
            f"step{step}_delta": state.values["zero_point.mean"],
            f"step{step}_grad_desirable": gradient[liked, 0],
            f"step{step}_grad_undesirable": gradient[~liked, 0],
        }
    return found


def bco_pair_delta_mix(case: Case) -> Results:
    objective = objectives.bco_pair_delta_mix(
        beta=given(case, "beta"), weight=given(case, "pref_bco_weight"), delta_rule="running_batches"
    )
    state, scores = ObjectiveState(), sequences(case)
    out = objective(scores, Labels.pairs(scores.policy.shape[0]), state)
    return {**per_pair(out), "delta": state.values["term2.zero_point.mean"]}


def kto_pair_legacy(case: Case) -> Results:
    """The release lists both sides one after the other; ours halves them to one loss per pair."""
    out = run(2 * objectives.kto_pair_legacy(beta=given(case, "beta")), sequences(case))
    losses = torch.cat([out.terms["chosen"], out.terms["rejected"]])
    return {"losses": losses, "loss": losses.mean()}


def humanline_dpo(case: Case) -> Results:
    objective = objectives.humanline_dpo(
        beta=given(case, "beta"), low=given(case, "log_epsilon_P"), high=given(case, "log_epsilon_R")
    )
    return per_pair(run(objective, tokens(case)))


def dpo_plus_sft_seqavg(case: Case) -> Results:
    """Sums with lengths, laid out as that many equal tokens."""
    length = pair(case, "chosen_length", "rejected_length")
    mask = torch.arange(int(length.max())) < length.unsqueeze(2)

    def spread(total: Tensor) -> Tensor:
        return (total / length).unsqueeze(2).expand(mask.shape)

    flat = sequences(case)
    scores = Scores(spread(flat.policy), spread(flat.reference), mask)
    objective = objectives.rpo_sft(
        beta=given(case, "beta"), coefficient=given(case, "lambda"), normaliser="sequence_mean"
    )
    return per_pair(run(objective, scores))


def mixed(case: Case) -> Objective:
    """TRL's list of loss types: the named mix where it is that, otherwise a sum of rows."""
    beta, more = given(case, "beta"), case.hyperparameters
    kinds = more["loss_type"]
    weights = dict(zip(kinds, more["loss_weights"], strict=True))
    if sorted(kinds) == ["bco_pair", "sft", "sigmoid"]:
        return objectives.mpo(
            beta=beta,
            delta_rule="none",
            normaliser="batch_mean",
            preference=weights["sigmoid"],
            quality=weights["bco_pair"],
            generation=weights["sft"],
        )
    if sorted(kinds) == ["sft", "sigmoid"] and weights["sigmoid"] == 1:
        return objectives.rpo_sft(beta=beta, coefficient=weights["sft"], normaliser="batch_mean")
    makers: dict[str, Callable[[], Objective]] = {
        "sigmoid": lambda: objectives.dpo(beta=beta),
        "sigmoid_norm": lambda: objectives.dpo(beta=beta, reduction="mean"),
        "hinge": lambda: objectives.hinge(beta=beta),
        "ipo": lambda: objectives.ipo(tau=beta, reduction="mean"),
        "exo_pair": lambda: objectives.exo_pair(beta=beta, label_smoothing=more["label_smoothing"]),
        "robust": lambda: objectives.robust_dpo(beta=beta, label_smoothing=more["label_smoothing"]),
        "bco_pair": lambda: objectives.bco_pair(beta=beta),
        "nca_pair": lambda: objectives.nca_pair(beta=beta),
        "sppo_hard": lambda: objectives.sppo_hard(beta=beta),
        "apo_zero": lambda: objectives.apo_zero(beta=beta),
        "apo_down": lambda: objectives.apo_down(beta=beta),
        "aot": lambda: objectives.aot(beta=beta, label_smoothing=more.get("label_smoothing", 0.0)),
        "aot_unpaired": lambda: objectives.aot_unpaired(
            beta=beta, label_smoothing=more.get("label_smoothing", 0.0)
        ),
        "discopop": lambda: objectives.discopop(beta=beta, temperature=more["discopop_tau"]),
        "sft": lambda: objectives.sft(normaliser="batch_mean"),
    }
    parts = zip(kinds, more["loss_weights"], strict=True)
    first, *rest = [float(weight) * makers[kind]() for kind, weight in parts]
    return sum(rest, start=first)


def mpo_mix(case: Case) -> Results:
    """The logged rewards are beta times the log-ratio sums, whatever comes first in the mix."""
    out = run(mixed(case), tokens(case))
    logged = run(objectives.dpo(beta=given(case, "beta")), tokens(case)).metrics
    chosen, rejected = logged["reward_chosen"], logged["reward_rejected"]
    return {
        "loss": out.loss.mean(),
        "logged_reward_chosen_mean": chosen.mean(),
        "logged_reward_rejected_mean": rejected.mean(),
        "logged_reward_accuracy": logged["accuracy"].float().mean(),  # the library counts in float32
        "logged_reward_margin": (chosen - rejected).mean(),
    }


def selm(case: Case) -> Results:
    response = case["policy_response_logps"] - case["ref_response_logps"]
    objective = objectives.selm(beta=given(case, "beta"), alpha=given(case, "alpha"))
    return per_pair(run(objective, sequences(case, response_log_ratio=response)))


def xpo(case: Case) -> Results:
    """One sample of the policy and one of the reference per prompt; the judge says which is chosen."""
    own_chosen = case["policy_sample_is_chosen"].reshape(-1, 1, 1)

    def ordered(model: str) -> Tensor:
        both = torch.stack(
            [case[f"{model}_logps_on_policy_sample"], case[f"{model}_logps_on_ref_sample"]], dim=1
        )
        return torch.where(own_chosen, both, both.flip(1))

    explored = case["policy_logps_on_ref_sample"].sum(-1)
    scores = Scores(ordered("policy"), ordered("ref"), extras={"reference_sample_score": explored})
    base = {"sigmoid": "dpo", "ipo": "ipo"}[case.hyperparameters["loss_type"]]
    out = run(objectives.xpo(beta=given(case, "beta"), alpha=given(case, "alpha"), base=base), scores)
    preference, exploration = out.terms.values()
    return {"loss": out.loss.mean(), "dpo_losses": preference, "xpo_losses": exploration}


def rationale_dpo(case: Case) -> Results:
    objective = objectives.rationale_dpo(beta=given(case, "beta"), gamma=given(case, "gamma"))
    return per_pair(run(objective, sequences(case, rationale_score=case["policy_rationale_logps"])))


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "text_sppo": sppo,
    "text_sppo_single": sppo_single,
    "text_a2po_regression": a2po_regression,
    "text_apo_zero_unpaired": apo_zero_unpaired,
    "text_bco_running_delta": bco_running_delta,
    "text_bco_pair_delta_mix": bco_pair_delta_mix,
    "text_kto_pair_legacy": kto_pair_legacy,
    "text_humanline_dpo": humanline_dpo,
    "text_dpo_plus_sft_seqavg": dpo_plus_sft_seqavg,
    "text_mpo_mix": mpo_mix,
    "text_selm": selm,
    "text_xpo": xpo,
    "text_rationale_dpo": rationale_dpo,
}

LEFT_OUT: dict[str, dict[str, str]] = {
    "text_apo_zero_unpaired": {"kl": "apo has no zero point; the library logs 0"},
}
