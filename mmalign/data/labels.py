"""Label columns to probabilities, whole columns at a time: a million rows take a fraction of a second.

Data sets write "the first one won" in many ways: 1 of {0, 0.5, 1}, 1 of {-1, 1}, the index 0, the word
"left", the winner's id. Everything becomes the probability that candidate a is preferred; what cannot be read
becomes NaN.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "desirable_flags",
    "numbers",
    "preference_from_label",
    "preference_from_scores",
    "preference_from_signed",
    "preference_from_winner",
]

Vector = NDArray[np.float64]

_WORDS_A = (
    "a",
    "left",
    "first",
    "image_a",
    "image_0",
    "image1",
    "img_a",
    "chosen_a",
    "model_a",
    "0",
    "yes_a",
    "video_a",
    "video_0",
    "leftvote",
)
_WORDS_B = (
    "b",
    "right",
    "second",
    "image_b",
    "image_1",
    "image2",
    "img_b",
    "chosen_b",
    "model_b",
    "1",
    "yes_b",
    "video_b",
    "video_1",
    "rightvote",
)
_WORDS_TIE = (
    "tie",
    "draw",
    "equal",
    "both",
    "neither",
    "same",
    "none",
    "c",
    "0.5",
    "tievote",
    "bothbad_vote",
)
_WORDS_LIKED = (
    "1",
    "true",
    "yes",
    "y",
    "like",
    "liked",
    "good",
    "chosen",
    "desirable",
    "positive",
    "up",
    "win",
    "+1",
)
_WORDS_DISLIKED = (
    *(
        "0",
        "false",
        "no",
        "n",
        "dislike",
        "disliked",
        "bad",
        "rejected",
        "undesirable",
        "negative",
        "down",
        "lose",
    ),
    *("-1", "0.0"),
)


def _is_texts(values: NDArray[Any]) -> bool:
    return values.dtype == object and any(isinstance(value, str) for value in values)


def numbers(values: NDArray[Any]) -> Vector:
    """A column as float64; what is no number becomes NaN."""
    if values.dtype != object:
        return values.astype(np.float64)
    result = np.full(len(values), np.nan)
    for number, value in enumerate(values):
        if value is not None:
            try:
                result[number] = float(value)
            except (TypeError, ValueError):
                continue
    return result


def preference_from_label(values: NDArray[Any]) -> Vector:
    """Probability that a is preferred: from 1 / 0.5 / 0, true / false, -1 / 0 / 1, or any number in [0, 1].

    A column that holds a negative number is read on the scale -1 (b) to 1 (a). Words are read as in
    `preference_from_winner`, where possible.
    """
    if _is_texts(values):
        parsed = numbers(values)
        if np.isnan(parsed).all():
            return preference_from_winner(values, None, None)
        ties = np.array([_word(value) in _WORDS_TIE for value in values])
        values = np.where(ties, 0.5, parsed)
    given = numbers(values)
    if np.nanmin(given, initial=0.0) < 0.0:
        given = (given + 1.0) / 2.0
    return np.where((given >= 0.0) & (given <= 1.0), given, np.nan)


def preference_from_signed(values: NDArray[Any]) -> Vector:
    """Probability that a is preferred: from 1 (a), 0 (a tie) and -1 (b), numbers between, or words."""
    if _is_texts(values):
        parsed = numbers(values)
        if np.isnan(parsed).all():
            return preference_from_winner(values, None, None)
        values = parsed
    given = numbers(values)
    return np.where(np.abs(given) <= 1.0, (given + 1.0) / 2.0, np.nan)


def preference_from_winner(
    values: NDArray[Any], id_a: NDArray[Any] | None, id_b: NDArray[Any] | None
) -> Vector:
    """Probability that a is preferred: from the winner's index (0 = a, 1 = b), name (a, left, ...) or id."""
    words = np.array(["" if value is None else _word(value) for value in values], dtype=object)
    result = np.full(len(values), np.nan)
    for names, probability in ((_WORDS_A, 1.0), (_WORDS_B, 0.0), (_WORDS_TIE, 0.5)):
        result[np.isin(words, names)] = probability
    if id_a is not None and id_b is not None:
        result[(values == id_b) & (values != id_a)] = 0.0
        result[(values == id_a) & (values != id_b)] = 1.0
    return result


def _word(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, int | float | np.integer | np.floating):
        return f"{float(value):g}"
    return str(value).strip().lower()


def preference_from_scores(score_a: NDArray[Any], score_b: NDArray[Any], *, votes: bool) -> Vector:
    """Probability that a is preferred, from a number for each candidate, higher is better.

    Args:
        score_a: scores or votes of a.
        score_b: the same of b.
        votes: shares of votes become soft labels; scores only say who is ahead (equal = tie).
    """
    first, second = numbers(score_a), numbers(score_b)
    unknown = np.isnan(first) | np.isnan(second)
    if votes:
        total = first + second
        unknown |= (first < 0) | (second < 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(total > 0, first / total, 0.5)
        return np.where(unknown, np.nan, share)
    return np.where(unknown, np.nan, np.where(first == second, 0.5, (first > second).astype(np.float64)))


def desirable_flags(values: NDArray[Any]) -> Vector:
    """1 = liked, 0 = disliked, NaN = unreadable; from booleans, 1/0, 1/-1 or words."""
    if _is_texts(values):
        words = np.array(["" if value is None else _word(value) for value in values], dtype=object)
        result = np.full(len(values), np.nan)
        result[np.isin(words, _WORDS_LIKED)] = 1.0
        result[np.isin(words, _WORDS_DISLIKED)] = 0.0
        return result
    given = numbers(values)
    if np.nanmin(given, initial=0.0) < 0.0:
        given = (given + 1.0) / 2.0
    return np.where((given == 0.0) | (given == 1.0), given, np.nan)
