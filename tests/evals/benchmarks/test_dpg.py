"""DPG-Bench: parents by hand, the released defects kept under one name and gone under another."""

import csv
import math

import numpy as np
import pytest
from PIL import Image

from mmalign.errors import ConfigError, RowError
from mmalign.evals.base import Answer
from mmalign.evals.benchmarks import dpg, dpg_fixed
from mmalign.evals.benchmarks._dependent_questions import (
    Question,
    aggregate,
    follow_parents,
    read_question_table,
    score_image,
)

CHAIN = (
    Question(1, "a dog?", (0,), "entity - whole"),
    Question(2, "brown?", (1,), "attribute - color"),
    Question(3, "on a bench?", (1, 2), "relation - spatial"),
)
COLUMNS = [
    "item_id",
    "text",
    "keywords",
    "proposition_id",
    "dependency",
    "category_broad",
    "category_detailed",
    "tuple",
    "question_natural_language",
]


def said(*answers):
    return dict(enumerate(answers, start=1))


def test_a_question_whose_parent_fails_fails_and_so_do_its_children():
    image = score_image("a", CHAIN, said("no", "yes", "yes"), released=True)
    assert image.before == {1: 0.0, 2: 1.0, 3: 1.0}
    assert image.after == {1: 0.0, 2: 0.0, 3: 0.0}
    assert image.score == 0.0
    assert score_image("a", CHAIN, said("yes", "yes", "no"), released=True).score == pytest.approx(2 / 3)


def test_only_the_fixed_rule_follows_parents_that_stand_later():
    scores, parents = {1: 1.0, 2: 1.0, 3: 0.0}, {1: (2,), 2: (3,), 3: (0,)}
    assert follow_parents(scores, parents, in_order=True) == {1: 1.0, 2: 0.0, 3: 0.0}
    assert follow_parents(scores, parents, in_order=False) == {1: 0.0, 2: 0.0, 3: 0.0}
    assert scores == {1: 1.0, 2: 1.0, 3: 0.0}


def test_a_circle_of_parents_is_refused():
    with pytest.raises(ConfigError, match=r"parents: got .*expected questions that lead to no circle"):
        follow_parents({1: 1.0, 2: 1.0}, {1: (2,), 2: (1,)}, in_order=False)


@pytest.mark.parametrize(
    ("answer", "released", "fixed", "unparsed"),
    [
        ("yes", 1.0, 1.0, 0),
        ("Yes.", 0.0, 1.0, 0),
        ("yes, it is", 0.0, 1.0, 0),
        ("no", 0.0, 0.0, 0),
        ("No, yes", 0.0, 0.0, 0),
        ("wooden", 0.0, 0.0, 1),
        ("yesterday", 0.0, 0.0, 1),
        ("", 0.0, 0.0, 1),
    ],
)
def test_an_answer_counts_as_its_name_says(answer, released, fixed, unparsed):
    question = (Question(1, "a dog?"),)
    image = score_image("a", question, {1: answer}, released=True)
    assert (image.score, image.unparsed) == (released, unparsed)
    assert score_image("a", question, {1: answer}, released=False).score == fixed


def test_a_picture_that_was_not_asked_everything_has_no_score():
    image = score_image("a", CHAIN, said("yes", "yes"), released=False)
    assert math.isnan(image.score)
    assert image.error == "no answer to question 3"
    image = score_image("a", CHAIN[1:], {2: "yes", 3: "yes"}, released=True)
    assert image.error == "questions depend on question 1, which is not there"


def results(released):
    """Prompt a: two pictures; prompt b: one good picture, one that failed."""
    images = [
        score_image("a", CHAIN, said("yes", "yes", "yes"), released=released),
        score_image("a", CHAIN, said("no", "yes", "yes"), released=released, copy=1),
        score_image("b", CHAIN[:1], {1: "yes"}, released=released),
        score_image("b", CHAIN[:1], {}, released=released, copy=1),
    ]
    return aggregate(images, {"a": CHAIN, "b": CHAIN[:1]}, released=released)


def test_the_released_rule_drops_prompts_and_reads_categories_from_the_last_picture_before_parents():
    found = results(released=True)
    assert found.prompts["a"] == 50.0
    assert math.isnan(found.prompts["b"])
    assert found.total == 50.0
    assert found.detailed == {"attribute - color": 100.0, "entity - whole": 0.0, "relation - spatial": 100.0}
    assert found.failed == 1


def test_the_fixed_rule_keeps_prompts_and_reads_categories_from_every_picture_after_parents():
    found = results(released=False)
    assert found.prompts == {"a": 50.0, "b": 100.0}
    assert found.total == 75.0
    assert found.detailed == {
        "attribute - color": 50.0,
        "entity - whole": pytest.approx(200 / 3),
        "relation - spatial": 50.0,
    }
    assert found.broad == {
        "attribute": 50.0,
        "entity": pytest.approx(200 / 3),
        "relation": 50.0,
    }


def write(folder, *rows):
    path = folder / "dpg_bench.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for about, number, parents, category, text in rows:
            line = [about, f"prompt, {about}", "", number, parents, "", "", f"{category} (x)", text]
            writer.writerow(line)
    return path


ROWS = [
    ("a", 1, "0", "entity - whole", "a dog?"),
    ("a", 2, "0", "attribute - color", "brown?"),
    ("b", 1, "0", "entity - whole", "a cat?"),
    ("b", 2, "1", "global", "dark?"),
]


def test_the_released_reader_skips_the_first_question(tmp_path):
    path = write(tmp_path, *ROWS)
    texts, released = read_question_table(path, released=True)
    assert [question.number for question in released["a"]] == [2]
    assert texts == {"a": "prompt, a", "b": "prompt, b"}
    _, every = read_question_table(path, released=False)
    assert [question.number for question in every["a"]] == [1, 2]
    assert every["b"][1] == Question(2, "dark?", (1,), "global")


def test_blocks_of_one_prompt_are_replaced_or_joined(tmp_path):
    path = write(tmp_path, *ROWS, ("a", 3, "0", "other", "late?"))
    assert [question.number for question in read_question_table(path, released=True)[1]["a"]] == [3]
    assert [question.number for question in read_question_table(path, released=False)[1]["a"]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "x", "0", "", "?"), r"dpg_bench\.csv row 6 proposition_id: got 'x', expected a whole number"),
        (("a", 3, "", "", "?"), r"row 6 dependency: got '', expected whole numbers"),
        (("", 3, "0", "", "?"), r"row 6 item_id: got ''"),
        (("a", 2, "0", "", "?"), r"row 6 proposition_id: .*used once"),
        (("a", 3, "7", "", "?"), r"row 6 dependency: got '7', expected questions of the same prompt"),
        (("a", 3, "3", "", "?"), r"row 2: parents: got .*no circle"),
    ],
)
def test_malformed_rows_are_refused_with_their_place(tmp_path, row, message):
    with pytest.raises(RowError, match=message):
        read_question_table(write(tmp_path, *ROWS, row), released=False)


def test_a_table_without_columns_or_questions_is_refused(tmp_path):
    (tmp_path / "dpg_bench.csv").write_text("item_id,text\n")
    with pytest.raises(ConfigError, match=r"dpg_bench\.csv:1: got \[columns item_id, text\]"):
        read_question_table(tmp_path / "dpg_bench.csv", released=True)
    with pytest.raises(ConfigError, match=r"got \[no questions\]"):
        read_question_table(write(tmp_path), released=True)


class Knows:
    """Answers from the picture's brightness."""

    name = "knows"

    def __init__(self, *answers):
        self.answers = answers

    def __call__(self, picture, questions):
        return [self.answers[picture.getpixel((0, 0))[0]]] * len(questions)


def shade(level, side=3):
    return np.full((side, side, 3), level, dtype=np.uint8)


def test_prompts_come_from_their_files_where_these_exist(tmp_path):
    write(tmp_path, *ROWS)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "b.txt").write_text("a dark cat\n")
    items = dpg_fixed.BENCHMARK.items(tmp_path)
    assert [(item.id, item.prompt) for item in items] == [("dpg/a", "prompt, a"), ("dpg/b", "a dark cat")]
    assert len(items[0].expected["questions"]) == 2
    assert len(dpg.BENCHMARK.items(tmp_path)[0].expected["questions"]) == 1


def test_pictures_are_asked_and_failures_counted(tmp_path):
    write(tmp_path, *ROWS)
    items = dpg_fixed.BENCHMARK.items(tmp_path)
    answers = [
        Answer(items[0], media=(shade(0),)),
        Answer(items[0], media=(shade(1),), copy=1),
        Answer(items[1], media=(shade(0),)),
        Answer(items[1], copy=1, error="out of memory"),
    ]
    outcome = dpg_fixed.BENCHMARK.score(answers, vqa=Knows("Yes.", "brown"))
    assert outcome.metrics[0].value == 75.0
    assert outcome.metrics[0].per_item == {"dpg/a": 50.0, "dpg/b": 100.0}
    assert outcome.counts == {
        "images": 4,
        "failed": 1,
        "prompts": 2,
        "prompts without a score": 0,
        "answers neither yes nor no": 2,
    }
    released = dpg.BENCHMARK.score(answers, vqa=Knows("Yes.", "brown"))
    assert released.metrics[0].value == 0.0
    assert released.counts["prompts without a score"] == 1
    assert "knows" in released.notes[0]


def test_grids_of_the_official_folders_are_cut():
    grid = Image.new("RGB", (4, 4))
    for place, (x, y) in enumerate([(0, 0), (2, 0), (0, 2), (2, 2)]):
        grid.paste((place, 0, 0), (x, y, x + 2, y + 2))
    assert [part.getpixel((1, 1))[0] for part in dpg.cut_grid(grid, 2)] == [0, 1, 2, 3]
    item = dpg.Item(
        "dpg/a", "", expected={"questions": [{"number": 1, "text": "?", "parents": [0], "category": ""}]}
    )
    answer = Answer(item, media=(grid,))
    found = dpg.score_pictures([answer], Knows("yes", "no", "no", "yes"), released=True, resolution=2)
    assert [image.score for image in found.images] == [1.0, 0.0, 0.0, 1.0]
    assert found.total == 50.0
    (failed,) = dpg.score_pictures([answer], Knows("yes"), released=True, resolution=3).images
    assert "grid: got [4 x 4], expected at least 6 x 6" in failed.error


def test_a_tool_that_answers_too_little_is_refused():
    item = dpg.Item(
        "dpg/a", "", expected={"questions": [{"number": 1, "text": "?", "parents": [0], "category": ""}]}
    )
    with pytest.raises(ConfigError, match=r"vqa: got \[0 answers\], expected 1"):
        dpg.score_pictures([Answer(item, media=(shade(0),))], lambda *_: [], released=True)
