"""Every layout becomes rows; labels, ties and splits are decided at opening, media are read later."""

import json
import pickle
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from mmalign.data import open_rows
from mmalign.data.records import ParquetRecords
from mmalign.errors import ConfigError, RowError, UnknownNameError


def reasons(table):
    """Reasons of the rows that cannot be used."""
    found = []
    for index in range(len(table)):
        try:
            table[index]
        except RowError as error:
            found.append(error.reason)
    return found


# --- Pick-a-Pic


def test_pickapic_rows_put_the_preferred_image_first(pickapic_records, write_parquet, config_of):
    records = pickapic_records([1.0, 0.0])
    table = open_rows(config_of(write_parquet(records)))
    assert table.kind == "pairs"
    assert [row.candidates[0].image for row in table] == [records[0]["jpg_0"], records[1]["jpg_1"]]
    assert [row.candidates[0].id for row in table] == ["0-0", "1-1"]
    assert [row.candidates[0].model for row in table] == ["left model", "right model"]
    assert [row.preference for row in table] == [1.0, 1.0]
    assert [row.index for row in table] == [0, 1]
    assert table[1].source == "pairs.parquet:1"
    assert table[1].prompt == "prompt 1"


def test_ties_are_dropped_and_counted(pickapic_records, write_parquet, config_of):
    table = open_rows(
        config_of(write_parquet(pickapic_records([1.0, 0.5, 0.0, 0.5, 0.5])), tie_policy="drop")
    )
    assert len(table) == 2
    assert table.report.dropped == {"tie": 3}
    assert table.report.read == 5
    assert table.report.kept == 2
    assert table.report.bad_share == 0.0


def test_soft_ties_keep_preference_one_half(pickapic_records, write_parquet, config_of):
    table = open_rows(config_of(write_parquet(pickapic_records([0.5, 0.25, 0.9])), tie_policy="soft"))
    assert [row.preference for row in table] == pytest.approx([0.5, 0.75, 0.9])
    assert table[1].candidates[0].id == "1-1"  # 0.25 for image 0 is 0.75 for image 1


def test_random_ties_fall_the_same_way_again_and_both_ways_overall(
    pickapic_records, write_parquet, config_of
):
    path = write_parquet(pickapic_records([0.5] * 40))
    first, again, other = (
        [row.candidates[0].id[-1] for row in open_rows(config_of(path, tie_policy="random", seed=seed))]
        for seed in (3, 3, 5)
    )
    assert first == again
    assert first != other
    assert 10 < first.count("0") < 30


def test_rows_without_label_or_with_equal_images_are_dropped_by_reason(
    pickapic_records, write_parquet, config_of
):
    records = pickapic_records(
        [1.0, 1.0, 0.0, 0.5], has_label=[False, True, None, False], are_different=[True, False, True, True]
    )
    table = open_rows(config_of(write_parquet(records)))
    assert table.report.dropped == {"no_label": 2, "identical_candidates": 1}
    assert [row.prompt for row in table] == ["prompt 2"]


def test_a_missing_label_is_a_bad_row_with_its_place(pickapic_records, write_parquet, config_of):
    table = open_rows(config_of(write_parquet(pickapic_records([1.0, None, 7.0]))))
    assert table.report.bad == {"missing_label": 1, "bad_label": 1}
    assert table.report.read == 3
    assert {(issue.row, issue.field, issue.reason) for issue in table.issues} == {
        ("1", "label_0", "missing_label"),
        ("2", "label_0", "bad_label"),
    }
    assert "got 7.0, expected a preference" in table.issues[-1].message


def test_identical_bytes_are_refused_unless_kept(pickapic_records, write_parquet, config_of):
    records = pickapic_records([1.0, 1.0])
    records[0]["jpg_1"] = records[0]["jpg_0"]
    path = write_parquet(records)
    assert reasons(open_rows(config_of(path))) == ["identical_candidates"]
    assert reasons(open_rows(config_of(path, identical="keep"))) == []


def test_empty_bytes_and_null_images_are_bad_rows(pickapic_records, write_parquet, config_of):
    records = pickapic_records([1.0, 1.0, 1.0])
    records[0]["jpg_1"], records[1]["jpg_0"] = b"", None
    table = open_rows(config_of(write_parquet(records)))
    assert reasons(table) == ["empty_file", "missing_image"]
    with pytest.raises(RowError, match=r"pairs.parquet:0 jpg_1: got '0 bytes'"):
        table[0]


def test_shards_of_a_folder_are_one_table_and_the_split_chooses(
    pickapic_records, write_parquet, config_of, tmp_path
):
    records = pickapic_records([1.0] * 7)
    write_parquet(records[:2], "set/data/train-00000-of-00002.parquet")
    write_parquet(records[2:5], "set/data/train-00001-of-00002.parquet")
    write_parquet(records[5:], "set/data/test_unique-00000-of-00001.parquet")
    train = open_rows(config_of(tmp_path / "set"))
    assert [row.prompt for row in train] == [f"prompt {number}" for number in range(5)]
    assert train[3].source == "train-00001-of-00002.parquet:1"
    assert len(open_rows(config_of(tmp_path / "set", source={"split": "test_unique"}))) == 2
    with pytest.raises(ConfigError, match="no shards of split 'validation'; found splits test_unique, train"):
        open_rows(config_of(tmp_path / "set", source={"split": "validation"}))


def test_shards_with_other_columns_are_refused(pickapic_records, write_parquet, config_of, tmp_path):
    write_parquet(pickapic_records([1.0]), "set/train-00000.parquet")
    write_parquet([{"other": 1}], "set/train-00001.parquet")
    with pytest.raises(ConfigError, match=r"expected those of train-00000.parquet"):
        open_rows(config_of(tmp_path / "set"))


def test_a_truncated_parquet_file_is_named(pickapic_records, write_parquet, config_of):
    path = write_parquet(pickapic_records([1.0]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"pairs.parquet: not a complete parquet file"):
        open_rows(config_of(path))


def test_opening_reads_label_columns_only(pickapic_records, write_parquet, config_of, monkeypatch):
    asked = []
    original = ParquetRecords.column
    monkeypatch.setattr(
        ParquetRecords, "column", lambda self, name: asked.append(name) or original(self, name)
    )
    path = write_parquet(pickapic_records([1.0, 0.5, 0.0]))
    monkeypatch.setattr(ParquetRecords, "read", lambda *_: pytest.fail("no row may be read while opening"))
    open_rows(config_of(path))
    assert set(asked) == {"has_label", "are_different", "label_0"}


def test_a_hundred_thousand_rows_open_in_seconds_and_pickle_small(tmp_path, config_of):
    count = 100_000
    columns = {
        "caption": pa.array(["a prompt"] * count),
        "jpg_0": pa.array([b"0" * 50] * count),
        "jpg_1": pa.array([b"1" * 50] * count),
        "label_0": pa.array(np.tile([1.0, 0.0, 0.5, 1.0], count // 4)),
        "has_label": pa.array(np.ones(count, dtype=bool)),
    }
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=1000)
    start = time.perf_counter()
    table = open_rows(config_of(path))
    assert time.perf_counter() - start < 3.0
    assert len(table) == 75_000
    assert table[74_999].source == "large.parquet:99999"
    assert len(pickle.dumps(table)) < 16 * count


def test_a_table_reads_the_same_rows_after_pickling(pickapic_records, write_parquet, config_of):
    table = open_rows(config_of(write_parquet(pickapic_records([1.0, 0.0, 1.0]))))
    table[0]  # opens files
    assert list(pickle.loads(pickle.dumps(table))) == list(table)


def test_extra_columns_travel_along_but_unused_media_do_not(pickapic_records, write_parquet, config_of):
    records = pickapic_records([1.0], user_id=[17], thumbnail=[b"jpeg"])
    row = open_rows(config_of(write_parquet(records)))[0]
    assert row.extras == {"user_id": 17}


# --- tables with paths


def test_win_and_lose_paths_are_read_from_json_lines(write_lines, config_of, tmp_path):
    path = write_lines(
        [{"prompt": "a cat", "img_path_win": "w/a.png", "img_path_lose": "l/a.png"}],
        images=("w/a.png", "l/a.png"),
    )
    row = open_rows(config_of(path))[0]
    assert [candidate.image for candidate in row.candidates] == [
        str(tmp_path / "w/a.png"),
        str(tmp_path / "l/a.png"),
    ]
    assert row.source == "rows.jsonl:1"


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_tables_with_a_header_are_read(tmp_path, config_of, ending):
    comma = "\t" if ending == "tsv" else ","
    lines = [
        comma.join(["prompt", "chosen", "rejected", "weight"]),
        comma.join(['"a ""red""\ncat"', "a.png", "b.png", "0.5"]),
    ]
    path = tmp_path / f"rows.{ending}"
    path.write_text("\n".join(lines) + "\n")
    row = open_rows(config_of(path))[0]
    assert row.prompt == 'a "red"\ncat'
    assert row.weight == 0.5
    assert row.candidates[1].image == str(tmp_path / "b.png")


def test_a_json_list_is_read(tmp_path, config_of):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"caption": "x", "chosen": "a.png", "reject": "b.png"}]))
    assert open_rows(config_of(path))[0].prompt == "x"


def test_a_metadata_file_makes_a_folder_a_data_set(write_lines, config_of, tmp_path):
    write_lines(
        [{"text": "x", "chosen_file_name": "a.png", "rejected_file_name": "b.png"}], name="metadata.jsonl"
    )
    assert open_rows(config_of(tmp_path))[0].candidates[0].image == str(tmp_path / "a.png")


def test_malformed_lines_are_bad_rows(write_lines, config_of):
    path = write_lines(
        ['{"prompt": "x", "chosen": "a.png", "rejected": "b.png"}', '{"prompt": "tor', "[1, 2]"]
    )
    table = open_rows(config_of(path))
    assert reasons(table) == ["malformed_record", "malformed_record"]
    with pytest.raises(RowError, match=r"rows.jsonl:2: got .*tor.*expected one JSON object per line"):
        table[1]


def test_a_csv_row_with_too_few_cells_is_a_bad_row(tmp_path, config_of):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,chosen,rejected\nx,a.png,b.png\ny,c.png\n")
    assert reasons(open_rows(config_of(path))) == ["malformed_record"]


def test_paths_that_leave_the_folder_are_bad_rows_unless_allowed(write_lines, config_of):
    path = write_lines([{"prompt": "x", "chosen": "../a.png", "rejected": "/etc/hostname"}])
    assert reasons(open_rows(config_of(path))) == ["path_outside"]
    assert reasons(open_rows(config_of(path, source={"allow_outside": True}))) == []


def test_root_moves_where_relative_paths_start(write_lines, config_of, tmp_path):
    (tmp_path / "media").mkdir()
    path = write_lines([{"prompt": "x", "chosen": "a.png", "rejected": "b.png"}])
    row = open_rows(config_of(path, source={"root": str(tmp_path / "media")}))[0]
    assert row.candidates[0].image == str(tmp_path / "media" / "a.png")
    with pytest.raises(ConfigError, match="no such folder; relative media paths"):
        open_rows(config_of(path, source={"root": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("label", ["1", "0", "tie"], [1.0, 0.0, 0.5]),
        ("pref", [1, -1, 0], [1.0, 0.0, 0.5]),
        ("preference", [0.75, 0.25, 0.5], [0.75, 0.25, 0.5]),
        ("label", [True, False, True], [1.0, 0.0, 1.0]),
        ("winner", [0, 1, "tie"], [1.0, 0.0, 0.5]),
        ("winner", ["left", "B", "draw"], [1.0, 0.0, 0.5]),
    ],
)
def test_labels_are_understood_in_the_ways_people_write_them(
    write_lines, config_of, column, values, expected
):
    records = [
        {"prompt": "x", "image_a": f"{n}a.png", "image_b": f"{n}b.png", column: v}
        for n, v in enumerate(values)
    ]
    table = open_rows(config_of(write_lines(records), tie_policy="soft"))
    found = [
        row.preference if row.candidates[0].image.endswith("a.png") else 1 - row.preference for row in table
    ]
    assert found == expected


def test_the_winner_may_be_named_by_its_id(pickapic_records, write_parquet, config_of):
    records = pickapic_records([1.0, 1.0, 1.0], best_image_uid=["0-1", "1-0", "tie"])
    for record in records:
        del record["label_0"], record["label_1"]
    table = open_rows(config_of(write_parquet(records), tie_policy="soft"))
    assert [(row.candidates[0].id, row.preference) for row in table] == [
        ("0-1", 1.0),
        ("1-0", 1.0),
        ("2-0", 0.5),
    ]


def test_scores_decide_and_become_rewards_and_votes_become_soft_labels(write_lines, config_of):
    base = {"prompt": "x", "image_a": "a.png", "image_b": "b.png"}
    scored = open_rows(config_of(write_lines([base | {"score_a": 0.25, "score_b": 2.0}])))[0]
    assert [candidate.reward for candidate in scored.candidates] == [2.0, 0.25]
    assert scored.candidates[0].image.endswith("b.png")
    voted = open_rows(config_of(write_lines([base | {"votes_a": 7, "votes_b": 3}])))[0]
    assert voted.preference == pytest.approx(0.7)


def test_a_columns_mapping_expresses_any_table(write_lines, config_of):
    path = write_lines([{"words": "x", "one": "1.png", "two": "2.png", "verdict": "b", "importance": 3}])
    columns = {"prompt": "words", "a": "one", "b": "two", "winner": "verdict", "weight": "importance"}
    row = open_rows(config_of(path, source={"columns": columns}))[0]
    assert row.candidates[0].image.endswith("2.png")
    assert row.weight == 3.0


# --- messages about layouts


def test_an_unknown_layout_lists_columns_layouts_and_the_nearest(write_lines, config_of):
    path = write_lines([{"prompt": "x", "chosen": "a.png", "worse_one": "b.png"}])
    with pytest.raises(ConfigError) as caught:
        open_rows(config_of(path))
    message = str(caught.value)
    assert "Columns found: prompt, chosen, worse_one" in message
    assert "Nearest: chosen_rejected; missing: rejected" in message
    assert (
        "two_images: prompt, a, b, one of (label | winner | score_a and score_b | votes_a and votes_b)"
        in message
    )


def test_a_wrong_column_names_the_nearest_one(write_lines, config_of):
    path = write_lines([{"prompt": "x", "chosen": "a.png", "rejected": "b.png"}])
    with pytest.raises(
        ConfigError, match=r"maps chosen to 'choosen', which is not there. Did you mean 'chosen'"
    ):
        open_rows(config_of(path, source={"columns": {"chosen": "choosen"}}))


def test_an_unknown_role_or_format_lists_the_known_ones(write_lines, config_of):
    path = write_lines([{"prompt": "x", "chosen": "a.png", "rejected": "b.png"}])
    with pytest.raises(UnknownNameError, match=r"role in data columns: 'chosn'. Did you mean chosen"):
        open_rows(config_of(path, source={"columns": {"chosn": "chosen"}}))
    with pytest.raises(UnknownNameError, match=r"data format 'pikapic'. Did you mean pickapic"):
        open_rows(config_of(path, source={"format": "pikapic"}))


def test_a_path_that_does_not_exist_says_so(tmp_path, config_of):
    with pytest.raises(ConfigError, match="no such file or folder, and not a hub id"):
        open_rows(config_of(tmp_path / "nothing.parquet"))


def test_a_hub_id_without_network_says_so(config_of):
    with pytest.raises(ConfigError, match="no such file or folder here, and the hub did not give"):
        open_rows(config_of("nobody/a-data-set-that-is-not-here"))


def test_an_empty_or_foreign_folder_says_what_was_expected(tmp_path, config_of):
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ConfigError, match=r"expected parquet shards.*found readme.txt"):
        open_rows(config_of(tmp_path))


def test_no_rows_left_is_an_error_with_counts(pickapic_records, write_parquet, config_of):
    with pytest.raises(ConfigError, match=r"no rows are left. 2 rows read; 0 kept; dropped 2 tie"):
        open_rows(config_of(write_parquet(pickapic_records([0.5, 0.5]))))


def test_describe_says_what_was_recognised(pickapic_records, write_parquet, config_of):
    text = open_rows(config_of(write_parquet(pickapic_records([1.0, 0.5])))).describe()
    assert "pairs.parquet: parquet, 1 file; layout pickapic (prompt=caption, a=jpg_0" in text
    assert "2 rows read; 1 kept; dropped 1 tie" in text


# --- folders


@pytest.fixture
def matched_folder(tmp_path, encoded):
    for side, names in (
        ("chosen", ("cat.png", "dog.jpg", "alone.png")),
        ("rejected", ("cat.jpg", "dog.png")),
    ):
        (tmp_path / "set" / side).mkdir(parents=True)
        for seed, name in enumerate(names):
            (tmp_path / "set" / side / name).write_bytes(encoded(seed + len(side)))
    (tmp_path / "set" / "chosen" / "cat.txt").write_text("a cat\n")
    (tmp_path / "set" / "captions").mkdir()
    (tmp_path / "set" / "captions" / "dog.txt").write_text("a dog")
    return tmp_path / "set"


def test_matched_folders_pair_files_by_name(matched_folder, config_of):
    table = open_rows(config_of(matched_folder))
    assert reasons(table) == ["missing_prompt"]  # alone.png has neither caption nor partner
    rows = {row.prompt: row for index in (1, 2) for row in [table[index]]}
    assert rows["a cat"].candidates[0].image == str(matched_folder / "chosen" / "cat.png")
    assert rows["a cat"].candidates[1].image == str(matched_folder / "rejected" / "cat.jpg")
    assert rows["a dog"].source == "set:dog"


def test_a_file_without_partner_is_a_bad_row(matched_folder, config_of):
    (matched_folder / "chosen" / "alone.txt").write_text("alone")
    with pytest.raises(RowError, match=r"set:alone rejected: got None, expected an image") as caught:
        open_rows(config_of(matched_folder))[0]
    assert caught.value.reason == "missing_image"


def test_captions_may_stand_in_a_metadata_file(matched_folder, config_of):
    records = [{"file_name": "cat.png", "caption": "the cat"}, {"file_name": "alone.png", "caption": "z"}]
    (matched_folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert "the cat" in open_rows(config_of(matched_folder)).prompts()


def test_folders_without_common_names_are_refused(tmp_path, encoded, config_of):
    for side, name in (("win", "a.png"), ("lose", "b.png")):
        (tmp_path / side).mkdir()
        (tmp_path / side / name).write_bytes(encoded())
    with pytest.raises(ConfigError, match="no file name is in both win/"):
        open_rows(config_of(tmp_path))


def test_kohya_folders_repeat_their_rows(tmp_path, encoded, config_of):
    for name in ("3_cats", "1_dogs"):
        for seed, side in enumerate("wl"):
            (tmp_path / name / side).mkdir(parents=True)
            (tmp_path / name / side / "x.png").write_bytes(encoded(seed))
        (tmp_path / name / "w" / "x.txt").write_text(name[2:])
    assert sorted(row.prompt for row in open_rows(config_of(tmp_path))) == ["cats", "cats", "cats", "dogs"]


# --- rankings and unpaired rows


@pytest.fixture
def rankings(write_lines):
    """HPDv2-style rows: rank 1 is best."""
    records = [
        {"prompt": "x", "image_path": ["x0.png", "x1.png", "x2.png"], "rank": [2, 1, 3]},
        {"prompt": "y", "image_path": ["y0.png", "y1.png", "y2.png"], "rank": [1, 1, 2]},
    ]
    return write_lines(records)


def test_rankings_become_lists_with_higher_is_better(rankings, config_of):
    table = open_rows(config_of(rankings))
    assert table.kind == "lists"
    assert table[0].relevance == (-2.0, -1.0, -3.0)
    assert [candidate.image.rpartition("/")[2] for candidate in table[0].candidates] == [
        "x0.png",
        "x1.png",
        "x2.png",
    ]


def test_rankings_become_all_unequal_pairs(rankings, config_of):
    table = open_rows(config_of(rankings, source={"lists": "pairs"}))
    names = [tuple(c.image.rpartition("/")[2] for c in row.candidates) for row in table]
    assert names == [
        ("x1.png", "x0.png"),
        ("x0.png", "x2.png"),
        ("x1.png", "x2.png"),
        ("y0.png", "y2.png"),
        ("y1.png", "y2.png"),
    ]
    assert table.report.dropped == {"tie": 1}
    soft = open_rows(config_of(rankings, source={"lists": "pairs"}, tie_policy="soft"))
    assert [row.preference for row in soft] == [1.0, 1.0, 1.0, 0.5, 1.0, 1.0]


def test_rankings_become_one_pair_of_best_and_worst(rankings, config_of):
    table = open_rows(config_of(rankings, source={"lists": "best_worst"}))
    names = [tuple(c.image.rpartition("/")[2] for c in row.candidates) for row in table]
    assert names == [("x1.png", "x2.png"), ("y0.png", "y2.png")]


def test_preference_votes_of_hpdv2_training_rows_are_scores(write_lines, config_of):
    path = write_lines([{"prompt": "x", "image_path": ["0.png", "1.png"], "human_preference": [0, 1]}])
    assert open_rows(config_of(path))[0].relevance == (0.0, 1.0)


def test_a_list_with_another_number_of_labels_is_a_bad_row(write_lines, config_of):
    path = write_lines([{"prompt": "x", "image_path": ["0.png", "1.png", "2.png"], "rank": [1, 2]}])
    with pytest.raises(RowError, match="got '3 candidates and 2 labels', expected one label per candidate"):
        open_rows(config_of(path))[0]


def test_rows_with_a_rank_are_grouped_by_prompt(write_lines, config_of):
    """ImageRewardDB style: one image per record."""
    records = [
        {"prompt_id": 1, "prompt": "x", "image_path": "x0.png", "rank": 2},
        {"prompt_id": 2, "prompt": "y", "image_path": "y0.png", "rank": 1},
        {"prompt_id": 1, "prompt": "x", "image_path": "x1.png", "rank": 1},
        {"prompt_id": 3, "prompt": "z", "image_path": "z0.png", "rank": 1},
        {"prompt_id": 2, "prompt": "y", "image_path": "y1.png", "rank": 4},
        {"prompt_id": 2, "prompt": "y", "image_path": "y2.png", "rank": None},
    ]
    path = write_lines(records)
    table = open_rows(config_of(path))
    assert [(row.prompt, row.relevance) for row in table] == [("x", (-2.0, -1.0)), ("y", (-1.0, -4.0))]
    assert table.report.dropped == {"single_candidate": 1}
    assert table.report.bad == {"missing_label": 1}
    pairs = open_rows(config_of(path, source={"lists": "pairs"}))
    assert [row.candidates[0].image.rpartition("/")[2] for row in pairs] == ["x1.png", "y0.png"]


def test_unpaired_rows_carry_a_thumb(write_lines, config_of):
    records = [
        {"file_name": "a.png", "caption": "x", "label": 1, "split": "train"},
        {"file_name": "b.png", "caption": "y", "label": 0, "split": "train"},
        {"file_name": "c.png", "caption": "z", "label": 1, "split": "test"},
    ]
    table = open_rows(config_of(write_lines(records), source={"split": "train"}))
    assert table.kind == "unpaired"
    assert [(row.prompt, row.desirable, len(row.candidates)) for row in table] == [
        ("x", True, 1),
        ("y", False, 1),
    ]


def test_pairs_serve_methods_for_unpaired_rows(pickapic_records, write_parquet, config_of):
    path = write_parquet(pickapic_records([0.0, 0.5, 1.0]))
    table = open_rows(config_of(path, tie_policy="soft"), kind="unpaired")
    assert len(table) == 4
    assert [(row.candidates[0].id, row.desirable) for row in table] == [
        ("0-1", True),
        ("0-0", False),
        ("2-0", True),
        ("2-1", False),
    ]
    assert table.report.dropped == {"tie": 1}
    assert [row.index for row in table] == [0, 1, 2, 3]


def test_a_kind_the_method_cannot_use_is_refused(rankings, config_of):
    with pytest.raises(
        ConfigError, match=r"got lists rows.*expected pairs for this method. Set lists: pairs"
    ):
        open_rows(config_of(rankings), kind="pairs")


# --- prompts


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [("", "empty_prompt"), ("  \n", "empty_prompt"), (None, "missing_prompt"), (7, "invalid_text")],
)
def test_unusable_prompts_are_bad_rows(write_lines, config_of, prompt, reason):
    path = write_lines([{"prompt": prompt, "chosen": "a.png", "rejected": "b.png"}])
    table = open_rows(config_of(path))
    assert reasons(table) == [reason]
    with pytest.raises(RowError, match=r"rows.jsonl:1 prompt: got"):
        table[0]


def test_empty_prompts_are_accepted_on_request(write_lines, config_of):
    path = write_lines([{"prompt": p, "chosen": "a.png", "rejected": "b.png"} for p in ("", None)])
    assert [row.prompt for row in open_rows(config_of(path, allow_empty_prompt=True))] == ["", ""]


def test_half_a_surrogate_pair_is_a_bad_row(write_lines, config_of):
    path = write_lines(['{"prompt": "cut \\ud83d", "chosen": "a.png", "rejected": "b.png"}'])
    with pytest.raises(RowError, match="half of a surrogate pair at position 4"):
        open_rows(config_of(path))[0]


@pytest.mark.parametrize("prompt", ["🐈‍⬛ 猫 😀", "word " * 2000, "\u202eright to left", "a\x00b"])
def test_unusual_prompts_are_fine(write_lines, config_of, prompt):
    path = write_lines([{"prompt": prompt, "chosen": "a.png", "rejected": "b.png"}])
    assert open_rows(config_of(path))[0].prompt == prompt


# --- datasets, several sources, limits


def test_saved_datasets_are_read_without_decoding(tmp_path, encoded, config_of):
    datasets = pytest.importorskip("datasets")
    pictures = [{"bytes": encoded(seed), "path": None} for seed in range(6)]
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "chosen": datasets.Image(), "rejected": datasets.Image()}
    )
    saved = datasets.Dataset.from_dict(
        {"prompt": list("xyz"), "chosen": pictures[:3], "rejected": pictures[3:]}, features=features
    )
    datasets.DatasetDict({"train": saved, "test": saved.select([2])}).save_to_disk(str(tmp_path / "saved"))
    table = open_rows(config_of(tmp_path / "saved"))
    assert [row.candidates[0].image for row in table] == [picture["bytes"] for picture in pictures[:3]]
    assert list(pickle.loads(pickle.dumps(table))) == list(table)
    assert open_rows(config_of(tmp_path / "saved", source={"split": "test"}))[0].prompt == "z"
    with pytest.raises(ConfigError, match="expected split 'validation', found train, test"):
        open_rows(config_of(tmp_path / "saved", source={"split": "validation"}))


def test_several_sources_are_numbered_through(pickapic_records, write_parquet, write_lines, config_of):
    first = write_parquet(pickapic_records([1.0, 0.0]))
    second = write_lines([{"prompt": "z", "chosen": "a.png", "rejected": "b.png"}])
    config = config_of(first).model_validate({"sources": [str(first), {"path": str(second), "weight": 2.0}]})
    table = open_rows(config)
    assert [(row.index, row.prompt) for row in table] == [(0, "prompt 0"), (1, "prompt 1"), (2, "z")]
    assert table.sizes == (2, 1)
    assert table.weights == (1.0, 2.0)
    assert table.where(2) == "rows.jsonl:1"
    with pytest.raises(IndexError, match="the table has 3 rows"):
        table[3]


def test_sources_of_several_kinds_are_refused(rankings, pickapic_records, write_parquet, config_of):
    first = write_parquet(pickapic_records([1.0]))
    config = config_of(first).model_validate({"sources": [str(first), str(rankings)]})
    with pytest.raises(ConfigError, match=r"several kinds, expected one: .*\(pairs\), .*\(lists\)"):
        open_rows(config)


def test_a_limit_keeps_the_first_usable_rows(pickapic_records, write_parquet, config_of):
    table = open_rows(config_of(write_parquet(pickapic_records([0.5, 1.0, 1.0, 1.0])), source={"limit": 2}))
    assert [row.prompt for row in table] == ["prompt 1", "prompt 2"]


def test_a_placeholder_counts_nowhere_and_fits_the_kind(rankings, pickapic_records, write_parquet, config_of):
    pairs = open_rows(config_of(write_parquet(pickapic_records([1.0]))))
    stand_in = pairs.placeholder(0)
    assert (stand_in.kind, stand_in.weight, len(stand_in.candidates)) == ("pairs", 0.0, 2)
    lists = open_rows(config_of(rankings)).placeholder(1)
    assert lists.kind == "lists"
    assert len(lists.relevance) == len(lists.candidates) == 3


def test_prompts_are_listed_once_without_reading_images(
    pickapic_records, write_parquet, config_of, monkeypatch
):
    table = open_rows(config_of(write_parquet(pickapic_records([1.0, 0.0, 1.0], caption=["x", "y", "x"]))))
    monkeypatch.setattr(ParquetRecords, "read", lambda *_: pytest.fail("no row may be read"))
    assert table.prompts() == ["x", "y"]


def test_loader_workers_read_the_same_rows(pickapic_records, write_parquet, config_of):
    table = open_rows(config_of(write_parquet(pickapic_records([1.0, 0.0] * 7))))
    expected = [table[index].prompt for index in range(14)]  # opens files that the workers inherit
    loader = DataLoader(
        table, batch_size=3, num_workers=2, collate_fn=lambda rows: [row.prompt for row in rows]
    )
    assert [prompt for batch in loader for prompt in batch] == expected
