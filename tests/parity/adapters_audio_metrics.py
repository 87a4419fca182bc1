"""How the golden cases of audio metrics call the public interface. No formula stands here."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.evals.class_scores import class_divergence, inception_score
from mmalign.evals.set_distances import frechet_distance, kernel_distance
from mmalign.testing.parity import Case

Results = dict[str, Tensor]


def audioldm_eval_metrics(case: Case) -> Results:
    logits = case["reference_logits"], case["generated_logits"]
    features = case["generated_features"], case["reference_features"]
    drawn, kernel = case.hyperparameters["isc"], case.hyperparameters["kid"]
    inception = inception_score(logits[1], splits=drawn["splits"], seed=drawn["rng_seed"])
    distance = kernel_distance(
        *features,
        subset_size=kernel["subset_size"],
        num_subsets=kernel["subsets"],
        seed=kernel["rng_seed"],
        released=True,
    )
    wide = torch.float64
    return {
        "kullback_leibler_divergence_sigmoid": class_divergence(*logits, over="sigmoid").mean(),
        "kullback_leibler_divergence_softmax": class_divergence(*logits).mean(),
        "inception_score_mean": torch.tensor(inception.value, dtype=wide),
        "inception_score_std": torch.tensor(inception.spread, dtype=wide),
        "frechet_distance": frechet_distance(*features),
        "kernel_inception_distance_mean": torch.tensor(distance.value, dtype=wide),
        "kernel_inception_distance_std": torch.tensor(distance.spread, dtype=wide),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {"audioldm_eval_metrics": audioldm_eval_metrics}

LEFT_OUT: dict[str, dict[str, str]] = {}
