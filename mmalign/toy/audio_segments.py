"""Pairs of clips whose events are labelled one by one by the exact ear, and such pairs labelled as wholes.

Both clips of a pair sound at the same times; what sounds there is right or wrong on either side, event by
event. A whole-clip label says which clip has the higher reward; a label in time says of one event's stretch
which side has the right sound there. Stretches and clips in which neither side is better cost nothing.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.audio_codecs import encode_audio
from mmalign.data.segments import COLUMN, Stretch
from mmalign.files import atomic_write
from mmalign.toy.audio_reward import Heard, Score, hear, score_clips
from mmalign.toy.audio_scenes import EVENTS, SAMPLING_RATE, Facts, Scene, draw_facts, draw_scene, render

__all__ = ["TimedPair", "clip_labelled", "segment_labelled", "stretches_heard", "timed_pairs", "write_timed"]

RIGHT_SHARE = 0.5
"""How often an event of a clip is the one that the caption names."""

_ANOTHER_OF_THE_CAPTION = 0.7

_WORDS = {1: "chosen", -1: "rejected", 0: "tie"}


@dataclass(frozen=True)
class TimedPair:
    """Two clips for a caption with their exact scores, and which is better in each event's stretch."""

    prompt: str
    chosen: Float[Tensor, " sample"]
    rejected: Float[Tensor, " sample"]
    chosen_score: Score
    rejected_score: Score
    stretches: tuple[Stretch, ...]

    @property
    def num_decided(self) -> int:
        """Labels in time that the pair costs."""
        return sum(stretch.preference != 0 for stretch in self.stretches)

    def turned(self) -> "TimedPair":
        """The same with its sides exchanged, and so all labels."""
        return TimedPair(
            self.prompt,
            self.rejected,
            self.chosen,
            self.rejected_score,
            self.chosen_score,
            tuple(replace(stretch, preference=-stretch.preference) for stretch in self.stretches),
        )


def _garbled(scene: Scene, rng: random.Random) -> Scene:
    """The same times; an event stays, or is one that belongs elsewhere in the caption, or to none."""
    named = [event.kind for event in scene.events]
    events = []
    for event in scene.events:
        kind = event.kind
        if rng.random() >= RIGHT_SHARE:
            others = [name for name in named if name != kind]
            foreign = [name for name in EVENTS if name not in named]
            kind = rng.choice(others if rng.random() < _ANOTHER_OF_THE_CAPTION else foreign)
        events.append(replace(event, kind=kind))
    return replace(scene, events=tuple(events))


def _kind_at(heard: Sequence[Heard], middle: float) -> str | None:
    return next((piece.kind for piece in heard if piece.start <= middle <= piece.end), None)


def stretches_heard(
    scene: Scene, chosen: Float[Tensor, " sample"], rejected: Float[Tensor, " sample"]
) -> tuple[Stretch, ...]:
    """Of every event of a scene, which of two clips has its sound there: the ear's label of the stretch."""
    both = [hear(wave) for wave in (chosen, rejected)]
    found = []
    for event in scene.events:
        right = [_kind_at(heard, event.start + event.length / 2) == event.kind for heard in both]
        found.append(Stretch(event.start, event.start + event.length, int(right[0]) - int(right[1])))
    return tuple(found)


def _wave(scene: Scene) -> Float[Tensor, " sample"]:
    return torch.from_numpy(render(scene))


def _drawn(facts: Facts, rng: random.Random) -> TimedPair:
    scene = draw_scene(facts, rng)
    first, second = (_wave(_garbled(scene, rng)) for _ in range(2))
    one, other = score_clips([first, second], [facts.caption()] * 2)
    return TimedPair(facts.caption(), first, second, one, other, stretches_heard(scene, first, second))


def timed_pairs(seed: int) -> Iterator[TimedPair]:
    """Endless pairs over captions outside the held-out split, in no order of merit; the seed decides all."""
    rng = random.Random(f"timed pairs {seed}")
    while True:
        yield _drawn(draw_facts(rng, held_out=False), rng)


def clip_labelled(budget: int, seed: int) -> list[TimedPair]:
    """The first `budget` pairs whose rewards differ, the better clip chosen: a label each."""
    found: list[TimedPair] = []
    for pair in timed_pairs(seed):
        if len(found) == budget:
            return found
        gap = pair.chosen_score.total - pair.rejected_score.total
        if gap != 0:
            found.append(pair if gap > 0 else pair.turned())
    raise AssertionError


def segment_labelled(budget: int, seed: int) -> list[TimedPair]:
    """The first pairs with decided stretches, until these are `budget`; later ones of the last are ties."""
    found: list[TimedPair] = []
    left = budget
    for pair in timed_pairs(seed):
        if not left:
            return found
        if pair.num_decided:
            found.append(_afforded(pair, left))
            left -= found[-1].num_decided
    raise AssertionError


def _afforded(pair: TimedPair, left: int) -> TimedPair:
    stretches = []
    for stretch in pair.stretches:
        bought = stretch.preference != 0 and left > 0
        left -= bought
        stretches.append(stretch if bought else replace(stretch, preference=0))
    return replace(pair, stretches=tuple(stretches))


def write_timed(pairs: Sequence[TimedPair], folder: Path) -> Path:
    """Write pairs as JSON lines with FLAC files beside them. Returns the path of the lines."""
    lines = []
    for number, pair in enumerate(pairs):
        names = [f"{number:05d}_{side}.flac" for side in ("chosen", "rejected")]
        for name, wave in zip(names, (pair.chosen, pair.rejected), strict=True):
            atomic_write(folder / name, encode_audio(wave.unsqueeze(0), SAMPLING_RATE))
        labels = [
            {"start": one.start, "end": one.end, "preference": _WORDS[one.preference]}
            for one in pair.stretches
        ]
        row = {"prompt": pair.prompt, "chosen": names[0], "rejected": names[1], COLUMN: labels}
        lines.append(json.dumps(row) + "\n")
    atomic_write(folder / "pairs.jsonl", "".join(lines))
    return folder / "pairs.jsonl"
