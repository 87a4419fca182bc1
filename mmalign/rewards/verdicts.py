"""What a judge wrote, read: scores, axes and choices, or None. A parse never guesses.

The readers accept one unambiguous verdict inside its range and nothing else: None is an invalid answer, which
is counted and never becomes a win or a zero. What published scripts read instead, slips included, is in
`mmalign.rewards.released_verdicts`.

Grammars: UnifiedReward (CodeGoat24/UnifiedReward, arXiv 2503.05236) and its Think, Flex and 2.0 variants,
Prometheus (prometheus-eval/prometheus-eval, arXiv 2405.01535).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "ACS",
    "APS",
    "VIDEO_AXES",
    "Choice",
    "FlexVerdict",
    "axis_scores",
    "element_checks",
    "final_score",
    "flex_verdict",
    "pair_choice",
    "prometheus_choice",
    "prometheus_score",
    "relative_axis_scores",
    "tagged_choice",
]

Choice = Literal["one", "two", "tie"]
"""Which of the two things shown a judge prefers: the one shown first, the one shown second, neither."""

ACS = ("Alignment", "Coherence", "Style")
"""Axes of UnifiedReward's pointwise image answers."""

APS = ("Alignment", "Physics", "Style")
"""Axes of UnifiedReward 2.0's pointwise video answers."""

VIDEO_AXES = (
    "visual quality",
    "temporal consistency",
    "dynamic degree",
    "text-to-video alignment",
    "factual consistency",
)
"""Axes of UnifiedReward's first pointwise video answers, each 1 to 4."""

_DECORATION = r"[\s*`(\[]*"
# A number that is one: not the start of a longer word, of a decimal, of a percentage or of a range like 3-4.
_NUMBER = r"([-+]?\d+(?:\.\d+)?)(?![\w%]|[.,]\d|\s*[-\u2013]\s*\d)"
_OUT_OF = r"(?:[\s*`)\]]*(?:/|out\s+of)\s*(\d+(?:\.\d+)?))?"
_VALUE = re.compile(_DECORATION + _NUMBER + _OUT_OF, re.IGNORECASE)


def _in_range(found: re.Match[str] | None, low: float | int, high: float | int) -> float | None:
    """The matched number if it lies in its range and its denominator, if any, is the range's upper end."""
    if found is None or (found.group(2) is not None and float(found.group(2)) != high):
        return None
    value = float(found.group(1))
    return value if low <= value <= high else None


# -------------------------------------------------------------------------------- one thing, scored


_FINAL = re.compile(r"final\s+score\**\s*:", re.IGNORECASE)


def final_score(text: str, *, low: float | int = 1, high: float | int = 5) -> float | None:
    """The number behind the last `Final Score:`, or None.

    None where the words are missing, no number follows them, or it lies outside [low, high]; "3.5 out of 5",
    "**4/5**" and "(4)" are read, "10" on a scale to 5 is not 1, and "7/10" on a scale to 5 is not 7.

    Args:
        text: the judge's answer.
        low: least score of the scale.
        high: greatest score; UnifiedReward asks for 1 to 5 on images (its LLaVA version 1 to 10), 1 to 10 on
            videos.
    """
    marks = list(_FINAL.finditer(text))
    return _in_range(_VALUE.match(text, marks[-1].end()), low, high) if marks else None


_ELEMENT = re.compile(r"^[\s*\-]*(?P<element>.+?)\s*:\s*(?P<value>[01])\s*[.,;]?\s*$", re.MULTILINE)


def element_checks(text: str) -> dict[str, bool]:
    """Whether each element of the prompt was found, from lines `element (type): 0` or `: 1` of the answer.

    Lines before the last `Final Score:` count; an element named twice with different values is left out.
    """
    end = [mark.start() for mark in _FINAL.finditer(text)]
    values: dict[str, set[str]] = {}
    for found in _ELEMENT.finditer(text[: end[-1]] if end else text):
        values.setdefault(found["element"].strip(), set()).add(found["value"])
    return {element: value == {"1"} for element, value in values.items() if len(value) == 1}


def _axis(axis: str) -> re.Pattern[str]:
    words = r"[\s\-]+".join(re.escape(word) for word in re.split(r"[\s\-]+", axis))
    return re.compile(
        rf"^[\s*#>\-]*(?:\(\d+\)\s*)?{words}(?:\s+score)?\s*(?:\(\s*[\d.]+\s*-\s*[\d.]+\s*\))?\**\s*:",
        re.IGNORECASE | re.MULTILINE,
    )


def axis_scores(
    text: str, axes: Sequence[str] = ACS, *, low: float | int = 1, high: float | int = 5
) -> dict[str, float] | None:
    """The score of every axis, from lines like `Alignment Score (1-5): 2.69`; None unless all are there.

    An axis that stands several times counts where it stands last; word-wise lists before it are passed over.

    Args:
        text: the judge's answer.
        axes: names, `ACS`, `APS`, `VIDEO_AXES` or others.
        low: least score of the scale.
        high: greatest score.
    """
    scores: dict[str, float] = {}
    for axis in axes:
        marks = list(_axis(axis).finditer(text))
        value = _in_range(_VALUE.match(text, marks[-1].end()), low, high) if marks else None
        if value is None:
            return None
        scores[axis] = value
    return scores


# -------------------------------------------------------------------------------- two things, compared


def _phrases(noun: str) -> dict[Choice, str]:
    """The three closing phrases UnifiedReward is trained to write, for images, videos or answers."""
    return {
        "one": f"{noun} 1 is better",
        "two": f"{noun} 2 is better",
        "tie": f"Both {noun.lower()}s are equally good",
    }


def pair_choice(text: str, *, noun: str = "Image") -> Choice | None:
    """Which of the three closing phrases stands in the answer; None unless exactly one of them does.

    Args:
        text: the judge's answer.
        noun: what is compared: "Image", "Video", "Answer".
    """
    present = [choice for choice, phrase in _phrases(noun).items() if phrase in text]
    return present[0] if len(present) == 1 else None


_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)


def tagged_choice(text: str, *, noun: str = "Image") -> Choice | None:
    """The choice inside `<answer>` tags (UnifiedReward-Think), or None.

    The tag must stand once behind the reasoning and hold one closing phrase alone; reasoning that never ended
    (the answer was cut) holds no verdict, whatever it leaned to.
    """
    thought, closed, rest = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return None
    found = _ANSWER.findall(rest if closed else thought + rest)
    if len(found) != 1:
        return None
    said = found[0].strip().rstrip(".").casefold()
    for choice, phrase in _phrases(noun).items():
        if said == phrase.casefold():
            return choice
    return None


def relative_axis_scores(
    text: str, axes: Sequence[str] = ACS, *, noun: str = "Image", tolerance: float = 1e-3
) -> dict[str, tuple[float, float]] | None:
    """Both shares of every axis of a UnifiedReward 2.0 comparison; None unless each pair is in [0, 1], sum 1.

    Read from an axis' line followed by `Image 1: x` and `Image 2: y`.

    Args:
        text: the judge's answer.
        axes: names of the axes.
        noun: what is compared.
        tolerance: how far a pair's sum may lie from 1 (the model writes sixteen digits or two).
    """
    shares: dict[str, tuple[float, float]] = {}
    for axis in axes:
        marks = list(_axis(axis).finditer(text))
        if not marks:
            return None
        both: list[float] = []
        place = marks[-1].end()
        for number in (1, 2):
            label = re.compile(rf"[\s*\-]*{re.escape(noun)}\s+{number}\**\s*:", re.IGNORECASE)
            found = label.match(text, place)
            value = _VALUE.match(text, found.end()) if found else None
            share = _in_range(value, 0.0, 1.0)
            if value is None or share is None:
                return None
            both.append(share)
            place = value.end()
        if abs(both[0] + both[1] - 1.0) > tolerance:
            return None
        shares[axis] = (both[0], both[1])
    return shares


@dataclass(frozen=True)
class FlexVerdict:
    """What a UnifiedReward-Flex comparison says.

    Args:
        choice: the winner it names.
        shares: mean score of either thing over all its dimensions, 0 to 10; None where a dimension's scores
            are missing or do not sum to 10.
        categories: category to its mean scores.
    """

    choice: Choice
    shares: tuple[float, float] | None
    categories: Mapping[str, tuple[float, float]]

    @property
    def agrees(self) -> bool | None:
        """Whether the named winner has the higher mean score; None without scores."""
        if self.shares is None:
            return None
        first, second = self.shares
        return first > second if self.choice == "one" else second > first


def flex_verdict(text: str, *, noun: str = "Image") -> FlexVerdict | None:
    """The verdict of a UnifiedReward-Flex answer: a JSON object of categories, dimensions and a winner.

    Read after the reasoning, with or without a code fence around it. None where it is no JSON object (an
    answer that was cut, for example) or names no winner of the two.
    """
    found = _json_object(text.rpartition("</think>")[2])
    winner = str(found.get("winner", "")).strip().casefold() if found else ""
    named: dict[str, Choice] = {f"{noun} 1".casefold(): "one", f"{noun} 2".casefold(): "two"}
    if found is None or winner not in named:
        return None
    categories: dict[str, tuple[float, float]] = {}
    pairs: list[tuple[float, float]] = []
    sound = True
    for category in _dicts(found.get("categories")):
        scores = [_flex_pair(dimension) for dimension in _dicts(category.get("dims"))]
        known = [pair for pair in scores if pair is not None]
        sound = sound and len(known) == len(scores)
        pairs += known
        if known:
            categories[str(category.get("name", len(categories)))] = _mean_pair(known)
    shares = _mean_pair(pairs) if sound and pairs else None
    return FlexVerdict(named[winner], shares, categories)


def _json_object(text: str) -> dict[str, Any] | None:
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        found = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _dicts(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _flex_pair(dimension: Mapping[str, Any]) -> tuple[float, float] | None:
    first, second = dimension.get("score_1"), dimension.get("score_2")
    numbers = [value for value in (first, second) if isinstance(value, int | float) and 0 <= value <= 10]
    return (
        (float(numbers[0]), float(numbers[1]))
        if len(numbers) == 2 and abs(sum(numbers) - 10) < 1e-6
        else None
    )


def _mean_pair(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return (sum(pair[0] for pair in pairs) / len(pairs), sum(pair[1] for pair in pairs) / len(pairs))


# -------------------------------------------------------------------------------- Prometheus


_RESULT = re.compile(r"\[RESULT\]\s*:?", re.IGNORECASE)
_REST = re.compile(r"[\s.!*`)\]\"']*\Z")


def prometheus_score(text: str, *, low: int = 1, high: int = 5) -> int | None:
    """The integer behind `[RESULT]` that ends the answer, or None.

    Every `[RESULT]` in the answer must give the same number, whole and in [low, high]; a decimal is refused,
    not rounded.
    """
    values: set[float | None] = set()
    end = len(text) + 1
    for mark in _RESULT.finditer(text):
        found = _VALUE.match(text, mark.end())
        values.add(_in_range(found, low, high))
        end = found.end() if found else end
    (value,) = values if len(values) == 1 else (None,)
    if value is None or value != int(value) or not _REST.match(text, end):
        return None
    return int(value)


_LETTER = re.compile(r"[\s*`(\[]*(?:Response\s+)?([AB])(?!\w)", re.IGNORECASE)


def prometheus_choice(text: str) -> Literal["A", "B"] | None:
    """The letter behind `[RESULT]` that ends the answer; None where there is none or two contradict."""
    letters: set[str] = set()
    end = len(text) + 1
    for mark in _RESULT.finditer(text):
        found = _LETTER.match(text, mark.end())
        letters.add(found.group(1).upper() if found else "")
        end = found.end() if found else end
    if letters == {"A"} and _REST.match(text, end):
        return "A"
    return "B" if letters == {"B"} and _REST.match(text, end) else None
