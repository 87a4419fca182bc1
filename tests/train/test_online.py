"""Online runs on tiny models: every kind of rollout trains, resumes exactly, and refuses what cannot work."""

from pathlib import Path

import pytest
import torch

from mmalign.errors import CheckpointError, ConfigError, TrainingError
from mmalign.files import load_tensors
from mmalign.testing.variants import variants
from mmalign.train.run import prepare, train


class Brightness:
    """Mean of the pixels: differentiable, and different for every sample."""

    name = "brightness"

    def __init__(self, *, takes_timestep=False, is_differentiable=True):
        self.takes_timestep, self.is_differentiable = takes_timestep, is_differentiable
        self.seen = []

    def __call__(self, pixels, prompts, timestep=None):
        assert len(prompts) == len(pixels)
        self.seen.append(None if timestep is None else timestep.tolist())
        return 50.0 * pixels.flatten(1).mean(1)


KINDS = {
    "online_diffusion_dpo": {"objective": {"beta": 500.0}, "rollout": {"samples": 3, "prompts": 3}},
    "spo": {"rollout": {"samples": 3, "prompts": 2, "threshold": 0.0, "divert_start": 0}},
    "diffusion_dro": {"rollout": {"capacity": 3}},
    "seppo": {"objective": {"beta": 500.0}, "rollout": {"refresh_every": 1, "capacity": 3}},
    "sspo": {"objective": {"beta": 500.0}, "rollout": {"refresh_every": 2, "capacity": 2}},
    "draft": {"rollout": {"gradient_steps": 2}},
    "flow_grpo": {"rollout": {"samples": 3, "prompts": 2, "train_share": 0.5}},
}
NEED_REWARD = ("online_diffusion_dpo", "spo", "draft", "flow_grpo")


@pytest.fixture
def online_run(make_run):
    def make(name, method, **sections):
        settings = KINDS[method]
        rollout = {"num_steps": 4, **settings["rollout"], **sections.pop("rollout", {})}
        if method in NEED_REWARD:
            rollout.setdefault("reward", "brightness")
        train_settings = {"steps": 4, "batch_size": 2, **sections.pop("train", {})}
        return make_run(
            name,
            method=method,
            objective=settings.get("objective", {}),
            rollout=rollout,
            train=train_settings,
            **sections,
        )

    return make


def reward_for(method):
    if method not in NEED_REWARD:
        return None
    return Brightness(takes_timestep=method == "spo")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize("method", KINDS)
def test_every_kind_of_rollout_trains(method, online_run):
    result = train(online_run(method, method), reward=reward_for(method))
    assert result.finished
    assert result.steps == 4
    moved = max(
        value.abs().max().item()
        for name, value in weights_of(result.folder).items()
        if "up" in name or "_B" in name
    )
    assert moved > 0
    assert all(record["loss"] == record["loss"] for record in result.records)


@pytest.mark.parametrize("method", variants(KINDS, fast=("spo", "draft")))
def test_an_interrupted_run_continues_as_if_nothing_had_happened(method, online_run):
    whole = train(online_run("whole", method, train={"checkpoint_every": 1}), reward=reward_for(method))
    settings = {"checkpoint_every": 1}
    loop, loader = prepare(online_run("cut", method, train=settings), reward=reward_for(method))
    stop_at = 3
    hook = loop.on_update

    def interrupt(step: int) -> None:
        hook(step)
        loop.progress.interrupted = step >= stop_at - 1

    loop.on_update = interrupt
    loop.train(iter(loader))
    assert loop.progress.step == stop_at
    resumed = train(online_run("cut", method, train=settings), reward=reward_for(method))
    assert resumed.finished
    first, second = weights_of(whole.folder), weights_of(resumed.folder)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    names = [set(record) for record in resumed.records]
    assert names == [set(record) for record in whole.records]
    for name in ("rollout/reward", "rollout/score", "rollout/kept", "reward/policy"):
        expected = [record.get(name) for record in whole.records]
        assert [record.get(name) for record in resumed.records] == expected, name


@pytest.mark.slow
def test_facts_of_a_round_survive_an_interruption_within_a_logging_interval(online_run):
    """A round of many items serves several steps: the record after a restart still knows it."""
    settings = {"rollout": {"samples": 3, "prompts": 8}, "log": {"every": 4, "trackers": []}}
    method = "online_diffusion_dpo"
    whole = train(online_run("whole", method, **settings), reward=reward_for(method))
    cut = {**settings, "train": {"checkpoint_every": 1}}
    loop, loader = prepare(online_run("cut", method, **cut), reward=reward_for(method))
    loop.on_update = lambda step: setattr(loop.progress, "interrupted", step >= 1)
    loop.train(iter(loader))
    resumed = train(online_run("cut", method, **cut), reward=reward_for(method))
    assert resumed.records[-1]["rollout/reward"] == whole.records[-1]["rollout/reward"]
    assert resumed.records[-1]["rollout/spread"] == whole.records[-1]["rollout/spread"]


# ------------------------------------------------------------------------------------ what is said of a run


@pytest.mark.slow
def test_what_is_no_denoising_error_is_not_named_one(online_run):
    found = {}
    for method in ("spo", "draft", "online_diffusion_dpo", "diffusion_dro"):
        result = train(online_run(method, method, train={"steps": 2}), reward=reward_for(method))
        found[method] = set().union(*result.records)
    assert {"distance/policy_chosen", "distance/reference_rejected", "rollout/score"} <= found["spo"]
    assert {"reward/policy", "reward/base"} <= found["draft"]
    assert not any(name.startswith("error/") for name in found["spo"] | found["draft"])
    for method in ("online_diffusion_dpo", "diffusion_dro"):
        assert "error/relative_chosen" in found[method]


def test_the_verdict_of_a_run_speaks_of_its_reward_first(online_run):
    result = train(online_run("draft", "draft"), reward=reward_for("draft"))
    assert result.verdict[0].startswith("The reward of fresh samples went from")
    assert result.records[0]["reward/policy"] == result.records[0]["reward/base"]


def test_a_run_says_what_it_samples_and_what_to_watch(online_run, capsys):
    train(online_run("spo", "spo", train={"steps": 1}), reward=reward_for("spo"))
    said = capsys.readouterr().out
    assert "rollout: stepwise, 4 steps, guidance 5, eta 1; scored by brightness" in said
    assert "guard: nothing to watch" in said
    assert "a loss near log 2 = 0.693 is normal here" in said


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("method", "reward", "message"),
    [
        ("online_diffusion_dpo", None, r"rollout.reward: got None, expected a reward: start the run by"),
        ("spo", Brightness(), r"which judges finished images.*expected a step-aware preference model"),
        ("draft", Brightness(is_differentiable=False), "through which no gradient flows"),
    ],
)
def test_a_reward_that_a_method_cannot_use_is_refused(method, reward, message, online_run):
    with pytest.raises(ConfigError, match=message):
        prepare(online_run("refused", method), reward=reward)


@pytest.mark.parametrize(
    ("method", "sections", "message"),
    [
        ("spo", {"rollout": {"reward": None}}, r"Example: rollout\.reward=pickscore_v1"),
        ("spo", {"image": {"prompt_dropout": 0.2}}, r"image\.prompt_dropout: got 0\.2, expected 0"),
        (
            "flow_grpo",
            {"guard": {"action": "rollback"}},
            r"guard\.action: got .rollback., expected warn or off",
        ),
        ("seppo", {"adapter": {"dropout": 0.1}}, r"earlier checkpoints.*adapter\.dropout 0"),
        ("diffusion_dpo", {"rollout": {"samples": 4}}, r"expected no such section: method diffusion_dpo"),
    ],
)
def test_settings_that_mean_nothing_for_a_method_are_refused(method, sections, message, online_run, make_run):
    make = (
        online_run
        if method in KINDS
        else lambda name, method, **given: make_run(name, method=method, **given)
    )
    with pytest.raises(ConfigError, match=message):
        make("refused", method, **sections)


def test_a_buffer_below_a_micro_batch_is_refused(online_run):
    run = online_run("refused", "diffusion_dro", rollout={"capacity": 1})
    with pytest.raises(
        ConfigError, match=r"rollout\.capacity: got 1, expected at least train\.batch_size = 2"
    ):
        prepare(run)


def test_guidance_of_a_model_that_is_told_its_guidance_is_refused(online_run, monkeypatch):
    from mmalign.diffusion.family import ImageModel

    monkeypatch.setattr(ImageModel, "embeds_guidance", True)
    with pytest.raises(ConfigError, match=r"guidance_scale: got 5.*expected 1 for a model that is told"):
        prepare(online_run("refused", "spo"), reward=reward_for("spo"))


def test_round_after_round_without_an_item_ends_the_run(online_run):
    run = online_run(
        "empty", "online_diffusion_dpo", rollout={"threshold": 0.99, "num_steps": 1, "prompts": 1}
    )
    with pytest.raises(TrainingError, match=r"50 rounds of samples in a row.*kept 0.*rollout\.threshold"):
        train(run, reward=lambda_reward(lambda pixels: 1e-3 * pixels.flatten(1).mean(1)))


def test_a_reward_that_always_fails_is_named_as_the_reason(online_run):
    run = online_run("failing", "online_diffusion_dpo", rollout={"num_steps": 1, "prompts": 1})
    with pytest.raises(TrainingError, match="the reward fails on every sample"):
        train(run, reward=lambda_reward(lambda pixels: torch.full((len(pixels),), torch.nan)))


def lambda_reward(function):
    reward = Brightness()
    reward.__class__ = type("Other", (Brightness,), {"__call__": lambda self, pixels, *_: function(pixels)})
    return reward


def test_a_checkpoint_of_more_processes_is_not_continued_on_fewer(online_run):
    settings = {"steps": 1}
    train(
        online_run("run", "online_diffusion_dpo", train=settings), reward=reward_for("online_diffusion_dpo")
    )
    loop, _ = prepare(
        online_run("other", "online_diffusion_dpo", train=settings), reward=reward_for("online_diffusion_dpo")
    )
    with pytest.raises(CheckpointError, match="holds no samples of process 0"):
        loop.online.load_state_dict({})
    assert loop.identity["processes"] == 1


# --------------------------------------------------------------------------------------------------- details


def test_adapters_drop_nothing_while_the_policy_samples(online_run):
    run = online_run("dropout", "flow_grpo", adapter={"dropout": 0.5}, train={"steps": 2, "accumulation": 2})
    loop, loader = prepare(run, reward=reward_for("flow_grpo"))
    collect, training = loop.online.collector.collect, []

    def watched(batch):
        training.append(any(module.training for module in loop.trainables.dropouts))
        return collect(batch)

    object.__setattr__(loop.online, "collector", Watched(loop.online.collector, watched))
    loop.train(iter(loader))
    assert len(training) >= 1
    assert not any(training)
    assert not any(module.training for module in loop.trainables.dropouts)


class Watched:
    def __init__(self, inner, collect):
        self.inner, self.collect = inner, collect

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_after_a_rollback_other_prompts_are_sampled(online_run):
    """From the same weights with the same prompts a run would diverge the same way again."""
    run = online_run("rolled", "diffusion_dro", guard={"action": "rollback"}, train={"steps": 3})
    loop, _ = prepare(run)

    def first_ids():
        return next(loop.reopen()).ids

    before = first_ids()
    loop.guard.state.skipped = 1
    assert first_ids() != before
