"""Similarity of words: from a table, from word vectors, or from spaCy where that is installed."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from mmalign.errors import ConfigError, MissingExtraError, RowError, explain
from mmalign.evals.benchmarks._records import read_lines, read_value

__all__ = [
    "Similarity",
    "SimilarityTable",
    "read_similarity_table",
    "read_word_vectors",
    "spacy_similarity",
    "vector_similarity",
]

Similarity = Callable[[str, str], float]
"""Two words to a similarity, 1 for the same word."""


@dataclass(frozen=True)
class SimilarityTable:
    """Symmetric similarities of listed pairs; equal words are 1, all others 0.

    Args:
        pairs: (word, word, similarity).
    """

    pairs: Iterable[tuple[str, str, float]] = ()
    _values: Mapping[frozenset[str], float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_values", {frozenset((a, b)): value for a, b, value in self.pairs})

    def __call__(self, first: str, second: str) -> float:
        """The similarity of two words."""
        return 1.0 if first == second else self._values.get(frozenset((first, second)), 0.0)


def read_similarity_table(path: str | Path) -> SimilarityTable:
    """A table from a JSON list of [word, word, similarity].

    Raises:
        ConfigError: the file cannot be read or holds no list.
        RowError: an entry has another form.
    """
    value = read_value(path)
    if not isinstance(value, list):
        raise ConfigError(explain(str(path), got=type(value).__name__, expected="a list of pairs"))
    found = []
    for number, entry in enumerate(value):
        match entry:
            case [str(first), str(second), int() | float() as similarity]:
                found.append((first, second, float(similarity)))
            case _:
                where = f"{path}[{number}]"
                raise RowError(explain(where, got=entry, expected="[word, word, similarity]"))
    return SimilarityTable(tuple(found))


def read_word_vectors(path: str | Path, words: Collection[str]) -> dict[str, np.ndarray]:
    """Vectors of the words of some phrases, from a text file `word number number ...` (GloVe, fastText).

    Raises:
        ConfigError: the file cannot be read, or holds none of the words.
        RowError: a line holds no numbers, or vectors differ in length.
    """
    wanted = {part for word in words for part in word.split()}
    found: dict[str, np.ndarray] = {}
    width = 0
    for number, line in enumerate(read_lines(path), start=1):
        word, _, rest = line.rstrip().partition(" ")
        if word not in wanted or not rest:
            continue
        try:
            vector = np.array(rest.split(), dtype=np.float64)
        except ValueError as error:
            message = explain(f"{path}:{number}", got=rest[:60], expected="a word and numbers")
            raise RowError(message) from error
        width = width or len(vector)
        if len(vector) != width:
            raise RowError(explain(f"{path}:{number}", got=len(vector), expected=f"{width} numbers"))
        found[word] = vector
    if not found:
        raise ConfigError(explain(str(path), got="[none of the words]", expected="vectors of the vocabulary"))
    return found


def vector_similarity(vectors: Mapping[str, np.ndarray]) -> Similarity:
    """Cosine of word vectors; a phrase has the mean vector of its words, a word without a vector is 0.

    So does spaCy, whose vectors are what AMBER's threshold was set on: with others the same threshold is
    another protocol.
    """

    @cache
    def unit(phrase: str) -> np.ndarray | None:
        parts = [vectors[word] for word in phrase.split() if word in vectors]
        mean = np.sum(parts, axis=0) if parts else np.zeros(1)
        norm = float(np.linalg.norm(mean))
        return mean / norm if norm else None

    def similarity(first: str, second: str) -> float:
        if first == second:
            return 1.0
        one, other = unit(first), unit(second)
        return 0.0 if one is None or other is None else float(one @ other)

    return similarity


def spacy_similarity(model: str = "en_core_web_lg") -> Similarity:
    """The released similarity: spaCy's, of a model with word vectors that the user has installed.

    Raises:
        MissingExtraError: spaCy or the model is not installed.
    """
    try:
        import spacy  # type: ignore[import-not-found]

        language = spacy.load(model)
    except (ImportError, OSError) as error:
        message = (
            f"AMBER's released word similarity needs spaCy and its model {model}, which are not installed "
            f"({error}). Install both, or give a table (read_similarity_table) or word vectors "
            "(read_word_vectors); results name which."
        )
        raise MissingExtraError(message) from error
    document = lru_cache(maxsize=None)(language)

    def similarity(first: str, second: str) -> float:
        value = float(document(first).similarity(document(second)))
        return 0.0 if math.isnan(value) else value

    return similarity
