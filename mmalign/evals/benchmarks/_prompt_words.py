"""What T2I-CompBench reads out of a prompt: noun phrases, two objects and their relation, numbers of objects.

The released scripts ask spaCy. `parse` does the same with a spaCy pipeline the caller has; a file of such
parses can be stored and read, so that scoring needs no spaCy. Prompts of the spatial set follow one template
and need neither.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, explain
from mmalign.evals.benchmarks._records import Record, read_lines, read_value
from mmalign.files import write_json

__all__ = [
    "PromptWords",
    "numbers_in",
    "parse",
    "parse_template",
    "read_object_names",
    "read_words",
    "relation_in",
    "write_words",
]

RELATION_WORDS = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
)
"""In the order in which they are looked for."""

PERSONS = frozenset({"girl", "boy", "man", "woman"})

_PREPOSITIONS = (
    "on top of",
    "on bottom of",
    "on the left",
    "on the right",
    "next to",
    "on side of",
    "near",
)
_NO_PHRASES = frozenset({"top", "the side", "the left", "the right"})
_COUNTS = {
    word: number
    for number, words in enumerate(
        [("a", "an", "one"), ("two",), ("three",), ("four",), ("five",), ("six",), ("seven",), ("eight",)],
        start=1,
    )
    for word in words
}


@dataclass(frozen=True)
class PromptWords:
    """What is read out of a prompt.

    Args:
        phrases: noun phrases, in order.
        objects: the two objects of a spatial relation; None where there are not exactly two.
        text: the prompt without its adjectives.
    """

    phrases: tuple[str, ...] = ()
    objects: tuple[str, str] | None = None
    text: str = ""


def relation_in(prompt: str) -> str | None:
    """The first of `RELATION_WORDS` that stands in a prompt; None where none does."""
    return next((words for words in RELATION_WORDS if words in prompt), None)


def person(name: str) -> str:
    """The class detectors use for people; other names as they are."""
    return "person" if name in PERSONS else name


def parse_template(prompt: str) -> PromptWords:
    """The objects of a prompt of the spatial set, "a giraffe next to a lamp".

    The released script takes the first and the last noun, one word each; here an object keeps all its words.
    """
    relation = relation_in(prompt)
    if relation is None:
        return PromptWords(text=prompt)
    sides = [
        re.sub(r"^(?:an?|the)\s+", "", side.strip().rstrip("."), flags=re.IGNORECASE)
        for side in prompt.split(relation, 1)
    ]
    objects = (person(sides[0]), person(sides[1])) if all(sides) else None
    return PromptWords(objects=objects, text=prompt)


def parse(prompt: str, nlp: Callable[[str], Any]) -> PromptWords:
    """A prompt read as the released scripts read it.

    Phrases are spaCy's noun chunks but for a few that belong to relations. Objects are the noun (or proper
    noun) nearest before the first preposition of place, and the first noun behind it.

    Args:
        prompt: the text.
        nlp: a spaCy pipeline; the released scripts use `en_core_web_sm`.

    Source: Karine-Huang/T2I-CompBench, BLIPvqa_eval/BLIP_vqa.py, UniDet_eval/2D_spatial_eval.py and
    CLIPScore_eval/CLIP_similarity.py.
    """
    document = nlp(prompt)
    phrases = tuple(chunk.text for chunk in document.noun_chunks if chunk.text not in _NO_PHRASES)
    words = [(token.text, token.pos_) for token in document]
    objects = _around_preposition(words)
    text = " ".join(word for word, part in words if part != "ADJ")
    return PromptWords(phrases, objects, text)


def _around_preposition(words: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    found: list[str] = []
    for start in range(len(words)):
        length = next(
            (
                length
                for length in (3, 2, 1)
                if " ".join(word for word, _ in words[start : start + length]) in _PREPOSITIONS
            ),
            0,
        )
        if not length:
            continue
        before = [word for word, part in words[:start] if part in ("NOUN", "PROPN")]
        behind = words[start + length :]
        nouns = [word for word, part in behind if part == "NOUN"]
        proper = [
            word
            for (word, part), (_, following) in pairwise(behind)
            if part == "PROPN" and following != "PROPN"
        ]
        found += before[-1:] + (nouns[:1] or proper[:1])
    return (person(found[0]), person(found[1])) if len(found) == 2 else None


def read_words(path: str | Path) -> dict[str, PromptWords]:
    """Stored parses: a JSON object from prompt to `{"phrases": [...], "objects": [a, b], "text": "..."}`.

    Raises:
        ConfigError: not such an object.
        RowError: an entry is malformed; names file and prompt.
    """
    value = read_value(path)
    if not isinstance(value, Mapping) or not all(isinstance(entry, Mapping) for entry in value.values()):
        message = explain(str(path), got=type(value).__name__, expected="an object from prompt to its words")
        raise ConfigError(message)
    found: dict[str, PromptWords] = {}
    for prompt, entry in value.items():
        record = Record(entry, f"{path} {prompt!r}")
        objects = record.texts("objects") if record.get("objects") is not None else None
        if objects is not None and len(objects) != 2:
            raise record.refuse("objects", "two names, or null")
        pair = None if objects is None else (person(objects[0]), person(objects[1]))
        found[prompt] = PromptWords(record.texts("phrases"), pair, record.optional_text("text") or prompt)
    return found


def write_words(path: str | Path, prompts: Iterable[str], nlp: Callable[[str], Any]) -> Path:
    """Parse prompts with a spaCy pipeline and store what `read_words` reads. Returns the path."""
    found = {prompt: parse(prompt, nlp) for prompt in prompts}
    return write_json(
        path,
        {
            prompt: {
                "phrases": list(words.phrases),
                "objects": None if words.objects is None else list(words.objects),
                "text": words.text,
            }
            for prompt, words in found.items()
        },
    )


def read_object_names(path: str | Path) -> dict[str, str]:
    """Singular and plural to singular, from the official `new_objects.txt` ("dog - dogs", one a line).

    Raises:
        ConfigError: a line has another form, or there is none.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        singular, dash, plural = (part.strip().lower() for part in line.partition(" - "))
        if not dash or not singular or not plural:
            raise ConfigError(explain(f"{path}:{number}", got=line, expected="'singular - plural'"))
        names[singular] = names[plural] = singular
    if not names:
        raise ConfigError(explain(str(path), got="[no names]", expected="'singular - plural' on each line"))
    return names


def numbers_in(prompt: str, names: Mapping[str, str]) -> list[tuple[str, int]]:
    """(Object, number) of each number word that stands before a known object of one or two words.

    >>> numbers_in("two dogs and a fire truck", {"dogs": "dog", "fire truck": "fire truck"})
    [('dog', 2), ('fire truck', 1)]
    """
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", prompt.lower())
    found: list[tuple[str, int]] = []
    for place, word in enumerate(words):
        if word not in _COUNTS:
            continue
        candidates = [" ".join(words[place + 1 : place + 1 + length]) for length in (2, 1)]
        known = next((name for name in candidates if name in names), None)
        if known is not None:
            found.append((names[known], _COUNTS[word]))
    return found
