"""Conformance suite of objectives: what every registered one must do, whatever its formula.

A check takes a `Registered` objective and returns what is wrong, in words; an empty list means nothing.
`CHECKS` names them all; `problems(name)` runs them. An objective that rightly lacks a property says so, with
the reason, in `allows` of its decorator, under the check's name; an exemption that is no longer needed is
reported too.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import Parameter, signature

import torch
from torch import Tensor

from mmalign.batch import Labels
from mmalign.errors import HyperparameterError
from mmalign.objectives.base import Computed, ObjectiveOutput, ObjectiveState, Scores
from mmalign.objectives.objective import Objective, Registered, registered

__all__ = ["CHECKS", "Check", "example", "problems"]

Check = Callable[[Registered], list[str]]

PROMPTS, INNER = 5, 3
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
_PER_POSITION = frozenset(
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
    if extra in _PER_POSITION and inner:
        return (*shape, inner)
    return _EXTRA_SHAPES.get(extra, shape)


def _built(objective: Registered) -> Objective:
    return objective.builder(**objective.sample)


def _candidates(objective: Registered) -> int:
    """As many as its terms name, or the usual number for its data."""
    named = max((term.width for term in _built(objective).terms), default=0)
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
    shape = (PROMPTS, _candidates(objective))
    deep = (*shape, inner) if inner else shape
    needs = _built(objective).needs

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
    return scores, _labels(objective)


def _labels(objective: Registered) -> Labels:
    if objective.row.data == "unpaired":
        return Labels.unpaired(torch.arange(PROMPTS) % 2 == 0)
    if objective.row.data == "lists":
        order = torch.arange(_candidates(objective), 0, -1, dtype=torch.float64)
        return Labels(relevance=(order / 4.0).expand(PROMPTS, -1).clone())
    return Labels.pairs(PROMPTS)


def _equal(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-9, atol=1e-12)


def _policy_gradient(output: ObjectiveOutput, scores: Scores) -> Tensor:
    (gradient,) = torch.autograd.grad(output.loss.sum(), scores.policy, allow_unused=True)
    return torch.zeros_like(scores.policy) if gradient is None else gradient


def _contract(objective: Registered) -> list[str]:
    """Shapes, names, detachment; terms add up to the loss; the formula is printed."""
    built = _built(objective)
    scores, labels = example(objective)
    out = built(scores, labels, ObjectiveState())
    found = []
    if tuple(out.loss.shape) != (PROMPTS,) or tuple(out.logit.shape) != (PROMPTS,):
        found.append(
            f"loss has shape {list(out.loss.shape)}, logit {list(out.logit.shape)}, not one per prompt"
        )
    if not out.loss.requires_grad:
        found.append("the loss carries no gradient")
    if not _equal(torch.stack(list(out.terms.values())).sum(0), out.loss):
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
        out = _built(objective)(*example(objective, dtype=given))
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
    built = _built(objective)
    scores, labels = example(objective)
    policy = scores.policy.detach().clone()
    policy[0] += 3.0 if objective.row.data == "unpaired" else torch.linspace(3.0, -2.0, policy.shape[1])
    before, after = built(scores, labels), built(replace(scores, policy=policy), labels)
    moved = not _equal(before.loss[1:], after.loss[1:])
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
    built = _built(objective)
    if _equal(built(scores, labels).loss[order], built(moved, relabelled).loss):
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
    scores, labels = _at_start(objective), _labels(objective)
    gradient = _policy_gradient(_built(objective)(scores, labels), scores)
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
    built = _built(objective)
    scores, labels = _at_start(objective), _labels(objective)
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
    built = _built(objective)
    distance = 1e4 / float(objective.sample.get("beta", 1.0))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for side in (0, -1):
            scores, labels = example(objective, dtype=dtype)
            policy = torch.zeros_like(scores.policy.detach())
            policy[:, side] = -distance
            pushed = replace(scores, policy=policy.requires_grad_())
            out = built(pushed, labels)
            gradient = _policy_gradient(out, pushed)
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
    _built(objective)(watched, labels).loss.sum().backward()
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
    built = _built(objective)
    scores, _ = example(objective)
    found = []
    for q in (1.0, 0.8, 0.5):
        given = torch.full((PROMPTS,), q, dtype=torch.float64)
        first = built(scores, Labels(probability=given))
        second = built(scores.swapped(), Labels(probability=1.0 - given))
        if not _equal(first.loss, second.loss):
            found.append(f"exchanging the candidates changes the loss at label probability {q}")
        if not _equal(first.metrics["accuracy"], second.metrics["accuracy"]):
            found.append(f"exchanging the candidates changes the accuracy at label probability {q}")
    return found


def _padding(objective: Registered) -> list[str]:
    """Rows that do not count cost 0, whatever they hold, and leave the others as they are."""
    built = _built(objective)
    scores, labels = example(objective)
    valid = torch.ones(scores.policy.shape, dtype=torch.bool)
    valid[1] = False
    policy = scores.policy.detach().clone()
    policy[1] = float("nan")
    broken = replace(scores, policy=policy.requires_grad_())
    out = built(broken, replace(labels, valid=valid))
    gradient = _policy_gradient(out, broken)
    found = []
    if out.loss[1] != 0 or out.valid[1]:
        found.append("a row without valid candidates has a loss")
    if not bool(torch.isfinite(out.loss).all()) or bool((gradient[1] != 0).any()):
        found.append("a row without valid candidates spoils losses or has a gradient")
    if not bool(torch.isfinite(gradient).all()):
        found.append("a row without valid candidates spoils gradients")
    kept = torch.tensor([0, 2, 3, 4])
    if not built.couples_rows and not _equal(out.loss[kept], built(scores, labels).loss[kept]):
        found.append("a row without valid candidates changes the others")
    return found


def _inner_axis(objective: Registered) -> list[str]:
    """One position per candidate is the same as none, and masked positions are never looked at."""
    built = _built(objective)
    scores, labels = example(objective)
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
            name: value if name not in _PER_POSITION else torch.cat([value.unsqueeze(2), noise], dim=2)
            for name, value in scores.extras.items()
        },
    )
    flat, deep = built(scores, labels), built(wide, labels)
    gradient = _policy_gradient(deep, wide)
    found = []
    if not _equal(flat.loss, deep.loss):
        found.append("one unmasked position gives another loss than no inner axis")
    if not bool((gradient[..., 1:] == 0).all()):
        found.append("a masked position has a gradient")
    return found


def _algebra(objective: Registered) -> list[str]:
    """Scaling scales the loss, adding adds it, and the logit stays that of the first."""
    built = _built(objective)
    scores, labels = example(objective)
    plain, doubled, added = (each(scores, labels) for each in (built, 2 * built, built + 0.5 * built))
    found = []
    if not _equal(doubled.loss, 2 * plain.loss) or not _equal(added.loss, 1.5 * plain.loss):
        found.append("scaling or adding objectives does not scale or add losses")
    if not _equal(doubled.logit, plain.logit) or not _equal(added.logit, plain.logit):
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


def _only_differences(built: Objective) -> bool:
    """Whether the loss looks at scores through plain differences of candidates only."""
    return not built.extras and all(
        not term.structure.points
        and term.score.shape.name == "identity"
        and term.score.scale == 1.0
        and term.score.bonus == 0.0
        for term in built.terms
    )


def _sees_levels(built: Objective) -> bool:
    """Whether something in the loss must look at the level of a score: a point, a shape, a likelihood.

    A zero point that follows the scores takes a common level away again.
    """
    of_terms = any(
        (term.structure.points and not isinstance(term.margin, Computed))
        or term.score.shape.name != "identity"
        for term in built.terms
    )
    return of_terms or any(extra.name in ("nll", "denoising_error") for extra in built.extras)


def _common_level(objective: Registered) -> list[str]:
    """A constant in all candidates of a prompt changes nothing for differences, and something elsewhere."""
    built = _built(objective)
    scores, labels = example(objective)
    higher = replace(scores, policy=(scores.policy.detach() - 0.07).requires_grad_())
    same = _equal(built(scores, labels).loss, built(higher, labels).loss)
    if _only_differences(built):
        found = [] if same else ["a constant in all candidates of a prompt changes a loss of differences"]
        gradient = _policy_gradient(built(scores, labels), scores)
        balance = gradient.sum() if built.couples_rows else gradient.sum(1)
        if not torch.allclose(balance, torch.zeros_like(balance), atol=1e-9):
            found.append("the gradients of the candidates of a prompt do not cancel")
        return found
    if same and _sees_levels(built):
        return ["a constant in all candidates changes nothing, though the level of a score counts"]
    return []


def _splitting(objective: Registered) -> list[str]:
    """Micro-batches give the losses of the whole batch, unless rows are coupled."""
    built = _built(objective)
    if built.couples_rows:
        return []
    scores, labels = example(objective)
    parts = [
        built(_rows(scores, slice(*cut)), _label_rows(labels, slice(*cut))).loss
        for cut in ((0, 2), (2, PROMPTS))
    ]
    if _equal(torch.cat(parts), built(scores, labels).loss):
        return []
    return ["the losses of two micro-batches are not those of the batch"]


def _rows(scores: Scores, rows: slice) -> Scores:
    def cut(value: Tensor | None) -> Tensor | None:
        return value if value is None or value.shape[0] != PROMPTS else value[rows]

    return replace(
        scores,
        policy=scores.policy[rows],
        reference=cut(scores.reference),
        mask=cut(scores.mask),
        length=cut(scores.length),
        kl=cut(scores.kl),
        reward=cut(scores.reward),
        extras={
            name: value[rows] if value.shape[0] == PROMPTS else value for name, value in scores.extras.items()
        },
    )


def _label_rows(labels: Labels, rows: slice) -> Labels:
    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[rows]

    return Labels(cut(labels.probability), cut(labels.desirable), cut(labels.relevance), cut(labels.valid))


class _Ranks:
    """Sums over two ranks that run one after the other: totals of the last round, in the order of calls."""

    def __init__(self) -> None:
        self.given: list[list[Tensor]] = [[], []]
        self.totals: list[Tensor] = []

    def of(self, rank: int) -> Callable[[Tensor], Tensor]:
        self.given[rank] = []

        def sum_across(value: Tensor) -> Tensor:
            place = len(self.given[rank])
            self.given[rank].append(value.detach())
            return self.totals[place] if place < len(self.totals) else value

        return sum_across

    def settle(self) -> None:
        self.totals = [first + second for first, second in zip(*self.given, strict=True)]


def _sharding(objective: Registered) -> list[str]:
    """Two ranks give the losses and the running statistics of one process."""
    built = _built(objective)
    if not built.couples_rows:
        return []
    return [line for seed in (0, 1, 2) for line in _sharded(objective, built, seed)]


def _sharded(objective: Registered, built: Objective, seed: int) -> list[str]:
    scores, labels = example(objective, seed=seed)
    alone = ObjectiveState()
    expected = [built(scores, labels, alone).loss for _ in range(2)]
    ranks, cuts = _Ranks(), (slice(0, 2), slice(2, PROMPTS))
    before: list[dict[str, Tensor]] = [{}, {}]
    found = []
    for step in range(2):
        ranks.totals = []
        # A sum may depend on an earlier one of the same call, so that the totals settle one after the other.
        for _ in range(4):
            states = [ObjectiveState(ranks.of(rank), dict(before[rank])) for rank in (0, 1)]
            losses = [
                built(_rows(scores, cut), _label_rows(labels, cut), state).loss
                for cut, state in zip(cuts, states, strict=True)
            ]
            ranks.settle()
        before = [state.values for state in states]
        if not _equal(torch.cat(losses), expected[step]):
            found.append(f"step {step + 1}: two ranks do not give the losses of one process")
    found += [
        f"rank {rank}: the running statistic {name} differs from one process's"
        for name, value in alone.values.items()
        for rank in (0, 1)
        if not _equal(before[rank][name], value)
    ]
    return found


def _resuming(objective: Registered) -> list[str]:
    """Running statistics saved and loaded continue as if nothing had happened."""
    built = _built(objective)
    scores, labels = example(objective)
    state = ObjectiveState()
    built(scores, labels, state)
    saved = state.state_dict()
    later, _ = example(objective, seed=1)
    resumed = ObjectiveState()
    resumed.load_state_dict(saved)
    if not _equal(built(later, labels, state).loss, built(later, labels, resumed).loss):
        return ["a state saved and loaded gives other losses"]
    return []


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
    "inner axis": _inner_axis,
    "algebra": _algebra,
    "hyperparameters": _hyperparameters,
    "common level": _common_level,
    "splitting": _splitting,
    "sharding": _sharding,
    "resuming": _resuming,
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
