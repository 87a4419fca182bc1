import torch

from mmalign.objectives.comparisons import against_rest, ahead, by_columns


def test_ranks_counted_from_who_is_ahead_are_those_of_a_stable_sort():
    key = torch.tensor([[2.0, 1.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 3.0, 2.0]])
    order = key.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(ahead(key).sum(1), order.argsort(dim=1))


def test_of_two_candidates_exactly_one_is_ahead_and_none_of_itself():
    key = torch.randint(0, 3, (7, 5), generator=torch.Generator().manual_seed(0)).double()
    first = ahead(key)
    both = first ^ first.transpose(1, 2)
    assert torch.equal(both, ~torch.eye(5, dtype=torch.bool).expand_as(both))


def test_another_order_of_storage_changes_no_value_and_keeps_the_graph():
    values = torch.arange(10.0).reshape(5, 2).requires_grad_()
    stored = by_columns(values)
    assert torch.equal(stored, values)
    assert stored.stride() == (1, 5)
    (gradient,) = torch.autograd.grad((stored * torch.arange(10.0).reshape(5, 2)).sum(), values)
    assert torch.equal(gradient, torch.arange(10.0).reshape(5, 2))


def test_the_mean_of_the_others_leaves_out_the_item_and_the_padding():
    scores = torch.tensor([[1.0, 2.0, 6.0], [1.0, 2.0, 99.0], [4.0, 99.0, 99.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    expected = torch.tensor([[-3.0, -1.5, 4.5], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(against_rest(scores, valid, "mean"), expected)
