"""Numbers over stretches of an answer's text, as tokens get them."""

import pytest

from mmalign.errors import RowError
from mmalign.vlm.prompts import span_weights

OFFSETS = [(0, 2), (2, 5), (5, 15), (15, 16)]  # "ab", " cd", the end of turn, a line break behind it


def test_a_span_that_ends_behind_the_text_takes_the_end_of_turn_in():
    inside = span_weights("ab cd", [(0, 2, 2.0), (2, 5, 3.0)], OFFSETS, default=0.0)
    behind = span_weights("ab cd", [(0, 2, 2.0), (2, 6, 3.0)], OFFSETS, default=0.0)
    assert inside.tolist() == [2.0, 3.0, 0.0, 0.0]
    assert behind.tolist() == [2.0, 3.0, 3.0, 0.0]


def test_a_span_beyond_the_end_of_turn_is_refused():
    with pytest.raises(RowError, match=r"expected 0 <= start <= end <= 6"):
        span_weights("ab cd", [(0, 7, 1.0)], OFFSETS)
