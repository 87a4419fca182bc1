"""How the golden cases of margins, pair weights and soft labels call the public interface.

No formula stands here. Hyperparameters come from the case.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign import objectives
from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.likelihood import Elbo, UniformTimesteps, VPSchedule
from mmalign.likelihood.token_statistics import log_sum_squares, token_log_probs
from mmalign.objectives import Objective, ObjectiveOutput, ObjectiveState, Scores, margins
from mmalign.testing.parity import Case

Results = dict[str, Tensor]
Build = Callable[[Case], Objective]


def pair(case: Case, chosen: str, rejected: str) -> Tensor:
    return torch.stack([case[chosen], case[rejected]], dim=1)


def scores_of(case: Case, **more) -> Scores:
    """Scores per pair and candidate, with what else the case has of reference, length and reward."""

    def both(name: str) -> Tensor | None:
        names = [name.format(role) for role in ("chosen", "rejected")]
        return pair(case, *names) if names[0] in case.inputs else None

    return Scores(
        pair(case, "policy_chosen_logps", "policy_rejected_logps"),
        both("ref_{}_logps"),
        length=both("{}_length"),
        reward=both("{}_external_reward"),
        **more,
    )


def run(objective: Objective, scores: Scores, state: ObjectiveState | None = None) -> ObjectiveOutput:
    return objective(scores, Labels.pairs(scores.policy.shape[0]), state)


def given(case: Case, name: str, default: float | None = None) -> float:
    return case.hyperparameters[name] if default is None else case.hyperparameters.get(name, default)


def sequences(build: Build) -> Callable[[Case], Results]:
    """Losses per pair and their mean."""

    def adapter(case: Case) -> Results:
        out = run(build(case), scores_of(case))
        return {"losses": out.loss, "loss": out.loss.mean()}

    return adapter


def mean_only(build: Build) -> Callable[[Case], Results]:
    def adapter(case: Case) -> Results:
        return {"loss": run(build(case), scores_of(case)).loss.mean()}

    return adapter


def alpha_dpo(case: Case) -> Results:
    beta = given(case, "beta")
    objective = objectives.alpha_dpo(
        beta=beta,
        gamma=given(case, "gamma_beta_ratio") * beta,
        alpha=given(case, "alpha"),
        label_smoothing=given(case, "label_smoothing"),
    )
    state = ObjectiveState(
        values={
            "alpha_dpo.mean": torch.tensor(given(case, "mean0"), dtype=torch.float64),
            "alpha_dpo.deviation": torch.tensor(given(case, "std0"), dtype=torch.float64),
        }
    )
    out = run(objective, scores_of(case), state)
    return {
        "losses": out.loss,
        "loss": out.loss.mean(),
        "mean_after": state.values["alpha_dpo.mean"],
        "std_after": state.values["alpha_dpo.deviation"],
        # Theirs is subtracted before beta multiplies, ours after.
        "margin": out.metrics["margin"] - out.logit / beta,
    }


def beta_dpo(case: Case) -> Results:
    """The recorded statistics are those the official code uses: an evaluation reads them as they are."""
    mean, deviation = (torch.tensor(given(case, f"gap_{of}"), dtype=torch.float64) for of in ("mean", "std"))
    state = ObjectiveState(values={"beta_dpo.mean": mean, "beta_dpo.deviation": deviation}, updating=False)
    objective = objectives.beta_dpo(beta=given(case, "beta"), scale=given(case, "a"))
    scores = scores_of(case, extras={"selected": case["selected_mask"]})
    out = run(objective, scores, state)
    temperature = (out.logit.detach() / out.metrics["margin"]).mean()
    gap = out.metrics["margin"]
    return {
        "losses": run(objectives.dpo(beta=float(temperature)), scores).loss,
        "loss": out.loss.mean(),
        "beta_used": temperature,
        "sampling_weights": margins.selection_weights(gap, mean=mean.to(gap), deviation=deviation.to(gap)),
    }


def mallows_dpo(case: Case) -> Results:
    objective = objectives.mallows_dpo(
        beta=given(case, "beta"),
        dispersion=given(case, "dispersion_mean"),
        label_smoothing=given(case, "label_smoothing", 0.0),
    )
    out = run(objective, scores_of(case, extras={"reference_entropy": case["ref_normalised_entropy"]}))
    return {"losses": out.loss, "loss": out.loss.mean()}


def modpo(case: Case) -> Results:
    """A candidate compared with nothing (all numbers 0) shows its own reward, other objectives included."""
    weight, *others = case.hyperparameters["w"]
    build = {"sigmoid": objectives.modpo, "hinge": objectives.modpo_hinge}[case.hyperparameters["loss_type"]]
    others = [float(other) for other in others]
    objective = build(beta=given(case, "beta"), weight=weight, other_weights=others)
    rewards = pair(case, "chosen_margin_rewards", "rejected_margin_rewards")
    scores = scores_of(case, extras={"margin_rewards": rewards})

    def alone(candidate: int) -> Tensor:
        def only(value: Tensor) -> Tensor:
            return torch.stack([value[:, candidate], torch.zeros_like(value[:, candidate])], dim=1).detach()

        single = Scores(only(scores.policy), only(scores.reference), extras={"margin_rewards": only(rewards)})
        return run(objective, single).logit

    out = run(objective, scores)
    return {
        "losses": out.loss,
        "loss": out.loss.mean(),
        "chosen_rewards": alone(0),
        "rejected_rewards": alone(1),
    }


def odpo(case: Case) -> Objective:
    offset = "ratio" if case.hyperparameters["ratio"] else "difference"
    return objectives.odpo(beta=given(case, "beta"), alpha=given(case, "alpha"), offset=offset)


def nemo(build: Callable[..., Objective]) -> Callable[[Case], Results]:
    return mean_only(
        lambda case: build(beta=given(case, "beta"), reward_scale=given(case, "gt_reward_scale"))
    )


def arpo(case: Case) -> Objective:
    return objectives.arpo(
        beta=given(case, "beta"),
        level=given(case, "relax_cofficient_1"),
        growth=given(case, "relax_cofficient_2"),
        label_smoothing=given(case, "label_smoothing", 0.0),
        coefficient=0.0,  # the supervised term stands outside the recorded function
    )


def wpo(case: Case) -> Results:
    labels = case["labels"].long()
    (policy, mask), (reference, _) = (
        token_log_probs(case[f"{model}_logits"], labels) for model in ("policy", "ref")
    )
    squares = log_sum_squares(case["policy_logits"])[:, :-1]

    def candidates(value: Tensor) -> Tensor:
        return torch.stack(value.chunk(2), dim=1)

    scores = Scores(
        candidates(policy),
        candidates(reference),
        mask=candidates(mask),
        extras={"log_sum_squares": candidates(squares)},
    )
    beta, share = given(case, "beta"), given(case, "label_smoothing")
    out = run(objectives.wpo(beta=beta, label_smoothing=share), scores)
    unweighted = run(objectives.cdpo(beta=beta, label_smoothing=share), scores)
    return {
        "weights": out.loss / unweighted.loss,
        "policy_logps": torch.cat([out.metrics["score_chosen"], out.metrics["score_rejected"]]),
        "losses": out.loss,
        "loss": out.loss.mean(),
    }


def wpo_trl(case: Case) -> Results:
    squares = pair(case, "policy_chosen_token_log_sum_sq_probs", "policy_rejected_token_log_sum_sq_probs")
    scores = Scores(
        pair(case, "policy_chosen_token_logps", "policy_rejected_token_logps"),
        pair(case, "ref_chosen_token_logps", "ref_rejected_token_logps"),
        mask=pair(case, "chosen_mask", "rejected_mask"),
        extras={"log_sum_squares": squares},
    )
    out = run(objectives.wpo_unclamped(beta=given(case, "beta")), scores)
    chosen, rejected = out.metrics["reward_chosen"], out.metrics["reward_rejected"]
    return {
        "loss": out.loss.mean(),
        "logged_reward_chosen_mean": chosen.mean(),
        "logged_reward_rejected_mean": rejected.mean(),
        "logged_reward_accuracy": out.metrics["accuracy"].float().mean(),  # counted in float32 there
        "logged_reward_margin": (chosen - rejected).mean(),
    }


def gapo(case: Case) -> Results:
    """A network that predicts the clean sample, its error counted in the space of v."""
    root = torch.as_tensor(case["sqrt_alphas_cumprod"]).detach().reshape(1).to(torch.float64)
    elbo = Elbo(VPSchedule(root.square()), "sample", UniformTimesteps(), error_space="v_prediction")

    def candidates(value: Tensor) -> Tensor:
        return torch.stack(value.chunk(2), dim=1)

    clean = candidates(case["x0_chosen_then_rejected"])
    pairs, labels = clean.shape[0], Labels.pairs(clean.shape[0])
    noise = case["noise"].unsqueeze(1).expand_as(clean)
    draw = elbo.draw_at(clean, timestep=torch.zeros(clean.shape[:2], dtype=torch.int64), noise=noise)
    batch = Batch(
        clean=clean,
        conditioning=Conditioning(),
        labels=labels,
        weight=torch.ones(pairs),
        valid=torch.ones(pairs, dtype=torch.bool),
        keys=RowKeys(torch.arange(pairs), torch.zeros(pairs), pairs),
    )

    def score(prediction: Tensor) -> Tensor:
        return elbo.evaluate(lambda *_: candidates(prediction).flatten(0, 1), batch, draw).score

    reward = torch.stack([case[f"{side}_score"].reshape(-1) for side in ("w", "l")], dim=1)
    scores = Scores(
        score(case["policy_x0_prediction"]), score(case["reference_x0_prediction"]), reward=reward
    )
    beta = given(case, "beta_dpo")
    out = run(
        objectives.gapo_gap_aware(
            beta=beta, base=given(case, "gap_base"), reward_scale=given(case, "score_scale")
        ),
        scores,
    )
    return {
        "loss": out.loss.mean(),
        "gap_factor": (out.loss / run(objectives.dpo(beta=beta), scores).loss).mean(),
        "noisy_input": draw.noised.transpose(0, 1).flatten(0, 1),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "gapo": gapo,
    "text_alpha_dpo": alpha_dpo,
    "text_arpo": sequences(arpo),
    "text_beta_dpo": beta_dpo,
    "text_mallows_dpo": mallows_dpo,
    "text_modpo": modpo,
    "text_modpo_hinge": modpo,
    "text_nemo_rpo_bwd_kl": nemo(objectives.nemo_rpo_bwd_kl),
    "text_nemo_rpo_fwd_kl": nemo(objectives.nemo_rpo_fwd_kl),
    "text_nemo_rpo_sq": nemo(objectives.nemo_rpo_sq),
    "text_odpo": sequences(odpo),
    "text_wpo": wpo,
    "text_wpo_trl": wpo_trl,
}

LEFT_OUT: dict[str, dict[str, str]] = {}
