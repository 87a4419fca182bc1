"""Similarity of words from tables, vectors and spaCy."""

import sys
from types import SimpleNamespace

import pytest

from mmalign.errors import ConfigError, MissingExtraError, RowError
from mmalign.evals.benchmarks._similarity import (
    SimilarityTable,
    read_similarity_table,
    read_word_vectors,
    spacy_similarity,
    vector_similarity,
)


def test_a_table_is_symmetric_and_silent_about_others():
    table = SimilarityTable((("mug", "cup", 0.83),))
    assert table("mug", "cup") == table("cup", "mug") == 0.83
    assert table("mug", "mug") == 1.0
    assert table("mug", "dog") == 0.0


def test_a_stored_table_is_checked(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text('[["mug", "cup", 1], ["mug", "dog"]]')
    with pytest.raises(RowError, match=r"pairs.json\[1\]: .*expected \[word, word, similarity\]"):
        read_similarity_table(path)
    path.write_text('{"mug": 1}')
    with pytest.raises(ConfigError, match="got 'dict', expected a list of pairs"):
        read_similarity_table(path)


def test_vectors_give_cosines_and_phrases_the_mean_of_their_words(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("dog 3 4\ncat 4 3\nhot 0 1\nother 1 1\n")
    vectors = read_word_vectors(path, ["dog", "cat", "hot dog", "zebra"])
    assert set(vectors) == {"dog", "cat", "hot"}
    similarity = vector_similarity(vectors)
    assert similarity("dog", "cat") == pytest.approx(24 / 25)
    assert similarity("hot dog", "dog") == pytest.approx((9 + 20) / (5 * 34**0.5))
    assert similarity("zebra", "dog") == 0.0
    assert similarity("zebra", "zebra") == 1.0


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("dog 1 x\n", RowError, r"vectors.txt:1: got '1 x', expected a word and numbers"),
        ("dog 1 2\ncat 1\n", RowError, r"vectors.txt:2: got 1, expected 2 numbers"),
        ("cow 1 2\n", ConfigError, r"got \[none of the words\]"),
    ],
)
def test_vector_files_are_checked(tmp_path, content, error, message):
    path = tmp_path / "vectors.txt"
    path.write_text(content)
    with pytest.raises(error, match=message):
        read_word_vectors(path, ["dog", "cat"])


def test_spacy_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingExtraError, match="needs spaCy and its model en_core_web_lg"):
        spacy_similarity()

    class Document:
        def __init__(self, word):
            self.word = word

        def similarity(self, other):
            return float("nan") if "?" in self.word else 0.25

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda model: Document))
    assert spacy_similarity("tiny")("dog", "cat") == 0.25
    assert spacy_similarity("tiny")("?", "cat") == 0.0
