"""What is refused when an objective is called: shapes, devices and kinds of inputs, values unseen.

Nothing here reads a number from the device. `require_sound` does, and is for debugging.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mmalign.batch import DataKind, Labels
from mmalign.errors import ConfigError, ShapeError, explain
from mmalign.objectives.base import ObjectiveState, Scores
from mmalign.objectives.structures import Pair
from mmalign.objectives.terms import Term

__all__ = ["check_call", "check_inputs", "require_sound"]

# Extra inputs that are no property of the batch's rows: answers to other prompts, as many as were drawn.
_OTHER_ROWS = frozenset({"mismatched_log_ratio"})


def check_call(name: str, scores: object, labels: object, state: object) -> None:
    """Refuse what is no scores, labels or state.

    Raises:
        ConfigError: an argument of another type; the message says how to build the right one.
    """
    for value, wanted, how in (
        (scores, Scores, "objectives.Scores(policy=..., reference=...), tensors [prompt, candidate]"),
        (
            labels,
            Labels,
            "objectives.Labels.pairs(num_prompts), Labels.unpaired(...) or Labels(relevance=...)",
        ),
        (state, ObjectiveState | None, "objectives.ObjectiveState(), one for the whole run"),
    ):
        if not isinstance(value, wanted):
            message = explain(
                f"objective {name}", got=f"a {type(value).__name__}", expected=how, do="See the README."
            )
            raise ConfigError(message)


def check_inputs(
    name: str,
    data: DataKind | None,
    terms: Sequence[Term],
    needs: Collection[str],
    scores: Scores,
    labels: Labels,
) -> None:
    """Refuse scores and labels that do not fit each other or the objective.

    Args:
        name: of the objective, for messages.
        data: what kind of rows it is for, None for unnamed ones.
        terms: its comparisons.
        needs: fields of `Scores` it reads, names in extras included.
        scores: as given.
        labels: as given.

    Raises:
        ConfigError: an input is missing, on another device, or of a kind the objective cannot read.
        ShapeError: shapes disagree.
    """
    if scores.reference is None and "reference" in needs:
        message = explain(
            f"objective {name}",
            got="scores without a reference",
            expected="Scores(policy, reference) of the same shape",
            do="Score the same tokens under the model before training, or take an objective that needs none "
            "(a run chooses by `reference:` adapters_off, frozen, ema, stored, synced).",
        )
        raise ConfigError(message)
    _check_candidates(name, data, terms, scores, labels)
    _check_labels(name, scores, labels)
    _check_fields(name, needs, scores)
    if labels.relevance is not None and labels.probability is None:
        for term in terms:
            if type(term.structure) is Pair and term.candidates is None:
                message = explain(
                    f"objective {name}",
                    got="Labels.relevance",
                    expected="Labels.pairs(...): it compares candidate 0 (chosen) with candidate 1",
                    do="Put the better candidate first, or take a listwise objective.",
                )
                raise ConfigError(message)


def _check_candidates(
    name: str, data: DataKind | None, terms: Sequence[Term], scores: Scores, labels: Labels
) -> None:
    candidates = scores.num_candidates
    named = max((term.width for term in terms), default=0)
    labelled = labels.desirable is not None and all(term.structure.points for term in terms)
    wanted = ""
    if data == "pairs" and terms and not labelled and candidates != (named or 2):
        wanted = f"{named or 2} (chosen, rejected{', further conditions' if named > 2 else ''})"
    elif data == "unpaired" and candidates != 1 and labels.desirable is None:
        wanted = "1, or Labels.desirable for every candidate"
    elif candidates < named:
        wanted = f"at least {named}"
    elif data == "lists" and candidates < 2:
        wanted = "at least 2 to compare"
    if wanted:
        message = (
            f"objective {name}: got {candidates} candidate{'' if candidates == 1 else 's'} per prompt, "
            f"expected {wanted}. Candidates stand on axis 1 of the scores: [prompt, candidate]."
        )
        raise ShapeError(message)


def _check_labels(name: str, scores: Scores, labels: Labels) -> None:
    prompts, candidates = scores.policy.shape[:2]
    for field, shape in (
        ("probability", (prompts,)),
        ("desirable", (prompts, candidates)),
        ("relevance", (prompts, candidates)),
        ("valid", (prompts, candidates)),
    ):
        value = getattr(labels, field)
        if value is None:
            continue
        if tuple(value.shape) != shape:
            message = (
                f"objective {name}: Labels.{field} has shape {list(value.shape)}, expected {list(shape)} for "
                f"scores of {prompts} prompts and {candidates} candidates. Are the candidates on axis 1?"
            )
            raise ShapeError(message)
        _require_device(name, f"Labels.{field}", value, scores)


def _require_device(name: str, what: str, value: Tensor, scores: Scores) -> None:
    if value.device != scores.policy.device:
        message = explain(
            f"objective {name}",
            got=f"{what} on {value.device}",
            expected=f"{scores.policy.device}, where the policy's scores are",
            do="Move it there; Labels.pairs takes device=.",
        )
        raise ConfigError(message)


def _check_fields(name: str, needs: Collection[str], scores: Scores) -> None:
    for field in ("reference", "mask"):
        value = getattr(scores, field)
        if value is not None:
            _require_device(name, f"Scores.{field}", value, scores)
    for field in ("length", "reward", "kl"):
        value = getattr(scores, field)
        if value is not None:
            _require_fits(name, f"Scores.{field}", value, scores, axes=(2, 3) if field == "kl" else (2,))
    for field, value in scores.extras.items():
        if field in needs and field not in _OTHER_ROWS:
            _require_fits(name, f"Scores.extras[{field!r}]", value, scores, axes=(1, 2, 3))


def _require_fits(name: str, what: str, value: Tensor, scores: Scores, axes: tuple[int, ...]) -> None:
    """[prompt], [prompt, candidate] or [prompt, candidate, inner]; nothing broadcasts by accident."""
    shape = tuple(scores.policy.shape)
    fits = value.ndim in axes and tuple(value.shape[:2]) == shape[: value.ndim][:2]
    if fits and value.ndim == 3 and len(shape) == 3:
        fits = value.shape[2] == shape[2]
    if not fits:
        kinds = {1: "[prompt]", 2: "[prompt, candidate]", 3: "[prompt, candidate, inner]"}
        message = (
            f"objective {name}: {what} has shape {list(value.shape)}, expected "
            f"{' or '.join(kinds[axis] for axis in axes)} beside scores of shape {list(shape)}."
        )
        raise ShapeError(message)
    _require_device(name, what, value, scores)


def require_sound(scores: Scores, labels: Labels) -> None:
    """Look at the values and refuse what no model can have produced; waits for the device: for debugging.

    Args:
        scores: what the candidates score.
        labels: what the data say.

    Raises:
        ConfigError: NaN or infinite scores at positions that count, log-probabilities of tokens above 0, a
            mask outside [0, 1], a probability outside [0, 1], a relevance or reward that is not finite.
    """
    real = torch.ones_like(scores.policy, dtype=torch.bool)
    if labels.valid is not None:
        real = real & labels.valid.reshape(*labels.valid.shape, *(1,) * (scores.policy.ndim - 2))
    if scores.mask is not None:
        share = scores.mask.to(scores.policy.dtype)
        _refuse(
            "Scores.mask", (share < 0) | (share > 1), share, "numbers in [0, 1], 1 where a position counts"
        )
        real = real & (scores.mask != 0)
    for field in ("policy", "reference"):
        value = getattr(scores, field)
        if value is not None:
            _refuse(f"Scores.{field}", ~torch.isfinite(value) & real, value, "finite scores where they count")
            if scores.likelihood == "tokens":
                _refuse(f"Scores.{field}", (value > 0) & real, value, "log-probabilities, none above 0")
    candidates = real if real.ndim == 2 else real.any(-1)
    for name, given in (("Scores.reward", scores.reward), ("Labels.relevance", labels.relevance)):
        if given is not None:
            _refuse(name, ~torch.isfinite(given) & candidates, given, "finite numbers")
    q = labels.probability
    if q is not None:
        _refuse("Labels.probability", ~((q >= 0) & (q <= 1)), q, "numbers in [0, 1]")


def _refuse(what: str, wrong: Tensor, values: Tensor, expected: str) -> None:
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        message = explain(
            f"{what} at {place}",
            got=f"{values[tuple(place)].item():g}",
            expected=expected,
            do="Check the inputs.",
        )
        raise ConfigError(message)
