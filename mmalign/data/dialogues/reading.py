"""From a record's fields to a dialogue with its answers: the reader that most formats share.

Nothing about media is decided here: they are passed on as they are written, and laid out later (`content`).
"""

import ast
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmalign.batch import DataKind
from mmalign.data.dialogues.content import Turn, plain_text, turns_of
from mmalign.data.dialogues.fields import Fields, is_missing
from mmalign.data.dialogues.media import as_list, as_videos
from mmalign.data.dialogues.spans import changed_spans, matching_spans
from mmalign.data.labels import desirable_flags
from mmalign.data.rows import FieldError
from mmalign.errors import explain

__all__ = ["Answer", "Dialogue", "dialogue", "kind_of", "prompt_turns", "read_dialogue"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Args:
        text: its words.
        reward: higher is better.
        model: who wrote it.
        images: seen instead of the row's images.
        videos: the same for videos.
    """

    text: str
    reward: float | None = None
    model: str | None = None
    images: tuple[Any, ...] | None = None
    videos: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Dialogue:
    """One record, read.

    Args:
        turns: up to the turn that is answered.
        answers: of which pairs are made.
        images: as written in the record, in order.
        videos: the same.
        pairs: answers that meet, (better, worse); None where rewards decide.
        desirable: of a single answer, whether it is liked.
        per_answer: name to one value per answer; in a row, one per candidate.
        sides: the same, under `NAME_chosen` and `NAME_rejected`.
        extras: other derived values.
        skipped: answers left out, by reason.
    """

    turns: tuple[Turn, ...]
    answers: tuple[Answer, ...] = ()
    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    pairs: tuple[tuple[int, int], ...] | None = ((0, 1),)
    desirable: bool | None = None
    per_answer: Mapping[str, list[Any]] = field(default_factory=dict)
    sides: Mapping[str, list[Any]] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)


def kind_of(columns: Mapping[str, str]) -> DataKind:
    """What the rows of records with these roles are."""
    if "ratings" in columns or "rating_1" in columns:
        return "lists"
    if any(role in columns for role in ("rejected", "rejected_messages", "text")):
        return "pairs"
    return "unpaired" if "desirable" in columns else "chosen"


def prompt_turns(fields: Fields) -> list[Turn]:
    """The turns before the answer: messages, or one turn of the question with its input and history.

    Raises:
        RowError: reason `empty_prompt` and those of `turns_of`.
    """
    value = fields.value("messages")
    role = "messages" if value is not None else "question"
    value = value if value is not None else fields.value("question")
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = _written_out(value)
    if isinstance(value, list | tuple | Mapping):
        turns = turns_of(value, fields.place(role))
    else:
        words = fields.words(value, role, reason="empty_prompt")
        more = fields.value("input")
        words = words if more is None else f"{words}\n{fields.words(more, 'input', reason='empty_prompt')}"
        turns = [*_history(fields), Turn("user", words)]
    system = fields.value("system")
    return turns if system is None else [Turn("system", system), *turns]


def _written_out(text: str) -> Any:
    """Messages written as text (JSON, or the way Python shows them); the text itself where it is neither."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError):
            continue
        inside = value if isinstance(value, list) else [value]
        if inside and all(isinstance(item, dict) and {"role", "from"} & item.keys() for item in inside):
            return value
    return text


def _history(fields: Fields) -> list[Turn]:
    turns = []
    for pair in as_list(fields.value("history")):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            message = explain(
                fields.place("history"), got=repr(pair)[:60], expected="pairs of question and answer"
            )
            raise FieldError(message, "bad_messages", fields.columns["history"])
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def _answer(fields: Fields, role: str, value: Any) -> tuple[list[Turn], str]:
    """The words of an answer, and the turns before it where the cell holds the whole dialogue."""
    if isinstance(value, Mapping) or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
        turns = turns_of(value, fields.place(role))
        if turns[-1].role != "assistant":
            message = explain(
                fields.place(role),
                got=f"a last turn of the {turns[-1].role}",
                expected="one of the assistant",
            )
            raise FieldError(message, "missing_answer", fields.columns[role])
        words = plain_text(turns[-1].content, fields.place(role))
        return turns[:-1], _checked(fields, role, words)
    return [], _checked(fields, role, value)


def _checked(fields: Fields, role: str, value: Any) -> str:
    """An answer as words; reasons `missing_answer`, `empty_answer`."""
    if not fields.answered:
        return value if isinstance(value, str) else ""
    words = fields.words(value, role, reason="missing_answer" if value is None else "empty_answer")
    return plain_text(words, fields.place(role))


def _answers(fields: Fields, role: str) -> tuple[list[Turn], list[str]]:
    """Every answer of a cell: a list of texts is several."""
    value = fields.values.get(fields.columns[role]) if role in fields.columns else None
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return [], [_checked(fields, role, item) for item in value]
    before, text = _answer(fields, role, value)
    return before, [text]


def read_dialogue(fields: Fields) -> Dialogue:
    """A dialogue in any of the common layouts.

    Prompts are messages or a question. Answers are `chosen` and `rejected` (texts, messages, whole dialogues
    or lists of texts, of which every two meet); or the last turn of the messages and `rejected_response` or
    `rejected_messages`; or one answer with a thumb; or one answer alone.

    Raises:
        RowError: what is missing or unreadable, by reason.
    """
    has_prompt = fields.value("messages") is not None or fields.value("question") is not None
    turns = prompt_turns(fields) if has_prompt else []
    kind = kind_of(fields.columns)
    if not fields.answered:
        before = [] if turns or "chosen" not in fields.columns else _answers(fields, "chosen")[0]
        return dialogue(fields, _without_answer(turns or before, fields), [])
    if kind == "pairs":
        return _pair(fields, turns)
    if "completion" in fields.columns:
        before, texts = _answers(fields, "completion")
        turns = _joined(fields, turns, before, "completion")
    else:
        turns, text = _last(fields, turns)
        texts = [text]
    found = dialogue(fields, turns, [Answer(text, fields.number("score")) for text in texts[:1]])
    return found if kind == "chosen" else replace(found, desirable=_thumb(fields))


def _without_answer(turns: list[Turn], fields: Fields) -> list[Turn]:
    answered = "chosen" not in fields.columns and "completion" not in fields.columns
    return turns[:-1] if answered and turns and turns[-1].role == "assistant" else turns


def _thumb(fields: Fields) -> bool:
    import numpy as np

    value = fields.value("desirable")
    flag = desirable_flags(np.array([value], dtype=object))[0]
    if flag != flag:
        message = explain(fields.place("desirable"), got=value, expected="true or false (1 or 0, yes or no)")
        reason = "missing_label" if value is None else "bad_label"
        raise FieldError(message, reason, fields.columns.get("desirable", "desirable"))
    return bool(flag == 1.0)


def _last(fields: Fields, turns: list[Turn]) -> tuple[list[Turn], str]:
    """The dialogue without its last turn, and that turn's words."""
    if not turns or turns[-1].role != "assistant":
        message = explain(fields.place("messages"), got="no last turn of the assistant", expected="an answer")
        raise FieldError(message, "missing_answer", fields.columns.get("messages", ""))
    return turns[:-1], _checked(fields, "messages", plain_text(turns[-1].content, fields.place("messages")))


def _joined(fields: Fields, turns: list[Turn], before: list[Turn], role: str) -> list[Turn]:
    """The prompt, where an answer's cell may hold the whole dialogue."""
    if not turns:
        if not before:
            fields.text("question", reason="missing_prompt")
        return before
    if before and before != turns:
        message = explain(
            fields.place(role),
            got=f"{len(before)} turns before the answer",
            expected="the prompt's turns or none",
        )
        raise FieldError(message, "several_turns", fields.columns[role])
    return turns


def _pair(fields: Fields, turns: list[Turn]) -> Dialogue:
    if "chosen" in fields.columns:
        before, chosen = _answers(fields, "chosen")
        turns = _joined(fields, turns, before, "chosen")
    else:
        turns, text = _last(fields, turns)
        chosen = [text]
    role = "rejected" if fields.value("rejected") is not None else "rejected_messages"
    role = role if role in fields.columns else "rejected"
    before, rejected = _answers(fields, role)
    if before and before != turns:
        message = explain(
            fields.place(role),
            got="other turns before the rejected answer",
            expected="those of the chosen one",
        )
        raise FieldError(message, "different_prompts", fields.columns[role])
    images, videos = as_list(fields.value("rejected_images")), as_videos(fields.value("rejected_videos"))
    answers = [Answer(text, fields.number("score_chosen")) for text in chosen]
    answers += [
        Answer(text, fields.number("score_rejected"), None, tuple(images) or None, tuple(videos) or None)
        for text in rejected
    ]
    meet = tuple((i, len(chosen) + j) for i in range(len(chosen)) for j in range(len(rejected)))
    return replace(dialogue(fields, turns, answers), pairs=meet)


def dialogue(fields: Fields, turns: Sequence[Turn], answers: Sequence[Answer]) -> Dialogue:
    """A dialogue with the media of the record and the numbers that every format may carry.

    Extras: `reference_chosen`, `reference_rejected` and their `reference_tokens_...` (stored
    log-probabilities), `severity`, `spans_...`, `phrase`, `temperature_factor`, `margin`, `reward_gap`. A gap
    without rewards becomes the rewards (gap, 0).

    Raises:
        RowError: reason `bad_number`, `bad_spans`.
    """
    per_answer: dict[str, list[Any]] = {}
    sides: dict[str, list[Any]] = {}
    pair = len(answers) == 2
    for name in ("reference", "reference_tokens", "severity", "spans"):
        cells = [fields.value(f"{name}_{side}") for side in ("chosen", "rejected")]
        if not pair or all(cell is None for cell in cells):
            continue
        read = [
            _number_or_list(fields, f"{name}_{side}", name, cell)
            for side, cell in zip(("chosen", "rejected"), cells, strict=True)
        ]
        if name == "severity":
            per_answer[name] = [1.0 if value is None else value for value in read]
        elif all(value is not None for value in read):
            sides[name] = read
    if pair and "spans" not in sides and fields.options.phrases == "align":
        sides["spans"] = list(changed_spans(answers[0].text, answers[1].text))
    if "spans" in sides:
        per_answer["phrase"] = sides["spans"]
    extras = {
        name: number
        for name in ("temperature_factor", "margin", "reward_gap")
        if (number := fields.number(name)) is not None
    }
    if pair and "reward_gap" in extras and all(answer.reward is None for answer in answers):
        answers = [replace(answers[0], reward=extras["reward_gap"]), replace(answers[1], reward=0.0)]
    return Dialogue(
        turns=tuple(turns),
        answers=tuple(answers),
        images=tuple(as_list(fields.value("images"))),
        videos=tuple(as_videos(fields.value("videos"))),
        per_answer=per_answer,
        sides=sides,
        extras=extras,
    )


def _number_or_list(fields: Fields, role: str, name: str, cell: Any) -> Any:
    if cell is None:
        return None
    if name == "spans":
        spans = matching_spans(fields.parsed(role))
        if spans is None:
            message = explain(fields.place(role), got=repr(cell)[:60], expected="[[start, end, value], ...]")
            raise FieldError(message, "bad_spans", fields.columns[role])
        return spans
    if name == "reference_tokens":
        return fields.numbers(fields.parsed(role), role)
    return fields.finite(cell, role)


def first_present(record: Mapping[str, Any], *names: str) -> Any:
    """The first of some entries that says something, or None."""
    return next((record[name] for name in names if not is_missing(record.get(name))), None)
