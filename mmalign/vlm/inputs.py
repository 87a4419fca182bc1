"""What travels from a row to the forward pass of a language model: prompts, media and answers as tensors.

Three stages. `Medium`, `PromptTokens` and `AnswerTokens` are one row's parts, made in a loader worker. A
micro-batch of them is laid out in rows of the network (`mmalign.vlm.packing`) as a flat dictionary of
tensors, which the loader can pin and move. `VlmInputs` is that dictionary on the device, with the features of
every distinct image computed once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

__all__ = ["AnswerTokens", "Features", "MediaKind", "Medium", "PromptTokens", "Visual", "VlmInputs"]

MediaKind = Literal["image", "video"]
"""Which placeholder a medium's features replace; families that see videos as pictures call both an image."""


@dataclass(frozen=True, eq=False)
class Medium:
    """One image or video as its processor gave it.

    Args:
        kind: the placeholder its features replace.
        tensors: what the vision tower reads, by the model's own argument names.
        num_tokens: placeholders it stands for.
        digest: equal for equal content under equal settings, so that it is encoded once.
        text: what stands in the prompt for it, placeholders and tags around them.
    """

    kind: MediaKind
    tensors: Mapping[str, Tensor]
    num_tokens: int
    digest: str
    text: str


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """A prompt with its media, ready for answers to follow.

    Args:
        ids: tokens, placeholders expanded.
        kinds: 0 for text, 1 for placeholders of images, 2 of videos.
        positions: of rotary embeddings, one row or (time, height, width).
        following: position of the first token after the prompt, on every axis.
        blocks: tokens with the same number >= 0 see each other both ways; None where no two do.
        media: in reading order.
    """

    ids: Int[Tensor, " position"]
    kinds: Int[Tensor, " position"]
    positions: Int[Tensor, "axis position"]
    following: int
    blocks: Int[Tensor, " position"] | None = None
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True, eq=False)
class AnswerTokens:
    """An answer to one of the row's prompts.

    Args:
        prompt: number of the prompt it follows.
        ids: tokens of the answer, with the token that ends the turn unless it was cut off.
        was_cut: it lost its end.
        per_answer: numbers of the data, one for the answer.
        per_token: numbers of the data, one per token.
    """

    prompt: int
    ids: Int[Tensor, " token"]
    was_cut: bool = False
    per_answer: Mapping[str, float] = field(default_factory=dict)
    per_token: Mapping[str, Float[Tensor, " token"]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Visual:
    """Where features go, for one kind of medium.

    Args:
        place: index of each visual token in `VlmInputs.ids.flatten()`, ascending.
        source: which row of the kind's features stands there; a shared image is named more than once.
    """

    place: Int[Tensor, " visual"]
    source: Int[Tensor, " visual"]

    def to(self, device: torch.device | str) -> "Visual":
        """The same on another device."""
        return Visual(self.place.to(device, non_blocking=True), self.source.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class Features:
    """What the vision tower and the projector made of all distinct media of one kind.

    Args:
        values: one row per visual token, media after media.
        deep: further rows that are added to hidden states of the first layers (Qwen3-VL).
    """

    values: Float[Tensor, "feature_row feature"]
    deep: tuple[Float[Tensor, "feature_row feature"], ...] = ()

    def to(self, device: torch.device | str) -> "Features":
        """The same on another device."""
        deep = tuple(value.to(device, non_blocking=True) for value in self.deep)
        return Features(self.values.to(device, non_blocking=True), deep)


@dataclass(frozen=True, eq=False)
class VlmInputs:
    """A micro-batch as the network reads it.

    A row is `[prompt | answer | answer ...]`: its answers see the prompt and themselves. Rows are filled up
    behind with tokens that nothing sees.

    Args:
        place: where each scored token stands in `Batch.clean.flatten()`, ascending.
        source: index, in the flattened rows, of the token whose hidden state predicts it; of answers aside,
            their rows say so.
        ids: tokens, 0 behind the end.
        kinds: 0 for text, 1 for placeholders of images, 2 of videos.
        segment: 0 in the prompt, k in the row's k-th answer, -1 behind the end.
        step: how many tokens a token has before it, along what it sees.
        positions: of rotary embeddings where they are not `step`: `[axis, row, position]`.
        blocks: tokens with the same number >= 0 see each other both ways; -1 elsewhere.
        visual: where features go, by kind.
        media: what the vision tower reads, by kind and group: media of one shape are one group.
        features: of the media, when they were computed beforehand.
        is_packed: some row holds several answers.
        native: every row is a whole dialogue with its own copy of the media, for the model's own forward.
        num_causal: tokens at the start of every row that see exactly what comes before them, and predict no
            scored token.
        aside: rows that are read without gradient, of answers through which nothing flows back; their `place`
            is their own.
        order: with `aside`, where each scored token's state lies among those of both, these rows' first.
    """

    place: Int[Tensor, " scored"]
    source: Int[Tensor, " learnt"]
    ids: Int[Tensor, "row position"]
    kinds: Int[Tensor, "row position"]
    segment: Int[Tensor, "row position"]
    step: Int[Tensor, "row position"]
    positions: Int[Tensor, "axis row position"] | None = None
    blocks: Int[Tensor, "row position"] | None = None
    visual: Mapping[MediaKind, Visual] = field(default_factory=dict)
    media: Mapping[MediaKind, tuple[Mapping[str, Shaped[Tensor, "..."]], ...]] = field(default_factory=dict)
    features: Mapping[MediaKind, Features] | None = None
    is_packed: bool = False
    native: bool = False
    num_causal: int = 0
    aside: "VlmInputs | None" = None
    order: Int[Tensor, " scored"] | None = None

    @property
    def is_real(self) -> Bool[Tensor, "row position"]:
        """True at tokens, False behind the end of a row."""
        return self.segment >= 0

    def to(self, device: torch.device | str) -> "VlmInputs":
        """The same on another device."""

        def move(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        positions = None if self.positions is None else move(self.positions)
        return replace(
            self,
            place=move(self.place),
            source=move(self.source),
            ids=move(self.ids),
            kinds=move(self.kinds),
            segment=move(self.segment),
            step=move(self.step),
            positions=positions,
            blocks=None if self.blocks is None else move(self.blocks),
            visual={kind: visual.to(device) for kind, visual in self.visual.items()},
            media={
                kind: tuple({name: move(value) for name, value in group.items()} for group in groups)
                for kind, groups in self.media.items()
            },
            features=None
            if self.features is None
            else {kind: features.to(device) for kind, features in self.features.items()},
            aside=None if self.aside is None else self.aside.to(device),
            order=None if self.order is None else move(self.order),
        )
