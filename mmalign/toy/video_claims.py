"""What alignment does to the toy world of video, whole and broken: one training per trial and seed.

    python -m mmalign.toy.video_claims --output docs/measurements/video_world.jsonl --page docs/video-world.md

runs `TRIALS` through the recipes of `video/configs/toy` and renews the tables of the page. What is stored
already is not trained again. `tests/toy/test_video_worlds.py` holds what the tables claim.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from mmalign.files import append_json_line, read_json_lines
from mmalign.seeding import generator_for
from mmalign.toy.claims import paired_difference, said, seeds_of
from mmalign.toy.comparison import Interval
from mmalign.toy.guide_tables import renew, table
from mmalign.toy.video_pairs import MIN_GAP, crossed_pairs
from mmalign.toy.video_pipeline import ASSETS, decoded, load_base
from mmalign.toy.video_reward import score_clips
from mmalign.toy.video_scenes import (
    NUM_FRAMES,
    draw_facts,
    draw_scene,
    held_out_prompts,
    render,
    tensor_of,
)
from mmalign.toy.video_trials import AXES, BASE, NUM_DRAWN, TRIALS, Shown, World, base_name

__all__ = ["GROUPS", "Known", "crossed_gaps", "difference", "main", "stored", "tables", "yardstick"]

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(trial.group for trial in TRIALS.values()))
"""Questions that trials belong to."""

ONE_SEED: tuple[str, ...] = ("swapped", "flipped", "own")
"""Groups that the first seed answers for all."""

GUIDED: Mapping[str, float] = {base_name(scale): scale for scale in (1.5, 2.0, 3.0)}
"""The base with guidance, by name."""

SIDES: tuple[tuple[str, str], ...] = (
    ("segments: DenseDPO, a third", "whole clips: DPO"),
    ("segments: DenseDPO, a third", "whole clips: DPO, a third"),
    ("DenseDPO", "whole clips: DPO"),
    ("crossed, segments: DenseDPO", "crossed, whole clips: DPO"),
    ("crossed, segments: DenseDPO, a third", "crossed, whole clips: DPO"),
)
"""What is compared with what: labels in time with labels of whole clips, on pairs of one kind."""

Known = Mapping[tuple[str, int], Shown]
"""What was shown, by trial and seed."""


def stored(path: Path) -> dict[tuple[str, int], Shown]:
    """What a file of results holds; nothing where there is none."""
    if not path.exists():
        return {}
    return {
        (record["trial"], int(record["seed"])): Shown(
            {axis: tuple(record[axis]) for axis in AXES}, record["pairs"], record["labels"]
        )
        for record in read_json_lines(path)
    }


def _append(path: Path, trial: str, seed: int, shown: Shown) -> None:
    counts = {"trial": trial, "seed": seed, "pairs": shown.num_pairs, "labels": shown.num_labels}
    append_json_line(path, counts | dict(shown.values))


# --- numbers ------------------------------------------------------------------------------------------------


def difference(known: Known, one: str, other: str, axis: str, seeds: Sequence[int]) -> Interval:
    """By how much more one trial gives than another (or `BASE`), paired over the captions of all seeds.

    A caption may be drawn several times; its draws are resampled together.

    Args:
        known: what was shown.
        one: name of a trial.
        other: name of a trial.
        axis: one of `video_trials.AXES`.
        seeds: whose captions count.
    """
    return paired_difference(known, one, other, axis, seeds, _captions)


def _captions(count: int, seed: int) -> list[str]:
    return held_out_prompts(count, seed=seed)


_GAINS = (
    ("trial", "---"),
    ("pairs", "---:"),
    ("labels", "---:"),
    ("seeds", "---:"),
    ("total, base", "---:"),
    ("gain in total", "---:"),
    ("each seed", "---:"),
    ("direction", "---:"),
    ("smoothness", "---:"),
    ("identity", "---:"),
    ("motion", "---:"),
    ("pixels per frame", "---:"),
)
_AGAINST = (
    ("one", "---"),
    ("other", "---"),
    ("seeds", "---:"),
    ("more total", "---:"),
    ("each seed", "---:"),
    ("more direction", "---:"),
    ("more pixels per frame", "---:"),
)


def _each(known: Known, one: str, other: str, seeds: Sequence[int]) -> str:
    return ", ".join(said(difference(known, one, other, "total", [seed])) for seed in seeds)


def _counted(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _gains(known: Known, names: Sequence[str], seeds: Sequence[int]) -> str:
    rows = []
    for name in names:
        base = TRIALS[name].base
        if not (used := seeds_of(known, (name, base), seeds)):
            continue
        own = [known[name, seed] for seed in used]
        before = torch.cat([known[base, seed].of("total") for seed in used]).mean()
        gains = {axis: difference(known, name, base, axis, used) for axis in AXES}
        rows.append(
            [
                name,
                _counted([shown.num_pairs for shown in own]),
                _counted([shown.num_labels for shown in own]),
                " ".join(map(str, used)),
                f"{before:.3f}",
                said(gains["total"]),
                _each(known, name, base, used),
                said(gains["direction"]),
                f"{gains['smoothness'].value:+.3f}",
                *(said(gains[axis]) for axis in ("identity", "motion", "pixels")),
            ]
        )
    return table(_GAINS, rows)


def _against(known: Known, seeds: Sequence[int]) -> str:
    rows = []
    for one, other in SIDES:
        if used := seeds_of(known, (one, other), seeds):
            more = [
                said(difference(known, one, other, axis, used)) for axis in ("total", "direction", "pixels")
            ]
            each = _each(known, one, other, used)
            rows.append([one, other, " ".join(map(str, used)), more[0], each, *more[1:]])
    return table(_AGAINST, rows)


_YARDSTICK_CLIPS = 64
"""True clips that the judge is shown, whole and spoilt."""


def yardstick(base_folder: Path = ASSETS, num: int = _YARDSTICK_CLIPS) -> dict[str, Shown]:
    """What the reward says of true clips, of the same clips spoilt, and after the autoencoder.

    Args:
        base_folder: of the model whose autoencoder it is.
        num: true clips.
    """
    rng = random.Random("yardstick")
    facts = [draw_facts(rng) for _ in range(num)]
    true = [tensor_of(render(draw_scene(one, rng))).float() / 255.0 for one in facts]
    frames = torch.randperm(NUM_FRAMES, generator=generator_for(0, "yardstick"))
    shown = {
        "true clips": true,
        "played backwards": [clip.flip(0) for clip in true],
        "first frame held": [clip[:1].expand_as(clip) for clip in true],
        "frames shuffled": [clip[frames] for clip in true],
        "through the autoencoder": decoded(load_base(base_folder), true),
    }
    prompts = [one.caption() for one in facts]
    return {name: Shown.from_scores(score_clips(clips, prompts)) for name, clips in shown.items()}


def crossed_gaps(seeds: Sequence[int], num: int = NUM_DRAWN) -> str:
    """Of crossed pairs how many a judge of whole clips would label, had it the halves' rule for ties.

    Args:
        seeds: of the pairs.
        num: pairs of a seed.
    """
    rows = []
    for seed in seeds:
        gaps = [pair.chosen_score.total - pair.rejected_score.total for pair in crossed_pairs(num, seed)]
        rows.append([str(seed), str(num), str(sum(gap >= MIN_GAP for gap in gaps)), f"{sum(gaps) / num:.3f}"])
    heads = ("seed", "pairs", f"total differs by {MIN_GAP:g} or more", "mean difference")
    return table([(head, "---:") for head in heads], rows)


_JUDGED = (("clips", "---"), *((axis.replace("_", " "), "---:") for axis in AXES))


def _judged(shown: Mapping[str, Shown]) -> str:
    return table(
        _JUDGED,
        [[name, *(f"{float(one.of(axis).mean()):.3f}" for axis in AXES)] for name, one in shown.items()],
    )


_BASES = (("model", "---"), ("seed", "---:"), *((axis.replace("_", " "), "---:") for axis in AXES))


def _base(known: Known, seeds: Sequence[int]) -> str:
    rows = [
        [name, str(seed), *(f"{float(known[name, seed].of(axis).mean()):.3f}" for axis in AXES)]
        for name in (BASE, *GUIDED)
        for seed in seeds_of(known, (name,), seeds)
    ]
    return table(_BASES, rows)


def tables(known: Known, seeds: Sequence[int]) -> dict[str, str]:
    """Markdown: what the base does, by group the gains over it, and labels in time against whole clips.

    Intervals are 95 % of the mean over the captions of all seeds; "each seed" says how trainings differ.
    """
    found = {"video_base": _base(known, seeds)}
    for group in GROUPS:
        names = [name for name, trial in TRIALS.items() if trial.group == group]
        found[f"video_{group}"] = _gains(known, names, seeds)
    return found | {"video_sides": _against(known, seeds)}


# --- command ------------------------------------------------------------------------------------------------


def _run(path: Path, seeds: Sequence[int], groups: Sequence[str]) -> None:
    """Train and show what is asked for and not stored, group by group; data of a seed are made once."""
    known = stored(path)

    def keep(name: str, seed: int, show: Callable[[], Shown], base: str = BASE) -> None:
        if (name, seed) not in known:
            known[name, seed] = show()
            _append(path, name, seed, known[name, seed])
            gain = said(difference(known, name, base, "total", [seed]))
            print(f"{name}, seed {seed}: {gain}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        worlds = {seed: World(Path(folder) / str(seed), seed) for seed in seeds}
        for seed in seeds if groups else ():
            keep(BASE, seed, worlds[seed].base)
            for name, scale in GUIDED.items():
                keep(name, seed, partial(worlds[seed].base, scale))
        for group in groups:
            for seed in seeds[:1] if group in ONE_SEED else seeds:
                for trial in TRIALS.values():
                    if trial.group == group:
                        keep(trial.name, seed, partial(worlds[seed].show, trial), trial.base)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: run what is not stored, print the tables or renew a page."""
    parser = argparse.ArgumentParser(
        prog="python -m mmalign.toy.video_claims", description="Align the toy world of video in every way."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS), help="none: only tables")
    parser.add_argument("--output", type=Path, required=True, help="one line of JSON per trial and seed")
    parser.add_argument("--page", type=Path, help="Markdown whose tables are renewed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    _run(options.output, options.seeds, options.groups)
    found = tables(stored(options.output), options.seeds)
    found |= {"video_yardstick": _judged(yardstick()), "video_gaps": crossed_gaps(options.seeds)}
    if options.page:
        renew(options.page, found)
    else:
        print("\n\n".join(f"{name}\n\n{text}" for name, text in found.items()))


if __name__ == "__main__":
    main()
