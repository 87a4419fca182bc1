"""Dialogues that cannot be used are counted by reason; nothing is dropped or guessed silently."""

import json

import pytest

from mmalign.batch import ContentItem
from mmalign.data import FieldError, open_rows
from mmalign.data.dialogues import changed_spans, marked_spans, video_frames
from mmalign.data.dialogues.content import Turn, lay_out
from mmalign.data.dialogues.spans import sentence_spans
from mmalign.errors import ConfigError, RowError

GOOD = {"question": "What is it?", "chosen": "A cup.", "rejected": "A cat.", "image": "a.png"}


@pytest.fixture
def opened(write_lines, config_of):
    """Rows of some records, of which the first is usable."""

    def open_them(*records, source=None, **settings):
        path = write_lines([GOOD, *records], images=("a.png", "b.png"))
        return open_rows(config_of(path, source=source, **settings))

    return open_them


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": "  "}, "empty_answer"),
        ({"chosen": None}, "missing_answer"),
        ({"rejected": ""}, "empty_answer"),
        ({"rejected": 3}, "invalid_text"),
        ({"question": None}, "missing_prompt"),
        ({"chosen": "<image> A cup."}, "tag_in_answer"),
        ({"chosen": "cut \ud83d"}, "invalid_text"),
        ({"score_chosen": "high"}, "bad_number"),
        ({"reference_chosen": "NaN"}, "bad_number"),
        ({"logps": "[1, 2"}, "malformed_json"),
        ({"logps": "[1, 2]"}, "bad_number"),
        ({"question": [{"role": "narrator", "content": "x"}]}, "unknown_role"),
        ({"question": [{"words": "x"}]}, "bad_messages"),
        ({"chosen": [{"role": "user", "content": "x"}]}, "missing_answer"),
    ],
)
def test_records_that_say_too_little_are_counted_when_the_table_opens(opened, change, reason):
    table = opened(GOOD | change)
    assert table.report.bad == {reason: 1}
    assert len(table) == 1
    assert [issue.reason for issue in table.issues] == [reason]
    assert table.issues[0].row == "2"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": "<image> and <image>"}, "image_count"),
        ({"image": ["a.png", "b.png"], "question": "<image>?"}, "image_count"),
        ({"image": None, "question": "<image>?"}, "image_count"),
        ({"question": "<video><image>?"}, "video_count"),
        ({"image": "../a.png"}, "path_outside"),
        ({"image": "file:///etc/passwd"}, "path_outside"),
        ({"image": "ftp://a.b/c.png"}, "remote_path"),
        ({"image": {"bytes": "", "path": None}}, "missing_image"),
        ({"image": 5}, "bad_media"),
        ({"image": "data:image/png;base64,###"}, "bad_media"),
        ({"question": [{"role": "user", "content": [{"type": "sound"}]}]}, "bad_content"),
        ({"question": [{"role": "user", "content": 7}]}, "bad_content"),
        ({"question": [{"role": "system", "content": "x"}]}, "no_question"),
        (
            {"question": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "last_turn",
        ),
        ({"question": [{"role": "user", "content": [{"type": "image"}]}]}, "empty_prompt"),
        ({"image": None, "question": [{"role": "user", "content": None}]}, "empty_prompt"),
        (
            {
                "question": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": None},
                    {"role": "user", "content": "y"},
                ]
            },
            "empty_turn",
        ),
        ({"rejected_images": ["a.png", "b.png"]}, "image_count"),
    ],
)
def test_records_whose_media_do_not_fit_are_refused_when_read(opened, change, reason):
    table = opened(GOOD | change)
    assert len(table) == 2
    with pytest.raises(RowError) as caught:
        table[1]
    assert caught.value.reason == reason
    assert "rows.jsonl:2" in str(caught.value)
    assert table.placeholder(1).weight == 0.0


def test_lines_that_are_no_records_are_counted(opened):
    assert opened("{ broken").report.bad == {"malformed_record": 1}


def test_equal_answers_are_left_out_or_kept_as_asked(opened):
    same = GOOD | {"rejected": GOOD["chosen"]}
    assert opened(same).report.dropped == {"identical_candidates": 1}
    assert len(opened(same, identical="keep")) == 2


def test_equal_answers_beside_the_same_image_again_are_refused_when_read(opened):
    table = opened(GOOD | {"rejected": GOOD["chosen"], "rejected_images": ["a.png"]})
    with pytest.raises(FieldError, match="both answers are the same") as caught:
        table[1]
    assert caught.value.reason == "identical_candidates"


def test_tags_beside_content_items_for_the_same_image_count_once():
    items = [{"type": "image"}, {"type": "text", "text": "<image>\nWhat?"}]
    messages, images, _ = lay_out([Turn("user", items)], ["x"], [], where="here")
    assert messages[0].content == (ContentItem("image"), ContentItem("text", "What?"))
    assert images == ["x"]


def test_media_inside_content_items_are_used_in_reading_order():
    turns = [
        Turn("user", [{"type": "image", "image": "one"}, {"type": "text", "text": "a"}]),
        Turn("assistant", "b"),
        Turn("user", [{"type": "image_url", "image_url": {"url": "two"}}, {"type": "video", "video": "v"}]),
    ]
    messages, images, videos = lay_out(turns, [], [], where="here")
    assert (images, videos) == (["one", "two"], ["v"])
    assert [item.type for item in messages[2].content] == ["image", "video"]


def test_media_without_a_place_stand_before_the_first_question():
    messages, _, _ = lay_out([Turn("system", "s"), Turn("user", "q")], ["a", "b"], ["v"], where="here")
    assert [item.type for item in messages[1].content] == ["image", "image", "video", "text"]


def test_changed_words_are_spans_on_both_sides_and_insertions_are_none():
    first, second = changed_spans("a red cup on the table", "a blue old cup on a table")
    assert first == [(2, 5, 1.0), (13, 16, 1.0)]
    assert second == [(2, 10, 1.0), (18, 19, 1.0)]
    assert changed_spans("a cup", "a cup falls") == ([], [])


def test_common_words_of_long_answers_still_anchor_the_alignment():
    words = ["the", "cup", "is", "red"] * 79
    other = [*words[:-1], "blue"]
    first, second = changed_spans(" ".join(words), " ".join(other))
    assert len(first) == len(second) == 1
    assert " ".join(other)[slice(*second[0][:2])] == "blue"


def test_markers_that_do_not_fit_the_answer_give_no_spans():
    assert marked_spans("a <MASK>cat</MASK>", "a dog") is None
    assert marked_spans("a <MASK></MASK>dog", "a dog") == []
    assert marked_spans("a <MASK> big  dog", "a big dog") == [(2, 9, 1.0)]
    assert marked_spans("<MASK>a</MASK> big\n<MASK>dog</MASK>", "a big dog") == [(0, 1, 1.0), (6, 9, 1.0)]


def test_judged_sentences_cover_the_answer_and_missing_ones_are_counted():
    spans, missing = sentence_spans(
        "One. Two! Three", [("Two!", 2.0), ("Four", 3.0), ("", 5.0)], with_end=True
    )
    assert spans == [(0, 16, 2.0)]
    assert missing == 1
    assert sentence_spans("One.", [("Nine", 2.0)]) == ([], 1)


def test_frames_of_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(RowError, match="no such video") as missing:
        video_frames(str(tmp_path / "nothing"), where="row videos")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowError, match="without images") as empty:
        video_frames(str(tmp_path / "empty"), where="row videos")
    assert (missing.value.reason, empty.value.reason) == ("missing_file", "no_frames")
    assert video_frames((b"x", b"y"), where="row") == (b"x", b"y")
    assert video_frames(b"file", where="row") == ()


def test_ratings_that_are_no_numbers_leave_their_answer_out(write_lines, config_of):
    def rated(text, rating):
        return {"annotations": {"Helpfulness": {"Rating": rating}}, "model": "m", "response": text}

    record = {"prompt": "q", "img_path": "a.png"}
    lines = [
        record
        | {"completions": [rated("one", "5"), rated("two", 2), rated("three", "N/A"), rated(" ", "3")]},
        record | {"completions": [rated("one", "5"), rated("two", None)]},
    ]
    table = open_rows(config_of(write_lines(lines, images=("a.png",))))
    assert [tuple(item.text for item in row.candidates) for row in table] == [("one", "two")]
    assert table.report.dropped == {"no_rating": 2, "empty_answer": 1, "single_candidate": 1}
    assert not table.report.bad


@pytest.mark.parametrize("completions", [3, "text", ["text"], True])
def test_completions_that_are_no_records_are_counted(write_lines, config_of, completions):
    def rated(text, rating):
        return {"annotations": {"Helpfulness": {"Rating": rating}}, "response": text}

    record = {"prompt": "q", "img_path": "a.png", "completions": [rated("one", 5), rated("two", 2)]}
    unrated = record | {"completions": [{"annotations": "x", "response": "one"}, rated("two", 2)]}
    path = write_lines([record, record | {"completions": completions}, unrated], images=("a.png",))
    table = open_rows(config_of(path))
    assert len(table) == 1
    assert table.report.bad == {"bad_ratings": 1}
    assert table.report.dropped == {"no_rating": 1, "single_candidate": 1}


def test_several_answers_where_markers_need_two_are_counted(write_lines, config_of):
    shared = {"question": "q", "video": "clip.mp4", "answer": "A cup", "pred": "A cat"}
    table = open_rows(config_of(write_lines([shared, shared | {"answer": ["A cup", "One cup"]}])))
    assert table.report.bad == {"wrong_count": 1}


def test_a_limit_and_a_split_hold_for_dialogues_too(write_lines, config_of):
    lines = [GOOD | {"question": f"q{number}", "split": "ab"[number % 2]} for number in range(7)]
    path = write_lines(lines, images=("a.png",))
    table = open_rows(config_of(path, source={"split": "b", "limit": 2}))
    assert [row.prompt for row in table] == ["q1", "q3"]


def test_dialogues_and_pictures_do_not_mix_in_one_table_of_other_kinds(write_lines, config_of):
    liked = {"prompt": "q", "completion": "x y", "label": True, "images": ["a.png"]}
    paths = [write_lines([GOOD], name="one.jsonl"), write_lines([liked], name="two.jsonl")]
    config = config_of(paths[0])
    both = config.model_copy(
        update={"source": None, "sources": tuple(config_of(path).source for path in paths)}
    )
    with pytest.raises(ConfigError, match="rows of several kinds"):
        open_rows(both)


def test_a_random_tie_turns_the_columns_of_both_sides(write_lines, config_of):
    rows = []
    for number in range(17):
        note = [{"annotations": {"H": {"Rating": 3}}, "response": f"{side}{number}"} for side in "ab"]
        rows.append({"prompt": "q", "img_path": "a.png", "completions": note, "id": number})
    table = open_rows(config_of(write_lines(rows, images=("a.png",)), tie_policy="random"))
    firsts = {row.candidates[0].text[0] for row in table}
    assert firsts == {"a", "b"}
    assert all(table.is_turned(row.index) == (row.candidates[0].text[0] == "b") for row in table)
    assert json.dumps([row.id for row in table]) == json.dumps([row.id for row in table])
