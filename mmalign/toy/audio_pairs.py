"""Preference data of the toy world of sound: synthetic edits, and the base's own clips ranked by the reward.

A synthetic pair is minimal: the same events with the same pitches, lengths and pauses, but in another order,
or with one of them replaced. A sampled pair is the best and the worst of several clips that the model made of
one caption, as Tango 2 and TangoFlux rank by CLAP; here the exact reward does.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.audio_codecs import encode_audio
from mmalign.data.audio_writers import write_audio_alpaca
from mmalign.toy.audio_reward import Score, score_clips
from mmalign.toy.audio_scenes import EVENTS, MIN_GAP, SAMPLING_RATE, Scene, draw_scene, draw_split, render

if TYPE_CHECKING:
    from mmalign.audio.family import AudioModel

__all__ = ["KINDS", "SoundPair", "edited_pairs", "rows_of", "sampled_pairs", "swapped", "write_pairs"]

KINDS: tuple[str, ...] = ("order", "event", "both")
"""What a synthetic rejected clip gets wrong."""


@dataclass(frozen=True)
class SoundPair:
    """One preference: two clips for a caption with their exact scores; `kind` says how it came about."""

    prompt: str
    chosen: Float[Tensor, " sample"]
    rejected: Float[Tensor, " sample"]
    chosen_score: Score
    rejected_score: Score
    kind: str


def _reordered(scene: Scene, rng: random.Random) -> Scene:
    """The same events and pauses, the events in another order."""
    events = list(scene.events)
    pauses = [after.start - (before.start + before.length) for before, after in itertools.pairwise(events)]
    while True:
        mixed = rng.sample(events, len(events))
        if mixed != events:
            break
    now, placed = events[0].start, []
    for event, pause in zip(mixed, [*pauses, MIN_GAP], strict=True):
        placed.append(replace(event, start=now))
        now += event.length + pause
    return replace(scene, events=tuple(placed))


def _replaced(scene: Scene, rng: random.Random) -> Scene:
    """One event is another that is not there."""
    events = list(scene.events)
    index = rng.randrange(len(events))
    present = {event.kind for event in events}
    other = rng.choice([kind for kind in EVENTS if kind not in present])
    events[index] = replace(events[index], kind=other)
    return replace(scene, events=tuple(events))


def _wave(scene: Scene) -> Float[Tensor, " sample"]:
    return torch.from_numpy(render(scene))


def edited_pairs(num: int, seed: int, *, weights: Sequence[float] = (0.6, 0.2, 0.2)) -> list[SoundPair]:
    """`num` synthetic pairs over captions outside the held-out split.

    Args:
        num: of pairs.
        seed: of captions, clips and edits.
        weights: how often the rejected clip has another order, another event, both.
    """
    rng = random.Random(f"sound pairs {seed}")
    facts = draw_split(num, seed=seed, held_out=False)
    kinds = rng.choices(KINDS, weights=weights, k=num)
    chosen, rejected = [], []
    for one, kind in zip(facts, kinds, strict=True):
        scene = draw_scene(one, rng)
        worse = scene if kind == "event" else _reordered(scene, rng)
        worse = worse if kind == "order" else _replaced(worse, rng)
        chosen.append(_wave(scene))
        rejected.append(_wave(worse))
    return _scored([one.caption() for one in facts], chosen, rejected, kinds)


def _scored(
    prompts: Sequence[str],
    chosen: Sequence[Float[Tensor, " sample"]],
    rejected: Sequence[Float[Tensor, " sample"]],
    kinds: Sequence[str],
) -> list[SoundPair]:
    scores = zip(score_clips(chosen, prompts), score_clips(rejected, prompts), strict=True)
    sides = zip(chosen, rejected, strict=True)
    return [
        SoundPair(prompt, *clips, *both, kind)
        for prompt, clips, both, kind in zip(prompts, sides, scores, kinds, strict=True)
    ]


def sampled_pairs(
    model: "AudioModel", num_prompts: int, seed: int, *, copies: int = 4, min_gap: float = 0.1
) -> list[SoundPair]:
    """Best against worst of the model's own clips, per caption outside the held-out split.

    Captions whose clips are all about as good give no pair, and ties go to the clip made first.

    Args:
        model: makes the clips, adapters as they stand.
        num_prompts: captions.
        seed: of captions and noise.
        copies: clips per caption.
        min_gap: smallest difference of total reward that makes a pair.
    """
    from mmalign.toy.audio_pipeline import sample

    prompts = [facts.caption() for facts in draw_split(num_prompts, seed=seed, held_out=False)]
    clips = sample(model, prompts, seed=seed, copies=copies)
    scores = score_clips(clips, [prompt for prompt in prompts for _ in range(copies)])
    pairs = []
    for number, prompt in enumerate(prompts):
        group = range(number * copies, (number + 1) * copies)
        best = max(group, key=lambda index: scores[index].total)
        worst = min(group, key=lambda index: scores[index].total)
        if scores[best].total - scores[worst].total >= min_gap:
            pairs.append(SoundPair(prompt, clips[best], clips[worst], scores[best], scores[worst], "sampled"))
    return pairs


def swapped(pairs: Sequence[SoundPair]) -> list[SoundPair]:
    """The same pairs with their sides exchanged: what no method may gain from."""
    return [
        replace(
            pair,
            chosen=pair.rejected,
            rejected=pair.chosen,
            chosen_score=pair.rejected_score,
            rejected_score=pair.chosen_score,
        )
        for pair in pairs
    ]


def _candidate(wave: Float[Tensor, " sample"], score: Score) -> Candidate:
    return Candidate(audio=encode_audio(wave.unsqueeze(0), SAMPLING_RATE), reward=round(score.total, 6))


def rows_of(pairs: Sequence[SoundPair]) -> list[PreferenceRow]:
    """Rows with encoded clips (lossless FLAC), scores and the kind as `strategy`."""
    return [
        PreferenceRow(
            prompt=pair.prompt,
            candidates=(
                _candidate(pair.chosen, pair.chosen_score),
                _candidate(pair.rejected, pair.rejected_score),
            ),
            index=index,
            id=f"sound-{index:06d}",
            extras={"strategy": pair.kind},
        )
        for index, pair in enumerate(pairs)
    ]


def write_pairs(pairs: Sequence[SoundPair], path: Path) -> Path:
    """Write pairs as parquet in the layout of Audio-Alpaca. Returns the path."""
    return write_audio_alpaca(path, rows_of(pairs))
