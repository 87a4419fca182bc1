"""Language models that learn from their own answers: whole runs, cut and continued, and what they refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmalign.errors import ConfigError, TrainingError
from mmalign.testing.accelerator import forget_accelerator
from mmalign.testing.run_tasks import Letters
from mmalign.testing.variants import variants
from mmalign.train.config import load_run, resolved_content
from mmalign.train.dry_run import describe
from mmalign.train.online import is_offline
from mmalign.train.run import prepare, train


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
        forget_accelerator()
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


@pytest.mark.parametrize("method", variants(METHODS, fast=("online_dpo",)))
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


# --- mixing -------------------------------------------------------------------------------------------------


def test_the_share_of_offline_micro_batches_is_what_was_asked_for() -> None:
    for share, tolerance in ((0.0, 0.0), (0.25, 0.03), (0.5, 0.03), (1.0, 0.0)):
        found = sum(is_offline(3, number, share) for number in range(2000)) / 2000
        assert found == pytest.approx(share, abs=tolerance)
    assert [is_offline(3, number, 0.5) for number in range(20)] != [
        is_offline(4, number, 0.5) for number in range(20)
    ]


@pytest.mark.parametrize(("share", "writes"), [(1.0, False), (0.0, True)])
def test_a_mixture_of_one_thing_is_that_thing(online_run, share: float, writes: bool) -> None:
    reward = Letters()
    rollout = {"offline_share": share}
    result = train(
        online_run(f"share{share}", "mixed_dpo", rollout=rollout, train={"steps": 2}), reward=reward
    )
    assert bool(reward.seen) == writes
    assert all(("rollout/kept" in record) == writes for record in result.records)


def test_the_coins_of_a_run_are_those_of_its_micro_batches(online_run) -> None:
    loop, loader = prepare(
        online_run("coins", "mixed_dpo", train={"steps": 7, "batch_size": 1}), reward=Letters()
    )
    lanes: list[str] = []
    lane = loop.online._lane
    loop.online._lane = lambda: [found := lane(), lanes.append(found[0])][0]
    loop.train(iter(loader))
    assert [name == "offline" for name in lanes] == [is_offline(0, number, 0.5) for number in range(7)]
    assert set(lanes) == {"offline", "queue"}


# --- what is said, and what is refused ----------------------------------------------------------------------


def test_a_dry_run_counts_answers_that_nobody_has_written_yet(online_run, capsys) -> None:
    described = describe(online_run("dry", "online_dpo", rollout={"max_new_tokens": 23}))
    said = " ".join(capsys.readouterr().out.split())
    assert "answers of 23 tokens are written while training" in said
    assert described["memory"]["activations of 2 prompts"] > 0


def test_a_resolved_run_can_be_read_again(online_run, tmp_path: Path) -> None:
    for method in METHODS:
        run = online_run(method, method)
        path = tmp_path / f"{method}-again.yaml"
        path.write_text(yaml.safe_dump(resolved_content(run), sort_keys=False))
        assert load_run(path).config.rollout == run.config.rollout


def test_rounds_without_any_pair_end_the_run(online_run) -> None:
    run = online_run("ties", "online_dpo", rollout={"max_new_tokens": 1, "prompts": 1, "samples": 2})
    with pytest.raises(TrainingError, match=r"50 rounds of samples in a row gave nothing.*kept 0, tied"):
        train(run, reward=Same())


class OfPixels:
    name, takes_timestep, is_differentiable = "of pixels", False, False

    def __call__(self, pixels: Any, prompts: Any, timestep: Any = None) -> Any:
        raise AssertionError("a reward of pictures was asked about answers")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (None, r"rollout\.reward: got None, expected a reward: start the run by `mmalign train`"),
        (
            OfPixels(),
            r"got 'of pixels, which judges pictures', expected a reward of answers",
        ),
    ],
)
def test_a_reward_that_judges_no_answers_is_refused(online_run, reward: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(online_run("refused", "online_dpo"), reward=reward)


@pytest.mark.parametrize(
    ("method", "rollout", "message"),
    [
        ("online_dpo", {"offline_share": 0.5}, r"rollout\.offline_share: got 0\.5, expected no value"),
        ("online_dpo", {"samples": 1}, r"rollout\.samples: got 1, expected at least 2"),
        ("online_dpo", {"reward": None}, r"rollout\.reward: got None"),
        ("online_dpo", {"num_steps": 5}, r"got num_steps: answers are written token by token"),
        ("online_bdhs", {"reward": "letters"}, r"rollout\.reward: got 'letters', expected no value"),
        ("dpo", {"samples": 2}, r"rollout: .*expected no such section: method dpo learns from data alone"),
    ],
)
def test_settings_that_mean_nothing_for_a_method_are_refused(
    make_dialogue_run, method: str, rollout: dict[str, Any], message: str
) -> None:
    given = {**METHODS.get(method, {}), **rollout}
    with pytest.raises(ConfigError, match=message):
        make_dialogue_run("refused", method=method, rollout=given)
