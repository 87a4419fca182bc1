"""A function of the user's own as a reward: `module:function` takes samples and returns numbers."""

import functools
import hashlib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mmalign.errors import ConfigError, RowError, explain
from mmalign.rewards.base import Scored
from mmalign.rewards.card import Card
from mmalign.rewards.sample import Sample

__all__ = ["FunctionReward", "load_function"]

ScoreFunction = Callable[[Sequence[Sample]], Sequence[float | None]]


class FunctionReward:
    """A function of samples as a reward.

    Args:
        function: takes samples, returns one number each; NaN, None or a `RowError` for a sample it cannot
            score.
        name: what it is called in tables.
        scale: unit and range in words.
    """

    def __init__(self, function: ScoreFunction, *, name: str, scale: str = "") -> None:
        self.function = function
        self._card = Card(name=name, title=f"the function {name}", modality="image", scale=scale)

    @property
    def card(self) -> Card:
        """What it is."""
        return self._card

    def provenance(self) -> Mapping[str, Any]:
        """Its name and the hash of its source text, with what it is bound to."""
        source = _identity(self.function)
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


def _identity(function: Callable[..., Any]) -> str:
    """Source text and bound values: two closures of one function are two rewards."""
    if isinstance(function, functools.partial):
        return f"{_identity(function.func)} {function.args!r} {sorted(function.keywords.items())!r}"
    plain = inspect.isroutine(function)
    try:
        source = inspect.getsource(function if plain else type(function))
    except (OSError, TypeError):  # built in a shell, or in C
        source = repr(function)
    owner = getattr(function, "__self__", None) if plain else function
    bound = [
        sorted(getattr(owner, "__dict__", {}).items()),
        getattr(function, "__defaults__", None) or (),
        [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()],
    ]
    return f"{source} {bound!r}" if any(bound) else source


def load_function(name: str, *, scale: str = "") -> FunctionReward:
    """The reward `module:function`.

    Raises:
        ConfigError: no such module or function, or it is not callable.
    """
    module_name, _, function_name = name.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # the `mmalign` command, other than `python -m`, does not look there
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        message = explain(
            f"reward {name}",
            got=module_name,
            expected="a module Python can import",
            do="Run from its folder, or put it on PYTHONPATH.",
        )
        raise ConfigError(message) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        public = ", ".join(
            n for n, value in vars(module).items() if callable(value) and not n.startswith("_")
        )
        message = explain(
            f"reward {name}", got=function_name, expected=f"a function of {module_name} ({public})"
        )
        raise ConfigError(message)
    return FunctionReward(function, name=name, scale=scale)
