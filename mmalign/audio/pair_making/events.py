"""What happens in a prompt of sounds, and in which order: events and the words between them.

"A man speaks followed by a dog barking" is two events linked by words of order; "rain falls while birds sing"
is two at the same time. The grammar is small and meant for captions of AudioCaps' kind; what it does not know
stays one event.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Link", "Prompt", "Relation", "read_prompt"]

Relation = Literal["then", "after", "together"]
"""How two neighbours in the text lie in time: the first is first, the second is first, both at once."""


@dataclass(frozen=True)
class Link:
    """The words between two events.

    Args:
        words: as written, without the spaces around them.
        relation: of the event before to the event behind.
    """

    words: str
    relation: Relation


_LINKS: tuple[tuple[str, Relation], ...] = (
    ("and is followed by", "then"),
    ("and then followed by", "then"),
    ("and followed by", "then"),
    ("then followed by", "then"),
    ("followed by", "then"),
    ("and is preceded by", "after"),
    ("preceded by", "after"),
    ("and shortly after", "then"),
    ("and soon after", "then"),
    ("and after that", "then"),
    ("after which", "then"),
    ("and afterwards", "then"),
    ("and afterward", "then"),
    ("and later", "then"),
    ("and finally", "then"),
    ("and eventually", "then"),
    ("and then", "then"),
    ("then", "then"),
    ("finally", "then"),
    ("right before", "then"),
    ("just before", "then"),
    ("shortly before", "then"),
    ("before", "then"),
    ("until", "then"),
    ("right after", "after"),
    ("shortly after", "after"),
    ("after", "after"),
    ("at the same time as", "together"),
    ("alongside", "together"),
    ("together with", "together"),
    ("while", "together"),
    ("as", "together"),
    ("during", "together"),
)
"""Longer ones first: they hold the shorter ones."""

_DETERMINERS = (
    *("a", "an", "the", "some", "several", "many", "multiple", "two", "three", "four", "people", "someone"),
    *(
        "somebody",
        "another",
        "other",
        "more",
        "water",
        "wind",
        "rain",
        "music",
        "birds",
        "insects",
        "vehicles",
    ),
    *("speech", "laughter", "applause"),
)

# "Thunder rumbles": a noun and its verb.
_STARTS_EVENT = r"(?:(?:" + "|".join(_DETERMINERS) + r")\b|(?!\w+(?:s|ing|ed|ly)\b)\w+\s+\w+(?:s|ing)\b)"

_PATTERN = re.compile(
    r",?\s+(?P<words>"
    + "|".join(re.escape(words) for words, _ in _LINKS)
    + rf")\s+|,?\s+(?P<and>and)\s+(?={_STARTS_EVENT})|(?P<comma>,)\s+(?={_STARTS_EVENT})",
    flags=re.IGNORECASE,
)

_LEADING = re.compile(r"(?P<word>after|before|while|as|during)\s+(?P<first>[^,]+),\s*(?P<second>.+)", re.I)
_LEADING_RELATIONS: dict[str, Relation] = {"after": "then", "before": "after"}

_NO_LINK = re.compile(r"\b(?:such|well|same|just|far|long|soon|known|much)$|\b(?:as|one|day)$", re.I)
"""What stands before an `as` or `after` that links nothing: such as, as well as, one after another."""

_LEAST_WORDS = 2
"""An event says what sounds and how: one word is half of a pair such as `men and women`."""


_NOUNS = ("a ", "an ", "the ", "some ", "several ", "many ", "two ", "three ")


@dataclass(frozen=True)
class Prompt:
    """A prompt in parts.

    Args:
        events: as they stand in the text, without the capital at the start.
        links: between neighbours, one fewer than events.
        ending: full stop or nothing.
    """

    events: tuple[str, ...]
    links: tuple[Link, ...]
    ending: str = ""

    @property
    def ordered(self) -> tuple[int, ...]:
        """Places of the links that say what comes first."""
        return tuple(place for place, link in enumerate(self.links) if link.relation != "together")

    @property
    def simultaneous(self) -> tuple[int, ...]:
        """Places of the links that say that two events sound at once, in so many words."""
        spoken = (place for place, link in enumerate(self.links) if link.words not in ("and", ","))
        return tuple(place for place in spoken if self.links[place].relation == "together")

    def text(self) -> str:
        """The prompt as a sentence."""
        parts = [self.events[0]]
        for link, event in zip(self.links, self.events[1:], strict=True):
            if link.words == ",":
                parts.append(f", {event}")
            else:
                comma = "," if link.words in ("then", "finally") else ""
                parts.append(f"{comma} {link.words} {event}")
        sentence = "".join(parts)
        return sentence[:1].upper() + sentence[1:] + self.ending

    def without(self, place: int) -> "Prompt":
        """The prompt without one of its events, which takes a link along."""
        events = (*self.events[:place], *self.events[place + 1 :])
        gone = max(place - 1, 0)
        return replace(self, events=events, links=(*self.links[:gone], *self.links[gone + 1 :]))

    def with_event(self, place: int, event: str) -> "Prompt":
        """The prompt with another event in one place."""
        return replace(self, events=(*self.events[:place], event, *self.events[place + 1 :]))

    def with_link(self, place: int, link: Link) -> "Prompt":
        """The prompt with other words in one place between events."""
        return replace(self, links=(*self.links[:place], link, *self.links[place + 1 :]))

    def reordered(self, order: Sequence[int]) -> "Prompt":
        """The prompt with its events in another order between the same words."""
        return replace(self, events=tuple(self.events[place] for place in order))


def _lowered(event: str) -> str:
    """Without the capital of a sentence; names and abbreviations keep theirs."""
    first = event.split(maxsplit=1)[0] if event.split() else ""
    is_plain = first[:1].isupper() and (len(first) == 1 or first[1:].islower())
    return event[0].lower() + event[1:] if is_plain and first != "I" else event


def _relation(words: str) -> Relation:
    return next((relation for known, relation in _LINKS if known == words), "together")


def read_prompt(text: str) -> Prompt:
    """The events of a prompt; one event where no words between events are known.

    Args:
        text: one sentence. Of several, all but the first stay with the last event.
    """
    plain = " ".join(text.split())
    ending = "." if plain.endswith(".") else ""
    plain = plain.removesuffix(".").rstrip()
    leading = _LEADING.fullmatch(plain)
    if leading is not None and len(leading["first"].split()) >= _LEAST_WORDS:
        word = leading["word"].lower()
        # "After A, B" is "A, then B"; "before A, B" is "A after B".
        link = {"after": "then", "before": "after"}.get(word, "while")
        relation = _LEADING_RELATIONS.get(word, "together")
        first, second = read_prompt(leading["first"]), read_prompt(leading["second"])
        joined = (*first.links, Link(link, relation), *second.links)
        return Prompt((*first.events, *second.events), joined, ending)
    events, links = [""], list[Link]()
    rest = 0
    for found in _PATTERN.finditer(plain):
        before = plain[rest : found.start()]
        words = (found["words"] or found["and"] or found["comma"]).lower()
        behind = plain[found.end() :]
        listed = words in ("and", ",")
        joins = (words in ("as", "after", "before") or listed) and _NO_LINK.search(before) is not None
        well = words == "as" and behind.lower().startswith("well ")
        # Of "a man and a woman talk" the first is no event: it lacks a verb.
        short = len(before.split()) < _LEAST_WORDS + (listed and before.lower().startswith(_NOUNS))
        if joins or well or short or len(behind.split()) < _LEAST_WORDS:
            continue
        events[-1] = before
        events.append("")
        links.append(Link(words, _relation(words)))
        rest = found.end()
    events[-1] = plain[rest:]
    return Prompt(tuple(_lowered(event.strip(" ,")) for event in events), tuple(links), ending)
