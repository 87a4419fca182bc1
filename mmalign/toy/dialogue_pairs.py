"""Preference data of the toy world of dialogues, in the conversational layout of TRL.

Two conditions:

"twins": every pair comes with its twin, the same two answers about another picture, the other way round. One
answer is true of the first picture, the other of the second. So every text is as often chosen as rejected,
lengths are equal on average, and only the picture tells which answer is better.

"style": both answers are true of the picture and name the same; the chosen one says "There is" and the
rejected one "I see". A method that compares nothing but the two answers learns the wording and need never
look.
"""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import ConfigError, explain
from mmalign.toy.dialogue_answers import (
    DESCRIBE,
    WORDINGS,
    Wording,
    describe,
    exists_question,
)
from mmalign.toy.dialogue_scenes import (
    COMPANIONS,
    KINDS,
    Kind,
    Picture,
    draw_kinds,
    is_held_out,
    missing_companions,
    picture_of,
    without,
)

__all__ = [
    "CONDITIONS",
    "Condition",
    "DialoguePair",
    "dialogue_pairs",
    "flip_labels",
    "png_bytes",
    "shuffle_pictures",
    "write_trl",
]

Condition = Literal["twins", "style"]
CONDITIONS: tuple[Condition, ...] = ("twins", "style")

_KIND_SHARES: dict[Condition, dict[str, float]] = {
    "twins": {"companion": 0.35, "presence": 0.2, "exchange": 0.2, "exists": 0.25},
    "style": {"companion": 0.5, "presence": 0.3, "exchange": 0.2},
}
"""What a pair is about: a companion that is or is not there; any kind that is or is not there; one kind in
place of another; yes or no."""

_STYLES: tuple[Wording, Wording] = ("there", "see")
"""Wordings of chosen and rejected descriptions of the condition "style"."""

_LAST_SHARE = 0.5
"""Pictures in which the companion stands behind all others, where the base puts imagined ones."""


@dataclass(frozen=True)
class DialoguePair:
    """One preference between two answers to a question about a picture.

    Args:
        picture: what is shown.
        question: of the user.
        chosen: the true answer, unless labels were flipped.
        rejected: the other one.
        kind: "companion", "presence", "exchange" or "exists".
        twin: pairs of the same number are twins; -1: the pair has none.
    """

    picture: Picture
    question: str
    chosen: str
    rejected: str
    kind: str
    twin: int = -1


def dialogue_pairs(num: int, *, seed: int, condition: Condition = "twins") -> list[DialoguePair]:
    """`num` pairs on pictures outside the held-out split, in an order in which twins are apart.

    Args:
        num: of pairs; the last twin is left out where it is odd.
        seed: of everything.
        condition: what tells the better answer; see the module.

    Raises:
        ConfigError: `num` is below 1.
    """
    if num < 1:
        raise ConfigError(explain("dialogue_pairs num", got=num, expected="1 or more"))
    rng = random.Random(f"dialogue pairs {seed} {condition}")
    pairs: list[DialoguePair] = []
    while len(pairs) < num:
        shares = _KIND_SHARES[condition]
        kind = rng.choices(list(shares), weights=list(shares.values()))[0]
        pairs += [replace(pair, twin=len(pairs) // 2) for pair in _twins(kind, condition, rng)]
    rng.shuffle(pairs)
    return pairs[:num]


# --- twins --------------------------------------------------------------------------------------------------


def _twins(kind: str, condition: Condition, rng: random.Random) -> tuple[DialoguePair, DialoguePair]:
    """Two pictures with a question, and the true answer of each as the wrong one of the other."""
    change = _CHANGES[kind if kind != "exists" else rng.choice(("companion", "exchange"))]
    while True:
        fewer, other, new = change(rng)
        if not (is_held_out(fewer.kinds) or is_held_out(other.kinds)):
            break
    if kind == "exists":
        question = exists_question(new)
        sides = (("No.", "Yes."), ("Yes.", "No."))
    else:
        question = rng.choice(DESCRIBE)
        wording = rng.choice(WORDINGS)
        good, bad = _STYLES if condition == "style" else (wording, wording)
        wrong = (fewer, other) if condition == "style" else (other, fewer)
        sides = (
            (describe(fewer.groups, good), describe(wrong[0].groups, bad)),
            (describe(other.groups, good), describe(wrong[1].groups, bad)),
        )
    return (
        DialoguePair(fewer, question, *sides[0], kind=kind),
        DialoguePair(other, question, *sides[1], kind=kind),
    )


def _with_companion(rng: random.Random) -> tuple[Picture, Picture, Kind]:
    """A picture without and with an expected companion, and the companion; the rest is the same."""
    trigger = rng.choice(list(COMPANIONS))
    companion = COMPANIONS[trigger]
    others = [kind for kind in KINDS if kind not in (trigger, companion)]
    kinds = [trigger, *rng.sample(others, rng.choice((0, 1, 1))), companion]
    picture = picture_of(kinds, rng, last=rng.random() < _LAST_SHARE)
    return without(picture, companion), picture, companion


def _with_any(rng: random.Random) -> tuple[Picture, Picture, Kind]:
    """A picture without and with one of its kinds, and that kind; the rest is the same."""
    kinds: tuple[Kind, ...] = ()
    while len(kinds) < 2:
        kinds = draw_kinds(rng)
    picture, gone = picture_of(kinds, rng), rng.choice(kinds)
    return without(picture, gone), picture, gone


def _exchanged(rng: random.Random) -> tuple[Picture, Picture, Kind]:
    """Two pictures of the same layout that differ in one kind, and that kind as the second shows it."""
    kinds = draw_kinds(rng)
    expected = missing_companions(kinds)
    free = [kind for kind in KINDS if kind not in kinds]
    new = rng.choice(expected if expected and rng.random() < 0.5 else free)
    # What calls for the companion stays, if anything else can go.
    places = [place for place, kind in enumerate(kinds) if COMPANIONS.get(kind) != new]
    place = rng.choice(places or range(len(kinds)))
    changed = (*kinds[:place], new, *kinds[place + 1 :])
    state = rng.getstate()
    first = picture_of(kinds, rng)
    rng.setstate(state)
    return first, picture_of(changed, rng), new


_CHANGES = {"companion": _with_companion, "presence": _with_any, "exchange": _exchanged}


# --- what breaks them ---------------------------------------------------------------------------------------


def shuffle_pictures(pairs: Sequence[DialoguePair], *, seed: int) -> list[DialoguePair]:
    """The pairs with pictures of other pairs: what is left to learn when the picture is ignored.

    Pictures move one place on in a random order of the pairs, so none keeps its own (one pair alone does).
    """
    order = list(range(len(pairs)))
    random.Random(f"shuffled pictures {seed}").shuffle(order)
    given = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return [replace(pair, picture=pairs[given[index]].picture) for index, pair in enumerate(pairs)]


def flip_labels(pairs: Sequence[DialoguePair], share: float, *, seed: int) -> list[DialoguePair]:
    """The pairs with chosen and rejected exchanged in a share of them, drawn one by one; 1: in all.

    Raises:
        ConfigError: the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ConfigError(explain("flip_labels share", got=share, expected="0 to 1"))
    rng = random.Random(f"flipped labels {seed}")
    return [
        replace(pair, chosen=pair.rejected, rejected=pair.chosen) if rng.random() < share else pair
        for pair in pairs
    ]


# --- files --------------------------------------------------------------------------------------------------


def write_trl(pairs: Sequence[DialoguePair], path: Path) -> Path:
    """Write pairs as parquet in TRL's conversational layout: images as PNG bytes. Returns the path.

    Columns: `prompt`, `chosen` and `rejected` are lists of messages, `images` a list of one image as the hub
    stores it, `kind` and `twin` say what the pair is about.
    """
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist([_record(pair) for pair in pairs]), path)
    return path


def _record(pair: DialoguePair) -> dict[str, Any]:
    asked = [{"type": "image", "text": None}, {"type": "text", "text": pair.question}]
    return {
        "prompt": [{"role": "user", "content": asked}],
        "chosen": [_answered(pair.chosen)],
        "rejected": [_answered(pair.rejected)],
        "images": [{"bytes": png_bytes(pair.picture), "path": None}],
        "kind": pair.kind,
        "twin": pair.twin,
    }


def _answered(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def png_bytes(picture: Picture) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.image().save(buffer, format="PNG")
    return buffer.getvalue()
