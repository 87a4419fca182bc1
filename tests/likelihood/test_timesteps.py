"""Timestep samplers: distributions, strata, invariance to how rows are split over ranks, refusals."""

import math

import pytest
import torch

from mmalign.errors import HyperparameterError
from mmalign.likelihood import FlowSchedule, ListedTimesteps, LogitNormalTimesteps, UniformTimesteps

SAMPLERS = [
    UniformTimesteps(),
    UniformTimesteps(stratified=True),
    UniformTimesteps(low=100, high=200),
    ListedTimesteps((249, 499, 749, 999)),
    ListedTimesteps((249, 499, 749, 999), stratified=True),
    LogitNormalTimesteps(0.0, 1.0),
    LogitNormalTimesteps(0.5, 1.0, stratified=True),
]


class TestDistributions:
    def test_uniform_covers_every_index_alike(self, vp, make_keys):
        timestep = UniformTimesteps().sample(make_keys(20_011), vp)
        assert timestep.dtype == torch.int64
        assert timestep.min() >= 0
        assert timestep.max() <= 999
        counts = torch.bincount(timestep // 100, minlength=10)
        expected = 20_011 / 10
        chi_square = ((counts - expected).square() / expected).sum()
        assert chi_square < 27.9  # 9 degrees of freedom, 0.1 %

    def test_range_excludes_its_end_and_reaches_both_sides(self, vp, make_keys):
        timestep = UniformTimesteps(low=3, high=8).sample(make_keys(997), vp)
        assert sorted(set(timestep.tolist())) == [3, 4, 5, 6, 7]

    def test_list_uses_every_value_and_nothing_else(self, vp, make_keys):
        timestep = ListedTimesteps((249, 499, 749, 999)).sample(make_keys(4001), vp)
        values, counts = timestep.unique(return_counts=True)
        assert values.tolist() == [249, 499, 749, 999]
        assert (counts > 900).all()

    def test_list_of_sigmas_keeps_their_values(self, make_keys):
        timestep = ListedTimesteps((0.25, 0.75)).sample(make_keys(11), FlowSchedule())
        assert set(timestep.tolist()) == {0.25, 0.75}

    @pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.5), (-1.0, 1.5)])
    def test_logit_normal_has_the_mean_and_spread_asked_for(self, make_keys, mean, std):
        sigma = LogitNormalTimesteps(mean, std).sample(make_keys(20_011), FlowSchedule())
        progress = torch.logit(1 - sigma.double())
        assert progress.mean().item() == pytest.approx(mean, abs=0.03 * std)
        assert progress.std().item() == pytest.approx(std, rel=0.02)

    def test_positive_logit_mean_favours_less_noise(self, vp, make_keys):
        keys = make_keys(997)
        for schedule in (vp, FlowSchedule(), FlowSchedule(grid=True)):
            more = LogitNormalTimesteps(-1.0, 1.0).sample(keys, schedule)
            less = LogitNormalTimesteps(1.0, 1.0).sample(keys, schedule)
            assert (less <= more).all()
            assert less.double().mean() < 0.7 * more.double().mean()

    def test_shift_acts_on_logit_normal_draws(self, make_keys):
        keys, sampler = make_keys(101), LogitNormalTimesteps(0.0, 1.0)
        plain, shifted = (sampler.sample(keys, FlowSchedule(shift=shift)) for shift in (1.0, 3.0))
        torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))

    def test_grid_draws_only_points_of_the_grid(self, make_keys):
        schedule = FlowSchedule(num_timesteps=10, grid=True)
        sigma = LogitNormalTimesteps(0.0, 1.0).sample(make_keys(997), schedule)
        assert ((sigma * 10 - (sigma * 10).round()).abs() < 1e-6).all()
        assert sigma.min() > 0


class TestStrata:
    def test_every_row_of_a_step_has_its_own_stratum(self, vp, make_keys):
        timestep = UniformTimesteps(stratified=True).sample(make_keys(10), vp)
        assert (timestep // 100).tolist() == list(range(10))

    def test_a_stratum_is_filled_uniformly_over_steps(self, make_keys):
        keys = make_keys(4001)
        pinned = type(keys)(key=keys.key, stratum=torch.full((4001,), 0.4), num_strata=5)
        fraction = UniformTimesteps(stratified=True).fractions(pinned)
        assert fraction.min() >= 0.4
        assert fraction.max() < 0.6
        assert fraction.mean().item() == pytest.approx(0.5, abs=0.005)

    def test_list_is_used_evenly_within_one_step(self, vp, make_keys):
        timestep = ListedTimesteps((249, 499, 749, 999), stratified=True).sample(make_keys(12), vp)
        assert timestep.unique(return_counts=True)[1].tolist() == [3, 3, 3, 3]

    def test_average_over_a_step_varies_less_than_without_strata(self, vp, make_keys):
        plain, spread = (
            torch.stack(
                [sampler.sample(make_keys(8, draw=draw), vp).double().mean() for draw in range(200)]
            ).std()
            for sampler in (UniformTimesteps(), UniformTimesteps(stratified=True))
        )
        assert spread < 0.25 * plain

    def test_last_stratum_never_rounds_past_the_end(self, vp, make_keys):
        keys = make_keys(3)
        edge = type(keys)(key=keys.key, stratum=torch.full((3,), 1 - 2**-24), num_strata=2**23)
        for sampler in (UniformTimesteps(stratified=True), LogitNormalTimesteps(0.0, 1.0, stratified=True)):
            assert (sampler.fractions(edge) < 1).all()
            assert (sampler.sample(edge, vp) <= 999).all()

    def test_candidates_get_different_but_evenly_spread_timesteps(self, vp, make_keys):
        timestep = UniformTimesteps(stratified=True).sample(make_keys(10), vp, num_candidates=2)
        assert timestep.shape == (10, 2)
        for candidate in range(2):
            assert sorted((timestep[:, candidate] // 100).tolist()) == list(range(10))
        assert ((timestep[:, 0] - timestep[:, 1]).abs() > 300).all()


class TestInvariance:
    @pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
    @pytest.mark.parametrize("num_candidates", [None, 3])
    def test_rows_draw_the_same_however_they_are_split(self, vp, make_keys, sampler, num_candidates):
        whole = sampler.sample(make_keys(7, of=7), vp, num_candidates=num_candidates)
        parts = [
            sampler.sample(make_keys(rows, first, of=7), vp, num_candidates=num_candidates)
            for first, rows in ((0, 2), (2, 4), (6, 1))
        ]
        assert torch.equal(whole, torch.cat(parts))

    def test_another_visit_of_a_row_draws_another_timestep(self, vp, make_keys):
        sampler = UniformTimesteps()
        first, second = (sampler.sample(make_keys(101, draw=draw), vp) for draw in (0, 1))
        assert (first == second).sum() < 5

    def test_independent_candidates_are_uncorrelated(self, vp, make_keys):
        timestep = UniformTimesteps().sample(make_keys(10_007), vp, num_candidates=2).double()
        assert abs(torch.corrcoef(timestep.T)[0, 1].item()) < 0.03


class TestRefusals:
    @pytest.mark.parametrize(
        ("sampler", "message"),
        [
            (UniformTimesteps(low=5, high=5), "expected low below high"),
            (UniformTimesteps(low=-1), r"UniformTimesteps\.low: got -1"),
            (UniformTimesteps(high=1001), r"UniformTimesteps\.high: got 1001"),
            (UniformTimesteps(low=0.5), "whole number from 0 to 999"),
            (ListedTimesteps(()), "at least one timestep"),
            (ListedTimesteps((249, 1000)), r"ListedTimesteps\.values: got 1000"),
            (LogitNormalTimesteps(0.0, 0.0), "std above 0"),
            (LogitNormalTimesteps(math.nan, 1.0), "finite numbers"),
        ],
    )
    def test_settings_that_do_not_fit_an_index_schedule(self, vp, sampler, message):
        with pytest.raises(HyperparameterError, match=message):
            sampler.check(vp)

    def test_time_input_given_where_sigma_is_due(self):
        with pytest.raises(
            HyperparameterError, match=r"got 801, expected sigma between 0 and 1.*Divide.*1000"
        ):
            ListedTimesteps((801,)).check(FlowSchedule())

    @pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
    def test_good_settings_pass(self, vp, sampler):
        sampler.check(vp)

    def test_whole_range_may_be_written_out(self, vp):
        UniformTimesteps(low=0, high=1000).check(vp)
        UniformTimesteps(low=0.1, high=1.0).check(FlowSchedule())
