"""What alignment does to the toy world of sound, whole and broken: one training per trial and seed.

    python -m mmalign.toy.audio_claims --output docs/measurements/audio_world.jsonl --page docs/audio-world.md

runs `TRIALS` through the recipes of `audio/configs/toy` and renews the tables of the page. What is stored
already is not trained again. `tests/toy/test_audio_worlds.py` holds what the tables claim.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from mmalign.files import append_json_line, read_json_lines
from mmalign.toy.audio_scenes import held_out_prompts
from mmalign.toy.audio_trials import BASE, REBUILT, TRIALS, Played, World
from mmalign.toy.claims import each_seed, paired_difference, said, seeds_of
from mmalign.toy.comparison import Interval
from mmalign.toy.guide_tables import renew, table

__all__ = ["GROUPS", "Known", "difference", "main", "stored", "tables"]

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(trial.group for trial in TRIALS.values()))
"""Questions that trials belong to."""

ONE_SEED: tuple[str, ...] = ("flipped",)
"""Groups that the first seed answers for all."""

Known = Mapping[tuple[str, int], Played]
"""What was played, by trial and seed."""


def stored(path: Path) -> dict[tuple[str, int], Played]:
    """What a file of results holds; nothing where there is none."""
    if not path.exists():
        return {}
    found = {}
    for record in read_json_lines(path):
        order, presence = (tuple(record[axis]) for axis in ("order", "presence"))
        found[record["trial"], int(record["seed"])] = Played(order, presence, record["rows"])
    return found


def _append(path: Path, trial: str, seed: int, played: Played) -> None:
    record = {
        "trial": trial,
        "seed": seed,
        "rows": played.num_rows,
        "order": played.order,
        "presence": played.presence,
    }
    append_json_line(path, record)


# --- numbers ------------------------------------------------------------------------------------------------


def difference(known: Known, one: str, other: str, axis: str, seeds: Sequence[int]) -> Interval:
    """By how much more one trial gives than another (or `BASE`), paired over the captions of all seeds.

    A caption may be drawn several times; its draws are resampled together.

    Args:
        known: what was played.
        one: name of a trial.
        other: name of a trial.
        axis: "order", "presence" or "total".
        seeds: whose captions count.
    """
    return paired_difference(known, one, other, axis, seeds, _captions)


def _captions(count: int, seed: int) -> list[str]:
    return held_out_prompts(count, seed=seed)


_GAINS = (
    ("trial", "---"),
    ("rows", "---:"),
    ("seeds", "---:"),
    ("order, base", "---:"),
    ("order, aligned", "---:"),
    ("gain in order", "---:"),
    ("each seed", "---:"),
    ("gain in presence", "---:"),
)
_AGAINST = (
    ("one", "---"),
    ("other", "---"),
    ("seeds", "---:"),
    ("more order", "---:"),
    ("each seed", "---:"),
    ("more presence", "---:"),
)


def _each(known: Known, one: str, other: str, seeds: Sequence[int]) -> str:
    return each_seed(partial(difference, known, one, other, "order"), seeds)


def _gains(known: Known, names: Sequence[str], seeds: Sequence[int]) -> str:
    rows = []
    for name in names:
        if not (used := seeds_of(known, (name, BASE), seeds)):
            continue
        means = (
            torch.cat([known[which, seed].of("order") for seed in used]).mean() for which in (BASE, name)
        )
        counts = sorted({known[name, seed].num_rows for seed in used})
        gained = [said(difference(known, name, BASE, axis, used)) for axis in ("order", "presence")]
        rows.append(
            [
                name,
                " to ".join(map(str, counts[:: max(1, len(counts) - 1)])),
                " ".join(map(str, used)),
                *(f"{mean:.3f}" for mean in means),
                gained[0],
                _each(known, name, BASE, used),
                gained[1],
            ]
        )
    return table(_GAINS, rows)


def _against(known: Known, sides: Sequence[tuple[str, str]], seeds: Sequence[int]) -> str:
    rows = []
    for one, other in sides:
        if used := seeds_of(known, (one, other), seeds):
            more = [said(difference(known, one, other, axis, used)) for axis in ("order", "presence")]
            each = _each(known, one, other, used)
            rows.append([one, other, " ".join(map(str, used)), more[0], each, more[1]])
    return table(_AGAINST, rows)


SIDES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "segments": (
        ("segments: DenseDPO", "whole clips: DPO"),
        ("segments: DenseDPO, each", "whole clips: DPO"),
    ),
    "own": (
        ("own clips: CRPO", "CRPO"),
        ("online: CRPO", "CRPO"),
        ("online: CRPO", "own clips: CRPO"),
        ("CRPO, supervised", "CRPO"),
        ("own clips: CRPO, supervised", "own clips: CRPO"),
    ),
}
"""By group, what is compared with what."""


def tables(known: Known, seeds: Sequence[int]) -> dict[str, str]:
    """Markdown by group: gains over the base, and for some groups a second table of who beats whom.

    Intervals are 95 % of the mean over the captions of all seeds; "each seed" says how trainings differ.
    """
    found = {}
    for group in GROUPS:
        names = [name for name, trial in TRIALS.items() if trial.group == group]
        found[f"audio_{group}"] = _gains(known, names, seeds)
        if group in SIDES:
            found[f"audio_{group}_sides"] = _against(known, SIDES[group], seeds)
    return found | {"audio_rebuilt": _gains(known, [REBUILT], seeds)}


# --- command ------------------------------------------------------------------------------------------------


def _run(path: Path, seeds: Sequence[int], groups: Sequence[str], rebuilt: Path | None = None) -> None:
    """Train and play what is asked for and not stored, group by group; data of a seed are made once."""
    known = stored(path)

    def once(name: str, seed: int, play: Callable[[], Played]) -> None:
        if (name, seed) in known:
            return
        known[name, seed] = play()
        _append(path, name, seed, known[name, seed])
        if name != BASE:
            gain = said(difference(known, name, BASE, "order", [seed]))
            print(f"{name}, seed {seed}: {gain}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        worlds = {seed: World(Path(folder) / str(seed), seed) for seed in seeds}
        for seed, world in worlds.items():
            once(BASE, seed, world.base)
            if rebuilt is not None:
                once(REBUILT, seed, partial(world.base, rebuilt))
        for group in groups:
            for seed in seeds[:1] if group in ONE_SEED else seeds:
                for trial in TRIALS.values():
                    if trial.group == group:
                        once(trial.name, seed, partial(worlds[seed].play, trial))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: run what is not stored, print the tables or renew a page."""
    parser = argparse.ArgumentParser(
        prog="python -m mmalign.toy.audio_claims", description="Align the toy world of sound in every way."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS), help="none: only tables")
    parser.add_argument("--output", type=Path, required=True, help="one line of JSON per trial and seed")
    parser.add_argument("--rebuilt", type=Path, help="folder that mmalign.toy.audio_model wrote")
    parser.add_argument("--page", type=Path, help="Markdown whose tables are renewed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    _run(options.output, options.seeds, options.groups, options.rebuilt)
    found = tables(stored(options.output), options.seeds)
    if options.page:
        renew(options.page, found)
    else:
        print("\n\n".join(f"{name}\n\n{text}" for name, text in found.items()))


if __name__ == "__main__":
    main()
