"""Alignment mends the toy world of dialogues through the real loop; broken in a known way, it does not.

"Mends" is a claim about pictures: the 95 % interval of the change in the share of descriptions that
hallucinate, paired over held-out pictures, lies below zero, recall does not fall (its interval holds zero or
lies above `RECALL_MARGIN`), and yes-no questions are answered no worse. What is broken: pictures belong to
other pairs (nothing is to be learnt by looking), labels are swapped.

Run with -s to see the numbers, among them mean length.
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
SPLITS = ("random", "adversarial")
NUM_PAIRS, NUM_PICTURES, NUM_POLLED, SEED = 1536, 800, 200, 1
RECALL_MARGIN = -0.01
"""Where recall changes at all, a larger loss than this must be outside the interval."""

WITHOUT_ANCHOR = ("objective.anchor_coefficient=0",)
WITHOUT_PICTURES = ("objective.image_coefficient=0",)


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
        name = " ".join(filter(None, (method, condition, broken, *overrides)))
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
    exam = draw_exam(NUM_PICTURES, seed=SEED, num_polled=NUM_POLLED)
    return World(tmp_path_factory.mktemp("dialogues"), exam)


def _said(interval: Interval) -> str:
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _print(name: str, comparison: ExamComparison) -> None:
    print(f"\n{name}")
    for axis in ("hallucinated", "recall", "words"):
        before, after = comparison.means(axis)
        print(f"  {axis:<21} {before:6.3f} -> {after:6.3f}  {_said(comparison.gain(axis))}")
    before, after = comparison.exists()
    for split in SPLITS:
        rates = f"{before[split].accuracy:6.3f} -> {after[split].accuracy:6.3f}"
        print(f"  {split + ' yes-no':<21} {rates}  {_said(comparison.exists_gain(split))}")


def _more(one: ExamComparison, other: ExamComparison) -> Interval:
    """By how much more one of two trainings lets descriptions hallucinate."""
    return bootstrap_mean(one.differences("hallucinated") - other.differences("hallucinated"))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_hallucinates_less_on_held_out_pictures_and_keeps_recall(world: World, method: str) -> None:
    comparison = world.compare(method)
    assert comparison.gain("hallucinated").high < -0.1
    recall = comparison.gain("recall")
    assert recall.low >= RECALL_MARGIN or recall.high >= 0
    assert comparison.exists_gain("random").high >= 0
    assert comparison.exists_gain("adversarial").low > 0


@pytest.mark.parametrize("broken", ["pictures shuffled", "labels swapped"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_broken_mends_nothing(world: World, method: str, broken: str) -> None:
    right, wrong = world.compare(method), world.compare(method, broken=broken)
    assert wrong.gain("hallucinated").high >= 0
    assert wrong.gain("score").low <= 0
    assert wrong.exists_gain("adversarial").low <= 0
    assert _more(wrong, right).low > 0.1


def test_mdpo_beats_dpo_where_only_looking_helps(world: World) -> None:
    """Chosen and rejected are both true and differ in wording alone: DPO learns that and never looks."""
    dpo, mdpo = (world.compare(method, condition="style") for method in METHODS)
    assert dpo.gain("hallucinated").high >= 0
    assert mdpo.gain("hallucinated").high < -0.1
    assert mdpo.gain("recall").low >= RECALL_MARGIN or mdpo.gain("recall").high >= 0
    assert _more(mdpo, dpo).high < 0


def test_comparing_pictures_alone_makes_it_look_even_without_the_anchor(world: World) -> None:
    dpo = world.compare("dpo", condition="style")
    pictures = world.compare("mdpo", condition="style", overrides=WITHOUT_ANCHOR)
    assert pictures.gain("hallucinated").high < -0.1
    assert _more(pictures, dpo).high < 0


def test_the_anchor_mends_beyond_what_comparing_answers_does(world: World) -> None:
    """It trains on the chosen answers, which are true here, and so has the larger share of mDPO's gain."""
    anchored = world.compare("mdpo", overrides=WITHOUT_PICTURES)
    assert _more(anchored, world.compare("dpo")).high < 0
