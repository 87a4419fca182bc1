"""Where a number of a method's row comes from: its paper, its official code, or us."""

from mmalign.methods.row import Default

__all__ = ["code", "ours", "paper"]


def paper(value: float | int | str | bool, note: str = "") -> Default:
    """A number from the paper's text."""
    return Default(value, "paper", note)


def code(value: float | int | str | bool, note: str = "") -> Default:
    """A number from the official code."""
    return Default(value, "code", note)


def ours(value: float | int | str | bool, note: str = "") -> Default:
    """A number that is ours."""
    return Default(value, "ours", note)
