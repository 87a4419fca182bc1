"""Seeds and counter-based draws: known answers, moments, independence, rows that ignore their neighbours."""

import math

import pytest
import torch

from mmalign.seeding import derive_seed, generator_for, philox, row_normal, row_uniform, stream_of

MASK = 0xFFFFFFFF


def philox_in_plain_python(counter, key):
    """Philox 4x32-10 as the paper writes it, on Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second & MASK, (first >> 32) ^ c3 ^ k1, first & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def row_keys(num, draw=0):
    return torch.tensor([derive_seed(0, "row", number, draw) for number in range(num)], dtype=torch.int64)


class TestDerivedSeeds:
    def test_are_the_same_on_every_machine(self):
        assert derive_seed(0, "noise", 1, 2) == 3202129691373394089
        assert derive_seed(7, "order") == 6164437204404994950

    def test_depend_on_every_argument_and_on_their_order(self):
        seeds = {
            derive_seed(0, "noise", 1, 2),
            derive_seed(1, "noise", 1, 2),
            derive_seed(0, "timestep", 1, 2),
            derive_seed(0, "noise", 2, 1),
            derive_seed(0, "noise", 12),
            derive_seed(0, "noise", 1, 2, 0),
            derive_seed(0, "noise"),
        }
        assert len(seeds) == 7

    def test_fit_63_bits(self):
        seeds = [derive_seed(seed, "row", seed) for seed in range(500)]
        assert all(0 <= seed < 2**63 for seed in seeds)
        assert max(seeds) > 2**62

    def test_make_generators_that_repeat(self):
        first, second = (torch.rand(5, generator=generator_for(3, "order", 1)) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, torch.rand(5, generator=generator_for(3, "order", 2)))


class TestPhilox:
    def test_known_answer_of_the_authors(self):
        words = philox(torch.tensor([0]), 1, 0)
        assert [f"{word:08x}" for word in words.flatten().tolist()] == [
            "6627e8d5",
            "e169c58d",
            "bc57ac4c",
            "9b00dbd8",
        ]
        assert philox_in_plain_python((0, 0, 0, 0), (0, 0)) == words.flatten().tolist()
        # The authors' second vector pins the plain-Python version on full words.
        ones = philox_in_plain_python((MASK,) * 4, (MASK, MASK))
        assert [f"{word:08x}" for word in ones] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]

    def test_equals_plain_python_for_large_keys_and_streams(self):
        keys = torch.tensor([1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, derive_seed(5, "row", 3)])
        for stream in (0, 1, MASK, stream_of("noise")):
            words = philox(keys, 3, stream).tolist()
            for row, key in enumerate(keys.tolist()):
                for block in range(3):
                    expected = philox_in_plain_python((block, 0, stream, 0), (key & MASK, key >> 32))
                    assert words[row][block] == expected

    def test_longer_draws_begin_with_the_shorter_ones(self):
        keys = row_keys(3)
        assert torch.equal(philox(keys, 7, 5)[:, :2], philox(keys, 2, 5))


class TestUniform:
    def test_is_flat_and_below_one(self):
        drawn = row_uniform(row_keys(211), 499, purpose="timestep")
        assert drawn.shape == (211, 499)
        assert drawn.dtype == torch.float32
        assert drawn.min() >= 0
        assert drawn.max() < 1
        counts = torch.histc(drawn, bins=20, min=0, max=1)
        expected = drawn.numel() / 20
        assert ((counts - expected).square() / expected).sum() < 43.8  # 19 degrees of freedom, 0.1 %

    def test_first_number_of_each_row_is_flat_too(self):
        """Timesteps use one number per row: the keys must mix as well as the counters."""
        drawn = row_uniform(row_keys(20_011), 1, purpose="timestep").squeeze(1)
        counts = torch.histc(drawn, bins=20, min=0, max=1)
        expected = drawn.numel() / 20
        assert ((counts - expected).square() / expected).sum() < 43.8

    def test_neighbouring_keys_are_unrelated(self):
        drawn = row_uniform(torch.arange(10_007), 2, purpose="timestep").double()
        lagged = torch.corrcoef(torch.stack([drawn[:-1, 0], drawn[1:, 0]]))[0, 1]
        within = torch.corrcoef(drawn.T)[0, 1]
        assert abs(lagged) < 0.035
        assert abs(within) < 0.035


class TestNormal:
    def test_has_the_moments_of_a_standard_normal(self):
        drawn = row_normal(row_keys(101), (7, 31, 11), purpose="noise").double().flatten()
        size = drawn.numel()
        assert abs(drawn.mean()) < 4 / math.sqrt(size)
        assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / size)
        assert abs((drawn**3).mean()) < 4 * math.sqrt(15 / size)
        assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96 / size)
        assert torch.isfinite(drawn).all()

    def test_follows_the_distribution_function(self):
        drawn = row_normal(row_keys(101), (499,), purpose="noise").double().flatten().sort().values
        ideal = torch.special.ndtr(drawn)
        empirical = (torch.arange(len(drawn), dtype=torch.float64) + 0.5) / len(drawn)
        assert (ideal - empirical).abs().max() < 1.95 / math.sqrt(len(drawn))  # Kolmogorov, 0.1 %

    def test_its_halves_from_one_box_muller_pair_are_uncorrelated(self):
        drawn = row_normal(row_keys(499), (41, 4), purpose="noise").double().reshape(-1, 4)
        correlations = torch.corrcoef(drawn.T) - torch.eye(4)
        assert correlations.abs().max() < 4 / math.sqrt(len(drawn))
        squares = torch.corrcoef((drawn**2).T) - torch.eye(4)
        assert squares.abs().max() < 4 / math.sqrt(len(drawn))

    def test_rows_purposes_and_visits_are_independent(self):
        keys = row_keys(2)
        streams = [
            *row_normal(keys, (9973,), purpose="noise"),
            row_normal(keys, (9973,), purpose="vae")[0],
            row_normal(keys, (9973,), purpose="noise_candidate")[0],
            row_normal(row_keys(1, draw=1), (9973,), purpose="noise")[0],
        ]
        correlations = torch.corrcoef(torch.stack(streams).double()) - torch.eye(5)
        assert correlations.abs().max() < 4 / math.sqrt(9973)

    @pytest.mark.parametrize("shape", [(1,), (3,), (4,), (5, 7), (2, 3, 5)])
    def test_any_shape_is_filled(self, shape):
        drawn = row_normal(row_keys(3), shape, purpose="noise")
        assert drawn.shape == (3, *shape)
        assert drawn.flatten().unique().numel() == drawn.numel()

    def test_smallest_uniform_does_not_become_infinite(self):
        """Box and Muller take the logarithm of a number in (0, 1]: at most sqrt(48 log 2) comes out."""
        drawn = row_normal(row_keys(1009), (997,), purpose="noise")
        assert drawn.abs().max() < 5.77


class TestInvariance:
    @pytest.mark.parametrize("split", [(1, 6), (3, 4), (2, 2, 3)])
    def test_rows_draw_the_same_in_any_split(self, split):
        keys = row_keys(7)
        for draw in (
            lambda part: row_normal(part, (5, 3), purpose="noise"),
            lambda part: row_uniform(part, 3, purpose="timestep"),
        ):
            assert torch.equal(draw(keys), torch.cat([draw(part) for part in keys.split(split)]))

    def test_rows_draw_the_same_in_any_order(self):
        keys, order = row_keys(7), torch.tensor([6, 2, 0, 5, 1, 4, 3])
        assert torch.equal(
            row_normal(keys[order], (5,), purpose="noise"), row_normal(keys, (5,), purpose="noise")[order]
        )

    def test_global_generator_is_not_touched(self):
        before = torch.get_rng_state()
        row_normal(row_keys(2), (5,), purpose="noise")
        assert torch.equal(torch.get_rng_state(), before)

    def test_purposes_have_their_own_streams(self):
        purposes = ["noise", "timestep", "vae", "caption_dropout", "augmentation", "noise_candidate"]
        assert len({stream_of(purpose) for purpose in purposes}) == len(purposes)
        assert all(0 <= stream_of(purpose) <= MASK for purpose in purposes)


def test_annotations_of_ours_are_checked_while_testing():
    """What tests/conftest.py does to the hook keeps it: two axes are not one."""
    with pytest.raises(Exception, match="Type-check error"):
        row_uniform(torch.zeros(2, 3, dtype=torch.int64), 5, purpose="noise")
    assert row_uniform(torch.zeros(2, dtype=torch.int64), 5, purpose="noise").shape == (2, 5)
