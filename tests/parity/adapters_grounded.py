"""How the golden cases of vision-language methods call the public interface."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.batch import Labels
from mmalign.data.changed_tokens import changed_tokens
from mmalign.likelihood.token_statistics import token_log_probs, vocabulary_kl
from mmalign.objectives import (
    Objective,
    ObjectiveOutput,
    Scores,
    grounded,
    pairwise,
    revised_answers,
    segments,
    vision_pairs,
)
from mmalign.objectives.reductions import reduce_inner
from mmalign.testing.parity import Case

Results = dict[str, Tensor]


def stacked(case: Case, model: str, names: tuple[str, ...]) -> Tensor:
    """`{model}_{name}` of every candidate on axis 1."""
    return torch.stack([case[f"{model}_{name}"] for name in names], dim=1)


def scores_of(case: Case, *names: str, **more: object) -> Scores:
    return Scores(stacked(case, "policy", names), stacked(case, "reference", names), **more)


def run(loss: Objective, scores: Scores) -> ObjectiveOutput:
    return loss(scores, Labels.pairs(scores.policy.shape[0]))


def of_term(loss: Objective, name: str, scores: Scores) -> ObjectiveOutput:
    """One term of an objective alone: its logit and rewards."""
    return run(Objective(name, tuple(term for term in loss.terms if term.name == name)), scores)


PAIR = ("chosen_logps", "rejected_logps")


def paired(case: Case, **more: object) -> Scores:
    return scores_of(case, *PAIR, **more)


def rewards(out: ObjectiveOutput) -> Results:
    return {
        "chosen_rewards": out.metrics["reward_chosen"],
        "rejected_rewards": out.metrics["reward_rejected"],
    }


def losses(out: ObjectiveOutput) -> Results:
    return {"losses": out.loss, "loss": out.loss.mean()}


def mdpo(case: Case) -> Results:
    given = case.hyperparameters
    weights = given["weights"]
    scores = scores_of(case, *PAIR, "imageless_chosen_logps")
    if given["reference_free"]:
        scores = Scores(scores.policy, torch.zeros_like(scores.policy))
    loss = grounded.mdpo(
        beta=given["beta"],
        anchor=given["anchor_delta"],
        image_coefficient=weights["image"] / weights["response"],
        anchor_coefficient=weights["anchor"] / weights["response"],
    )
    out = run(weights["response"] * loss, scores)
    imageless = of_term(loss, "image", scores).metrics["reward_rejected"]
    return {**losses(out), **rewards(out), "imageless_rewards": imageless}


def hsa_dpo(case: Case) -> Results:
    given = case.hyperparameters
    severity = torch.stack([case["chosen_score"], case["rejected_score"]], dim=1)
    scores = paired(case, extras={"severity": severity})
    sides = {(False, True): "rejected", (True, False): "chosen", (True, True): "both"}
    used = (given["use_chosen_score"], given["use_rejected_score"])
    loss = (
        vision_pairs.hsa_dpo(beta=given["beta"], sides=sides[used])
        if used in sides
        else pairwise.dpo(beta=given["beta"])
    )
    out = run(loss, scores)
    return {**losses(out), **rewards(out)}


def mm_dpo(case: Case) -> Results:
    given = case.hyperparameters
    scores = paired(case, extras={"temperature_factor": case["ls_factor"]})
    loss = vision_pairs.mm_dpo_released(
        beta=given["beta"],
        strength=given["ls_factor_weight_w"],
        label_smoothing=1.0 - given["label_smoothing_as_in_repo"],
    )
    out = run(loss, scores)
    plain = run(pairwise.dpo(beta=given["beta"]), scores)
    unit = run(pairwise.dpo(beta=1.0), scores)
    return {**losses(out), **rewards(plain), "beta_used": out.logit / unit.logit}


def opa_dpo(case: Case) -> Results:
    given = case.hyperparameters
    names = (
        "standard_response",
        "original_generate_response",
        "AI_pseudo_response",
        "masked_image_standard_response",
        "masked_image_AI_pseudo_response",
    )
    own, revised = case["original_generate_response_scores"], case["AI_pseudo_response_scores"]
    relation, none = case["AI_pseudo_response_image_relations"], torch.ones_like(own)
    scores = scores_of(
        case,
        *names,
        extras={
            "token_severity": torch.stack([none, own, revised, none, none], dim=1),
            "image_relation": torch.stack([none, none, relation, none, relation], dim=1),
        },
    )
    kept = {
        "beta": given["beta"],
        "anchor": given["Anchor_value"],
        "anchor_kind": "logistic" if given["mDPO_anchor"] else "square",
        "label_smoothing": given["label_smoothing"],
    }
    loss = revised_answers.opa_dpo_released(
        image_coefficient=given["CoPO_coef"] if given["CoPO"] else 0.0,
        anchor_coefficient=given["Anchor_coef"] if given["AncPO"] else 0.0,
        true_coefficient=given["standard_pair_coef"],
        revised_coefficient=given["AI_pair_coef"],
        **kept,
    )
    parts = run(revised_answers.opa_dpo_released(image_coefficient=1.0, **kept), scores).terms
    return {
        "loss": run(loss, scores).loss.mean(),
        "loss_standard_vs_original": parts["true"].mean(),
        "loss_revised_vs_original": parts["revised"].mean(),
        "loss_standard_image": parts["true_image"].mean(),
        "loss_revised_image": parts["revised_image"].mean(),
        "loss_anchor": (parts["anchor_true"] + parts["anchor_revised"]).mean(),
    }


def log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of every label, 0 where it is ignored."""
    return token_log_probs(logits, labels)[0]


def chip(case: Case) -> Results:
    given = case.hyperparameters
    pairs = case["num_pairs"]
    chosen, rejected, _ = case["labels"].split(int(pairs))
    answers = torch.cat([chosen, rejected])
    policy = log_probs(case["policy_logits"], case["labels"])
    reference = log_probs(case["reference_logits"], answers)
    blind = log_probs(case["reference_logits_noisy_image"], answers)
    counts = answers[:, 1:] != -100
    kl = vocabulary_kl(case["reference_logits"][:, :-1], case["policy_logits"][: answers.shape[0], :-1])
    kl = torch.where(counts, kl, 0.0)
    width = int(pairs)
    together = torch.stack(policy.split(width), dim=1)
    anchor = torch.stack([*reference.split(width), blind[:width]], dim=1)
    divergence = torch.stack([*kl.split(width), torch.zeros_like(kl[:width])], dim=1)
    scores = Scores(together.sum(-1), anchor.sum(-1), kl=divergence.sum(-1))
    loss = grounded.chip(
        beta=given["beta"],
        token_coefficient=given["tok_beta"] if given["use_tdpo"] else 0.0,
        image_coefficient=1.0 if given["use_cross_modal_loss"] else 0.0,
    )
    out = run(loss, scores)
    # The log adds the divergence of each answer to its log-ratio, as TDPO's does.
    seen = Scores(scores.policy[:, :2] + divergence.sum(-1)[:, :2], anchor.sum(-1)[:, :2])
    two = run(pairwise.dpo(beta=given["beta"]), seen)
    return {
        **losses(out),
        **rewards(two),
        "position_kl_ref_policy": kl.sum(-1),
        "policy_logps": policy.sum(-1),
        "reference_logps": reference.sum(-1),
        "reference_noisy_image_logps": blind.sum(-1),
    }


def own_answer(case: Case, model: str) -> Tensor:
    """Log-probabilities, under the clean image, of what the model says under the noised one."""
    said = case[f"{model}_chosen_noisy_image_logits"].argmax(-1)
    shifted = torch.cat([said[:, :1], said[:, :-1]], dim=1)
    labels = torch.where(case["chosen_labels"] != -100, shifted, -100)
    return log_probs(case[f"{model}_chosen_logits"], labels).sum(-1)


def povid(case: Case) -> Results:
    given = case.hyperparameters

    def model(name: str) -> Tensor:
        sides = [
            log_probs(case[f"{name}_{side}_logits"], case[f"{side}_labels"]).sum(-1)
            for side in ("chosen", "rejected")
        ]
        return torch.stack([*sides, own_answer(case, name)], dim=1)

    scores = Scores(model("policy"), model("reference"))
    loss = grounded.povid(beta=given["beta"], own_share=given["mix"])
    return {
        "loss": run(loss, scores).loss.mean(),
        "losses_noisy": run(grounded.povid(beta=given["beta"], own_share=1.0), scores).loss,
        "losses_text": run(grounded.povid(beta=given["beta"], own_share=0.0), scores).loss,
        "policy_noisy_logps": scores.policy[:, 2],
        "reference_noisy_logps": scores.reference[:, 2],
        "policy_chosen_logps": scores.policy[:, 0],
        "policy_rejected_logps": scores.policy[:, 1],
    }


def grape_tpo(case: Case) -> Results:
    beta = case.hyperparameters["beta"]
    windows = [case[f"{model}_{side}"].T for model in ("policy", "reference") for side in PAIR]
    scores = Scores(torch.stack(windows[:2], dim=1), torch.stack(windows[2:], dim=1))
    out = run(vision_pairs.grape_tpo(beta=beta), scores)
    names = [f"policy_{side}" for side in PAIR]
    gradients = torch.autograd.grad(out.loss.sum(), [case[name] for name in names], retain_graph=True)
    return {
        "losses": out.loss,
        "window_margin": out.logit,
        "chosen_rewards_sum": out.metrics["reward_chosen"],
        "rejected_rewards_sum": out.metrics["reward_rejected"],
        **{f"grad_{name}": value for name, value in zip(names, gradients, strict=True)},
    }


def lc_dpo_chexalign(case: Case) -> Results:
    given = case.hyperparameters
    longer = case["token_len_diff"].to(case["policy_chosen_logps"])
    scores = paired(case, length=torch.stack([longer, torch.zeros_like(longer)], dim=1))
    loss = vision_pairs.lc_dpo_chexalign(
        beta=given["beta"], alpha=given["alpha"], label_smoothing=given["label_smoothing"]
    )
    out = run(loss, scores)
    return {**losses(out), **rewards(out)}


def vdpo_guided_logps(case: Case) -> Results:
    guidance = case.hyperparameters["gamma"]
    counts = case["mask"].to(torch.bool)

    # Labels are aligned with the logits here: one position is put in front, which the shift removes.
    def aligned(logits: Tensor) -> Tensor:
        labels = torch.cat([torch.full_like(case["labels"][:, :1], -100), case["labels"]], dim=1)
        return log_probs(torch.cat([logits, logits[:, :1]], dim=1), labels)

    policy, imageless = aligned(case["image_logits"]), aligned(case["imageless_logits"])
    guided = grounded.guided_score(policy, imageless, guidance=guidance)
    through = grounded.guided_log_probs(
        case["image_logits"], case["imageless_logits"], case["labels"], counts, guidance=guidance
    )
    return {
        "per_token_image_logps": policy,
        "per_token_imageless_logps": imageless,
        "plain_sum": torch.where(counts, policy, 0.0).sum(-1),
        "guided_sum_linear": torch.where(counts, guided, 0.0).sum(-1),
        "guided_sum_logits": through.sum(-1),
    }


def rlaifv_ddpo(case: Case) -> Results:
    given = case.hyperparameters
    rows, width = case["input_ids"].shape
    pairs = int(case["num_chosen"])
    changed = torch.zeros(rows, width - 1, dtype=torch.bool)
    for pair in range(pairs):
        places = (pair, int(case["chosen_width"])), (pairs + pair, int(case["rejected_width"]))
        # The released difference runs over padded rows, prompts included, without the first token.
        answers = [case["input_ids"][row, 1:end].tolist() for row, end in places]
        flags = changed_tokens(*answers, min_match=given["min_match_size"], autojunk=True)
        for (row, end), side in zip(places, flags, strict=True):
            changed[row, : end - 1] = torch.tensor(side)

    def sides(value: Tensor) -> Tensor:
        return torch.stack([value[:pairs], value[pairs:]], dim=1)

    def back(chosen: Tensor, rejected: Tensor) -> Tensor:
        return torch.cat([chosen, rejected])

    policy, counts = token_log_probs(case["policy_logits"], case["labels"])
    reference = log_probs(case["reference_logits"], case["labels"])
    mask = sides(counts.to(policy.dtype))
    scores = Scores(
        sides(policy), sides(reference), mask=mask, extras={"changed": sides(changed.to(policy.dtype))}
    )
    weight = given["dpo_token_weight"]
    loss = segments.dense_dpo(
        beta=given["beta"], weight=weight, normaliser="weight" if given["dpo_use_average"] else "sum"
    )
    out = run(loss, scores)
    weighted = [out.metrics[f"score_{side}"] for side in ("chosen", "rejected")]
    ratio = [out.metrics[f"log_ratio_{side}"] for side in ("chosen", "rejected")]
    total, mean = (reduce_inner(scores.policy, mask, how) for how in ("sum", "mean"))
    return {
        **losses(out),
        **rewards(out),
        "token_weight": torch.where(changed, weight, 1.0),
        "policy_per_token_logps": policy,
        "policy_sum_logps": back(*total.unbind(1)),
        "policy_mean_logps": back(*mean.unbind(1)),
        "policy_weighted_logps": back(*weighted),
        "reference_weighted_logps": back(weighted[0] - ratio[0], weighted[1] - ratio[1]),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "mdpo": mdpo,
    "hsa_dpo": hsa_dpo,
    "mm_dpo": mm_dpo,
    "opa_dpo": opa_dpo,
    "chip": chip,
    "povid": povid,
    "rlaifv_ddpo": rlaifv_ddpo,
    "grape_tpo": grape_tpo,
    "lc_dpo_chexalign": lc_dpo_chexalign,
    "vdpo_guided_logps": vdpo_guided_logps,
}

LEFT_OUT: dict[str, dict[str, str]] = {}
