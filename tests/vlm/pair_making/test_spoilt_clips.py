"""Clips that were chosen close to far are written as frames, with their weights, and train as pairs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmalign.batch import Candidate, PreferenceRow
from mmalign.cli.main import main
from mmalign.data.config import DataConfig
from mmalign.data.pair_making.output import Provenance
from mmalign.data.readers import open_rows
from mmalign.testing.vlm_dialogues import load_vlm, photo
from mmalign.vlm.pair_making.output import write_pairs
from mmalign.vlm.pair_making.spoilt_clips import spoilt_pairs


def clip_row(number: int, *, videos: int = 1) -> PreferenceRow:
    clips = tuple(tuple(photo(50 * number + frame) for frame in range(5)) for _ in range(videos))
    answer = Candidate(text=f"Circle {number} moves left.")
    return PreferenceRow(
        prompt="What happens?", candidates=(answer,), kind="chosen", id=f"r{number}", videos=clips
    )


@pytest.fixture(scope="module")
def model(tiny_vlm_folder):
    folder = tiny_vlm_folder("llava_onevision")
    return load_vlm("llava_onevision", folder, tokens={"num_frames": 3}, dtype=torch.float32)


def test_pairs_hold_one_answer_beside_two_clips_and_are_read_with_their_weights(
    model, stages, tmp_path: Path
) -> None:
    rows = [clip_row(1), replace(clip_row(2), videos=()), clip_row(3)]
    kinds = ("reverse", "crop")
    pairs, counts = spoilt_pairs(rows, model, stages, kinds=kinds, versions=2, similar=-1.0)
    assert counts == {"no_image": 1, "rows": 2}
    for pair in pairs:
        assert pair.chosen == pair.rejected
        columns = pair.columns
        best = columns["version_divergences"].index(max(columns["version_divergences"]))
        assert columns["corruption"] == kinds[best]
        assert columns["weight"] == columns["divergence"] == columns["version_divergences"][best]
        assert columns["cosine"] == columns["version_cosines"][best]
    again, _ = spoilt_pairs(rows, model, stages, kinds=kinds, versions=2, similar=-1.0)
    assert again == pairs
    path = write_pairs(tmp_path / "out", pairs, Provenance("clips", "tiny", {}, 0), counts)
    table = open_rows(DataConfig(source=str(path)), kind="pairs")
    assert len(table) == 2
    read = table[0]
    assert read.weight == pytest.approx(pairs[0].columns["weight"])
    true, spoilt = read.videos[0], read.candidates[1].videos[0]
    assert len(true) == len(spoilt) == 3
    assert [Path(frame).read_bytes() for frame in true] != [Path(frame).read_bytes() for frame in spoilt]
    # What was measured is what training will see: the frames are chosen and spoilt already.
    assert [Path(frame).read_bytes() for frame in spoilt] == list(pairs[0].rejected_videos[0])


def test_rows_without_a_close_version_are_left_out_and_counted(model, stages) -> None:
    pairs, counts = spoilt_pairs([clip_row(1)], model, stages, kinds=("crop",), versions=2, similar=1.0)
    assert pairs == []
    assert counts == {"no_close_version": 1, "rows": 0}


def test_the_command_makes_them(tiny_vlm_folder, tmp_path: Path) -> None:
    for frame in range(4):
        (tmp_path / "clip").mkdir(exist_ok=True)
        (tmp_path / "clip" / f"{frame}.png").write_bytes(photo(frame))
    record = {"id": "a", "prompt": "What happens?", "completion": "A circle moves.", "videos": ["clip"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record) + "\n")
    plan = {
        "recipe": "clips",
        "model": {"family": "llava_onevision", "source": str(tiny_vlm_folder("llava_onevision"))},
        "data": {"source": {"path": str(tmp_path / "rows.jsonl"), "media": "dialogue"}},
        "tokens": {"num_frames": 4},
        "dtype": "float32",
        "clips": {"versions": 2, "similar": -1.0},
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    assert main(["pairs", "make", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "made")]) == 0
    (made,) = [json.loads(line) for line in (tmp_path / "made" / "rows.jsonl").read_text().splitlines()]
    assert made["made_by"] == "clips"
    assert made["made_from"] == "a"
    assert len(made["rejected_videos"][0]) == len(made["videos"][0]) == 4
    assert made["corruption"] in ("reverse", "shuffle")
