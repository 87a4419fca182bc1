"""Every public layout of vision-language preferences, in its real columns, reads to exactly the same rows."""

import base64
import json
import pickle

import datasets
import pytest

from mmalign.batch import ContentItem, Message
from mmalign.data import open_rows
from mmalign.data.dialogues import FORMATS
from mmalign.errors import ConfigError, RowError, UnknownNameError

IMAGE, VIDEO = ContentItem("image"), ContentItem("video")
QUESTION, GOOD, BAD = "What is on the table?", "A red cup.", "A red cup and a cat."


def said(text):
    return ContentItem("text", text)


def user(*content):
    return (Message("user", tuple(content)),)


def texts(row):
    return tuple(candidate.text for candidate in row.candidates)


@pytest.fixture
def opened(write_lines, config_of):
    """Rows of some records written as JSON lines, beside files of the given names."""

    def open_them(records, images=("a.png",), kind=None, source=None, **settings):
        path = write_lines(records, images=images)
        return open_rows(config_of(path, source=source, **settings), kind=kind)

    return open_them


def test_rlaif_v_parquet_with_images_inside_and_stored_log_probabilities(encoded, write_parquet, config_of):
    logps = json.dumps([-3.5, -1.75, [-1.5, -2.0], -8.0, -2.0, [-1.0, -3.0, -2.0, -2.0]])
    path = write_parquet(
        [
            {
                "ds_name": "RLAIF-V",
                "image": {"bytes": encoded(1), "path": "x.jpg"},
                "question": QUESTION,
                "chosen": GOOD,
                "rejected": BAD,
                "origin_dataset": "coco",
                "origin_split": "{}",
                "idx": 11,
                "image_path": "x.jpg",
                "logps": logps,
            }
        ]
    )
    table = open_rows(config_of(path))
    row = table[0]
    assert table.parts[0].match.layout.name == "rlaif_v"
    assert (row.prompt, texts(row), row.id) == (QUESTION, (GOOD, BAD), "11")
    assert row.images == (encoded(1),)
    assert row.messages == user(IMAGE, said(QUESTION))
    assert (row.extras["reference_chosen"], row.extras["reference_rejected"]) == (-3.5, -8.0)
    assert row.extras["reference_tokens_rejected"] == [-1.0, -3.0, -2.0, -2.0]
    assert row.extras["origin_dataset"] == "coco"


def test_rlhf_v_parses_its_text_column(opened):
    text = json.dumps({"question": QUESTION, "chosen": GOOD, "rejected": BAD})
    table = opened([{"ds_name": "RLHF-V", "image": "a.png", "text": text, "origin_dataset": "vcr", "idx": 3}])
    assert table.parts[0].match.layout.name == "rlhf_v"
    assert texts(table[0]) == (GOOD, BAD)
    assert table[0].messages == user(IMAGE, said(QUESTION))
    assert table[0].images[0].endswith("a.png")


def test_trl_conversational_rows_with_content_items(opened):
    record = {
        "images": ["a.png", "b.png"],
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}],
            },
        ],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}],
        "rejected": [{"role": "assistant", "content": BAD}],
    }
    row = opened([record], images=("a.png", "b.png"))[0]
    assert row.messages == (
        Message("system", (said("Be brief."),)),
        Message("user", (IMAGE, said("and"), IMAGE)),
    )
    assert texts(row) == (GOOD, BAD)
    assert [path[-5:] for path in row.images] == ["a.png", "b.png"]


def test_trl_rows_without_a_prompt_take_the_turns_both_answers_share(opened):
    before = [{"role": "user", "content": QUESTION}]
    chosen = [*before, {"role": "assistant", "content": GOOD}]
    rejected = [*before, {"role": "assistant", "content": BAD}]
    table = opened([{"chosen": chosen, "rejected": rejected, "image": "a.png"}])
    assert table.parts[0].match.layout.name == "trl"
    assert table[0].messages == user(IMAGE, said(QUESTION))
    other = [{"role": "user", "content": "Why?"}, rejected[1]]
    bad = opened([{"chosen": chosen, "rejected": rejected}, {"chosen": chosen, "rejected": other}])
    assert len(bad) == 1
    assert bad.report.bad == {"different_prompts": 1}


def test_trl_unpaired_rows_have_a_thumb(opened):
    records = [
        {"prompt": QUESTION, "completion": GOOD, "label": True, "images": ["a.png"]},
        {"prompt": QUESTION, "completion": BAD, "label": False, "images": ["a.png"]},
    ]
    table = opened(records)
    assert table.kind == "unpaired"
    assert [row.desirable for row in table] == [True, False]
    assert [texts(row) for row in table] == [(GOOD,), (BAD,)]
    assert [texts(row) for row in opened(records, kind="chosen")] == [(GOOD,)]


def test_llama_factory_sharegpt_rows_read_their_tags(opened):
    record = {
        "conversations": [
            {"from": "human", "value": "First <image> then"},
            {"from": "gpt", "value": "Yes?"},
            {"from": "human", "value": f"<image>\n{QUESTION}"},
        ],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
        "images": ["a.png", "b.png"],
        "system": "Be brief.",
    }
    table = opened([record], images=("a.png", "b.png"))
    assert table.parts[0].match.layout.name == "llama_factory"
    assert table[0].messages == (
        Message("system", (said("Be brief."),)),
        Message("user", (said("First "), IMAGE, said(" then"))),
        Message("assistant", (said("Yes?"),)),
        Message("user", (IMAGE, said(QUESTION))),
    )
    assert table[0].prompt == QUESTION


def test_llama_factory_alpaca_rows_join_instruction_and_input(opened):
    record = {"instruction": "Look.", "input": QUESTION, "chosen": GOOD, "rejected": BAD, "images": ["a.png"]}
    row = opened([record])[0]
    assert row.prompt == f"Look.\n{QUESTION}"
    assert row.messages == user(IMAGE, said(f"Look.\n{QUESTION}"))


def test_ms_swift_rows_with_images_of_their_own_for_the_rejected_side(opened):
    record = {
        "messages": [
            {"role": "user", "content": f"<image>{QUESTION}"},
            {"role": "assistant", "content": GOOD},
        ],
        "rejected_response": GOOD,
        "images": ["a.png"],
        "rejected_images": ["b.png"],
        "margin": 0.5,
    }
    table = opened([record], images=("a.png", "b.png"))
    row = table[0]
    assert table.parts[0].match.layout.name == "ms_swift"
    assert texts(row) == (GOOD, GOOD)
    assert row.candidates[0].images is None
    assert row.candidates[1].images[0].endswith("b.png")
    assert row.extras["margin"] == 0.5


def test_ms_swift_rejected_messages_hold_the_whole_dialogue(opened):
    before = [{"role": "user", "content": f"<image>{QUESTION}"}]
    record = {
        "messages": [*before, {"role": "assistant", "content": GOOD}],
        "rejected_messages": [*before, {"role": "assistant", "content": BAD}],
        "images": ["a.png"],
    }
    assert texts(opened([record])[0]) == (GOOD, BAD)
    mixed = {"messages": record["messages"], "rejected_response": "Both.", "images": ["a.png"]}
    assert [texts(row) for row in opened([record, mixed])] == [(GOOD, BAD), (GOOD, "Both.")]


def test_ms_swift_may_have_several_rejected_answers(opened):
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": GOOD}]
    table = opened([{"messages": messages, "rejected_response": [BAD, "No."], "images": ["a.png"]}])
    assert [texts(row) for row in table] == [(GOOD, BAD), (GOOD, "No.")]


def test_temple_rows_are_ms_swift_rows_about_videos(opened, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    record = {
        "messages": [{"role": "user", "content": "<video>Describe."}, {"role": "assistant", "content": GOOD}],
        "rejected_response": BAD,
        "videos": ["clip.mp4"],
    }
    for source in ({}, {"format": "temple"}):
        row = opened([record], source=source)[0]
        assert row.videos == (str(tmp_path / "clip.mp4"),)
        assert row.messages == user(VIDEO, said("Describe."))


def test_mm_rlhf_rows_mix_images_and_videos_and_keep_their_numbers(opened):
    shared = {"prompt": f"<image>{QUESTION}", "chosen": GOOD, "rejected": BAD, "ls_factor": 0.25}
    shared |= {"reference_chosen_logp": -2.0, "reference_rejected_logp": -3.0, "reward_gap": 1.5}
    table = opened([{**shared, "image": "a.png"}, {**shared, "video": "clip.mp4", "image": None}])
    assert table.parts[0].match.layout.name == "mm_rlhf"
    image, video = table
    assert (len(image.images), len(image.videos)) == (1, 0)
    assert (len(video.images), len(video.videos)) == (0, 1)
    assert video.messages == user(VIDEO, said(QUESTION))
    assert image.extras["temperature_factor"] == 0.25
    assert (image.extras["reference_chosen"], image.extras["reference_rejected"]) == (-2.0, -3.0)
    assert [candidate.reward for candidate in image.candidates] == [1.5, 0.0]


def test_povid_reads_the_first_question_and_its_answers(opened):
    def dialogue(answer):
        return [
            {"from": "human", "value": f"<image>\n{QUESTION}"},
            {"from": "gpt", "value": answer},
            {"from": "human", "value": "And now?"},
            {"from": "gpt", "value": f"Still: {answer}"},
        ]

    record = {
        "id": "7",
        "image": "a.png",
        "conversations": dialogue(GOOD),
        "rejected_conversations": dialogue(BAD),
    }
    table = opened([record])
    assert table.parts[0].match.layout.name == "povid"
    assert texts(table[0]) == (GOOD, BAD)
    assert table[0].messages == user(IMAGE, said(QUESTION))


@pytest.mark.parametrize(
    "prompt",
    [
        f"A chat between a curious user and an assistant. USER: <image>\n{QUESTION} ASSISTANT:",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n<image>\n"
        f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        f"<image>\n{QUESTION}",
    ],
)
def test_mdpo_pairs_lose_the_template_around_their_question(opened, prompt):
    table = opened([{"img_path": "a.png", "prompt": prompt, "chosen": GOOD, "rejected": BAD}])
    assert table.parts[0].match.layout.name == "mdpo_pairs"
    assert table[0].messages == user(IMAGE, said(QUESTION))
    assert table[0].prompt == QUESTION


def test_hsa_dpo_scores_are_severities_and_no_rewards(opened):
    record = {"id": 1, "image": "a.png", "question": QUESTION, "chosen": GOOD, "rejected": BAD}
    table = opened([{**record, "chosen_score": 0.0, "rejected_score": 2.5}])
    assert table.parts[0].match.layout.name == "hsa_dpo"
    assert table[0].extras["severity"] == [0.0, 2.5]
    assert [candidate.reward for candidate in table[0].candidates] == [None, None]


def test_ha_dpo_lists_become_every_pair(tmp_path, encoded, config_of):
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K_2" / "17.jpg").write_bytes(encoded(3))
    path = tmp_path / "desc_data.json"
    path.write_text(
        json.dumps({"17": {"chosen": ["good one", "good two"], "rejected": ["bad one", "bad two"]}})
    )
    source = {"dialogue": {"questions": ["Describe it.", "What do you see?"]}}
    table = open_rows(config_of(path, source=source))
    assert table.parts[0].match.layout.name == "ha_dpo"
    assert [texts(row) for row in table] == [
        (f"good {i}", f"bad {j}") for i in ("one", "two") for j in ("one", "two")
    ]
    assert [row.id for row in table] == ["17/0-2", "17/0-3", "17/1-2", "17/1-3"]
    assert {row.prompt for row in table} in ({"Describe it."}, {"What do you see?"})
    assert table[0].images == (str(tmp_path / "VG_100K_2" / "17.jpg"),)


def test_ha_dpo_questions_answered_right_are_left_out(opened):
    record = {"image_id": 17, "question": QUESTION, "answer": "no", "chosen": GOOD, "reject": BAD}
    table = opened([{**record, "correct": False}, {**record, "correct": True}])
    assert len(table) == 1
    assert table.report.dropped == {"answered_right": 1}


def test_mia_dpo_shows_several_images_in_the_order_of_the_list(opened):
    records = [
        {
            "id": 1,
            "image": ["b.png", "a.png"],
            "prompt": "In Image 2: <image>, <image>?",
            "chosen": GOOD,
            "rejected": BAD,
        },
        {"id": 2, "image": "a.png", "prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    ]
    table = opened(records, images=("a.png", "b.png"))
    assert table.parts[0].match.layout.name == "mia_dpo"
    assert [path[-5:] for path in table[0].images] == ["b.png", "a.png"]
    assert table[0].messages == user(said("In Image 2: "), IMAGE, said(", "), IMAGE, said("?"))
    assert table[1].messages == user(IMAGE, said(QUESTION))


def test_opa_dpo_reports_become_weights_of_sentences(tmp_path, encoded, config_of):
    own, revised = "A cat sits. It is red.", "A dog sits. It is red. Two cups stand."
    report = {
        "image description": "a dog",
        "Sentence 1": {
            "copied content": "A cat sits.",
            "rewritten content": "A dog sits.",
            "score": 1,
            "error type": "image_recognition_error",
        },
        "Sentence 2": {"copied_content": "It is red.", "rewritten_content": "It is red.", "score": 4},
        "Added": {"rewritten content": "Two cups stand."},
    }
    record = {
        "queries": f"<image>\n{QUESTION}",
        "image_bytes": base64.b64encode(encoded(5)).decode(),
        "standard_response": GOOD,
        "original_generate_response": own,
        "AI_pseudo_response": revised,
        "AI_json_report": json.dumps(report),
    }
    folder = tmp_path / "opa"
    datasets.Dataset.from_list([record]).save_to_disk(str(folder))
    table = open_rows(config_of(folder))
    row = table[0]
    assert table.parts[0].match.layout.name == "opa_dpo"
    assert texts(row) == (GOOD, own)
    assert row.images == (encoded(5),)
    assert row.extras["token_severity"] == [[(0, len(GOOD) + 1, 1.0)], [(0, 11, 2.5), (11, 22, 1.0)]]
    assert row.extras["image_relation"][1] == [(0, 11, 3.0), (11, 22, 1.0)]
    assert row.extras["revised"]["token_severity"] == [
        (0, 11, 2.5),
        (11, 22, 1.0),
        (22, len(revised) + 1, 1.0),
    ]


def test_opa_dpo_rows_can_show_the_revised_answer_as_a_third_candidate(opened):
    from mmalign.data.dialogues import with_revised

    record = {
        "queries": QUESTION,
        "image_bytes": "a.png",
        "standard_response": GOOD,
        "original_generate_response": BAD,
        "AI_pseudo_response": "A cup.",
        "AI_json_report": json.dumps(
            {"1": {"copied content": BAD, "rewritten content": "A cup.", "score": 2}}
        ),
    }
    row = with_revised(opened([record])[0])
    assert texts(row) == (GOOD, BAD, "A cup.")
    assert [spans[0][2] for spans in row.extras["token_severity"]] == [1.0, 2.0, 2.0]
    plain = opened([{"prompt": QUESTION, "chosen": GOOD, "rejected": BAD, "images": ["a.png"]}])[0]
    with pytest.raises(RowError, match="no revised answer"):
        with_revised(plain)


def test_mllm_dpo_reads_messages_written_as_text_and_stored_log_probabilities(opened):
    record = {
        "question": str({"from": "human", "value": f"<image>\n{QUESTION}"}),
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
        "image": "a.png",
        "ref_win_logp": -1.5,
        "ref_rej_logp": -2.5,
        "ref_win_per_token_logp": [-1.0, -0.5],
        "ref_rej_per_token_logp": [-2.5],
    }
    table = opened([record])
    row = table[0]
    assert table.parts[0].match.layout.name == "mllm_dpo"
    assert row.messages == user(IMAGE, said(QUESTION))
    assert (row.extras["reference_chosen"], row.extras["reference_tokens_chosen"]) == (-1.5, [-1.0, -0.5])


def test_llava_hound_videos_are_folders_of_frames_in_order(opened, tmp_path, encoded):
    from mmalign.data.dialogues import video_frames

    folder = tmp_path / "v_1"
    folder.mkdir()
    for number in (10, 2, 1):
        (folder / f"c01_{number}.jpeg").write_bytes(encoded(number))
    record = {
        "id": "v_1",
        "video": "v_1",
        "prompt": f"<video>\n{QUESTION}",
        "answer": "x",
        "chosen": GOOD,
        "rejected": BAD,
    }
    table = opened([{**record, "chosen_score": 5, "rejected_score": 2}])
    row = table[0]
    assert table.parts[0].match.layout.name == "llava_hound"
    assert row.videos == (str(folder),)
    assert [path[-8:] for path in video_frames(row.videos[0], where="x")] == [
        "1_1.jpeg",
        "1_2.jpeg",
        "_10.jpeg",
    ]
    assert [candidate.reward for candidate in row.candidates] == [5.0, 2.0]


def test_rrpo_markers_become_spans_of_characters(opened):
    record = {
        "question": f"<image>\n{QUESTION}",
        "answer": "This is a red cup on a table.",
        "pred": "This is a blue cat on a table.",
        "answer_masked": "This is a <MASK> red cup </MASK> on a <MASK>table</MASK>.",
        "pred_masked": "This is a <MASK>blue cat</MASK> on a <MASK> table </MASK>.",
        "src": "x",
        "sample_id": 5,
        "video": "clip.mp4",
    }
    table = opened([record])
    row = table[0]
    assert table.parts[0].match.layout.name == "rrpo"
    assert row.extras["spans_chosen"] == [(10, 17, 1.0), (23, 28, 1.0)]
    assert row.extras["phrase"] == [row.extras["spans_chosen"], row.extras["spans_rejected"]]
    assert [row.candidates[1].text[start:end] for start, end, _ in row.extras["spans_rejected"]] == [
        "blue cat",
        "table",
    ]
    assert row.extras["phrases_from"] == "markers"
    assert row.messages == user(VIDEO, said(QUESTION))


def test_rrpo_rows_without_fitting_markers_are_aligned_by_words(opened):
    shared = {
        "question": QUESTION,
        "video": "clip.mp4",
        "answer": "The big dog runs left.",
        "pred": "The big cat walks left.",
    }
    marked = {"answer_masked": "Another <MASK>text</MASK>", "pred_masked": "x"}
    for records in ([shared], [{**shared, **marked}]):
        row = opened(records)[0]
        assert row.extras["spans_chosen"] == [(8, 16, 1.0)]
        assert row.extras["spans_rejected"] == [(8, 17, 1.0)]
        assert row.extras["phrases_from"] == "alignment"
    strict = opened(
        [
            shared,
            {
                **shared,
                "answer_masked": "The big <MASK>dog runs</MASK> left.",
                "pred_masked": "The big <MASK>cat walks</MASK> left.",
            },
        ],
        source={"dialogue": {"phrases": "markers"}},
    )
    assert len(strict) == 1
    assert strict.report.bad == {"no_markers": 1}


def test_rrpo_rows_without_any_differing_phrase_are_left_out(opened):
    shared = {"question": QUESTION, "video": "clip.mp4", "answer": "A cup", "pred": "A cup falls"}
    with pytest.raises(ConfigError, match="dropped 1 no_phrase"):
        opened([shared])


def test_chexalign_images_named_in_the_prompt_and_rewards(opened):
    prompt = "Picture 1: <img>a.png</img>\nPicture 2: <img>b.png</img>\nWrite the findings."
    record = {"prompt": prompt, "chosen": GOOD, "rejected": BAD, "reference": "x"}
    table = opened([{**record, "reward_chosen": 0.5, "reward_rejected": 0.25}], images=("a.png", "b.png"))
    row = table[0]
    assert table.parts[0].match.layout.name == "chexalign"
    assert row.messages == user(IMAGE, IMAGE, said("Write the findings."))
    assert [path[-5:] for path in row.images] == ["a.png", "b.png"]
    assert [candidate.reward for candidate in row.candidates] == [0.5, 0.25]


def test_chexalign_thumbs_read_their_prompt_alike(opened):
    record = {"prompt": "Picture 1: <img>a.png</img>\nFindings?", "completion": GOOD, "label": False}
    table = opened([record])
    assert (table.parts[0].match.layout.name, table.kind) == ("chexalign", "unpaired")
    assert table[0].desirable is False
    assert table[0].messages == user(IMAGE, said("Findings?"))


def test_chexalign_sampled_reports_give_the_pair_of_their_ends(opened):
    scores = dict(zip((f"green_scores{i}" for i in range(1, 5)), (0.25, 0.75, 0.5, 0.0), strict=True))
    reports = {f"candidate_findings_{i}": f"report {i}" for i in range(1, 5)}
    record = {"image_path": "a.png|b.png", "prompt": "Findings?", "section_findings": "x"} | reports
    tied = record | dict.fromkeys(scores, 0.5)
    table = opened([record | scores, tied], images=("a.png", "b.png"))
    assert [texts(row) for row in table] == [("report 2", "report 4")]
    assert table.report.dropped == {"tie": 1}
    assert len(table[0].images) == 2
    assert len(opened([record | scores], source={"lists": "pairs"})) == 6


def rated(text, *ratings):
    names = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    notes = {name: {"Rating": rating, "Rationale": "r"} for name, rating in zip(names, ratings, strict=True)}
    return {"annotations": notes, "model": f"model of {text}", "response": text}


VLFEEDBACK = {
    "id": "vl-1",
    "prompt": QUESTION,
    "models": ["m"],
    "img_path": "a.png",
    "completions": [
        rated("one", "5", "4", "3"),
        rated("two", "4", "4", "4"),
        rated("three", "2", "2", "5"),
        rated("four", "N/A", "5", "5"),
    ],
}


def test_vlfeedback_pairs_by_mean_rating(opened):
    table = opened([VLFEEDBACK])
    assert table.parts[0].match.layout.name == "vlfeedback"
    assert [texts(row) for row in table] == [("one", "three"), ("two", "three")]
    assert table.report.dropped == {"no_rating": 1, "tie": 1}
    assert (table.report.read, table.report.kept) == (4, 2)
    assert [candidate.reward for candidate in table[0].candidates] == [4.0, 3.0]
    assert table[0].candidates[0].model == "model of one"
    assert table[0].extras["ratings"][1]["Ethical Considerations"] == 5.0


def test_vlfeedback_options_choose_one_aspect_a_gap_the_ends_or_lists(opened):
    aspect = opened([VLFEEDBACK], source={"dialogue": {"aspect": "ethical considerations"}})
    assert ("three", "one") in [texts(row) for row in aspect]
    assert [texts(row) for row in opened([VLFEEDBACK], source={"lists": "best_worst"})] == [("one", "three")]
    wide = opened([VLFEEDBACK], source={"dialogue": {"min_gap": 2.0, "aspect": "Helpfulness"}})
    assert [texts(row) for row in wide] == [("one", "three"), ("two", "three")]
    assert wide.report.dropped["small_gap"] == 1
    lists = opened([VLFEEDBACK], kind="lists")
    assert texts(lists[0]) == ("one", "two", "three")
    assert lists[0].relevance == (4.0, 4.0, 3.0)
    assert lists.placeholder(0).kind == "lists"
    with pytest.raises(ConfigError, match="no rows are left"):
        opened([VLFEEDBACK], source={"dialogue": {"aspect": "taste"}})


def test_vlfeedback_ties_can_be_kept_soft(opened):
    table = opened([VLFEEDBACK], tie_policy="soft")
    assert [row.preference for row in table] == [0.5, 1.0, 1.0]


def test_completions_stored_as_one_record_of_lists_read_alike(write_parquet, config_of, encoded, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(1, format="PNG"))
    items = VLFEEDBACK["completions"]
    stored = {name: [item[name] for item in items] for name in ("annotations", "model", "response")}
    path = write_parquet([VLFEEDBACK | {"completions": stored}])
    assert [texts(row) for row in open_rows(config_of(path))] == [("one", "three"), ("two", "three")]


def test_any_columns_can_be_mapped(opened):
    columns = {
        "question": "ask",
        "chosen": "plus",
        "rejected": "minus",
        "images": "pics",
        "score_chosen": "s",
    }
    record = {"ask": QUESTION, "plus": GOOD, "minus": BAD, "pics": ["a.png"], "s": 3, "note": "kept"}
    row = opened([record], source={"columns": columns})[0]
    assert (texts(row), row.candidates[0].reward, row.extras["note"]) == ((GOOD, BAD), 3.0, "kept")
    assert row.messages == user(IMAGE, said(QUESTION))


def test_prompt_is_another_word_for_question_in_a_mapping(opened):
    columns = {"prompt": "ask", "chosen": "plus", "rejected": "minus", "videos": "clip"}
    record = {"ask": QUESTION, "plus": GOOD, "minus": BAD, "clip": ["b.png", "a.png"]}
    row = opened([record], source={"columns": columns}, images=("a.png", "b.png"))[0]
    assert row.messages == user(VIDEO, said(QUESTION))
    assert [frame[-5:] for frame in row.videos[0]] == ["b.png", "a.png"]


def test_spans_of_the_users_own_are_read(opened):
    columns = {
        "question": "q",
        "chosen": "c",
        "rejected": "r",
        "images": "i",
        "spans_chosen": "sc",
        "spans_rejected": "sr",
    }
    record = {
        "q": QUESTION,
        "c": GOOD,
        "r": BAD,
        "i": "a.png",
        "sc": [[2, 5]],
        "sr": [[0, 1, 0.5], [2, 5, 2]],
    }
    row = opened([record], source={"columns": columns})[0]
    assert row.extras["spans_chosen"] == [(2, 5, 1.0)]
    assert row.extras["phrase"][1] == [(0, 1, 0.5), (2, 5, 2.0)]
    assert opened([record, record | {"sc": "x"}], source={"columns": columns}).report.bad == {
        "malformed_json": 1
    }


def test_prompts_are_taken_from_any_dialogues(opened):
    assert [texts(row) for row in opened([VLFEEDBACK], kind="prompts")] == [()]
    alone = opened([{"question": QUESTION, "image": "a.png"}], kind="prompts", source={"media": "dialogue"})
    assert alone[0].messages == user(IMAGE, said(QUESTION))
    assert alone.kind == "prompts"


def test_the_last_turn_of_messages_alone_is_an_example_to_follow(opened):
    messages = [{"role": "user", "content": f"<image>{QUESTION}"}, {"role": "assistant", "content": GOOD}]
    table = opened([{"messages": messages, "images": ["a.png"]}], kind="chosen")
    assert table.kind == "chosen"
    assert texts(table[0]) == (GOOD,)
    assert table[0].messages == user(IMAGE, said(QUESTION))


def test_pairs_become_liked_and_disliked_rows_with_their_own_weights(opened):
    record = {
        "id": 1,
        "image": "a.png",
        "question": QUESTION,
        "chosen": GOOD,
        "rejected": BAD,
        "rejected_score": 2,
    }
    table = opened([record], kind="unpaired")
    assert [texts(row) for row in table] == [(GOOD,), (BAD,)]
    assert [row.extras["severity"] for row in table] == [[1.0], [2.0]]


def test_pictures_to_compare_are_no_dialogues(opened):
    records = [{"prompt": "a cup", "chosen": "a.png", "rejected": "b.png", "image": "a.png"}]
    table = opened(records, images=("a.png", "b.png"))
    assert table.parts[0].match.layout.name == "chosen_rejected"
    assert table[0].candidates[0].image.endswith("a.png")


def test_a_named_format_that_does_not_fit_says_what_it_needs(opened):
    records = [{"prompt": "x", "chosen": "y", "rejected": "z"}]
    with pytest.raises(ConfigError, match=r"not those of vlfeedback.*completions"):
        opened(records, source={"format": "vlfeedback"})
    with pytest.raises(ConfigError, match=r"columns maps to .*picture.*not there"):
        opened(records, source={"columns": {"images": "picture"}, "media": "dialogue"})
    with pytest.raises(ConfigError, match="fit no format of dialogues"):
        opened([{"words": "x", "picture": "y"}], source={"media": "dialogue"})
    with pytest.raises(UnknownNameError, match="rlaif_v"):
        opened(records, source={"format": "rlaifv", "media": "dialogue"})
    with pytest.raises(UnknownNameError, match="role in data columns"):
        opened(records, source={"columns": {"caption": "prompt"}, "media": "dialogue"})


def test_every_format_has_a_name_of_its_own():
    names = [entry.name for entry in FORMATS]
    assert len(set(names)) == len(names) == 19


def test_a_table_of_dialogues_travels_to_workers_without_its_rows(opened):
    records = [
        {"question": f"{QUESTION} {number}", "chosen": GOOD * 97, "rejected": BAD * 97, "image": "a.png"}
        for number in range(97)
    ]
    table = opened(records)
    sent = pickle.dumps(table)
    assert pickle.loads(sent)[5] == table[5]
    assert len(sent) < 12_000
    assert table.sizes == (97,)
    assert table.weights == (1.0,)
    assert table.where(5) == "rows.jsonl:6"
    assert "layout rlaif_v" in table.describe()
