"""Part E: structures. A structure turns scaled scores into losses per prompt through a link and labels.

With two candidates and a hard label `pair`, `list_forward`, `plackett`, `all_pairs` and `best_vs_rest` are
the same loss (DPO), and `list_reverse` is EXO. Each structure also reports z of the prompt and the size of
the link's slope: half the sum of |d loss / d (beta s)| over the candidates (for a pair: |d loss / d z|; for
one candidate: the whole).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import HyperparameterError, ShapeError, explain
from mmalign.objectives.base import (
    CHOSEN,
    REJECTED,
    Computed,
    Context,
    Number,
    needs_of,
    per_candidate,
    per_prompt,
    resolve,
    shown,
    wide,
)
from mmalign.objectives.labels import (
    Distribution,
    PairLabels,
    PointLabels,
    Targets,
    is_desirable,
    pair_coefficients,
)
from mmalign.objectives.links import Link

__all__ = [
    "AllPairs",
    "BestVsRest",
    "Compared",
    "Contrast",
    "Inputs",
    "ListForward",
    "ListReverse",
    "Matched",
    "Pair",
    "Plackett",
    "Point",
    "Structure",
    "Target",
    "Words",
    "best_candidate",
    "ranking",
]


@dataclass(frozen=True)
class Inputs:
    """What a structure works on.

    Args:
        score: s of every candidate, with gradient.
        beta: temperature, a number or [prompt].
        margin: margin or zero point in units of z: a number, [], [prompt] or [prompt, candidate].
        link: the loss as a function of z; that of liked candidates where roles have their own.
        link_rejected: the link of the other role.
        labels: of the type the structure names.
        context: for computed numbers.
    """

    score: Float[Tensor, "prompt candidate"]
    beta: float | Tensor
    margin: float | Tensor
    link: Link
    link_rejected: Link
    labels: Any
    context: Context

    @property
    def scaled(self) -> Float[Tensor, "prompt candidate"]:
        """Beta * s."""
        return per_candidate(self.beta) * self.score

    def masked(self, values: Tensor) -> Tensor:
        """`values` with the lowest finite number at padding."""
        valid = self.context.valid
        return values if valid is None else torch.where(valid, values, torch.finfo(values.dtype).min)


@dataclass(frozen=True)
class Compared:
    """What a structure returns for every prompt."""

    loss: Float[Tensor, " prompt"]
    logit: Float[Tensor, " prompt"]
    slope: Float[Tensor, " prompt"]


@dataclass(frozen=True)
class Words:
    """The parts of a term as they stand in a printed formula; links are templates with `{z}`."""

    link: str
    link_rejected: str
    labels: Any
    beta: str
    margin: str


@runtime_checkable
class Structure(Protocol):
    """How candidates are compared."""

    @property
    def labels(self) -> type:
        """Type of the labels it takes."""
        ...

    @property
    def points(self) -> bool:
        """Candidates are not compared with each other: the partition function does not cancel."""
        ...

    @property
    def swaps(self) -> bool:
        """The loss of an uncertain pair is the average over its two orders."""
        ...

    @property
    def couples_rows(self) -> bool:
        """The loss of a row depends on its batch mates."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Scores` it reads."""
        ...

    def compare(self, inputs: Inputs) -> Compared:
        """Loss, logit and slope per prompt."""
        ...

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        ...


def _require_pair(score: Tensor, structure: str) -> None:
    if score.shape[1] != 2:
        message = (
            f"{structure}: got {score.shape[1]} candidates, expected 2 (chosen, rejected). Use a listwise "
            "objective for more, a pointwise one for single candidates."
        )
        raise ShapeError(message)


def _require_several(score: Tensor, structure: str) -> None:
    if score.shape[1] < 2:
        message = f"{structure}: got {score.shape[1]} candidate, expected at least 2 to compare."
        raise ShapeError(message)


def _both_ways(
    z: Tensor, link: Link, agree: float | Tensor, disagree: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Agree * link(z) + disagree * link(-z), and its slope in z."""
    loss, slope = agree * link.function(z), agree * link.slope(z.detach())
    if isinstance(disagree, Tensor) or disagree != 0.0:
        loss = loss + disagree * link.function(-z)
        slope = slope - disagree * link.slope(-z.detach())
    return loss, slope


def _half_size(gradient: Float[Tensor, "prompt candidate"]) -> Float[Tensor, " prompt"]:
    """Half the sum of absolute values; the whole for a single candidate."""
    return gradient.abs().sum(1) * (1.0 if gradient.shape[1] == 1 else 0.5)


def best_candidate(context: Context) -> Int[Tensor, " prompt"]:
    """The candidate with the highest relevance, or candidate 0 where the data say no more."""
    relevance = context.labels.relevance
    if relevance is None:
        return torch.zeros(context.policy.shape[0], dtype=torch.int64, device=context.policy.device)
    values = wide(relevance)
    if context.valid is not None:
        values = torch.where(context.valid, values, torch.finfo(values.dtype).min)
    return values.argmax(1)


def ranking(context: Context) -> Int[Tensor, "prompt candidate"]:
    """Candidates from best to worst, padding last, ties in their given order."""
    relevance, real = context.labels.relevance, context.real()
    if relevance is None:
        position = torch.arange(real.shape[1], device=real.device)
        key = torch.where(real, -position, -real.shape[1])
    else:
        values = wide(relevance)
        key = torch.where(real, values, torch.finfo(values.dtype).min)
    return key.argsort(dim=1, descending=True, stable=True)


def _against_rest(
    scaled: Tensor,
    real: Bool[Tensor, "prompt candidate"],
    rest: Literal["logmeanexp", "mean"] = "logmeanexp",
    own: float | None = None,
) -> Float[Tensor, "prompt candidate"]:
    """Each entry minus the (log-mean-exp or) mean of the other real ones; 0 where there are no others."""
    count = scaled.shape[1]
    if count == 2 and own is None:
        return torch.where(real.all(1, keepdim=True), scaled - scaled.flip(1), 0.0)
    itself = torch.eye(count, dtype=torch.bool, device=scaled.device)
    others = real.unsqueeze(1) & ~itself
    present = others.any(2)
    number = others.sum(2).clamp(min=1).to(scaled.dtype)
    spread = scaled.unsqueeze(1).expand(-1, count, -1)
    if rest == "mean":
        mean = torch.where(others, spread, 0.0).sum(2) / number
    else:
        spread = torch.where(others, spread, torch.finfo(scaled.dtype).min)
        if own is not None:
            spread = torch.where(itself, scaled.unsqueeze(2) - own, spread)
        mean = torch.where(present.unsqueeze(2), spread, 0.0).logsumexp(2) - number.log()
    return torch.where(present & real, scaled - mean, 0.0)


def _list_logit(scaled: Tensor, context: Context) -> Float[Tensor, " prompt"]:
    """Z of the best candidate against the others; for two candidates beta * (s of chosen - s of rejected)."""
    contrast = _against_rest(scaled.detach(), context.real())
    return contrast.gather(1, best_candidate(context).unsqueeze(1)).squeeze(1)


def _better(context: Context) -> Bool[Tensor, "prompt first second"]:
    """Whether the first candidate is preferred to the second: by relevance, or by position (best first)."""
    relevance, real = context.labels.relevance, context.real()
    if relevance is None:
        count = real.shape[1]
        ordered = torch.ones(count, count, dtype=torch.bool, device=real.device).triu(1)
        return ordered & real.unsqueeze(2) & real.unsqueeze(1)
    return (relevance.unsqueeze(2) > relevance.unsqueeze(1)) & real.unsqueeze(2) & real.unsqueeze(1)


def _minus(left: str, right: str) -> str:
    if right.startswith("-"):
        return f"{left} + {right[1:]}"
    return left if right == "0" else f"{left} - {right}"


def _times(beta: str, score: str) -> str:
    return score if beta == "1" else f"{beta} * {score}"


@dataclass(frozen=True)
class Pair:
    """loss = link(z), z = beta * (s of chosen - s of rejected) - margin."""

    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def compare(self, inputs: Inputs) -> Compared:
        """One comparison per prompt."""
        _require_pair(inputs.score, "pair")
        difference = inputs.score[:, CHOSEN] - inputs.score[:, REJECTED]
        z = per_prompt(inputs.beta) * difference - per_prompt(inputs.margin)
        agree, disagree = pair_coefficients(inputs.labels, inputs.context)
        loss, slope = _both_ways(z, inputs.link, agree, disagree)
        return Compared(loss, z, slope.abs())

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        return words.labels.formula(words.link), _minus(
            _times(words.beta, "(s[chosen] - s[rejected])"), words.margin
        )


@dataclass(frozen=True)
class Contrast:
    """One comparison of several candidates: loss = link(z), z = beta * sum of coefficient * s - margin.

    `Contrast((1, -1))` is `Pair()`. The coefficients of one prompt should add up to 0, so that the partition
    function cancels.

    Args:
        coefficients: factor of every candidate, in their order.

    Raises:
        HyperparameterError: fewer than two coefficients, or one that is not finite.
    """

    coefficients: tuple[float, ...]
    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if len(self.coefficients) < 2 or not all(abs(c) < float("inf") for c in self.coefficients):
            message = explain(
                "contrast coefficients", got=self.coefficients, expected="two or more finite numbers"
            )
            raise HyperparameterError(message)

    @property
    def at_least(self) -> int:
        """Real candidates that a prompt needs to count: all of them."""
        return len(self.coefficients)

    def compare(self, inputs: Inputs) -> Compared:
        """One comparison per prompt."""
        if inputs.score.shape[1] != len(self.coefficients):
            message = (
                f"contrast: got {inputs.score.shape[1]} candidates, expected {len(self.coefficients)}, one "
                "per coefficient."
            )
            raise ShapeError(message)
        combined = torch.stack([c * inputs.score[:, k] for k, c in enumerate(self.coefficients)]).sum(0)
        z = per_prompt(inputs.beta) * combined - per_prompt(inputs.margin)
        agree, disagree = pair_coefficients(inputs.labels, inputs.context)
        loss, slope = _both_ways(z, inputs.link, agree, disagree)
        return Compared(loss, z, slope.abs())

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        kept = [(k, c) for k, c in enumerate(self.coefficients) if c != 0.0]
        text = " + ".join(f"s[{k}]" if c == 1.0 else f"{c:g} * s[{k}]" for k, c in kept)
        text = text.replace("+ -1 * ", "- ").replace("+ -", "- ")
        return words.labels.formula(words.link), _minus(_times(words.beta, f"({text})"), words.margin)


@dataclass(frozen=True)
class Point:
    """Every candidate against a zero point: loss = sum of each one's link of z = beta * s - zero."""

    labels: ClassVar[type] = PointLabels
    points: ClassVar[bool] = True
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def compare(self, inputs: Inputs) -> Compared:
        """One comparison per candidate, added up."""
        context = inputs.context
        desirable = is_desirable(context)
        z = inputs.scaled - per_candidate(inputs.margin)
        agree, disagree = inputs.labels.coefficients(desirable, z, context)
        if inputs.labels.opposed and inputs.link_rejected is inputs.link:
            # Each role has one side: the link is taken once, of z turned for those that are not liked.
            turned, size = torch.where(desirable, z, -z), torch.where(desirable, agree, disagree)
            loss, slope = size * inputs.link.function(turned), size * inputs.link.slope(turned.detach())
        else:
            loss, slope = _both_ways(z, inputs.link, agree, disagree)
        if inputs.link_rejected is not inputs.link:
            other_loss, other_slope = _both_ways(z, inputs.link_rejected, agree, disagree)
            loss, slope = torch.where(desirable, loss, other_loss), torch.where(desirable, slope, other_slope)
        if context.valid is not None:
            loss, slope = torch.where(context.valid, loss, 0.0), torch.where(context.valid, slope, 0.0)
        logit = torch.where(desirable, z, -z)[:, 0] if z.shape[1] == 1 else _list_logit(z, context)
        return Compared(loss.sum(1), logit, _half_size(slope))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        return f"sum over candidates of {words.labels.formula(words.link, words.link_rejected)}", _minus(
            _times(words.beta, "s"), words.margin
        )


@dataclass(frozen=True)
class Target:
    """Regression: loss = sum of link(z), z = beta * s - target, usually with a square link at 0."""

    labels: ClassVar[type] = Targets
    points: ClassVar[bool] = True
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def compare(self, inputs: Inputs) -> Compared:
        """One regression per candidate, added up; the logit compares candidates, if there are several."""
        context, scaled = inputs.context, inputs.scaled
        single = scaled.shape[1] == 1 and context.labels.desirable is None
        desirable = context.real() if single else is_desirable(context)
        z = scaled - inputs.labels.values(desirable, scaled, context)
        loss, slope = inputs.link.function(z), inputs.link.slope(z.detach())
        if context.valid is not None:
            loss, slope = torch.where(context.valid, loss, 0.0), torch.where(context.valid, slope, 0.0)
        logit = (
            torch.where(desirable, scaled, -scaled)[:, 0]
            if scaled.shape[1] == 1
            else _list_logit(scaled, context)
        )
        return Compared(loss.sum(1), logit, _half_size(slope))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        return (
            f"sum over candidates of {words.link.format(z='z')}",
            f"{_times(words.beta, 's')} - {words.labels.formula()}",
        )


@dataclass(frozen=True)
class AllPairs:
    """Weighted sum over the ordered pairs of a list: every candidate against every less relevant one.

    Args:
        weight: weight of each pair, [prompt, first, second] (LambdaRank style), or a number.
        aggregate: "sum" over pairs, or "mean" (a prompt without an ordered pair gets 0).
    """

    weight: Number = 1.0
    aggregate: Literal["sum", "mean"] = "sum"
    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """What the weights read."""
        return needs_of(self.weight)

    def compare(self, inputs: Inputs) -> Compared:
        """All comparisons of a prompt at once."""
        _require_several(inputs.score, "all_pairs")
        context, scaled = inputs.context, inputs.scaled
        better = _better(context)
        z = scaled.unsqueeze(2) - scaled.unsqueeze(1)
        margin = inputs.margin
        if isinstance(margin, Tensor) and margin.ndim == 1:
            margin = margin.reshape(-1, 1, 1)
        z = torch.where(better, z - margin, 0.0)
        coefficients = pair_coefficients(inputs.labels, context)
        agree, disagree = (
            c.reshape(-1, 1, 1) if isinstance(c, Tensor) and c.ndim == 1 else c for c in coefficients
        )
        loss, slope = _both_ways(z, inputs.link, agree, disagree)
        weight = resolve(self.weight, context)
        loss, slope = torch.where(better, weight * loss, 0.0), torch.where(better, weight * slope, 0.0)
        share = 1.0 if self.aggregate == "sum" else 1.0 / better.sum((1, 2)).clamp(min=1).to(loss.dtype)
        gradient = slope.sum(2) - slope.sum(1)
        return Compared(share * loss.sum((1, 2)), _list_logit(scaled, context), share * _half_size(gradient))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        weighted = _times(shown(self.weight), words.labels.formula(words.link))
        return (
            f"{self.aggregate} over pairs i better than j of {weighted}",
            _minus(_times(words.beta, "(s[i] - s[j])"), words.margin),
        )


class _List:
    labels: ClassVar[type] = Distribution
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = False  # the target distribution already holds the pair's probability
    couples_rows: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class ListForward(_List):
    """Cross-entropy of a target distribution under softmax(beta * s)."""

    def compare(self, inputs: Inputs) -> Compared:
        """-sum of q log softmax(beta s)."""
        _require_several(inputs.score, "list_forward")
        context, scaled = inputs.context, inputs.scaled
        log_share = F.log_softmax(inputs.masked(scaled), dim=1)
        target = torch.where(context.real(), inputs.labels.log_weights(context).detach().exp(), 0.0)
        loss = -torch.where(context.real(), target * log_share, 0.0).sum(1)
        gradient = log_share.detach().exp() * target.sum(1, keepdim=True) - target
        return Compared(loss, _list_logit(scaled, context), _half_size(gradient))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        return f"-sum over candidates of q log softmax(z), q = {words.labels.formula}", _times(
            words.beta, "s"
        )


@dataclass(frozen=True)
class ListReverse(_List):
    """KL of softmax(beta * s) from a target distribution; with two candidates EXO."""

    def compare(self, inputs: Inputs) -> Compared:
        """Sum of P (log P - log q), P = softmax(beta s)."""
        _require_several(inputs.score, "list_reverse")
        context, scaled = inputs.context, inputs.scaled
        log_share = F.log_softmax(inputs.masked(scaled), dim=1)
        target = inputs.labels.log_weights(context).detach()
        gap = torch.where(context.real(), log_share - target, 0.0)
        share = log_share.exp()
        loss = (share * gap).sum(1)
        gradient = (share * (gap - loss.unsqueeze(1))).detach()
        return Compared(loss, _list_logit(scaled, context), _half_size(gradient))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        return (
            f"sum over candidates of P (log P - log q), P = softmax(z), q = {words.labels.formula}",
            _times(words.beta, "s"),
        )


@dataclass(frozen=True)
class Plackett:
    """Plackett-Luce: the best is chosen from all, the second from the rest, and so on.

    Args:
        temperature: factor of candidate j in the stage of candidate i, [prompt, i, j], or None for 1 (PRO
            uses reward gaps).
        aggregate: "sum" over the stages that have a choice, or their "mean".
    """

    temperature: Computed | None = None
    aggregate: Literal["sum", "mean"] = "sum"
    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """What the temperatures read."""
        return needs_of(self.temperature)

    def compare(self, inputs: Inputs) -> Compared:
        """Sum over stages of logsumexp over the remaining candidates minus the chosen one."""
        _require_several(inputs.score, "plackett")
        context, scaled = inputs.context, inputs.scaled
        real, count = context.real(), scaled.shape[1]
        order = ranking(context)
        ranked = scaled.gather(1, order)
        present = real.gather(1, order)
        heat = torch.ones(1, dtype=scaled.dtype, device=scaled.device)
        if self.temperature is not None:
            table = torch.as_tensor(resolve(self.temperature, context)).to(scaled)
            rows = table.gather(1, order.unsqueeze(2).expand(-1, -1, count))
            heat = rows.gather(2, order.unsqueeze(1).expand(-1, count, -1))
        logits = ranked.unsqueeze(1).expand(-1, count, -1) * heat
        remaining = torch.ones(
            count, count, dtype=torch.bool, device=scaled.device
        ).triu() & present.unsqueeze(1)
        counts = present & (remaining.sum(2) > 1)
        kept = remaining & counts.unsqueeze(2)
        spread = torch.where(kept, logits, torch.finfo(scaled.dtype).min)
        spread = torch.where(counts.unsqueeze(2), spread, 0.0)
        own = logits.diagonal(dim1=1, dim2=2)
        stages = counts.sum(1).clamp(min=1).to(scaled.dtype)
        share = 1.0 if self.aggregate == "sum" else 1.0 / stages
        loss = share * torch.where(counts, spread.logsumexp(2) - own, 0.0).sum(1)
        chosen = torch.eye(count, dtype=scaled.dtype, device=scaled.device)
        gradient = torch.where(kept, (spread.detach().softmax(2) - chosen) * heat, 0.0).sum(1)
        return Compared(loss, _list_logit(scaled, context), share * _half_size(gradient))

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        heat = "" if self.temperature is None else f", z in stage i times {self.temperature.formula}"
        return (
            f"{self.aggregate} over stages i of logsumexp over j >= i of z[j] - z[i], best first{heat}",
            _times(words.beta, "s"),
        )


@dataclass(frozen=True)
class BestVsRest:
    """Each item against the others: loss = sum of weight * link(z), z = beta * s - rest of the list.

    Args:
        weight: weight of each item, [prompt, candidate]; None weighs the best with 1 and the others with 0.
        aggregate: "sum" or "mean" over the real items.
        rest: what stands for the others: "logmeanexp" of their beta * s, or their "mean".
        own: None leaves an item out of its own rest; a number lets it in, lowered by so much in units of z
            (some released code removes it that way).
    """

    weight: Number | None = None
    aggregate: Literal["sum", "mean"] = "sum"
    rest: Literal["logmeanexp", "mean"] = "logmeanexp"
    own: float | None = None
    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """What the weights read."""
        return needs_of(self.weight)

    def compare(self, inputs: Inputs) -> Compared:
        """One comparison per item."""
        _require_several(inputs.score, "best_vs_rest")
        context, scaled = inputs.context, inputs.scaled
        real = context.real()
        z = _against_rest(scaled, real, self.rest, self.own) - per_candidate(inputs.margin)
        agree, disagree = (per_candidate(c) for c in pair_coefficients(inputs.labels, context))
        loss, slope = _both_ways(z, inputs.link, agree, disagree)
        if self.weight is None:
            weight: float | Tensor = F.one_hot(best_candidate(context), scaled.shape[1]).to(scaled.dtype)
        else:
            weight = per_candidate(resolve(self.weight, context))
        share = 1.0 if self.aggregate == "sum" else 1.0 / real.sum(1).clamp(min=1).to(scaled.dtype)
        loss = share * torch.where(real, weight * loss, 0.0).sum(1)
        slope = share * torch.where(real, weight * slope, 0.0).abs().sum(1)
        return Compared(loss, _list_logit(scaled, context), slope)

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        kept = "" if self.own is None else f" and of itself - {self.own:g}"
        if self.weight is None:
            return words.labels.formula(words.link), _minus(
                _times(words.beta, f"s[best] - {self.rest} of the others{kept}"), words.margin
            )
        weighted = _times(shown(self.weight), words.labels.formula(words.link))
        return f"{self.aggregate} over items of {weighted}", _minus(
            _times(words.beta, f"s - {self.rest} of the others{kept}"), words.margin
        )


@dataclass(frozen=True)
class Matched:
    """Both sides sorted within the batch, then compared rank by rank (AOT).

    Sorting stays within the micro-batch of one rank: with one row it is the plain comparison.

    Args:
        sides: "candidates" sorts s of the chosen and s of the rejected candidates; "models" sorts the
            policy's and the reference's own gaps between chosen and rejected.
    """

    sides: Literal["candidates", "models"]
    labels: ClassVar[type] = PairLabels
    points: ClassVar[bool] = False
    swaps: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.sides not in ("candidates", "models"):
            raise HyperparameterError(
                explain("matched sides", got=self.sides, expected="'candidates' or 'models'")
            )

    @property
    def needs(self) -> frozenset[str]:
        """Comparing models needs the reference itself."""
        return frozenset({"reference"}) if self.sides == "models" else frozenset()

    def compare(self, inputs: Inputs) -> Compared:
        """Losses in the order of the rows whose first side they come from."""
        _require_pair(inputs.score, "matched")
        context = inputs.context
        if self.sides == "candidates":
            first, second = inputs.score[:, CHOSEN], inputs.score[:, REJECTED]
        else:
            reference = context.policy if context.reference is None else context.reference
            first = context.policy[:, CHOSEN] - context.policy[:, REJECTED]
            second = reference[:, CHOSEN] - reference[:, REJECTED]
        if context.valid is not None:
            # Rows that do not count meet each other at the end.
            high = torch.finfo(first.dtype).max
            whole = context.valid.all(1)
            first, second = torch.where(whole, first, high), torch.where(whole, second, high)
        first, order = first.sort(stable=True)
        second, _ = second.sort(stable=True)
        back = order.argsort()
        z = per_prompt(inputs.beta) * (first - second)[back] - per_prompt(inputs.margin)
        agree, disagree = pair_coefficients(inputs.labels, context)
        probability = context.labels.probability
        if probability is not None:
            # Sorting mixes the rows, so an uncertain label turns its row's comparison instead of its pair.
            q = probability.to(z.dtype)
            agree, disagree = q * agree + (1.0 - q) * disagree, q * disagree + (1.0 - q) * agree
        loss, slope = _both_ways(z, inputs.link, agree, disagree)
        return Compared(loss, z, slope.abs())

    def formula(self, words: Words) -> tuple[str, str]:
        """(Loss, z) in plain text."""
        sides = (
            "(sorted s[chosen] - sorted s[rejected])"
            if self.sides == "candidates"
            else "(sorted policy gaps - sorted reference gaps)"
        )
        return words.labels.formula(words.link), _minus(_times(words.beta, sides), words.margin)
