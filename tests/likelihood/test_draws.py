"""Several draws per row: what is repeated, drawn anew and mirrored, and how a step is covered."""

import dataclasses

import pytest
import torch

from mmalign.errors import HyperparameterError
from mmalign.likelihood import Draw, Draws, Elbo, ListedTimesteps, LogitNormalTimesteps, UniformTimesteps


def test_one_draw_is_the_batch_itself(make_batch) -> None:
    batch = make_batch()
    assert Draws().over(batch) is batch


def test_rows_are_repeated_one_after_the_other_with_all_that_belongs_to_them(make_batch) -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    batch = make_batch(3, weight=weight, valid=weight < 3)
    batch = dataclasses.replace(batch, prompts=("a", "b", "c"))
    drawn = Draws(5).over(batch)
    assert torch.equal(drawn.clean, batch.clean.repeat_interleave(5, dim=0))
    assert torch.equal(drawn.weight, weight.repeat_interleave(5))
    assert torch.equal(drawn.valid, (weight < 3).repeat_interleave(5))
    assert drawn.ids == tuple(name for name in batch.ids for _ in range(5))
    assert drawn.prompts == ("a",) * 5 + ("b",) * 5 + ("c",) * 5
    assert drawn.labels.certain


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_first_draw_of_a_row_is_the_one_it_would_have_alone(elbo, make_batch, antithetic) -> None:
    batch = make_batch(5, 3)
    alone, several = elbo.draw(batch), elbo.draw(Draws(2, antithetic).over(batch))
    for field in dataclasses.fields(Draw):
        assert torch.equal(getattr(several, field.name)[::2], getattr(alone, field.name)), field.name


def test_draws_of_a_row_differ_and_do_not_depend_on_their_number(make_batch) -> None:
    key = make_batch(7).keys.key
    many = Draws(5).row_keys(key)
    assert many.flatten().unique().numel() == 7 * 5
    assert torch.equal(Draws(3).row_keys(key), many[:, :3])
    mirrored = Draws(6, antithetic=True).row_keys(key)
    assert torch.equal(mirrored[:, ::2], many[:, :3])
    assert mirrored.flatten().unique().numel() == 7 * 6


@pytest.mark.parametrize("shared", [True, False])
def test_a_mirror_image_has_the_timestep_and_the_noise_turned_around(vp, make_batch, shared) -> None:
    elbo = Elbo(vp, "epsilon", UniformTimesteps(), share_noise=shared, share_timestep=shared)
    drawn = elbo.draw(Draws(4, antithetic=True).over(make_batch(5, 3)))
    assert torch.equal(drawn.timestep[1::2], drawn.timestep[::2])
    assert torch.equal(drawn.noise[1::2], -drawn.noise[::2])
    assert not torch.equal(drawn.noise[2::4], drawn.noise[::4])
    assert (drawn.noise[:, 0] == drawn.noise[:, 1]).all() == shared


def test_mirrored_draws_have_the_distribution_of_others(elbo, make_batch) -> None:
    """Noise of mirror images alone: mean 0 and variance 1 within five standard errors."""
    noise = elbo.draw(Draws(2, antithetic=True).over(make_batch(211, 1))).noise[1::2]
    count = noise.numel()
    assert abs(float(noise.mean())) < 5 / count**0.5
    assert abs(float(noise.var()) - 1) < 5 * (2 / count) ** 0.5


@pytest.mark.parametrize("draws", [Draws(3), Draws(6, antithetic=True)])
def test_stratified_timesteps_share_the_range_among_all_draws_of_a_step(make_batch, draws) -> None:
    keys = draws.keys(make_batch(7).keys)
    assert keys.num_strata == 7 * 3
    places = (keys.stratum * 21).round().long()
    assert sorted(places[:: draws.num // 3].tolist()) == list(range(21))
    of_a_row = keys.stratum.view(7, draws.num)[:, :: draws.num // 3]
    torch.testing.assert_close(of_a_row.diff(dim=1), torch.full((7, 2), 1 / 3))


@pytest.mark.parametrize("draws", [Draws(3), Draws(2, antithetic=True)])
def test_rows_draw_the_same_however_a_step_is_split(vp, make_batch, draws) -> None:
    for sampler in (
        UniformTimesteps(stratified=True),
        ListedTimesteps((249, 999), stratified=True),
        LogitNormalTimesteps(0.0, 1.0, stratified=True),
    ):
        elbo = Elbo(vp, "v_prediction", sampler)
        whole = elbo.draw(draws.over(make_batch(7, of=7)))
        parts = [
            elbo.draw(draws.over(make_batch(rows, first=first, of=7)))
            for first, rows in ((0, 3), (3, 2), (5, 2))
        ]
        for field in dataclasses.fields(Draw):
            together = torch.cat([getattr(part, field.name) for part in parts])
            assert torch.equal(getattr(whole, field.name), together), field.name


@pytest.mark.parametrize(("num", "antithetic", "expected"), [(0, False, "at least 1"), (3, True, "an even")])
def test_a_number_that_cannot_be_drawn_is_refused(num, antithetic, expected) -> None:
    with pytest.raises(HyperparameterError, match=rf"Draws.num: got {num}, expected {expected}"):
        Draws(num, antithetic)
