"""Drawn answers: the policy's own distribution, decided by keys, kept as tokens up to the end of the turn."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmalign.testing.vlm_dialogues import dialogue, load_vlm, shared_vlm, with_adapter
from mmalign.vlm import drawing
from mmalign.vlm.drawing import draw_answers, drawn_token
from mmalign.vlm.pair_making.requests import Sampling

KEYS = torch.tensor([11, 12, 13, 14, 15])


def test_uniform_numbers_give_tokens_as_often_as_the_softmax_says(draw: Callable[..., torch.Tensor]) -> None:
    logits, number = draw(1, 7), 5000
    uniform = (torch.arange(number) + 0.5) / number
    for temperature in (1.0, 0.5):
        found = drawn_token(logits.expand(number, -1), uniform, temperature=temperature)
        shares = torch.bincount(found, minlength=7) / number
        torch.testing.assert_close(
            shares, (logits[0] / temperature).softmax(0).float(), rtol=0, atol=2.0 / number
        )


def test_top_p_draws_from_the_likeliest_tokens_alone() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log().expand(1001, -1)
    uniform = torch.linspace(0, 1 - 1e-6, 1001)
    assert drawn_token(logits, uniform, temperature=1.0, top_p=0.5).unique().tolist() == [1]
    assert drawn_token(logits, uniform, temperature=1.0, top_p=0.7).unique().tolist() == [1, 2]
    assert drawn_token(logits, uniform, temperature=1.0, top_p=1e-9).unique().tolist() == [1]


def test_a_token_without_any_share_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf, -torch.inf]])
    for number in (0.0, 1.0 - 2.0**-24, 1.0):
        assert drawn_token(logits, torch.tensor([number]), temperature=1.0).item() in (1, 2)


@pytest.fixture
def llava(tiny_vlm_folder: Callable[[str], Path]):
    return shared_vlm("llava", tiny_vlm_folder("llava"))


def test_an_answer_depends_on_its_key_and_not_on_what_is_written_beside_it(llava) -> None:
    prompts = [llava.reader.prompt(dialogue(number, prompt="Why? " * number)) for number in (1, 2, 3, 4, 5)]
    sampling = Sampling(max_new_tokens=5, temperature=1.0)
    alone = draw_answers(llava, prompts, KEYS, sampling, batch_size=1)
    together = draw_answers(llava, prompts, KEYS, sampling, batch_size=3)
    turned = draw_answers(llava, prompts[::-1], KEYS.flip(0), sampling, batch_size=5)
    assert alone == together == turned[::-1]


def test_several_answers_to_a_prompt_differ_and_the_global_generator_is_left_alone(llava) -> None:
    prompt = llava.reader.prompt(dialogue(1))
    before = torch.random.get_rng_state()
    answers = draw_answers(llava, [prompt] * 5, KEYS, Sampling(7, 1.0), batch_size=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len({answer.ids for answer in answers}) == 5


def test_an_answer_keeps_the_token_that_ends_it_and_nothing_behind(
    llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = llava.bare_network.get_output_embeddings().weight.shape[0]
    ends = [*drawing.stops(llava, llava.bare_network), *range(7 * size // 8, size)]
    monkeypatch.setattr(drawing, "stops", lambda *_: list(dict.fromkeys(ends)))
    prompt = llava.reader.prompt(dialogue(2))
    answers = draw_answers(llava, [prompt] * 7, torch.arange(7), Sampling(3, 1.0), batch_size=7)
    assert {answer.ended for answer in answers} == {True, False}
    for answer in answers:
        assert not set(answer.ids[:-1]) & set(ends)
        assert (answer.ids[-1] in ends) == answer.ended
        assert answer.ended or len(answer.ids) == 3


def test_the_policy_writes_with_its_adapters_on(tiny_vlm_folder: Callable[[str], Path]) -> None:
    model = load_vlm("llava", tiny_vlm_folder("llava"))
    prompts = [model.reader.prompt(dialogue(3))] * 5
    base = draw_answers(model, prompts, KEYS, Sampling(7, 1.0), batch_size=5)
    trainables = with_adapter(model)
    assert draw_answers(model, prompts, KEYS, Sampling(7, 1.0), batch_size=5) != base
    with trainables.disabled():
        assert draw_answers(model, prompts, KEYS, Sampling(7, 1.0), batch_size=5) == base
