"""Tiny reward checkpoints with random weights, in the file and key layout of the published ones.

Each module may define any of these tables; `collected` merges them by reward name:

* `CHECKPOINTS`: `write(folder, seed) -> Path` writes what `mmalign.rewards.load(name, weights=path)` reads.
* `SAMPLES`: `samples() -> list[Sample]`, where a prompt and a picture are not what the reward takes. At least
  three, all of which it can score.
* `BAD_SAMPLES`: one sample that it cannot score, where a broken picture is not one.
* `LOAD_OPTIONS`: options without which the tiny checkpoint cannot be loaded.
* `OTHER_OPTIONS`: options and a value that is not the default, for the fingerprint; given one at a time,
  except those under "together", a dictionary.
* `TENSOR_ARGUMENTS`: from a sample to what `score_tensor` needs besides pixels and prompts.
* `TOLERANCES`: how far bfloat16 may be from float32, where 0.1 of the largest value is not enough.
"""

import importlib
import pkgutil
from functools import cache
from typing import Any

__all__ = ["TABLES", "collected"]

TABLES = (
    "BAD_SAMPLES",
    "CHECKPOINTS",
    "LOAD_OPTIONS",
    "OTHER_OPTIONS",
    "SAMPLES",
    "TENSOR_ARGUMENTS",
    "TOLERANCES",
)


@cache
def _merged() -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        content = importlib.import_module(f"{__name__}.{module.name}")
        for table in TABLES:
            for name, value in getattr(content, table, {}).items():
                if name in merged[table]:
                    message = f"two modules of {__name__} define {table}[{name!r}]"
                    raise ValueError(message)
                merged[table][name] = value
    return merged


def collected(table: str) -> dict[str, Any]:
    """One of `TABLES`, merged over the modules of this package: reward name to value.

    Raises:
        ValueError: two modules define an entry of one name.
    """
    return _merged()[table]
