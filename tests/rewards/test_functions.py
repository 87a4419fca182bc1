"""A function of the user's own as a reward: found by name, held to one number per sample."""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign import rewards
from mmalign.errors import ConfigError, RowError
from mmalign.rewards import Reward, Sample
from mmalign.rewards.functions import FunctionReward, load_function

SOURCE = "def words(batch):\n    return [len(sample.prompt.split()) for sample in batch]\n\nlimit = 7\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's on the path."""
    (tmp_path / "rewards_of_a_user.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "rewards_of_a_user"


def made(*prompts: str) -> list[Sample]:
    return [Sample(prompt=prompt) for prompt in prompts]


def test_module_and_function_name_a_reward(module: str) -> None:
    reward = rewards.load(f"{module}:words", scale="words")
    assert isinstance(reward, Reward)
    assert reward.card.name == f"{module}:words"
    assert reward.card.scale == "words"
    scored = reward.score(made("a", "a b c", ""), batch_size=2)
    assert scored.values.tolist() == [[1.0], [3.0], [0.0]]
    assert scored.values.dtype == torch.float64
    assert scored.errors == (None,) * 3


def test_a_missing_module_or_function_is_named_with_what_there_is(module: str) -> None:
    with pytest.raises(ConfigError, match=r"reward nowhere:words: got 'nowhere'.*PYTHONPATH"):
        load_function("nowhere:words")
    with pytest.raises(ConfigError, match=rf"got 'wrods', expected a function of {module} \(words\)"):
        load_function(f"{module}:wrods")
    with pytest.raises(ConfigError, match="got 'limit', expected a function"):
        load_function(f"{module}:limit")


def test_a_missing_import_inside_the_module_is_not_taken_for_a_missing_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import a_library_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_library_nobody_has"):
        load_function("needs_more:words")


def test_none_and_what_is_not_finite_are_errors_of_their_sample() -> None:
    answers = {"a": 1.0, "b": None, "c": math.inf, "d": math.nan}
    reward = FunctionReward(lambda batch: [answers[one.prompt] for one in batch], name="mine")
    scored = reward.score(made("a", "b", "c", "d"))
    assert scored.errors == (None, *["mine: the value is not finite"] * 3)
    assert [math.isfinite(value) for value in scored.first().tolist()] == [True, False, False, False]


def test_another_number_of_values_is_refused() -> None:
    def short(batch: Sequence[Sample]) -> list[float]:
        return [1.0]

    with pytest.raises(ConfigError, match=r"mine: got \[1 values\], expected 2, one per sample"):
        FunctionReward(short, name="mine").score(made("a", "b"))


def test_no_samples_are_no_call() -> None:
    def never(batch: Sequence[Sample]) -> list[float]:
        raise AssertionError

    assert FunctionReward(never, name="mine").score([]).values.shape == (0, 1)


def test_the_fingerprint_is_of_name_and_source(module: str, tmp_path: Path) -> None:
    def one(batch: Sequence[Sample]) -> list[float]:
        return [1.0 for _ in batch]

    def two(batch: Sequence[Sample]) -> list[float]:
        return [2.0 for _ in batch]

    prints = {
        FunctionReward(one, name="a").fingerprint(),
        FunctionReward(two, name="a").fingerprint(),
        FunctionReward(one, name="b").fingerprint(),
    }
    assert len(prints) == 3
    assert load_function(f"{module}:words").fingerprint() == load_function(f"{module}:words").fingerprint()


class Adder:
    """A callable object: its state is no source text."""

    def __init__(self, number: Any) -> None:
        self.number = number

    def __call__(self, batch: Sequence[Sample]) -> list[float]:
        return [self.number for _ in batch]


def test_a_callable_object_has_a_fingerprint_too() -> None:
    assert (
        FunctionReward(Adder(1.0), name="a").fingerprint()
        == FunctionReward(Adder(1.0), name="a").fingerprint()
    )
    assert (
        FunctionReward(Adder(1.0), name="a").fingerprint()
        != FunctionReward(Adder(2.0), name="a").fingerprint()
    )


def test_what_a_function_is_bound_to_is_a_part_of_its_fingerprint() -> None:
    def bound(number: float) -> Callable[[Sequence[Sample]], list[float]]:
        return lambda batch: [number for _ in batch]

    def free(number: float, batch: Sequence[Sample]) -> list[float]:
        return [number for _ in batch]

    for make in (bound, lambda number: partial(free, number), lambda number: Adder(number).__call__):
        prints = [FunctionReward(make(number), name="a").fingerprint() for number in (1.0, 1.0, 2.0)]
        assert prints[0] == prints[1] != prints[2]


def test_the_command_finds_a_module_in_the_folder_it_is_run_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_the_user.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    assert load_function("beside_the_user:words").score(made("a b")).first().tolist() == [2.0]


def test_a_function_may_refuse_a_sample() -> None:
    def picky(batch: Sequence[Sample]) -> list[float]:
        if any(one.prompt == "b" for one in batch):
            raise RowError("b is refused", reason="test")
        return [1.0] * len(batch)

    scored = FunctionReward(picky, name="mine").score(made("a", "b", "c"))
    assert scored.errors == (None, "b is refused", None)
    assert scored.first()[[0, 2]].tolist() == [1.0, 1.0]


DECORATED = """import torch

def helper(sample):
    return NUMBER

@torch.no_grad()
def judged(batch):
    return [helper(sample) for sample in batch]
"""


@pytest.mark.slow
def test_a_decorated_function_is_the_same_in_every_process_and_another_when_what_it_calls_changes(
    tmp_path: Path,
) -> None:
    import subprocess

    code = (
        "from mmalign.rewards.functions import load_function as load; "
        "print(load('decorated_reward:judged').fingerprint())"
    )
    prints = []
    for number in (1.0, 1.0, 2.0):
        (tmp_path / "decorated_reward.py").write_text(DECORATED.replace("NUMBER", str(number)))
        found = subprocess.run(
            [sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        prints.append(found.stdout)
    assert prints[0] == prints[1] != prints[2]


def test_arrays_and_networks_a_reward_holds_count_by_their_values() -> None:
    def with_array(number: float) -> FunctionReward:
        held = torch.full((2000,), 0.0)
        held[1000] = number  # in the middle, where a printed tensor is cut
        return FunctionReward(Adder(held), name="a")

    prints = [with_array(number).fingerprint() for number in (1.0, 1.0, 2.0)]
    assert prints[0] == prints[1] != prints[2]
    layer = torch.nn.Linear(2, 3)
    before = FunctionReward(Adder(layer), name="a").fingerprint()
    with torch.no_grad():
        layer.weight += 1.0
    assert FunctionReward(Adder(layer), name="a").fingerprint() != before


def test_a_function_that_calls_itself_has_a_fingerprint() -> None:
    def deep(batch: Sequence[Sample]) -> list[float]:
        return [] if not batch else [1.0, *deep(batch[1:])]

    assert FunctionReward(deep, name="a").fingerprint() == FunctionReward(deep, name="a").fingerprint()
