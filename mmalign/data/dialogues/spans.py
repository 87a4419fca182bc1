"""Which characters of an answer a loss weighs: phrases between markers, changed words, judged sentences.

A span is `(start, end, value)` over the characters of the answer, end excluded; an end of `len(text) + 1`
includes the end-of-turn token. Tokens are the model's business.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.data.changed_tokens import changed_tokens

__all__ = ["Span", "changed_spans", "marked_spans", "matching_spans", "sentence_spans", "severity_of"]

Span = tuple[int, int, float]

_WORD = re.compile(r"\S+")
_MARKER = re.compile(r"<MASK>|</MASK>")


def changed_spans(chosen: str, rejected: str, *, min_match: int = 1) -> tuple[list[Span], list[Span]]:
    """Maximal spans of words that the answers do not share, value 1.

    Only replaced words are marked: what one answer adds or leaves out has no counterpart to compare with.

    Args:
        chosen: an answer.
        rejected: the other one.
        min_match: shorter runs of shared words do not separate spans; 1 as in RRPO, 3 as in RLHF-V (there
            over tokens).
    """
    places = [[match.span() for match in _WORD.finditer(text)] for text in (chosen, rejected)]
    words = [
        [text[start:end] for start, end in found]
        for text, found in zip((chosen, rejected), places, strict=True)
    ]
    marks = changed_tokens(words[0], words[1], min_match=min_match)
    first, second = (_runs(found, mark) for found, mark in zip(places, marks, strict=True))
    return first, second


def _runs(places: Sequence[tuple[int, int]], marks: Sequence[bool]) -> list[Span]:
    spans: list[Span] = []
    for number, ((start, end), marked) in enumerate(zip(places, marks, strict=True)):
        if not marked:
            continue
        if number and marks[number - 1]:
            spans[-1] = (spans[-1][0], end, 1.0)
        else:
            spans.append((start, end, 1.0))
    return spans


def marked_spans(marked: str, text: str) -> list[Span] | None:
    """Spans between `<MASK>` and `</MASK>` in a marked copy of an answer, value 1.

    White space around markers does not count. None when the copy without markers is not the answer.

    Args:
        marked: the copy with markers.
        text: the answer.

    Source: pritamqu/RRPO a905573, docs/DATA.md.
    """
    spans: list[tuple[int, int]] = []
    kept, end, start = "", 0, None
    for found in _MARKER.finditer(marked):
        kept += _squeezed(marked[end : found.start()])
        end = found.end()
        if found.group() == "<MASK>":
            start = len(kept) if start is None else start
        elif start is not None:
            spans.append((start, len(kept)))
            start = None
    kept += _squeezed(marked[end:])
    if start is not None:
        spans.append((start, len(kept)))
    places = [place for place, sign in enumerate(text) if not sign.isspace()]
    if kept != _squeezed(text):
        return None
    return [(places[first], places[last - 1] + 1, 1.0) for first, last in spans if last > first]


def _squeezed(text: str) -> str:
    return "".join(text.split())


def sentence_spans(
    text: str, sentences: Sequence[tuple[str, float]], *, with_end: bool = False
) -> tuple[list[Span], int]:
    """Spans that cover an answer, each as far as the next judged sentence, and how many were not found.

    Sentences are looked for in order, without regard to white space; one that is not found is left out. Words
    before a sentence count to it, words behind the last one to that.

    Args:
        text: the answer.
        sentences: (words, value) in order.
        with_end: the last span includes the end-of-turn token.

    Source: zhyang2226/OPA-DPO db90180, utils/data_utils_dpo.py, complete_copied_content.
    """
    squeezed = _squeezed(text)
    places = [place for place, sign in enumerate(text) if not sign.isspace()]
    spans: list[Span] = []
    reached, start, missing = 0, 0, 0
    for words, value in sentences:
        wanted = _squeezed(words)
        if not wanted:
            continue
        found = squeezed.find(wanted, reached)
        if found < 0:
            missing += 1
            continue
        reached = found + len(wanted)
        end = places[reached - 1] + 1
        spans.append((start, end, value))
        start = end
    if spans:
        spans[-1] = (spans[-1][0], len(text) + int(with_end), spans[-1][2])
    return spans, missing


_SEVERITY = {1: 2.5, 2: 2.0, 3: 1.5, 4: 1.0}
_RELATION = {"image_recognition_error": 3.0}


def severity_of(sentence: Mapping[str, Any]) -> tuple[float, float]:
    """(token severity, image relation) of a judged sentence: score 1 to 4 gives 2.5, 2, 1.5, 1.

    The image relation is 3 for errors of recognition, else 1.

    Source: zhyang2226/OPA-DPO db90180, utils/data_utils_dpo.py, score_mapping and error_type_mapping.
    """
    score = sentence.get("score")
    number = int(score) if isinstance(score, int | float | str) and str(score).strip().isdigit() else 4
    kind = sentence.get("error type", sentence.get("error_type", "correct"))
    return _SEVERITY.get(number, 1.0), _RELATION.get(str(kind), 1.0)


def matching_spans(value: object) -> list[Span] | None:
    """Spans as a data set writes them, `[[start, end, value], ...]` (value 1 where left out), or None."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    spans: list[Span] = []
    for item in value:
        cells = list(item.values()) if isinstance(item, Mapping) else item
        if not isinstance(cells, Sequence) or len(cells) not in (2, 3):
            return None
        numbers = [cell for cell in cells if isinstance(cell, int | float) and not isinstance(cell, bool)]
        if len(numbers) != len(cells) or not 0 <= numbers[0] <= numbers[1]:
            return None
        spans.append((int(numbers[0]), int(numbers[1]), float(numbers[2]) if len(numbers) == 3 else 1.0))
    return spans
