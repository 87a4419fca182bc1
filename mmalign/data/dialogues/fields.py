"""One raw record seen by role: values with their places, so that messages name file, row and field."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.data.config import DialogueConfig
from mmalign.data.rows import FieldError, check_prompt
from mmalign.errors import explain

__all__ = ["DroppedRowError", "Fields", "is_missing"]


class DroppedRowError(FieldError):
    """A row that is left out on purpose (a tie, no phrase to learn from): counted, but not broken."""


def is_missing(value: object) -> bool:
    """Whether a cell says nothing: null, NaN, an empty text or an empty list."""
    if value is None or (isinstance(value, float) and value != value):
        return True
    return isinstance(value, str | list | tuple | dict | bytes) and len(value) == 0


@dataclass(frozen=True)
class Fields:
    """The cells of one record.

    Args:
        values: column to value; media columns may be absent when only the words are looked at.
        columns: role to column.
        where: `file:row`.
        options: what is done with ratings, phrases and missing questions.
        seed: of the few things that are drawn.
        answered: False where answers do not matter (prompts alone): they are not checked then.
    """

    values: Mapping[str, Any]
    columns: Mapping[str, str]
    where: str
    options: DialogueConfig
    seed: int = 0
    answered: bool = True

    def place(self, role: str) -> str:
        """`file:row column`."""
        return f"{self.where} {self.columns.get(role, role)}"

    def value(self, role: str) -> Any:
        """The cell, or None where the column is not there or the cell says nothing."""
        found = self.values.get(self.columns[role]) if role in self.columns else None
        return None if is_missing(found) else found

    def text(self, role: str, *, reason: str) -> str:
        """The cell as words.

        Raises:
            RowError: `reason` when it is missing or blank, `invalid_text` when it is no text.
        """
        return self.words(self.value(role), role, reason=reason)

    def words(self, value: object, role: str, *, reason: str) -> str:
        """A value found at a role, as words that are not blank.

        Raises:
            RowError: `reason` when it is missing or blank, `invalid_text` when it is no text.
        """
        column = self.columns.get(role, role)
        if is_missing(value) or (isinstance(value, str) and not value.strip()):
            raise FieldError(explain(self.place(role), got=value, expected="a text"), reason, column)
        return check_prompt(value, where=self.place(role))

    def number(self, role: str) -> float | None:
        """The cell as a finite number; None where there is none.

        Raises:
            RowError: reason `bad_number`.
        """
        value = self.value(role)
        return None if value is None else self.finite(value, role)

    def finite(self, value: object, role: str) -> float:
        """A value found at a role, as a finite number.

        Raises:
            RowError: reason `bad_number`.
        """
        number = as_number(value)
        if number is None:
            message = explain(self.place(role), got=value, expected="a finite number")
            raise FieldError(message, "bad_number", self.columns.get(role, role))
        return number

    def numbers(self, value: object, role: str) -> list[float]:
        """A list of finite numbers.

        Raises:
            RowError: reason `bad_number`.
        """
        if not isinstance(value, Sequence) or isinstance(value, str):
            message = explain(self.place(role), got=value, expected="a list of numbers")
            raise FieldError(message, "bad_number", self.columns.get(role, role))
        return [self.finite(item, role) for item in value]

    def parsed(self, role: str) -> Any:
        """The cell, out of its JSON where it is written as text.

        Raises:
            RowError: reason `malformed_json`.
        """
        value = self.value(role)
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            message = f"{self.place(role)}: got {value[:60]!r}, expected JSON ({error})."
            raise FieldError(message, "malformed_json", self.columns[role]) from error


def as_number(value: object) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
