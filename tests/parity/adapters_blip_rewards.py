"""How the golden cases of ImageReward, MPS, SPO's preference model and PAL call the public interface.

The cases describe their weights and long inputs by integer formulas; those are written out here. No formula
of a method stands here.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mmalign.rewards import (
    blip_models,
    conditioned_preference,
    ideal_points,
    preference_attention,
    step_aware,
)
from mmalign.testing.parity import Case

Results = dict[str, Tensor]
WEIGHTINGS = ("mean", "cumulative", "only_last")


# ------------------------------------------------------------------------------------- described inputs


def numbered(i: Tensor, j: int, amplitude: float) -> Tensor:
    """The described weights: i is the 1-based place in a parameter, j the 1-based number of the parameter."""
    return amplitude * (((7919 * i + 10473 * j + 31 * i * j) % 2003).double() / 1001 - 1)


def fill_parameters(
    named: Iterable[tuple[str, Tensor]], amplitude: float, norm: Callable[[str], bool]
) -> None:
    for j, (name, parameter) in enumerate(sorted(named), start=1):
        i = torch.arange(1, parameter.numel() + 1)
        value = numbered(i, j, amplitude).reshape(parameter.shape)
        with torch.no_grad():
            parameter.copy_(1 + value if norm(name) else value)


def fill_linear(linear: torch.nn.Linear, k: int, w_amp: float, b_amp: float) -> None:
    o = torch.arange(1, linear.out_features + 1)[:, None]
    i = torch.arange(1, linear.in_features + 1)[None, :]
    weight = ((7919 * o + 10473 * i + 31 * o * i + 17 * k) % 2003).double() / 1001 - 1
    bias = ((37 * o[:, 0] + 11 * k) % 101).double() / 50 - 1
    with torch.no_grad():
        linear.weight.copy_(w_amp / linear.in_features**0.5 * weight)
        linear.bias.copy_(b_amp * bias)


def feature_rows(rows: Tensor, width: int) -> Tensor:
    a, f, p, q = (rows[:, column, None] for column in range(4))
    i = torch.arange(1, width + 1, dtype=rows.dtype)
    return a * torch.sin(f * i + p) + q * torch.cos(0.003 * i)


def pixels(formula: str, batch: int, side: int, dtype: torch.dtype) -> Tensor:
    frequency = float(re.search(r"sin\(([0-9.]+)\*0\.01", formula).group(1))
    n = torch.arange(1, 3 * side * side + 1, dtype=torch.float64).reshape(3, side, side)
    return torch.stack([torch.sin(frequency * 0.01 * (b + 1) * n) for b in range(batch)]).to(dtype)


# --------------------------------------------------------------------------------------------- ImageReward


def imagereward_head(case: Case) -> Results:
    given = case.hyperparameters
    head = blip_models.LinearStack(given["input_size"]).to(case["rows"].dtype)
    for k, linear in enumerate(head.layers.values()):
        fill_linear(linear, k, given["w_amp"], given["b_amp"])
    raw = head(feature_rows(case["rows"], given["input_size"]))[:, 0]
    reward = blip_models.standardise(raw)
    return {"raw": raw, "reward": reward, "rank": blip_models.ranks(reward)}


# -------------------------------------------------------------------------------------------------- MPS


def mps_condition_mask(case: Case) -> Results:
    text, condition = case["text_token_features"], case["condition_token_features"]
    results = {
        "max_similarity": preference_attention.similarity(text, condition),
        "relative_over_batch": preference_attention.relative_similarity(
            text, condition, maximum_over="batch"
        ),
    }
    thresholds = {
        "001": case.hyperparameters["threshold_in_model"],
        "03": case.hyperparameters["threshold_in_evaluation_script"],
    }
    for suffix, threshold in thresholds.items():
        for name, over in (("batch", "batch"), ("sample", "sample")):
            key = f"keep_over_batch_{suffix}" if name == "batch" else f"keep_per_sample_{suffix}"
            results[key] = preference_attention.condition_mask(
                text, condition, threshold=threshold, maximum_over=over
            )
    return results


def mps_cross_model(case: Case) -> Results:
    given = case.hyperparameters
    image, text = case["image_tokens"], case["text_tokens"]
    tower = preference_attention.CrossModel(
        dim=given["dim"],
        layers=given["layer_num"],
        heads=given["heads"],
        dim_head=given["dim_head"],
        ff_mult=given["ff_mult"],
    ).to(image.dtype)
    assert sorted(name for name, _ in tower.named_parameters()) == given["parameter_names"]
    fill_parameters(tower.named_parameters(), given["amp"], lambda name: name.endswith("norm.weight"))
    found = tower(image, text, case["keep_text_token"])
    score = conditioned_preference.scaled_cosine(
        text[:, -1], found[:, 0], torch.tensor(given["log_logit_scale"], dtype=image.dtype)
    )
    return {"output": found, "score": score}


# ------------------------------------------------------------------------------------------------- SPM


def clip_config(given: dict[str, Any]) -> Any:
    from transformers import CLIPConfig

    shared = {"hidden_act": given["hidden_act"], "layer_norm_eps": given["layer_norm_eps"]}
    return CLIPConfig(
        text_config={**given["text"], **shared},
        vision_config={**given["vision"], **shared},
        projection_dim=given["projection_dim"],
    )


def step_aware_preference_model(case: Case) -> Results:
    given = case.hyperparameters
    dtype = case.outputs["scores"].dtype
    network = step_aware.StepAwareClip(clip_config(given)).to(dtype).eval()
    named = dict(network.model.named_parameters())
    assert sorted(named) == given["parameter_names"]
    fill_parameters(named.items(), given["amp"], lambda name: "norm" in name and name.endswith("weight"))
    with torch.no_grad():
        network.model.logit_scale.fill_(given["log_logit_scale"])
    ids, timesteps = case["input_ids"], case["timesteps"]
    images = pixels(case["pixel_formula"], len(ids), given["vision"]["image_size"], dtype)
    return {
        "time_cond": network.time_condition(timesteps.to(dtype)),
        "image_features": network.image_features(images, timesteps.to(dtype)),
        "text_features": network.text_features(ids),
        "scores": network(images, ids, timesteps.to(dtype)),
    }


def spo_spm(case: Case) -> Results:
    given = case.hyperparameters
    loss = step_aware.step_aware_loss(
        case["text_features"],
        case["image_0_features"],
        case["image_1_features"],
        label_0=case["label_0"],
        examples_per_prompt=case["num_examples_per_prompt"],
        logit_scale=float(given["logit_scale_exp"]),
        in_batch_negatives=given["in_batch_negatives"],
    )
    embedding = step_aware.timestep_embedding(
        case["timesteps"].to(loss.dtype), given["embedding_dim"], max_period=float(given["max_period"])
    )
    modulated = step_aware.modulate(case["modulate_x"], case["modulate_shift"], case["modulate_scale"])
    return {"loss": loss, "timestep_embedding": embedding, "modulated": modulated}


# ------------------------------------------------------------------------------------------------- PAL


def pal_heads(case: Case) -> dict[str, Any]:
    given = case.hyperparameters
    left, right, y = case["x_left"], case["x_right"], case["y"]
    start, end = case["divergence_index"], case["end_index"]
    logits, temperature = case["user_logits_W"], given["softmax_temperature"]
    log_scale = torch.tensor(given["log_logit_scale"], dtype=left.dtype)
    weights = ideal_points.user_weights(logits, temperature=temperature)
    ideal_a = ideal_points.mix(weights, case["prototypes_P"])
    a_left, a_right = (ideal_points.distance_rewards(x, ideal_a[:, None].expand_as(x)) for x in (left, right))

    def model_b(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ideal = ideal_points.mix_of_prompt(weights, case["prompt_group_points_G"])
        cap = given["logit_scale_cap"]
        found = (ideal_points.angle_rewards(x, ideal, log_scale, cap=cap) for x in (left, right))
        return (ideal, *found)

    ideal_b, b_left, b_right = model_b(weights)
    _, hard_left, hard_right = model_b(ideal_points.user_weights(logits, hard=True))
    hinge = ideal_points.hinge_losses(a_left, a_right, y, margin=given["hinge_margin"])
    choice = ideal_points.choice_losses(b_left, b_right, y)
    length = left.shape[1]
    last = torch.full_like(end, length)
    return {
        "user_weights": weights,
        "a_ideal_point": ideal_a,
        "a_distance_difference": a_right - a_left,
        "a_reward_left_minus_right": a_left - a_right,
        "a_hinge_loss": {w: ideal_points.span_loss(hinge, start, end, w) for w in WEIGHTINGS},
        "a_prototype_bound_penalty": ideal_points.ideal_norm_penalty(ideal_a, given["prototype_norm_bound"]),
        "b_ideal_point": ideal_b,
        "b_logits": torch.stack([b_left, b_right], dim=-1),
        "b_logits_partition_eval": torch.stack([hard_left, hard_right], dim=-1),
        "b_ce_loss": {w: ideal_points.span_loss(choice, start, end, w) for w in WEIGHTINGS},
        "b_accuracy_all_tokens": ideal_points.pair_accuracy(
            b_left, b_right, y, ideal_points.span_weights(start, end, length)
        ),
        "b_accuracy_last_token": ideal_points.pair_accuracy(
            b_left, b_right, y, ideal_points.span_weights(last - 1, last, length)
        ),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "eval_imagereward_head": imagereward_head,
    "eval_mps_condition_mask": mps_condition_mask,
    "eval_mps_cross_model": mps_cross_model,
    "eval_step_aware_preference_model": step_aware_preference_model,
    "eval_pal_heads": pal_heads,
    "spo_spm": spo_spm,
}

LEFT_OUT: dict[str, dict[str, str]] = {}
