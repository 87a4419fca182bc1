"""What alignment does to the toy world of dialogues, whole and broken: one training per trial and seed.

    python -m mmalign.toy.dialogue_claims --seeds 0 1 2 --output docs/measurements/dialogues.jsonl

runs `TRIALS` through the recipes of `vlm/configs/toy` and prints the table of docs/lab-notes.md. What is
stored already is not trained again. `tests/toy/test_dialogue_alignment.py` holds what the table claims.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch

from mmalign.files import append_json_line, read_json_lines
from mmalign.toy.comparison import Interval
from mmalign.toy.demo import recipe_path
from mmalign.toy.dialogue_exam import Answers, Axis, ExamComparison, Writer, draw_exam, take_exam
from mmalign.toy.dialogue_pairs import Condition, dialogue_pairs, flip_labels, shuffle_pictures, write_trl
from mmalign.toy.dialogue_parts import ASSETS
from mmalign.toy.guide_tables import table
from mmalign.train.config import load_run
from mmalign.train.run import RunResult, train

__all__ = ["TRIALS", "Trial", "World", "main", "numbers", "trials_table"]

NUM_PAIRS, NUM_PICTURES, NUM_POLLED = 1536, 800, 200

Broken = Literal["", "pictures shuffled", "labels swapped"]

_WITHOUT_ANCHOR = ("objective.anchor_coefficient=0",)
_WITHOUT_PICTURES = ("objective.image_coefficient=0",)
_RELEASED_BETA = ("objective.beta=0.1",)


@dataclass(frozen=True)
class Trial:
    """One training.

    Args:
        name: as in the table.
        method: "dpo" or "mdpo", whose toy recipe runs.
        condition: of the pairs.
        broken: what was done to them.
        overrides: `section.key=value` over the recipe.
    """

    name: str
    method: str
    condition: Condition = "twins"
    broken: Broken = ""
    overrides: tuple[str, ...] = ()


TRIALS: Mapping[str, Trial] = {
    trial.name: trial
    for trial in (
        Trial("DPO", "dpo"),
        Trial("mDPO", "mdpo"),
        Trial("mDPO without its anchor", "mdpo", overrides=_WITHOUT_ANCHOR),
        Trial("mDPO without its pair of pictures", "mdpo", overrides=_WITHOUT_PICTURES),
        Trial("DPO, beta 0.1", "dpo", overrides=_RELEASED_BETA),
        Trial("mDPO, beta 0.1", "mdpo", overrides=_RELEASED_BETA),
        Trial("DPO, pictures shuffled", "dpo", broken="pictures shuffled"),
        Trial("mDPO, pictures shuffled", "mdpo", broken="pictures shuffled"),
        Trial("DPO, labels swapped", "dpo", broken="labels swapped"),
        Trial("mDPO, labels swapped", "mdpo", broken="labels swapped"),
        Trial("style: DPO", "dpo", "style"),
        Trial("style: mDPO", "mdpo", "style"),
        Trial("style: mDPO without its anchor", "mdpo", "style", overrides=_WITHOUT_ANCHOR),
        Trial("style: mDPO without its pair of pictures", "mdpo", "style", overrides=_WITHOUT_PICTURES),
    )
}
"""By name. "style": chosen and rejected are both true and differ in wording alone."""


@dataclass
class World:
    """What the base writes about an exam, and what it writes after each trial; no training twice.

    Args:
        folder: for pairs and runs.
        seed: of pairs, training and exam.
    """

    folder: Path
    seed: int
    _base: Answers | None = None
    _known: dict[str, tuple[Answers, Answers]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Draw the exam."""
        self.exam = draw_exam(NUM_PICTURES, seed=self.seed, num_polled=NUM_POLLED)

    def compare(self, name: str) -> ExamComparison:
        """Base against what one of `TRIALS` makes of it."""
        if name not in self._known:
            self._known[name] = self.answers(TRIALS[name])
        return ExamComparison(self.exam, *self._known[name])

    def answers(self, trial: Trial) -> tuple[Answers, Answers]:
        """Of the base, which is asked once, and of what training makes of it."""
        result = self._train(trial)
        model = cast("Writer", result.model)
        if self._base is None:
            with result.trainables.disabled():
                self._base = take_exam(model, self.exam)
        return self._base, take_exam(model, self.exam)

    def _train(self, trial: Trial) -> RunResult:
        pairs = dialogue_pairs(NUM_PAIRS, seed=self.seed, condition=trial.condition)
        if trial.broken == "pictures shuffled":
            pairs = shuffle_pictures(pairs, seed=self.seed)
        elif trial.broken == "labels swapped":
            pairs = flip_labels(pairs, 1.0, seed=self.seed)
        home = self.folder / "".join(filter(str.isalnum, trial.name))
        extra = {
            "model": {"source": str(ASSETS)},
            "data": {"source": str(write_trl(pairs, home / "pairs.parquet"))},
            "train": {"output": str(home / "run"), "seed": self.seed},
        }
        run = load_run(recipe_path(f"vlm/configs/toy/{trial.method}.yaml"), trial.overrides, extra=extra)
        with contextlib.redirect_stdout(io.StringIO()):
            return train(run)


# --- numbers ------------------------------------------------------------------------------------------------

_AXES: tuple[Axis, ...] = ("hallucinated", "recall", "words")
_SPLITS = ("random", "adversarial")


def _number(before: float, after: float, change: Interval) -> dict[str, float]:
    values = (before, after, change.value, change.low, change.high)
    names = ("base", "aligned", "change", "low", "high")
    return {name: round(value, 4) for name, value in zip(names, values, strict=True)}


def numbers(comparison: ExamComparison) -> dict[str, dict[str, float]]:
    """Base, aligned, change and its 95 % interval: of descriptions, and of accuracy on yes-no questions."""
    found: dict[str, dict[str, float]] = {
        axis: _number(*comparison.means(axis), comparison.gain(axis)) for axis in _AXES
    }
    base, tuned = comparison.exists()
    for split in _SPLITS:
        change = comparison.exists_gain(split)
        found[split] = _number(base[split].accuracy, tuned[split].accuracy, change)
    return found


_COLUMNS = (
    ("trial", "---"),
    ("hallucination", "---"),
    ("recall", "---"),
    ("words", "---"),
    ("yes-no, any kind", "---"),
    ("yes-no, companions", "---"),
)


def trials_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: per trial the mean change over seeds, and the outermost ends of their intervals."""
    rows = []
    for name in TRIALS:
        own = [record["numbers"] for record in records if record["trial"] == name]
        if own:
            rows.append([name, *(_cell([one[key] for one in own], key) for key in (*_AXES, *_SPLITS))])
    return table(_COLUMNS, rows)


def _cell(found: Sequence[Mapping[str, float]], key: str) -> str:
    places = 1 if key == "words" else 3
    mean = sum(one["change"] for one in found) / len(found)
    ends = (min(one["low"] for one in found), max(one["high"] for one in found))
    low, high = (f"{end:+.{places}f}" for end in ends)
    return f"{mean:+.{places}f} [{low}, {high}]"


# --- command ------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: run what is not stored, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m mmalign.toy.dialogue_claims",
        description="Align the toy world of dialogues in every way of the lab notes.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, help="one line of JSON per trial and seed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = read_json_lines(options.output) if options.output.exists() else []
    known = {(record["trial"], record["seed"]) for record in records}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder), seed)
            for name in TRIALS:
                if (name, seed) not in known:
                    records.append({"trial": name, "seed": seed, "numbers": numbers(world.compare(name))})
                    append_json_line(options.output, records[-1])
    print(trials_table([record for record in records if record["seed"] in options.seeds]))


if __name__ == "__main__":
    main()
