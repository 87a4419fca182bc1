"""Alignment mends the toy world of dialogues through the real loop; broken in a known way, it does not.

"Mends" is a claim about pictures: the 95 % interval of the change in the share of descriptions that
hallucinate, paired over held-out pictures, lies below zero, recall does not fall (its interval holds zero or
lies above `RECALL_MARGIN`), and yes-no questions are answered no worse. What is broken: pictures belong to
other pairs (nothing is to be learnt by looking), labels are swapped.

Run with -s to see the numbers, among them mean length; docs/lab-notes.md has those of three seeds.
"""

from collections.abc import Iterator

import pytest
import torch

from mmalign.toy.comparison import Interval, bootstrap_mean
from mmalign.toy.dialogue_claims import World, numbers
from mmalign.toy.dialogue_exam import ExamComparison

pytestmark = pytest.mark.slow

METHODS = ("DPO", "mDPO")
RECALL_MARGIN = -0.01
"""Where recall changes at all, a larger loss than this must be outside the interval."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The network is so small that two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("dialogues"), seed=0)


def _compare(world: World, name: str) -> ExamComparison:
    comparison = world.compare(name)
    print(f"\n{name}")
    for key, found in numbers(comparison).items():
        change = f"{found['change']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
        print(f"  {key:<14} {found['base']:6.3f} -> {found['aligned']:6.3f}  {change}")
    return comparison


def _more(one: ExamComparison, other: ExamComparison) -> Interval:
    """By how much more one of two trainings lets descriptions hallucinate."""
    return bootstrap_mean(one.differences("hallucinated") - other.differences("hallucinated"))


def _keeps_recall(comparison: ExamComparison) -> bool:
    recall = comparison.gain("recall")
    return recall.low >= RECALL_MARGIN or recall.high >= 0


@pytest.mark.parametrize("name", METHODS)
def test_a_method_hallucinates_less_on_held_out_pictures_and_keeps_recall(world: World, name: str) -> None:
    comparison = _compare(world, name)
    assert comparison.gain("hallucinated").high < -0.1
    assert _keeps_recall(comparison)
    assert comparison.exists_gain("random").high >= 0
    assert comparison.exists_gain("adversarial").low > 0


@pytest.mark.parametrize("broken", ["pictures shuffled", "labels swapped"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_is_broken_mends_nothing(world: World, name: str, broken: str) -> None:
    right, wrong = (_compare(world, trial) for trial in (name, f"{name}, {broken}"))
    assert wrong.gain("hallucinated").high >= 0
    assert wrong.gain("score").low <= 0
    assert wrong.exists_gain("adversarial").low <= 0
    assert _more(wrong, right).low > 0.1


def test_mdpo_beats_dpo_where_only_looking_helps(world: World) -> None:
    """Chosen and rejected are both true and differ in wording alone: DPO learns that and need never look."""
    dpo, mdpo = (_compare(world, f"style: {name}") for name in METHODS)
    assert mdpo.gain("hallucinated").high < -0.1
    assert _keeps_recall(mdpo)
    assert _more(mdpo, dpo).high < 0


def test_comparing_pictures_makes_it_look_even_without_the_anchor(world: World) -> None:
    dpo, pictures = (_compare(world, f"style: {name}") for name in ("DPO", "mDPO without its anchor"))
    assert pictures.gain("hallucinated").high < -0.1
    assert _keeps_recall(pictures)
    assert _more(pictures, dpo).high < 0


def test_the_anchor_mends_beyond_what_comparing_answers_does(world: World) -> None:
    """It trains on the chosen answers, which are true here: a large share of mDPO's gain is its."""
    dpo, anchored = (_compare(world, name) for name in ("DPO", "mDPO without its pair of pictures"))
    assert _more(anchored, dpo).high < 0
