"""Data sets of clips: every layout is recognised, read, checked and converted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.cli.main import main
from mmalign.data import open_rows
from mmalign.data.audit import audit
from mmalign.data.audit_report import print_audit
from mmalign.data.check import check
from mmalign.data.config import VideoLimits
from mmalign.data.convert import convert
from mmalign.data.derive import DeriveSettings, derive
from mmalign.data.labels import preference_from_signed
from mmalign.data.segments import FrameGrid, frame_preferences, stretches_of
from mmalign.data.video_facts import clip_digest
from mmalign.data.video_media import decode_clip
from mmalign.data.video_writers import encode_clip
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


# ------------------------------------------------------------------------------------------------ check


@pytest.fixture
def mixed(files, write_lines, tmp_path):
    """Three good pairs; a text, a cut file, twice the same, sound alone, a missing side, wrong labels."""
    files("a.mp4", "b.mp4", "c.webm", "d.mov", "e.mkv", "f.mp4")
    (tmp_path / "words.mp4").write_text("no clip" * 300)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:900])
    (tmp_path / "sound.mp4").write_bytes(sound_alone())
    still = np.repeat(frames_of(3)[1:2], 7, axis=0)
    (tmp_path / "still.mkv").write_bytes(clip("matroska", still))
    pairs = [
        ("a.mp4", "b.mp4"),
        ("c.webm", "d.mov"),
        ("e.mkv", "still.mkv"),
        ("words.mp4", "a.mp4"),
        ("a.mp4", "cut.mp4"),
        ("a.mp4", "./a.mp4"),
        ("sound.mp4", "a.mp4"),
        ("nowhere.mp4", "a.mp4"),
        ("a.mp4", None),
        ("a.mp4", "f.mp4"),
    ]
    records = [
        {"prompt": f"p{number}", "chosen": chosen, "rejected": rejected}
        for number, (chosen, rejected) in enumerate(pairs)
    ]
    records[0] |= {"segment_labels": [1, -1, 0], "segment_seconds": 0.25}
    records[-1] |= {"segment_labels": [1, 0], "segment_seconds": 0.25}
    return write_lines(records)


def test_check_counts_clips_by_reason_and_notes_doubts(mixed, config_of):
    found = check(config_of(mixed), decode="all")
    assert found.read.bad == {
        "no_video_stream": 2,
        "truncated_video": 1,
        "identical_candidates": 1,
        "missing_file": 1,
        "missing_video": 1,
        "wrong_segments": 1,
    }
    assert (found.read.read, found.read.kept) == (10, 3)
    assert found.video["seconds"] == [0.7, 0.7, 0.7]
    assert found.video["frames"] == [7, 7, 7]
    assert found.video["segments"] == {"rows": 1, "chosen": 1, "rejected": 1, "tie": 1}
    assert found.video["notes"] == {"still": 1}
    assert found.video["motion"][0] == 0.0
    assert any("1 clip noted as still: nothing moves" in line for line in found.advice)
    assert found.duplicates["clips_used_more_than_once"] == 0
    assert not found.ok


def test_check_shows_clips_to_people(mixed, capsys, tmp_path):
    page = tmp_path / "page.html"
    assert main(["data", "check", str(mixed), "--decode", "all", "--html", str(page)]) == 1
    shown = capsys.readouterr().out
    assert "clips: seconds: least, median, most" in shown
    assert "bad: truncated_video" in shown
    text = page.read_text()
    assert text.count("data:image/webp;base64,") > 7
    assert "expected a clip" in text
    assert "http" not in text


def test_check_warns_where_the_chosen_side_stands_still(write_lines, config_of, tmp_path):
    records = []
    for number in range(13):
        for side, step in (("calm", 1), ("lively", 5)):
            frames = np.zeros((7, 32, 32, 3), np.uint8)
            frames[:, :, :, 0] = number
            for place in range(7):
                frames[place, :, 2 + step * place : 6 + step * place] = 255
            (tmp_path / f"{side}{number}.mkv").write_bytes(clip("matroska", frames))
        pair = {"chosen": f"calm{number}.mkv", "rejected": f"lively{number}.mkv"}
        records.append({"prompt": f"p{number}", **pair})
    found = check(config_of(write_lines(records)), decode="all")
    assert any("The rejected clip is the livelier one" in line for line in found.advice)
    assert not any("longer one" in line for line in found.advice)


def test_check_tells_pairs_that_are_unlike(files, write_lines, config_of, tmp_path):
    files("a.mp4")
    (tmp_path / "b.mkv").write_bytes(clip("matroska", frames_of(5, (48, 48)), rate=5))
    found = check(config_of(write_lines([{"prompt": "x", "chosen": "a.mp4", "rejected": "b.mkv"}])))
    assert found.video["pairs_unlike_in"] == {"fps": 1, "frames": 1, "size": 1}
    assert found.video["frames_per_second"] == {"10": 1, "5": 1}
    assert any("Frames per second differ" in line for line in found.advice)


def test_check_says_that_ties_may_have_decided_segments(files, write_lines, config_of):
    files("a.mp4", "b.mp4")
    clips = {"prompt": "x", "video_0": "a.mp4", "video_1": "b.mp4", "segment_seconds": 0.35}
    path = write_lines([clips | {"segment_labels": labels} for labels in ([1, -1], [1, 0])])
    assert any(
        "methods that read their labels in time keep" in line for line in check(config_of(path)).advice
    )


def test_check_without_decoding_reads_bytes_alone(mixed, config_of):
    found = check(config_of(mixed), decode="none")
    assert found.read.bad == {"identical_candidates": 1, "missing_file": 1, "missing_video": 1}
    assert "seconds" not in found.video


# ------------------------------------------------------------------------------------------ audit and convert


def test_audit_takes_clips_and_folders_of_frames(files, folder, write_lines, config_of):
    files("a.mp4", "b.mp4")
    folder("clips/0")
    folder("clips/1", first=1)
    pairs = [("a.mp4", "b.mp4"), ("clips/0", "clips/1"), ("clips/1", "clips/0"), ("clips/0", "nowhere")]
    records = [
        {"prompt": "x", "chosen_video": chosen, "rejected_video": rejected} for chosen, rejected in pairs
    ]
    found = audit(config_of(write_lines(records)))
    assert (found.read.kept, found.read.bad) == (3, {"missing_file": 1})
    assert found.consistency.contradictory == 1
    assert found.length.unit == "encoded bytes"


def moved(step, first=0):
    """A clip whose bar moves by `step` pixels a frame."""
    frames = torch.zeros(9, 3, 32, 48, dtype=torch.uint8)
    for place in range(9):
        frames[place, :, :, (first + step * place) % 48] = 250
    return encode_clip(frames, 8.0, container="mkv")


def test_audit_says_whether_the_chosen_side_moves_less(tmp_path, write_lines, config_of, capsys):
    for number in range(12):
        (tmp_path / f"c{number}.mkv").write_bytes(moved(0, number))
        (tmp_path / f"r{number}.mkv").write_bytes(moved(3, number))
    records = [
        {"prompt": f"p{number}", "chosen_video": f"c{number}.mkv", "rejected_video": f"r{number}.mkv"}
        for number in range(12)
    ]
    found = audit(config_of(write_lines(records)))
    assert (found.motion.pairs, found.motion.chosen) == (12, 0.0)
    assert found.motion.rejected > 0.01
    assert any(note.startswith("Warning: the chosen side moves less") for note in found.notes)
    print_audit(found)
    shown = capsys.readouterr().out
    assert "motion, of 1 within 1/8 s" in shown
    assert "livelier clip chosen" in shown
    # What rows say of it is taken, for the side that it belongs to: these labels turn every pair round.
    told = [{**record, "motion_chosen": 0.4, "motion_rejected": 0.1, "preference": 0} for record in records]
    turned = audit(config_of(write_lines(told))).motion
    assert (turned.chosen, turned.rejected) == (pytest.approx(0.1), pytest.approx(0.4))


@pytest.mark.parametrize("to", ["jsonl", "folders"])
def test_converted_clips_are_the_same_files(files, folder, write_lines, config_of, tmp_path, to):
    files("a.mp4", "b.webm")
    folder("clips/0")
    folder("clips/1", first=1)
    segments = {"segment_labels": [1, -1], "segment_seconds": 0.35}
    records = [
        {"prompt": "x", "chosen_video": "a.mp4", "rejected_video": "b.webm", "fps": 10, **segments},
        {"prompt": "y", "chosen_video": "clips/1", "rejected_video": "clips/0"},
    ]
    before = list(open_rows(config_of(write_lines(records))))
    config = config_of(write_lines(records))
    assert convert(config, tmp_path / "out", to=to).kept == 2
    after = list(open_rows(config_of(tmp_path / "out", source={"media": "video"}), kind="pairs"))
    assert [row.prompt for row in after] == ["x", "y"]
    for old, new in zip(before, after, strict=True):
        for first, second in zip(old.candidates, new.candidates, strict=True):
            assert clip_digest(first.video) == clip_digest(second.video)
    if to == "jsonl":
        assert open_rows(config_of(tmp_path / "out")).media == {"video"}
        assert after[0].extras["fps"] == 10
        assert stretches_of(after[0]) == stretches_of(before[0])
    for to in ("pickapic", "audio-alpaca"):
        with pytest.raises(ConfigError, match=r"got \[video files\]"):
            convert(config, tmp_path / "no", to=to)


def test_rankings_and_thumbs_of_clips_survive_json_lines(files, write_lines, config_of, tmp_path):
    files("a.mp4", "b.mp4")
    for name, record in (
        ("lists", {"videos": ["a.mp4", "b.mp4"], "scores": [0.25, 0.5]}),
        ("unpaired", {"video": "a.mp4", "label": True}),
        ("chosen", {"video": "a.mp4"}),
    ):
        config = config_of(write_lines([{"prompt": "x", **record}]))
        convert(config, tmp_path / name, to="jsonl")
        table = open_rows(config_of(tmp_path / name))
        assert (table.kind, table.media) == (name, {"video"})
        assert first_frames(table[0]) == first_frames(open_rows(config)[0])


def test_folders_of_frames_are_recognised_without_a_word_about_video(folder, write_lines, config_of):
    folder("clips/0")
    folder("clips/1", first=1)
    path = write_lines([{"prompt": "x", "chosen": "clips/1", "rejected": "clips/0"}])
    (row,) = open_rows(config_of(path))
    assert first_frames(row) == [1, 0]


def test_the_picture_travels_when_clips_are_converted_or_derived(files, write_lines, config_of, tmp_path):
    files("a.mp4", "b.mp4", "c.mp4")
    pair = {"prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4", "image": "i.png", "fps": 10}
    config = config_of(write_lines([pair], images=("i.png",)))
    convert(config, tmp_path / "out", to="jsonl")
    (row,) = open_rows(config_of(tmp_path / "out"))
    assert Path(row.images[0]).read_bytes() == (tmp_path / "i.png").read_bytes()


def test_pairs_are_derived_of_ranked_clips(files, folder, write_lines, config_of, tmp_path):
    files("a.mp4", "b.mp4")
    folder("clips/c", first=2)
    record = {"prompt": "x", "videos": ["a.mp4", "b.mp4", "clips/c"], "scores": [1, 3, 2], "image": "i.png"}
    path = write_lines([record], images=("i.png",))
    derive(config_of(path), tmp_path / "out", DeriveSettings(how="best_vs_rest"))
    rows = list(open_rows(config_of(tmp_path / "out"), kind="pairs"))
    assert [first_frames(row) for row in rows] == [[1, 2], [1, 0]]
    assert all(Path(row.images[0]).suffix == ".png" for row in rows)
    assert check(config_of(tmp_path / "out"), decode="all").ok


@pytest.mark.parametrize("inside", [False, True])
def test_rated_clips_of_one_prompt_meet_only_where_they_go_on_from_one_picture(
    files, write_lines, write_parquet, config_of, tmp_path, inside
):
    files("a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4")
    rated = [("a", 1, "i"), ("b", 3, "j"), ("c", 2, "i"), ("d", 1, "j"), ("e", 9, "k")]
    for place, name in enumerate("ijk"):
        Image.new("RGB", (8, 8), (80 * place, 0, 0)).save(tmp_path / f"{name}.png")

    def picture(name):
        return {"bytes": (tmp_path / f"{name}.png").read_bytes(), "path": None} if inside else f"{name}.png"

    records = [
        {"prompt": "x", "video": f"{clip}.mp4", "score": score, "image": picture(name)}
        for clip, score, name in rated
    ]
    path = write_parquet(records) if inside else write_lines(records)
    table = open_rows(config_of(path, source={"lists": "pairs"}), kind="pairs")
    assert [names_of(row) for row in table] == [["c.mp4", "a.mp4"], ["b.mp4", "d.mp4"]]
    read = [
        row.images[0] if isinstance(row.images[0], bytes) else Path(row.images[0]).read_bytes()
        for row in table
    ]
    assert read == [(tmp_path / f"{name}.png").read_bytes() for name in "ij"]
    assert table.report.dropped["single_candidate"] == 1
