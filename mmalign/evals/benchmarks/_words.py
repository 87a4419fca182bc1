"""English words as object scorers need them: tokens, and singulars by rule.

The released scorers tokenise with NLTK and make singulars with `pattern` (CHAIR) or WordNet (Object
HalBench, AMBER). What is here needs no download. It differs where spelling is not enough: WordNet changes a
word only to one it lists, `pattern` cuts "glasses" to "glas" (the released word list has an entry for that),
and each knows other irregular plurals. A word that the vocabulary knows is never changed, and of several
possible singulars the one it knows is taken.
"""

import re
from collections.abc import Collection

__all__ = ["singular", "tokens"]

_TOKEN = re.compile(r"n't\b|\d+(?:[.,]\d+)*|[^\W\d_]+(?:-[^\W\d_]+)*|'(?:s|m|d|re|ve|ll)\b|[^\w\s]|_")
_NEGATION = re.compile(r"n['\u2019]t\b")

_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "lice": "louse",
    "oxen": "ox",
    "dice": "die",
    "cacti": "cactus",
    "fungi": "fungus",
    "loaves": "loaf",
    "leaves": "leaf",
    "halves": "half",
    "shelves": "shelf",
    "selves": "self",
    "calves": "calf",
    "wolves": "wolf",
    "hooves": "hoof",
    "thieves": "thief",
    "scarves": "scarf",
    "knives": "knife",
    "wives": "wife",
    "lives": "life",
    "buses": "bus",
    "gases": "gas",
    "lenses": "lens",
    "canvases": "canvas",
}
_UNCHANGED = frozenset(
    (
        "bus",
        "gas",
        "lens",
        "canvas",
        "atlas",
        "christmas",
        "series",
        "species",
        "scissors",
        "pants",
        "jeans",
        "shorts",
        "trousers",
        "news",
        "tennis",
        "always",
        "is",
        "was",
        "has",
        "this",
        "his",
        "its",
        "us",
        "yes",
        "as",
    )
)
_IE = ("cookie", "movie", "brownie", "smoothie", "hoodie", "selfie", "zombie", "birdie", "pie", "tie", "lie")


def tokens(text: str) -> list[str]:
    """Words, numbers and punctuation marks of a text, in order.

    Hyphened words stay whole, possessives and contracted negations are tokens of their own ("don't" gives
    "do", "n't"), as in the Penn Treebank's convention.
    """
    return _TOKEN.findall(_NEGATION.sub(" n't", text.replace("\u2019", "'")))


def singular(word: str, known: Collection[str] = ()) -> str:
    """The singular of a lower-case English noun, by spelling.

    Args:
        word: one word.
        known: words of the vocabulary: they stay as they are, and decide between possible singulars.
    """
    if word in known or word in _UNCHANGED:
        return word
    possible = _singulars(word)
    return next((form for form in possible if form in known), possible[0])


def _singulars(word: str) -> list[str]:
    """Possible singulars, the likeliest first; the word itself where it looks like none."""
    compound = next((end for end in ("men", "women", "children", "people") if word.endswith(end)), None)
    if word in _IRREGULAR:
        # The vocabulary may know the regular form only: AMBER's "leave" is what its tagger made of "leaves".
        return [_IRREGULAR[word], *([word[:-1]] if word.endswith("s") else [])]
    if compound is not None and compound != "people":  # "policemen", "grandchildren"
        return [word.removesuffix(compound) + _IRREGULAR[compound]]
    if not word.endswith("s") or word.endswith("ss"):
        return [word]
    stem = word[:-1]
    if len(word) < 4 or word.endswith(("us", "is")):  # "cactus", but "taxis" and "tvs" where these are known
        return [word, stem]
    if word.endswith("ies"):
        return [stem, word[:-3] + "y"] if stem in _IE else [word[:-3] + "y", stem]
    if word.endswith("ves"):
        return [stem, word[:-3] + "f", word[:-3] + "fe"]
    if word.endswith(("ches", "shes", "sses", "xes", "zzes", "oes")):
        return [word[:-2], stem]
    return [stem, word[:-2]] if word.endswith("es") else [stem]
