"""Preference data of the toy world of video: edited clips, the base's own clips, and structural pairs.

An edited pair is minimal: the same shape at the same place, but one segment goes another way, or it flickers,
jumps or stands still. In a crossed pair each clip goes astray in one half, and not in the same. A sampled
pair is the best and the worst of several clips that the model made of one caption. A structural pair
(arXiv:2506.03517) is one real clip, noised twice to the same level and denoised by the model; both resemble
it, so frames correspond, and every segment has a label of its own.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mmalign.data.rarity import WEIGHT_COLUMN
from mmalign.data.video_writers import encode_clip
from mmalign.objectives.clips import rarity_weights
from mmalign.toy.video_reward import Score, score_clips
from mmalign.toy.video_scenes import (
    COLOURS,
    DIRECTIONS,
    FPS,
    NUM_SEGMENTS,
    SEGMENT_SECONDS,
    SHAPES,
    Facts,
    draw_scene,
    draw_split,
    render,
    tensor_of,
)

__all__ = [
    "KINDS",
    "MotionPair",
    "crossed_pairs",
    "edited_pairs",
    "sampled_pairs",
    "structural_pairs",
    "swapped",
    "write_pairs",
]

KINDS: tuple[str, ...] = ("direction", "backwards", "flicker", "jump", "stall", "other")
"""What an edited rejected clip gets wrong; `other` shows another shape or colour throughout."""

MIN_GAP = 0.05
"""Smallest difference of a segment's reward that decides it."""


@dataclass(frozen=True)
class MotionPair:
    """One preference: two clips in [0, 1] for a caption with their exact scores.

    Args:
        prompt: caption.
        chosen: the better clip as a whole.
        rejected: the other.
        chosen_score: of the first.
        rejected_score: of the second.
        kind: how it came about.
        segments: per segment 1 where the chosen clip is better, -1 where the rejected one is, 0 for a tie.
    """

    prompt: str
    chosen: Float[Tensor, "frame 3 height width"]
    rejected: Float[Tensor, "frame 3 height width"]
    chosen_score: Score
    rejected_score: Score
    kind: str
    segments: tuple[int, ...]

    @property
    def decided(self) -> int:
        """Segments that are no tie: the labels that it holds."""
        return sum(label != 0 for label in self.segments)


def _pair(
    prompt: str, clips: tuple[Tensor, Tensor], scores: tuple[Score, Score], kind: str, *, min_gap: float
) -> MotionPair:
    """The pair in the order of total reward, every segment labelled by its own."""
    if scores[1].total > scores[0].total:
        clips, scores = (clips[1], clips[0]), (scores[1], scores[0])
    gaps = [
        one.total - other.total for one, other in zip(scores[0].segments, scores[1].segments, strict=True)
    ]
    labels = tuple((gap >= min_gap) - (gap <= -min_gap) for gap in gaps)
    return MotionPair(prompt, *clips, *scores, kind, labels)


def _judged(
    facts: Sequence[Facts], first: Sequence[Tensor], second: Sequence[Tensor], kinds: Sequence[str]
) -> list[MotionPair]:
    """Pairs of one clip of each list, scored and in order."""
    prompts = [one.caption() for one in facts]
    scores = zip(score_clips(first, prompts), score_clips(second, prompts), strict=True)
    clips = zip(first, second, strict=True)
    return [
        _pair(prompt, both, judged, kind, min_gap=MIN_GAP)
        for prompt, both, judged, kind in zip(prompts, clips, scores, kinds, strict=True)
    ]


# --- edited -------------------------------------------------------------------------------------------------


def _astray(facts: Facts, rng: random.Random) -> list[str]:
    """Directions of which at least one segment's is wrong."""
    wrong = [rng.random() < 0.5 for _ in range(NUM_SEGMENTS)]
    if not any(wrong):
        wrong[rng.randrange(NUM_SEGMENTS)] = True
    return [
        rng.choice([other for other in DIRECTIONS if other != name]) if bad else name
        for name, bad in zip(facts.directions, wrong, strict=True)
    ]


def _another(facts: Facts, rng: random.Random) -> Facts:
    """Another shape or another colour, the rest as it is."""
    if rng.random() < 0.5:
        return replace(facts, shape=rng.choice([name for name in SHAPES if name != facts.shape]))
    return replace(facts, colour=rng.choice([name for name in COLOURS if name != facts.colour]))


def _clip(facts: Facts, draws: int, **changes: Any) -> Float[Tensor, "frame 3 height width"]:
    scene = draw_scene(facts, random.Random(draws), **changes)
    return tensor_of(render(scene)).float() / 255.0


def edited_pairs(
    num: int, seed: int, *, weights: Sequence[float] = (0.6, 0.1, 0.1, 0.1, 0.1, 0.0)
) -> list[MotionPair]:
    """`num` pairs of a true clip and a damaged one, over captions outside the held-out split.

    Args:
        num: of pairs.
        seed: of captions, clips and damage.
        weights: how often each of `KINDS` is what is wrong.
    """
    rng = random.Random(f"video pairs {seed}")
    facts = draw_split(num, seed=seed, held_out=False)
    kinds = rng.choices(KINDS, weights=weights, k=num)
    chosen, rejected = [], []
    for one, kind in zip(facts, kinds, strict=True):
        draws = rng.getrandbits(48)
        chosen.append(_clip(one, draws))
        if kind == "backwards":
            rejected.append(chosen[-1].flip(0))
        elif kind == "direction":
            rejected.append(_clip(one, draws, directions=_astray(one, rng)))
        elif kind == "other":
            rejected.append(_clip(_another(one, rng), draws))
        else:
            rejected.append(_clip(one, draws, fault=kind))
    return _judged(facts, chosen, rejected, kinds)


def crossed_pairs(num: int, seed: int) -> list[MotionPair]:
    """`num` pairs of which each clip goes astray in the half in which the other does not.

    As whole clips both are about equally good, and a label of the pair says little; labels of the halves say
    as much as those of two pairs. The usual case of two clips of one prompt that are long enough.

    Args:
        num: of pairs.
        seed: of captions, clips and directions.
    """
    rng = random.Random(f"crossed video pairs {seed}")
    facts = draw_split(num, seed=seed, held_out=False)
    first, second = [], []
    for one in facts:
        draws = rng.getrandbits(48)
        ways = [rng.choice([other for other in DIRECTIONS if other != name]) for name in one.directions]
        first.append(_clip(one, draws, directions=(one.directions[0], ways[1])))
        second.append(_clip(one, draws, directions=(ways[0], one.directions[1])))
    return _judged(facts, first, second, ["crossed"] * num)


# --- made by the model --------------------------------------------------------------------------------------


@runtime_checkable
class Sampler(Protocol):
    """`copies` clips per prompt, prompt-major; the noise of a clip depends on seed and number only."""

    def __call__(
        self, prompts: Sequence[str], *, seed: int, copies: int
    ) -> Sequence[Float[Tensor, "frame 3 height width"]]: ...


def sampled_pairs(
    make: Sampler, num_prompts: int, seed: int, *, copies: int = 4, min_gap: float = 0.1
) -> list[MotionPair]:
    """Best against worst of the model's own clips, per caption outside the held-out split.

    Captions whose clips are all about as good give no pair, and ties go to the clip made first.

    Args:
        make: makes the clips.
        num_prompts: captions.
        seed: of captions and noise.
        copies: clips per caption.
        min_gap: smallest difference of total reward that makes a pair.
    """
    prompts = [facts.caption() for facts in draw_split(num_prompts, seed=seed, held_out=False)]
    clips = make(prompts, seed=seed, copies=copies)
    scores = score_clips(clips, [prompt for prompt in prompts for _ in range(copies)])
    pairs = []
    for number, prompt in enumerate(prompts):
        group = range(number * copies, (number + 1) * copies)
        best = max(group, key=lambda index: scores[index].total)
        worst = min(group, key=lambda index: scores[index].total)
        if scores[best].total - scores[worst].total >= min_gap:
            both = (clips[best], clips[worst]), (scores[best], scores[worst])
            pairs.append(_pair(prompt, *both, "sampled", min_gap=MIN_GAP))
    return pairs


@runtime_checkable
class Redraw(Protocol):
    """Clips noised to levels and denoised for their prompts."""

    def __call__(
        self,
        clips: Sequence[Float[Tensor, "frame 3 height width"]],
        prompts: Sequence[str],
        levels: Sequence[float],
        *,
        seed: int,
    ) -> Sequence[Float[Tensor, "frame 3 height width"]]: ...


def structural_pairs(
    redraw: Redraw, num: int, seed: int, *, levels: tuple[float, float] = (0.75, 0.95)
) -> list[MotionPair]:
    """Pairs of two clips redrawn from the same real one at the same noise level; some segment is decided.

    Clips of which neither segment is decided are left out, so that there may be fewer than `num`.

    Args:
        redraw: noises and denoises.
        num: of real clips.
        seed: of captions, clips, levels and noises.
        levels: smallest and largest noise level, in [0, 1]; 0.65 and 0.8 in the paper, whose schedule is
            shifted otherwise and whose base errs in details rather than in directions.
    """
    rng = random.Random(f"structural video pairs {seed}")
    facts = draw_split(num, seed=seed, held_out=False)
    real = [_clip(one, rng.getrandbits(48)) for one in facts]
    chosen_levels = [rng.uniform(*levels) for _ in facts]
    prompts = [one.caption() for one in facts]
    made = redraw(
        [clip for clip in real for _ in range(2)],
        [prompt for prompt in prompts for _ in range(2)],
        [level for level in chosen_levels for _ in range(2)],
        seed=seed,
    )
    scores = score_clips(made, [prompt for prompt in prompts for _ in range(2)])
    pairs = [
        _pair(
            prompt,
            (made[2 * number], made[2 * number + 1]),
            (scores[2 * number], scores[2 * number + 1]),
            "structural",
            min_gap=MIN_GAP,
        )
        for number, prompt in enumerate(prompts)
    ]
    return [pair for pair in pairs if pair.decided]


def swapped(pairs: Sequence[MotionPair]) -> list[MotionPair]:
    """The same labels and scores over exchanged clips, as a judge that is always wrong would give them."""
    return [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]


# --- files --------------------------------------------------------------------------------------------------


def _file(clip: Float[Tensor, "frame 3 height width"]) -> bytes:
    """Lossless: what is trained on is what was scored."""
    return encode_clip(clip, FPS, container="mkv")


def _stretches(labels: Sequence[int]) -> str:
    """Labels as the column `segments` of `mmalign.data.segments`."""
    return json.dumps(
        [
            {"start": k * SEGMENT_SECONDS, "end": (k + 1) * SEGMENT_SECONDS, "preference": label}
            for k, label in enumerate(labels)
        ]
    )


def write_pairs(pairs: Sequence[MotionPair], path: Path) -> Path:
    """Write pairs as parquet: prompt, clips, scores, stretches, kind, VideoDPO's weight. Returns the path.

    The weight says how rare the scores are among all of these pairs, see `objectives.clips.rarity_weights`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    scores = [(pair.chosen_score.total, pair.rejected_score.total) for pair in pairs]
    weights = rarity_weights(*torch.tensor(scores, dtype=torch.float64).unbind(1))
    rows = [
        {
            "id": f"motion-{number:06d}",
            "prompt": pair.prompt,
            "chosen": {"bytes": _file(pair.chosen), "path": f"{number:06d}_0.mkv"},
            "rejected": {"bytes": _file(pair.rejected), "path": f"{number:06d}_1.mkv"},
            "chosen_score": round(pair.chosen_score.total, 6),
            "rejected_score": round(pair.rejected_score.total, 6),
            "segments": _stretches(pair.segments),
            "strategy": pair.kind,
            WEIGHT_COLUMN: weight,
        }
        for number, (pair, weight) in enumerate(zip(pairs, weights.tolist(), strict=True))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=32)
    return path
