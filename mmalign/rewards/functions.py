"""A function of the user's own as a reward: `module:function` takes samples and returns numbers."""

import functools
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmalign.errors import ConfigError, RowError, explain
from mmalign.registry import own_function
from mmalign.rewards.base import Scored
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample, media_hash

__all__ = ["FunctionReward", "load_function"]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

ScoreFunction = Callable[[Sequence[Sample]], Sequence[float | None]]


class FunctionReward:
    """A function of samples as a reward.

    Args:
        function: takes samples, returns one number each; NaN, None or a `RowError` for a sample it cannot
            score.
        name: what it is called in tables.
        scale: unit and range in words.
        module: text of the file it comes from: what it calls there may change its values too.
    """

    def __init__(self, function: ScoreFunction, *, name: str, scale: str = "", module: str = "") -> None:
        self.function = function
        self._module = module
        self._card = Card(name=name, title=f"the function {name}", modality="image", scale=scale)

    @property
    def card(self) -> Card:
        """What it is."""
        return self._card

    def provenance(self) -> Mapping[str, Any]:
        """Its name and the hash of its source text and file, with what it is bound to."""
        source = _identity(self.function) + self._module
        return {"name": self.card.name, "source": hashlib.sha256(source.encode()).hexdigest()}

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of its name and source."""
        return hashlib.sha256(str(sorted(self.provenance().items())).encode()).hexdigest()

    def score(self, samples: Sequence[Sample], *, batch_size: int = 16) -> Scored:
        """Values of the samples.

        Raises:
            ConfigError: the function returned another number of values.
        """
        found: list[float] = []
        errors: list[str | None] = []
        for start in range(0, len(samples), batch_size):
            values, problems = self._batch(samples[start : start + batch_size])
            found += values
            errors += problems
        none = (None,) * len(found)
        stacked = torch.tensor(found, dtype=torch.float64).reshape(-1, 1)
        return Scored(stacked, self.card.outputs, tuple(errors), (False,) * len(found), none)

    def _batch(self, samples: Sequence[Sample]) -> tuple[list[float], list[str | None]]:
        """Values and errors; where one sample is refused the others are scored without it."""
        try:
            returned = list(self.function(samples))
        except RowError as error:
            if len(samples) == 1:
                return [math.nan], [str(error)]
            alone = [self._batch([sample]) for sample in samples]
            return [value for values, _ in alone for value in values], [
                problem for _, problems in alone for problem in problems
            ]
        if len(returned) != len(samples):
            got = f"[{len(returned)} values]"
            raise ConfigError(explain(self.card.name, got=got, expected=f"{len(samples)}, one per sample"))
        values = [math.nan if value is None else float(value) for value in returned]
        message = f"{self.card.name}: the value is not finite"
        return values, [None if math.isfinite(value) else message for value in values]


def _identity(function: Callable[..., Any], inside: frozenset[int] = frozenset()) -> str:
    """Source text and bound values, equal in every process: two closures of one function are two rewards."""
    if id(function) in inside:  # it calls itself
        return getattr(function, "__qualname__", "")
    inside |= {id(function)}
    if isinstance(function, functools.partial):
        return f"{_identity(function.func, inside)} {_stable([function.args, function.keywords], inside)}"
    plain = inspect.isroutine(function)
    try:
        source = inspect.getsource(function if plain else type(function))
    except (OSError, TypeError):  # built in a shell, or in C
        source = _ADDRESS.sub("", repr(function))
    owner = getattr(function, "__self__", None) if plain else function
    bound = [
        getattr(owner, "__dict__", {}),
        getattr(function, "__defaults__", None) or (),
        [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()],
    ]
    return f"{source} {_stable(bound, inside)}" if any(bound) else source


def _stable(value: Any, inside: frozenset[int]) -> str:
    """A text that differs where values do and never by where they lie in memory.

    A decorated function holds the plain one, as with `@torch.no_grad()`: it counts by its source.
    """
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return media_hash(value)
    if isinstance(value, torch.nn.Module):
        return _stable(dict(value.state_dict()), inside)
    if isinstance(value, Mapping):
        entries = sorted(f"{name!r}: {_stable(entry, inside)}" for name, entry in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_stable(entry, inside) for entry in value)}]"
    if inspect.isfunction(value) or isinstance(value, functools.partial):
        return _identity(value, inside)
    return _ADDRESS.sub("", repr(value))


def load_function(name: str, *, scale: str = "") -> FunctionReward:
    """The reward `module:function`.

    Raises:
        ConfigError: no such module or function, or it is not callable.
    """
    function, text = own_function(name, what="reward")
    return FunctionReward(function, name=name, scale=scale, module=text)
