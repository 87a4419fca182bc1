"""Where AMBER's nouns and similarities come from: the released libraries, or what needs no download."""

from collections.abc import Callable, Collection

from mmalign.errors import ConfigError, MissingExtraError, explain
from mmalign.evals.benchmarks._amber_words import AmberWords
from mmalign.evals.benchmarks._similarity import (
    Similarity,
    SimilarityTable,
    read_similarity_table,
    read_word_vectors,
    spacy_similarity,
    vector_similarity,
)
from mmalign.evals.benchmarks._words import singular, tokens

__all__ = ["Nouns", "chosen_nouns", "chosen_similarity", "nltk_nouns", "vocabulary_nouns"]

Nouns = Callable[[str], list[str]]
"""A description to its nouns, singular, in order."""


def vocabulary_nouns(vocabulary: Collection[str]) -> Nouns:
    """Nouns by look-up: every word of a description that the vocabulary knows, made singular by spelling.

    Needs no tagger and no download. It takes words of the vocabulary for nouns wherever they stand ("to
    light", "an orange shirt"), lower-cases, and finds names of two words, which the released tagger cannot.
    """
    known = {word.lower(): word for word in vocabulary}
    widest = max((len(word.split()) for word in known), default=1)
    parts = {*known, *(part for word in known for part in word.split())}

    def nouns(text: str) -> list[str]:
        words = [singular(word, parts) for word in tokens(text.lower())]
        found, position = [], 0
        while position < len(words):
            for width in range(min(widest, len(words) - position), 0, -1):
                phrase = " ".join(words[position : position + width])
                if phrase in known:
                    found.append(known[phrase])
                    position += width
                    break
            else:
                position += 1
        return found

    return nouns


def nltk_nouns() -> Nouns:
    """The released extraction: NLTK's tokens, tags that start with NN, WordNet's lemma; case kept.

    Raises:
        MissingExtraError: NLTK or its data (punkt, tagger, WordNet) are not installed.
    """
    try:
        import nltk  # type: ignore[import-not-found]

        lemma = nltk.stem.WordNetLemmatizer().lemmatize

        def nouns(text: str) -> list[str]:
            return [
                lemma(word) for word, tag in nltk.pos_tag(nltk.word_tokenize(text)) if tag.startswith("NN")
            ]

        nouns("A dog.")
    except (ImportError, LookupError) as error:
        message = (
            "AMBER's released noun extraction needs NLTK with its tokenizer, tagger and WordNet data, which "
            f"are not installed ({str(error).strip().splitlines()[0]}). Install them, store the nouns with "
            "the answers, or use vocabulary_nouns; results name which."
        )
        raise MissingExtraError(message) from error
    return nouns


def chosen_nouns(name: str, words: AmberWords) -> Nouns:
    """The way to nouns of a suite's option: `nltk` or `vocabulary`.

    Raises:
        ConfigError: it is neither.
        MissingExtraError: what it needs is not installed.
    """
    if name == "nltk":
        return nltk_nouns()
    if name == "vocabulary":
        return vocabulary_nouns(words.vocabulary)
    raise ConfigError(explain("nouns", got=name, expected="'nltk' (released) or 'vocabulary' (no tagger)"))


def chosen_similarity(name: str, words: AmberWords) -> Similarity:
    """The similarity of a suite's option: `spacy:<model>`, `table:<file>`, `vectors:<file>` or `equal`.

    Raises:
        ConfigError: it is none of these, or the file cannot be read.
        MissingExtraError: what it needs is not installed.
    """
    kind, _, rest = name.partition(":")
    if kind == "spacy" and rest:
        return spacy_similarity(rest)
    if kind == "table" and rest:
        return read_similarity_table(rest)
    if kind == "vectors" and rest:
        return vector_similarity(read_word_vectors(rest, words.vocabulary))
    if name == "equal":
        return SimilarityTable()
    expected = "'spacy:<model>' (released), 'table:<file>', 'vectors:<file>' or 'equal'"
    raise ConfigError(explain("similarity", got=name, expected=expected))
