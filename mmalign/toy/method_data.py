"""Data of the table of methods: pairs with flipped labels, rankings, another style, comparisons of prompts.

One `DataSpec` names a file of one world; what it holds follows from it and the seed alone.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmalign.seeding import generator_for
from mmalign.toy.image_pairs import Pair, jpeg_bytes, preference_pairs, write_pickapic
from mmalign.toy.image_reward import Score, background_of, score_images
from mmalign.toy.scenes import (
    BACKGROUND,
    CORRUPTIONS,
    Facts,
    Scene,
    corrupt,
    draw_scene,
    draw_split,
    render,
    to_tensor,
)

__all__ = ["BARE", "NIGHT", "DataKindName", "DataSpec", "night_scores", "ranked_scenes", "write_data"]

DataKindName = Literal["pairs", "lists", "night", "contrasts"]

NIGHT = (24, 26, 48)
"""Background of the style that the base never paints."""


@dataclass(frozen=True)
class DataSpec:
    """What a run learns from.

    Args:
        kind: "pairs"; "lists" of four; "night", pairs in a style that the base never paints; "contrasts",
            every picture under two prompts and every prompt with two pictures.
        num: of pairs, lists, or contrasts (each of which gives four comparisons).
        flips: share of pairs with exchanged labels.
        exchange_scores: a flipped pair's scores are exchanged too: rewards are as wrong as the labels.
    """

    kind: DataKindName = "pairs"
    num: int = 768
    flips: float = 0.0
    exchange_scores: bool = False

    @property
    def taste(self) -> str:
        """What held-out pictures are judged by: "exact" or "night"."""
        return "night" if self.kind == "night" else "exact"

    @property
    def name(self) -> str:
        """Its file, without ending."""
        flips = f"-{self.flips:g}{'s' if self.exchange_scores else ''}" if self.flips else ""
        return f"{self.kind}-{self.num}{flips}"


def write_data(spec: DataSpec, folder: Path, seed: int) -> Path:
    """Write the file of a spec unless it is there. Returns its path."""
    path = folder / f"{spec.name}.parquet"
    if path.exists():
        return path
    match spec.kind:
        case "lists":
            return _write(_list_rows(spec.num, seed), path)
        case "contrasts":
            return _write(_contrast_rows(spec.num, seed), path)
        case "night":
            return write_pickapic(_night_pairs(spec.num, seed), path, seed=seed, scored=True)
    pairs = preference_pairs(spec.num, seed)
    return write_pickapic(_flipped(pairs, spec, seed), path, seed=seed, scored=True)


def _write(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def _flipped(pairs: Sequence[Pair], spec: DataSpec, seed: int) -> list[Pair]:
    """Some pairs with the other picture chosen; scores stay with their pictures unless they are exchanged."""
    import torch

    luck = torch.rand(len(pairs), generator=generator_for(seed, "flips")).tolist()
    found = []
    for pair, drawn in zip(pairs, luck, strict=True):
        if drawn >= spec.flips:
            found.append(pair)
            continue
        scores = (pair.chosen_score, pair.rejected_score)
        first, second = scores if spec.exchange_scores else scores[::-1]
        found.append(
            replace(
                pair,
                chosen=pair.rejected,
                rejected=pair.chosen,
                chosen_score=first,
                rejected_score=second,
            )
        )
    return found


# ------------------------------------------------------------------------------------------------------ lists


def ranked_scenes(facts: Facts, rng: random.Random) -> list[Scene]:
    """Four pictures of a caption: right or with a broken fact, each with and without a frame."""
    right = draw_scene(facts, rng, style="framed")
    wrong = corrupt(right, facts, rng.choice(CORRUPTIONS), rng)
    return [replace(scene, framed=framed) for scene in (right, wrong) for framed in (True, False)]


def _list_rows(num: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(f"lists {seed}")
    rows = []
    for facts in draw_split(num, seed=seed, held_out=False):
        pictures = [render(scene) for scene in ranked_scenes(facts, rng)]
        rng.shuffle(pictures)
        scores = score_images(pictures, [facts.caption()] * len(pictures))
        rows.append(
            {
                "prompt": facts.caption(),
                "images": [jpeg_bytes(picture) for picture in pictures],
                "scores": [score.total for score in scores],
            }
        )
    return rows


# ------------------------------------------------------------------------------------------------------ night


def night_scores(pictures: Sequence[Any], prompts: Sequence[str]) -> list[Score]:
    """The exact reward with another taste: style is how far the background is from paper towards `NIGHT`."""
    day, night = (_luminance(_as_floats(colour)) for colour in (BACKGROUND, NIGHT))
    found = []
    backgrounds = background_of(to_tensor(pictures)).tolist()
    for score, colour in zip(score_images(pictures, prompts), backgrounds, strict=True):
        darkness = (day - _luminance(colour)) / (day - night)
        found.append(replace(score, style=min(max(darkness, 0.0), 1.0)))
    return found


def _as_floats(colour: Sequence[int]) -> list[float]:
    return [value / 255.0 for value in colour]


def _luminance(colour: Sequence[float]) -> float:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _night_pairs(num: int, seed: int) -> list[Pair]:
    """Faithful scenes at night, chosen, and by day: nothing else differs."""
    rng = random.Random(f"night {seed}")
    captions = draw_split(num, seed=seed, held_out=False)
    days = [draw_scene(facts, rng) for facts in captions]
    prompts = [facts.caption() for facts in captions]
    chosen = [render(replace(scene, background=NIGHT)) for scene in days]
    rejected = [render(scene) for scene in days]
    scores = zip(night_scores(chosen, prompts), night_scores(rejected, prompts), strict=True)
    return [
        Pair(prompt, *pictures, *both, "style")
        for prompt, pictures, both in zip(prompts, zip(chosen, rejected, strict=True), scores, strict=True)
    ]


# -------------------------------------------------------------------------------------------------- contrasts

BARE = "bare"
"""Before a caption it asks for a picture without a frame. The base has never read the word."""


def _contrast_rows(num: int, seed: int) -> list[dict[str, Any]]:
    """InstructEngine's four comparisons of two captions that differ in a detail, with a picture of each.

    The detail is one of style: the caption as it stands has the framed picture, the one that asks for a bare
    picture the same scene without a frame. Every picture is chosen as often as it is rejected: were the
    detail a fact, nothing could be learned of the frame, which no caption would speak of.
    """
    rng = random.Random(f"contrasts {seed}")
    rows = []
    for facts in draw_split(num, seed=seed, held_out=False):
        scene = draw_scene(facts, rng, style="framed")
        prompts = [facts.caption(), f"{BARE} {facts.caption()}"]
        pictures = [jpeg_bytes(render(replace(scene, framed=framed))) for framed in (True, False)]
        for first, second in ((0, 1), (1, 0)):
            rows.append(_comparison(prompts[first], pictures[first], pictures[second]))
            rows.append(_comparison(prompts[first], pictures[first], pictures[first], prompts[second]))
    return rows


def _comparison(
    prompt: str, chosen: bytes, rejected: bytes, other_prompt: str | None = None
) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "prompt_chosen": prompt,
        "prompt_rejected": prompt if other_prompt is None else other_prompt,
    }
