"""How the golden cases of the harness's statistics call the public interface. No formula stands here."""

import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mmalign.evals import diversity, statistics
from mmalign.testing.parity import Case

Results = dict[str, Tensor]


def tensor(value: object) -> Tensor:
    return torch.as_tensor(np.asarray(value, dtype=np.float64))


def ends(interval: statistics.Interval) -> Tensor:
    return tensor([interval.low, interval.high])


def win_rates(case: Case) -> Results:
    how = statistics.Resampling(
        confidence=case.hyperparameters["confidence"], picks=np.asarray(case["resample_indices"])
    )
    first, second = case["model_a"], case["model_b"]
    rate = statistics.win_rate(first, second, how=how)
    margin = case.hyperparameters["tie_margin"]
    wider = statistics.win_rate(first, second, tie_margin=margin, how=how)
    gap = statistics.mean_difference(first, second, how=how)
    outcome = statistics.outcomes(first, second)
    return {
        "wins": torch.tensor(rate.wins),
        "ties": torch.tensor(rate.ties),
        "losses": torch.tensor(rate.losses),
        "win_rate_ties_half": tensor(rate.rate.value),
        "win_rate_strict": tensor(rate.strict.value),
        "win_rate_ties_dropped": tensor(rate.dropped.value),
        "win_rate_with_margin": tensor(wider.rate.value),
        "mean_difference": tensor(gap.difference.value),
        "median_a": tensor(gap.median_first),
        "median_b": tensor(gap.median_second),
        "wilson_interval": ends(rate.wilson),
        "bootstrap_win_rates": tensor(statistics.resampled_means(outcome[:, None], how)[:, 0]),
        "bootstrap_win_rate_interval": ends(rate.rate),
        "bootstrap_mean_difference_interval": ends(gap.difference),
        "sign_test_p": tensor(rate.sign.p_value),
        "standard_error_of_mean_difference": tensor(gap.standard_error),
        "effect_size": tensor(gap.effect_size),
    }


def strengths(case: Case) -> Results:
    plain = statistics.bradley_terry(case["wins"], case["ties"])
    tied = statistics.davidson(case["wins"], case["ties"])
    settings = case.hyperparameters
    final = statistics.sequential_elo(
        case["games"],
        len(case["wins"]),
        k=settings["elo_K"],
        initial=settings["elo_init"],
        scale=settings["elo_scale"],
    )
    return {
        "bt_strength": tensor(plain.strength),
        "bt_elo_scale": tensor(plain.elo),
        "bt_win_probability": tensor(plain.win_probability),
        "bt_log_likelihood": tensor(plain.log_likelihood),
        "bt_standard_error": tensor(plain.standard_error),
        "davidson_strength": tensor(tied.strength),
        "davidson_nu": tensor(tied.tie_parameter),
        "davidson_log_likelihood": tensor(tied.log_likelihood),
        "elo_final": tensor(final),
    }


def over_optimisation(case: Case) -> Results:
    found = statistics.overoptimisation_report(
        case["proxy_scores_by_checkpoint"], {"held out": case["held_out_scores_by_checkpoint"]}
    )
    drift = statistics.kl_estimates(case["logp_policy"], case["logp_reference"])
    return {
        "best_of_n_kl": tensor(statistics.best_of_n_kl(case["best_of_n"])),
        "proxy_gain": tensor(found.proxy_gain),
        "held_out_gain": tensor(found.held_out["held out"]),
        "gap": tensor(found.gap),
        "kl_k1": tensor(drift.k1),
        "kl_k3": tensor(drift.k3),
    }


def sample_diversity(case: Case) -> Results:
    found = diversity.prompt_diversity(case["embeddings"])
    return {
        "mean_pairwise_cosine": tensor(found.mean_cosine),
        "mean_pairwise_distance": tensor(found.distance),
        "max_pairwise_cosine": tensor(found.largest_cosine),
        "vendi": tensor(found.vendi),
        "vendi_order_2": tensor(found.vendi_2),
        "eigenvalues": tensor(found.eigenvalues),
    }


def pairwise_accuracy(case: Case) -> Results:
    human, first, second = case["human"], case["score_a"], case["score_b"]
    (scale,) = re.findall(r"softmax\((\S+?)\*", case.hyperparameters["probability"])
    probability = statistics.pair_probability(first, second, scale=float(scale))
    thresholds = case.hyperparameters["pickscore_thresholds"]
    chosen = statistics.threshold_search(
        human, probability[:, 0] - probability[:, 1], thresholds, statistics.tie_rule("pickapic")
    )
    gap = first - second
    calibrated = statistics.threshold_search(human, gap, statistics.calibrated_thresholds(gap))
    plain = statistics.pair_agreement(human, gap, statistics.tie_rule("without_ties"))
    ranked = statistics.ranking_agreement(
        [tensor(ranks) for ranks in case["human_ranks"]], [tensor(row) for row in case["predicted_rewards"]]
    )
    return {
        "pickscore_probabilities": tensor(probability),
        "pickscore_accuracy_per_threshold": tensor(chosen.accuracies),
        "pickscore_best_threshold": tensor(chosen.best_threshold),
        "pickscore_best_accuracy": tensor(chosen.best_accuracy),
        "videoalign_accuracy_without_ties": tensor(plain.accuracy.value),
        "videoalign_accuracy_with_ties": tensor(statistics.videoalign_accuracy_with_ties(human, gap)),
        "tie_calibrated_accuracy": tensor(calibrated.best_accuracy),
        "tie_calibrated_epsilon": tensor(calibrated.best_threshold),
        "imagereward_accuracy": tensor(ranked.pooled.value),
        "imagereward_accuracy_mean_over_prompts": tensor(ranked.mean_over_prompts.value),
        "hpdv2_ranking_accuracy_per_prompt": tensor(ranked.per_prompt),
        "hpdv2_ranking_accuracy": tensor(ranked.inversions.value),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "eval_bradley_terry_elo": strengths,
    "eval_diversity": sample_diversity,
    "eval_overoptimisation": over_optimisation,
    "eval_pairwise_accuracy": pairwise_accuracy,
    "eval_winrate_bootstrap": win_rates,
}

LEFT_OUT: dict[str, dict[str, str]] = {}
