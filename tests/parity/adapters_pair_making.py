"""How the golden case of pair making calls the public interface. No formula stands here."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.evals.pairs import labels, selection
from mmalign.testing.parity import Case

Results = dict[str, Tensor | list[list[int]]]


def fronts_of(scores: Tensor) -> Tensor | list[list[int]]:
    """Fronts as a tensor where all are equally large, as the case is read."""
    found = selection.pareto_fronts(scores)
    return torch.tensor(found) if len({len(front) for front in found}) == 1 else found


def pair_making(case: Case) -> Results:
    settings = case.hyperparameters
    dtype = case["cosine_pickscore_pairs"].dtype
    scores = torch.tensor(list(case["scores_per_reward"].values()), dtype=dtype).T
    found = {how: selection.standings(scores, how) for how in ("win_probability", "z", "minmax")}
    counts = case["histogram_counts"].to(torch.float64)
    factors = labels.duplication_factor(
        case["pair_probability_score"], beta=settings["dup_beta"], constant=settings["videodpo_constant"]
    )
    return {
        "rank_per_reward": selection.ranks(scores),
        "mean_rank": -selection.standings(scores, "rank"),
        "pairwise_wins": selection.pairwise_wins(scores),
        "win_probability": found["win_probability"],
        "order_by_win_probability": found["win_probability"].argsort(descending=True, stable=True),
        "z_mean": found["z"],
        "minmax_mean": found["minmax"],
        "best": torch.tensor(selection.best_of(found["minmax"])),
        "worst": torch.tensor(selection.worst_of(found["minmax"])),
        "pairs_over_margin": torch.tensor(selection.pairs_over_margin(found["minmax"], settings["margin"])),
        "pareto_front": torch.tensor(selection.pareto_fronts(scores)[0]),
        "pareto_fronts": fronts_of(scores),
        "smpo_probability": labels.smoothed_preference(
            case["cosine_pickscore_pairs"], settings["smpo_min"], settings["smpo_max"]
        ),
        "histogram_probability": labels.histogram_probability(counts),
        "dup_factor": factors,
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {"eval_pair_making": pair_making}

LEFT_OUT: dict[str, dict[str, str]] = {}
