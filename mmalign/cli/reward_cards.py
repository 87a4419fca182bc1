"""What `mmalign rewards` prints: the table of all cards, or one card whole."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmalign import rewards
from mmalign.cli.card_sections import print_section
from mmalign.errors import MmalignError
from mmalign.rewards.card import Card
from mmalign.rewards.weights import Missing, find_weights, missing

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Presence", "presence", "print_rewards", "readable_bytes", "readable_cards"]


@dataclass(frozen=True)
class Presence:
    """Which of a reward's weights are on this machine.

    Args:
        places: repository to the folder with its files.
        lacking: the others, each with the command that fetches it.
    """

    places: dict[str, Path]
    lacking: tuple[Missing, ...]

    @property
    def word(self) -> str:
        """One word for a table: yes, no, "1 of 2", or "-" where there is nothing to have."""
        count = len(self.places) + len(self.lacking)
        if not count:
            return "-"
        if not self.lacking:
            return "yes"
        return f"{len(self.places)} of {count}" if self.places else "no"


def presence(card: Card, *, folder: Path | None = None) -> Presence:
    """Where the weights of a card are; downloads nothing."""
    found = {weights.repository: find_weights(weights, folder=folder) for weights in card.weights}
    places = {name: place for name, place in found.items() if place is not None}
    return Presence(places, tuple(missing(card, folder=folder)))


def readable_bytes(number: int) -> str:
    """Bytes in the largest unit of 1000 that leaves a number of at least 1: 3.9 GB."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _size(card: Card) -> str:
    """Size of all downloads; "?" where one is unknown, "-" without any."""
    if not card.weights:
        return "-"
    known = all(weights.bytes for weights in card.weights)
    return readable_bytes(sum(weights.bytes for weights in card.weights)) if known else "?"


def readable_cards(names: Iterable[str]) -> tuple[dict[str, Card], dict[str, str]]:
    """(Cards by name, why the others cannot be read): one broken plug-in does not hide the rest."""
    cards: dict[str, Card] = {}
    broken: dict[str, str] = {}
    for name in names:
        try:
            cards[name] = rewards.card(name)
        except (ImportError, AttributeError, MmalignError) as error:
            broken[name] = f"{type(error).__name__}: {error}"
    return cards, broken


def print_rewards(name: str | None = None, weights: Path | None = None) -> None:
    """Print the table of rewards, or one card whole.

    Args:
        name: the one; None prints the table.
        weights: folder in which weights are looked for first.

    Raises:
        UnknownNameError: no reward has this name.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if name is not None:
        _print_card(console, rewards.card(name), weights)
        return
    cards, broken = readable_cards(rewards.names())
    _print_table(console, cards, weights)
    for one, reason in broken.items():
        console.print(f"{one}: cannot be imported ({reason})", style="red", markup=False)
    console.print(
        "\nOne of them whole: mmalign rewards NAME. module:function, http://HOST:PORT and ensemble.yaml are "
        "rewards too.",
        style="dim",
    )


_KINDS = {"image": "pictures", "video": "clips", "audio": "sounds", "text": "answers"}


def _print_table(console: "Console", cards: dict[str, Card], folder: Path | None) -> None:
    """A line per reward for the eye to run along, and below it what does not fit a column of 80."""
    from rich.padding import Padding
    from rich.text import Text

    width = max((len(name) for name in cards), default=6)
    console.print(Text(f"{'reward':<{width}}  {'here':<6}  {'size':>6}  licence", style="bold"))
    order = {"image": 0, "video": 1, "audio": 2, "text": 3}
    previous = ""
    for card in sorted(cards.values(), key=lambda one: (order[one.modality], one.name)):
        if card.modality != previous:
            console.print(Text(f"\nfor {_KINDS[card.modality]}", style="bold"))
            previous = card.modality
        here = presence(card, folder=folder).word
        line = Text(f"{card.name:<{width}}  ")
        line.append(f"{here:<6}", style={"yes": "green", "-": ""}.get(here, "dim"))
        console.print(line.append(f"  {_size(card):>6}  {_short(card.licence, console.width - width - 18)}"))
        console.print(Padding(Text(card.title), (0, 0, 0, 4)))
        if card.scale:
            console.print(Padding(Text(f"scale: {card.scale}", style="dim"), (0, 0, 0, 4)))


def _short(text: str, width: int) -> str:
    """`text` in one line of `width` characters; one card shows it in full."""
    return text if len(text) <= width else text[: max(width - 1, 8)].rstrip(" ,;(") + "…"


def _print_card(console: "Console", card: Card, folder: Path | None) -> None:
    """One card: what it is, what it reads, where its weights are, what it was held against."""
    from rich.text import Text

    section = partial(print_section, console)
    console.print(Text(card.name, style="bold"))
    console.print(Text(card.title))
    better = "higher is better" if card.higher_is_better else "lower is better"
    limit = "as long as the model takes" if card.text_limit is None else f"{card.text_limit} tokens, then cut"
    section(
        "values",
        [
            ("of", card.modality),
            ("outputs", ", ".join(card.outputs)),
            ("scale", f"{card.scale or 'not documented'}; {better}"),
            ("prompt", limit),
            ("media", card.pixels or "as they are"),
            *([("extras", ", ".join(card.needs))] if card.needs else []),
            ("gradient", "to the pixels" if card.differentiable else "none"),
        ],
    )
    section("options", [(name, meaning) for name, meaning in card.options.items()])
    found = presence(card, folder=folder)
    section(
        "weights",
        [
            (weights.role, _weights_line(weights.repository, weights.revision, weights.bytes, found))
            for weights in card.weights
        ],
    )
    section("licence", [(card.licence,)])
    section(
        "source",
        [
            *([("paper", f"https://arxiv.org/abs/{card.paper}")] if card.paper else []),
            *([("code", card.official_code)] if card.official_code else []),
        ],
    )
    section("departures", [("-", departure) for departure in card.departures])
    section(
        "published scores",
        [
            (f"{one.value:g}", f"{one.output} of {one.media}, within {one.tolerance:g} ({one.source})")
            for one in card.references
        ],
    )
    if card.extra:
        section("needs", [(f"pip install 'mmalign[{card.extra}]'",)])
    section("use", [(f"mmalign.rewards.load({card.name!r}).score([Sample(...)])",)])
    for lacking in found.lacking:  # not in a table: a command that is cut cannot be copied
        console.print(f"\nfetch {lacking.weights.role}:", style="bold")
        console.print(f"  {lacking.command}", soft_wrap=True, markup=False)


def _weights_line(repository: str, revision: str | None, size: int, found: Presence) -> str:
    pinned = f" at {revision[:12]}" if revision else ", not pinned"
    place = found.places.get(repository)
    where = "not on this machine" if place is None else f"in {place}"
    return f"{repository}{pinned}, {readable_bytes(size) if size else 'size unknown'}: {where}"
