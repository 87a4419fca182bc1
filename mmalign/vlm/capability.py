"""What a loaded model computes exactly: answers packed behind one prompt, one vision pass for all of them.

Masks, positions and the way features reach the decoder are the model's own affairs, and change between
versions of transformers. So nothing is taken on trust: before training, a made-up dialogue is scored by the
model's own forward, row by row, and by the faster ways; the fastest that gives the same numbers is taken.
"""

from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.config import ImageLimits
from mmalign.errors import ConfigError, RowError, explain
from mmalign.likelihood.token_head import head_log_probs
from mmalign.vlm.attention import restore_last_layer
from mmalign.vlm.network import bare

if TYPE_CHECKING:
    from mmalign.vlm.family import VlmModel
    from mmalign.vlm.inputs import VlmInputs

__all__ = ["Mode", "choose_mode"]


@dataclass(frozen=True)
class Mode:
    """How micro-batches are laid out.

    Args:
        packed: answers of one prompt share its row.
        shared: media are encoded once and put in place here; False: the model's own forward does it per row.
        note: one sentence for the run's opening lines.
    """

    packed: bool
    shared: bool
    note: str = ""

    @property
    def name(self) -> str:
        """In words."""
        if self.packed:
            return "answers packed behind their prompt, media encoded once"
        return (
            "a row per answer, media encoded once"
            if self.shared
            else "a row per answer, by the model's own forward"
        )


_WAYS = (Mode(packed=True, shared=True), Mode(packed=False, shared=True), Mode(packed=False, shared=False))
"""Fastest first; the last is what the others are held against."""

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3}
"""Of the mean difference of a token's log-probability; half precision rounds each way differently."""
_TOLERANCE_HALF = 0.05

_FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)
"""What a model raises that does not understand how it is called."""


def choose_mode(model: "VlmModel") -> Mode:
    """The fastest way that gives the numbers of the model's own forward, as far as the settings allow.

    Raises:
        ConfigError: the settings insist on a way that does not, or the head is not understood.
    """
    tokens = model.tokens
    allowed = [
        way
        for way in _WAYS
        if not (way.packed and tokens.packing == "plain")
        and not (way.shared and tokens.share_vision == "off")
    ]
    if tokens.packing == "packed" and tokens.share_vision == "off":
        message = explain(
            "tokens.share_vision", got="off", expected="auto or on: a packed row shows its images once"
        )
        raise ConfigError(message)
    if len(allowed) == 1:
        return replace(allowed[0], note=f"layout: {allowed[0].name}, as set")
    truth, problems = _own(model), list[str]()
    for way in allowed:
        problem = _difference(model, way, truth)
        if problem is not None and way.packed:
            restore_last_layer(model.traits.decoder(bare(model.network).model))
            problem = _difference(model, way, truth)
        if problem is None:
            reasons = f" ({'; '.join(problems)})" if problems else ", tested against the model's own forward"
            return replace(way, note=f"layout: {way.name}{reasons}")
        problems.append(f"{way.name}: {problem}")
        if (way.packed and tokens.packing == "packed") or (
            way.shared and tokens.share_vision == "on" and not way.packed
        ):
            break
    message = explain(
        "tokens.packing and tokens.share_vision",
        got=f"[{tokens.packing} and {tokens.share_vision}: {'; '.join(problems)}]",
        expected="the numbers of the model's own forward",
        do="Set both to auto.",
    )
    raise ConfigError(message)


def _difference(model: "VlmModel", way: Mode, truth: Float[Tensor, " scored"]) -> str | None:
    """What is wrong with a way; None where its numbers are right."""
    if way.packed and model.settings.attention == "flash":
        return "flash attention takes no mask"
    try:
        found = _scores(model, way)
    except torch.OutOfMemoryError:
        raise  # a slower way needs no less memory: training would only fail later, and without a reason
    except _FAILURES as error:
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
    gap = float((found - truth).abs().mean())
    limit = _TOLERANCE.get(model.bare_network.dtype, _TOLERANCE_HALF)
    return None if gap <= limit else f"log-probabilities differ by {gap:.2g} on average"


@torch.no_grad()
def _scores(model: "VlmModel", way: Mode) -> Float[Tensor, " scored"]:
    """Log-probabilities of the made-up dialogue's tokens, one way."""
    encoded = model.encode(model.laid_out([_dialogue(model)], way))
    network = bare(model.network)
    ids = encoded.clean.flatten().index_select(0, encoded.context.place)
    return head_log_probs(network(encoded.context), network.head, ids).double()


@torch.no_grad()
def _own(model: "VlmModel") -> Float[Tensor, " scored"]:
    """The same by the model itself, logits and all."""
    encoded = model.encode(model.laid_out([_dialogue(model)], _WAYS[-1]))
    network, inputs = bare(model.network), cast("VlmInputs", encoded.context)
    ids = encoded.clean.flatten().index_select(0, inputs.place)
    logits = network.own_logits(inputs)
    return logits.double().log_softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1)


def _dialogue(model: "VlmModel") -> dict[str, object]:
    """An example with two answers to one picture, one of them to another picture too.

    Raises:
        ConfigError: the family's reader refuses it.
    """
    sees = "image" in model.traits.sees
    whole, other = (_png(seed) for seed in (0, 1))
    answers = (
        Candidate(text="Yes, two of them."),
        Candidate(text="No, there is nothing like that in sight."),
    )
    more = (Candidate(text="Yes, two of them.", images=(other,)),) if sees else ()
    row = PreferenceRow(
        prompt="Is there a red circle?",
        candidates=(*answers, *more),
        images=(whole,) if sees else (),
        source="test of the layout",
    )
    reader = replace(
        model.reader,
        media=replace(model.reader.media, limits=ImageLimits()),
        max_length=2**20,
        max_completion_length=None,
        views=(),
        record=frozenset(),
    )
    try:
        return reader(row, key=0)
    except RowError as error:
        message = explain(
            "processor of the model", got=f"[{error}]", expected="one that takes a plain dialogue"
        )
        raise ConfigError(message) from error


def _png(seed: int) -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
