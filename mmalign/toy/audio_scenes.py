"""The toy world of sound: clips of two or three events, and captions that say which and in what order.

A clip is 1.28 seconds at 16 kHz: tones, chirps, noise and clicks, with silence between them over a faint
hiss. Everything is drawn by a `random.Random`: the same seed gives the same clips.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mmalign.errors import ConfigError, explain

__all__ = [
    "DURATION",
    "EVENTS",
    "NUM_SAMPLES",
    "SAMPLING_RATE",
    "Event",
    "Facts",
    "Scene",
    "all_sequences",
    "disorder",
    "draw_facts",
    "draw_scene",
    "draw_split",
    "events_of",
    "held_out_prompts",
    "is_held_out",
    "misheard",
    "render",
    "render_locked",
]

SAMPLING_RATE = 16_000
DURATION = 1.28
NUM_SAMPLES = 20_480

EVENTS: tuple[str, ...] = ("low tone", "high tone", "rising chirp", "falling chirp", "noise", "clicks")
"""Kinds of events."""

MIN_GAP = 0.1
"""Seconds of silence between two events, at least."""

CLICK_PERIOD = 0.06
"""Seconds between two clicks of an event: less than `MIN_GAP`, so that clicks hold together."""

_HISS = 0.0012
_FADE = 0.012

_LOW, _HIGH = range(200, 500, 100), range(1500, 2300, 100)
"""Pitches of tones in Hz. A vocoder of 100 frames per second answers a steady spectrogram by a sound of that
period: it can hold multiples of 100 Hz and nothing else."""

_TEMPLATES: dict[int, tuple[str, ...]] = {
    2: ("{0}, then {1}", "{0} before {1}", "{1} after {0}"),
    3: ("{0}, then {1}, then {2}", "first {0}, then {1}, finally {2}"),
}
"""Captions by number of events; the fields are numbered in the order of sounding."""

_SPOKEN = {event: event if event in ("noise", "clicks") else f"a {event}" for event in EVENTS}


@dataclass(frozen=True)
class Facts:
    """What a caption says.

    Args:
        events: kinds, in the order of sounding; all different.
        template: number of the wording.
    """

    events: tuple[str, ...]
    template: int = 0

    def caption(self) -> str:
        """In words."""
        return _TEMPLATES[len(self.events)][self.template].format(*(_SPOKEN[event] for event in self.events))


@dataclass(frozen=True)
class Event:
    """One sound.

    Args:
        kind: one of `EVENTS`.
        start: seconds.
        length: seconds.
        pitch: in [0, 1], within the kind's range; nothing for noise and clicks.
        level: amplitude relative to the kind's own, about 1.
        draws: seed of noise.
    """

    kind: str
    start: float
    length: float
    pitch: float
    level: float
    draws: int


@dataclass(frozen=True)
class Scene:
    """A clip before it sounds: events in the order of sounding, and the seed of its hiss."""

    events: tuple[Event, ...]
    draws: int


@lru_cache(maxsize=1)
def all_sequences() -> tuple[tuple[str, ...], ...]:
    """Every order of two or three different events: 150."""
    return tuple(sequence for num in (2, 3) for sequence in itertools.permutations(EVENTS, num))


def is_held_out(events: Sequence[str]) -> bool:
    """Whether an order of events is kept for testing: every fifth, by a hash of its name.

    Another order of the same events may well be trained on: what is held out is the order.
    """
    return hashlib.sha256("|".join(events).encode()).digest()[0] % 5 == 0


def draw_facts(rng: random.Random, *, held_out: bool | None = None) -> Facts:
    """A random caption: of the held-out orders, of the others, or (None) of all."""
    while True:
        events = tuple(rng.sample(EVENTS, rng.choice((2, 3))))
        if held_out is None or is_held_out(events) == held_out:
            return Facts(events, rng.randrange(len(_TEMPLATES[len(events)])))


def draw_split(num: int, *, seed: int, held_out: bool) -> list[Facts]:
    """`num` random captions of one side of the split."""
    rng = random.Random(f"sound captions {held_out} {seed}")
    return [draw_facts(rng, held_out=held_out) for _ in range(num)]


def held_out_prompts(num: int, *, seed: int) -> list[str]:
    """`num` captions whose order of events is in no training data."""
    return [facts.caption() for facts in draw_split(num, seed=seed, held_out=True)]


def draw_scene(facts: Facts, rng: random.Random) -> Scene:
    """A clip of these events: lengths, pauses, pitches and levels drawn."""
    num = len(facts.events)
    shortest, longest = (0.34, 0.44) if num == 2 else (0.27, 0.33)
    lengths = [rng.uniform(shortest, longest) for _ in range(num)]
    spare = DURATION - sum(lengths) - (num - 1) * MIN_GAP - 0.06
    # Spare time falls before, between and after events; a share of it is always at the ends.
    cuts = sorted(rng.random() for _ in range(num))
    pauses = [after - before for before, after in zip([0.0, *cuts], cuts, strict=False)]
    events, now = [], 0.03
    for index, (kind, length) in enumerate(zip(facts.events, lengths, strict=True)):
        now += spare * pauses[index] + (MIN_GAP if index else 0.0)
        events.append(Event(kind, now, length, rng.random(), rng.uniform(0.8, 1.0), rng.getrandbits(32)))
        now += length
    return Scene(tuple(events), rng.getrandbits(32))


def disorder(facts: Facts, rng: random.Random) -> Facts:
    """The same events in another order."""
    while True:
        events = tuple(rng.sample(facts.events, len(facts.events)))
        if events != facts.events:
            return replace(facts, events=events)


def misheard(facts: Facts, rng: random.Random) -> Facts:
    """One event replaced by one that the caption does not name."""
    index = rng.randrange(len(facts.events))
    other = rng.choice([event for event in EVENTS if event not in facts.events])
    events = (*facts.events[:index], other, *facts.events[index + 1 :])
    return replace(facts, events=events)


# --- sound --------------------------------------------------------------------------------------------------


def _frequency(event: Event) -> int:
    """Pitch of a tone in Hz."""
    pitches = _LOW if event.kind == "low tone" else _HIGH
    return pitches[min(int(event.pitch * len(pitches)), len(pitches) - 1)]


def _sweep(pitch: float, *, up: bool) -> tuple[float, float]:
    """First pitch of a chirp in Hz, and the last one as its multiple: two and a half octaves away."""
    bottom, ratio = 480.0 + 140.0 * pitch, 2.0**2.5
    return (bottom, ratio) if up else (bottom * ratio, 1.0 / ratio)


def _chirp(
    times: npt.NDArray[np.float64], length: float, pitch: float, *, up: bool
) -> npt.NDArray[np.float64]:
    """An exponential sweep: phase 2 pi f0 L (r^(t/L) - 1) / ln r."""
    first, factor = _sweep(pitch, up=up)
    turns: npt.NDArray[np.float64] = first * length * (factor ** (times / length) - 1.0) / np.log(factor)
    return 0.45 * np.sin(2 * np.pi * turns)


def _clicks(times: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Bursts of noise that die away within a few milliseconds."""
    return 0.5 * rng.standard_normal(len(times)).clip(-2, 2) * _dying(times)


def _dying(times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Level of clicks."""
    level: npt.NDArray[np.float64] = np.exp(-np.mod(times, CLICK_PERIOD) / 0.003)
    return level


def _sound(event: Event) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(event.draws)
    times = np.arange(round(event.length * SAMPLING_RATE)) / SAMPLING_RATE
    if event.kind.endswith("tone"):
        wave = 0.45 * np.sin(2 * np.pi * _frequency(event) * times)
    elif event.kind == "noise":
        wave = 0.17 * rng.standard_normal(len(times))
    elif event.kind == "clicks":
        return event.level * _clicks(times, rng)
    else:
        wave = _chirp(times, event.length, event.pitch, up=event.kind == "rising chirp")
    edges = np.minimum(1.0, np.minimum(times, times[::-1]) / _FADE)
    return event.level * wave * edges


def render(scene: Scene) -> npt.NDArray[np.float32]:
    """The clip as `NUM_SAMPLES` amplitudes in [-1, 1]."""
    wave = _HISS * np.random.default_rng(scene.draws).standard_normal(NUM_SAMPLES)
    for event in scene.events:
        sound = _sound(event)
        first = round(event.start * SAMPLING_RATE)
        wave[first : first + len(sound)] += sound[: NUM_SAMPLES - first]
    return wave.clip(-1.0, 1.0).astype(np.float32)


def render_locked(scene: Scene) -> npt.NDArray[np.float32]:
    """The clip as a vocoder of 100 frames a second can play it: every steady sound repeats with the frames.

    Tones are sines of 100 k Hz whose phase is 0 at the clip's start, chirps fade from one such sine to the
    next, noise repeats one piece of 10 ms. There is no hiss.
    """
    wave = np.zeros(NUM_SAMPLES)
    clock = np.arange(NUM_SAMPLES) / SAMPLING_RATE
    for event in scene.events:
        first, num = round(event.start * SAMPLING_RATE), round(event.length * SAMPLING_RATE)
        times, now = np.arange(num) / SAMPLING_RATE, clock[first : first + num]
        edges = np.minimum(1.0, np.minimum(times, times[::-1]) / _FADE)
        if event.kind in ("noise", "clicks"):
            noise = _PIECE[np.arange(first, first + num) % len(_PIECE)]
            shape = 0.17 * edges if event.kind == "noise" else 0.5 * _dying(times)
            wave[first : first + num] = event.level * shape * noise
            continue
        if event.kind.endswith("chirp"):
            bottom, factor = _sweep(event.pitch, up=event.kind == "rising chirp")
            steps = bottom * factor ** (times / event.length) / 100.0
        else:
            steps = np.full(num, _frequency(event) / 100.0)
        share = steps - np.floor(steps)
        lower, upper = (np.sin(200.0 * np.pi * (np.floor(steps) + k) * now) for k in (0, 1))
        wave[first : first + num] = 0.45 * event.level * edges * ((1 - share) * lower + share * upper)
    return wave.astype(np.float32)


_PIECE = np.random.default_rng(0).standard_normal(SAMPLING_RATE // 100).clip(-2, 2)


# --- captions -----------------------------------------------------------------------------------------------


def events_of(caption: str) -> tuple[str, ...]:
    """The events that a caption names, in the order of sounding.

    Raises:
        ConfigError: it is no caption of this world.
    """
    named = "|".join(map(re.escape, EVENTS))
    found = tuple(re.findall(named, caption))
    if " after " in caption:
        found = found[::-1]
    wordings = range(len(_TEMPLATES.get(len(found), ()))) if len(set(found)) == len(found) else ()
    for template in wordings:
        if Facts(found, template).caption() == caption:
            return found
    message = explain(
        "caption of the toy world of sound",
        got=caption,
        expected="two or three events in order, such as 'a low tone, then noise'",
    )
    raise ConfigError(message)
