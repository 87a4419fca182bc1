"""Which of several spoilt versions of a row's media a method compares with: close in looks, far in words.

A spoilt clip that still answers the prompt is no counterexample. Of a row's versions those stay whose
features are close to the true media's, so that nothing but the asked content differs; of these the one is
taken under which the model predicts the answer's tokens most differently. How differently is also the row's
weight: a row whose best version changes nothing teaches little.

Source: PaMi-VDPO, arXiv 2504.05810, read from its abstract (no code, no numbers): the threshold, the number
of versions and the weight's unit are ours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmalign.errors import ShapeError, explain
from mmalign.likelihood.head_divergence import head_jensen_shannon
from mmalign.likelihood.token_head import TokenStates
from mmalign.train.model import Encoded
from mmalign.vlm.capability import Mode
from mmalign.vlm.inputs import AnswerTokens, VlmInputs
from mmalign.vlm.network import bare
from mmalign.vlm.packing import answers_of
from mmalign.vlm.vision import encode_media

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel

__all__ = ["Choice", "close_to_far", "compared", "encode_chosen"]

Example = Mapping[str, Any]

_SHARED = Mode(packed=False, shared=True)


@dataclass(frozen=True)
class Choice:
    """What was found of one row's versions.

    Args:
        place: of the version that is taken; None where none is close enough.
        cosines: of every version's mean visual feature with that of the true media.
        divergences: of every version, mean over the answer's tokens, in units of log 2: 0 to 1.
    """

    place: int | None
    cosines: tuple[float, ...]
    divergences: tuple[float, ...]

    @property
    def weight(self) -> float:
        """Of the row: the divergence of what is taken, 0 where nothing is."""
        return 0.0 if self.place is None else self.divergences[self.place]


def close_to_far(cosines: Sequence[float], divergences: Sequence[float], *, similar: float) -> int | None:
    """Place of the largest divergence among cosines >= similar, the first of equals; None without any.

    Args:
        cosines: of every version with the true media, -1 to 1.
        divergences: of the model's predictions under every version from those under the true media.
        similar: the least cosine.
    """
    close = [place for place, cosine in enumerate(cosines) if cosine >= similar]
    return max(close, key=lambda place: (divergences[place], -place), default=None)


def compared(
    model: "VlmModel", examples: Sequence[Example], *, twin: int, num_versions: int, similar: float
) -> list[Choice]:
    """A choice per row, by the model as it stands; nothing is drawn and no gradient flows.

    Args:
        model: whose predictions are compared.
        examples: their last `num_versions` answers are answer `twin` beside the spoilt versions.
        twin: number of the answer beside the true media.
        num_versions: versions per row.
        similar: the least cosine.

    Raises:
        ShapeError: an answer has other tokens beside a version than beside the true media.
    """
    found = []
    # One row at a time: its versions are a batch already, and rows of a batch would pad each other.
    for example in examples:
        first = len(example["answers"]) - num_versions
        shown = answers_of(example, (twin, *range(first, first + num_versions)))
        # What had to be done to the row is counted when the step lays it out.
        found.append(_choice(model, {**shown, "counts": {}}, similar))
    return found


@torch.no_grad()
def _choice(model: "VlmModel", example: Example, similar: float) -> Choice:
    """Of one row: its first answer stands beside the true media, the others beside the versions."""
    _require_twins(example["answers"])
    mode = model.mode if model.mode.shared else _SHARED
    inputs = cast("VlmInputs", model.encode_laid_out(model.laid_out([example], mode)).context)
    network = bare(model.network)
    if inputs.features is None:
        base = model.traits.base(model.bare_network)
        inputs = replace(inputs, features=encode_media(model.traits, base, inputs), media={})
    means = _mean_features(inputs, len(example["answers"]))
    cosines = F.cosine_similarity(means[:1], means[1:], dim=1).tolist()
    hidden = network(inputs).unflatten(0, (len(example["answers"]), -1))
    true = TokenStates(hidden[0], network.head)
    chunk = model.tokens.head_chunk
    divergences = tuple(
        float(head_jensen_shannon(TokenStates(states, network.head), true, chunk=chunk).mean()) / math.log(2)
        for states in hidden[1:]
    )
    return Choice(close_to_far(cosines, divergences, similar=similar), tuple(cosines), divergences)


def _require_twins(answers: Sequence[AnswerTokens]) -> None:
    if any(not torch.equal(answer.ids, answers[0].ids) for answer in answers[1:]):
        message = explain(
            "an answer beside spoilt media",
            got="other tokens than it has beside the true ones",
            expected="the same",
            do="Raise tokens.max_length: one of the two was cut.",
        )
        raise ShapeError(message)


def _mean_features(inputs: VlmInputs, num_answers: int) -> Float[Tensor, "answer feature"]:
    """Mean over the visual tokens that every answer sees, of all kinds of media."""
    length = inputs.ids.shape[1]
    row_of: Int[Tensor, " answer"] = inputs.source.unflatten(0, (num_answers, -1))[:, 0] // length
    features = inputs.features or {}
    values = torch.cat([features[kind].values[seen.source] for kind, seen in inputs.visual.items()]).float()
    rows = torch.cat([seen.place // length for seen in inputs.visual.values()])
    # One row after another: sums by index would be in another order on a GPU every time.
    return torch.stack([values[rows == row].mean(0) for row in row_of.tolist()])


def encode_chosen(model: "VlmModel", examples: Sequence[Example]) -> Encoded:
    """A micro-batch of rows with one of their spoilt versions each, chosen by the policy as it stands.

    Rows without a close version keep their first one and weigh nothing; `model.counts` says how many.

    Args:
        model: with one view of spoilt media, in several versions.
        examples: with all versions.

    Raises:
        ShapeError: as `compared`.
    """
    (view,) = model.reader.views
    number, settings = model.reader.spoilt.num_versions(view), model.tokens.corruption
    similar = -1.0 if settings.similar is None else settings.similar
    choices = compared(model, examples, twin=view.answer, num_versions=number, similar=similar)
    kept = []
    for example, choice in zip(examples, choices, strict=True):
        first = len(example["answers"]) - number
        kept.append(answers_of(example, (*range(first), first + (choice.place or 0))))
    encoded = model.encode_laid_out(model.laid_out(kept, model.mode))
    model.counts["no_close_version"] += sum(choice.place is None for choice in choices)
    weighs = settings.weigh in (None, True)
    weight = [choice.weight if weighs else float(choice.place is not None) for choice in choices]
    return replace(encoded, weight=torch.tensor(weight).to(model.device))
