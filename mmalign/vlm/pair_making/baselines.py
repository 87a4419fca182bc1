"""Rows to imitate, made of scored answers: the best of several, or all of them under the marks they got.

Both train with method `sft` in the trainer that preference pairs train in, so that a comparison differs in
the rows alone.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mmalign.batch import ContentItem, Message, PreferenceRow
from mmalign.errors import ConfigError, HyperparameterError, explain
from mmalign.vlm.pair_making.on_policy import OwnAnswers
from mmalign.vlm.pair_making.output import MadeAnswer, messages_of
from mmalign.vlm.pair_making.scored_sections import ConditionedConfig

__all__ = ["asking_for", "best_answers", "conditioned_answers", "marks_of", "suffix"]


def best_answers(answers: Sequence[OwnAnswers]) -> tuple[list[MadeAnswer], Counter[str]]:
    """The answer with the highest score of every prompt, and what was left out by reason.

    Rejection sampling: `sft` on these rows. Of equal scores the first counts; answers without a score and
    empty ones are not taken.

    Args:
        answers: scored.
    """
    made: list[MadeAnswer] = []
    counts: Counter[str] = Counter()
    for answer in answers:
        known = [
            place
            for place, (text, score) in enumerate(zip(answer.texts, answer.scores, strict=False))
            if text.strip() and not math.isnan(score)
        ]
        if not known:
            counts["not_scored"] += 1
            continue
        best = max(known, key=lambda place: (answer.scores[place], -place))
        columns = {"score": answer.scores[best], "num_answers": len(answer.texts)}
        made.append(MadeAnswer(answer.row, answer.texts[best].strip(), str(best), columns))
    counts["rows"] = len(made)
    return made, counts


def marks_of(
    values: Sequence[float], *, levels: int, bounds: tuple[float, float] | None = None
) -> list[int | None]:
    """Marks from 0 to levels - 1 of a whole data set's scores; None where a score is NaN.

    With bounds: round((value - low) / (high - low) * (levels - 1)), cut to the range. Without: by rank, equal
    scores alike, in equal counts as far as ties allow; the lowest score gets 0, the highest levels - 1.

    Args:
        values: higher is better.
        levels: >= 2.
        bounds: scores of the lowest and the highest mark.

    Raises:
        HyperparameterError: levels below 2, or bounds that do not rise.
    """
    if levels < 2:
        raise HyperparameterError(explain("levels", got=levels, expected="at least 2"))
    scores = np.asarray(values, dtype=np.float64)
    known = np.isfinite(scores)
    if bounds is not None:
        low, high = bounds
        if not low < high:
            raise HyperparameterError(explain("bounds", got=list(bounds), expected="low < high"))
        marks = np.floor((scores - low) / (high - low) * (levels - 1) + 0.5)
    else:
        ordered = np.sort(scores[known])
        # The middle of the places that equal scores share.
        places = (np.searchsorted(ordered, scores) + np.searchsorted(ordered, scores, side="right")) / 2
        first, last = (places[known].min(), places[known].max()) if known.any() else (0.0, 0.0)
        share = (places - first) / (last - first) if last > first else np.ones_like(places)
        marks = np.floor(share * levels)
    return [
        int(min(max(mark, 0), levels - 1)) if there else None
        for mark, there in zip(marks.tolist(), known.tolist(), strict=True)
    ]


def suffix(marks: Mapping[str, int], config: ConditionedConfig) -> str:
    """The words that ask for an answer with these marks: `quality: 4`."""
    return ", ".join(config.wording.format(name=name, mark=mark) for name, mark in marks.items())


def asking_for(row: PreferenceRow, marks: Mapping[str, int], config: ConditionedConfig) -> PreferenceRow:
    """The row with marks in its last user turn: what training reads, and with the highest marks inference.

    Raises:
        ConfigError: the dialogue has no turn of the user.
    """
    messages = list(messages_of(row))
    users = [place for place, message in enumerate(messages) if message.role == "user"]
    if not users:
        message = explain(f"row {row.id}", got="[no turn of the user]", expected="one, to hold the marks")
        raise ConfigError(message)
    words = suffix(marks, config)
    content = list(messages[users[-1]].content)
    spoken = [place for place, item in enumerate(content) if item.type == "text"]
    if not spoken:
        content.append(ContentItem("text", words))
    elif config.position == "behind":
        content[spoken[-1]] = ContentItem("text", f"{content[spoken[-1]].text}\n\n{words}")
    else:
        content[spoken[0]] = ContentItem("text", f"{words}\n\n{content[spoken[0]].text}")
    messages[users[-1]] = Message("user", tuple(content))
    prompt = "\n".join(item.text for item in content if item.type == "text")
    return replace(row, prompt=prompt, messages=tuple(messages))


def conditioned_answers(
    answers: Sequence[OwnAnswers],
    scores: Mapping[str, Sequence[Sequence[float]]],
    config: ConditionedConfig,
) -> tuple[list[MadeAnswer], Counter[str], dict[str, str]]:
    """Every answer under the marks it got, what was left out by reason, and what to ask for at inference.

    SteerLM's attribute-conditioned SFT: the model learns what each mark sounds like, and is asked for the
    highest afterwards.

    Args:
        answers: of each row.
        scores: of every attribute, [row][answer], NaN for none; such answers are left out.
        config: levels, bounds, wording.

    Raises:
        ConfigError: bounds of an attribute that nobody scores.

    Source: arXiv 2310.05344 (annotated attributes in the prompt, highest values at inference). The paper's
        attribute values come from a model that predicts them; here they are scores, cut into marks.
    """
    unknown = sorted(set(config.bounds) - set(scores))
    if unknown:
        listed = ", ".join(scores)
        raise ConfigError(explain("conditioned.bounds", got=unknown[0], expected=f"one of {listed}"))
    flat = {
        name: iter(
            marks_of(
                [value for row in table for value in row],
                levels=config.levels,
                bounds=config.bounds.get(name),
            )
        )
        for name, table in scores.items()
    }
    made: list[MadeAnswer] = []
    counts: Counter[str] = Counter()
    for number, answer in enumerate(answers):
        for place, text in enumerate(answer.texts):
            marks = {name: next(left) for name, left in flat.items()}
            known = {name: mark for name, mark in marks.items() if mark is not None}
            if len(known) < len(marks):
                counts["not_scored"] += 1
            elif not text.strip():
                counts["empty_answer"] += 1
            else:
                columns: dict[str, float] = {f"mark_{name}": mark for name, mark in known.items()}
                columns |= {f"score_{name}": scores[name][number][place] for name in known}
                row = asking_for(answer.row, known, config)
                made.append(MadeAnswer(row, text.strip(), str(place), columns))
    counts["rows"] = len(made)
    asked = {"position": config.position, "words": suffix(dict.fromkeys(scores, config.levels - 1), config)}
    return made, counts, asked
