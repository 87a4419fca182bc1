"""How the golden cases of vision-language rewards call the public interface. No formula stands here."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from mmalign.evals.statistics.agreement import pair_credit, tie_rule
from mmalign.evals.statistics.thresholds import videoalign_accuracy_with_ties
from mmalign.rewards import pair_losses, qwen_rewards, vqa
from mmalign.testing.parity import Case

Results = dict[str, object]


def fill_linear(layers: list[nn.Linear], w_amp: float, b_amp: float) -> None:
    """The integer recipe by which the case's file describes the weights of its inputs."""
    for k, layer in enumerate(layers):
        o = torch.arange(1, layer.out_features + 1).unsqueeze(1)
        i = torch.arange(1, layer.in_features + 1).unsqueeze(0)
        weight = ((7919 * o + 10473 * i + 31 * o * i + 17 * k) % 2003).double() / 1001 - 1
        bias = ((37 * o[:, 0] + 11 * k) % 101).double() / 50 - 1
        layer.weight.data = w_amp / math.sqrt(layer.in_features) * weight
        layer.bias.data = b_amp * bias


def feature_rows(rows: Tensor, width: int) -> Tensor:
    """The rows of features the case's file describes by four numbers each."""
    step = torch.arange(1, width + 1, dtype=torch.float64)
    a, f, p, q = (column.unsqueeze(1).double() for column in rows.unbind(dim=1))
    return a * torch.sin(f * step + p) + q * torch.cos(0.003 * step)


def eval_hpsv3_head(case: Case) -> Results:
    given = case.hyperparameters
    head = qwen_rewards.rank_head(given["layer_sizes"]).double().eval()
    fill_linear([layer for layer in head if isinstance(layer, nn.Linear)], given["w_amp"], given["b_amp"])
    rows = case["rows"]
    found = head.to(rows.dtype)(feature_rows(rows, given["layer_sizes"][0]).to(rows.dtype))
    chosen, rejected = found[:1], found[1:]
    parts = pair_losses.gaussian_difference(chosen, rejected)
    normals = case["standard_normal"].unsqueeze(0)
    return {
        "head_output": found,
        "mu": found[:, 0],
        "sigma": pair_losses.deviations(found),
        "mean_z": parts[0][0],
        "sigma_z": parts[1][0],
        "uncertainty_loss": pair_losses.gaussian_preference_loss(chosen, rejected, normals),
    }


def eval_videoreward(case: Case) -> Results:
    given = case.hyperparameters
    names = ("VQ", "MQ", "TA")
    tokens = [given["special_token_ids"][name] for name in names]
    one, three = (
        qwen_rewards.at_tokens(case[f"logits_output_dim_{width}"], case["input_ids"], tokens)
        for width in (1, 3)
    )
    normalised = qwen_rewards.standardise(
        one, [given[f"{name}_mean"] for name in names], [given[f"{name}_std"] for name in names]
    )
    losses = pair_losses.label_loss_with_ties(one, three, case["chosen_label"], k=given["btt_k"])
    return {
        "pooled_output_dim_1": one,
        "pooled_output_dim_3": three,
        "normalised": normalised,
        "overall": normalised.sum(dim=1),
        "overall_unnormalised": one.sum(dim=1),
        "btt_elementwise": losses,
        "btt_loss": pair_losses.entry_mean(losses),
    }


def eval_vqascore(case: Case) -> Results:
    given, logits = case.hyperparameters, case["logits"]
    answer, end = given["label_ids"]
    temperature = given["temperature"]
    probability = vqa.answer_probability
    return {
        "clip_flant5_score": probability(logits, [answer, end]),
        "p_yes": probability(logits[:, :1], [given["yes_id"]], temperature=temperature),
        "p_eos_given_yes": probability(logits[:, 1:], [end]),
        "p_yes_renormalised": vqa.yes_share(logits[:, 0], given["yes_id"], given["no_id"]),
    }


def videoreward_losses(case: Case) -> Results:
    given, labels = case.hyperparameters, case["labels"]
    second = case["rewards_B"]
    scores = [case[f"{side}_scores_each_row"].expand(len(labels), -1) for side in "AB"]
    gap = pair_losses.signed_gap(*scores, labels)

    def outcome(loss: object) -> dict[str, Tensor]:
        first = case["rewards_A"].detach().requires_grad_()
        value = loss(first).mean()
        return {"loss": value, "grad_A": torch.autograd.grad(value, first)[0].flatten()}

    with_ties = {"k": given["btt_k"]}
    constant = given["constant_margin"]
    ties = pair_losses.label_loss_with_ties
    accuracy = case["accuracy_human"], case["accuracy_margin"].double()
    without = pair_credit(*accuracy, tie_rule("without_ties"))
    return {
        "bt": outcome(lambda first: pair_losses.label_loss(first, second, labels)),
        "btt": outcome(lambda first: ties(first, second, labels, **with_ties)),
        "margin": outcome(lambda first: pair_losses.label_loss(first, second, labels, margin=gap)),
        "constant_margin": outcome(
            lambda first: pair_losses.label_loss(first, second, labels, margin=constant)
        ),
        "scaled": outcome(lambda first: pair_losses.label_loss(first, second, labels, weight=gap)),
        "reg": outcome(lambda first: pair_losses.score_regression(first, second, *scores)),
        "accuracy_with_ties": torch.tensor(videoalign_accuracy_with_ties(*accuracy), dtype=torch.float64),
        "accuracy_without_ties": torch.tensor(float(np.nanmean(without)), dtype=torch.float64),
    }


ADAPTERS = {
    "eval_hpsv3_head": eval_hpsv3_head,
    "eval_videoreward": eval_videoreward,
    "eval_vqascore": eval_vqascore,
    "videoreward_losses": videoreward_losses,
}
LEFT_OUT: dict[str, dict[str, str]] = {}
