"""Tokens and singulars by rule."""

import pytest

from mmalign.evals.benchmarks._words import singular, tokens


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("dogs", "dog"),
        ("boxes", "box"),
        ("benches", "bench"),
        ("glasses", "glass"),
        ("puppies", "puppy"),
        ("cookies", "cookie"),
        ("ties", "tie"),
        ("men", "man"),
        ("policemen", "policeman"),
        ("grandchildren", "grandchild"),
        ("knives", "knife"),
        ("horses", "horse"),
        ("oranges", "orange"),
        ("tomatoes", "tomato"),
        ("skis", "skis"),
        ("bus", "bus"),
        ("buses", "bus"),
        ("grass", "grass"),
        ("cactus", "cactus"),
        ("tennis", "tennis"),
        ("cow", "cow"),
    ],
)
def test_plurals_become_singular(plural, one):
    assert singular(plural) == one


def test_words_of_the_vocabulary_stay_and_decide():
    assert singular("scissors", {"scissors"}) == "scissors"
    assert singular("people", {"people"}) == "people"
    assert singular("stoves", {"stove"}) == "stove"
    assert singular("gloves", {"glove"}) == "glove"
    assert singular("shoes", {"shoe"}) == "shoe"
    assert singular("leaves", {"leave"}) == "leave"
    assert singular("taxis", {"taxi"}) == "taxi"
    assert singular("tvs", {"tv"}) == "tv"


def test_text_is_cut_as_a_treebank_cuts_it():
    cut = tokens("the dog's stop-sign, don't: 3.5 m.")
    assert cut == ["the", "dog", "'s", "stop-sign", ",", "do", "n't", ":", "3.5", "m", "."]
