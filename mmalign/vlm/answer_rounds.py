"""Rounds of a language model that learns from its own answers: rows on their way from the loader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from mmalign.batch import Batch, PreferenceRow
from mmalign.errors import ShapeError, explain
from mmalign.vlm.fitting import fit_answers
from mmalign.vlm.inputs import AnswerTokens, PromptTokens
from mmalign.vlm.reader import DialogueReader

__all__ = ["RoundReader", "RoundRows", "prompt_with_room", "rows_of"]


@dataclass(frozen=True)
class RoundRows:
    """The rows of a round in place of a batch's context: nothing of them is laid out yet.

    Args:
        examples: as `RoundReader` makes them; those of unreadable rows stand in for them.
    """

    examples: tuple[Mapping[str, Any], ...]

    @property
    def place(self) -> Int[Tensor, " scored"]:
        """Nothing is scored."""
        return torch.zeros(0, dtype=torch.int64)

    def to(self, device: torch.device | str) -> "RoundRows":
        """The same: examples lie on the CPU."""
        del device
        return self


def rows_of(batch: Batch) -> list[Mapping[str, Any]]:
    """The readable rows of a round.

    Raises:
        ShapeError: the batch is none.
    """
    if not isinstance(batch.context, RoundRows):
        got, expected = type(batch.context).__name__, "RoundRows, of rows that VlmModel.rounds reads"
        raise ShapeError(explain("Batch.context", got=got, expected=expected))
    return [
        example for example, valid in zip(batch.context.examples, batch.valid.tolist(), strict=True) if valid
    ]


def prompt_with_room(reader: DialogueReader, row: PreferenceRow, room: int) -> tuple[PromptTokens, int]:
    """A prompt behind which an answer of `room` tokens fits, and how many it may have where fewer do.

    Pictures are made smaller where the run shrinks them; the prompt itself is never cut.

    Args:
        reader: of the run.
        row: its candidates are not looked at.
        room: tokens of the longest answer.

    Raises:
        RowError: it cannot be read, or leaves no room (`too_long`).
        ConfigError: it leaves no room, and the run wants that to be an error.
    """
    settings = reader.settings
    while True:
        changed = reader if settings is reader.settings else replace(reader, settings=settings)
        prompt = changed.prompt(row)
        excess = prompt.ids.shape[0] + room - reader.max_length
        if excess <= 0 or not prompt.media or reader.fit != "shrink":
            break
        tokens = [medium.num_tokens for medium in prompt.media]
        smaller = reader.traits.smaller(settings, max(1.0 - excess / sum(tokens), 0.05), max(tokens))
        if smaller is None:
            break
        settings = smaller
    longest = AnswerTokens(0, torch.zeros(room, dtype=torch.int64))
    (fitting,) = fit_answers(row, (prompt,), (longest,), max_length=reader.max_length, fit=reader.fit)
    return prompt, fitting.ids.shape[0]


@dataclass(frozen=True)
class RoundReader:
    """Rows to what a collector works on; what a loader worker does for an online run.

    Args:
        reader: rows to tokens.
        room: tokens of the longest answer.
        pairs: read the data's own pair, too.
        asks: read the prompt alone, to write answers to it.
    """

    reader: DialogueReader
    room: int
    pairs: bool = False
    asks: bool = True
    reads_prompts: ClassVar[bool] = True

    def example(self, row: PreferenceRow, *, key: int) -> dict[str, Any]:
        """`row`, `key`, and as asked `prompt` with the `room` behind it, and `pair`.

        Raises:
            RowError: it cannot be read, or does not fit.
        """
        found: dict[str, Any] = {"row": row, "key": key}
        if self.asks:
            found["prompt"], found["room"] = prompt_with_room(self.reader, row, self.room)
        if self.pairs:
            found["pair"] = self.reader(row, key=key)
        return found

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The examples as they are."""
        return {"round": tuple(examples)}
