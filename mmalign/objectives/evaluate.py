"""The interpreter: every objective is evaluated here, in one order, written once.

1 reduce the inner axis; 2 anchor; 3 shape; 4 role scale and bonus; 5 computed temperatures, margins, labels
and weights, detached; 6 structure and link; 7 weight and coefficient; 8 extra terms; 9 metrics from detached
values. Everything is float32, or float64 if the policy's scores are. Nothing is reduced over prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.batch import Labels
from mmalign.objectives.base import (
    CHOSEN,
    REJECTED,
    Context,
    ObjectiveOutput,
    ObjectiveState,
    Scores,
    per_candidate,
    per_prompt,
    resolve,
    wide,
)
from mmalign.objectives.extras import Extra
from mmalign.objectives.reductions import Reduction
from mmalign.objectives.structures import Compared, Inputs, best_candidate, by_columns
from mmalign.objectives.terms import Score, Term
from mmalign.objectives.views import View

__all__ = ["evaluate"]

_SATURATED = 5.0


@dataclass(frozen=True)
class _Evaluated:
    """One term on one order of the candidates."""

    compared: Compared
    weighted: Float[Tensor, " prompt"]
    context: Context
    score: Float[Tensor, "prompt candidate"]
    beta: float | Tensor


def evaluate(
    terms: Sequence[Term],
    extras: Sequence[Extra],
    scores: Scores,
    labels: Labels,
    state: ObjectiveState | None,
) -> ObjectiveOutput:
    """Loss, logit, terms and metrics of every prompt.

    Args:
        terms: comparisons.
        extras: other terms.
        scores: what the candidates score under policy and reference.
        labels: what the data say.
        state: running statistics and the other ranks.

    Raises:
        ConfigError: a term misses an input.
        ShapeError: labels and scores disagree about the number of prompts or candidates.
    """
    valid = _valid_candidates(scores, labels)
    whole = View(_without_padding(scores, valid), labels, valid)
    anyone = whole.rows_with(1)
    rows = anyone if extras or not terms else torch.zeros_like(anyone)
    soft = _is_soft(labels) and (scores.num_candidates == 2 or any(term.width for term in terms))
    parts: dict[str, Tensor] = {}
    first: _Evaluated | None = None
    for number, term in enumerate(terms):
        seen = whole.of(term.candidates)
        own = _of_term(state, number)
        evaluated = _term(term, seen, own)
        first = first or evaluated
        loss = evaluated.weighted
        if soft and term.structure.swaps and _within_the_pair(term, scores):
            # The label may be wrong: the loss is its expectation over both orders of the pair.
            other = _term(term, whole.exchanged().of(term.candidates), _frozen(own))
            loss = _expectation(labels, loss, other.weighted)
        counts = seen.rows_with(term.at_least)
        rows = rows | counts
        _add(parts, term.name or term.link.name, loss, counts)
    summed = any(term.score.reduction.how == "sum" for term in terms)
    for extra in extras:
        loss = extra.coefficient * extra.value(_context(Reduction(), 0.0, whole, state, summed))
        if extra.swaps and soft:
            flipped = _context(Reduction(), 0.0, whole.exchanged(), _frozen(state), summed)
            loss = _expectation(labels, loss, extra.coefficient * extra.value(flipped))
        _add(parts, extra.name, loss, anyone)
    total = torch.stack(list(parts.values())).sum(0)
    if first is None:
        first = _without_comparison(whole, state)
    seen_rows = whole.of(terms[0].candidates).rows_with(terms[0].at_least) if terms else anyone
    metrics, applies = _metrics(first, seen_rows)
    logit = torch.where(seen_rows, first.compared.logit, 0.0)
    return ObjectiveOutput(total, logit, parts, metrics, applies, rows)


def _valid_candidates(scores: Scores, labels: Labels) -> Bool[Tensor, "prompt candidate"] | None:
    """Candidates that count: labelled valid, and with at least one unmasked position."""
    if scores.policy.ndim == 2 or scores.mask is None:
        return labels.valid
    present = (scores.mask != 0).any(-1)
    return present if labels.valid is None else present & labels.valid


def _without_padding(scores: Scores, valid: Tensor | None) -> Scores:
    """Scores whose padded candidates are 0, so that nothing they hold can reach a loss or a gradient."""
    if valid is None:
        return scores

    def clean(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        real = valid.reshape(*valid.shape, *(1,) * (value.ndim - 2))
        return torch.where(real, value, torch.zeros_like(value))

    policy = torch.where(valid.reshape(*valid.shape, *(1,) * (scores.policy.ndim - 2)), scores.policy, 0.0)
    return replace(
        scores,
        policy=policy,
        reference=clean(scores.reference),
        length=clean(scores.length),
        kl=clean(scores.kl),
        reward=clean(scores.reward),
        extras={name: _clean_extra(value, valid) for name, value in scores.extras.items()},
    )


def _clean_extra(value: Tensor, valid: Bool[Tensor, "prompt candidate"]) -> Tensor:
    """An extra input with 0 where its candidate is padding, or where its pair is incomplete."""
    if value.ndim == 0 or value.shape[0] != valid.shape[0]:
        return value
    if value.ndim == 1:
        whole = valid.all(1) if valid.shape[1] <= 2 else valid.any(1)
        return torch.where(whole, value, torch.zeros_like(value))
    if value.shape[1] != valid.shape[1]:
        return value
    real = valid.reshape(*valid.shape, *(1,) * (value.ndim - 2))
    return torch.where(real, value, torch.zeros_like(value))


def _is_soft(labels: Labels) -> bool:
    """The labels are probabilities of a pair, and not known to be 1."""
    known = labels.certain or labels.probability is None
    return not known and labels.relevance is None and labels.desirable is None


def _within_the_pair(term: Term, scores: Scores) -> bool:
    """The term looks at nothing but the two candidates a probability speaks of."""
    return set(term.candidates or range(scores.num_candidates)) <= {CHOSEN, REJECTED}


def _expectation(labels: Labels, loss: Tensor, swapped: Tensor) -> Tensor:
    if labels.probability is None:  # never: _is_soft was asked
        return loss
    probability = labels.probability.to(loss.dtype)
    return probability * loss + (1.0 - probability) * swapped


def _of_term(state: ObjectiveState | None, number: int) -> ObjectiveState | None:
    """The state with statistics of its own for every term but the first."""
    return state if state is None or number == 0 else replace(state, scope=f"term{number + 1}.")


def _frozen(state: ObjectiveState | None) -> ObjectiveState | None:
    """The state for a second look at the same rows: it is read and not updated twice."""
    return None if state is None else replace(state, updating=False)


def _add(parts: dict[str, Tensor], name: str, loss: Tensor, rows: Tensor) -> None:
    """Store a term under a free name, 0 for prompts that do not count."""
    free, number = name, 2
    while free in parts:
        free, number = f"{name}_{number}", number + 1
    parts[free] = torch.where(rows, loss, 0.0)


def _context(
    reduction: Reduction, anchor: float, view: View, state: ObjectiveState | None, summed: bool = False
) -> Context:
    """Steps 1 and 2: reduced and anchored scores."""
    scores = view.scores
    placeholder = wide(scores.policy if scores.policy.ndim == 2 else scores.policy[..., 0])
    context = Context(scores, view.labels, state, placeholder, None, placeholder, view.valid, summed)
    reduced = reduction(scores, context)
    log_ratio = reduced.policy
    if anchor and reduced.reference is not None:
        log_ratio = log_ratio - (reduced.reference if anchor == 1.0 else anchor * reduced.reference)
    return replace(context, policy=reduced.policy, reference=reduced.reference, log_ratio=log_ratio)


def _scored(score: Score, context: Context) -> Float[Tensor, "prompt candidate"]:
    """Steps 3 and 4: shape, role scale, bonus."""
    value = score.shape.function(context.log_ratio)
    if score.scale != 1.0:
        value = per_candidate(resolve(score.scale, context)) * value
    if score.bonus != 0.0:
        value = value + per_candidate(resolve(score.bonus, context))
    return value


def _term(term: Term, view: View, state: ObjectiveState | None) -> _Evaluated:
    """Steps 1 to 7 of one term."""
    if term.positions == "apart" and view.scores.policy.ndim == 3:
        return _position_by_position(term, view, state)
    context = _context(term.score.reduction, term.score.anchor, view, state)
    score = _scored(term.score, context)
    beta = resolve(term.beta, context)
    compared = term.structure.compare(
        Inputs(
            score=score,
            beta=beta,
            margin=resolve(term.margin, context),
            link=term.link,
            link_rejected=term.link if term.link_rejected is None else term.link_rejected,
            labels=term.labels,
            context=context,
        )
    )
    weighted = term.coefficient * (per_prompt(resolve(term.weight, context)) * compared.loss)
    return _Evaluated(compared, weighted, context, score, beta)


def _position_by_position(term: Term, view: View, state: ObjectiveState | None) -> _Evaluated:
    """A term on every position as if it were a prompt, averaged over the positions of each prompt."""
    folded, counts = view.apart()
    each = _term(term, folded, state)
    prompts, inner = counts.shape
    whole = counts.sum(1).clamp(min=torch.finfo(counts.dtype).tiny)

    def mean(value: Tensor) -> Tensor:
        kept = value.unflatten(0, (prompts, inner))
        share = (counts / whole.unsqueeze(1)).to(value.dtype)
        share = share.reshape(prompts, inner, *(1,) * (value.ndim - 1))
        return (torch.where(share != 0, kept, 0.0) * share).sum(1)

    compared = Compared(mean(each.compared.loss), mean(each.compared.logit), mean(each.compared.slope))
    context = _context(Reduction("mean"), term.score.anchor, view, state)
    beta = mean(each.beta) if isinstance(each.beta, Tensor) and each.beta.ndim else each.beta
    return _Evaluated(compared, mean(each.weighted), context, mean(each.score), beta)


def _without_comparison(view: View, state: ObjectiveState | None) -> _Evaluated:
    """What the metrics of a purely supervised objective look at: scores, and no logit."""
    context = _context(Reduction(), 1.0, view, state)
    zero = torch.zeros_like(context.policy[:, 0])
    return _Evaluated(Compared(zero, zero, zero), zero, context, context.log_ratio, 1.0)


@torch.no_grad()
def _metrics(first: _Evaluated, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Detached numbers per prompt, and on which rows some of them mean something."""
    context, logit = first.context, first.compared.logit.detach()
    labels = context.labels
    log_ratio, score = context.log_ratio.detach(), context.policy.detach()
    reward = per_candidate(first.beta) * log_ratio
    reward = reward.detach()
    applies: dict[str, Tensor] = {}
    if log_ratio.shape[1] == 1:
        liked = torch.ones_like(rows) if labels.desirable is None else labels.desirable[:, 0]
        roles = {"chosen": liked, "rejected": ~liked}
        split = {
            f"{field}_{role}": torch.where(where, value[:, 0], 0.0)
            for field, value in (("log_ratio", log_ratio), ("score", score), ("reward", reward))
            for role, where in roles.items()
        }
        applies = {
            f"{field}_{role}": roles[role] for field in ("log_ratio", "score", "reward") for role in roles
        }
        margin = torch.where(liked, first.score[:, 0], -first.score[:, 0])
        accuracy = _half_ties(logit)
    else:
        split = {}
        best_and_rest = _roles(context)
        for field, value in (("log_ratio", log_ratio), ("score", score), ("reward", reward)):
            split[f"{field}_chosen"], split[f"{field}_rejected"] = best_and_rest(value)
        best, rest = best_and_rest(first.score)
        margin = best - rest
        accuracy = _accuracy(log_ratio, labels, context)
    numbers = {
        "logit": logit,
        "margin": margin.detach(),
        "accuracy": accuracy,
        "gradient_factor": first.compared.slope.detach(),
        "saturated": (logit.abs() > _SATURATED).to(logit.dtype),
        **split,
    }
    kept = dict(
        zip(numbers, torch.where(rows, torch.stack(list(numbers.values())), 0.0).unbind(), strict=True)
    )
    return kept, {name: where & rows for name, where in applies.items()}


def _half_ties(value: Tensor) -> Tensor:
    """1 where positive, 0 where negative, 1/2 at 0."""
    return 0.5 * (1.0 + value.sign())


def _roles(context: Context) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Takes values per candidate to that of the best one and the mean over the other real ones."""
    if context.policy.shape[1] == 2 and context.labels.relevance is None:
        return lambda values: (values[:, CHOSEN], values[:, REJECTED])
    best = best_candidate(context).unsqueeze(1)
    others = context.real().to(context.policy.dtype).scatter(1, best, 0.0)
    share = others / others.sum(1, keepdim=True).clamp(min=1.0)
    return lambda values: (values.gather(1, best).squeeze(1), (values * share).sum(1))


def _accuracy(score: Tensor, labels: Labels, context: Context) -> Tensor:
    """Share of comparisons on which log-ratios and labels agree; ties of either count half."""
    if labels.relevance is None:
        agree = _half_ties(score[:, :1] - score[:, 1:])
        if _is_soft(labels) and score.shape[1] == 2 and labels.probability is not None:
            q = labels.probability.to(score.dtype).unsqueeze(1)
            agree = q * agree + (1.0 - q) * (1.0 - agree)
        others = context.real()[:, 1:].to(score.dtype)
        return (agree * others).sum(1) / others.sum(1).clamp(min=1.0)
    grade, score = by_columns(labels.relevance), by_columns(score)
    better = grade.unsqueeze(2) > grade.unsqueeze(1)
    if context.valid is not None:
        better = better & context.valid.unsqueeze(2) & context.valid.unsqueeze(1)
    agree = torch.where(better, _half_ties(score.unsqueeze(2) - score.unsqueeze(1)), 0.0).sum((1, 2))
    count = better.sum((1, 2)).to(score.dtype)
    return torch.where(count > 0, agree / count.clamp(min=1.0), 0.5)
