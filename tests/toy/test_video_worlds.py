"""Methods improve the toy world of video through the real loop; broken ones do not.

"Improves" is a claim about captions: the 95 % interval of the mean gain in total reward, paired over held-out
captions shown from the same noise, lies above zero. What is broken: the judge is always wrong, or the
objective has the wrong sign. Labels in time at a third of the labels: what is held is what
docs/video-world.md found, and no more.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmalign.toy.comparison import Interval, bootstrap_mean
from mmalign.toy.video_scenes import held_out_prompts
from mmalign.toy.video_trials import BASE, NUM_LABELS, TRIALS, Shown, World

pytestmark = pytest.mark.slow

SEED = 0
METHODS = tuple(name for name, trial in TRIALS.items() if trial.group == "methods")
BROKEN = tuple(name for name, trial in TRIALS.items() if trial.group in ("swapped", "flipped"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tried:
    """A world, what its base shows, and trials that were run already."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder, SEED)
        self.base = self.world.base()
        self.known: dict[str, Shown] = {}

    def shown(self, name: str) -> Shown:
        if name not in self.known:
            self.known[name] = self.world.show(TRIALS[name])
        return self.known[name]

    def gain(self, name: str, axis: str = "total", *, over: str = BASE) -> Interval:
        """Over the base, or over another trial; printed."""
        before = self.base if over == BASE else self.shown(over)
        values = self.shown(name).of(axis) - before.of(axis)
        found = bootstrap_mean(values, prompts=held_out_prompts(len(values), seed=SEED))
        ends = f"{found.low:+.3f} to {found.high:+.3f}"
        print(f"{name} over {over}, {axis}: {found.value:+.3f}, 95 % interval {ends}")
        return found


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_improves_held_out_reward_beyond_its_interval_and_keeps_moving(
    tried: Tried, name: str
) -> None:
    assert tried.gain(name).low > 0.0
    for axis in ("direction", "identity", "pixels"):
        tried.gain(name, axis)
    assert tried.shown(name).of("pixels").mean() > 0.9 * tried.base.of("pixels").mean()


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_judge_or_a_wrong_sign_does_harm(tried: Tried, name: str) -> None:
    assert tried.gain(name).high < 0.0


def test_a_third_of_the_labels_in_time_improves_and_keeps_moving(tried: Tried) -> None:
    name, whole = "segments: DenseDPO, a third", "whole clips: DPO"
    assert (tried.shown(name).num_labels, tried.shown(whole).num_labels) == (NUM_LABELS // 3, NUM_LABELS)
    assert tried.gain(name).low > 0.0
    assert tried.gain(name, over=whole).low > -0.05
    assert tried.shown(name).of("pixels").mean() > 0.9 * tried.shown(whole).of("pixels").mean()


def test_labels_in_time_tell_what_labels_of_crossed_clips_cannot(tried: Tried) -> None:
    """Each clip goes astray in the half in which the other does not."""
    whole = "crossed, whole clips: DPO"
    assert tried.gain(whole).high < 0.0
    assert tried.gain("crossed, segments: DenseDPO").low > 0.0
    assert tried.gain("crossed, segments: DenseDPO", over=whole).low > 0.0
    assert tried.gain("crossed, segments: DenseDPO, a third", over=whole).low > 0.0
