"""Rows, labels and batches: the types that travel from a data set to an objective.

Axis order is `[prompt, candidate]` everywhere: candidate 0 of a pair is chosen, 1 is rejected; lists have k
candidates, unpaired rows one. Nothing here knows a modality: a candidate holds an image, a text, a sound or a
clip, a batch holds tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mmalign.errors import ShapeError
from mmalign.shapes import flatten_candidates

__all__ = [
    "Batch",
    "BatchContext",
    "Candidate",
    "Conditioning",
    "ContentItem",
    "DataKind",
    "Labels",
    "Media",
    "Message",
    "PreferenceRow",
    "RowKeys",
    "concatenate",
]

Media = bytes | str | tuple[bytes | str, ...]
"""Encoded bytes, a path, or (a video) its frames in order; a path of a folder is a video of its frames."""


@dataclass(frozen=True, slots=True)
class ContentItem:
    """One part of a message: words, or the place of the row's next image or video.

    Args:
        type: what stands here.
        text: the words of a text item.
    """

    type: Literal["text", "image", "video"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue.

    Args:
        role: who speaks.
        content: what is said and shown, in order.
    """

    role: Literal["system", "user", "assistant"]
    content: tuple[ContentItem, ...]


DataKind = Literal["pairs", "lists", "unpaired", "chosen", "prompts"]
"""What a row of a data set says: one preference, a ranking of several candidates, a thumb up or down; the
liked candidate alone; a prompt and nothing else, for methods that make their candidates themselves."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One response to a prompt, as it lies on disk: nothing is decoded yet.

    Args:
        image: encoded bytes, or a path.
        text: a written response.
        audio: encoded bytes, or a path.
        video: encoded bytes, or a path.
        reward: score of a reward model, higher is better.
        id: the data set's own name of this response (for example `image_0_uid`).
        model: what generated it.
        prompt: what it answers where that is not the row's prompt: comparisons of two prompts for one image.
        images: seen instead of the row's images (preferences about images), as many as the row has.
        videos: the same for videos.
    """

    image: bytes | str | None = None
    text: str | None = None
    audio: bytes | str | None = None
    video: bytes | str | None = None
    reward: float | None = None
    id: str | None = None
    model: str | None = None
    prompt: str | None = None
    images: tuple[bytes | str, ...] | None = None
    videos: tuple[Media, ...] | None = None


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One record of a preference data set.

    Args:
        prompt: the instruction or caption.
        candidates: two for pairs (0 = chosen), k for lists, one for unpaired and chosen rows,
            none for prompts.
        kind: which of the label fields below is meaningful.
        preference: pairs: probability in [0.5, 1] that candidate 0 is preferred; 1 = certain, 0.5 = tie.
        relevance: lists: one number per candidate, higher is better.
        desirable: unpaired: whether the candidate is liked.
        weight: >= 0, multiplies the row's loss.
        index: the row's number in its data set; with the seed it decides every random draw of the row.
        id: the data set's own name of the row.
        source: `file:row` for messages.
        extras: other columns, passed through.
        images: of a dialogue, in the order in which `messages` shows them.
        videos: the same for videos.
        messages: a dialogue up to the turn that the candidates answer; () is one user turn of all images,
            all videos and the prompt.
    """

    prompt: str
    candidates: tuple[Candidate, ...]
    kind: DataKind = "pairs"
    preference: float = 1.0
    relevance: tuple[float, ...] | None = None
    desirable: bool | None = None
    weight: float = 1.0
    index: int = 0
    id: str = ""
    source: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[bytes | str, ...] = ()
    videos: tuple[Media, ...] = ()
    messages: tuple[Message, ...] = ()

    def place_of(self, candidate: int) -> str:
        """File, row and candidate, for messages."""
        role = ""
        if self.kind == "pairs":
            role = " (chosen)" if candidate == 0 else " (rejected)"
        return f"{self.source or self.id or f'row {self.index}'} candidate {candidate}{role}"


@dataclass(frozen=True)
class Labels:
    """What the data say about the candidates of each prompt; objectives read the field they need.

    Args:
        probability: pairs: probability that candidate 0 is preferred (1 = hard label, 0.5 = tie).
        desirable: unpaired rows: True where the candidate is liked.
        relevance: lists: graded relevance or reward, higher is better.
        valid: False for candidates that only pad a list (or a row that could not be read); None = all are
            real.

    `certain` is True where the maker of the labels knows, without looking at the device, that `probability`
    is 1 throughout: objectives then need not average over both orders of a pair. `dataclasses.replace` drops
    it.
    """

    probability: Float[Tensor, " prompt"] | None = None
    desirable: Bool[Tensor, "prompt candidate"] | None = None
    relevance: Float[Tensor, "prompt candidate"] | None = None
    valid: Bool[Tensor, "prompt candidate"] | None = None
    certain: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Thumbs and validity may come as 0 and 1."""
        for name in ("desirable", "valid"):
            value = getattr(self, name)
            if value is not None and value.dtype != torch.bool:
                object.__setattr__(self, name, value != 0)

    @classmethod
    def pairs(cls, num_prompts: int, *, device: torch.device | str = "cpu") -> "Labels":
        """Hard labels: candidate 0 is preferred in every pair."""
        return cls(probability=torch.ones(num_prompts, device=device)).known_certain()

    def known_certain(self) -> "Labels":
        """The same labels, with the word of the caller that every probability is 1."""
        known = replace(self)
        object.__setattr__(known, "certain", True)
        return known

    @classmethod
    def unpaired(cls, desirable: Bool[Tensor, " prompt"]) -> "Labels":
        """Thumbs up (True) or down of single candidates."""
        return cls(desirable=desirable.unsqueeze(1))


@dataclass(frozen=True)
class RowKeys:
    """What decides the random draws of each row, on any number of devices and with any accumulation.

    Args:
        key: one 63-bit number per row, from (seed, row, visit).
        stratum: position of the row inside the optimiser step as a fraction in [0, 1), for stratified
            timesteps.
        num_strata: rows in the optimiser step (width of a stratum is 1 / num_strata).
        mirrored: some keys are below 0, mirror images of others (`mmalign.likelihood.draws`).

    Keys that came from the CPU remember their copy there: what a row draws then decides shapes without
    waiting for the device.
    """

    key: Int[Tensor, " prompt"]
    stratum: Float[Tensor, " prompt"]
    num_strata: int
    mirrored: bool = False
    _host: "RowKeys | None" = field(default=None, init=False, repr=False, compare=False)

    def to(self, device: torch.device | str) -> "RowKeys":
        """The same keys on another device."""
        moved = replace(
            self,
            key=self.key.to(device, non_blocking=True),
            stratum=self.stratum.to(device, non_blocking=True),
        )
        object.__setattr__(moved, "_host", self.on_host())
        return moved

    def on_host(self) -> "RowKeys | None":
        """The same keys on the CPU; None when only the device has them."""
        return self if self.key.device.type == "cpu" else self._host


@dataclass(frozen=True)
class Conditioning:
    """Inputs of the network besides the noised sample.

    Args:
        shared: tensors `[prompt, ...]`, the same for all candidates of a prompt (text states).
        per_candidate: tensors `[prompt, candidate, ...]` (true image sizes; another prompt per candidate).
    """

    shared: Mapping[str, Shaped[Tensor, "prompt ..."]] = field(default_factory=dict)
    per_candidate: Mapping[str, Shaped[Tensor, "prompt candidate ..."]] = field(default_factory=dict)

    def rows(self, num_candidates: int) -> dict[str, Tensor]:
        """Every tensor as `[prompt * candidate, ...]`, prompt-major, as networks see them."""
        flat = {name: value.repeat_interleave(num_candidates, dim=0) for name, value in self.shared.items()}
        for name, value in self.per_candidate.items():
            if value.shape[1] != num_candidates:
                message = (
                    f"conditioning {name!r}: got {value.shape[1]} candidates, expected {num_candidates} "
                    "(one entry per candidate of the batch)."
                )
                raise ShapeError(message)
            flat[name] = flatten_candidates(value)
        return flat


@runtime_checkable
class BatchContext(Protocol):
    """What a language model reads besides the candidates, as its family lays it out.

    Attributes:
        place: where each scored token stands in `Batch.clean.flatten()`, known before the device is asked.
    """

    @property
    def place(self) -> Int[Tensor, " scored"]:
        """Where each scored token stands in `Batch.clean.flatten()`."""

    def to(self, device: torch.device | str) -> "BatchContext":
        """The same on another device."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device.

    Args:
        clean: clean data `[prompt, candidate, *event]`: latents, or token ids of answers, padded behind.
        conditioning: the network's other inputs.
        labels: what the data say.
        weight: >= 0, multiplies the loss of each prompt.
        valid: False where the row could not be read; such a row counts nowhere.
        keys: randomness of each row.
        element_mask: optional weights over the event axes of every candidate (inpainting, segments); of
            answers, 1 at their tokens.
        ids: row ids, for messages and stored references.
        reward: of a reward model per candidate, higher is better; None where the data have none.
        prompts: their texts, for whoever scores samples; empty where nobody does.
        recorded: what a rollout kept, `[prompt, candidate, ...]` by name: states of a trajectory, its
            timesteps, the predictions made there, advantages. Of dialogues, numbers that the data give per
            candidate or token.
        context: prompts and media of language models.
    """

    clean: Shaped[Tensor, "prompt candidate *event"]
    conditioning: Conditioning
    labels: Labels
    weight: Float[Tensor, " prompt"]
    valid: Bool[Tensor, " prompt"]
    keys: RowKeys
    element_mask: Float[Tensor, "prompt candidate *event"] | None = None
    ids: tuple[str, ...] = ()
    reward: Float[Tensor, "prompt candidate"] | None = None
    prompts: tuple[str, ...] = ()
    recorded: Mapping[str, Shaped[Tensor, "prompt candidate ..."]] = field(default_factory=dict)
    context: BatchContext | None = None

    @property
    def num_prompts(self) -> int:
        """Prompts in this micro-batch, unreadable ones included."""
        return self.clean.shape[0]

    @property
    def num_candidates(self) -> int:
        """Candidates per prompt."""
        return self.clean.shape[1]

    def rows(self, index: Int[Tensor, " row"] | slice) -> "Batch":
        """The prompts at `index`, in that order; a prompt may come more than once.

        Raises:
            ShapeError: a batch with a context is laid out as a whole.
        """
        if self.context is not None:
            message = "Batch.rows: got a batch of dialogues, expected one without context. Collate it anew."
            raise ShapeError(message)

        def pick(value: Any) -> Any:
            match value:
                case Tensor():
                    return value[index]
                case tuple():
                    if isinstance(index, slice):
                        return value[index]
                    return tuple(value[number] for number in index.tolist()) if value else ()
                case Mapping():
                    return {name: item[index] for name, item in value.items()}
            return value

        labels = {name: pick(value) for name, value in vars(self.labels).items() if name != "certain"}
        picked = Labels(**labels)
        keys = replace(self.keys, key=self.keys.key[index], stratum=self.keys.stratum[index])
        return replace(
            self,
            clean=self.clean[index],
            conditioning=Conditioning(pick(self.conditioning.shared), pick(self.conditioning.per_candidate)),
            labels=picked.known_certain() if self.labels.certain else picked,
            weight=self.weight[index],
            valid=self.valid[index],
            keys=keys,
            element_mask=pick(self.element_mask),
            ids=pick(self.ids),
            reward=pick(self.reward),
            prompts=pick(self.prompts),
            recorded=pick(self.recorded),
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return {name: item.to(device, non_blocking=True) for name, item in value.items()}

        labels = {
            name: None if value is None else move(value)
            for name, value in vars(self.labels).items()
            if name != "certain"
        }
        moved = Labels(**labels)
        return replace(
            self,
            clean=move(self.clean),
            conditioning=Conditioning(move(self.conditioning.shared), move(self.conditioning.per_candidate)),
            labels=moved.known_certain() if self.labels.certain else moved,
            weight=move(self.weight),
            valid=move(self.valid),
            keys=self.keys.to(device),
            element_mask=None if self.element_mask is None else move(self.element_mask),
            reward=None if self.reward is None else move(self.reward),
            recorded=move(self.recorded),
            context=None if self.context is None else self.context.to(device),
        )


def concatenate(batches: Sequence[Batch]) -> Batch:
    """The prompts of several batches, one after another.

    Raises:
        ShapeError: nothing to put together, or the batches do not hold the same fields, under the same names.
    """
    if not batches:
        message = "concatenate: got no batches, expected at least one."
        raise ShapeError(message)

    def join(name: str, values: Sequence[Any]) -> Any:
        first = values[0]
        if any(type(value) is not type(first) for value in values):
            message = f"concatenate: got {name} in some batches only, expected it in all or in none."
            raise ShapeError(message)
        match first:
            case Tensor():
                return torch.cat(list(values))
            case tuple():
                return tuple(item for value in values for item in value)
            case Mapping():
                _require_same_names(name, values)
                return {key: join(f"{name} {key}", [value.get(key) for value in values]) for key in first}
        return first

    def of(read: Callable[[Batch], Any], name: str) -> Any:
        return join(name, [read(batch) for batch in batches])

    num_prompts = sum(batch.num_prompts for batch in batches)
    for name in ("ids", "prompts"):
        number = sum(len(getattr(batch, name)) for batch in batches)
        if number not in (0, num_prompts):
            message = (
                f"concatenate {name}: got {number} of {num_prompts}, expected one for every prompt or none."
            )
            raise ShapeError(message)
    labels = Labels(
        probability=of(lambda batch: batch.labels.probability, "labels.probability"),
        desirable=of(lambda batch: batch.labels.desirable, "labels.desirable"),
        relevance=of(lambda batch: batch.labels.relevance, "labels.relevance"),
        valid=of(lambda batch: batch.labels.valid, "labels.valid"),
    )
    return Batch(
        clean=of(lambda batch: batch.clean, "clean"),
        conditioning=Conditioning(
            of(lambda batch: batch.conditioning.shared, "conditioning.shared"),
            of(lambda batch: batch.conditioning.per_candidate, "conditioning.per_candidate"),
        ),
        labels=labels.known_certain() if all(batch.labels.certain for batch in batches) else labels,
        weight=of(lambda batch: batch.weight, "weight"),
        valid=of(lambda batch: batch.valid, "valid"),
        keys=RowKeys(
            of(lambda batch: batch.keys.key, "keys"),
            of(lambda batch: batch.keys.stratum, "keys"),
            batches[0].keys.num_strata,
        ),
        element_mask=of(lambda batch: batch.element_mask, "element_mask"),
        ids=of(lambda batch: batch.ids, "ids"),
        reward=of(lambda batch: batch.reward, "reward"),
        prompts=of(lambda batch: batch.prompts, "prompts"),
        recorded=of(lambda batch: batch.recorded, "recorded"),
    )


def _require_same_names(name: str, values: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse to drop an entry that some of the batches have.

    Raises:
        ShapeError: the mappings differ in their keys.
    """
    for number, value in enumerate(values):
        if value.keys() != values[0].keys():
            message = (
                f"concatenate: got {name} {sorted(value)} in batch {number}, expected {sorted(values[0])} "
                "as in batch 0: all batches hold the same."
            )
            raise ShapeError(message)
