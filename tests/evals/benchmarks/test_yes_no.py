"""Reading yes and no with care."""

import math

import pytest

from mmalign.evals.benchmarks._yes_no import YesNoCounts, strict_yes_no


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("NO.", "no"),
        ("**Yes**, there is a dog.", "yes"),
        ("No, there is no cat, yes?", "no"),
        ("The answer is: no", "no"),
        ("I looked twice. Answer: Yes.", "yes"),
        ("<think>No dog? yes, one.</think> No.", "no"),
        ("no one is there", "no"),
    ],
)
def test_an_answer_that_starts_with_or_states_one_word_is_read(text, said):
    assert strict_yes_no(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot see one",
        "Nothing like that",
        "No-one can say",
        "yes and no",
        "Yes/no",
        "yes, no",
        "no or yes",
        "No idea.",
        "no way to tell",
        "there is no reason to doubt it",
        "Yes, but the answer is no",
        "Yesterday there was",
    ],
)
def test_what_gives_neither_or_both_is_no_answer(text):
    assert strict_yes_no(text) is None


def test_no_answer_is_in_no_cell_and_in_every_denominator():
    pairs = [("yes", "yes"), ("yes", "yes"), (None, "yes"), ("no", "yes"), ("yes", "no"), (None, "no")]
    counts = YesNoCounts.tally(pairs, positive="yes")
    assert (counts.tp, counts.fp, counts.tn, counts.fn) == (2, 1, 0, 1)
    assert (counts.count, counts.positives, counts.negatives, counts.unparsed) == (6, 4, 2, 2)
    assert counts.accuracy == pytest.approx(2 / 6)
    assert counts.precision == pytest.approx(2 / 3)
    assert counts.recall == pytest.approx(2 / 4)
    assert counts.f1 == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_silence_never_raises_a_number():
    answered = YesNoCounts.tally([("yes", "yes"), ("yes", "no"), ("no", "yes")], positive="yes")
    silent = YesNoCounts.tally([("yes", "yes"), ("yes", "no"), (None, "yes")], positive="yes")
    for name in ("accuracy", "precision", "recall", "f1"):
        assert getattr(silent, name) <= getattr(answered, name)


def test_precision_without_a_positive_answer_is_undefined():
    counts = YesNoCounts.tally([("no", "yes"), ("no", "no")], positive="yes")
    assert math.isnan(counts.precision)
    assert counts.f1 == 0.0
