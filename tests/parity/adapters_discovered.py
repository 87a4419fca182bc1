"""How the golden cases of the discovered losses call the public interface."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign import objectives
from mmalign.batch import Labels
from mmalign.objectives import Objective, Scores
from mmalign.testing.parity import Case

Results = dict[str, Tensor]
IN_FLOAT32 = torch.tensor(0.9, dtype=torch.float32).item()  # the released code multiplies 0.9 into float32


def adapter(build: Callable[..., Objective], **constants: float) -> Callable[[Case], Results]:
    """Losses per pair and their mean; constants the released code does not take as arguments."""

    def results(case: Case) -> Results:
        scores = Scores(
            torch.stack([case["policy_chosen_logps"], case["policy_rejected_logps"]], dim=1),
            torch.stack([case["ref_chosen_logps"], case["ref_rejected_logps"]], dim=1),
        )
        objective = build(beta=case.hyperparameters["beta"], **constants)
        losses = objective(scores, Labels.pairs(scores.policy.shape[0])).loss
        return {"losses": losses, "loss": losses.mean()}

    return results


ADAPTERS: dict[str, Callable[[Case], Results]] = {
    "text_discovered_lrml": adapter(objectives.discopop, temperature=0.05),
    "text_discovered_cell": adapter(objectives.discovered_cell),
    "text_discovered_padll": adapter(objectives.discovered_padll, decay=IN_FLOAT32),
    "text_discovered_pfl": adapter(objectives.discovered_pfl),
    "text_discovered_aql": adapter(objectives.discovered_aql, temperature=0.05),
    "text_discovered_aqfl": adapter(objectives.discovered_aqfl),
    "text_discovered_dbaql": adapter(objectives.discovered_dbaql),
}
LEFT_OUT: dict[str, dict[str, str]] = {}
