"""Labels of latent frames in a training step: the loss by hand, what counts, what is refused."""

import contextlib
import dataclasses

import pytest
import torch

from mmalign import objectives
from mmalign.batch import Batch, Conditioning, Labels, RowKeys
from mmalign.errors import ConfigError, ShapeError
from mmalign.likelihood import Elbo, FlowSchedule, UniformTimesteps
from mmalign.likelihood.reference import AdaptersOff
from mmalign.likelihood.weighting import MinSnr
from mmalign.objectives import ObjectiveState
from mmalign.train.step import StepParts, preference_step
from mmalign.train.supply import Supply

BETA = 40.0
# Two channels, three frames, one band: errors are set frame by frame.
LABEL = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -1.0]])


def batch(label=LABEL) -> Batch:
    return Batch(
        clean=torch.zeros(2, 2, 2, 3, 1),
        conditioning=Conditioning(),
        labels=Labels.pairs(2),
        weight=torch.ones(2),
        valid=torch.ones(2, dtype=torch.bool),
        keys=RowKeys(torch.arange(2), torch.zeros(2), 2),
        recorded={"preference": torch.stack([label, -label], dim=1)},
    )


def off_by(amounts: torch.Tensor):
    """A denoiser whose prediction is off by `amounts` [prompt, candidate, frame] in every channel."""

    def denoise(noised, timestep, conditioning):
        offset = amounts.flatten(0, 1)[:, None, :, None].expand_as(noised)
        return likelihood.draw(batch()).target.flatten(0, 1) + offset

    return denoise


likelihood = Elbo(FlowSchedule(), "flow", UniformTimesteps(), inner_axis=1)
POLICY = torch.tensor([[[0.1, 0.3, 0.5], [0.2, 0.1, 0.4]], [[0.2, 0.2, 0.1], [0.3, 0.2, 0.5]]])
REFERENCE = torch.tensor([[[0.2, 0.2, 0.1], [0.1, 0.3, 0.9]], [[0.1, 0.4, 0.2], [0.2, 0.2, 0.4]]])


def parts(name: str, policy: torch.Tensor = POLICY, **arguments: object) -> StepParts:
    objective = objectives.build(name, beta=BETA, **arguments)
    return StepParts(
        denoise=off_by(policy),
        likelihood=likelihood,
        reference=AdaptersOff(off_by(REFERENCE), contextlib.nullcontext),
        objective=objective,
        state=ObjectiveState(),
        autocast=contextlib.nullcontext,
        supply=Supply(objective.needs),
    )


def frame_margins() -> torch.Tensor:
    """u of chosen minus u of rejected in every frame: -(policy^2 - reference^2) / 2."""
    u = -(POLICY**2 - REFERENCE**2) / 2
    return u[:, 0] - u[:, 1]


def test_one_sigmoid_over_the_mean_of_decided_frames() -> None:
    margins = frame_margins()
    # 0: +first -second over 2 decided frames; 1: + + - over 3.
    z = torch.stack(
        [
            BETA * (margins[0, 0] - margins[0, 1]) / 2,
            BETA * (margins[1, 0] + margins[1, 1] - margins[1, 2]) / 3,
        ]
    )
    assert z.tolist() == pytest.approx([40 * (0.03 + 0.065) / 2, 40 * (0.01 + 0.06 - 0.06) / 3], rel=1e-4)
    out = preference_step(parts("densedpo", reduction="mean"), batch())
    assert float(out.loss) == pytest.approx(float(-torch.nn.functional.logsigmoid(z).sum()), rel=1e-5)


def test_one_sigmoid_per_decided_frame() -> None:
    signed = BETA * frame_margins() * LABEL
    each = -torch.nn.functional.logsigmoid(signed)
    expected = each[0, :2].mean() + each[1].mean()
    out = preference_step(parts("densedpo_per_segment"), batch())
    assert float(out.loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "more"), [("densedpo", {"reduction": "mean"}), ("densedpo_per_segment", {})]
)
def test_a_policy_at_its_reference_costs_log_2_and_labels_of_one_sign_are_dpo(name, more) -> None:
    out = preference_step(parts(name, REFERENCE, **more), batch())
    assert float(out.loss) == pytest.approx(2 * 0.693147, rel=1e-5)
    if name == "densedpo":
        whole = preference_step(parts("densedpo", reduction="mean"), batch(torch.ones(2, 3)))
        plain = dataclasses.replace(
            parts("dpo"), likelihood=dataclasses.replace(likelihood, inner_axis=None), supply=Supply()
        )
        assert float(whole.loss) == pytest.approx(float(preference_step(plain, batch()).loss), rel=1e-5)


def test_undecided_frames_have_no_gradient_and_decided_ones_have_the_sign_of_their_label() -> None:
    policy = REFERENCE.clone().requires_grad_()
    preference_step(parts("densedpo", policy, reduction="mean"), batch()).loss.backward()
    # A larger error of the chosen side costs where it is better, and pays where it is worse.
    assert torch.equal(policy.grad[:, 0].sign(), LABEL)
    assert torch.equal(policy.grad[:, 1].sign(), -LABEL)


def test_scores_along_time_average_to_the_score_of_the_clip_also_weighted() -> None:
    given = batch()
    for weighting in (None, MinSnr(5.0)):
        elbo = dataclasses.replace(likelihood, weighting=weighting)
        found = elbo.evaluate(off_by(POLICY), given, elbo.draw(given))
        assert found.inner is not None
        assert torch.allclose(found.inner.mean(-1), found.score, rtol=1e-5)


def test_a_sum_or_an_element_mask_is_refused_beside_labels_of_frames() -> None:
    given = batch()
    summed = dataclasses.replace(likelihood, reduction="sum")
    with pytest.raises(ConfigError, match="scores along time: got 'reduction sum'"):
        summed.evaluate(off_by(POLICY), given, summed.draw(given))
    masked = dataclasses.replace(given, element_mask=torch.ones_like(given.clean))
    with pytest.raises(ConfigError, match="scores along time: got 'an element mask'"):
        likelihood.evaluate(off_by(POLICY), masked, likelihood.draw(masked))


def test_labels_of_frames_need_scores_of_frames() -> None:
    whole = dataclasses.replace(
        parts("densedpo_per_segment"), likelihood=dataclasses.replace(likelihood, inner_axis=None)
    )
    with pytest.raises(ShapeError, match="got scores of whole clips, expected a likelihood with inner_axis"):
        preference_step(whole, batch())
