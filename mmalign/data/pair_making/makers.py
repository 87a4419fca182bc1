"""Makers of media that are functions of the user's own."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmalign import registry

__all__ = ["FunctionMaker"]


@dataclass(frozen=True)
class FunctionMaker:
    """A function of (prompts, keys, seed, num_steps) as a maker of clips.

    Args:
        function: gives one medium per prompt, or None.
        name: `module:function`.
        taken: what a medium of the function's is turned into.
        source: text of its file: another text, other media.
    """

    function: Callable[[Sequence[str], Sequence[str], int, int], Sequence[Any]]
    name: str
    taken: Callable[[Any], Any]
    source: str = ""

    @classmethod
    def load(cls, name: str, taken: Callable[[Any], Any]) -> "FunctionMaker":
        """The maker `module:function`.

        Raises:
            ConfigError: no such module or function.
        """
        function, source = registry.own_function(name, what="maker")
        return cls(function, name, taken, source)

    def identity(self) -> Mapping[str, Any]:
        """Its name and the hash of its file."""
        return {"function": self.name, "source": hashlib.sha256(self.source.encode()).hexdigest()}

    def __call__(
        self, prompts: Sequence[str], keys: Sequence[str], seed: int, num_steps: int
    ) -> Sequence[Any]:
        """What the function makes of the prompts."""
        return [self.taken(made) for made in self.function(prompts, keys, seed, num_steps)]
