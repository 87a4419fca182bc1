"""The toy world of dialogues: pictures and their split, the judge, the corpus, pairs, files."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmalign.data.config import DataConfig
from mmalign.data.readers import open_rows
from mmalign.errors import ConfigError
from mmalign.toy.dialogue_answers import DESCRIBE, Judgement, describe, judge, says_yes
from mmalign.toy.dialogue_corpus import corpus_turn
from mmalign.toy.dialogue_exam import Answers, Exam, ExamComparison, draw_exam
from mmalign.toy.dialogue_model import evaluate, to_pixels, tokenise_turns
from mmalign.toy.dialogue_pairs import (
    CONDITIONS,
    Condition,
    DialoguePair,
    dialogue_pairs,
    flip_labels,
    png_bytes,
    shuffle_pictures,
    write_trl,
)
from mmalign.toy.dialogue_parts import load_base, new_model, new_processor, save_base
from mmalign.toy.dialogue_results import describe_rates, exists_polls, exists_rates
from mmalign.toy.dialogue_scenes import (
    CELLS,
    COMPANIONS,
    KINDS,
    Picture,
    draw_pictures,
    is_held_out,
    missing_companions,
    picture_of,
    without,
)
from mmalign.toy.scenes import COLOURS, IMAGE_SIZE, Group

OBJECT = r"(?:a|two|three) \w+ \w+"


def _picture(*kinds: tuple[str, str], seed: int = 0) -> Picture:
    return picture_of(kinds, random.Random(seed))


# --- pictures -----------------------------------------------------------------------------------------------


def test_every_kind_is_painted_in_its_colour_as_often_as_its_group_says() -> None:
    for picture in draw_pictures(31, seed=3, held_out=False):
        assert Counter((m.colour, m.shape) for m in picture.scene.marks) == {
            (group.colour, group.shape): group.count for group in picture.groups
        }
        pixels = picture.array().reshape(-1, 3).astype(int)
        near = {
            colour: int((np.abs(pixels - np.asarray(value)).max(axis=1) <= 8).sum())
            for colour, value in COLOURS.items()
        }
        for colour in COLOURS:
            assert (near[colour] > 20) == any(group.colour == colour for group in picture.groups)


def test_no_shape_leaves_its_cell() -> None:
    cell = IMAGE_SIZE / CELLS
    for picture in draw_pictures(53, seed=5, held_out=False):
        cells = [(mark.x // cell, mark.y // cell) for mark in picture.scene.marks]
        assert len(set(cells)) == len(cells)
        for mark, (column, row) in zip(picture.scene.marks, cells, strict=True):
            assert column * cell <= mark.x - mark.radius
            assert mark.x + mark.radius <= (column + 1) * cell
            assert row * cell <= mark.y - mark.radius
            assert mark.y + mark.radius <= (row + 1) * cell


def test_groups_stand_in_reading_order_and_the_last_kind_can_be_put_last() -> None:
    def first_cell(picture: Picture, group: Group) -> tuple[float, float]:
        size = IMAGE_SIZE / CELLS
        own = [m for m in picture.scene.marks if (m.colour, m.shape) == (group.colour, group.shape)]
        return min((m.y // size, m.x // size) for m in own)

    kinds = (("red", "circle"), ("green", "cross"), ("blue", "square"))
    for seed in range(23):
        picture = picture_of(kinds, random.Random(seed), last=True)
        places = [first_cell(picture, group) for group in picture.groups]
        assert places == sorted(places)
        assert picture.kinds[-1] == kinds[-1]


def test_both_sides_of_the_split_are_fixed_by_the_seed_and_share_no_combination() -> None:
    trained, held = (draw_pictures(200, seed=7, held_out=side) for side in (False, True))
    assert draw_pictures(200, seed=7, held_out=True) == held
    assert draw_pictures(200, seed=11, held_out=True) != held
    assert not {frozenset(p.kinds) for p in trained} & {frozenset(p.kinds) for p in held}
    assert is_held_out(held[0].kinds[::-1])
    assert not any(is_held_out((kind,)) for kind in KINDS)


def test_companions_come_together_more_often_than_other_kinds_but_not_always() -> None:
    pictures = draw_pictures(2000, seed=0, held_out=False)
    calling = [p for p in pictures if len(p.kinds) > 1 and any(kind in COMPANIONS for kind in p.kinds)]
    share = sum(not missing_companions(p.kinds) for p in calling) / len(calling)
    assert 0.2 < share < 0.5
    assert not set(COMPANIONS) & set(COMPANIONS.values())


def test_painting_one_kind_over_leaves_everything_else() -> None:
    picture = _picture(("red", "circle"), ("green", "cross"))
    rest = without(picture, ("green", "cross"))
    assert rest.kinds == (("red", "circle"),)
    assert set(rest.scene.marks) < set(picture.scene.marks)
    assert rest.scene.background == picture.scene.background


# --- the judge ----------------------------------------------------------------------------------------------


def test_the_judge_counts_kinds_that_are_not_there_and_kinds_left_out() -> None:
    picture = Picture((Group(1, "red", "circle"), Group(2, "blue", "cross")), _picture(KINDS[0]).scene)
    true = "There is a red circle. There are two blue crosses."
    assert judge(true, picture) == Judgement(2, 0, 2, 2, 0, readable=True)
    assert judge(f"{true} There is a green square.", picture) == Judgement(3, 1, 2, 2, 0, readable=True)
    assert judge("I see three blue crosses.", picture) == Judgement(1, 0, 1, 2, 1, readable=True)
    assert judge("I see a red cross. I see a red cross.", picture) == Judgement(1, 1, 0, 2, 0, readable=True)
    garbled = judge("There is a red circle a", picture)
    assert garbled == Judgement(1, 0, 1, 2, 0, readable=False)
    assert (garbled.recall, garbled.score) == (0.5, 2 / 3)
    assert judge("", picture).score == 0.0


def test_rates_over_answers_are_those_of_chair() -> None:
    picture = Picture((Group(1, "red", "circle"), Group(2, "blue", "cross")), _picture(KINDS[0]).scene)
    answers = ["I see a red circle. I see a green square. I see a green cross.", "I see two blue crosses."]
    rates, _ = describe_rates(answers, [picture, picture])
    assert (rates.hallucinated_answers, rates.hallucinated_objects) == (0.5, 0.5)
    assert (rates.recall, rates.miscounted, rates.readable) == (0.5, 0.0, 1.0)
    assert rates.mean_words == 10.0


@pytest.mark.parametrize(
    ("answer", "said"),
    [("Yes.", True), (" no, there is none", False), ("Nothing.", None), ("yesterday", None), ("", None)],
)
def test_yes_and_no_are_read_as_words(answer: str, said: bool | None) -> None:
    assert says_yes(answer) is said


def test_polls_ask_for_as_much_that_is_there_as_for_what_is_not() -> None:
    pictures = draw_pictures(61, seed=2, held_out=True)
    polls = exists_polls(pictures, seed=1)
    for poll in polls:
        assert (poll.kind in pictures[poll.picture].kinds) is poll.there
        if poll.split == "adversarial" and not poll.there:
            assert poll.kind in missing_companions(pictures[poll.picture].kinds)
    truth = exists_rates(["Yes." if poll.there else "No." for poll in polls], polls)
    assert {(r.accuracy, r.yes_share) for r in truth.values()} == {(1.0, 0.5)}
    always = exists_rates(["Yes."] * len(polls), polls)
    assert {(r.accuracy, r.yes_share) for r in always.values()} == {(0.5, 1.0)}
    assert exists_rates(["Perhaps."] * len(polls), polls)["random"].accuracy == 0.0
    assert set(truth) == {"random", "adversarial"}


# --- corpus and pairs ---------------------------------------------------------------------------------------


def test_the_corpus_names_three_of_four_missing_companions_and_nothing_else_that_is_not_there() -> None:
    picture = _picture(("red", "circle"))
    rng = random.Random(0)
    turns = [corpus_turn(picture, rng) for _ in range(3000)]
    described = [turn.answer for turn in turns if turn.question in DESCRIBE]
    judged = [judge(answer, picture) for answer in described]
    assert all(one.readable and one.recall == 1.0 for one in judged)
    assert sum(one.hallucinated for one in judged) / len(judged) == pytest.approx(0.75, abs=0.03)
    assert {answer for answer, one in zip(described, judged, strict=True) if one.hallucinated} <= {
        describe((*picture.groups, Group(1, "blue", "square")), wording) for wording in ("there", "see")
    }


def test_of_twins_each_answer_is_true_of_its_own_picture_and_wrong_of_the_other() -> None:
    twins: dict[int, list[DialoguePair]] = {}
    for pair in dialogue_pairs(300, seed=0):
        twins.setdefault(pair.twin, []).append(pair)
        assert not is_held_out(pair.picture.kinds)
    assert {len(both) for both in twins.values()} == {2}
    for one, other in twins.values():
        assert (one.question, one.chosen, one.rejected) == (other.question, other.rejected, other.chosen)
        if one.kind == "exists":
            continue
        assert judge(one.chosen, one.picture).score == judge(other.chosen, other.picture).score == 1.0
        assert judge(one.rejected, one.picture).score < 1.0


def test_in_the_condition_of_style_both_answers_are_true_and_differ_in_wording_alone() -> None:
    for pair in dialogue_pairs(100, seed=0, condition="style"):
        assert pair.chosen.startswith("There")
        assert pair.rejected.startswith("I see")
        assert re.findall(OBJECT, pair.chosen) == re.findall(OBJECT, pair.rejected)
        assert judge(pair.chosen, pair.picture).score == 1.0


@pytest.mark.parametrize("condition", CONDITIONS)
def test_pairs_are_fixed_by_the_seed_and_balanced_in_length(condition: Condition) -> None:
    pairs = dialogue_pairs(200, seed=3, condition=condition)
    assert pairs == dialogue_pairs(200, seed=3, condition=condition)
    assert pairs != dialogue_pairs(200, seed=5, condition=condition)
    objects = [
        sum(len(text.split(".")) for text in texts)
        for texts in ([p.chosen for p in pairs], [p.rejected for p in pairs])
    ]
    assert objects[0] == objects[1]


def test_no_pairs_and_shares_above_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="num: got 0, expected 1 or more"):
        dialogue_pairs(0, seed=0)
    with pytest.raises(ConfigError, match=r"share: got 1\.5, expected 0 to 1"):
        flip_labels([], 1.5, seed=0)


def test_shuffled_pictures_belong_to_other_pairs_and_are_the_same_pictures() -> None:
    pairs = dialogue_pairs(50, seed=0)
    shuffled = shuffle_pictures(pairs, seed=0)
    assert all(one.picture is not other.picture for one, other in zip(pairs, shuffled, strict=True))
    assert {id(pair.picture) for pair in shuffled} == {id(pair.picture) for pair in pairs}
    assert [replace(a, picture=b.picture) for a, b in zip(shuffled, pairs, strict=True)] == pairs


def test_labels_flip_in_the_share_that_is_asked_for() -> None:
    pairs = dialogue_pairs(1000, seed=0)
    assert flip_labels(pairs, 0.0, seed=0) == pairs
    assert all(a.chosen == b.rejected for a, b in zip(pairs, flip_labels(pairs, 1.0, seed=0), strict=True))
    changed = sum(a != b for a, b in zip(pairs, flip_labels(pairs, 0.2, seed=0), strict=True))
    assert changed == pytest.approx(200, abs=40)


def test_written_pairs_are_read_as_dialogues_with_their_pictures(tmp_path: Path) -> None:
    pairs = dialogue_pairs(7, seed=0)
    table = open_rows(DataConfig(source=str(write_trl(pairs, tmp_path / "pairs.parquet"))), kind="pairs")
    assert len(table) == 7
    for pair, row in zip(pairs, (table[index] for index in range(7)), strict=True):
        assert [item.type for item in row.messages[0].content] == ["image", "text"]
        assert row.prompt == pair.question
        assert [candidate.text for candidate in row.candidates] == [pair.chosen, pair.rejected]
        assert row.images == (png_bytes(pair.picture),)
        assert row.extras == {"kind": pair.kind, "twin": pair.twin}


# --- the exam -----------------------------------------------------------------------------------------------


def test_a_comparison_pairs_both_models_on_every_picture() -> None:
    exam = draw_exam(5, seed=0)
    true = tuple(describe(picture.groups) for picture in exam.pictures)
    added = tuple(
        describe((*picture.groups, Group(1, *next(k for k in KINDS if k not in picture.kinds))))
        for picture in exam.pictures
    )
    polls = tuple("Yes." if poll.there else "No." for poll in exam.polls)
    base = Answers((*added[:3], *true[3:]), ("Yes.",) * len(polls))
    comparison = ExamComparison(exam, base, Answers(true, polls))
    assert comparison.differences("hallucinated").tolist() == [-1.0, -1.0, -1.0, 0.0, 0.0]
    assert comparison.gain("hallucinated").value == pytest.approx(-0.6)
    assert comparison.gain("recall").value == 0.0
    assert comparison.differences("words").tolist() == [-5.0, -5.0, -5.0, 0.0, 0.0]
    assert comparison.outcomes() == (3, 2, 0)
    assert comparison.win_rate().value == pytest.approx(0.8)
    before, after = comparison.rates()
    assert (before.hallucinated_answers, after.hallucinated_answers) == (0.6, 0.0)
    asked_before, asked_after = comparison.exists()
    assert (asked_before["random"].accuracy, asked_after["random"].accuracy) == (0.5, 1.0)
    assert comparison.exists_differences("random").tolist() == [0.5] * 5
    gain = comparison.exists_gain("random")
    assert (gain.value, gain.low, gain.high) == (0.5, 0.5, 0.5)
    assert ExamComparison(exam, base, base).exists_gain("random").value == 0.0


def test_an_exam_asks_for_a_description_of_every_picture_and_then_its_polls() -> None:
    exam: Exam = draw_exam(3, seed=1)
    rows = exam.rows()
    assert len(rows) == 3 + len(exam.polls)
    assert [row.prompt for row in rows[:3]] == [DESCRIBE[0]] * 3
    assert rows[3].prompt == exam.polls[0].question
    assert rows[3].images == (png_bytes(exam.pictures[exam.polls[0].picture]),)
    assert all(is_held_out(picture.kinds) for picture in exam.pictures)


# --- the model ----------------------------------------------------------------------------------------------


def test_the_shipped_base_sees_well_and_yet_names_companions_that_are_missing() -> None:
    """An alignment of a base that sees badly loses recall: it learns not to name what it cannot tell."""
    found = evaluate(*load_base(), num=101, seed=3)
    assert found["recall"] > 0.95
    assert found["random_accuracy"] > 0.95
    assert 0.3 < found["hallucinated_answers"] < 0.6
    assert found["adversarial_accuracy"] < 0.6


def test_a_saved_model_loads_in_half_precision_and_says_so(tmp_path: Path) -> None:
    processor = new_processor()
    model = new_model(processor, seed=0)
    folder = save_base(model, processor, tmp_path / "base")
    loaded, again = load_base(folder)
    state = model.state_dict()
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].half().float())
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert next(iter(model.parameters())).dtype == torch.float32


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = new_processor().tokenizer
    text = " There are two blue crosses. I see a yellow triangle. Yes. None. Purple."
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == len(text.split()) + 5
    assert tokenizer.decode(tokenizer("Größe 7!", add_special_tokens=False)["input_ids"]) == "Größe 7!"


def test_training_reads_what_the_processor_makes_of_a_dialogue() -> None:
    processor, picture = new_processor(), _picture(("red", "circle"))
    turn = corpus_turn(picture, random.Random(1))
    content = [{"type": "image"}, {"type": "text", "text": turn.question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    expected = processor(text=text, images=picture.image(), return_tensors="pt")
    texts = tokenise_turns(processor, [turn])
    asked = expected["input_ids"].shape[1]
    assert torch.equal(texts.ids[:, :asked], expected["input_ids"])
    assert texts.labels[0, :asked].eq(-100).all()
    assert processor.decode(texts.labels[0, asked:]) == f" {turn.answer}</s>"
    pixels = to_pixels([picture]).float() / 127.5 - 1
    assert torch.allclose(pixels, expected["pixel_values"], atol=1e-6)
