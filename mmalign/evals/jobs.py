"""Pieces of work by name: pictures to paint, and which process does which."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.errors import ConfigError, explain
from mmalign.evals.base import Item

__all__ = ["Job", "jobs_of", "parse_shard", "shard_of"]


@dataclass(frozen=True)
class Job:
    """One picture to paint.

    Args:
        item: its prompt.
        copy: number among the pictures of the prompt.
    """

    item: Item
    copy: int

    def duration(self) -> float | None:
        """Seconds that the prompt's record asks for, of sounds; None where it says nothing.

        Raises:
            ConfigError: it says something else.
        """
        given = self.item.expected.get("duration")
        if given in (None, ""):
            return None
        try:
            seconds = float(str(given))
        except ValueError:
            seconds = float("nan")
        if not 0 < seconds < float("inf"):
            where = f"prompt {self.item.id}: duration"
            raise ConfigError(explain(where, got=given, expected="seconds, a number above 0"))
        return seconds

    @property
    def sample_id(self) -> str:
        """Id of the picture: the item's and the copy's number."""
        return f"{self.item.id}/{self.copy}"


def jobs_of(items: Sequence[Item], copies: int) -> list[Job]:
    """All pictures of a suite, prompt after prompt."""
    return [Job(item, copy) for item in items for copy in range(copies)]


def shard_of(name: str, count: int) -> int:
    """Which of `count` processes does a piece of work: by its name alone."""
    return int(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) % count


def parse_shard(shard: str) -> tuple[int, int]:
    """(number, count) of `NUMBER/COUNT`, counted from 0.

    Raises:
        ConfigError: it is not written so, or the number is not below the count.
    """
    number, _, count = shard.partition("/")
    if not (number.isdigit() and count.isdigit()) or int(number) >= int(count):
        message = explain("--shard", got=shard, expected="NUMBER/COUNT, counted from 0, for example 0/4")
        raise ConfigError(message)
    return int(number), int(count)
