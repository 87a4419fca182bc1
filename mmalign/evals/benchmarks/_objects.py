"""Objects named in a caption: the rules that CHAIR and Object HalBench share.

A vocabulary is made of synonym lines, `node, synonym, synonym, ...`. A caption is lower-cased, cut into words
and made singular; neighbouring words that belong together are merged ("traffic light", "baby bear" to
"bear"); what is in the vocabulary is a mention of its node. Where a toilet is mentioned, "seat" is no chair.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.benchmarks._records import Record, image_key, read_lines, read_value
from mmalign.evals.benchmarks._words import singular, tokens

__all__ = [
    "Form",
    "Mention",
    "ObjectVocabulary",
    "ground_truth",
    "read_coco",
    "read_ground_truth",
    "read_synonyms",
]

Form = Literal["original", "refined", "strict"]
"""`original`: CHAIR as released. `refined`: RLAIF-V's revision. `strict`: every synonym can match."""

# Two-word names that the original merges (LisaAnne/Hallucination utils/chair.py).
_PAIRS = (
    "motor bike",
    "motor cycle",
    "air plane",
    "traffic light",
    "street light",
    "traffic signal",
    "stop light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "suit case",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "cell phone",
    "mobile phone",
    "teddy bear",
    "hair drier",
    "potted plant",
    "bow tie",
    "laptop computer",
    "stove top oven",
    "home plate",
)
_REFINED_PAIRS = ("home plate", "train track")
_ANIMALS = (
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "animal",
    "cub",
)
_VEHICLES = ("jet", "train")


@dataclass(frozen=True)
class Mention:
    """An object a caption names.

    Args:
        word: as it stands in the caption, singular and merged.
        node: the object class.
    """

    word: str
    node: str


def _merges(pairs: Iterable[str]) -> dict[str, str]:
    """Neighbouring words to what they count as."""
    found = {pair: pair for pair in pairs}
    for animal in _ANIMALS:
        found |= {f"baby {animal}": animal, f"adult {animal}": animal}
    found |= {f"passenger {vehicle}": vehicle for vehicle in _VEHICLES}
    return found | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


@dataclass(frozen=True)
class ObjectVocabulary:
    """Which words name which object class, and how a caption is cut into words.

    Args:
        form: whose rules; see `Form`.
        nodes: word to object class.
        merges: neighbouring words, joined by a space, to the word they count as.
        tokenise: lower-case caption to words.
        singularise: word to its singular; None uses spelling rules that prefer words of the vocabulary.
    """

    form: Form
    nodes: Mapping[str, str]
    merges: Mapping[str, str]
    tokenise: Callable[[str], list[str]] = tokens
    singularise: Callable[[str], str] | None = None
    _known: Collection[str] = field(init=False, repr=False, compare=False)
    _window: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = {*self.nodes, *chain.from_iterable(phrase.split() for phrase in self.merges)} - {"glas"}
        widest = max((len(phrase.split()) for phrase in self.merges), default=1)
        object.__setattr__(self, "_known", known)
        object.__setattr__(self, "_window", widest if self.form == "strict" else 2)

    @classmethod
    def from_lines(
        cls,
        lines: Iterable[str],
        form: Form = "original",
        *,
        tokenise: Callable[[str], list[str]] = tokens,
        singularise: Callable[[str], str] | None = None,
    ) -> "ObjectVocabulary":
        """A vocabulary of synonym lines.

        The original splits a line at ", " after stripping the line alone, so that a synonym with stray spaces
        never matches, and merges a fixed list of pairs. The refined form strips synonyms and merges every
        one of several words, two words at a time, so that one of three never matches. The strict form
        matches all.

        Raises:
            ConfigError: unknown form, or no synonyms.
        """
        if form not in ("original", "refined", "strict"):
            message = explain("vocabulary form", got=form, expected="'original', 'refined' or 'strict'")
            raise ConfigError(message)
        nodes: dict[str, str] = {}
        for line in lines:
            words = line.strip().split(", " if form != "strict" else ",")
            if form != "original":
                words = [
                    " ".join(word.lower().split()) if form == "strict" else word.strip() for word in words
                ]
            nodes |= {word: words[0] for word in words if word}
        if not nodes:
            raise ConfigError(explain("synonyms", got="[no words]", expected="lines `node, synonym, ...`"))
        several = [word for word in nodes if len(word.split(" ")) > 1]
        merges = _merges(_PAIRS if form == "original" else [*several, *_REFINED_PAIRS])
        return cls(form, nodes, merges, tokenise, singularise)

    def singular(self, word: str) -> str:
        """The singular of one lower-case word."""
        return singular(word, self._known) if self.singularise is None else self.singularise(word)

    def words(self, caption: str) -> list[str]:
        """The caption's words: lower case, singular, merged where they belong together."""
        lowered = caption.lower().replace("-", " ") if self.form == "strict" else caption.lower()
        return list(self._merged([self.singular(word) for word in self.tokenise(lowered)], keep=True))

    def merged_only(self, words: Sequence[str]) -> list[str]:
        """What neighbouring words count as, without the words that stand alone."""
        return list(self._merged(words, keep=False))

    def _merged(self, words: Sequence[str], *, keep: bool) -> Iterator[str]:
        position = 0
        while position < len(words):
            for width in range(min(self._window, len(words) - position), 1, -1):
                phrase = " ".join(words[position : position + width])
                if phrase in self.merges:
                    yield self.merges[phrase]
                    position += width
                    break
            else:
                if keep:
                    yield words[position]
                position += 1

    def known(self, words: Iterable[str]) -> list[Mention]:
        """Mentions among words that are already singular and merged, in order, repeats kept."""
        given = list(words)
        if "toilet" in given:
            given = [word for word in given if word != "seat"]
        return [Mention(word, self.nodes[word]) for word in given if word in self.nodes]

    def mentions(self, caption: str) -> list[Mention]:
        """Objects a caption names, in order, repeats kept."""
        return self.known(self.words(caption))


def read_synonyms(
    path: str | Path,
    form: Form = "original",
    *,
    tokenise: Callable[[str], list[str]] = tokens,
    singularise: Callable[[str], str] | None = None,
) -> ObjectVocabulary:
    """The vocabulary of an official synonym file (`synonyms.txt`, `synonyms_refine.txt`).

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    return ObjectVocabulary.from_lines(read_lines(path), form, tokenise=tokenise, singularise=singularise)


# ---------------------------------------------------------------------------------------------- what is there


def ground_truth(
    categories: Mapping[str, Iterable[str]],
    captions: Mapping[str, Iterable[str]],
    vocabulary: ObjectVocabulary,
) -> dict[str, frozenset[str]]:
    """Object classes of each image: its instance categories and what its reference captions name.

    Args:
        categories: image id to COCO category names.
        captions: image id to reference captions.
        vocabulary: maps both to classes.

    Raises:
        ConfigError: a category is not in the vocabulary.
    """
    found: dict[str, set[str]] = {}
    for image, names in categories.items():
        for name in names:
            if name not in vocabulary.nodes:
                do = "Use the synonym file that belongs to these annotations."
                message = explain(f"category of image {image}", got=name, expected="in the synonyms", do=do)
                raise ConfigError(message)
            found.setdefault(image_key(image), set()).add(vocabulary.nodes[name])
    for image, texts in captions.items():
        named = {mention.node for text in texts for mention in vocabulary.mentions(text)}
        found.setdefault(image_key(image), set()).update(named)
    return {image: frozenset(nodes) for image, nodes in found.items()}


def read_coco(
    instances: Sequence[str | Path], captions: Sequence[str | Path], images: Collection[object] | None = None
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(Category names, reference captions) by image id, from COCO's annotation files.

    Args:
        instances: `instances_train2014.json` and `instances_val2014.json`.
        captions: `captions_train2014.json` and `captions_val2014.json`.
        images: ids to keep; None keeps all. Kept images without annotations have empty lists.

    Raises:
        ConfigError: a file cannot be read or has another layout.
        RowError: an annotation names an unknown category.
    """
    wanted = None if images is None else {image_key(image) for image in images}
    names: dict[str, list[str]] = {image: [] for image in wanted or ()}
    texts: dict[str, list[str]] = {image: [] for image in wanted or ()}
    for path in instances:
        value = _annotations(path, "annotations", "categories")
        called = {part.get("id"): part.get("name") for part in value["categories"]}
        for where, part in _kept(path, value["annotations"], wanted):
            name = called.get(part["category_id"]) if "category_id" in part else None
            if not isinstance(name, str):
                raise part.refuse("category_id", f"a category of {path}")
            names.setdefault(where, []).append(name)
    for path in captions:
        for where, part in _kept(path, _annotations(path, "annotations")["annotations"], wanted):
            texts.setdefault(where, []).append(part.text("caption"))
    return names, texts


def _annotations(path: str | Path, *needed: str) -> Mapping[str, list[Mapping[str, object]]]:
    value = read_value(path)
    if not isinstance(value, dict) or any(not isinstance(value.get(name), list) for name in needed):
        message = explain(str(path), got="[another layout]", expected=f"COCO's lists {' and '.join(needed)}")
        raise ConfigError(message)
    return value


def _kept(
    path: str | Path, parts: Sequence[Mapping[str, object]], wanted: Collection[str] | None
) -> Iterator[tuple[str, Record]]:
    for number, part in enumerate(parts):
        record = Record(part, f"{path} annotations[{number}]")
        image = image_key(record.identifier("image_id"))
        if wanted is None or image in wanted:
            yield image, record


def read_ground_truth(path: str | Path) -> dict[str, frozenset[str]]:
    """Object classes by image from a JSON object `{image id: [class, ...]}`.

    COCO's instance files take gigabytes to parse; `ground_truth` once, stored this way, loads at once.

    Raises:
        ConfigError: the file cannot be read.
        RowError: an entry is no list of names.
    """
    value = read_value(path)
    if not isinstance(value, dict):
        raise RowError(explain(str(path), got=type(value).__name__, expected="an object {image id: classes}"))
    record = Record(value, str(path))
    return {image_key(image): frozenset(record.texts(image)) for image in record}
