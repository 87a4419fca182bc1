"""Pairs of real clips are fair pairs: the same length, rate and size, and clean by `mmalign data check`."""

import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mmalign.cli.main import main
from mmalign.data import open_rows
from mmalign.data.config import DataConfig, VideoLimits
from mmalign.data.convert import write_jsonl
from mmalign.data.video_damage import DAMAGES, damaged
from mmalign.data.video_media import decode_clip
from mmalign.errors import ConfigError, UnknownNameError
from mmalign.testing.clips import animation, clip

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def moving(count, *, seed=0, size=(48, 64)):
    """A bright square that moves over a picture of its own."""
    draw = np.random.default_rng(seed)
    frames = np.tile(draw.integers(0, 128, (1, *size, 3), dtype=np.uint8), (count, 1, 1, 1))
    for place in range(count):
        left = (3 * place + 5 * seed) % (size[1] - 12)
        frames[place, 12:36, left : left + 12] = 255
    return frames


@pytest.fixture
def folder(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "Red_Square2.mp4").write_bytes(clip("mp4", moving(50), rate=16))
    (clips / "blueSquare.webm").write_bytes(clip("webm", moving(11, seed=3), rate=8))
    (clips / "spinner.gif").write_bytes(animation("GIF", 11, duration=120))
    (clips / "short.mkv").write_bytes(clip("matroska", moving(3), rate=8))
    (clips / "still.mov").write_bytes(clip("mov", moving(1).repeat(11, 0), rate=8))
    (clips / "broken.mp4").write_bytes(b"no clip")
    return clips


def pairs_of(folder, seed=0):
    from make_clip_pairs import CLIP_ENDINGS, excerpts, make_pairs
    from recordings import Source

    refused: Counter[str] = Counter()
    source = partial(Source.parse, endings=CLIP_ENDINGS)(f"things={folder}")
    found = excerpts([source], refused, fps=8.0, num_frames=9, side=32, most=2)
    return list(make_pairs(found, seed=seed)), refused


def decoded(media):
    return decode_clip(media, where="x", limits=VideoLimits())


def test_excerpts_are_named_after_their_files_and_what_cannot_be_used_is_counted(folder):
    rows, refused = pairs_of(folder)
    assert [(row.prompt, row.extras["strategy"]) for row in rows] == [
        ("red square, things", "reversed"),
        ("red square, things", "shuffled"),
        ("blue square, things", "noised"),
        ("spinner, things", "reversed"),
    ]
    assert len({row.id for row in rows}) == 4
    assert refused == {"still": 1, "too_short": 1, "no_video_stream": 1}


def test_both_sides_have_the_same_length_rate_and_size(folder):
    for row in pairs_of(folder)[0]:
        good, bad = (decoded(one.video) for one in row.candidates)
        assert good.frames.shape == bad.frames.shape
        assert (len(good.frames), min(good.size), good.fps, bad.fps) == (9, 32, 8.0, 8.0)
    again = pairs_of(folder)[0]
    assert [row.candidates for row in pairs_of(folder)[0]] == [row.candidates for row in again]
    other = pairs_of(folder, seed=1)[0]
    assert other[1].candidates[1] != again[1].candidates[1]


def test_pairs_of_clips_pass_the_check(folder, tmp_path, capsys):
    (tmp_path / "pairs").mkdir()
    write_jsonl(tmp_path / "pairs", pairs_of(folder)[0])
    assert main(["data", "check", str(tmp_path / "pairs"), "--decode", "all"]) == 0
    shown = capsys.readouterr().out
    assert "Ready: 4 pairs" in shown
    assert "4 rows looked at" not in shown or "0 bad" in shown
    table = open_rows(DataConfig(source={"path": str(tmp_path / "pairs")}))
    assert table.media == {"video"}
    assert table[0].extras["real"] == "chosen"


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_does_what_its_name_says(kind):
    frames = torch.from_numpy(moving(7)).permute(0, 3, 1, 2)
    bad = damaged(frames, kind, torch.Generator().manual_seed(3))
    assert bad.shape == frames.shape
    assert bad.dtype == torch.uint8
    assert not torch.equal(bad, frames)
    if kind == "reversed":
        assert torch.equal(bad.flip(0), frames)
    elif kind == "shuffled":
        places = [int((bad == frame).flatten(1).all(1).nonzero()[0]) for frame in frames]
        assert sorted(places) == list(range(7))
        assert places not in (list(range(7)), list(range(6, -1, -1)))
    else:
        error = (bad.float() - frames.float()).std() / 255
        assert 0.02 < error < 0.25


def test_damage_that_is_unknown_or_impossible_is_refused():
    frames = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(UnknownNameError, match="damage"):
        damaged(frames, "louder", torch.Generator())
    with pytest.raises(ConfigError, match="at least 3"):
        damaged(frames, "shuffled", torch.Generator())
