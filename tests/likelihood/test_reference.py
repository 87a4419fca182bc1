"""References: equal at the start, adapters back on after errors, no gradient, averages, refusals."""

import copy

import peft
import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from mmalign.errors import CheckpointError, ConfigError, HyperparameterError, UnknownNameError
from mmalign.likelihood import (
    AdaptersOff,
    EmaReference,
    FrozenCopy,
    NoReference,
    Reference,
    SyncedReference,
    SyncRule,
    adapter_toggle,
    make_reference,
)


class Network(nn.Module):
    """Two layers over an event of seven numbers; the time is added to the input."""

    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(7, 5, dtype=torch.float64)
        self.to_out = nn.Linear(5, 7, dtype=torch.float64)

    def forward(self, noised, timestep):
        return self.to_out(torch.tanh(self.to_q(noised + timestep.unsqueeze(1) / 1000)))


def denoise_with(network):
    return lambda noised, timestep, conditioning: network(noised, timestep)


def adapted(network, **settings):
    config = peft.LoraConfig(**{"r": 3, "target_modules": ["to_q", "to_out"], **settings})
    return peft.inject_adapter_in_model(config, network, adapter_name="default").double()


def move(network, by=0.1):
    """Change every trained weight, as an optimiser would."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += by


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


@pytest.fixture
def batch(make_batch):
    return make_batch(3, 2, (7,))


class TestAdaptersOff:
    def test_equals_the_base_to_the_bit_and_the_logit_is_zero(self, elbo, network, batch):
        base = copy.deepcopy(network)
        model = adapted(network)
        draw = elbo.draw(batch)
        reference = AdaptersOff(denoise_with(model), adapter_toggle(model)).evaluate(elbo, batch, draw)
        policy = elbo.evaluate(denoise_with(model), batch, draw)
        assert torch.equal(reference.error, elbo.evaluate(denoise_with(base), batch, draw).error)
        gap = policy.score - reference.score
        assert torch.equal(5000 * (gap[:, 0] - gap[:, 1]), torch.zeros(3, dtype=torch.float64))

    def test_stays_the_base_while_the_adapters_move(self, elbo, network, batch):
        base = copy.deepcopy(network)
        model = adapted(network)
        move(model)
        draw = elbo.draw(batch)
        reference = AdaptersOff(denoise_with(model), adapter_toggle(model)).evaluate(elbo, batch, draw)
        policy = elbo.evaluate(denoise_with(model), batch, draw)
        assert torch.equal(reference.error, elbo.evaluate(denoise_with(base), batch, draw).error)
        assert not torch.allclose(policy.error, reference.error)

    def test_equals_the_public_switch_of_peft(self, elbo, network, batch):
        model = adapted(network, use_dora=True)
        move(model)
        draw = elbo.draw(batch)
        ours = AdaptersOff(denoise_with(model), adapter_toggle(model)).evaluate(elbo, batch, draw).error
        layers = [
            layer for layer in model.modules() if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer)
        ]
        for layer in layers:
            layer.enable_adapters(False)
        theirs = elbo.evaluate(denoise_with(model), batch, draw).error
        assert torch.equal(ours, theirs)

    def test_adapters_are_on_again_after_an_error(self, elbo, network, batch):
        model = adapted(network)
        move(model)
        draw = elbo.draw(batch)
        before = elbo.evaluate(denoise_with(model), batch, draw).error

        def fails(noised, timestep, conditioning):
            raise MemoryError

        with pytest.raises(MemoryError):
            AdaptersOff(fails, adapter_toggle(model)).evaluate(elbo, batch, draw)
        assert torch.equal(elbo.evaluate(denoise_with(model), batch, draw).error, before)

    def test_never_touches_what_trains(self, elbo, network, batch):
        model = adapted(network)
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        seen = {}

        def watches(noised, timestep, conditioning):
            seen.update({name: parameter.requires_grad for name, parameter in model.named_parameters()})
            seen["grad"] = torch.is_grad_enabled()
            return model(noised, timestep)

        found = AdaptersOff(watches, adapter_toggle(model)).evaluate(elbo, batch, elbo.draw(batch))
        assert seen.pop("grad") is False
        assert seen == flags
        assert not found.score.requires_grad
        assert any(flags.values())
        assert torch.is_grad_enabled()

    def test_step_walks_no_modules(self, elbo, network, batch, monkeypatch):
        model = adapted(network)
        reference = AdaptersOff(denoise_with(model), adapter_toggle(model))
        monkeypatch.setattr(nn.Module, "named_modules", lambda *a, **k: pytest.fail("walked the modules"))
        reference.evaluate(elbo, batch, elbo.draw(batch))

    def test_adapters_that_were_off_stay_off(self, network):
        model = adapted(network)
        toggle = adapter_toggle(model)
        with toggle():
            with toggle():
                pass
            assert model.to_q.disable_adapters
        assert not model.to_q.disable_adapters

    def test_policy_gradient_is_the_same_with_and_without_a_reference_before_it(self, elbo, network, batch):
        model = adapted(network)
        move(model)
        draw = elbo.draw(batch)
        reference = AdaptersOff(denoise_with(model), adapter_toggle(model))
        gradients = []
        for first in (False, True):
            model.zero_grad()
            if first:
                reference.evaluate(elbo, batch, draw)
            elbo.evaluate(denoise_with(model), batch, draw).score.sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))

    def test_network_without_adapters_is_refused(self, network):
        with pytest.raises(ConfigError, match=r"network without adapters.*Add the adapter first"):
            adapter_toggle(network)

    def test_initialisation_that_changes_the_base_is_refused(self, network):
        config = peft.LoraConfig(r=3, target_modules=["to_q"], init_lora_weights="pissa")
        with pytest.raises(ConfigError, match=r"init_lora_weights=pissa.*Use the frozen reference"):
            adapter_toggle(peft.get_peft_model(network.float(), config))

    def test_weights_that_train_outside_the_adapters_are_refused(self, network):
        model = adapted(network)
        model.to_q.base_layer.bias.requires_grad_()
        with pytest.raises(
            ConfigError, match=r"1 trainable weights outside the adapters, first: to_q\.base_layer\.bias"
        ):
            adapter_toggle(model)

    def test_fully_trained_modules_beside_the_adapters_are_switched_too(self, elbo, network, batch):
        base = copy.deepcopy(network)
        config = peft.LoraConfig(r=3, target_modules=["to_q"], modules_to_save=["to_out"])
        model = peft.get_peft_model(network, config).double()
        move(model)
        draw = elbo.draw(batch)
        found = AdaptersOff(denoise_with(model), adapter_toggle(model)).evaluate(elbo, batch, draw)
        assert torch.equal(found.error, elbo.evaluate(denoise_with(base), batch, draw).error)


class TestFrozenCopy:
    @pytest.mark.parametrize("offload", [False, True])
    def test_stays_what_it_was_while_the_policy_moves(self, elbo, network, batch, offload):
        base = copy.deepcopy(network)
        reference = FrozenCopy.copy_of(network, denoise_with, offload=offload)
        move(network)
        draw = elbo.draw(batch)
        found = reference.evaluate(elbo, batch, draw)
        assert torch.equal(found.error, elbo.evaluate(denoise_with(base), batch, draw).error)
        assert not found.score.requires_grad
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert not any(parameter.requires_grad for parameter in reference.network.parameters())

    def test_copy_is_in_evaluation_mode_and_the_policy_keeps_its_own(self, network):
        network.train()
        reference = FrozenCopy.copy_of(network, denoise_with)
        assert not reference.network.training
        assert network.training

    def test_copy_can_have_another_dtype(self, network):
        reference = FrozenCopy.copy_of(network, denoise_with, dtype=torch.float32)
        assert {parameter.dtype for parameter in reference.network.parameters()} == {torch.float32}
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}

    def test_offloaded_copy_returns_to_the_cpu_after_an_error(self, elbo, network, batch):
        moves = []

        class Watched(Network):
            def to(self, *args, **settings):
                moves.append(str(args[0]))
                return super().to(*args, **settings)

        def failing(network):
            def denoise(noised, timestep, conditioning):
                raise MemoryError

            return denoise

        reference = FrozenCopy(Watched(), failing, offload=True)
        with pytest.raises(MemoryError):
            reference.evaluate(elbo, batch, elbo.draw(batch))
        assert moves == ["cpu", "cpu", "cpu"]


class TestEma:
    def test_equals_the_average_of_diffusers(self, elbo, network, batch):
        theirs = EMAModel(network.parameters(), decay=0.7, min_decay=0.7)
        theirs.step(network.parameters())  # its first step copies
        ours = EmaReference(network, denoise_with(network), decay=0.7)
        for step in range(1, 6):
            move(network, by=0.1 * step)
            theirs.step(network.parameters())
            ours.update(step)
        for mine, other in zip(ours.state_dict().values(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(mine, other)
        averaged = copy.deepcopy(network)
        theirs.copy_to(averaged.parameters())
        draw = elbo.draw(batch)
        torch.testing.assert_close(
            ours.evaluate(elbo, batch, draw).error, elbo.evaluate(denoise_with(averaged), batch, draw).error
        )

    def test_one_update_by_hand(self):
        network = nn.Linear(1, 1, bias=False)
        nn.init.constant_(network.weight, 1.0)
        reference = EmaReference(network, lambda noised, timestep, conditioning: noised, decay=0.75)
        nn.init.constant_(network.weight, 3.0)
        reference.update(1)
        assert reference.state_dict()["weight"].item() == 1.5

    def test_trained_weights_are_back_after_an_error(self, elbo, network, batch):
        def fails(noised, timestep, conditioning):
            raise MemoryError

        reference = EmaReference(network, fails, decay=0.5)
        move(network)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        with pytest.raises(MemoryError):
            reference.evaluate(elbo, batch, elbo.draw(batch))
        assert all(torch.equal(one, two) for one, two in zip(before, network.parameters(), strict=True))

    def test_policy_graph_survives_a_reference_in_between(self, elbo, network, batch):
        draw = elbo.draw(batch)
        gradients = []
        for between in (False, True):
            network.zero_grad()
            reference = EmaReference(network, denoise_with(network), decay=0.5)
            for value in reference.state_dict().values():
                value += 1.0
            score = elbo.evaluate(denoise_with(network), batch, draw).score
            if between:
                assert not torch.allclose(reference.evaluate(elbo, batch, draw).score, score.detach())
            score.sum().backward()
            gradients.append([parameter.grad.clone() for parameter in network.parameters()])
        assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))

    def test_only_trained_weights_are_kept_twice(self, network):
        model = adapted(network)
        names = EmaReference(model, denoise_with(model), decay=0.5).state_dict()
        assert names
        assert all("lora_" in name for name in names)

    def test_decay_zero_every_three_steps_is_a_periodic_copy(self, network):
        reference = EmaReference(network, denoise_with(network), decay=0.0, every=3)
        start = network.to_q.weight.detach().clone()
        move(network)
        for step in (1, 2):
            reference.update(step)
            assert torch.equal(reference.state_dict()["to_q.weight"], start)
        reference.update(3)
        assert torch.equal(reference.state_dict()["to_q.weight"], network.to_q.weight)

    def test_state_survives_a_round_trip(self, network):
        first = EmaReference(network, denoise_with(network), decay=0.5)
        move(network)
        first.update(1)
        second = EmaReference(network, denoise_with(network), decay=0.5)
        second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
        for name, value in second.state_dict().items():
            assert torch.equal(value, first.state_dict()[name])

    def test_state_of_another_network_is_refused(self, network):
        reference = EmaReference(network, denoise_with(network), decay=0.5)
        state = reference.state_dict()
        with pytest.raises(CheckpointError, match=r"1 weights differ.*to_q\.bias"):
            reference.load_state_dict({name: value for name, value in state.items() if name != "to_q.bias"})
        with pytest.raises(CheckpointError, match=r"to_q\.bias"):
            reference.load_state_dict({**state, "to_q.bias": torch.zeros(2)})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [({"decay": 1.5}, "EmaReference decay"), ({"decay": 0.5, "every": 0}, "EmaReference every")],
    )
    def test_settings_out_of_range_are_refused(self, network, settings, message):
        with pytest.raises(HyperparameterError, match=message):
            EmaReference(network, denoise_with(network), **settings)


class TestSyncedReference:
    def test_stands_still_between_its_moves_and_follows_its_rule_at_them(self, network):
        reference = SyncedReference(network, denoise_with(network), rule=SyncRule(every=3, mixing=0.25))
        rule = reference.rule
        expected = {name: value.detach().clone() for name, value in network.named_parameters()}
        for step in range(1, 8):
            move(network, by=0.1 * step)
            reference.update(step)
            policy = {name: value.detach() for name, value in network.named_parameters()}
            expected = rule.updated(expected, policy, step=step)
            for name, value in reference.state_dict().items():
                torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=0.0)

    def test_the_hard_rule_makes_the_reference_the_policy_to_the_bit(self, elbo, network, batch):
        reference = SyncedReference(network, denoise_with(network), rule=SyncRule(every=2, mixing=1.0))
        draw = elbo.draw(batch)
        start = elbo.evaluate(denoise_with(network), batch, draw).error
        move(network)
        reference.update(1)
        assert torch.equal(reference.evaluate(elbo, batch, draw).error, start)
        reference.update(2)
        policy = elbo.evaluate(denoise_with(network), batch, draw).error
        assert torch.equal(reference.evaluate(elbo, batch, draw).error, policy)
        assert not torch.allclose(policy, start)

    def test_needs_no_second_network_with_an_adapter(self, network):
        model = adapted(network)
        names = SyncedReference(model, denoise_with(model), rule=SyncRule(every=2, mixing=0.6)).state_dict()
        assert names
        assert all("lora_" in name for name in names)


class TestFactory:
    def test_every_kind_is_a_reference_that_knows_its_name(self, network):
        model = adapted(network)
        rule = SyncRule(every=2, mixing=0.6)
        shared = {"network": model, "make_denoise": denoise_with, "decay": 0.9, "rule": rule}
        for kind in ("adapters_off", "frozen", "ema", "synced", "none"):
            made = make_reference(kind, **shared)
            assert made.kind == kind
            assert isinstance(made, Reference)

    def test_none_has_no_scores(self, elbo, batch):
        assert NoReference().evaluate(elbo, batch, elbo.draw(batch)) is None
        assert NoReference().update(1) is None

    def test_unknown_kind_lists_the_known_ones(self):
        with pytest.raises(UnknownNameError, match=r"kind 'adapter_off'\. Did you mean adapters_off"):
            make_reference("adapter_off")

    @pytest.mark.parametrize(
        ("kind", "missing"),
        [("frozen", "network"), ("adapters_off", "network"), ("ema", "network"), ("stored", "table")],
    )
    def test_missing_argument_is_named(self, kind, missing):
        with pytest.raises(ConfigError, match=f"reference {kind}: got 'no {missing}'"):
            make_reference(kind)

    def test_average_needs_its_decay(self, network):
        with pytest.raises(ConfigError, match="no decay"):
            make_reference("ema", network=network, make_denoise=denoise_with)
        with pytest.raises(ConfigError, match="reference synced: got 'no rule'"):
            make_reference("synced", network=network, make_denoise=denoise_with)
