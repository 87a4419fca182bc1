"""Random inputs for every registered objective, and what the checks of the conformance suite share."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.batch import Labels
from mmalign.objectives.base import ObjectiveOutput, Scores
from mmalign.objectives.objective import Objective, Registered

__all__ = [
    "INNER",
    "PER_POSITION",
    "PROMPTS",
    "Check",
    "built_of",
    "equal",
    "example",
    "labels_of",
    "policy_gradient",
]


Check = Callable[[Registered], list[str]]
PROMPTS, INNER = 5, 3
# Shapes of extra inputs that are not [prompt, candidate].
_EXTRA_SHAPES = {
    "noise_level": (PROMPTS,),
    "pair_weight": (PROMPTS,),
    "temperature_factor": (PROMPTS,),
    "mismatched_log_ratio": (7,),
    "whole_score": (PROMPTS,),
    "whole_length": (PROMPTS,),
    "task_weight": (PROMPTS,),
    "gold_score": (PROMPTS,),
    "gold_length": (PROMPTS,),
    "response_log_ratio": (PROMPTS,),
    "reference_sample_score": (PROMPTS,),
    "rationale_score": (PROMPTS,),
    "intra_log_ratio_gap": (PROMPTS,),
    "inter_log_ratio_gap": (PROMPTS,),
    "reference_entropy": (PROMPTS,),
    "selected": (PROMPTS,),
    "semantic_gap": (PROMPTS,),
}
# Extra inputs with one number per position, where the scores have positions.
PER_POSITION = frozenset(
    {
        "preference",
        "image_relation",
        "imageless_score",
        "token_severity",
        "changed",
        "kept_positions",
        "kept_reference_positions",
        "kl_mask",
        "log_sum_squares",
        "phrase",
        "reward_mask",
        "reward_model_score",
        "token_mask",
        "value",
        "step_weight",
    }
)


def _shape_of(extra: str, shape: tuple[int, int], inner: int) -> tuple[int, ...]:
    if extra in PER_POSITION and inner:
        return (*shape, inner)
    return _EXTRA_SHAPES.get(extra, shape)


def built_of(objective: Registered) -> Objective:
    """The objective with its sample hyperparameters."""
    return objective.builder(**objective.sample)


def candidates_of(objective: Registered) -> int:
    """As many as its terms name, or the usual number for its data."""
    named = max((term.width for term in built_of(objective).terms), default=0)
    return named or {"pairs": 2, "lists": 3, "unpaired": 1}[objective.row.data]


def example(
    objective: Registered, *, dtype: torch.dtype = torch.float64, seed: int = 0, inner: int = 0
) -> tuple[Scores, Labels]:
    """Random scores and labels with everything the objective needs.

    Scores are negative, as log-likelihoods and negative errors are, and the reference lies near the policy.

    Args:
        objective: whose needs to fill.
        dtype: of all floating inputs.
        seed: of the random numbers.
        inner: positions of every candidate, with a mask of which each keeps at least one; 0 for reduced
            scores.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (PROMPTS, candidates_of(objective))
    deep = (*shape, inner) if inner else shape
    needs = built_of(objective).needs

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, dtype=torch.float64).to(dtype)

    policy = -0.1 - 2.0 * draw(*deep)
    mask = None
    if inner:
        mask = (draw(*deep) > 0.4).to(dtype)
        mask[..., 0] = 1.0
    scores = Scores(
        policy=policy.requires_grad_(),
        reference=policy.detach() + 0.4 * (draw(*deep) - 0.5) if "reference" in needs else None,
        mask=mask,
        length=1.0 + 9.0 * draw(*shape) if "length" in needs and mask is None else None,
        kl=draw(*deep) if "kl" in needs else None,
        reward=draw(*shape).sort(1, descending=True).values if "reward" in needs else None,
        extras={
            name: draw(*_shape_of(name, shape, inner))
            for name in sorted(needs - {"reference", "length", "kl", "reward"})
        },
    )
    return scores, labels_of(objective)


def labels_of(objective: Registered) -> Labels:
    """Hard labels of the kind its data have."""
    if objective.row.data == "unpaired":
        return Labels.unpaired(torch.arange(PROMPTS) % 2 == 0)
    if objective.row.data == "lists":
        order = torch.arange(candidates_of(objective), 0, -1, dtype=torch.float64)
        return Labels(relevance=(order / 4.0).expand(PROMPTS, -1).clone())
    return Labels.pairs(PROMPTS)


def equal(first: Tensor, second: Tensor) -> bool:
    """Equal but for rounding in float64."""
    return torch.allclose(first, second, rtol=1e-9, atol=1e-12)


def policy_gradient(output: ObjectiveOutput, scores: Scores) -> Tensor:
    """Gradient of the summed loss in the policy's scores; 0 where the loss does not look at them."""
    (gradient,) = torch.autograd.grad(output.loss.sum(), scores.policy, allow_unused=True)
    return torch.zeros_like(scores.policy) if gradient is None else gradient
