"""The chunked head: log-softmax of full logits in value, gradient and every dtype, without the logits."""

import peft
import pytest
import torch
from jaxtyping import config
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmalign.errors import ConfigError, ShapeError, UnknownNameError
from mmalign.likelihood import log_sum_squares, normalised_entropy, vocabulary_kl
from mmalign.likelihood.tokens import TokenHead, TokenStates, head_log_probs, head_statistics, token_head

SCORED, FEATURES, VOCABULARY = 7, 5, 23
STATISTICS = ("kl", "reverse_kl", "normalised_entropy", "log_sum_squares")


def drawn(*shape, seed=0, dtype=torch.float64, grad=True):
    value = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return value.requires_grad_(grad)


def tokens_of(scored=SCORED, vocabulary=VOCABULARY):
    return torch.randint(vocabulary, (scored,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def unchecked():
    """What a user's script meets, whose annotations nobody checks."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


@pytest.fixture
def hidden():
    return drawn(SCORED, FEATURES)


@pytest.fixture(params=["plain", "bias", "softcap", "scale", "all"])
def head(request):
    kind = request.param
    return TokenHead(
        drawn(VOCABULARY, FEATURES, seed=2),
        drawn(VOCABULARY, seed=3) if kind in ("bias", "all") else None,
        softcap=2.5 if kind in ("softcap", "all") else None,
        scale=0.75 if kind in ("scale", "all") else 1.0,
    )


def full_logits(hidden, head):
    """The definition, with autograd's own gradients."""
    logits = F.linear(hidden, head.weight, head.bias) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def full_log_probs(hidden, head, tokens):
    return full_logits(hidden, head).log_softmax(-1)[torch.arange(len(tokens)), tokens]


def gradients(values, *tensors):
    weights = drawn(*values.shape, seed=9, dtype=values.dtype, grad=False)
    return torch.autograd.grad((values * weights).sum(), [value for value in tensors if value is not None])


class TestLogProbabilities:
    @pytest.mark.parametrize("chunk", [None, 1, 2, 7, 11])
    def test_equal_log_softmax_of_full_logits_in_value_and_gradient(self, hidden, head, chunk):
        found = head_log_probs(hidden, head, tokens_of(), chunk=chunk)
        expected = full_log_probs(hidden, head, tokens_of())
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        leaves = (hidden, head.weight, head.bias)
        for one, other in zip(gradients(found, *leaves), gradients(expected, *leaves), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("chunk", [None, 2])
    def test_frozen_head_makes_its_logits_once_and_gives_the_same_gradient(
        self, hidden, head, chunk, monkeypatch
    ):
        bias = None if head.bias is None else head.bias.detach()
        frozen = TokenHead(head.weight.detach(), bias, head.softcap, head.scale)
        products, original = [], torch.mm

        def watched(*args, **kwargs):
            products.append(tuple(original(*args, **kwargs).shape))
            return original(*args, **kwargs)

        monkeypatch.setattr(torch, "mm", watched)
        found = head_log_probs(hidden, frozen, tokens_of(), chunk=chunk)
        (gradient,) = gradients(found, hidden)
        assert sum(rows for rows, columns in products if columns == VOCABULARY) == SCORED
        expected = full_log_probs(hidden, head, tokens_of())
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, gradients(expected, hidden)[0], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_frozen_head_in_half_precision_gives_the_gradient_in_the_dtype_of_the_states(self, dtype):
        hidden, weight = (
            drawn(SCORED, 97, dtype=dtype),
            drawn(VOCABULARY, 97, seed=2, dtype=dtype, grad=False),
        )
        found = head_log_probs(hidden, TokenHead(weight), tokens_of())
        leaf = hidden.detach().double().requires_grad_()
        expected = full_log_probs(leaf, TokenHead(weight.double()), tokens_of())
        (one,), (other,) = (
            torch.autograd.grad(values.sum(), leaves)
            for values, leaves in ((found, [hidden]), (expected, [leaf]))
        )
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=2e-2, atol=2e-2)

    def test_numerical_derivative_agrees(self, hidden, head):
        def values(hidden, weight, *bias):
            whole = TokenHead(weight, bias[0] if bias else None, head.softcap, head.scale)
            return head_log_probs(hidden, whole, tokens_of(), chunk=3)

        given = [value for value in (hidden, head.weight, head.bias) if value is not None]
        assert torch.autograd.gradcheck(values, given)

    def test_float32_stays_float32_and_near_the_truth(self, hidden, head):
        def narrow(value):
            return None if value is None else value.detach().float()

        small = TokenHead(narrow(head.weight), narrow(head.bias), head.softcap, head.scale)
        found = head_log_probs(narrow(hidden), small, tokens_of())
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found.double(), full_log_probs(hidden, head, tokens_of()), rtol=1e-5, atol=1e-5
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_products_are_kept_in_float32(self, dtype):
        """At logits of size 40 a head that rounds them to bfloat16 is off by 0.1; this one is not."""
        hidden, weight = drawn(SCORED, 97, dtype=dtype), drawn(VOCABULARY, 97, seed=2, dtype=dtype)
        found = head_log_probs(hidden, TokenHead(weight), tokens_of())
        wide = TokenHead(weight.detach().double().requires_grad_())
        leaf = hidden.detach().double().requires_grad_()
        expected = full_log_probs(leaf, wide, tokens_of())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        mine = torch.autograd.grad(found.sum(), [hidden, weight])
        theirs = torch.autograd.grad(expected.sum(), [leaf, wide.weight])
        for one, other in zip(mine, theirs, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), other, rtol=2e-2, atol=2e-2)

    def test_likely_token_among_large_logits_keeps_its_digits(self):
        weight = torch.tensor([[1000.0], [1000.0 - 8.0]])
        found = head_log_probs(torch.ones(1, 1), TokenHead(weight), torch.tensor([0]))
        expected = -torch.log1p(torch.exp(torch.tensor(-8.0, dtype=torch.float64)))
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-3, atol=0.0)

    def test_excluded_token_has_no_probability_and_spoils_nothing(self, hidden):
        bias = torch.zeros(VOCABULARY, dtype=torch.float64)
        bias[5] = -torch.inf
        head = TokenHead(drawn(VOCABULARY, FEATURES, seed=2), bias)
        values = head_log_probs(hidden, head, torch.tensor([5, 1, 2, 3, 4, 6, 7]))
        assert values[0] == -torch.inf
        assert values[1:].isfinite().all()
        (gradient,) = torch.autograd.grad(values[1:].sum(), hidden)
        assert gradient.isfinite().all()

    def test_nothing_scored_gives_nothing_and_zero_gradients(self, head):
        hidden = drawn(0, FEATURES)
        found = head_log_probs(hidden, head, torch.zeros(0, dtype=torch.int64))
        assert found.shape == (0,)
        first, second = torch.autograd.grad(found.sum(), [hidden, head.weight])
        assert first.shape == (0, FEATURES)
        assert not second.any()


class TestMemory:
    @pytest.mark.parametrize("statistic", [False, True])
    def test_nothing_of_the_size_of_the_logits_is_kept(self, hidden, head, statistic):
        kept = []

        def keep(value):
            kept.append(tuple(value.shape))
            return value

        states = TokenStates(hidden, head)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            if statistic:
                head_statistics(states, states, wants=STATISTICS, chunk=2)
            else:
                head_log_probs(hidden, head, tokens_of(), chunk=2)
        assert (SCORED, FEATURES) in kept
        assert not [shape for shape in kept if VOCABULARY in shape and shape[0] != VOCABULARY]

    def test_no_tile_is_larger_than_asked(self, hidden, head, monkeypatch):
        seen = []
        original = torch.mm

        def watched(*args, **kwargs):
            seen.append(tuple(original(*args, **kwargs).shape))
            return original(*args, **kwargs)

        monkeypatch.setattr(torch, "mm", watched)
        head_log_probs(hidden, head, tokens_of(), chunk=2).sum().backward()
        assert {shape[0] for shape in seen if shape[1] == VOCABULARY} == {1, 2}

    def test_frozen_head_gets_no_gradient_and_none_is_computed(self, hidden, monkeypatch):
        shapes = []
        original = torch.mm

        def watched(first, second, **kwargs):
            shapes.append((first.shape[0], second.shape[1]))
            return original(first, second, **kwargs)

        monkeypatch.setattr(torch, "mm", watched)
        weight = drawn(VOCABULARY, FEATURES, seed=2, grad=False)
        head_log_probs(hidden, TokenHead(weight), tokens_of()).sum().backward()
        assert weight.grad is None
        assert (VOCABULARY, FEATURES) not in shapes
        assert hidden.grad is not None

    def test_frozen_states_still_train_the_head(self, head):
        head_log_probs(drawn(SCORED, FEATURES, grad=False), head, tokens_of()).sum().backward()
        assert head.weight.grad is not None

    def test_no_grad_records_nothing(self, hidden, head):
        with torch.no_grad():
            values = head_log_probs(hidden, head, tokens_of())
        assert not values.requires_grad


class TestArithmetic:
    def test_autocast_rounds_operands_once_and_keeps_the_rest_wide(self):
        hidden, weight = (
            drawn(SCORED, 97, dtype=torch.float32),
            drawn(VOCABULARY, 97, seed=2, dtype=torch.float32),
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = head_log_probs(hidden, TokenHead(weight), tokens_of())
        rounded = [value.detach().bfloat16().double() for value in (hidden, weight)]
        expected = full_log_probs(rounded[0], TokenHead(rounded[1]), tokens_of())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        exact = full_log_probs(hidden.detach().double(), TokenHead(weight.detach().double()), tokens_of())
        assert (found.double() - exact).abs().max() > 1e-3
        assert all(
            value.dtype == torch.float32 for value in torch.autograd.grad(found.sum(), [hidden, weight])
        )

    def test_backward_inside_autocast_changes_nothing(self, hidden, head):
        hidden = hidden.detach().float().requires_grad_()
        small = TokenHead(head.weight.detach().float())
        outside = torch.autograd.grad(head_log_probs(hidden, small, tokens_of()).sum(), hidden)[0]
        values = head_log_probs(hidden, small, tokens_of())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = torch.autograd.grad(values.sum(), hidden)[0]
        assert torch.equal(inside, outside)

    def test_head_in_another_dtype_than_the_states_is_multiplied_in_the_wider(self, hidden):
        states, weight = hidden.detach().bfloat16(), drawn(VOCABULARY, FEATURES, seed=2, dtype=torch.float32)
        found = head_log_probs(states, TokenHead(weight), tokens_of())
        expected = full_log_probs(states.double(), TokenHead(weight.detach().double()), tokens_of())
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("around", ["body", "head"])
    def test_gradient_checkpointing_outside_changes_nothing(self, head, around):
        body, given = nn.Linear(3, FEATURES).double(), drawn(SCORED, 3, seed=5)

        def whole(value):
            return head_log_probs(torch.tanh(body(value)), head, tokens_of())

        if around == "head":
            values = checkpoint(whole, given, use_reentrant=False)
        else:
            states = checkpoint(lambda value: torch.tanh(body(value)), given, use_reentrant=False)
            values = head_log_probs(states, head, tokens_of())
        found = torch.autograd.grad(values.sum(), [given, body.weight])
        expected = torch.autograd.grad(whole(given).sum(), [given, body.weight])
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


class TestStatistics:
    @pytest.mark.parametrize("chunk", [None, 2])
    def test_equal_those_of_full_logits_in_value_and_gradient(self, hidden, head, chunk):
        other = TokenStates(drawn(SCORED, FEATURES, seed=6), TokenHead(drawn(VOCABULARY, FEATURES, seed=7)))
        found = head_statistics(TokenStates(hidden, head), other, wants=STATISTICS, chunk=chunk)
        policy, reference = full_logits(hidden, head), full_logits(other.hidden, other.head).detach()
        expected = {
            "kl": vocabulary_kl(reference, policy),
            "reverse_kl": vocabulary_kl(reference, policy, direction="policy_from_reference"),
            "normalised_entropy": normalised_entropy(policy),
            "log_sum_squares": log_sum_squares(policy),
        }
        assert list(found) == list(STATISTICS)
        leaves = (hidden, head.weight, head.bias)
        for name in STATISTICS:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)
            mine = torch.autograd.grad(
                found[name].sum(), [x for x in leaves if x is not None], retain_graph=True
            )
            theirs = gradients_of_sum(expected[name], leaves)
            for one, other_gradient in zip(mine, theirs, strict=True):
                torch.testing.assert_close(one, other_gradient, rtol=1e-10, atol=1e-10)

    def test_numerical_derivative_of_all_together_agrees(self, hidden, head):
        other = TokenStates(drawn(SCORED, FEATURES, seed=6), head)

        def values(hidden):
            return torch.stack(
                [*head_statistics(TokenStates(hidden, head), other, wants=STATISTICS).values()]
            )

        assert torch.autograd.gradcheck(values, [hidden])

    def test_reference_gets_no_gradient(self, hidden, head):
        other = TokenStates(drawn(SCORED, FEATURES, seed=6), TokenHead(drawn(VOCABULARY, FEATURES, seed=7)))
        found = head_statistics(TokenStates(hidden, head), other, wants=("kl",))["kl"].sum()
        assert torch.autograd.grad(found, [other.hidden, other.head.weight], allow_unused=True) == (
            None,
            None,
        )

    def test_divergence_from_itself_is_zero(self, hidden, head):
        states = TokenStates(hidden, head)
        found = head_statistics(states, states, wants={"kl", "reverse_kl"})
        assert all(not value.any() for value in found.values())

    def test_half_precision_states_give_float32(self):
        hidden, weight = (
            drawn(SCORED, 97, dtype=torch.bfloat16),
            drawn(VOCABULARY, 97, seed=2, dtype=torch.bfloat16),
        )
        found = head_statistics(TokenStates(hidden, TokenHead(weight)), wants=("log_sum_squares",))
        expected = log_sum_squares(hidden.detach().double() @ weight.detach().double().T)
        assert found["log_sum_squares"].dtype == torch.float32
        torch.testing.assert_close(found["log_sum_squares"].double(), expected, rtol=1e-4, atol=1e-5)

    def test_nothing_scored_and_nothing_wanted_give_nothing(self, head):
        states = TokenStates(drawn(0, FEATURES), head)
        assert head_statistics(states, wants=("normalised_entropy",))["normalised_entropy"].shape == (0,)
        assert head_statistics(states, wants=()) == {}


def gradients_of_sum(values, leaves):
    return torch.autograd.grad(values.sum(), [x for x in leaves if x is not None], retain_graph=True)


class TestHeadOfALayer:
    def test_shares_the_weights_and_gives_the_models_own_log_probabilities(self):
        layer = nn.Linear(FEATURES, VOCABULARY).double()
        states = drawn(SCORED, FEATURES)
        head = token_head(layer, scale=0.5, softcap=3.0)
        assert head.weight is layer.weight
        assert head.bias is layer.bias
        logits = 3.0 * torch.tanh(layer(states) * 0.5 / 3.0)
        expected = -F.cross_entropy(logits, tokens_of(), reduction="none")
        torch.testing.assert_close(head_log_probs(states, head, tokens_of()), expected)

    @pytest.mark.parametrize("settings", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
    def test_adapted_layer_is_refused_with_the_remedy(self, settings):
        model = nn.ModuleDict({"body": nn.Linear(3, FEATURES), "lm_head": nn.Linear(FEATURES, VOCABULARY)})
        lora = peft.LoraConfig(**{"target_modules": ["body"], **settings})
        adapted = peft.get_peft_model(model, lora).base_model.model
        with pytest.raises(ConfigError, match=r"a layer with an adapter.*Leave lm_head out"):
            token_head(adapted["lm_head"])

    def test_other_layers_are_refused(self):
        class Own(nn.Linear):
            def forward(self, value):
                return 2 * super().forward(value)

        with pytest.raises(ConfigError, match="of type Embedding"):
            token_head(nn.Embedding(VOCABULARY, FEATURES))
        with pytest.raises(ConfigError, match="of type Own"):
            token_head(Own(FEATURES, VOCABULARY))
        with pytest.raises(ConfigError, match="without its weights"):
            token_head(nn.Linear(FEATURES, VOCABULARY, device="meta"))
        quantised = nn.Linear(FEATURES, VOCABULARY)
        quantised.weight = nn.Parameter(quantised.weight.detach().to(torch.int8), requires_grad=False)
        with pytest.raises(ConfigError, match="a quantised layer"):
            token_head(quantised)


class TestRefusals:
    def test_wrong_sizes_are_named(self, unchecked, hidden, head):
        with pytest.raises(ShapeError, match=r"head_log_probs tokens: got \[3\], expected \[7\]"):
            head_log_probs(hidden, head, tokens_of(3))
        with pytest.raises(ShapeError, match=r"TokenStates hidden: got \[7, 3\], expected \[scored, 5\]"):
            TokenStates(drawn(SCORED, 3), head)
        with pytest.raises(ShapeError, match=r"2 positions over 23 tokens.*expected 7 positions"):
            head_statistics(TokenStates(hidden, head), TokenStates(hidden[:2], head), wants=("kl",))
        single = TokenStates(hidden, TokenHead(drawn(1, FEATURES)))
        with pytest.raises(ShapeError, match="a vocabulary of at least 2"):
            head_statistics(single, wants=("normalised_entropy",))

    def test_ids_outside_the_vocabulary_are_named(self, hidden, head):
        tokens = tokens_of()
        with pytest.raises(ShapeError, match=r"got 23, expected ids from 0 to 22.*tokenizer"):
            head_log_probs(hidden, head, tokens.index_fill(0, torch.tensor([3]), VOCABULARY))
        with pytest.raises(ShapeError, match=r"got -100"):
            head_log_probs(hidden, head, tokens.index_fill(0, torch.tensor([3]), -100))

    def test_wrong_settings_are_named(self, hidden, head):
        states = TokenStates(hidden, head)
        with pytest.raises(ConfigError, match="head_log_probs chunk: got 0"):
            head_log_probs(hidden, head, tokens_of(), chunk=0)
        with pytest.raises(ConfigError, match="head_statistics chunk: got -1"):
            head_statistics(states, wants=(), chunk=-1)
        with pytest.raises(UnknownNameError, match="reverse_kl"):
            head_statistics(states, states, wants=("revrse_kl",))
        with pytest.raises(ConfigError, match="keep_prediction=True"):
            head_statistics(states, wants=("kl",))
        with pytest.raises(ConfigError, match=r"TokenHead softcap: got 0\.0"):
            TokenHead(head.weight, softcap=0.0)
        with pytest.raises(ConfigError, match=r"TokenHead scale: got 0\.0"):
            TokenHead(head.weight, scale=0.0)
