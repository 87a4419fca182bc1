"""Alignment mends the toy world of dialogues through the real loop; broken in a known way, it does not.

"Mends" is a claim about pictures: the 95 % interval of the change in the share of descriptions that
hallucinate, paired over held-out pictures, lies below zero, and that of recall above `RECALL_MARGIN`. What is
broken: pictures belong to other pairs (nothing is to be learnt by looking), labels are swapped.

Run with -s to see the numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from mmalign.toy.comparison import Interval, bootstrap_mean
from mmalign.toy.demo import recipe_path
from mmalign.toy.dialogue_exam import Answers, Exam, ExamComparison, draw_exam, take_exam
from mmalign.toy.dialogue_pairs import Condition, dialogue_pairs, flip_labels, shuffle_pictures, write_trl
from mmalign.toy.dialogue_parts import ASSETS
from mmalign.train.config import load_run
from mmalign.train.run import train

pytestmark = pytest.mark.slow

METHODS = ("dpo", "mdpo")
NUM_PAIRS, NUM_PICTURES, SEED = 1536, 400, 1
RECALL_MARGIN = -0.03
"""A larger loss of recall than this must be outside the interval."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The network is so small that two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class World:
    """What the base writes about the exam, and what it writes after each training; no training twice."""

    folder: Path
    exam: Exam
    base: Answers | None = None
    known: dict[str, Answers] = field(default_factory=dict)

    def compare(
        self,
        method: str,
        *,
        condition: Condition = "twins",
        broken: str = "",
        overrides: tuple[str, ...] = (),
    ) -> ExamComparison:
        """Base against the model that a method makes of pairs."""
        name = f"{method}-{condition}-{broken}"
        if name not in self.known:
            self.known[name] = self._train(method, name, condition, broken, overrides)
        assert self.base is not None
        comparison = ExamComparison(self.exam, self.base, self.known[name])
        _print(name, comparison)
        return comparison

    def _train(
        self, method: str, name: str, condition: Condition, broken: str, overrides: tuple[str, ...]
    ) -> Answers:
        pairs = dialogue_pairs(NUM_PAIRS, seed=SEED, condition=condition)
        if broken == "pictures shuffled":
            pairs = shuffle_pictures(pairs, seed=SEED)
        elif broken == "labels swapped":
            pairs = flip_labels(pairs, 1.0, seed=SEED)
        extra = {
            "model": {"source": str(ASSETS)},
            "data": {"source": str(write_trl(pairs, self.folder / f"{name}.parquet"))},
            "train": {"output": str(self.folder / name), "seed": SEED},
        }
        result = train(load_run(recipe_path(f"vlm/configs/toy/{method}.yaml"), overrides, extra=extra))
        if self.base is None:
            with result.trainables.disabled():
                self.base = take_exam(result.model, self.exam)
        return take_exam(result.model, self.exam)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("dialogues"), draw_exam(NUM_PICTURES, seed=SEED, num_polled=0))


def _said(interval: Interval) -> str:
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _print(name: str, comparison: ExamComparison) -> None:
    for axis in ("hallucinated", "recall", "words"):
        before, after = comparison.means(axis)
        print(f"{name}: {axis} {before:.3f} -> {after:.3f}, {_said(comparison.gain(axis))}")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_hallucinates_less_on_held_out_pictures_and_keeps_recall(world: World, method: str) -> None:
    comparison = world.compare(method)
    assert comparison.gain("hallucinated").high < -0.05
    assert comparison.gain("recall").low > RECALL_MARGIN


def test_dpo_with_swapped_labels_hallucinates_more(world: World) -> None:
    broken = world.compare("dpo", broken="labels swapped")
    assert broken.gain("hallucinated").low > 0
    assert broken.gain("score").high < 0


def test_swapped_labels_take_most_of_what_mdpo_mends(world: World) -> None:
    """Not all of it: its picture pair never asks which answer is better, and rewards looking all the same."""
    right, broken = (world.compare("mdpo", broken=how) for how in ("", "labels swapped"))
    lost = bootstrap_mean(broken.differences("hallucinated") - right.differences("hallucinated"))
    assert lost.low > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_mended_where_pictures_belong_to_other_pairs(world: World, method: str) -> None:
    broken = world.compare(method, broken="pictures shuffled")
    assert broken.gain("hallucinated").high >= 0
    assert broken.gain("score").low <= 0


def test_comparing_pictures_mends_what_comparing_answers_that_differ_in_style_does_not(world: World) -> None:
    dpo, mdpo = (world.compare(method, condition="style") for method in METHODS)
    change = bootstrap_mean(mdpo.differences("hallucinated") - dpo.differences("hallucinated"))
    print(f"mdpo against dpo, hallucinated: {_said(change)}")
    assert change.high < 0
