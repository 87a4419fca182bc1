"""Prompts of benchmarks stay out of training data: they are found by their normalised text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmalign.data.pair_making.rows import normalised_prompt
from mmalign.errors import ConfigError
from mmalign.evals.base import Item
from mmalign.evals.prompts import PUBLIC_SETS, read_prompts

__all__ = ["CleanPrompts", "clean_prompts", "read_excluded"]


def read_excluded(
    exclude: Sequence[str], waived: Sequence[str] = (), folder: Path | None = None
) -> dict[str, frozenset[str]]:
    """Normalised prompts of every set that must stay out, by its name.

    Args:
        exclude: names of public sets, files, or NAME=FILE.
        waived: names among them that are not looked for.
        folder: relative files are looked for from here, then beside the plan.

    Raises:
        ConfigError: a set is not on this machine; the message says how to give or waive it.
    """
    known = [entry.partition("=")[0] for entry in exclude]
    strange = sorted(set(waived) - set(known))
    if strange:
        message = f"waived: {', '.join(strange)} stands under no such name in exclude ({', '.join(known)})."
        raise ConfigError(message)
    found: dict[str, frozenset[str]] = {}
    for entry in exclude:
        name, given, source = entry.partition("=")
        if name in waived:
            continue
        source = source if given else entry
        beside = folder if folder is not None and (folder / source).is_file() else None
        try:
            items = read_prompts(source, folder=None if Path(source).is_file() else beside)
        except ConfigError as error:
            if source not in PUBLIC_SETS:
                raise
            message = (
                f"{error} Its prompts must not be trained on: write exclude: [{name}=FILE, ...], or waived: "
                f"[{name}], which the card of the data will say."
            )
            raise ConfigError(message) from error
        found[name] = frozenset(normalised_prompt(item.prompt) for item in items)
    return found


@dataclass(frozen=True)
class CleanPrompts:
    """Prompts that may be trained on.

    Args:
        items: in their order.
        read: how many there were.
        repeated: left out because an earlier one has the same normalised text.
        contaminated: left out by each held-out set; a prompt of two sets counts in both.
        left_out: prompts left out because of held-out sets.
        checked: prompts of each held-out set.
        waived: sets that were not looked for.
    """

    items: tuple[Item, ...]
    read: int
    repeated: int
    contaminated: Mapping[str, int]
    left_out: int
    checked: Mapping[str, int] = field(default_factory=dict)
    waived: tuple[str, ...] = ()


def clean_prompts(
    items: Sequence[Item], excluded: Mapping[str, frozenset[str]], waived: Sequence[str] = ()
) -> CleanPrompts:
    """The prompts that stand in no held-out set, each text once.

    Raises:
        ConfigError: none is left.
    """
    contaminated = dict.fromkeys(excluded, 0)
    seen: set[str] = set()
    kept: list[Item] = []
    repeated = left_out = 0
    for item in items:
        text = normalised_prompt(item.prompt)
        sets = [name for name, prompts in excluded.items() if text in prompts]
        for name in sets:
            contaminated[name] += 1
        left_out += bool(sets)
        repeated += text in seen and not sets
        if not sets and text not in seen:
            kept.append(item)
        seen.add(text)
    if not kept:
        message = f"pairs prompts: none of {len(items)} is left; {left_out} stand in held-out sets."
        raise ConfigError(message)
    checked = {name: len(prompts) for name, prompts in excluded.items()}
    return CleanPrompts(tuple(kept), len(items), repeated, contaminated, left_out, checked, tuple(waived))
