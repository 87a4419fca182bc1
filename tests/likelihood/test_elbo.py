"""Scores from denoising errors: hand-worked numbers, sharing, precision, masks, error spaces, gradients."""

import dataclasses

import pytest
import torch

from mmalign.batch import Conditioning
from mmalign.errors import ConfigError, HyperparameterError, ShapeError
from mmalign.likelihood import (
    Draw,
    Elbo,
    Evaluation,
    FlowSchedule,
    ListedTimesteps,
    LogitNormalTimesteps,
    UniformTimesteps,
    VPSchedule,
    beta_conventions,
    squared_error,
)
from mmalign.likelihood.schedules import PREDICTIONS


def answer(prediction):
    """A denoiser that answers with a stored tensor `[prompt, candidate, *event]`."""
    return lambda noised, timestep, conditioning: prediction.flatten(0, 1)


class TestDraw:
    def test_candidates_share_noise_and_timestep(self, elbo, make_batch):
        drawn = elbo.draw(make_batch(5, 3))
        assert drawn.timestep.shape == (5, 3)
        assert drawn.noise.shape == (5, 3, 5, 7)
        assert (drawn.timestep == drawn.timestep[:, :1]).all()
        assert (drawn.noise == drawn.noise[:, :1]).all()
        assert len(set(drawn.timestep[:, 0].tolist())) == 5

    def test_noise_can_be_independent(self, vp, make_batch):
        drawn = Elbo(vp, "epsilon", UniformTimesteps(), share_noise=False).draw(make_batch(5, 3))
        assert (drawn.timestep == drawn.timestep[:, :1]).all()
        flat = drawn.noise.flatten(2)
        assert not (flat[:, 0] == flat[:, 1]).any()

    def test_timesteps_can_be_independent(self, vp, make_batch):
        drawn = Elbo(vp, "epsilon", UniformTimesteps(), share_timestep=False).draw(make_batch(5, 3))
        assert (drawn.noise == drawn.noise[:, :1]).all()
        assert (drawn.timestep[:, 0] != drawn.timestep[:, 1]).all()

    def test_noised_sample_and_target_follow_the_schedule(self, vp, make_batch):
        batch = make_batch(3, 2)
        for prediction in PREDICTIONS:
            drawn = Elbo(vp, prediction, UniformTimesteps()).draw(batch)
            assert torch.equal(drawn.noised, vp.add_noise(batch.clean, drawn.noise, drawn.timestep))
            assert torch.equal(drawn.target, vp.target(prediction, batch.clean, drawn.noise, drawn.timestep))

    @pytest.mark.parametrize("shared", [True, False])
    def test_rows_draw_the_same_however_they_are_split(self, vp, make_batch, shared):
        sampler = UniformTimesteps(stratified=True)
        elbo = Elbo(vp, "v_prediction", sampler, share_noise=shared, share_timestep=shared)
        whole = elbo.draw(make_batch(7, of=7))
        parts = [elbo.draw(make_batch(rows, first=first, of=7)) for first, rows in ((0, 3), (3, 2), (5, 2))]
        for field in dataclasses.fields(Draw):
            together = torch.cat([getattr(part, field.name) for part in parts])
            assert torch.equal(getattr(whole, field.name), together), field.name

    def test_global_random_state_is_neither_read_nor_moved(self, elbo, make_batch):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = elbo.draw(make_batch())
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(elbo.draw(make_batch()).noise, first.noise)

    def test_half_precision_latents_are_noised_in_float32(self, elbo, make_batch):
        drawn = elbo.draw(dataclasses.replace(make_batch(), clean=make_batch().clean.to(torch.bfloat16)))
        assert drawn.noise.dtype == drawn.noised.dtype == drawn.target.dtype == torch.float32

    def test_target_carries_no_gradient(self, vp, make_batch):
        batch = make_batch()
        clean = batch.clean.requires_grad_()
        drawn = Elbo(vp, "v_prediction", UniformTimesteps()).draw(dataclasses.replace(batch, clean=clean))
        assert not drawn.target.requires_grad


class TestErrors:
    def test_score_is_minus_half_the_mean_of_squares_by_hand(self, elbo, make_batch):
        batch = make_batch(2, 2, (3,))
        target = torch.zeros(2, 2, 3, dtype=torch.float64)
        drawn = dataclasses.replace(elbo.draw(batch), target=target)
        prediction = torch.tensor(
            [[[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]], [[1.0, 1.0, 1.0], [6.0, 0.0, 0.0]]], dtype=torch.float64
        )
        found = elbo.evaluate(answer(prediction), batch, drawn)
        expected = torch.tensor([[14 / 3, 3.0], [1.0, 12.0]], dtype=torch.float64)
        torch.testing.assert_close(found.error, expected)
        torch.testing.assert_close(found.score, -expected / 2)
        assert found.prediction is None

    def test_sum_is_the_mean_times_the_elements(self, vp, make_batch, draw):
        batch, prediction = make_batch(3, 2, (5, 7)), draw(3, 2, 5, 7)
        mean = Elbo(vp, "epsilon", UniformTimesteps())
        total = dataclasses.replace(mean, reduction="sum")
        drawn = mean.draw(batch)
        torch.testing.assert_close(
            total.evaluate(answer(prediction), batch, drawn).error,
            35 * mean.evaluate(answer(prediction), batch, drawn).error,
        )

    def test_each_error_depends_on_its_own_candidate_alone(self, elbo, make_batch, draw):
        batch, prediction = make_batch(3, 2), draw(3, 2, 5, 7, requires_grad=True)
        found = elbo.evaluate(answer(prediction), batch, elbo.draw(batch))
        for prompt in range(3):
            for candidate in range(2):
                (gradient,) = torch.autograd.grad(
                    found.score[prompt, candidate], prediction, retain_graph=True
                )
                touched = gradient.flatten(2).abs().sum(2) > 0
                assert touched.sum() == 1
                assert touched[prompt, candidate]

    def test_gradient_is_minus_the_residual_over_the_elements(self, elbo, make_batch, draw):
        batch, prediction = make_batch(3, 2), draw(3, 2, 5, 7, requires_grad=True)
        drawn = elbo.draw(batch)
        elbo.evaluate(answer(prediction), batch, drawn).score.sum().backward()
        torch.testing.assert_close(prediction.grad, -(prediction.detach() - drawn.target) / 35)

    def test_gradient_equals_finite_differences_in_another_space(self, vp, make_batch, draw):
        elbo = Elbo(vp, "v_prediction", UniformTimesteps(), error_space="sample")
        mask = (draw(2, 3, 5) > 0).double()
        batch = dataclasses.replace(make_batch(2, 3, (5,)), element_mask=mask)
        drawn = elbo.draw(batch)
        assert torch.autograd.gradcheck(
            lambda value: elbo.evaluate(answer(value), batch, drawn).score, draw(2, 3, 5, requires_grad=True)
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_predictions_are_widened_before_the_difference(self, elbo, make_batch, dtype):
        batch = make_batch(3, 2, (5, 7))
        drawn = elbo.draw(dataclasses.replace(batch, clean=batch.clean.float()))
        prediction = (drawn.target + 0.3).to(dtype)
        found = elbo.evaluate(answer(prediction), batch, drawn).error
        assert found.dtype == torch.float32
        exact = (prediction.double() - drawn.target.double()).square().flatten(2).mean(2)
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)

    def test_float64_stays_float64_from_the_batch_to_the_score(self, elbo, make_batch, draw):
        batch = make_batch(3, 2)
        drawn = elbo.draw(batch)
        assert elbo.evaluate(answer(draw(3, 2, 5, 7)), batch, drawn).score.dtype == torch.float64

    def test_prediction_is_kept_on_request(self, elbo, make_batch, draw):
        batch, prediction = make_batch(3, 2), draw(3, 2, 5, 7)
        found = elbo.evaluate(answer(prediction), batch, elbo.draw(batch), keep_prediction=True)
        assert torch.equal(found.prediction, prediction)

    def test_single_candidates_and_lists_are_scored_alike(self, elbo, make_batch, draw):
        for candidates in (1, 5):
            batch = make_batch(3, candidates)
            prediction = draw(3, candidates, 5, 7)
            assert elbo.evaluate(answer(prediction), batch, elbo.draw(batch)).error.shape == (3, candidates)

    def test_event_axes_of_video_are_reduced_together(self, elbo, make_batch, draw):
        batch, prediction = make_batch(2, 2, (2, 3, 5, 7)), draw(2, 2, 2, 3, 5, 7)
        drawn = elbo.draw(batch)
        found = elbo.evaluate(answer(prediction), batch, drawn).error
        torch.testing.assert_close(found, (prediction - drawn.target).square().mean((2, 3, 4, 5)))

    def test_from_error_is_the_only_place_of_the_half(self):
        error = torch.tensor([[2.0, 4.0]])
        assert Evaluation.from_error(error).score.tolist() == [[-1.0, -2.0]]


class TestNetworkCall:
    def test_network_sees_rows_in_prompt_major_order(self, elbo, make_batch):
        batch = dataclasses.replace(
            make_batch(3, 2, (5,)),
            conditioning=Conditioning(
                shared={"text": torch.arange(3.0).unsqueeze(1)},
                per_candidate={"size": torch.arange(6.0).reshape(3, 2, 1)},
            ),
        )
        drawn, seen = elbo.draw(batch), {}

        def denoise(noised, timestep, conditioning):
            seen.update(noised=noised, timestep=timestep, **conditioning)
            return noised

        elbo.evaluate(denoise, batch, drawn)
        assert torch.equal(seen["noised"], drawn.noised.reshape(6, 5))
        assert torch.equal(seen["timestep"], drawn.timestep.reshape(6))
        assert seen["text"].flatten().tolist() == [0, 0, 1, 1, 2, 2]
        assert seen["size"].flatten().tolist() == [0, 1, 2, 3, 4, 5]

    def test_flow_networks_are_given_a_thousand_times_sigma(self, make_batch):
        elbo, seen = Elbo(FlowSchedule(), "flow", ListedTimesteps((0.25,))), []

        def denoise(noised, timestep, conditioning):
            seen.append(timestep)
            return noised

        batch = make_batch(3, 2)
        elbo.evaluate(denoise, batch, elbo.draw(batch))
        assert seen[0].tolist() == [250.0] * 6

    def test_output_of_another_shape_is_refused_with_both_shapes(self, elbo, make_batch, draw):
        batch = make_batch(3, 2, (5, 7))
        with pytest.raises(ShapeError, match=r"prediction of the network.*\[3, 2, 7, 5\].*\[3, 2, 5, 7\]"):
            elbo.evaluate(answer(draw(3, 2, 7, 5)), batch, elbo.draw(batch))

    def test_step_needs_no_value_on_the_host(self, vp, make_batch):
        """On the meta device every read of a value fails, so this also proves the absence of host waits."""
        for elbo in (
            Elbo(vp, "v_prediction", UniformTimesteps(stratified=True), error_space="epsilon"),
            Elbo(vp, "epsilon", ListedTimesteps((249, 999)), share_noise=False, share_timestep=False),
            Elbo(FlowSchedule(shift=3.0, grid=True), "flow", LogitNormalTimesteps(0.0, 1.0)),
        ):
            batch = make_batch(3, 2)
            moved = dataclasses.replace(
                batch,
                clean=batch.clean.to("meta"),
                keys=batch.keys.to("meta"),
                element_mask=torch.ones_like(batch.clean).to("meta"),
            )
            drawn = elbo.draw(moved)
            found = elbo.evaluate(lambda noised, timestep, conditioning: noised, moved, drawn)
            assert found.score.shape == (3, 2)
            assert found.score.device.type == "meta"


class TestMasks:
    def test_masked_mean_counts_only_what_is_kept(self, elbo, make_batch):
        mask = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 0.5, 0.0]]], dtype=torch.float64)
        batch = dataclasses.replace(make_batch(1, 2, (3,)), element_mask=mask)
        drawn = dataclasses.replace(elbo.draw(batch), target=torch.zeros(1, 2, 3, dtype=torch.float64))
        prediction = torch.tensor([[[1.0, 3.0, 100.0], [2.0, 4.0, 100.0]]], dtype=torch.float64)
        found = elbo.evaluate(answer(prediction), batch, drawn).error
        torch.testing.assert_close(found, torch.tensor([[5.0, 8.0]], dtype=torch.float64))

    def test_empty_mask_gives_error_zero_and_finite_gradient(self, elbo, make_batch, draw):
        mask = torch.ones(2, 2, 3, dtype=torch.float64)
        mask[0, 1] = 0
        batch = dataclasses.replace(make_batch(2, 2, (3,)), element_mask=mask)
        prediction = draw(2, 2, 3, requires_grad=True)
        found = elbo.evaluate(answer(prediction), batch, elbo.draw(batch))
        assert found.error[0, 1] == 0
        found.score.sum().backward()
        assert torch.isfinite(prediction.grad).all()
        assert (prediction.grad[0, 1] == 0).all()

    def test_values_under_the_mask_change_nothing(self, elbo, make_batch, draw):
        mask = torch.ones(2, 2, 5, dtype=torch.float64)
        mask[..., 3:] = 0
        batch = dataclasses.replace(make_batch(2, 2, (5,)), element_mask=mask)
        drawn, prediction = elbo.draw(batch), draw(2, 2, 5)
        changed = prediction.clone()
        changed[..., 3:] += 1000
        first, second = (elbo.evaluate(answer(value), batch, drawn).error for value in (prediction, changed))
        assert torch.equal(first, second)

    def test_mask_of_ones_is_no_mask(self, draw):
        prediction, target = draw(2, 3, 5, 7), draw(2, 3, 5, 7)
        for reduction in ("mean", "sum"):
            torch.testing.assert_close(
                squared_error(prediction, target, mask=torch.ones_like(target), reduction=reduction),
                squared_error(prediction, target, mask=None, reduction=reduction),
            )

    def test_mask_that_would_broadcast_is_refused(self, elbo, make_batch, draw):
        batch = make_batch(3, 2, (5, 7))
        # Behind the shape hook's back: users' scripts run without it.
        object.__setattr__(batch, "element_mask", torch.ones(3, 2, 5, 1, dtype=torch.float64))
        with pytest.raises(ShapeError, match=r"element_mask.*\[3, 2, 5, 1\]"):
            elbo.evaluate(answer(draw(3, 2, 5, 7)), batch, elbo.draw(batch))


class TestErrorSpaces:
    @pytest.mark.parametrize("source", PREDICTIONS)
    @pytest.mark.parametrize("space", PREDICTIONS)
    def test_weighted_error_equals_the_error_after_conversion(self, vp, make_batch, draw, source, space):
        elbo = Elbo(vp, source, UniformTimesteps(), error_space=space)
        batch, prediction = make_batch(3, 2), draw(3, 2, 5, 7)
        drawn = elbo.draw(batch)
        found = elbo.evaluate(answer(prediction), batch, drawn).error
        converted = vp.convert(prediction, drawn.noised, drawn.timestep, source=source, to=space)
        exact = vp.target(space, batch.clean, drawn.noise, drawn.timestep)
        expected = (converted - exact).square().flatten(2).mean(2)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)

    def test_native_space_is_weight_one_to_the_bit(self, vp, make_batch, draw):
        batch, prediction = make_batch(3, 2), draw(3, 2, 5, 7)
        named = Elbo(vp, "v_prediction", UniformTimesteps(), error_space="v_prediction")
        default = Elbo(vp, "v_prediction", UniformTimesteps())
        drawn = default.draw(batch)
        first, second = (elbo.evaluate(answer(prediction), batch, drawn).error for elbo in (named, default))
        assert torch.equal(first, second)

    def test_epsilon_cannot_leave_its_space_where_noise_is_pure(self, stable_diffusion):
        zero = VPSchedule.from_scheduler_config({**stable_diffusion, "rescale_betas_zero_snr": True})
        with pytest.raises(ConfigError, match=r"reaches pure noise.*Leave error_space empty"):
            Elbo(zero, "epsilon", UniformTimesteps(), error_space="sample")
        assert Elbo(zero, "epsilon", UniformTimesteps(), error_space="epsilon")
        assert Elbo(zero, "v_prediction", UniformTimesteps(), error_space="epsilon")

    def test_turbo_trains_epsilon_at_pure_noise(self, stable_diffusion, make_batch, draw):
        zero = VPSchedule.from_scheduler_config({**stable_diffusion, "rescale_betas_zero_snr": True})
        elbo = Elbo(zero, "epsilon", ListedTimesteps((999,)))
        batch = make_batch(3, 2)
        drawn = elbo.draw(batch)
        assert torch.equal(drawn.noised, drawn.noise)
        assert torch.isfinite(elbo.evaluate(answer(draw(3, 2, 5, 7)), batch, drawn).score).all()


class TestUnits:
    def test_both_units_of_beta_for_the_published_resolutions(self):
        assert beta_conventions(5000, 4 * 64 * 64).sum == pytest.approx(0.1526, abs=1e-4)
        assert beta_conventions(5000, 4 * 128 * 128).sum == pytest.approx(0.0381, abs=1e-4)
        assert str(beta_conventions(5000.0, 16384)) == (
            "beta 5000 on half the mean error = 0.1526 on the summed error (16384 elements)"
        )

    def test_both_units_give_one_logit(self, vp, make_batch, draw):
        batch, prediction = make_batch(3, 2), draw(3, 2, 5, 7)
        mean = Elbo(vp, "epsilon", UniformTimesteps())
        drawn = mean.draw(batch)
        units = beta_conventions(2000.0, 35)
        summed = (prediction - drawn.target).square().flatten(2).sum(2)
        torch.testing.assert_close(
            units.mean * mean.evaluate(answer(prediction), batch, drawn).score, -units.sum * summed
        )

    def test_no_elements_are_refused(self):
        with pytest.raises(HyperparameterError, match="num_elements"):
            beta_conventions(5000.0, 0)


class TestSettings:
    def test_timesteps_are_checked_against_the_schedule(self, vp):
        with pytest.raises(HyperparameterError, match=r"ListedTimesteps\.values"):
            Elbo(vp, "epsilon", ListedTimesteps((5000,)))

    def test_description_changes_with_every_setting(self, vp, elbo):
        others = [
            dataclasses.replace(elbo, **change)
            for change in (
                {"prediction": "v_prediction"},
                {"timesteps": UniformTimesteps(low=1)},
                {"timesteps": UniformTimesteps(stratified=True)},
                {"share_noise": False},
                {"share_timestep": False},
                {"error_space": "sample"},
                {"reduction": "sum"},
                {"schedule": VPSchedule(vp.alphas_cumprod**2)},
            )
        ]
        assert len({str(sorted(one.describe().items())) for one in [elbo, *others]}) == len(others) + 1
