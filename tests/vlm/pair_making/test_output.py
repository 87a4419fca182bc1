"""Rows that were made lie on disk as training reads them."""

import json
from dataclasses import replace
from pathlib import Path

from mmalign.data.config import DataConfig
from mmalign.data.pair_making.output import Provenance
from mmalign.data.readers import open_rows
from mmalign.vlm.pair_making.output import MadePair, write_pairs

MADE = Provenance("score", "tiny@1", {"spread": 0.5}, 3)


def read(path: Path):
    return open_rows(DataConfig(source=str(path)), kind="pairs")


def test_a_pair_with_its_own_rejected_image_is_read_back(row, tmp_path: Path) -> None:
    other = row("b", colour="blue").images
    pairs = [
        MadePair(row("a"), "yes", "no", "0-1", {"score_chosen": 2.0, "score_rejected": 1.0}),
        MadePair(row("a"), "yes", "no", "m", rejected_images=other),
    ]
    path = write_pairs(tmp_path, pairs, MADE, {"rows": 2})
    table = read(path)
    assert [one.id for one in table] == ["a-0-1", "a-m"]
    first, second = table
    assert (first.candidates[0].text, first.candidates[1].text) == ("yes", "no")
    assert (first.candidates[0].reward, first.candidates[1].reward) == (2.0, 1.0)
    assert Path(first.images[0]).read_bytes() == row("a").images[0]
    assert Path(second.candidates[1].images[0]).read_bytes() == other[0]
    # One content is one file.
    assert len(list((tmp_path / "images").iterdir())) == 2
    record = json.loads(path.read_text().splitlines()[0])
    assert {name: record[name] for name in ("made_by", "made_from", "made_model", "made_seed")} == {
        "made_by": "score",
        "made_from": "a",
        "made_model": "tiny@1",
        "made_seed": 3,
    }


def test_a_video_of_frames_is_read_back_in_order(row, tmp_path: Path) -> None:
    frames = tuple(row(colour, colour=colour).images[0] for colour in ("red", "blue", "green"))
    shown = replace(row("v"), images=(), videos=(frames,))
    table = read(write_pairs(tmp_path, [MadePair(shown, "yes", "no")], MADE, {}))
    assert tuple(Path(frame).read_bytes() for frame in table[0].videos[0]) == frames
    assert [item.type for item in table[0].messages[0].content] == ["video", "text"]
