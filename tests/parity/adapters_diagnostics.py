"""How the golden cases of diagnostics call the public interface. No formula stands here."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.objectives import diagnostics
from mmalign.testing.parity import Case

Results = dict[str, Tensor]


def ches(case: Case, side: tuple[str, str], form: str) -> Tensor:
    states = [case[f"{name}_hidden"] for name in side]
    masks = [
        diagnostics.response_positions(case[f"{name}_last_prompt_index"], value.shape[1])
        for name, value in zip(side, states, strict=True)
    ]
    return diagnostics.ches_score(*states, chosen_mask=masks[0], rejected_mask=masks[1], form=form)


def text_ches(case: Case) -> Results:
    form = "mean" if case.hyperparameters["length_normalize"] else "sum"
    return {"ches": ches(case, ("chosen", "rejected"), form)}


def eval_ches(case: Case) -> Results:
    side = ("preferred", "dispreferred")
    return {"ches": ches(case, side, "sum"), "ches_length_normalised": ches(case, side, "mean")}


def calibration(case: Case) -> Results:
    lower, upper = case.hyperparameters.get("range", (0.5, 1.0))
    confidence, correct = case["confidence"], case["correct"]
    found = diagnostics.calibration(
        confidence, correct, num_bins=case.hyperparameters["bins"], lower=lower, upper=upper
    )
    temperature, nll = diagnostics.best_temperature(confidence, correct)
    columns = (found.bin_count, found.bin_confidence, found.bin_accuracy)
    number = torch.arange(len(found.bin_count), dtype=torch.float64)
    table = torch.stack([number, *columns], dim=1)[found.bin_count > 0]
    return {
        "ece": found.error,
        "mce": found.largest_error,
        "brier": found.brier,
        "nll": found.nll,
        "accuracy": found.accuracy,
        "bins_index_count_confidence_accuracy": table,
        "best_temperature": temperature,
        "nll_at_best_temperature": nll,
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "eval_ches": eval_ches,
    "eval_preference_calibration": calibration,
    "text_ches_score": text_ches,
}

LEFT_OUT: dict[str, dict[str, str]] = {}
