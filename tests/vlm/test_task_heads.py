"""Task tokens and heads: what is scored, what each loss says, where gradients go, and that heads learn."""

import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmalign.errors import ConfigError, ShapeError
from mmalign.likelihood import TokenHead, TokenStates
from mmalign.vlm.task_heads import (
    MaskHead,
    RegionHead,
    SpanHead,
    add_task_tokens,
    assignment_loss,
    mask_loss,
    region_loss,
    span_loss,
    task_states,
    tpo_loss,
)

FEATURES, VOCABULARY, REGION, TEMPORAL, MASK = 11, 13, 10, 11, 12
TOKENS = torch.tensor([3, REGION, 5, MASK, REGION, TEMPORAL, 2])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(module_type: type[nn.Module], *sizes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return module_type(*sizes).double()


@pytest.fixture
def states() -> TokenStates:
    return TokenStates(drawn(7, FEATURES).requires_grad_(), TokenHead(drawn(VOCABULARY, FEATURES, seed=1)))


class TestTokens:
    def test_join_the_vocabulary_once_with_the_mean_embedding(self) -> None:
        words = {word: number for number, word in enumerate(["[UNK]", "a", "box", "here", "."])}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")))
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=5, **sizes))
        old = model.get_input_embeddings().weight.detach().clone()
        found = add_task_tokens(tokenizer, model)
        assert found == {"region": 5, "temporal": 6, "mask": 7}
        assert tokenizer.encode("<time>") == [6]
        weight = model.get_input_embeddings().weight
        assert torch.equal(weight[:5], old)
        torch.testing.assert_close(weight[5:], old.mean(0).expand(3, -1))
        assert model.get_output_embeddings().weight.shape[0] == 8
        assert add_task_tokens(tokenizer, model) == found
        assert model.get_input_embeddings().weight.shape[0] == 8

    def test_of_two_tasks_differ(self) -> None:
        with pytest.raises(ConfigError, match="task tokens: got '<x>, <x>', expected another text"):
            add_task_tokens(None, nn.Linear(1, 1), tokens={"region": "<x>", "mask": "<x>"})

    def test_are_assigned_by_their_own_cross_entropy_alone(self, states: TokenStates) -> None:
        shares = (states.hidden @ states.head.weight.T).log_softmax(-1)
        expected = -torch.stack([shares[1, REGION], shares[3, MASK], shares[4, REGION]]).mean()
        found = assignment_loss(states, TOKENS, [REGION, MASK])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        (gradient,) = torch.autograd.grad(found, states.hidden)
        assert gradient.abs().sum(1).nonzero().flatten().tolist() == [1, 3, 4]

    def test_cost_nothing_in_answers_without_them(self, states: TokenStates) -> None:
        found = assignment_loss(states, torch.ones(7, dtype=torch.int64), [REGION])
        assert float(found.detach()) == 0.0

    def test_need_a_state_each(self, states: TokenStates) -> None:
        with pytest.raises(ShapeError, match=r"task_states tokens: got 5, expected '?7, one per state"):
            task_states(states, TOKENS[:5], REGION)


class TestLosses:
    def test_of_boxes_are_distance_and_generalised_overlap(self) -> None:
        boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 0.2, 0.2]], dtype=torch.float64)
        targets = torch.tensor([[0.3, 0.2, 0.7, 0.8], [0.5, 0.5, 0.9, 1.0]], dtype=torch.float64)
        found = region_loss(boxes, targets, l1_weight=2.0, giou_weight=3.0)
        overlap = generalized_box_iou(boxes, targets).diagonal()
        expected = 2.0 * (boxes - targets).abs().sum(1) / 4 + 3.0 * (1.0 - overlap)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(region_loss(targets, targets), torch.zeros(2).double(), atol=1e-5, rtol=0)

    def test_of_spans_reach_over_gaps(self) -> None:
        """Overlap 0.2 of union 0.6; and two spans 0.2 apart in a hull of 0.6, of which they fill 0.4."""
        spans = torch.tensor([[0.1, 0.5], [0.0, 0.2]], dtype=torch.float64, requires_grad=True)
        targets = torch.tensor([[0.3, 0.7], [0.4, 0.6]], dtype=torch.float64)
        found = span_loss(spans, targets, l1_weight=0.0)
        expected = torch.tensor([1.0 - 0.2 / 0.6, 1.0 + 0.2 / 0.6], dtype=torch.float64)
        torch.testing.assert_close(found.detach(), expected)
        (gradient,) = torch.autograd.grad(found[1], spans)
        assert float(gradient[1, 1]) < 0.0
        moved = span_loss(spans, targets, iou_weight=0.0)
        torch.testing.assert_close(moved.detach(), torch.tensor([0.2, 0.4], dtype=torch.float64))

    def test_of_masks_are_entropy_and_dice(self) -> None:
        logits = torch.zeros(1, 2, 3, dtype=torch.float64)
        targets = torch.tensor([[[True, False, False], [True, False, False]]])
        dice = (2 * 1.0 + 1.0) / (3.0 + 2.0 + 1.0)
        assert float(mask_loss(logits, targets)) == pytest.approx(math.log(2.0) + 1.0 - dice)
        sure = torch.where(targets, 50.0, -50.0)
        assert float(mask_loss(sure, targets)) == pytest.approx(0.0, abs=1e-6)
        empty = torch.zeros_like(targets)
        assert float(mask_loss(torch.full_like(logits, -50.0), empty)) == pytest.approx(0.0, abs=1e-6)

    def test_refuse_targets_without_extent(self) -> None:
        with pytest.raises(ShapeError, match="region_loss targets: got 'a box without area'"):
            region_loss(torch.rand(1, 4), torch.tensor([[0.5, 0.1, 0.5, 0.3]]))
        with pytest.raises(ShapeError, match="span_loss targets: got 'a span without length'"):
            span_loss(torch.rand(1, 2), torch.tensor([[0.5, 0.4]]))

    def test_sum_up_with_weights_and_without_absent_tasks(self) -> None:
        mllm, assign = torch.tensor(2.0), torch.tensor(0.5)
        tasks = {"region": torch.tensor([1.0, 3.0]), "mask": torch.zeros(0)}
        found = tpo_loss(mllm, assign, tasks, weights={"region": 0.25, "mask": 7.0})
        assert float(found.total) == pytest.approx(2.0 + 0.5 + 0.25 * 2.0)
        assert set(found.tasks) == {"region"}
        assert float(tpo_loss(mllm, assign, tasks).total) == pytest.approx(4.5)

    def test_refuse_weights_of_nothing(self) -> None:
        zero = torch.tensor(0.0)
        with pytest.raises(ConfigError, match=r"tpo_loss weights: got .*temporal.*numbers >= 0 of region"):
            tpo_loss(zero, zero, {"region": torch.ones(1)}, weights={"temporal": 1.0})
        with pytest.raises(ConfigError, match=r"tpo_loss weights: got .*-1.0"):
            tpo_loss(zero, zero, {"region": torch.ones(1)}, weights={"region": -1.0})


class TestHeads:
    def test_answer_within_bounds_that_losses_understand(self) -> None:
        states = 20.0 * drawn(5, FEATURES)
        boxes, spans = seeded(RegionHead, FEATURES)(states), seeded(SpanHead, FEATURES)(states)
        assert bool((boxes[:, 2:] > boxes[:, :2]).all())
        assert bool((spans[:, 1] > spans[:, 0]).all())
        masks = seeded(MaskHead, FEATURES, 3)(states, drawn(5, 3, 2, 7, seed=4))
        assert masks.shape == (5, 2, 7)

    def test_teach_the_states_that_name_their_token_and_no_others(self, states: TokenStates) -> None:
        losses = {
            REGION: region_loss(
                seeded(RegionHead, FEATURES)(task_states(states, TOKENS, REGION)),
                torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.2, 0.9, 0.6]], dtype=torch.float64),
            ),
            TEMPORAL: span_loss(
                seeded(SpanHead, FEATURES)(task_states(states, TOKENS, TEMPORAL)),
                torch.tensor([[0.2, 0.3]], dtype=torch.float64),
            ),
            MASK: mask_loss(
                seeded(MaskHead, FEATURES, 3)(task_states(states, TOKENS, MASK), drawn(1, 3, 2, 5, seed=2)),
                drawn(1, 2, 5, seed=3) > 0,
            ),
        }
        for token, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss.sum(), states.hidden)
            touched = gradient.abs().sum(1).nonzero().flatten().tolist()
            assert touched == (token == TOKENS).nonzero().flatten().tolist()

    def test_and_a_language_model_learn_three_tasks_together(self) -> None:
        """A recurrent model reads a word and learns to name its task, its box, its span and its mask."""
        body = seeded(nn.Embedding, VOCABULARY, FEATURES)
        recurrent, output = seeded(nn.RNN, FEATURES, FEATURES), seeded(nn.Linear, FEATURES, VOCABULARY)
        heads = [seeded(RegionHead, FEATURES), seeded(SpanHead, FEATURES), seeded(MaskHead, FEATURES, 5)]
        prompts = torch.tensor([[1, 4], [2, 5], [3, 6]])
        answers = torch.tensor([REGION, TEMPORAL, MASK])
        box = torch.tensor([[0.1, 0.3, 0.4, 0.9]], dtype=torch.float64)
        span = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
        pixels, mask = drawn(1, 5, 3, 7, seed=8), drawn(1, 5, 3, 7, seed=8)[:, 0] > 0
        modules = nn.ModuleList([body, recurrent, output, *heads])
        optimizer = torch.optim.Adam(modules.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)

        def step():
            hidden = recurrent(body(prompts).transpose(0, 1))[0][-1]
            states = TokenStates(hidden, TokenHead(output.weight, output.bias))
            assign = assignment_loss(states, answers, [REGION, TEMPORAL, MASK])
            region, temporal, masked = (
                task_states(states, answers, token) for token in (REGION, TEMPORAL, MASK)
            )
            tasks = {
                "region": region_loss(heads[0](region), box),
                "temporal": span_loss(heads[1](temporal), span),
                "mask": mask_loss(heads[2](masked, pixels), mask),
            }
            return tpo_loss(torch.zeros((), dtype=torch.float64), assign, tasks)

        before = step()
        for _ in range(150):
            optimizer.zero_grad()
            step().total.backward()
            optimizer.step()
            schedule.step()
        after = step()
        assert float(after.assign.detach()) < 0.05 < 1.0 < float(before.assign.detach())
        for task, loss in before.tasks.items():
            assert float(after.tasks[task].detach()) < 0.2 * float(loss.detach())
