"""Statistics of logits against plain softmax arithmetic, gradients included, whatever the chunk."""

import pytest
import torch
from jaxtyping import config
from torch.nn import functional as F

from mmalign.errors import ConfigError, ShapeError
from mmalign.likelihood import token_statistics as statistics

ROWS, POSITIONS, VOCABULARY = 3, 5, 7
CHUNKS = [None, 1, 2, 100]


@pytest.fixture
def unchecked():
    """What a user's script meets, whose annotations nobody checks."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


def draw(*shape, seed=0, dtype=torch.float64):
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logits(seed=0, dtype=torch.float64):
    return draw(ROWS, POSITIONS, VOCABULARY, seed=seed, dtype=dtype).requires_grad_()


def labels():
    values = torch.randint(0, VOCABULARY, (ROWS, POSITIONS), generator=torch.Generator().manual_seed(3))
    values[:, 0] = -100
    values[1, 4] = -100
    return values


def plain_log_probs(given, tokens):
    log_share = given[:, :-1].log_softmax(-1)
    mask = tokens[:, 1:] != -100
    safe = torch.where(mask, tokens[:, 1:], 0)
    return log_share.gather(-1, safe.unsqueeze(-1)).squeeze(-1) * mask, mask


def plain_kl(first, second):
    return (first.softmax(-1) * (first.log_softmax(-1) - second.log_softmax(-1))).sum(-1)


PLAIN = {
    "log_probs": (
        lambda x, chunk: statistics.token_log_probs(x, labels(), chunk=chunk)[0],
        lambda x: plain_log_probs(x, labels())[0],
    ),
    "kl": (
        lambda x, chunk: statistics.vocabulary_kl(logits(1).detach(), x, chunk=chunk),
        lambda x: plain_kl(logits(1).detach(), x),
    ),
    "reverse_kl": (
        lambda x, chunk: statistics.vocabulary_kl(
            logits(1).detach(), x, direction="policy_from_reference", chunk=chunk
        ),
        lambda x: plain_kl(x, logits(1).detach()),
    ),
    "log_sum_squares": (
        lambda x, chunk: statistics.log_sum_squares(x, chunk=chunk),
        lambda x: x.softmax(-1).square().sum(-1).log(),
    ),
    "entropy": (
        lambda x, chunk: statistics.normalised_entropy(x, chunk=chunk),
        lambda x: torch.distributions.Categorical(logits=x).entropy() / torch.log(torch.tensor(7.0).double()),
    ),
}


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", list(PLAIN))
def test_values_and_gradients_equal_plain_arithmetic_whatever_the_chunk(name, chunk):
    ours, plain = PLAIN[name]
    given = logits()
    found, wanted = ours(given, chunk), plain(given)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    weight = draw(*found.shape, seed=5)
    (gradient,) = torch.autograd.grad((weight * found).sum(), given)
    (expected,) = torch.autograd.grad((weight * wanted).sum(), given)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)


def test_log_probs_by_hand():
    """Logits (0, log 3) give probabilities 1/4 and 3/4; the label at position 1 is scored at position 0."""
    given = torch.tensor([[[0.0, 3.0], [5.0, 5.0], [9.0, 9.0]]]).clone()
    given[0, 0, 1] = torch.log(torch.tensor(3.0))
    values, mask = statistics.token_log_probs(given, torch.tensor([[0, 1, -100]]))
    torch.testing.assert_close(values, torch.tensor([[torch.log(torch.tensor(0.75)), 0.0]]))
    assert mask.tolist() == [[True, False]]


def test_position_that_does_not_count_gets_no_gradient_not_even_from_broken_logits():
    given = logits().detach()
    given[:, 3] = float("nan")
    tokens = labels()
    tokens[:, 4] = -100
    given.requires_grad_()
    values, _ = statistics.token_log_probs(given, tokens)
    assert torch.isfinite(values).all()
    values.sum().backward()
    assert torch.isfinite(given.grad[:, :3]).all()
    assert (given.grad[:, 3:].nan_to_num() == 0).all()


def test_gradient_reaches_no_reference():
    reference, policy = logits(1), logits()
    for direction in ("reference_from_policy", "policy_from_reference"):
        statistics.vocabulary_kl(reference, policy, direction=direction).sum().backward()
    assert reference.grad is None
    assert policy.grad is not None


def test_equal_models_have_no_divergence_and_no_gradient():
    policy = logits()
    divergence = statistics.vocabulary_kl(policy.detach(), policy)
    torch.testing.assert_close(divergence, torch.zeros(ROWS, POSITIONS, dtype=torch.float64))
    divergence.sum().backward()
    torch.testing.assert_close(policy.grad, torch.zeros_like(policy))


def test_token_that_both_models_exclude_adds_nothing():
    policy, reference = logits().detach(), logits(1).detach()
    wanted = statistics.vocabulary_kl(reference, policy)

    def excluded(value):
        return F.pad(value, (0, 1), value=float("-inf"))

    policy_more = excluded(policy).requires_grad_()
    for direction in ("reference_from_policy", "policy_from_reference"):
        found = statistics.vocabulary_kl(excluded(reference), policy_more, direction=direction)
        assert torch.isfinite(found).all()
        (gradient,) = torch.autograd.grad(found.sum(), policy_more)
        assert torch.isfinite(gradient).all()
        if direction == "reference_from_policy":
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", list(PLAIN))
def test_half_precision_is_computed_in_float32_and_its_gradient_comes_back_in_its_own(name, dtype):
    ours, _ = PLAIN[name]
    given = logits(dtype=torch.float64).detach().to(dtype).requires_grad_()
    if "kl" in name:
        direction = "policy_from_reference" if name == "reverse_kl" else "reference_from_policy"
        found = statistics.vocabulary_kl(logits(1).detach().to(dtype), given, direction=direction)
    else:
        found = ours(given, None)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert given.grad.dtype == dtype
    assert torch.isfinite(given.grad).all()


def test_no_tensor_of_the_logits_size_is_kept_for_the_backward_pass_but_the_logits():
    kept = []

    def pack(value):
        kept.append(value)
        return value

    given = logits(dtype=torch.float32).detach().to(torch.bfloat16).requires_grad_()
    reference = given.detach().clone()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        total = (
            statistics.token_log_probs(given, labels())[0].sum()
            + statistics.vocabulary_kl(reference, given).sum()
            + statistics.log_sum_squares(given).sum()
            + statistics.normalised_entropy(given).sum()
        )
    large = {value.data_ptr() for value in kept if value.numel() >= given.numel()}
    assert large == {given.data_ptr(), reference.data_ptr()}
    total.backward()


def test_entropy_is_one_for_equal_tokens_and_zero_for_a_certain_one():
    flat = torch.zeros(2, 3, 5)
    certain = torch.zeros(2, 3, 5)
    certain[..., 1] = 1e4
    torch.testing.assert_close(statistics.normalised_entropy(flat), torch.ones(2, 3))
    torch.testing.assert_close(statistics.normalised_entropy(certain), torch.zeros(2, 3))


def test_segments_are_added_up_by_number():
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0, float("nan")]], requires_grad=True)
    segments = torch.tensor([[1, 3, 1, 0, -100]])
    sums = statistics.sum_by_segment(values, segments, 3)
    assert sums.tolist() == [[5.0, 0.0, 2.0]]
    sums.sum().backward()
    assert values.grad.tolist() == [[1.0, 1.0, 1.0, 0.0, 0.0]]


def test_labels_of_another_shape_are_refused(unchecked):
    with pytest.raises(ShapeError, match=r"labels: got \[3, 4\], expected \[3, 5\]"):
        statistics.token_log_probs(logits(), labels()[:, 1:])


def test_single_position_is_refused():
    with pytest.raises(ShapeError, match="at least 2 positions"):
        statistics.token_log_probs(logits()[:, :1], labels()[:, :1])


def test_logits_of_two_vocabularies_are_refused(unchecked):
    with pytest.raises(ShapeError, match="reference has shape"):
        statistics.vocabulary_kl(logits()[..., 1:], logits())


def test_unknown_direction_is_refused(unchecked):
    with pytest.raises(ConfigError, match="direction: got 'both'"):
        statistics.vocabulary_kl(logits(), logits(), direction="both")


def test_chunk_without_positions_is_refused():
    with pytest.raises(ConfigError, match="chunk: got 0"):
        statistics.log_sum_squares(logits(), chunk=0)


def test_integers_are_no_logits(unchecked):
    with pytest.raises(ShapeError, match="expected floating logits"):
        statistics.log_sum_squares(torch.zeros(2, 3, 5, dtype=torch.int64))


def test_vocabulary_of_one_token_has_no_entropy():
    with pytest.raises(ShapeError, match="at least 2 tokens"):
        statistics.normalised_entropy(torch.zeros(2, 3, 1))


@pytest.mark.compiled
def test_statistics_compile_without_breaks():
    tokens, reference = labels(), logits(1).detach()

    def total(x):
        return (
            statistics.token_log_probs(x, tokens, chunk=2)[0].sum()
            + statistics.vocabulary_kl(reference, x, chunk=2).sum()
            + statistics.vocabulary_kl(reference, x, direction="policy_from_reference").sum()
            + statistics.log_sum_squares(x).sum()
            + statistics.normalised_entropy(x).sum()
        )

    given = logits()
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(given), total(given)
    torch.testing.assert_close(found, wanted)
    (gradient,) = torch.autograd.grad(found, given)
    (expected,) = torch.autograd.grad(wanted, given)
    torch.testing.assert_close(gradient, expected)
