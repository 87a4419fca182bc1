"""Words of prompts: templates, number words, a pipeline like spaCy's, stored parses."""

import json
from dataclasses import dataclass

import pytest

from mmalign.errors import ConfigError, RowError
from mmalign.evals.benchmarks._prompt_words import (
    PromptWords,
    numbers_in,
    parse,
    parse_template,
    read_object_names,
    read_words,
    relation_in,
    write_words,
)


@pytest.mark.parametrize(
    ("prompt", "relation", "objects"),
    [
        ("a giraffe next to a lamp", "next to", ("giraffe", "lamp")),
        ("a girl on the top of a frog", "on the top of", ("person", "frog")),
        ("a washing machine on the left of the dog.", "on the left of", ("washing machine", "dog")),
        ("an apple near an orange", "near", ("apple", "orange")),
        ("a dog and a cat", None, None),
        ("next to a cat", "next to", None),
    ],
)
def test_a_spatial_prompt_is_an_object_a_relation_and_an_object(prompt, relation, objects):
    assert relation_in(prompt) == relation
    assert parse_template(prompt).objects == objects


@dataclass
class Token:
    text: str
    pos_: str


class Document(list):
    """What a pipeline returns: tokens, and spans of them as noun chunks."""

    noun_chunks: tuple[Token, ...] = ()


def tagged(text, *chunks):
    """A pipeline for one sentence, written word/TAG."""
    document = Document(Token(*part.split("/")) for part in text.split())
    document.noun_chunks = tuple(Token(chunk, "") for chunk in chunks)
    return lambda prompt: document


def test_a_pipeline_gives_phrases_objects_and_the_text_without_adjectives():
    nlp = tagged(
        "The/DET red/ADJ hat/NOUN was/AUX on/ADP top/NOUN of/ADP the/DET coat/NOUN rack/NOUN ./PUNCT",
        "The red hat",
        "top",
        "the coat rack",
    )
    words = parse("The red hat was on top of the coat rack.", nlp)
    assert words.phrases == ("The red hat", "the coat rack")
    assert words.objects == ("hat", "coat")
    assert words.text == "The hat was on top of the coat rack ."


def test_what_a_pipeline_said_is_stored_and_read_again(tmp_path):
    nlp = tagged("a/DET wet/ADJ dog/NOUN near/ADP a/DET tree/NOUN", "a wet dog", "a tree")
    path = write_words(tmp_path / "words.json", ["a wet dog near a tree"], nlp)
    assert read_words(path) == {
        "a wet dog near a tree": PromptWords(("a wet dog", "a tree"), ("dog", "tree"), "a dog near a tree")
    }


def test_people_and_proper_nouns_are_objects_too():
    nlp = tagged("The/DET boy/NOUN stood/VERB next/ADV to/ADP Big/PROPN Ben/PROPN ./PUNCT")
    assert parse("", nlp).objects == ("person", "Ben")


def test_a_prompt_with_two_prepositions_has_no_two_objects():
    nlp = tagged("dogs/NOUN near/ADP cats/NOUN near/ADP birds/NOUN")
    assert parse("", nlp).objects is None


def test_number_words_stand_before_their_objects():
    names = {
        "dog": "dog",
        "dogs": "dog",
        "fire truck": "fire truck",
        "fire trucks": "fire truck",
        "truck": "truck",
    }
    assert numbers_in("Two dogs, a fire truck and eight of nothing", names) == [("dog", 2), ("fire truck", 1)]
    assert numbers_in("three fire trucks", names) == [("fire truck", 3)]
    assert numbers_in("dogs", names) == []


def test_object_names_are_read_in_both_numbers(tmp_path):
    path = tmp_path / "new_objects.txt"
    path.write_text("Dog - dogs\n\nfire truck - Fire Trucks\n")
    assert read_object_names(path) == {
        "dog": "dog",
        "dogs": "dog",
        "fire truck": "fire truck",
        "fire trucks": "fire truck",
    }
    path.write_text("dog - dogs\ncat\n")
    with pytest.raises(ConfigError, match=r"new_objects\.txt:2: got 'cat', expected 'singular - plural'"):
        read_object_names(path)
    path.write_text("\n")
    with pytest.raises(ConfigError, match=r"new_objects\.txt: got \[no names\]"):
        read_object_names(path)


def test_stored_parses_are_read_and_malformed_ones_refused(tmp_path):
    path = tmp_path / "words.json"
    entry = {"phrases": ["a dog"], "objects": ["man", "dog"], "text": "dog"}
    path.write_text(json.dumps({"a": entry, "b": {"phrases": []}}))
    assert read_words(path) == {
        "a": PromptWords(("a dog",), ("person", "dog"), "dog"),
        "b": PromptWords((), None, "b"),
    }
    path.write_text(json.dumps({"a": {"phrases": "a dog"}}))
    with pytest.raises(RowError, match=r"words\.json 'a' phrases: got 'a dog', expected a list of texts"):
        read_words(path)
    path.write_text(json.dumps({"a": {"phrases": [], "objects": ["dog"]}}))
    with pytest.raises(RowError, match=r"words\.json 'a' objects: .*expected two names, or null"):
        read_words(path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match=r"words\.json: got 'list', expected an object from prompt"):
        read_words(path)
