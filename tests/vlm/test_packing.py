"""Rows of a prompt and its answers: layout, places, and who sees whom."""

from typing import Any

import torch

from mmalign.vlm.inputs import AnswerTokens, Medium, PromptTokens
from mmalign.vlm.packing import inputs_of, lay_out, visible


def _prompt(length: int, *, media: tuple[Medium, ...] = (), blocks: list[int] | None = None) -> PromptTokens:
    ids = torch.arange(length) + 10
    kinds = torch.zeros_like(ids)
    for number in range(sum(medium.num_tokens for medium in media)):
        kinds[1 + number] = 1
    return PromptTokens(
        ids=ids,
        kinds=kinds,
        positions=torch.arange(length).unsqueeze(0),
        following=length,
        blocks=None if blocks is None else torch.tensor(blocks),
        media=media,
    )


def _answer(prompt: int, *ids: int, **numbers: Any) -> AnswerTokens:
    return AnswerTokens(prompt, torch.tensor(ids), **numbers)


def _no_media(*_: Any) -> Any:
    raise AssertionError


def _example(prompts: list[PromptTokens], *answers: AnswerTokens) -> dict[str, Any]:
    return {"prompts": tuple(prompts), "answers": answers}


def test_answers_of_one_prompt_share_its_row_and_others_stand_alone() -> None:
    example = _example([_prompt(3), _prompt(2)], _answer(0, 1, 2), _answer(0, 3), _answer(1, 4, 5))
    packed = inputs_of(lay_out([example], _no_media, packed=True, native=False))
    assert packed.ids.tolist() == [[10, 11, 12, 1, 2, 3], [10, 11, 4, 5, 0, 0]]
    assert packed.segment.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 1, 1, -1, -1]]
    assert packed.step[0].tolist() == [0, 1, 2, 3, 4, 3]
    assert packed.is_packed
    plain = inputs_of(lay_out([example], _no_media, packed=False, native=False))
    assert plain.ids.tolist() == [[10, 11, 12, 1, 2], [10, 11, 12, 3, 0], [10, 11, 4, 5, 0]]
    assert not plain.is_packed


def test_every_scored_token_is_predicted_by_the_one_before_it_along_its_own_path() -> None:
    example = _example([_prompt(3), _prompt(2)], _answer(0, 1, 2), _answer(0, 3), _answer(1, 4, 5))
    collated = lay_out([example], _no_media, packed=True, native=False)
    inputs = inputs_of(collated)
    tokens = collated["clean"].flatten()[inputs.place]
    assert tokens.tolist() == [1, 2, 3, 4, 5]
    before = inputs.ids.flatten()[inputs.source]
    assert before.tolist() == [12, 1, 12, 11, 4]


def test_the_order_of_candidates_survives_prompts_that_alternate() -> None:
    example = _example([_prompt(3), _prompt(2)], _answer(1, 1), _answer(0, 2), _answer(1, 3))
    collated = lay_out([example], _no_media, packed=True, native=False)
    assert collated["clean"][0, :, 0].tolist() == [1, 2, 3]
    inputs = inputs_of(collated)
    assert inputs.ids.flatten()[inputs.source].tolist() == [11, 12, 11]


def test_an_answer_sees_its_prompt_and_itself_and_no_other_answer() -> None:
    example = _example([_prompt(2)], _answer(0, 1, 2), _answer(0, 3))
    sees = visible(inputs_of(lay_out([example], _no_media, packed=True, native=False)))[0, 0]
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert sees.int().tolist() == expected


def test_blocks_see_each_other_both_ways_and_windows_count_along_the_path() -> None:
    example = _example([_prompt(4, blocks=[-1, 0, 0, -1])], _answer(0, 1, 2, 3), _answer(0, 4))
    inputs = inputs_of(lay_out([example], _no_media, packed=True, native=False))
    assert visible(inputs)[0, 0, 1].int().tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    windowed = visible(inputs, window=3)[0, 0].int().tolist()
    assert windowed[7] == [0, 0, 1, 1, 0, 0, 0, 1]  # the second answer: its step is 4, whatever lies between
    assert windowed[6] == [0, 0, 0, 0, 1, 1, 1, 0]


def test_nothing_sees_what_lies_behind_the_end_of_a_row() -> None:
    rows = [_example([_prompt(2)], _answer(0, 1)), _example([_prompt(3)], _answer(0, 2, 3))]
    sees = visible(inputs_of(lay_out(rows, _no_media, packed=True, native=False)))[0, 0]
    assert not sees[:3, 3:].any()
    assert sees.any(dim=1).all()  # a softmax over nothing is NaN, and its gradient spreads


def test_shared_media_are_handed_over_once_and_placed_wherever_they_are_shown() -> None:
    one, other = (
        Medium("image", {"pixel_values": torch.full((1, 3), float(n))}, 2, f"digest {n}", "") for n in (1, 2)
    )
    rows = [
        _example([_prompt(5, media=(one,)), _prompt(5, media=(other,))], _answer(0, 1), _answer(1, 2)),
        _example([_prompt(5, media=(one,))], _answer(0, 3)),
    ]
    given: list[Any] = []

    def join(kind: str, media: Any, whole: bool) -> Any:
        assert not whole
        given.append((kind, [medium.digest for medium in media]))
        return [{"pixel_values": torch.cat([medium.tensors["pixel_values"] for medium in media])}], [0, 2]

    inputs = inputs_of(lay_out(rows, join, packed=True, native=False))
    assert given == [("image", ["digest 1", "digest 2"])]
    assert inputs.visual["image"].source.tolist() == [0, 1, 2, 3, 0, 1]
    assert inputs.visual["image"].place.tolist() == [1, 2, 7, 8, 13, 14]
    assert inputs.media["image"][0]["pixel_values"][:, 0].tolist() == [1.0, 2.0]


def test_numbers_of_the_data_stand_at_their_candidates_and_tokens() -> None:
    row = _example(
        [_prompt(2)],
        _answer(0, 1, 2, per_answer={"severity": 2.0}, per_token={"changed": torch.tensor([0.0, 1.0])}),
        _answer(0, 3, per_answer={"severity": 3.0}, per_token={"changed": torch.tensor([5.0])}),
    )
    collated = lay_out([row], _no_media, packed=True, native=False)
    assert collated["recorded.severity"].tolist() == [[2.0, 3.0]]
    assert collated["recorded.changed"].tolist() == [[[0.0, 1.0], [5.0, 0.0]]]


def test_inputs_move_as_a_whole() -> None:
    example = _example([_prompt(2)], _answer(0, 1, 2))
    inputs = inputs_of(lay_out([example], _no_media, packed=True, native=False)).to("meta")
    assert {inputs.ids.device.type, inputs.place.device.type, inputs.segment.device.type} == {"meta"}
