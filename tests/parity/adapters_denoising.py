"""How the golden cases of denoising methods beyond Diffusion-DPO call the public interface."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mmalign.batch import Labels
from mmalign.likelihood import Elbo, FlowSchedule, UniformTimesteps, VPSchedule
from mmalign.objectives import Objective, ObjectiveOutput, Scores, clips, denoising, pairwise, predictions
from mmalign.testing.parity import Case, adapter_module

IMAGE = adapter_module(Path(__file__).with_name("adapters_image.py"))
Results = dict[str, Tensor]


def scored(
    case: Case,
    policy: str = "model_pred",
    reference: str = "ref_pred",
    target: str = "target",
    **more: object,
) -> Scores:
    """Scores of stored noise predictions, the chosen ones in the first half of the rows."""
    wanted = IMAGE.pairs(case[target])
    recorded = IMAGE.noise_target(wanted, Labels.pairs(wanted.shape[0]))
    return Scores(
        recorded.evaluate(IMAGE.pairs(case[policy])).score,
        recorded.evaluate(IMAGE.pairs(case[reference])).score,
        **more,
    )


def run(loss: Objective, scores: Scores) -> ObjectiveOutput:
    return loss(scores, Labels.pairs(scores.policy.shape[0]))


def with_leaves(case: Case, *names: str) -> Case:
    """The case with gradients to inputs that its own gradient names do not point at."""
    leaves = {name: case[name].detach().clone().requires_grad_() for name in names}
    return replace(case, inputs={**case.inputs, **leaves})


def gradient(loss: Tensor, given: Tensor) -> Tensor:
    return torch.autograd.grad(loss, given, retain_graph=True)[0]


def factors(case: Case, prefix: str = "") -> Tensor:
    """The released factor: one for the micro-batch."""
    given = case.hyperparameters
    return predictions.safeguard_factor(
        IMAGE.pairs(case[f"{prefix}model_pred"]),
        IMAGE.pairs(case[f"{prefix}target"]),
        mu=given["mu"],
        scope="batch",
        epsilon=given.get("eps", 1e-9),
        maximum=given.get("max_lambda", 1.0),
    )


def sdpo(case: Case) -> Results:
    results: Results = {}
    loss = predictions.sdpo(beta=case.hyperparameters["beta"])
    anti = with_leaves(case, "anti_model_pred")
    for prefix, data in (("", case), ("anti_", anti)):
        factor = factors(data, prefix)
        names = [f"{prefix}{name}" for name in ("model_pred", "ref_pred", "target")]
        scores = scored(data, *names, extras={"safeguard": factor})
        out = run(loss, scores)
        results[f"{prefix}loss"] = out.loss.mean()
        results["lambda_" if not prefix else "anti_lambda"] = factor[0, 1]
        results[f"{prefix}grad_model_pred"] = gradient(out.loss.mean(), data[names[0]])
        if not prefix:
            plain = run(pairwise.dpo(beta=case.hyperparameters["beta"]), scores)
            results["inside_term"] = out.logit
            results["grad_model_pred_unsafeguarded"] = gradient(plain.loss.mean(), case["model_pred"])
    return results


def drifting(case: Case, policy: str) -> Scores:
    drift = predictions.prediction_drift(IMAGE.pairs(case[policy]), IMAGE.pairs(case["ref_pred"]))
    return scored(case, policy, extras={"drift": drift})


def dspo(case: Case) -> Results:
    given = case.hyperparameters
    near, far = drifting(case, "model_pred"), drifting(case, "model_pred_large")
    released = {"scope": "batch", "threshold": given["sdxl_branch_threshold"]}
    outs = {
        "sd15": run(predictions.dspo(beta=given["beta_sd15"]), near),
        "sdxl_small": run(predictions.dspo_sdxl(beta=given["beta_sdxl"], **released), near),
        "sdxl_large": run(predictions.dspo_sdxl(beta=given["beta_sdxl_large"], **released), far),
    }
    return {
        **{f"loss_{name}": out.loss.mean() for name, out in outs.items()},
        "inside_term_sd15": outs["sd15"].logit,
        "inside_term_sdxl": outs["sdxl_small"].logit,
        "inside_term_sdxl_large": outs["sdxl_large"].logit,
        "grad_model_pred_large": gradient(outs["sdxl_large"].loss.mean(), case["model_pred_large"]),
    }


def dmpo(case: Case) -> Results:
    given = case.hyperparameters
    loss = denoising.dmpo(beta=given["beta"], alpha=given["alpha"])
    factor = factors(case)
    scores = scored(case, extras={"safeguard": factor})
    safe = run(predictions.safeguarded(loss), scores).loss.mean()
    out = run(loss, scores)
    return {
        "loss": out.loss.mean(),
        "inside_term": out.logit,
        "lambda_sdpo": factor[0, 1],
        "grad_model_pred_sdpo": gradient(safe, case["model_pred"]),
    }


def dro(case: Case) -> Results:
    scores = scored(case, "pred_eps", "pred_eps_ref", "eps")
    policy, reference = -2.0 * scores.policy, -2.0 * scores.reference
    return {
        "loss": run(denoising.diffusion_dro(margin=case.hyperparameters["margin"]), scores).loss.mean(),
        "diff": -run(pairwise.dpo(beta=2.0), scores).logit,
        "loss_expert": policy[:, 0],
        "loss_policy": policy[:, 1],
        "loss_expert0": reference[:, 0],
        "loss_policy0": reference[:, 1],
    }


def smpo(case: Case) -> Results:
    given = case.hyperparameters
    first, second = case["ps_score_0"], case["ps_score_1"]
    reward = torch.stack([torch.maximum(first, second), torch.minimum(first, second)], dim=1)
    scores = scored(case, reward=reward)
    scale = {"low": given["score_min"], "high": given["score_max"]}
    out = run(denoising.smpo(beta=given["beta"], gamma=float(given["gamma"]), **scale), scores)
    unit = run(pairwise.dpo(beta=given["beta"]), scores)
    return {
        "ps_label_0": (first > second).to(first),
        "probs": denoising.soft_preference(reward[:, 0], reward[:, 1], **scale),
        "scale": out.logit / unit.logit,
        "inside_term": out.logit,
        "loss_per_pair": out.loss,
        "loss": out.loss.mean(),
    }


def tango2_dpo(case: Case) -> Results:
    given = case.hyperparameters
    config = given["scheduler_config"]
    schedule = VPSchedule.from_scheduler_config(config)
    clean = torch.stack([case["latents_chosen"], case["latents_rejected"]], dim=1)
    noise = case["noise"].unsqueeze(1).expand_as(clean)
    timestep = case["timesteps"].unsqueeze(1).expand(-1, 2)
    elbo = Elbo(schedule, config["prediction_type"], UniformTimesteps())
    draw = elbo.draw_at(clean, timestep=timestep, noise=noise)
    recorded = IMAGE.Recorded(elbo, IMAGE.batch_of(clean, Labels.pairs(clean.shape[0])), draw)
    policy, reference = IMAGE.pairs(case["policy_prediction"]), IMAGE.pairs(case["reference_prediction"])
    out = recorded.compare(denoising.tango2_dpo(beta=given["beta_dpo"]), policy, reference)
    return {
        "noisy_model_input": IMAGE.rows(draw.noised),
        "target": IMAGE.rows(draw.target),
        "policy_mse": IMAGE.rows(recorded.evaluate(policy).error),
        "reference_mse": IMAGE.rows(recorded.evaluate(reference).error),
        "timesteps_used": IMAGE.rows(draw.timestep),
        "loss": out.loss.mean(),
    }


def tangoflux_crpo(case: Case) -> Results:
    given = case.hyperparameters
    schedule = FlowSchedule(shift=given["shift"], num_timesteps=given["num_train_timesteps"], grid=True)
    clean = torch.stack([case["latents_chosen"], case["latents_rejected"]], dim=1)
    sigma = schedule.timestep_at(case["u_logit_normal_draws"]).unsqueeze(1).expand(-1, 2)
    noise = case["noise"].unsqueeze(1).expand_as(clean)
    recorded = IMAGE.flow_pairs(clean, noise, sigma, schedule)
    policy, reference = IMAGE.pairs(case["policy_prediction"]), IMAGE.pairs(case["reference_prediction"])
    out = recorded.compare(denoising.crpo(beta=given["beta_dpo"]), policy, reference)
    return {
        "timestep_fed_to_transformer": IMAGE.rows(sigma),
        "noisy_model_input": IMAGE.rows(recorded.draw.noised),
        "target": IMAGE.rows(recorded.draw.target),
        "policy_mse": IMAGE.rows(recorded.evaluate(policy).error),
        "reference_mse": IMAGE.rows(recorded.evaluate(reference).error),
        "implicit_accuracy": out.metrics["accuracy"].mean(),
        "dpo_part": out.terms["logistic"].mean(),
        "winner_flow_matching_part": out.terms["denoising_error"].mean(),
        "loss": out.loss.mean(),
    }


def along(case: Case, axis: int) -> Scores:
    """Scores per position of one event axis, of stored predictions in the files' order."""
    target = IMAGE.pairs(case["target"])
    errors = [
        clips.errors_along(IMAGE.pairs(case[name]), target, axis=axis)
        for name in ("policy_prediction", "reference_prediction")
    ]
    return Scores(*(-0.5 * error for error in errors))


def videodpo(case: Case) -> Results:
    beta = case.hyperparameters["beta_dpo"]
    columns = along(case, case["target"].ndim - 2)
    weight = torch.as_tensor(case["dupfactor"]).to(columns.policy).expand(columns.policy.shape[0])
    weighted = Scores(columns.policy, columns.reference, extras={"pair_weight": weight})
    # Every column as a pair of its own: the released accuracy adds them up and divides by the pairs.
    apart = Scores(*(value.transpose(1, 2).flatten(0, 1) for value in (columns.policy, columns.reference)))
    agree = run(pairwise.dpo(beta=beta), apart).metrics["accuracy"]
    return {
        "loss": run(clips.videodpo_columns(beta=beta), weighted).loss.mean(),
        "per_sample_loss_for_contrast": run(clips.videodpo(beta=beta), weighted).loss.mean(),
        "implicit_accuracy": agree.sum() / columns.policy.shape[0],
    }


def densedpo_formula(case: Case) -> Results:
    given = case.hyperparameters
    case = with_leaves(case, "policy_prediction_0", "policy_prediction_1")
    each = given["latent_frames_per_segment"]
    clean, noise, policy, reference = (
        torch.stack([case[f"{name}_0{end}"], case[f"{name}_1{end}"]], dim=1)
        for name, end in (
            ("video", "_latent"),
            ("noise", ""),
            ("policy_prediction", ""),
            ("reference_prediction", ""),
        )
    )
    target = FlowSchedule().target("flow", clean, noise, torch.full(clean.shape[:2], 0.5).to(clean))
    frames = [-0.5 * clips.errors_along(value, target, axis=1) for value in (policy, reference)]
    segments = [clips.mean_over_segments(value, each) for value in frames]
    of_segments = case["segment_labels"].to(clean)
    of_frames = clips.labels_of_frames(of_segments, frames=frames[0].shape[2], frames_per_segment=each)

    def labelled(values: list[Tensor], label: Tensor) -> Scores:
        preference = torch.stack([label, -label], dim=1)
        mask = (preference != 0).to(label)
        return Scores(*values, mask=mask, extras={"preference": preference})

    def mean(out: ObjectiveOutput, weight: Tensor) -> Tensor:
        """As the loop takes it: over the rows that count, by their weight."""
        kept = weight * out.valid
        return (out.loss * kept).sum() / kept.sum()

    beta = 2.0 * given["beta"]  # theirs is on whole errors
    each_row = torch.ones_like(of_segments[:, 0])
    decided = (of_segments != 0).sum(1).to(clean)
    inside = run(clips.densedpo(beta=beta, reduction="mean"), labelled(frames, of_frames))
    inside_sum = run(clips.densedpo(beta=beta, reduction="sum"), labelled(segments, of_segments))
    apart = run(clips.densedpo_per_segment(beta=beta), labelled(segments, of_segments))
    positions = Scores(*(value.transpose(1, 2).flatten(0, 1) for value in frames))
    loss = mean(inside, each_row)
    return {
        "per_latent_frame_s0_minus_s1": -run(pairwise.dpo(beta=2.0), positions).logit.reshape_as(of_frames),
        "frame_labels": of_frames,
        "loss_inside_mean_over_non_tie_frames": loss,
        "loss_inside_sum_over_segments": mean(inside_sum, each_row),
        "loss_per_segment_logsigmoid": mean(apart, decided),
        "grad_policy_0_for_inside_mean": gradient(loss, case["policy_prediction_0"]),
        "grad_policy_1_for_inside_mean": gradient(loss, case["policy_prediction_1"]),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "sdpo": sdpo,
    "dspo": dspo,
    "dmpo": dmpo,
    "dro": dro,
    "tango2_dpo": tango2_dpo,
    "tangoflux_crpo": tangoflux_crpo,
    "videodpo": videodpo,
    "densedpo_formula": densedpo_formula,
}

LEFT_OUT: dict[str, dict[str, str]] = {
    "tangoflux_crpo": {
        "pooled_text_mean_before_fc": "the text pooling of an audio family, which comes with issue 7"
    },
}
