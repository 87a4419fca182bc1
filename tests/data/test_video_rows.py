"""Data sets of clips: every layout is recognised, read, checked and converted."""

import json

import numpy as np
import pytest
from PIL import Image

from mmalign.data import open_rows
from mmalign.data.config import VideoLimits
from mmalign.data.labels import preference_from_signed
from mmalign.data.segments import FrameGrid, frame_preferences, stretches_of
from mmalign.data.video_media import decode_clip
from mmalign.errors import ConfigError, RowError
from mmalign.testing.clips import clip, frames_of, numbers, sound_alone


@pytest.fixture
def files(tmp_path):
    """Write clips beside the rows: files("a.mp4", "b.webm"); the n-th begins with frame n."""

    def write(*names, count=7):
        for seed, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = {"mp4": "mp4", "webm": "webm", "mov": "mov", "mkv": "matroska"}[name.rpartition(".")[2]]
            path.write_bytes(clip(kind, frames_of(count + seed)[seed:]))

    return write


@pytest.fixture
def folder(tmp_path):
    """Write a clip as a folder of frames."""

    def write(name, count=7, first=0):
        (tmp_path / name).mkdir(parents=True)
        for place, values in enumerate(frames_of(count + first)[first:]):
            Image.fromarray(values).save(tmp_path / name / f"{place}.png")

    return write


def first_frames(row):
    """Which frame each candidate begins with."""
    return [
        numbers(decode_clip(one.video, where="x", limits=VideoLimits(), num_frames=1).frames)[0]
        for one in row.candidates
    ]


def names_of(row):
    return [one.video.rpartition("/")[2] for one in row.candidates]


# ------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("chosen", "rejected"), ("video_chosen", "video_rejected"), ("chosen_video", "rejected_video")],
)
def test_pairs_of_clips_are_recognised(files, write_lines, config_of, chosen, rejected):
    files("a.mp4", "b.webm")
    path = write_lines([{"prompt": "x", chosen: "b.webm", rejected: "a.mp4", "fps": 10}])
    table = open_rows(config_of(path), kind="pairs")
    assert table.media == {"video"}
    (row,) = table
    assert first_frames(row) == [1, 0]
    assert row.extras == {"fps": 10}


def test_clips_inside_the_rows_are_told_from_sounds_and_pictures(write_parquet, config_of, encoded):
    def media(data):
        records = [{"prompt": "x", "chosen": data, "rejected": b"other"}]
        return set(open_rows(config_of(write_parquet(records))).media)

    for container in ("mp4", "webm", "matroska", "avi"):
        assert media(clip(container)) == {"video"}
    assert media(encoded(format="AVIF")) == {"image"}
    assert media(sound_alone()) != {"video"}


def test_folders_of_frames_are_clips_where_their_column_says_video(folder, write_lines, config_of):
    folder("clips/0")
    folder("clips/1", first=1)
    record = {"prompt": "x", "video_a": "clips/0", "video_b": "clips/1", "winner": "b"}
    (row,) = open_rows(config_of(write_lines([record])))
    assert first_frames(row) == [1, 0]


def test_rankings_of_clips_become_pairs(files, write_lines, config_of):
    files("a.mp4", "b.mp4", "c.mp4")
    record = {"prompt": "x", "videos": ["a.mp4", "b.mp4", "c.mp4"], "scores": [0.5, 0.7, 0.2]}
    path = write_lines([record])
    (row,) = open_rows(config_of(path))
    assert (row.kind, row.relevance) == ("lists", (0.5, 0.7, 0.2))
    ends = open_rows(config_of(path, source={"lists": "best_worst"}), kind="pairs")
    assert [names_of(row) for row in ends] == [["b.mp4", "c.mp4"]]


def test_unordered_clips_are_ordered_by_a_signed_preference(files, write_lines, config_of):
    files("a.mp4", "b.mp4")
    clips = {"prompt": "x", "video_0": "a.mp4", "video_1": "b.mp4"}
    path = write_lines([clips | {"preference": label} for label in (1, 0, -1, 2)])
    table = open_rows(config_of(path, tie_policy="soft"))
    assert [(names_of(row)[0], row.preference) for row in table] == [
        ("a.mp4", 1.0),
        ("a.mp4", 0.5),
        ("b.mp4", 1.0),
    ]
    assert table.report.bad == {"bad_label": 1}
    assert open_rows(config_of(path)).report.dropped == {"tie": 1}
    # Without a single -1 in the file, 0 still is a tie.
    positive = write_lines([clips | {"preference": label} for label in (1, 0)], "positive.jsonl")
    assert open_rows(config_of(positive)).report.dropped == {"tie": 1}


def test_segment_labels_point_at_the_candidates_in_their_new_order(files, write_lines, config_of):
    files("a.mp4", "b.mp4")
    clips = {"prompt": "x", "video_0": "a.mp4", "video_1": "b.mp4", "segment_seconds": 0.5}
    records = [
        clips | {"segment_labels": [1, 1, -1]},
        clips | {"segment_labels": [-1, None, 0]},
        clips | {"segment_labels": "[1, -1, 0]", "preference": -1},
    ]
    rows = list(open_rows(config_of(write_lines(records))))
    grid = FrameGrid(count=3, seconds=1.5)
    found = [
        (names_of(row)[0], frame_preferences(stretches_of(row), grid).tolist(), row.preference)
        for row in rows
    ]
    assert found == [
        ("a.mp4", [1.0, 1.0, -1.0], 1.0),
        ("b.mp4", [1.0, 0.0, 0.0], 1.0),
        ("b.mp4", [-1.0, 1.0, 0.0], 1.0),
    ]


def test_stretches_keep_their_form_and_change_sides_with_their_columns(files, write_lines, config_of):
    files("a.mp4", "b.mp4")
    segments = [
        {"start": 0.0, "end": 0.5, "preference": "chosen"},
        {"start": 0.5, "end": 0.7, "chosen": 0.1, "rejected": 0.3},
        {"start": 0.7, "end": 0.8, "preference": 1},
    ]
    pair = {"prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4", "segments": segments}
    path = write_lines([pair | {"preference": 1.0}, pair | {"preference": 0.0}])
    straight, swapped = open_rows(config_of(path))
    assert [one.preference for one in stretches_of(straight)] == [1, -1, 1]
    assert names_of(swapped) == ["b.mp4", "a.mp4"]
    assert [one.preference for one in stretches_of(swapped)] == [-1, 1, -1]


@pytest.mark.parametrize(
    ("labels", "seconds"), [([1, 2], 1.0), ("up", 1.0), ([1, 0], -1.0), ([1, 0], "long"), ([True], 1.0)]
)
def test_segment_labels_that_cannot_be_understood_are_refused(files, write_lines, config_of, labels, seconds):
    files("a.mp4", "b.mp4")
    record = {"prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4"}
    path = write_lines([record | {"segment_labels": labels, "segment_seconds": seconds}])
    with pytest.raises(RowError, match="segment_") as error:
        open_rows(config_of(path))[0]
    assert error.value.reason == "bad_segments"


def test_the_picture_that_clips_go_on_from_travels_with_the_row(files, write_lines, config_of, tmp_path):
    files("a.mp4", "b.mp4")
    path = write_lines(
        [{"prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4", "image": "i.png"}], images=("i.png",)
    )
    (row,) = open_rows(config_of(path))
    assert row.images == (str(tmp_path / "i.png"),)
    assert row.extras == {}


def test_clips_with_captions_alone_are_examples_and_thumbs_are_unpaired(files, write_lines, config_of):
    files("a.mp4")
    path = write_lines([{"prompt": "x", "video": "a.mp4"}])
    assert open_rows(config_of(path), kind="chosen").media == {"video"}
    thumbs = write_lines([{"prompt": "x", "video": "a.mp4", "label": False}], "thumbs.jsonl")
    (row,) = open_rows(config_of(thumbs))
    assert (row.kind, row.desirable) == ("unpaired", False)


# ------------------------------------------------------------------------------------------------ public sets


def test_rapidata_s_shares_of_votes_are_soft_labels(files, write_parquet, config_of):
    files("a.mp4", "b.mp4")
    record = {
        "prompt": "x",
        "video1": "https://somewhere/a.gif",
        "video2": "https://somewhere/b.gif",
        "file_name1": "a.mp4",
        "file_name2": "b.mp4",
        "model1": "pika 2.2",
        "model2": "sora",
        "weighted_results1_Preference": 0.3,
        "weighted_results2_Preference": 0.7,
        "weighted_results1_Alignment": 0.5,
        "weighted_results2_Alignment": 0.5,
    }
    path = write_parquet([record])
    (row,) = open_rows(config_of(path))
    assert names_of(row) == ["b.mp4", "a.mp4"]
    assert row.preference == pytest.approx(0.7)
    assert row.candidates[0].model == "sora"
    other = {"votes_a": "weighted_results1_Alignment", "votes_b": "weighted_results2_Alignment"}
    with pytest.raises(ConfigError, match="1 tie"):
        open_rows(config_of(path, source={"columns": other}))


VIDEOGEN = "path_A,path_B,prompt,VQ,MQ,TA,fps_A,num_frames_A,fps_B,num_frames_B"


def test_videogen_s_letters_are_read_for_the_whole_or_one_dimension(files, config_of, tmp_path):
    files("videos/a.mp4", "videos/b.mp4")
    lines = [
        VIDEOGEN,
        "videos/a.mp4,./videos/b.mp4,x,A,same,A,24.0,126.0,30.0,152.0",
        "videos/a.mp4,./videos/b.mp4,y,A,B,B,24.0,126.0,30.0,152.0",
        "videos/a.mp4,./videos/b.mp4,z,A,B,same,24.0,126.0,30.0,152.0",
        "videos/a.mp4,./videos/b.mp4,broken,A,,same,24.0,126.0,30.0,152.0",
    ]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines))
    table = open_rows(config_of(path))
    assert [(row.prompt, names_of(row)[0]) for row in table] == [("x", "a.mp4"), ("y", "b.mp4")]
    assert table.report.dropped == {"tie": 1}
    assert table.report.bad == {"missing_label": 1}
    assert table[0].extras["MQ"] == "same"
    one = open_rows(config_of(path, source={"columns": {"label": "MQ"}}))
    assert [(row.prompt, names_of(row)[0]) for row in one] == [
        ("y", "b.mp4"),
        ("z", "b.mp4"),
    ]
    bench = tmp_path / "bench.csv"
    bench.write_text(f"{VIDEOGEN},A_model,B_model,Overall\n{lines[1]},one,two,B\n")
    (row,) = open_rows(config_of(bench))
    assert (names_of(row)[0], row.candidates[0].model) == ("b.mp4", "two")


def test_videofeedback_s_scores_rank_the_clips_of_a_prompt(files, config_of, tmp_path):
    files("p1.mp4", "p2.mp4", "p3.mp4")
    names = ("visual quality", "temporal consistency", "dynamic degree", "text-to-video alignment")
    records = [
        {
            "id": f"p{number}",
            "text prompt": "x" if number < 3 else "y",
            "video link": f"https://somewhere/videos/p{number}.mp4",
            **dict.fromkeys(names, number),
            "factual consistency": 4,
        }
        for number in (1, 2, 3)
    ]
    (tmp_path / "data_annotated.json").write_text(json.dumps(records))
    table = open_rows(config_of(tmp_path / "data_annotated.json"))
    assert (table.kind, table.media) == ("lists", {"video"})
    (row,) = table
    assert (row.relevance, names_of(row)) == ((8 / 5, 12 / 5), ["p1.mp4", "p2.mp4"])
    assert table.report.dropped == {"single_candidate": 1}


def test_visionreward_s_answers_score_the_clips_of_a_prompt(files, write_parquet, config_of):
    files("a.mp4", "b.mp4")
    records = [
        {
            "internal_id": name,
            "url": f"https://somewhere/{name}.mp4",
            "video_path": f"{name}.mp4",
            "prompt": "x",
            "annotation": {"stability": 1},
            "meta_result": answers,
            "meta_mask": [1, 1, 0, 1],
        }
        for name, answers in (("a", [1, 0, 1, 0]), ("b", [1, 1, 0, 0]))
    ]
    (row,) = open_rows(config_of(write_parquet(records)))
    assert row.relevance == (-1 / 3, 1 / 3)
    pairs = open_rows(config_of(write_parquet(records), source={"lists": "pairs"}), kind="pairs")
    assert [names_of(one) for one in pairs] == [["b.mp4", "a.mp4"]]


def test_videodpo_names_clips_by_their_number_among_those_that_are_long_enough(files, config_of, tmp_path):
    files("set/a.mp4", "set/b.mp4", "set/c.mp4")
    clips = [
        {
            "basic": {"clip_path": f"{name}.mp4", "clip_duration": seconds},
            "misc": {"frame_caption": ["a caption"]},
        }
        for name, seconds in (("a", 2.0), ("b", 0.5), ("c", 1.0))
    ]
    pairs = [
        {"video1": 1, "video2": 0, "frame_caption": ["a cat"], "score": 0.25},
        {"video1": "a.mp4", "video2": "c.mp4", "frame_caption": "a dog"},
        {"video1": 2, "video2": 0, "frame_caption": "nowhere"},
        "broken",
    ]
    (tmp_path / "set/metadata.json").write_text(json.dumps(clips))
    (tmp_path / "set/pair.json").write_text(json.dumps(pairs))
    for path in (tmp_path / "set", tmp_path / "set/pair.json"):
        table = open_rows(config_of(path))
        assert [(table[n].prompt, names_of(table[n])) for n in (0, 1)] == [
            ("a cat", ["c.mp4", "a.mp4"]),
            ("a dog", ["a.mp4", "c.mp4"]),
        ]
        assert table[0].extras["score"] == 0.25
        for number, reason in ((2, "missing_video"), (3, "malformed_record")):
            with pytest.raises(RowError) as error:
                table[number]
            assert error.value.reason == reason
    (tmp_path / "set/metadata.json").write_text("{}")
    with pytest.raises(ConfigError, match="expected a list"):
        open_rows(config_of(tmp_path / "set"))


def test_matched_folders_hold_clips_as_files_or_as_frames(files, folder, config_of, tmp_path):
    files("one/chosen/x.mp4", "one/rejected/x.webm")
    (tmp_path / "one/chosen/x.txt").write_text("a cat")
    (row,) = open_rows(config_of(tmp_path / "one"))
    assert (row.prompt, first_frames(row)) == ("a cat", [0, 1])
    folder("two/chosen/x")
    folder("two/rejected/x", first=1)
    (tmp_path / "two/captions").mkdir()
    (tmp_path / "two/captions/x.txt").write_text("a dog")
    table = open_rows(config_of(tmp_path / "two", source={"media": "video"}))
    assert [(row.prompt, first_frames(row)) for row in table] == [("a dog", [0, 1])]


def test_signed_preferences_may_be_words():
    words = np.array(["a", "tie", "b", "nobody"], dtype=object)
    assert preference_from_signed(words).tolist()[:3] == [1.0, 0.5, 0.0]
