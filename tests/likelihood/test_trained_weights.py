"""Other weights in the place of the trained ones: what is exchanged, what is copied, and what comes back."""

import pytest
import torch
from torch import nn

from mmalign.likelihood.trained_weights import TrainedWeights


@pytest.fixture
def network():
    """Two layers, of which the first one's bias does not train."""
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5, bias=False)).double()
    module[0].bias.requires_grad_(False)
    return module


@pytest.fixture
def trained(network):
    return TrainedWeights(network)


def filled(trained, value):
    return {name: torch.full_like(weight, value) for name, weight in trained.copy().items()}


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_only_what_trains_is_held(trained, network):
    assert list(trained.copy()) == ["0.weight", "1.weight"]
    assert [value.data_ptr() for value in trained.values()] == [
        network[0].weight.data_ptr(),
        network[1].weight.data_ptr(),
    ]


def test_a_copy_stays_what_it_was_and_has_no_graph(trained, network):
    copied, before = trained.copy(), state(network)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(1.0)
    for name, value in copied.items():
        assert torch.equal(value, before[name])
        assert not value.requires_grad


def test_live_values_follow_the_network_and_have_no_graph(trained, network):
    values = trained.values()
    with torch.no_grad():
        network[1].weight.fill_(7.0)
    assert (values[1] == 7.0).all()
    assert not any(value.requires_grad for value in values)


def test_placed_weights_are_copies_where_the_network_is(trained, network):
    given = filled(trained, 2.0)
    placed = trained.placed(given)
    for value in given.values():
        value.fill_(9.0)
    assert all((value == 2.0).all() for value in placed.values())
    elsewhere = TrainedWeights(network.to("meta")).placed(given)
    assert {value.device.type for value in elsewhere.values()} == {"meta"}


def test_a_swap_shows_the_other_weights_and_then_the_trained_ones(trained, network):
    before, other, data = state(network), filled(trained, 2.0), torch.ones(7, 2).double()
    places = [value.data_ptr() for value in network.parameters()]
    with trained.swapped(other):
        assert (network[0].weight == 2.0).all()
        torch.testing.assert_close(network(data), 2.0 * network[0](data).sum(1, keepdim=True).expand(7, 5))
        assert torch.equal(network[0].bias, before["0.bias"])
        # The very tensors: a policy that holds two sets of weights pays for two, not for three.
        assert network[0].weight.data_ptr() == other["0.weight"].data_ptr()
    assert [value.data_ptr() for value in network.parameters()] == places
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all((value == 2.0).all() for value in other.values()), "the other ones are untouched, too"


def test_the_trained_weights_are_back_after_an_error(trained, network):
    before = state(network)

    def broken():
        with trained.swapped(filled(trained, 2.0)):
            message = "no memory"
            raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="no memory"):
        broken()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_trained_weights_are_back_where_a_weight_is_missing(trained, network):
    before, other = state(network), filled(trained, 2.0)
    del other["1.weight"]

    def lacking():
        with trained.swapped(other):
            pass

    with pytest.raises(KeyError, match=r"1\.weight"):
        lacking()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_graph_of_before_a_swap_still_has_the_gradient_of_the_trained_weights(trained, network):
    data = torch.ones(7, 2).double()
    alone = torch.autograd.grad(network(data).square().sum(), network[0].weight)[0]
    loss = network(data).square().sum()
    with trained.swapped(filled(trained, 2.0)), torch.no_grad():
        network(data)
    assert torch.equal(torch.autograd.grad(loss, network[0].weight)[0], alone)


def test_weights_that_fit_have_no_misfits(trained):
    assert trained.misfits(trained.copy()) == []


def test_misfits_are_named_whether_lacking_foreign_or_of_another_shape(trained):
    fitting = trained.copy()
    lacking = {"0.weight": fitting["0.weight"]}
    assert trained.misfits(lacking) == ["1.weight"]
    assert trained.misfits({**fitting, "2.weight": torch.ones(1)}) == ["2.weight"]
    assert trained.misfits({**lacking, "0.bias": torch.ones(3)}) == ["0.bias", "1.weight"]
    assert trained.misfits({**fitting, "1.weight": torch.ones(3, 5)}) == ["1.weight"]
