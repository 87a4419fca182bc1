"""How the golden cases of lists and rankings call the public interface."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.objectives import Objective, Scores
from mmalign.testing.parity import Case

Results = dict[str, Tensor]


def _taken(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of every next token."""
    return logits.log_softmax(-1)[..., :-1, :].gather(-1, ids[..., 1:].long().unsqueeze(-1)).squeeze(-1)


def _groups(case: Case) -> Scores:
    """Rows of logits in consecutive groups, one list each; the prompt's tokens do not count."""
    size, ids = int(case.hyperparameters["group_size"]), case["input_ids"]
    mask = case["attention_mask"].clone()
    mask[:, : int(case.hyperparameters["prompt_len"])] = 0

    def grouped(value: Tensor) -> Tensor:
        return value.reshape(-1, size, *value.shape[1:])

    return Scores(
        policy=grouped(_taken(case["policy_logits"], ids)),
        reference=grouped(_taken(case["ref_logits"], ids)),
        mask=grouped(mask[:, 1:].to(case["policy_logits"].dtype)),
        reward=case["energy_labels"].reshape(-1, size),
    )


def exo(case: Case) -> Results:
    given, scores = case.hyperparameters, _groups(case)
    labels, temperatures = Labels(), {"beta": given["beta_model"], "temperature": given["beta_r"]}
    if given["loss_type"] == "exo-pref":
        objective, labels = (
            objectives.exo_pref_official(beta=given["beta_model"]),
            Labels(relevance=scores.reward),
        )
    elif given["loss_type"] == "exo-rw":
        objective = objectives.exo_listwise(**temperatures)
    else:
        objective = objectives.dpo_rw(**temperatures)
    return {"loss": objective(scores, labels).loss.mean()}


def pro(case: Case) -> Results:
    ids, prefix = case["input_ids"], case["prefix_mask"].bool()
    answer = case["attention_mask"].bool() & ~prefix
    scores = Scores(
        policy=_taken(case["policy_logits"], ids),
        mask=answer[..., :-1].to(case["policy_logits"].dtype),
        reward=case["rewards"],
        extras={"supervised": one_hot(case["sft_index"], ids.shape[1])},
    )
    objective = objectives.pro(sft_weight=case.hyperparameters["sft_weight"], supervised="given")
    return {"loss": objective(scores, Labels()).loss.mean()}


def knowpat(case: Case) -> Results:
    scores = Scores(case["scores"].unsqueeze(0))
    divisor = case.hyperparameters.get("divisor", 3.0)
    return {"loss": objectives.knowpat_align(divisor=divisor)(scores, Labels()).loss.sum()}


def more_ranking(case: Case) -> Results:
    grades, weights = case["scores"], case["task_weights"]
    scores = Scores(case["rewards"], extras={"task_weight": weights})
    labels = Labels(relevance=grades, valid=grades >= 0)
    found = {}
    for prefix, objective in (
        ("", objectives.reward_ranking()),
        ("more_", objectives.more_ranking(tasks=len(weights))),
    ):
        out = objective(scores, labels)
        loss = out.loss[out.valid].mean()
        (gradient,) = torch.autograd.grad(loss, case["rewards"], retain_graph=True)
        found |= {f"{prefix}loss": loss, f"{prefix}grad_rewards": gradient}
    return found


def irpo(build: Callable[..., Objective]) -> Callable[[Case], Results]:
    def adapter(case: Case) -> Results:
        dtype = case["policy_logps"].dtype
        scores = Scores(case["policy_logps"], case["ref_logps"], extras={"rank": case["rank"].to(dtype)})
        labels = Labels(relevance=case["relevance"].to(dtype))
        return {"loss": build(beta=case.hyperparameters["beta"])(scores, labels).loss.sum()}

    return adapter


def tree_po(case: Case) -> Results:
    scores = Scores(case["scores"], torch.zeros_like(case["scores"]))
    labels = Labels(relevance=case["labels"])
    beta = case.hyperparameters.get("beta", 1.0)
    return {"loss": objectives.tree_po_rank(beta=beta)(scores, labels).loss.mean()}


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "text_exo_rw_listwise": exo,
    "text_exo_pref_official": exo,
    "text_dpo_rw_listwise": exo,
    "text_pro": pro,
    "text_knowpat_align": knowpat,
    "text_more_ranking": more_ranking,
    "text_irpo_incontext_ranking": irpo(objectives.irpo_incontext_ranking_official),
    "text_tree_po_rank": tree_po,
}
LEFT_OUT: dict[str, dict[str, str]] = {}
