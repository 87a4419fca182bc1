"""Runs of one-step generators on tiny models: they train, resume bit by bit, and refuse what cannot work."""

import pytest
import torch

from mmalign.errors import CheckpointError, ConfigError
from mmalign.files import load_tensors
from mmalign.testing.variants import variants
from mmalign.train.run import describe, prepare, train
from mmalign.train.score_model import make_score_model


class Brightness:
    """Mean of the pixels."""

    name, takes_timestep = "brightness", False

    def __init__(self, *, is_differentiable=True):
        self.is_differentiable = is_differentiable

    def __call__(self, pixels, prompts, timestep=None):
        return 50.0 * pixels.flatten(1).mean(1)


@pytest.fixture
def generator_run(make_run):
    def make(name="run", *, one_step=None, rollout=None, **sections):
        return make_run(
            name,
            method="diff_instruct_star",
            rollout={
                "reward": "brightness",
                "one_step": {"score_steps": 2, **(one_step or {})},
                **(rollout or {}),
            },
            train={"steps": 3, "batch_size": 2, **sections.pop("train", {})},
            **sections,
        )

    return make


def weights_of(result):
    return {name: value.detach().clone() for name, value in result.trainables.parameters.items()}


VARIANTS = {
    "shared": {},
    "own_network": {"one_step": {"score_adapter": "none"}},
    "whole_generator": {"adapter": {"kind": "none"}, "train": {"learning_rate": 1e-5}},
    "several": {"rollout": {"samples": 3}, "train": {"accumulation": 2}},
    "kl": {"one_step": {"distance": "kl"}},
    "distilled": {"one_step": {"reward_weight": 0.0, "score_rank": 2}},
}


@pytest.mark.parametrize("variant", variants(VARIANTS, fast=("shared",)))
def test_a_generator_trains(variant, generator_run):
    result = train(generator_run(**VARIANTS[variant]), reward=Brightness())
    assert result.finished
    assert all(record["grad_norm"] > 0 for record in result.records)
    assert all(record["rollout/score_error"] > 0 for record in result.records)
    assert result.records[0]["dropped_updates"] == 0
    assert ("rollout/reward" in result.records[0]) == (variant != "distilled")
    # The score model has made two updates when the first distance is taken.
    assert result.records[0]["rollout/distance"] > 0


def interrupted(run, stop_at):
    loop, loader = prepare(run, reward=Brightness())

    def interrupt(step):
        loop.progress.interrupted = step >= stop_at - 1

    loop.on_update = interrupt
    loop.train(iter(loader))
    assert loop.progress.step == stop_at
    return loop


@pytest.mark.parametrize("variant", ["shared", pytest.param("own_network", marks=pytest.mark.slow)])
def test_an_interrupted_run_continues_as_if_nothing_had_happened(variant, generator_run):
    settings = {**VARIANTS[variant], "train": {"steps": 4, "checkpoint_every": 1}}
    whole = train(generator_run("whole", **settings), reward=Brightness())
    interrupted(generator_run("cut", **settings), 2)
    resumed = train(generator_run("cut", **settings), reward=Brightness())
    first, second = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    last = [
        load_tensors(each.folder / "checkpoints/step-00000004/rollout.safetensors")
        for each in (whole, resumed)
    ]
    assert any(".collector.optimizer." in name for name in last[0])
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())


def test_the_teacher_never_moves_and_the_score_model_does(generator_run):
    loop, loader = prepare(generator_run(), reward=Brightness())
    online = loop.online.collector.online
    noised, time = torch.randn(2, *loop.model.latent_shape), torch.tensor([300, 700])
    rows = loop.model.prompt_conditioning(["a", "b"]).rows(1)

    def answers():
        with torch.no_grad(), online.teacher() as denoise:
            frozen = denoise(noised, time, rows)
        with torch.no_grad():
            return frozen, online.score(noised, time, rows), loop.parts.denoise(noised, time, rows)

    before = answers()
    assert all(torch.equal(before[0], each) for each in before)
    loop.train(iter(loader))
    after = answers()
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    assert not torch.equal(before[2], after[2])
    assert not torch.equal(after[1], after[2])


def test_another_model_can_be_the_teacher(generator_run, tmp_path):
    from mmalign.testing.tiny import write_tiny_sd15

    other = write_tiny_sd15(tmp_path / "teacher", seed=7)
    loop, loader = prepare(generator_run(one_step={"teacher": str(other)}), reward=Brightness())
    online = loop.online.collector.online
    noised, time = torch.randn(2, *loop.model.latent_shape), torch.tensor([300, 700])
    rows = loop.model.prompt_conditioning(["a", "b"]).rows(1)
    with torch.no_grad(), online.teacher() as denoise:
        assert not torch.allclose(denoise(noised, time, rows), loop.parts.denoise(noised, time, rows))
    loop.train(iter(loader))


def test_gradients_of_all_ranks_are_summed(generator_run):
    """Two ranks with equal data are one rank: sums double, means do not."""

    def moved(times):
        loop, _ = prepare(generator_run(f"times-{times}"), reward=Brightness())
        online = loop.online.collector.online
        sizes = []

        def sum_across(value):
            sizes.append(value.numel())
            return times * value

        online.sum_across = sum_across
        apply = online.updater.apply

        def noted(factor, **settings):
            factors.append(float(factor))
            return apply(factor, **settings)

        online.updater.apply = noted
        weight = list(online.trainables.parameters.values())[1]
        before = weight.detach().clone()
        valid = torch.tensor([True, True, False])
        error = online.fit(lambda: (weight + 1).square().sum() * torch.tensor([1.0, 3.0, 9.0]), valid)
        assert sizes == [2 + online.trainables.count]
        return error, weight.detach() - before, float((before + 1).square().sum())

    factors = []
    one, two = moved(1), moved(2)
    assert factors == [1 / 2, 1 / 4]  # of the sum over two valid rows, and over four
    assert one[0] == two[0] == pytest.approx(2 * one[2])
    assert torch.equal(one[1], two[1])
    assert one[1].abs().min() > 0


REFUSED = {
    "two steps": ({"rollout": {"num_steps": 2}}, r"rollout\.num_steps: got 2"),
    "guidance": ({"rollout": {"guidance_scale": 3.0}}, r"rollout\.guidance_scale: got 3"),
    "no such timestep": ({"one_step": {"timestep": 1000}}, "one-step generator timestep: got 1000"),
    "reference": ({"reference": {"kind": "ema"}}, r"rollout\.one_step\.teacher"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_cannot_work_are_refused(what, generator_run):
    from mmalign.errors import MmalignError

    settings, message = REFUSED[what]
    with pytest.raises(MmalignError, match=message):
        prepare(generator_run(**settings), reward=Brightness())


def test_a_weight_wants_a_reward_and_a_gradient(make_run, generator_run):
    with pytest.raises(ConfigError, match=r"rollout\.reward: got None, expected a differentiable reward"):
        make_run(method="diff_instruct_star")
    with pytest.raises(ConfigError, match="through which no gradient flows"):
        prepare(generator_run(), reward=Brightness(is_differentiable=False))


def test_the_section_belongs_to_this_method(make_run):
    with pytest.raises(ConfigError, match=r"rollout\.one_step.*draft trains no one-step generator"):
        make_run(method="draft", rollout={"reward": "brightness", "one_step": {"timestep": 399}})


def test_half_precision_with_a_scale_is_refused(generator_run):
    loop, _ = prepare(generator_run(), reward=Brightness())
    run = generator_run(train={"mixed_precision": "fp16"})
    with pytest.raises(ConfigError, match=r"train\.mixed_precision: got 'fp16', expected bf16 or no"):
        make_score_model(run, loop.model, loop.network, lambda value: value)


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_the_plan_counts_teacher_and_score_model(adapter, generator_run, sd15_folder):
    def plan(**one_step):
        return describe(generator_run("plan", one_step={"score_adapter": adapter, **one_step}))["memory"]

    named, copied = plan(teacher=str(sd15_folder)), plan()
    frozen, trained = named["network, frozen weights"], named["network, trained weights (float32)"]
    assert named["teacher"] == frozen
    assert "teacher" not in copied
    # weights, gradients and two moments of four bytes
    assert named["score model"] == copied["score model"] == 4 * (trained if adapter == "lora" else frozen)
    if adapter == "lora":
        assert plan(score_rank=6)["score model"] == 2 * named["score model"]


def test_a_checkpoint_without_a_score_model_is_refused(generator_run):
    loop, _ = prepare(generator_run(), reward=Brightness())
    with pytest.raises(CheckpointError, match="no score model in it"):
        loop.online.collector.load_state_dict({})
