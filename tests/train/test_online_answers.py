"""Language models that learn from their own answers: whole runs, cut and continued, and what they refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.train.run import prepare, train


class Letters:
    """The more different letters, the better."""

    name = "letters"

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def score_answers(self, rows: Any, answers: Any) -> list[float]:
        self.seen += [(row.id, answer) for row, answer in zip(rows, answers, strict=True)]
        return [float(len(set(answer))) for answer in answers]


class Same(Letters):
    """No answer is better than another."""

    def score_answers(self, rows: Any, answers: Any) -> list[float]:
        return [1.0 for _ in answers]


METHODS: dict[str, dict[str, Any]] = {
    "online_dpo": {"samples": 3, "prompts": 3, "reward": "letters"},
    "mixed_dpo": {"samples": 2, "prompts": 2, "reward": "letters"},
    "online_bdhs": {"similarity": "equal", "hiding_rounds": 2},
}


@pytest.fixture
def online_run(make_dialogue_run):
    def make(name: str, method: str, **sections: Any) -> Any:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        rollout = {"max_new_tokens": 7, **METHODS[method], **sections.pop("rollout", {})}
        settings = {"steps": 4, "checkpoint_every": 2, **sections.pop("train", {})}
        return make_dialogue_run(name, method=method, rollout=rollout, train=settings, **sections)

    return make


def reward_for(method: str) -> Letters | None:
    return None if method == "online_bdhs" else Letters()


def weights_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")


class Killed(BaseException):
    """What a test raises in place of SIGKILL."""


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_between_checkpoints_goes_on_bit_for_bit(
    method: str, online_run, without_timings, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"train": {"steps": 5, "accumulation": 2}, "log": {"every": 2}}
    whole = train(online_run("whole", method, **shared), reward=reward_for(method))
    loop, loader = prepare(online_run("cut", method, **shared), reward=reward_for(method))

    def kill(done: int) -> None:
        if done == 3:
            raise Killed

    loop.on_update = kill
    with pytest.raises(Killed):
        loop.train(iter(loader))
    resumed = train(online_run("cut", method, **shared), reward=reward_for(method))
    got, expected = weights_of(tmp_path / "cut", 5), weights_of(tmp_path / "whole", 5)
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []
    assert max(float(value.abs().max()) for name, value in expected.items() if "lora_B" in name) > 0
    assert without_timings(resumed.records) == without_timings(whole.records)
    assert any("rollout/kept" in record for record in whole.records)
