"""Hallucinated objects of captions, counted: the numbers of CHAIR and of Object HalBench."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmalign.errors import RowError, explain
from mmalign.evals.benchmarks._objects import Form, Mention
from mmalign.evals.benchmarks._records import Record, image_key, mean, ratio, word_count

__all__ = ["CaptionItem", "CaptionResult", "score_mentions"]


@dataclass(frozen=True)
class CaptionItem:
    """One caption.

    Args:
        id: of the caption.
        image: of the image.
        mentions: objects it names, in order, repeats kept.
        truth: object classes that are in the image.
        length: words of the caption.
        error: why it could not be scored: no answer, or objects that could not be read.
    """

    id: str
    image: str
    mentions: tuple[Mention, ...]
    truth: frozenset[str]
    length: float
    error: str | None = None

    @property
    def hallucinated(self) -> tuple[Mention, ...]:
        """Mentions of what is not there, repeats kept."""
        return tuple(mention for mention in self.mentions if mention.node not in self.truth)

    @property
    def correct(self) -> frozenset[str]:
        """Object classes that are there and named."""
        return frozenset(mention.node for mention in self.mentions) & self.truth

    @property
    def hallucinates(self) -> float:
        """1.0 where anything named is not there, else 0.0; NaN for a caption that could not be scored."""
        return math.nan if self.error is not None else float(bool(self.hallucinated))

    @property
    def hallucinated_share(self) -> float:
        """Hallucinated mentions over mentions, in [0, 1]; 0 without mentions, as released."""
        if self.error is not None:
            return math.nan
        return len(self.hallucinated) / len(self.mentions) if self.mentions else 0.0

    @property
    def recall(self) -> float:
        """Share of what is there that is named, in [0, 1]; NaN where nothing is annotated."""
        return math.nan if self.error is not None else ratio(len(self.correct), len(self.truth))


@dataclass(frozen=True)
class CaptionResult:
    """Numbers of one model. Shares are in [0, 1]; NaN where nothing was counted.

    A model can lower every hallucination number by saying less: read `recall` and `mean_length` beside them.

    Args:
        protocol: whose rules, and where objects came from; results of different protocols do not compare.
        items: one per caption, in order.
    """

    protocol: str
    items: tuple[CaptionItem, ...] = field(repr=False)

    @property
    def scored(self) -> tuple[CaptionItem, ...]:
        """The captions that count."""
        return tuple(item for item in self.items if item.error is None)

    @property
    def failed(self) -> int:
        """Captions that could not be scored; in no other number."""
        return len(self.items) - len(self.scored)

    @property
    def with_objects(self) -> int:
        """Captions that name an object of the vocabulary."""
        return sum(bool(item.mentions) for item in self.scored)

    @property
    def without_objects(self) -> int:
        """Captions that name none; they cannot hallucinate."""
        return len(self.scored) - self.with_objects

    @property
    def mentions(self) -> int:
        """Objects named in all captions, repeats counted."""
        return sum(len(item.mentions) for item in self.scored)

    @property
    def hallucinated_captions(self) -> int:
        """Captions that name something that is not there."""
        return sum(bool(item.hallucinated) for item in self.scored)

    @property
    def hallucinated_mentions(self) -> int:
        """Objects named that are not there, repeats counted."""
        return sum(len(item.hallucinated) for item in self.scored)

    @property
    def correct_classes(self) -> int:
        """Distinct object classes of a caption that are there, summed over captions."""
        return sum(len(item.correct) for item in self.scored)

    @property
    def truth_classes(self) -> int:
        """Object classes that are there, summed over captions."""
        return sum(len(item.truth) for item in self.scored)

    @property
    def chair_s(self) -> float:
        """CHAIRs: captions that hallucinate over captions."""
        return ratio(self.hallucinated_captions, len(self.scored))

    @property
    def response_rate(self) -> float:
        """Captions that hallucinate over captions that name an object."""
        return ratio(self.hallucinated_captions, self.with_objects)

    @property
    def chair_i(self) -> float:
        """CHAIRi: hallucinated mentions over mentions."""
        return ratio(self.hallucinated_mentions, self.mentions)

    @property
    def recall(self) -> float:
        """Distinct classes named right over classes that are there, summed over captions."""
        return ratio(self.correct_classes, self.truth_classes)

    @property
    def mean_length(self) -> float:
        """Words per caption."""
        return mean(item.length for item in self.scored)

    def metrics(self) -> dict[str, float]:
        """chair_s, chair_i, response_rate, recall (in [0, 1]) and mean_length (words)."""
        names = ("chair_s", "chair_i", "response_rate", "recall", "mean_length")
        return {name: getattr(self, name) for name in names}


def score_mentions(
    records: Sequence[Record],
    captions: Sequence[str | None],
    mentions: Sequence[Sequence[Mention]],
    errors: Sequence[str | None],
    truth: Mapping[str, frozenset[str]],
    *,
    form: Form,
    protocol: str,
) -> CaptionResult:
    """Mentions of captions against what is in their images.

    Args:
        records: with `image_id`, and `id` where an image has several captions.
        captions: their texts, for the length.
        mentions: objects each names.
        errors: why one cannot be scored, or None.
        truth: image id to object classes.
        form: the released forms count length between single spaces, the strict one between white space.
        protocol: for the result.

    Raises:
        RowError: an image without annotations.
    """
    items = []
    for record, caption, named, error in zip(records, captions, mentions, errors, strict=True):
        image = image_key(record.identifier("image_id"))
        if image not in truth:
            do = "Build the ground truth from the annotations of these images (COCO train and val 2014)."
            message = explain(f"{record.where} image_id", got=image, expected="an annotated image", do=do)
            raise RowError(message, "unknown_image")
        items.append(
            CaptionItem(
                id=record.identifier("id") if "id" in record else image,
                image=image,
                mentions=tuple(named),
                truth=truth[image],
                length=_length(caption, form),
                error=error,
            )
        )
    return CaptionResult(protocol, tuple(items))


def _length(caption: str | None, form: Form) -> float:
    if caption is None or form == "strict":
        return word_count(caption)
    return float(len(caption.strip().split(" ")))
