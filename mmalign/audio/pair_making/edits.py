"""Prompts changed so that their sound is wrong for the original: events dropped, added, replaced, reordered.

Tango 2 lets a language model write such edits; these are templates over events and the words between them
(see `events`), and a file of edits takes the place of either.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, TypeVar

from mmalign.audio.pair_making.events import Link, Prompt, read_prompt
from mmalign.seeding import derive_seed

__all__ = ["EVENT_EDITS", "ORDER_EDITS", "Edit", "EditKind", "edits_of", "event_bank"]

EditKind = Literal["drop", "add", "replace", "swap", "reverse", "together", "apart"]

EVENT_EDITS: tuple[EditKind, ...] = ("drop", "add", "replace")
"""Which events there are: one missing, one too many, one exchanged."""

ORDER_EDITS: tuple[EditKind, ...] = ("swap", "reverse", "together", "apart")
"""When they happen: events change places, words of order turn round, what was apart is at once, and back."""

_TURNED: Mapping[str, Link] = {
    "before": Link("after", "after"),
    "right before": Link("right after", "after"),
    "just before": Link("right after", "after"),
    "shortly before": Link("shortly after", "after"),
    "until": Link("after", "after"),
    "after": Link("before", "then"),
    "right after": Link("right before", "then"),
    "shortly after": Link("shortly before", "then"),
    "followed by": Link("preceded by", "after"),
    "preceded by": Link("followed by", "then"),
    "then followed by": Link("preceded by", "after"),
}
"""Words and their opposites; others become `after`, or `before`."""

_NOMINAL = re.compile(r"(?:followed|preceded) by$")
"""Words before an event that is named and not told: `a dog barking` and not `a dog barks`."""

_ENOUGH = 24
"""Changes of one kind that are looked at, drawn from all there are."""


@dataclass(frozen=True)
class Edit:
    """An edited prompt.

    Args:
        text: the prompt.
        kind: how it was made; "given" by a file.
    """

    text: str
    kind: str


def event_bank(prompts: Sequence[str]) -> list[str]:
    """Every event of some prompts once, sorted: what edits may add."""
    return sorted({event for prompt in prompts for event in read_prompt(prompt).events if event})


def edits_of(
    prompt: str,
    *,
    kinds: Sequence[EditKind],
    count: int,
    bank: Sequence[str] = (),
    seed: int = 0,
    key: str = "",
) -> list[Edit]:
    """At most `count` different edits of a prompt, the kinds in turn; fewer where the prompt allows no more.

    Args:
        prompt: of sounds.
        kinds: which edits.
        count: >= 1.
        bank: events of other prompts; those that share a word of sound with the prompt are not used.
        seed: of the run.
        key: of the prompt; equal seed and key give equal edits.
    """
    draw = random.Random(derive_seed(seed, "edits", key or prompt))
    parts = read_prompt(prompt)
    foreign = [event for event in bank if not _words(event) & _words(prompt)]
    streams = [(kind, _MAKERS[kind](parts, foreign, draw)) for kind in kinds]
    found: list[Edit] = []
    seen = {_plain(prompt)}
    while streams and len(found) < count:
        kind, stream = streams.pop(0)
        text = next((made.text() for made in stream if _plain(made.text()) not in seen), None)
        if text is None:
            continue  # this kind has no more to give
        seen.add(_plain(text))
        found.append(Edit(text, kind))
        streams.append((kind, stream))
    return found


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()


_STOP = frozenset(
    {
        *("and", "are", "for", "from", "into", "off", "one", "out", "over", "some", "someone", "that", "the"),
        *("their", "then", "there", "while", "with", "several", "other", "another", "people", "person"),
        *("nearby", "background", "distance"),
    }
)


def _words(text: str) -> set[str]:
    """Stems of the words that say what sounds: `barking` and `barks` are one."""
    words = re.findall(r"[a-z]+", text.lower())
    return {re.sub(r"(?:ing|ed|es|s)$", "", word) for word in words if word not in _STOP and len(word) > 2}


# ------------------------------------------------------------------------------------------------ kinds

Choice = TypeVar("Choice")

Maker = Callable[[Prompt, Sequence[str], random.Random], Iterator[Prompt]]


def _shuffled(places: Sequence[int], draw: random.Random) -> list[int]:
    return draw.sample(list(places), len(places))


def _some(choices: Sequence[Choice], draw: random.Random) -> list[Choice]:
    return draw.sample(list(choices), min(_ENOUGH, len(choices)))


def _dropped(parts: Prompt, foreign: Sequence[str], draw: random.Random) -> Iterator[Prompt]:
    del foreign
    if len(parts.events) > 1:
        for place in _shuffled(range(len(parts.events)), draw):
            yield parts.without(place)


def _added(parts: Prompt, foreign: Sequence[str], draw: random.Random) -> Iterator[Prompt]:
    links = (Link("followed by", "then"), Link("while", "together"), Link("and", "together"))
    for event, link in _some([(event, link) for event in foreign for link in links], draw):
        yield Prompt((*parts.events, event), (*parts.links, link), parts.ending)


def _replaced(parts: Prompt, foreign: Sequence[str], draw: random.Random) -> Iterator[Prompt]:
    if len(parts.events) < 2:
        return  # nothing of the prompt would stay
    places = range(len(parts.events))
    for event, place in _some([(event, place) for event in foreign for place in places], draw):
        yield parts.with_event(place, event)


def _swapped(parts: Prompt, foreign: Sequence[str], draw: random.Random) -> Iterator[Prompt]:
    """Events in another order, where that is another order in time, too."""
    del foreign
    count = len(parts.events)
    if not parts.ordered or count > 6:
        return
    orders = [order for order in permutations(range(count)) if _timing(parts, order) != _timing(parts)]
    for order in _some(orders, draw):
        yield parts.reordered(order)


def _timing(parts: Prompt, order: Sequence[int] | None = None) -> frozenset[tuple[str, int, int]]:
    """What the text says about the time of its events, whatever the order of the words."""
    names = list(order) if order is not None else list(range(len(parts.events)))
    said = set()
    for place, link in enumerate(parts.links):
        first, second = names[place], names[place + 1]
        if link.relation == "after" or (link.relation == "together" and first > second):
            first, second = second, first
        said.add(("together" if link.relation == "together" else "then", first, second))
    return frozenset(said)


def _reversed(parts: Prompt, foreign: Sequence[str], draw: random.Random) -> Iterator[Prompt]:
    del foreign
    for place in _shuffled(parts.ordered, draw):
        link = parts.links[place]
        other = Link("after", "after") if link.relation == "then" else Link("before", "then")
        if _NOMINAL.search(link.words):
            other = Link("preceded by", "after") if link.relation == "then" else Link("followed by", "then")
        yield parts.with_link(place, _TURNED.get(link.words, other))


def _together(parts: Prompt, foreign: Sequence[str], draw: random.Random) -> Iterator[Prompt]:
    del foreign
    for place in _shuffled(parts.ordered, draw):
        nominal = _NOMINAL.search(parts.links[place].words) is not None
        words = "at the same time as" if nominal else "while"
        yield parts.with_link(place, Link(words, "together"))


def _apart(parts: Prompt, foreign: Sequence[str], draw: random.Random) -> Iterator[Prompt]:
    del foreign
    for place in _shuffled(parts.simultaneous, draw):
        for link in draw.sample([Link("before", "then"), Link("after", "after")], 2):
            yield parts.with_link(place, link)


_MAKERS: Mapping[EditKind, Maker] = {
    "drop": _dropped,
    "add": _added,
    "replace": _replaced,
    "swap": _swapped,
    "reverse": _reversed,
    "together": _together,
    "apart": _apart,
}
