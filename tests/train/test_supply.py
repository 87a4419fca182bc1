"""What a step hands to an objective: every entry is what its module says, and what is missing is named."""

import dataclasses
from types import MappingProxyType

import pytest
import torch

from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.errors import ShapeError
from mmalign.likelihood import Ddim, Draw, Elbo, Evaluation, Transition, UniformTimesteps
from mmalign.objectives.predictions import safeguard_factor
from mmalign.train.supply import RECORDED, SUPPLIED, Safeguard, StepFacts, Supply

SHAPE = (3, 2, 5, 7)


@pytest.fixture
def facts(draw):
    """What a step of three pairs knows; both evaluations kept their predictions."""
    target, shared = draw(*SHAPE), draw(3, 1, 5, 7)
    # Residuals of a pair that point the same way, the rejected one's further: there a safeguard holds back.
    wide = torch.tensor([0.9, 1.5]).view(1, 2, 1, 1)
    policy = (target + wide * shared + 0.3 * draw(*SHAPE)).requires_grad_()
    reference = (target + wide * shared + 0.3 * draw(*SHAPE)).requires_grad_()
    state, ahead = torch.full((3, 2), 501), torch.full((3, 2), 451)
    batch = Batch(
        clean=draw(*SHAPE),
        conditioning=Conditioning(),
        labels=Labels.pairs(3),
        weight=torch.ones(3),
        valid=torch.ones(3, dtype=torch.bool),
        keys=RowKeys(torch.arange(3), torch.zeros(3), 3),
        recorded={
            "state": draw(*SHAPE),
            "timestep": state,
            "next_timestep": ahead,
            **{name: draw(3, 2) for name in RECORDED},
        },
    )

    def evaluation(prediction):
        error = (prediction - target).square().flatten(2).mean(-1)
        return dataclasses.replace(Evaluation.from_error(error), prediction=prediction)

    return StepFacts(
        batch=batch,
        draw=Draw(state, draw(*SHAPE), draw(*SHAPE), target),
        policy=evaluation(policy),
        reference=evaluation(reference),
        level=torch.tensor([0.25, 0.5, 1.0]),
    )


def forgetful(evaluation):
    return dataclasses.replace(evaluation, prediction=None)


def only(name, facts, **settings):
    found = Supply(frozenset({name}), **settings).extras(facts)
    assert set(found) == {name}
    return found[name]


def test_a_loss_that_reads_nothing_is_handed_nothing(facts):
    supply = Supply()
    assert not supply.extras(facts)
    assert not supply.needs_prediction


def test_scores_themselves_are_no_entries(facts):
    assert not Supply(frozenset({"reference", "reward"})).extras(facts)


@pytest.mark.parametrize("name", sorted(SUPPLIED))
def test_predictions_are_kept_for_what_is_made_of_them_alone(name):
    expected = name in {"safeguard", "drift", "mean_drift"}
    assert Supply(frozenset({name, "reference", "noise_level"})).needs_prediction is expected


def test_entries_cannot_be_changed_by_an_objective(facts):
    assert isinstance(Supply(frozenset({"drift", "noise_level"})).extras(facts), MappingProxyType)


def test_the_noise_level_is_the_step_s(facts):
    assert torch.equal(only("noise_level", facts), torch.tensor([0.25, 0.5, 1.0]))


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_recorded_entry_is_what_the_rollout_kept(name, facts):
    assert torch.equal(only(name, facts), facts.batch.recorded[name])


@pytest.mark.parametrize(
    "settings", [Safeguard(0.6), Safeguard(0.9, "batch", 1e-9), Safeguard(0.2, "pair", 0.05)], ids=repr
)
def test_the_safeguard_is_the_factor_of_the_policy_s_prediction_under_the_run_s_settings(facts, settings):
    policy, target = facts.policy.prediction, facts.draw.target
    expected = safeguard_factor(
        policy, target, mu=settings.mu, scope=settings.scope, epsilon=settings.epsilon
    )
    found = only("safeguard", facts, safeguard=settings)
    assert torch.equal(found, expected)
    assert not found.requires_grad, "a factor of gradients has none of its own"
    # Other settings, another sample: the entry follows each of them.
    assert not torch.equal(found, only("safeguard", facts, safeguard=Safeguard(0.4)))
    assert not torch.equal(found, safeguard_factor(facts.reference.prediction, target, mu=settings.mu))


def test_under_the_safeguard_a_step_does_not_raise_the_chosen_error(facts):
    """What the factor is for, at mu = 0 the bound itself: the step is across the chosen residual."""
    factor = only("safeguard", facts, safeguard=Safeguard(0.0))
    chosen, rejected = (facts.policy.prediction.detach() - facts.draw.target).flatten(2).unbind(1)
    assert ((chosen * (chosen - rejected)).sum(-1) < 0).all(), "without it the chosen error would grow"
    progress = (chosen * (chosen - factor[:, 1:] * rejected)).sum(-1)
    torch.testing.assert_close(progress, torch.zeros(3, dtype=progress.dtype), atol=1e-12, rtol=0)


def test_a_safeguard_without_settings_is_refused(facts):
    with pytest.raises(ShapeError, match=r"extras 'safeguard': got no settings, expected Supply\(safeguard="):
        only("safeguard", facts)


def test_the_drift_is_the_mean_squared_distance_with_gradient_to_the_policy_alone(facts):
    found = only("drift", facts)
    gap = facts.policy.prediction - facts.reference.prediction
    torch.testing.assert_close(found, gap.square().flatten(2).mean(-1))
    found.sum().backward()
    torch.testing.assert_close(facts.policy.prediction.grad, 2 * gap.detach() / 35)
    assert facts.reference.prediction.grad is None


def test_the_mean_drift_is_that_of_the_run_s_steps(facts, vp):
    transition = Transition(vp, "epsilon", Ddim(0.7))
    found = only("mean_drift", facts, likelihood=transition)
    expected = transition.mean_drift(
        facts.batch, facts.draw, facts.policy.prediction, facts.reference.prediction
    )
    assert torch.equal(found, expected)
    assert (found > 0).all()
    found.sum().backward()
    assert (facts.policy.prediction.grad != 0).all()
    assert facts.reference.prediction.grad is None


def test_a_mean_drift_of_denoising_errors_is_refused(facts, vp):
    for likelihood in (None, Elbo(vp, "epsilon", UniformTimesteps())):
        with pytest.raises(ShapeError, match=r"extras 'mean_drift': .* expected transitions"):
            only("mean_drift", facts, likelihood=likelihood)


@pytest.mark.parametrize("name", ["safeguard", "drift", "mean_drift"])
def test_an_evaluation_that_kept_no_prediction_is_refused(name, facts, vp):
    settings = {"safeguard": Safeguard(0.5), "likelihood": Transition(vp, "epsilon", Ddim())}
    forgotten = [dataclasses.replace(facts, policy=forgetful(facts.policy))]
    if name != "safeguard":
        forgotten += [
            dataclasses.replace(facts, reference=forgetful(facts.reference)),
            dataclasses.replace(facts, reference=None),
        ]
    for known in forgotten:
        with pytest.raises(ShapeError, match=f"extras '{name}': .* expected keep_prediction=True"):
            only(name, known, **settings)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_record_that_the_rollout_did_not_keep_is_named(name, facts):
    kept = {key: value for key, value in facts.batch.recorded.items() if key != name}
    batch = dataclasses.replace(facts.batch, recorded=kept)
    with pytest.raises(ShapeError, match=rf"extras '{name}': got records \[.*'state'.*\], expected '{name}'"):
        only(name, dataclasses.replace(facts, batch=batch))
