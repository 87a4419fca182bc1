"""Error classes and the one formatter for messages a user can meet.

A message says what was got, what was expected, where (file, row, field) and what to do. The command line
prints it without a traceback; a script can catch `MmalignError` or the matching built-in.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "HyperparameterError",
    "MissingExtraError",
    "MmalignError",
    "RowError",
    "ShapeError",
    "TrainingError",
    "UnknownNameError",
    "explain",
    "unknown_name",
]


_LISTED = 40
"""Names an error lists; where there are more (methods and their objectives) a command shows them."""


class MmalignError(Exception):
    """Root of every error that mmalign raises on purpose."""


class ConfigError(MmalignError, ValueError):
    """A run configuration cannot be used as written."""


class RowError(MmalignError, ValueError):
    """A record of a data set cannot be used; carries the `reason` under which it is counted.

    Args:
        message: what was got, expected, and what to do.
        reason: short name under which such rows are counted (`unreadable_image`, `missing_file`, ...).
    """

    def __init__(self, message: str, reason: str = "invalid_row") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["RowError"], tuple[str, str]]:
        """Pickle with the reason: data workers send errors across processes."""
        return (type(self), (str(self), self.reason))


class ShapeError(MmalignError, ValueError):
    """A tensor's shape breaks a contract."""


class HyperparameterError(MmalignError, ValueError):
    """A hyperparameter is outside its range."""


class MissingExtraError(MmalignError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class CheckpointError(MmalignError, RuntimeError):
    """A checkpoint or run folder cannot be read, written or continued."""


class TrainingError(MmalignError, RuntimeError):
    """Training stopped because going on would be pointless or harmful."""


class UnknownNameError(MmalignError, LookupError):
    """A name is in no registry."""


def explain(where: str, *, got: object, expected: str, do: str = "") -> str:
    """One message in the house form, `where: got X, expected Y. Do Z.`, as a string.

    >>> explain("rows.jsonl:118 label_0", got=0.5, expected="0 or 1", do="Set data.tie_policy.")
    'rows.jsonl:118 label_0: got 0.5, expected 0 or 1. Set data.tie_policy.'
    """
    shown = got if isinstance(got, str) and got.startswith("[") else repr(got)
    message = f"{where}: got {shown}, expected {expected}."
    return f"{message} {do}" if do else message


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """An error that lists the nearest and, unless they are very many, all known names.

    Args:
        kind: what was looked up, for example "family".
        name: what was asked for.
        known: every name that would have worked.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    if len(names) > _LISTED and kind in ("method", "objective"):
        return UnknownNameError(f"unknown {kind} {name!r}.{hint} `mmalign methods` lists all.")
    listing = ", ".join(names) if names else "none"
    message = f"unknown {kind} {name!r}.{hint} Known: {listing}."
    return UnknownNameError(message)
