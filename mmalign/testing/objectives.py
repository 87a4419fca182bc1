"""Conformance suite of objectives: what every registered one must do, whatever its formula.

A check takes a `Registered` objective and returns what is wrong, in words; an empty list means nothing.
`CHECKS` names them all; `problems(name)` runs them. An objective that rightly lacks a property says so, with
the reason, in `allows` of its decorator, under the check's name; an exemption that is no longer needed is
reported too. Checks on changed inputs stand in `objective_properties`, the inputs in `objective_examples`.
"""

from collections.abc import Mapping
from dataclasses import replace
from inspect import Parameter, signature

import torch
from torch import Tensor

from mmalign.batch import Labels
from mmalign.errors import HyperparameterError
from mmalign.objectives.base import ObjectiveState, Scores
from mmalign.objectives.objective import Registered, registered
from mmalign.testing.objective_examples import (
    INNER,
    PER_POSITION,
    PROMPTS,
    Check,
    built_of,
    equal,
    example,
    labels_of,
    policy_gradient,
)
from mmalign.testing.objective_properties import common_level, resuming, sharding, splitting

__all__ = [
    "CHECKS",
    "PROMPTS",
    "Check",
    "example",
    "problems",
]


METRICS = frozenset(
    {
        "accuracy",
        "gradient_factor",
        "log_ratio_chosen",
        "log_ratio_rejected",
        "logit",
        "margin",
        "score_chosen",
        "score_rejected",
    }
)


def _contract(objective: Registered) -> list[str]:
    """Shapes, names, detachment; terms add up to the loss; the formula is printed."""
    built = built_of(objective)
    scores, labels = example(objective)
    out = built(scores, labels, ObjectiveState())
    found = []
    if tuple(out.loss.shape) != (PROMPTS,) or tuple(out.logit.shape) != (PROMPTS,):
        found.append(
            f"loss has shape {list(out.loss.shape)}, logit {list(out.logit.shape)}, not one per prompt"
        )
    if not out.loss.requires_grad:
        found.append("the loss carries no gradient")
    if not equal(torch.stack(list(out.terms.values())).sum(0), out.loss):
        found.append("terms do not add up to the loss")
    missing = METRICS - set(out.metrics)
    if missing:
        found.append(f"metrics lack {sorted(missing)}")
    for name, value in out.metrics.items():
        if value.requires_grad or tuple(value.shape) != (PROMPTS,) or not bool(torch.isfinite(value).all()):
            found.append(f"metric {name} is not a finite, detached number per prompt")
    if not set(out.applies) <= set(out.metrics):
        found.append("applies names something that is no metric")
    if not built.formula.startswith("loss = ") or built.name not in str(built):
        found.append("printing it shows no formula")
    return found


def _dtypes(objective: Registered) -> list[str]:
    """float64 stays float64; float32 and half precision come out as float32."""
    found = []
    for given, wanted in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ):
        out = built_of(objective)(*example(objective, dtype=given))
        wrong = {
            name
            for name, value in {"loss": out.loss, "logit": out.logit, **out.metrics}.items()
            if value.dtype != wanted
        }
        if wrong:
            found.append(f"{given} scores: {sorted(wrong)} are not {wanted}")
    return found


def _rows_apart(objective: Registered) -> list[str]:
    """A row's loss depends on no other row, unless the objective says that it couples rows; then it does."""
    built = built_of(objective)
    scores, labels = example(objective)
    policy = scores.policy.detach().clone()
    policy[0] += 3.0 if objective.row.data == "unpaired" else torch.linspace(3.0, -2.0, policy.shape[1])
    before, after = built(scores, labels), built(replace(scores, policy=policy), labels)
    moved = not equal(before.loss[1:], after.loss[1:])
    if moved and not built.couples_rows:
        return ["another row's loss changed with row 0, and couples_rows is False"]
    if built.couples_rows and not moved:
        return ["couples_rows is True, and no other row's loss changed with row 0"]
    return []


def _permutation(objective: Registered) -> list[str]:
    """Permuting the rows permutes the losses."""
    scores, labels = example(objective)
    order = torch.tensor([3, 0, 4, 1, 2])

    def permute(value: Tensor | None) -> Tensor | None:
        return value if value is None or value.shape[0] != PROMPTS else value[order]

    moved = Scores(
        policy=scores.policy[order],
        reference=permute(scores.reference),
        length=permute(scores.length),
        kl=permute(scores.kl),
        reward=permute(scores.reward),
        extras={
            name: value if value.shape[0] != PROMPTS else value[order]
            for name, value in scores.extras.items()
        },
    )
    relabelled = Labels(
        permute(labels.probability), permute(labels.desirable), permute(labels.relevance), labels.valid
    )
    built = built_of(objective)
    if equal(built(scores, labels).loss[order], built(moved, relabelled).loss):
        return []
    return ["permuting the rows does not permute the losses"]


def _at_start(objective: Registered) -> Scores:
    """Policy equal to the reference, and all candidates equally likely."""
    scores, _ = example(objective)
    level = torch.full_like(scores.policy.detach(), -0.7)
    extras = {
        name: torch.zeros_like(value) if "log_ratio" in name or name == "drift" else value
        for name, value in scores.extras.items()
    }
    return replace(
        scores,
        policy=level.requires_grad_(),
        reference=None if scores.reference is None else level.detach().clone(),
        kl=None if scores.kl is None else torch.zeros_like(scores.kl),
        extras=extras,
    )


def _gradient_signs(objective: Registered) -> list[str]:
    """At the start a step lowers no liked candidate and raises no other one, and moves something."""
    scores, labels = _at_start(objective), labels_of(objective)
    gradient = policy_gradient(built_of(objective)(scores, labels), scores)
    if objective.row.data == "unpaired" and labels.desirable is not None:
        liked, other = gradient[labels.desirable], gradient[~labels.desirable]
    else:
        liked, other = gradient[:, 0], gradient[:, -1]
    found = []
    if bool((liked > 0).any()):
        found.append("minimising it makes a liked candidate less likely")
    if bool((other < 0).any()):
        found.append("minimising it makes a rejected candidate more likely")
    if not bool((gradient != 0).any()):
        found.append("the gradient is zero at the start")
    return found


def _logit(objective: Registered) -> list[str]:
    """Policy = reference gives logit exactly 0; a liked candidate made more likely raises it."""
    built = built_of(objective)
    scores, labels = _at_start(objective), labels_of(objective)
    start = built(scores, labels).logit
    found = []
    if "reference" in built.needs and bool((start != 0).any()):
        found.append(f"policy equals reference and the logit is {start.tolist()}")
    if not built.terms:
        return found
    # Only one row moves: a zero point that follows the batch must not follow it completely.
    better = scores.policy.detach().clone()
    better[0, 0] += 0.1
    if not bool(built(replace(scores, policy=better), labels).logit[0] > start[0]):
        found.append("a more likely liked candidate does not raise the logit")
    return found


def _extremes(objective: Registered) -> list[str]:
    """Finite loss and gradient at |z| = 1e4 in float32 and bfloat16, on both sides."""
    built = built_of(objective)
    distance = 1e4 / float(objective.sample.get("beta", 1.0))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for side in (0, -1):
            scores, labels = example(objective, dtype=dtype)
            policy = torch.zeros_like(scores.policy.detach())
            policy[:, side] = -distance
            pushed = replace(scores, policy=policy.requires_grad_())
            out = built(pushed, labels)
            gradient = policy_gradient(out, pushed)
            if not bool(torch.isfinite(out.loss).all()) or not bool(torch.isfinite(gradient).all()):
                found.append(
                    f"{dtype}: loss or gradient is not finite with candidate {side} at -{distance:g}"
                )
    return found


def _stop_gradient(objective: Registered) -> list[str]:
    """No gradient reaches the reference or a reward."""
    scores, labels = example(objective)
    watched = replace(
        scores,
        reference=None if scores.reference is None else scores.reference.clone().requires_grad_(),
        reward=None if scores.reward is None else scores.reward.clone().requires_grad_(),
    )
    built_of(objective)(watched, labels).loss.sum().backward()
    sources = {"reference": watched.reference, "reward": watched.reward}
    return [
        f"gradient reaches the {name}"
        for name, value in sources.items()
        if value is not None and value.grad is not None
    ]


def _swapping(objective: Registered) -> list[str]:
    """Exchanging the candidates and mirroring the label changes no loss; a tie is symmetric."""
    if objective.row.data != "pairs":
        return []
    built = built_of(objective)
    scores, _ = example(objective)
    found = []
    for q in (1.0, 0.8, 0.5):
        given = torch.full((PROMPTS,), q, dtype=torch.float64)
        first = built(scores, Labels(probability=given))
        second = built(scores.swapped(), Labels(probability=1.0 - given))
        if not equal(first.loss, second.loss):
            found.append(f"exchanging the candidates changes the loss at label probability {q}")
        if not equal(first.metrics["accuracy"], second.metrics["accuracy"]):
            found.append(f"exchanging the candidates changes the accuracy at label probability {q}")
    return found


def _padding(objective: Registered) -> list[str]:
    """Rows that do not count cost 0, whatever they hold, and leave the others as they are."""
    built = built_of(objective)
    scores, labels = example(objective)
    valid = torch.ones(scores.policy.shape, dtype=torch.bool)
    valid[1] = False
    policy = scores.policy.detach().clone()
    policy[1] = float("nan")
    broken = replace(scores, policy=policy.requires_grad_())
    out = built(broken, replace(labels, valid=valid))
    gradient = policy_gradient(out, broken)
    found = []
    if out.loss[1] != 0 or out.valid[1]:
        found.append("a row without valid candidates has a loss")
    if not bool(torch.isfinite(out.loss).all()) or bool((gradient[1] != 0).any()):
        found.append("a row without valid candidates spoils losses or has a gradient")
    if not bool(torch.isfinite(gradient).all()):
        found.append("a row without valid candidates spoils gradients")
    kept = torch.tensor([0, 2, 3, 4])
    if not built.couples_rows and not equal(out.loss[kept], built(scores, labels).loss[kept]):
        found.append("a row without valid candidates changes the others")
    return found


def _half_padded(objective: Registered) -> list[str]:
    """Whatever a padded candidate holds in any input, the others keep finite losses and gradients."""
    built = built_of(objective)
    scores, labels = example(objective)
    if scores.num_candidates == 1:
        return []
    valid = torch.ones(scores.policy.shape, dtype=torch.bool)
    valid[1, -1] = False

    def spoil(value: Tensor | None) -> Tensor | None:
        if value is None or value.ndim < 2 or value.shape[:2] != valid.shape:
            return value
        broken = value.detach().clone()
        broken[1, -1] = float("nan")
        return broken

    policy = spoil(scores.policy)
    spoiled = replace(
        scores,
        policy=scores.policy if policy is None else policy.requires_grad_(),
        reference=spoil(scores.reference),
        length=spoil(scores.length),
        kl=spoil(scores.kl),
        reward=spoil(scores.reward),
        extras={name: spoil(value) for name, value in scores.extras.items()},  # type: ignore[misc]
    )
    out = built(spoiled, replace(labels, valid=valid))
    gradient = policy_gradient(out, spoiled)
    found = []
    if not bool(torch.isfinite(out.loss).all()):
        found.append("a padded candidate that holds NaN spoils a loss")
    if not bool(torch.isfinite(gradient).all()):
        found.append("a padded candidate that holds NaN spoils a gradient")
    return found


def _inner_axis(objective: Registered) -> list[str]:
    """One position per candidate is the same as none, and masked positions are never looked at."""
    built = built_of(objective)
    scores, labels = example(objective)
    if scores.length is not None:
        scores = replace(scores, length=torch.ones_like(scores.length))
    noise = torch.full((*scores.policy.shape, INNER - 1), float("nan"), dtype=scores.policy.dtype)

    def widen(value: Tensor | None) -> Tensor | None:
        return None if value is None else torch.cat([value.detach().unsqueeze(2), noise], dim=2)

    mask = torch.zeros(*scores.policy.shape, INNER)
    mask[..., 0] = 1.0
    policy = widen(scores.policy)
    wide = replace(
        scores,
        policy=scores.policy if policy is None else policy.requires_grad_(),
        reference=widen(scores.reference),
        mask=mask,
        extras={
            name: value if name not in PER_POSITION else torch.cat([value.unsqueeze(2), noise], dim=2)
            for name, value in scores.extras.items()
        },
    )
    flat, deep = built(scores, labels), built(wide, labels)
    gradient = policy_gradient(deep, wide)
    found = []
    if not equal(flat.loss, deep.loss):
        found.append("one unmasked position gives another loss than no inner axis")
    if not bool((gradient[..., 1:] == 0).all()):
        found.append("a masked position has a gradient")
    return found


def _algebra(objective: Registered) -> list[str]:
    """Scaling scales the loss, adding adds it, and the logit stays that of the first."""
    built = built_of(objective)
    scores, labels = example(objective)
    plain, doubled, added = (each(scores, labels) for each in (built, 2 * built, built + 0.5 * built))
    found = []
    if not equal(doubled.loss, 2 * plain.loss) or not equal(added.loss, 1.5 * plain.loss):
        found.append("scaling or adding objectives does not scale or add losses")
    if not equal(doubled.logit, plain.logit) or not equal(added.logit, plain.logit):
        found.append("scaling or adding objectives changes the logit")
    return found


def _hyperparameters(objective: Registered) -> list[str]:
    """Hyperparameters are keyword-only, and a NaN is refused."""
    found = []
    for name, parameter in signature(objective.builder).parameters.items():
        if parameter.kind is not Parameter.KEYWORD_ONLY:
            found.append(f"{name} is not keyword-only")
        given = objective.sample.get(name, parameter.default)
        if isinstance(given, bool) or not isinstance(given, int | float):
            continue
        try:
            objective.builder(**{**objective.sample, name: float("nan")})
        except HyperparameterError:
            continue
        found.append(f"{name} may be NaN")
    return found


CHECKS: Mapping[str, Check] = {
    "contract": _contract,
    "dtypes": _dtypes,
    "rows apart": _rows_apart,
    "permutation": _permutation,
    "gradient signs": _gradient_signs,
    "logit": _logit,
    "extremes": _extremes,
    "stop gradient": _stop_gradient,
    "swapping": _swapping,
    "padding": _padding,
    "half padded": _half_padded,
    "inner axis": _inner_axis,
    "algebra": _algebra,
    "hyperparameters": _hyperparameters,
    "common level": common_level,
    "splitting": splitting,
    "sharding": sharding,
    "resuming": resuming,
}


def problems(name: str, check: str) -> list[str]:
    """What is wrong with one property of one registered objective; exemptions are held to be needed.

    Args:
        name: of the objective.
        check: a key of `CHECKS`.
    """
    objective = registered(name)
    found = CHECKS[check](objective)
    if check in objective.allows:
        return [] if found else [f"allows {check!r} ({objective.allows[check]}), and the check passes"]
    return found
