"""Dialogues as text and tokens: places of media, seams, where answers begin, spans."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from mmalign.batch import Candidate, ContentItem, Message, PreferenceRow
from mmalign.data.rows import FieldError
from mmalign.errors import ConfigError
from mmalign.vlm.prompts import find_seam, messages_of, render, span_weights, split_answer, tokenise

TEXT = ContentItem("text", "")


def _messages(row: PreferenceRow, counts: tuple[int, int], **options: object) -> tuple[Message, ...]:
    given = {"system_prompt": None, "placeholders": ("<|image_pad|>",), **options}
    return messages_of(row, Candidate(), counts=counts, **given)  # type: ignore[arg-type]


def _kinds(messages: tuple[Message, ...]) -> list[str]:
    return [item.type if item.type != "text" else item.text for item in messages[-1].content]


def test_a_row_without_messages_is_one_turn_of_its_media_and_its_prompt() -> None:
    row = PreferenceRow("What?", (), images=("a", "b"), videos=("c",))
    assert _kinds(_messages(row, (2, 1))) == ["image", "image", "video", "What?"]


def test_tags_in_a_prompt_say_where_the_media_are() -> None:
    row = PreferenceRow("<image>\nLeft, or <image> right?", (), images=("a", "b"))
    assert _kinds(_messages(row, (2, 0))) == ["image", "Left, or", "image", "right?"]


def test_tags_in_the_text_of_messages_become_items_where_there_are_none() -> None:
    turns = (
        Message("user", (ContentItem("text", "See <image>"),)),
        Message("assistant", (TEXT,)),
        Message("user", (ContentItem("text", "And?"),)),
    )
    row = PreferenceRow("", (), images=("a",), messages=turns)
    found = _messages(row, (1, 0))
    assert [item.type for item in found[0].content] == ["text", "image"]


@pytest.mark.parametrize("prompt", ["<image> and <image>", "<video>"])
def test_other_numbers_of_media_and_places_are_refused_with_both(prompt: str) -> None:
    row = PreferenceRow(prompt, (), images=("a",), source="rows.jsonl:7")
    with pytest.raises(FieldError, match=r"rows.jsonl:7: media: got \[1 images, 0 videos;") as caught:
        _messages(row, (1, 0))
    assert caught.value.reason == "image_count"


def test_tags_beside_items_are_refused() -> None:
    turn = Message("user", (ContentItem("image"), ContentItem("text", "this <image>")))
    row = PreferenceRow("", (), images=("a",), messages=(turn,))
    with pytest.raises(FieldError, match="<image> among the words") as caught:
        _messages(row, (1, 0))
    assert caught.value.reason == "placeholder_in_text"


def test_the_models_own_placeholder_among_the_words_is_refused() -> None:
    row = PreferenceRow("What is <|image_pad|>?", ())
    with pytest.raises(FieldError, match=r"<\|image_pad\|> among the words"):
        _messages(row, (0, 0))


def test_a_system_prompt_stands_in_front_of_dialogues_without_one() -> None:
    system = Message("system", (ContentItem("text", "Own."),))
    user = Message("user", (ContentItem("text", "Hi"),))
    plain, own = (PreferenceRow("", (), messages=turns) for turns in ((user,), (system, user)))
    assert _messages(plain, (0, 0), system_prompt="Be brief.")[0].content[0].text == "Be brief."
    assert _messages(own, (0, 0), system_prompt="Be brief.") == (system, user)


def test_a_candidate_may_answer_a_prompt_of_its_own() -> None:
    row = PreferenceRow("Row's?", (), images=("a",))
    found = messages_of(row, Candidate(prompt="Its own?"), counts=(1, 0), system_prompt=None, placeholders=())
    assert _kinds(found) == ["image", "Its own?"]


def test_seams_hold_the_space_and_the_end_that_the_template_leaves_out(
    tiny_vlm_folder: Callable[[str], Path],
) -> None:
    expected = {
        "llava": (" ", "</s>"),
        "qwen2_5_vl": ("", "<|im_end|>"),
        "gemma3": ("", "<end_of_turn>"),
        "smolvlm": (" ", "<end_of_utterance>"),
    }
    for family, (lead, end) in expected.items():
        processor = AutoProcessor.from_pretrained(tiny_vlm_folder(family))
        tokenizer = processor.tokenizer
        seam = find_seam(
            processor, specials=sorted(tokenizer.get_added_vocab()), end_of_text=tokenizer.eos_token
        )
        assert (seam.lead, seam.end) == (lead, end), family


def test_a_model_that_cannot_end_an_answer_is_refused() -> None:
    class Plain:
        chat_template = None

    with pytest.raises(ConfigError, match="turns without a token that ends them"):
        find_seam(Plain(), specials=(), end_of_text=None)


def test_the_beginning_is_written_once_whether_template_or_tokenizer_writes_it(
    tiny_vlm_folder: Callable[[str], Path],
) -> None:
    for family in ("gemma3", "llava"):
        processor = AutoProcessor.from_pretrained(tiny_vlm_folder(family))
        text = render(processor, [Message("user", (ContentItem("text", "Hi"),))])
        encoding = tokenise(processor.tokenizer, text)
        assert encoding.ids[0] == processor.tokenizer.bos_token_id
        assert encoding.ids.count(processor.tokenizer.bos_token_id) == 1
        assert len(encoding.offsets) == len(encoding.ids)


def test_a_token_that_merges_prompt_and_answer_belongs_to_the_answer() -> None:
    assert split_answer([1, 2, 3], [[1, 2, 3, 7], [1, 2, 3, 8, 9]]) == 3
    assert split_answer([1, 2, 3], [[1, 2, 3, 7], [1, 2, 33, 9]]) == 2
    assert split_answer([1, 2, 3], [[1, 2]]) == 2


def test_spans_weigh_the_tokens_they_overlap_most(tiny_vlm_folder: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_vlm_folder("causal_lm"))
    text = "There is a red circle."
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    start = text.index("red")
    values = span_weights(text, [(start, start + 3, 5.0)], offsets, default=1.0)
    weighed = "".join(text[a:b] for (a, b), value in zip(offsets, values, strict=True) if value == 5.0)
    assert "red" in weighed
    assert "circle" not in weighed
    assert values.sum() > len(offsets)


def test_the_larger_overlap_wins_and_the_end_of_the_turn_can_be_taken_in() -> None:
    offsets = [(0, 4), (4, 6), (6, 13)]  # the last token ends the turn of a text of six characters
    values = span_weights("abcdef", [(0, 3, 2.0), (3, 5, 3.0), (5, 7, 4.0)], offsets, default=0.0)
    assert torch.equal(values, torch.tensor([2.0, 4.0, 4.0]))


def test_a_span_outside_its_text_is_refused() -> None:
    with pytest.raises(FieldError, match=r"spans: got \[2, 9\], expected 0 <= start <= end <= 5") as caught:
        span_weights("abcd", [(2, 9, 1.0)], [(0, 4)])
    assert caught.value.reason == "bad_span"


def test_a_dialogue_that_the_template_refuses_is_counted(tiny_vlm_folder: Callable[[str], Path]) -> None:
    processor = AutoProcessor.from_pretrained(tiny_vlm_folder("llava"))
    processor.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(
        FieldError, match=r"dialogue: got \[.*'user'.*\].*System role not supported"
    ) as caught:
        render(processor, [Message("user", (ContentItem("text", "Hi"),))])
    assert caught.value.reason == "chat_template"
