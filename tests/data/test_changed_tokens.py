"""Replaced spans of two answers."""

import pytest

from mmalign.data.changed_tokens import changed_tokens
from mmalign.errors import ConfigError


def marked(words, flags):
    return [word for word, flag in zip(words, flags, strict=True) if flag]


def test_replaced_words_are_marked_on_both_sides():
    chosen, rejected = (
        ["a", "red", "car", "on", "the", "road"],
        ["a", "blue", "big", "car", "on", "the", "road"],
    )
    first, second = changed_tokens(chosen, rejected, min_match=1)
    assert marked(chosen, first) == ["red"]
    assert marked(rejected, second) == ["blue", "big"]


def test_insertions_and_deletions_are_not_marked():
    first, second = changed_tokens([1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 4, 5, 6])
    assert not any(first)
    assert not any(second)


def test_runs_below_min_match_belong_to_the_span():
    chosen, rejected = [1, 2, 3, 7, 5, 8, 4, 5, 6], [1, 2, 3, 9, 5, 0, 4, 5, 6]
    assert marked(chosen, changed_tokens(chosen, rejected, min_match=3)[0]) == [7, 5, 8]
    assert marked(chosen, changed_tokens(chosen, rejected, min_match=1)[0]) == [7, 8]


def test_frequent_tokens_still_match_in_long_answers():
    # 201 tokens, every second one the same: with the standard library's rule it is no anchor.
    chosen = [token for number in range(101) for token in (1000 + number, 0)]
    rejected = [token for number in range(101) for token in (2000 + number, 0)]
    kept = changed_tokens(chosen, rejected, min_match=1)
    assert sum(kept[0]) == 101
    assert all(changed_tokens(chosen, rejected, min_match=1, autojunk=True)[0])


def test_answers_without_a_shared_run_are_replaced_whole():
    first, second = changed_tokens([1, 2], [3, 4, 5])
    assert (first, second) == ([True, True], [True, True, True])
    assert changed_tokens([], [3]) == ([], [False])


def test_min_match_below_one_is_refused():
    with pytest.raises(ConfigError, match="min_match: got 0, expected a number >= 1"):
        changed_tokens([1], [1], min_match=0)
