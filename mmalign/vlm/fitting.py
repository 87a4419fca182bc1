"""Dialogues in the length that a model takes: prompts and media stay whole, answers may lose their end."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mmalign.batch import PreferenceRow
from mmalign.data.rows import FieldError
from mmalign.errors import ConfigError, explain
from mmalign.vlm.inputs import AnswerTokens, PromptTokens

__all__ = ["Fit", "cut", "fit_answers", "longest_dialogue"]

Fit = Literal["shrink", "drop", "error"]
"""What happens to rows with media that are too long: smaller media, no row, or the end of the run."""


def longest_dialogue(prompts: Sequence[PromptTokens], answers: Sequence[AnswerTokens]) -> int:
    """Tokens of the longest prompt and answer of a row."""
    return max(prompts[answer.prompt].ids.shape[0] + answer.ids.shape[0] for answer in answers)


def cut(answer: AnswerTokens, limit: int) -> AnswerTokens:
    """The answer without what lies beyond `limit` tokens, the end of its turn included."""
    if answer.ids.shape[0] <= limit:
        return answer
    per_token = {name: value[:limit] for name, value in answer.per_token.items()}
    return replace(answer, ids=answer.ids[:limit], was_cut=True, per_token=per_token)


def fit_answers(
    row: PreferenceRow,
    prompts: Sequence[PromptTokens],
    answers: Sequence[AnswerTokens],
    *,
    max_length: int,
    fit: Fit,
) -> tuple[AnswerTokens, ...]:
    """Answers in the room that their prompts leave.

    Answers lose their end where a row has no media, or media that were shrunk as far as they go.

    Args:
        row: for messages.
        prompts: of the row, their media as small as they get.
        answers: to those prompts.
        max_length: tokens of a prompt and its answer.
        fit: what the run wants of rows with media.

    Raises:
        FieldError: `too_long`.
        ConfigError: too long, and `fit` is "error".
    """
    needed = longest_dialogue(prompts, answers)
    if needed <= max_length:
        return tuple(answers)
    longest = max(prompt.ids.shape[0] for prompt in prompts)
    sees = any(prompt.media for prompt in prompts)
    room = max_length - longest
    if room >= 1 and (not sees or fit == "shrink"):
        return tuple(cut(answer, max_length - prompts[answer.prompt].ids.shape[0]) for answer in answers)
    visual = max(sum(medium.num_tokens for medium in prompt.media) for prompt in prompts)
    message = explain(
        f"{row.source or row.id}: length",
        got=f"[{needed} tokens, {longest} of them prompt, {visual} of those visual]",
        expected=f"at most {max_length}",
        do="Raise tokens.max_length, or lower tokens.max_pixels.",
    )
    if sees and fit == "error":
        raise ConfigError(message)
    raise FieldError(message, reason="too_long", field_name="prompt")
