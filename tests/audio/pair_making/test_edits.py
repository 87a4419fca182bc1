"""Prompts in events and links, and edits whose sound is wrong for the original."""

import pytest

from mmalign.audio.pair_making.edits import EVENT_EDITS, ORDER_EDITS, edits_of, event_bank
from mmalign.audio.pair_making.events import read_prompt


@pytest.mark.parametrize(
    ("text", "events", "relations"),
    [
        ("A man speaks followed by a dog barking", ["a man speaks", "a dog barking"], ["then"]),
        ("A bell rings after a train passes.", ["a bell rings", "a train passes"], ["after"]),
        ("A horn honks, preceded by an engine revving", ["a horn honks", "an engine revving"], ["after"]),
        ("Rain falls while birds chirp", ["rain falls", "birds chirp"], ["together"]),
        ("Rain falls and thunder rumbles", ["rain falls", "thunder rumbles"], ["together"]),
        (
            "A cat meows, then a door closes, and then people laugh",
            ["a cat meows", "a door closes", "people laugh"],
            ["then", "then"],
        ),
        ("After a dog barks, a man speaks", ["a dog barks", "a man speaks"], ["then"]),
        ("Before a dog barks, a man speaks", ["a dog barks", "a man speaks"], ["after"]),
        ("While a dog barks, a man speaks", ["a dog barks", "a man speaks"], ["together"]),
        ("A gun fires, a person screams and the crowd runs", 3, ["together", "together"]),
        ("A man and a woman talk", 1, []),
        ("A man sings as well as plays the guitar", 1, []),
        ("Someone knocks one after another time", 1, []),
        ("A man talks and laughs loudly", 1, []),
        ("A duck quacks", 1, []),
        ("TV plays before NASA counts down", ["TV plays", "NASA counts down"], ["then"]),
    ],
)
def test_prompts_are_read_as_events_in_time(text, events, relations):
    found = read_prompt(text)
    assert (len(found.events) if isinstance(events, int) else list(found.events)) == events
    assert [link.relation for link in found.links] == relations


@pytest.mark.parametrize(
    "text",
    [
        "A man speaks followed by a dog barking.",
        "A cat meows, then a door closes",
        "Rain falls while birds chirp",
        "A gun fires, a person screams and the crowd runs",
        "A duck quacks",
    ],
)
def test_an_unedited_prompt_is_written_as_it_was(text):
    assert read_prompt(text).text() == text


def edited(prompt, *kinds, count=7, bank=(), seed=0):
    return {
        (edit.kind, edit.text) for edit in edits_of(prompt, kinds=kinds, count=count, bank=bank, seed=seed)
    }


def test_events_are_dropped_one_at_a_time():
    assert edited("A man speaks, then a dog barks and a bell rings", "drop") == {
        ("drop", "A man speaks, then a dog barks"),
        ("drop", "A man speaks and a bell rings"),
        ("drop", "A dog barks and a bell rings"),
    }
    assert not edited("A duck quacks", "drop")


def test_events_of_other_prompts_are_added_and_exchanged():
    bank = event_bank(["A train passes after a bell rings", "A dog howls"])
    assert bank == ["a bell rings", "a dog howls", "a train passes"]
    prompt = "A man speaks followed by a dog barking"
    added = edited(prompt, "add", bank=bank)
    # A second dog would be no other sound.
    assert {text.split(" barking")[1].strip().rpartition(" a ")[2] for _, text in added} == {
        "bell rings",
        "train passes",
    }
    replaced = edited(prompt, "replace", bank=bank)
    assert all(("a man speaks" in text.lower()) != ("a dog barking" in text.lower()) for _, text in replaced)
    assert not edited("A duck quacks", "replace", bank=bank)


def test_swapped_events_are_in_another_order_in_time():
    assert edited("A man speaks followed by a dog barking", "swap") == {
        ("swap", "A dog barking followed by a man speaks")
    }
    # What sounds at once has no order to change.
    assert not edited("Rain falls while birds chirp", "swap")
    three = edited("A cat meows, then a door closes, then people laugh", "swap", count=9)
    assert len(three) == 5
    mixed = edited("A cat meows while a door closes, then people laugh", "swap", count=9)
    assert ("swap", "A door closes while a cat meows, then people laugh") in mixed


@pytest.mark.parametrize(
    ("prompt", "turned"),
    [
        ("A man speaks followed by a dog barking", "A man speaks preceded by a dog barking"),
        ("A man speaks before a dog barks", "A man speaks after a dog barks"),
        ("A man speaks after a dog barks.", "A man speaks before a dog barks."),
        ("A man speaks and then a dog barks", "A man speaks after a dog barks"),
        ("A man speaks, preceded by a dog barking", "A man speaks followed by a dog barking"),
    ],
)
def test_words_of_order_turn_round(prompt, turned):
    assert edited(prompt, "reverse") == {("reverse", turned)}
    first, second = read_prompt(prompt).links[0].relation, read_prompt(turned).links[0].relation
    assert {first, second} == {"then", "after"}


def test_what_was_apart_is_at_once_and_the_other_way_round():
    assert edited("A man speaks, then a dog barks", "together") == {
        ("together", "A man speaks while a dog barks")
    }
    assert edited("A man speaks while a dog barks", "apart") == {
        ("apart", "A man speaks before a dog barks"),
        ("apart", "A man speaks after a dog barks"),
    }
    # A bare `and` does not say that two events are at once.
    assert not edited("Rain falls and thunder rumbles", "apart")


def test_edits_are_different_from_each_other_and_from_the_prompt():
    prompt = "A cat meows, then a door closes, then people laugh."
    bank = event_bank(["A train passes after a bell rings", "A horn honks"])
    found = edits_of(prompt, kinds=(*EVENT_EDITS, *ORDER_EDITS), count=23, bank=bank)
    texts = [edit.text for edit in found]
    assert len(set(texts)) == len(texts) == 23
    assert prompt not in texts
    assert {edit.kind for edit in found[:6]} == {"drop", "add", "replace", "swap", "reverse", "together"}
    assert all(text.endswith(".") and text[0].isupper() for text in texts)


def test_equal_seeds_and_keys_give_equal_edits():
    prompt = "A cat meows, then a door closes, then people laugh"
    bank = event_bank([f"A train number {n} passes" for n in range(23)])

    def made(seed, key):
        return [
            edit.text for edit in edits_of(prompt, kinds=EVENT_EDITS, count=5, bank=bank, seed=seed, key=key)
        ]

    assert made(0, "a") == made(0, "a")
    assert made(0, "a") != made(0, "b")
    assert made(0, "a") != made(3, "a")
