"""Rules outside the loss: against plain re-statements, the library that published them, and their limits."""

import math
from types import SimpleNamespace

import pytest
import torch
from jaxtyping import config
from torch import Tensor

from mmalign.errors import CheckpointError, ConfigError, HyperparameterError, ShapeError
from mmalign.likelihood.bema import BemaRule, BemaState
from mmalign.likelihood.checkpoint_pool import CheckpointPool
from mmalign.likelihood.reference_rules import (
    SyncRule,
    extrapolate,
    geometric_mixture,
    merge_weights,
    mix_weights,
    previous_iterate,
)

SHAPES = {"to_q.weight": (3, 5), "to_q.bias": (3,)}


def weights(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in SHAPES.items()
    }


def same(first, second, **tolerance) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], **tolerance)


ROUGH = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", list(ROUGH))


class TestSync:
    @DTYPES
    def test_moves_towards_the_policy_and_keeps_its_dtype(self, dtype):
        reference, policy = weights(0, dtype), weights(1, torch.float64)
        new = mix_weights(reference, policy, mixing=0.3)
        for name, value in new.items():
            plain = 0.7 * reference[name].double() + 0.3 * policy[name]
            assert value.dtype == dtype
            torch.testing.assert_close(value.double(), plain, rtol=ROUGH[dtype], atol=ROUGH[dtype])

    def test_all_of_the_policy_is_a_copy_to_the_bit_and_nothing_of_it_keeps_the_reference(self):
        reference, policy = weights(0, torch.float32), weights(1, torch.float32)
        same(mix_weights(reference, policy, mixing=1.0), policy, rtol=0, atol=0)
        same(mix_weights(reference, policy, mixing=0.0), reference, rtol=0, atol=0)

    def test_changes_nothing_in_place_and_shares_no_memory(self):
        reference, policy = weights(0), weights(1)
        new = mix_weights(reference, policy, mixing=0.5)
        same(reference, weights(0), rtol=0, atol=0)
        for value in (*new.values(), *SyncRule(2, 0.5).updated(reference, policy, step=1).values()):
            value.zero_()
        same(reference, weights(0), rtol=0, atol=0)
        same(policy, weights(1), rtol=0, atol=0)

    def test_results_have_no_gradient(self):
        policy = {name: value.requires_grad_() for name, value in weights(1).items()}
        assert not any(value.requires_grad for value in mix_weights(weights(0), policy, mixing=0.5).values())

    def test_counters_come_from_the_policy(self):
        reference, policy = {"seen": torch.tensor(3)}, {"seen": torch.tensor(7)}
        assert mix_weights(reference, policy, mixing=0.5)["seen"].item() == 7

    def test_moves_after_every_tau_steps_and_only_then(self):
        rule = SyncRule(every=3, mixing=0.25)
        assert [step for step in range(10) if rule.is_due(step)] == [3, 6, 9]
        reference, policy = weights(0), weights(1)
        same(rule.updated(reference, policy, step=2), reference, rtol=0, atol=0)
        same(rule.updated(reference, policy, step=3), mix_weights(reference, policy, mixing=0.25))

    @pytest.mark.parametrize("mixing", [-0.1, 1.1, math.nan])
    def test_a_share_is_a_share(self, mixing):
        with pytest.raises(
            HyperparameterError, match=r"SyncRule mixing: got .*, expected a number in \[0, 1\]"
        ):
            SyncRule(every=1, mixing=mixing)
        with pytest.raises(HyperparameterError, match="mix_weights mixing"):
            mix_weights(weights(0), weights(1), mixing=mixing)

    def test_a_period_is_at_least_a_step(self):
        with pytest.raises(HyperparameterError, match="SyncRule every: got 0, expected at least 1 optimiser"):
            SyncRule(every=0, mixing=0.5)

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("stored", "scores computed beforehand"),
            ("adapters_off", "always the base model"),
            ("none", "no reference"),
        ],
    )
    def test_a_reference_that_cannot_move_is_refused(self, kind, reason):
        with pytest.raises(ConfigError, match=f"got '{kind}', expected a copy.*{reason}.*kind synced"):
            SyncRule(every=1, mixing=0.5).require_live(kind)
        SyncRule(every=1, mixing=0.5).require_live("synced")

    def test_weights_of_another_network_are_refused(self):
        with pytest.raises(
            ShapeError, match=r"reference and policy differ in 1 weights \(first: \['to_q.bias'\]"
        ):
            mix_weights(weights(0), {"to_q.weight": torch.zeros(3, 5)}, mixing=0.5)
        with pytest.raises(ShapeError, match="same names and shapes"):
            mix_weights({"w": torch.zeros(3)}, {"w": torch.zeros(1)}, mixing=0.5)


class TestRounds:
    def test_the_previous_iterate_does_not_move_with_the_policy(self):
        policy = weights(1)
        reference = previous_iterate(policy)
        policy["to_q.bias"].zero_()
        same(reference, weights(1), rtol=0, atol=0)

    @DTYPES
    def test_extrapolation_goes_on_in_the_direction_of_the_last_round(self, dtype):
        current, previous = weights(1, dtype), weights(0, dtype)
        for name, value in extrapolate(current, previous, coefficient=0.3).items():
            plain = 1.3 * current[name].double() - 0.3 * previous[name].double()
            torch.testing.assert_close(value.double(), plain, rtol=ROUGH[dtype], atol=ROUGH[dtype])

    def test_without_a_coefficient_or_a_previous_round_it_is_plain_iteration(self):
        current = weights(1, torch.float32)
        same(extrapolate(current, weights(0, torch.float32), coefficient=0.0), current, rtol=0, atol=0)
        same(extrapolate(current, current, coefficient=0.7), current, rtol=0, atol=0)

    def test_on_logits_it_is_the_extrapolation_of_distributions(self):
        """policy = current * (current / previous)^coefficient, normalised: the form of the paper's idea."""
        current, previous = weights(1)["to_q.bias"], weights(0)["to_q.bias"]
        ahead = extrapolate({"logits": current}, {"logits": previous}, coefficient=0.4)["logits"]
        p, q = current.softmax(-1), previous.softmax(-1)
        plain = p * (p / q) ** 0.4
        torch.testing.assert_close(ahead.softmax(-1), plain / plain.sum())

    def test_momentum_shortens_the_way_on_a_quadratic(self):
        """Proximal steps on a quadratic: with extrapolation the same number of rounds ends nearer."""

        def distance(coefficient: float) -> float:
            reference = trained = {"x": torch.tensor([5.0], dtype=torch.float64)}
            for _ in range(7):
                # argmin of x^2 / 2 + 2 (x - reference)^2
                result = {"x": reference["x"] * 4 / 5}
                reference, trained = extrapolate(result, trained, coefficient=coefficient), result
            return trained["x"].abs().item()

        assert distance(0.3) < 0.5 * distance(0.0)

    @pytest.mark.parametrize("coefficient", [-0.1, math.nan, math.inf])
    def test_a_coefficient_is_finite_and_not_negative(self, coefficient):
        with pytest.raises(
            HyperparameterError, match=r"extrapolate coefficient: got .*, expected a finite number"
        ):
            extrapolate(weights(1), weights(0), coefficient=coefficient)


class TestMerge:
    @DTYPES
    def test_is_the_linear_combination(self, dtype):
        parts, coefficients = [weights(seed, dtype) for seed in range(3)], [0.5, 0.7, -0.2]
        for name, value in merge_weights(parts, coefficients=coefficients).items():
            plain = sum(c * part[name].double() for c, part in zip(coefficients, parts, strict=True))
            assert value.dtype == dtype
            torch.testing.assert_close(value.double(), plain, rtol=ROUGH[dtype], atol=ROUGH[dtype])

    def test_one_part_alone_is_itself(self):
        same(merge_weights([weights(2)], coefficients=[1.0]), weights(2), rtol=0, atol=0)

    def test_every_part_has_its_coefficient(self):
        with pytest.raises(HyperparameterError, match=r"coefficients: got .*, expected 2 finite numbers"):
            merge_weights([weights(0), weights(1)], coefficients=[1.0])
        with pytest.raises(HyperparameterError, match="expected 1 finite numbers"):
            merge_weights([weights(0)], coefficients=[math.nan])
        with pytest.raises(HyperparameterError, match="merge_weights parts: got 0"):
            merge_weights([], coefficients=[])

    def test_adapters_of_other_ranks_are_refused(self):
        with pytest.raises(ShapeError, match="part 0 and part 1 differ"):
            merge_weights([weights(0), {"to_q.weight": torch.zeros(2, 5)}], coefficients=[0.5, 0.5])


class TestBema:
    RULE = BemaRule(every=2, ema_power=0.5, bias_power=0.2, lag=10, multiplier=1.0, after=1)

    def run(self, rule: BemaRule, steps: int) -> tuple[BemaState, dict[str, Tensor]]:
        state = rule.begin(weights(0))
        for step in range(1, steps + 1):
            state = rule.updated(state, weights(step), step=step)
        return state, rule.weights(state, weights(steps), step=steps)

    def test_equals_the_callback_that_published_it(self):
        from trl.trainer.callbacks import BEMACallback

        callback = BEMACallback(update_freq=2, ema_power=0.5, bias_power=0.2, lag=10, update_after=1)
        shown = [torch.nn.Parameter(value) for value in weights(0).values()]
        trained = [torch.nn.Parameter(value) for value in weights(0).values()]
        callback.thetat_params = trained
        callback.theta0_params = [value.detach().clone() for value in trained]
        callback.ema_params = [value.detach().clone() for value in trained]
        callback.running_model = SimpleNamespace(parameters=lambda: shown)
        for step in range(1, 8):
            for value, new in zip(trained, weights(step).values(), strict=True):
                value.data.copy_(new)
            callback.on_step_end(None, SimpleNamespace(global_step=step), None, SimpleNamespace())
        _, ours = self.run(self.RULE, 7)
        same(ours, dict(zip(SHAPES, (value.detach() for value in shown), strict=True)))

    def test_a_plain_loop_gives_the_same(self):
        rule = BemaRule(every=1, ema_power=0.7, bias_power=0.3, lag=2, multiplier=0.5)
        average = start = weights(0)["to_q.weight"]
        for step in range(1, 6):
            weight = (2 + 0.5 * step) ** -0.7
            average = (1 - weight) * average + weight * weights(step)["to_q.weight"]
        plain = average + (2 + 0.5 * 5) ** -0.3 * (weights(5)["to_q.weight"] - start)
        torch.testing.assert_close(self.run(rule, 5)[1]["to_q.weight"], plain)

    def test_the_average_never_weighs_less_than_its_floor(self):
        rule = BemaRule(every=1, ema_power=2.0, bias_power=0.2, lag=10, smallest=0.05)
        assert rule.ema_weight(1000) == 0.05

    def test_without_power_the_average_is_the_policy(self):
        rule = BemaRule(every=1, ema_power=0.0, bias_power=8.0, lag=10)
        state, shown = self.run(rule, 3)
        same(state.average, weights(3))
        same(shown, weights(3), rtol=1e-6, atol=1e-6)

    def test_is_restored_from_a_checkpoint(self):
        state, shown = self.run(self.RULE, 7)
        again = BemaState.from_state_dict(state.state_dict())
        same(self.RULE.weights(again, weights(7), step=7), shown, rtol=0, atol=0)

    def test_a_damaged_checkpoint_is_refused(self):
        with pytest.raises(CheckpointError, match=r"got the entry 'middle.w', expected start.NAME"):
            BemaState.from_state_dict({"middle.w": torch.zeros(3)})
        with pytest.raises(CheckpointError, match="1 weights in one part only"):
            BemaState.from_state_dict({"start.w": torch.zeros(3)})

    @pytest.mark.parametrize(
        ("name", "value"),
        [("every", 0), ("ema_power", -1.0), ("bias_power", math.nan), ("lag", 0.5), ("smallest", 2.0)],
    )
    def test_numbers_out_of_range_are_refused(self, name, value):
        settings = {"every": 1, "ema_power": 0.5, "bias_power": 0.2, "lag": 10.0, name: value}
        with pytest.raises(HyperparameterError, match=f"BemaRule {name}: got"):
            BemaRule(**settings)


class TestPool:
    def filled(self, capacity: int, steps: int) -> CheckpointPool:
        pool = CheckpointPool(capacity)
        for step in range(steps):
            pool.add(step, weights(step))
        return pool

    def test_keeps_the_anchor_and_the_newest(self):
        assert self.filled(3, 7).steps == (0, 5, 6)
        assert self.filled(1, 3).steps == (0,)

    def test_gives_the_newest_the_anchor_or_a_random_one(self):
        pool = self.filled(3, 5)
        assert pool.choose("newest")[0] == 4
        assert pool.choose("anchor")[0] == 0
        same(pool.choose("newest")[1], weights(4), rtol=0, atol=0)
        drawn = [
            pool.choose("random", generator=torch.Generator().manual_seed(seed))[0] for seed in range(40)
        ]
        assert set(drawn) == set(pool.steps)

    def test_draws_with_the_generator_it_is_given_and_no_other(self):
        pool, before = self.filled(3, 5), torch.random.get_rng_state()
        first = torch.Generator().manual_seed(7)
        second = torch.Generator().manual_seed(7)
        for _ in range(11):
            assert pool.choose("random", generator=first)[0] == pool.choose("random", generator=second)[0]
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_keeps_copies(self):
        pool, policy = CheckpointPool(2), weights(0)
        pool.add(0, policy)
        policy["to_q.bias"].zero_()
        same(pool.choose("newest")[1], weights(0), rtol=0, atol=0)

    def test_is_restored_from_a_checkpoint(self):
        pool, again = self.filled(3, 5), CheckpointPool(3)
        again.load_state_dict(pool.state_dict())
        assert again.steps == pool.steps
        same(again.choose("newest")[1], weights(4), rtol=0, atol=0)
        again.add(9, weights(9))
        assert again.steps == (0, 4, 9)

    def test_a_damaged_or_larger_checkpoint_is_refused(self):
        with pytest.raises(CheckpointError, match=r"got the entry 'newest.w', expected STEP.NAME"):
            CheckpointPool(3).load_state_dict({"newest.w": torch.zeros(3)})
        with pytest.raises(CheckpointError, match="got 3 policies, expected at most 2"):
            CheckpointPool(2).load_state_dict(self.filled(3, 5).state_dict())

    def test_refuses_what_it_cannot_give(self):
        with pytest.raises(ConfigError, match="got 'an empty pool'"):
            CheckpointPool(3).choose("newest")
        with pytest.raises(ConfigError, match="got 'random without a generator'"):
            self.filled(3, 3).choose("random")
        with pytest.raises(HyperparameterError, match="capacity: got 0"):
            CheckpointPool(0)
        with pytest.raises(HyperparameterError, match="step: got 1, expected a step after 2"):
            self.filled(3, 3).add(1, weights(1))


def test_a_choice_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as in a script, whose annotations nobody checks
    pool = CheckpointPool(3)
    pool.add(1, weights(1))
    with pytest.raises(ConfigError, match="got 'best', expected newest, anchor, or random"):
        pool.choose("best")


class TestGeometricMixture:
    POLICY = torch.tensor([[[1.0, 2.0, -1.0], [0.0, 3.0, 0.5]]], dtype=torch.float64)
    REFERENCE = torch.tensor([[[0.3, -2.0, 1.0], [5.0, 1.0, 0.0]]], dtype=torch.float64)

    def test_is_the_normalised_product_of_powers(self):
        plain = self.POLICY.softmax(-1) ** 0.3 * self.REFERENCE.softmax(-1) ** 0.7
        plain = plain / plain.sum(-1, keepdim=True)
        mixed = geometric_mixture(self.POLICY, self.REFERENCE, mixture_coef=0.7)
        torch.testing.assert_close(mixed.exp(), plain)

    @pytest.mark.parametrize(("coefficient", "side"), [(0.0, POLICY), (1.0, REFERENCE)])
    def test_the_coefficient_is_the_reference_s(self, coefficient, side):
        excluded = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64)
        other = self.REFERENCE if coefficient == 0.0 else self.POLICY
        pair = (side, other + excluded) if coefficient == 0.0 else (other + excluded, side)
        torch.testing.assert_close(geometric_mixture(*pair, mixture_coef=coefficient), side.log_softmax(-1))

    def test_a_token_that_one_side_excludes_is_excluded(self):
        policy = self.POLICY + torch.tensor([0.0, -math.inf, 0.0], dtype=torch.float64)
        mixed = geometric_mixture(policy, self.REFERENCE, mixture_coef=0.5).exp()
        assert torch.equal(mixed[..., 1], torch.zeros(1, 2, dtype=torch.float64))
        torch.testing.assert_close(mixed.sum(-1), torch.ones(1, 2, dtype=torch.float64))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_extreme_logits_stay_finite_and_the_level_of_logits_does_not_matter(self, dtype):
        policy, reference = (1e4 * self.POLICY).to(dtype), (-1e4 * self.REFERENCE).to(dtype)
        policy.requires_grad_()
        mixed = geometric_mixture(policy, reference, mixture_coef=0.5)
        assert mixed.dtype == torch.float32
        (gradient,) = torch.autograd.grad(mixed[..., 0].sum(), policy)
        assert mixed.isfinite().all()
        assert gradient.isfinite().all()
        shifted = geometric_mixture(self.POLICY + 7.0, self.REFERENCE - 3.0, mixture_coef=0.5)
        torch.testing.assert_close(shifted, geometric_mixture(self.POLICY, self.REFERENCE, mixture_coef=0.5))

    @pytest.mark.parametrize("coefficient", [-0.1, 1.1, math.nan])
    def test_a_coefficient_is_a_share(self, coefficient):
        with pytest.raises(HyperparameterError, match="geometric_mixture mixture_coef: got"):
            geometric_mixture(self.POLICY, self.REFERENCE, mixture_coef=coefficient)
