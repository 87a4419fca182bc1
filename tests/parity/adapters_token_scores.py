"""How the golden case of answer log-probabilities calls the public interface.

No formula stands here. Two ways lead to the numbers: the likelihood of language models, whose head is
the identity because the case records logits, and the statistics of whole logits with ignored labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign import objectives
from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.likelihood import Evaluation, TokenHead, Tokens, TokenStates, token_log_probs
from mmalign.objectives import Scores
from mmalign.objectives.reductions import reduce_inner
from mmalign.testing.parity import Case

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Places:
    """Where the scored tokens stand."""

    place: Tensor

    def to(self, device: torch.device | str) -> "Places":
        return Places(self.place.to(device))


def sides(values: Tensor) -> Tensor:
    """Chosen rows, then rejected rows, as [pair, candidate, ...]."""
    return torch.stack(values.chunk(2), dim=1)


def rows(values: Tensor) -> Tensor:
    """Back to the order of the files."""
    return torch.cat(values.unbind(1))


def evaluation(case: Case) -> Evaluation:
    """The case's logits as hidden states in front of an identity."""
    mask = sides(case["completion_mask"][:, 1:])
    before = sides(case["logits"][:, :-1]).flatten(0, 2)
    place = mask.flatten().nonzero().flatten()
    pairs = mask.shape[0]
    batch = Batch(
        clean=sides(case["input_ids"][:, 1:]),
        conditioning=Conditioning(),
        labels=Labels.pairs(pairs),
        weight=torch.ones(pairs),
        valid=torch.ones(pairs, dtype=torch.bool),
        keys=RowKeys(torch.arange(pairs), torch.zeros(pairs), pairs),
        element_mask=mask.to(before.dtype),
        context=Places(place),
    )
    head = TokenHead(torch.eye(before.shape[1], dtype=before.dtype))
    tokens = Tokens(chunk=2)
    return tokens.evaluate(
        lambda given: TokenStates(before[given.context.place], head), batch, tokens.draw(batch)
    )


def shortened(case: Case, inner: Tensor, mask: Tensor) -> Tensor:
    """What LD-DPO scores, [pair, candidate]."""
    objective = objectives.ld_dpo(beta=1.0, alpha=case.hyperparameters["ld_alpha"])
    metrics = objective(Scores(inner, inner.detach(), mask=mask), Labels.pairs(inner.shape[0])).metrics
    return torch.stack([metrics["score_chosen"], metrics["score_rejected"]], dim=1)


def vlm_logps(case: Case) -> Results:
    found = evaluation(case)
    short = shortened(case, found.inner, found.mask)
    values, mask = token_log_probs(case["logits"], case["labels"].long())
    values, mask = sides(values), sides(mask)
    return {
        "trl_chosen_logps": found.score[:, 0],
        "trl_rejected_logps": found.score[:, 1],
        "trl_chosen_logps_ld": short[:, 0],
        "trl_rejected_logps_ld": short[:, 1],
        "per_token_logps_masked": rows(found.inner),
        "llamafactory_logps": rows(reduce_inner(values, mask, "sum")),
        "llamafactory_logps_ld": rows(shortened(case, values, mask)),
        "valid_length": rows(mask.sum(-1)),
    }


ADAPTERS: dict[str, Callable[[Case], Results]] = {"vlm_logps": vlm_logps}

LEFT_OUT: dict[str, dict[str, str]] = {}
