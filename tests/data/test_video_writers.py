"""Clips that were written are read back: the same frames at the same rate, equal bytes for equal frames."""

import sys

import numpy as np
import pytest
import torch

from mmalign.data.config import VideoLimits
from mmalign.data.video_facts import look_at_clip
from mmalign.data.video_media import decode_clip, describe_clip
from mmalign.data.video_preview import moving_picture
from mmalign.data.video_writers import as_frames, clip_strip, encode_clip, write_clip
from mmalign.errors import MissingExtraError, ShapeError
from mmalign.testing.clips import clip, frames_of, numbers

LIMITS = VideoLimits()


def tensor_of(frames):
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def decoded(data):
    return decode_clip(data, where="x", limits=LIMITS)


@pytest.mark.parametrize("container", ["mp4", "webp", "gif", "mkv"])
def test_written_clips_come_back_with_their_frames_and_rate(container):
    frames = tensor_of(frames_of(7))
    data = encode_clip(frames, 8.0, container=container)
    assert data == encode_clip(frames, 8.0, container=container)
    found = decoded(data)
    assert numbers(found.frames) == list(range(7))
    assert found.size == (32, 48)
    assert found.fps == pytest.approx(8.0, rel=0.01 if container == "gif" else 1e-9)


def test_mkv_is_lossless_and_mp4_close():
    frames = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (5, 3, 31, 47), dtype=np.uint8))
    assert torch.equal(decoded(encode_clip(frames, 24.0, container="mkv")).frames, frames)
    smooth = torch.linspace(0, 1, 48).expand(5, 3, 32, 48)
    found = decoded(encode_clip(smooth, 24.0, container="mp4")).frames.float() / 255
    assert (found - smooth).abs().mean() < 0.01


def test_odd_sides_become_even_in_mp4_alone():
    frames = torch.linspace(0, 1, 3).reshape(3, 1, 1, 1).expand(3, 3, 31, 47)
    assert decoded(encode_clip(frames, 8.0)).size == (32, 48)
    assert decoded(encode_clip(frames, 8.0, container="webp")).size == (31, 47)


@pytest.mark.parametrize("container", ["mp4", "webp", "gif", "mkv"])
def test_frames_that_are_held_come_back_as_often_as_they_were_written(container):
    frames = tensor_of(frames_of(5))[[0, 0, 1, 2, 2, 2, 3, 4]]
    found = decoded(encode_clip(frames, 10.0, container=container))
    assert numbers(found.frames) == [0, 0, 1, 2, 2, 2, 3, 4]
    assert found.fps == 10.0


def test_ntsc_rates_survive_mp4():
    found = describe_clip(encode_clip(tensor_of(frames_of(7)), 24000 / 1001), where="x", limits=LIMITS)
    assert found.fps == 24000 / 1001


def test_numbers_are_scaled_cut_and_rounded_and_nan_is_refused():
    pixels = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5]).reshape(5, 1, 1, 1).expand(5, 3, 2, 2)
    assert as_frames(pixels)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ShapeError, match=r"12 pixels that are NaN or infinite"):
        as_frames(pixels.log().nan_to_num(nan=float("nan"), posinf=0.0, neginf=0.0)[:1])
    with pytest.raises(ShapeError, match="0 frames"):
        encode_clip(torch.zeros(0, 3, 2, 2), 8.0)
    with pytest.raises(ShapeError, match="rate above 0"):
        encode_clip(torch.zeros(1, 3, 2, 2), 0.0)


def test_files_are_written_in_the_format_of_their_ending(tmp_path):
    frames = tensor_of(frames_of(5))
    for ending in (".mp4", ".webp", ".gif", ".mkv"):
        path = write_clip(tmp_path / "new" / f"a{ending}", frames, 8.0)
        assert path.suffix == ending
        assert numbers(decoded(str(path)).frames) == list(range(5))
    with pytest.raises(ShapeError, match=r"expected \.mp4, \.webp, \.gif or \.mkv"):
        write_clip(tmp_path / "a.mov", frames, 8.0)


def test_without_the_extra_an_mp4_becomes_a_webp_beside_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    frames = tensor_of(frames_of(5))
    path = write_clip(tmp_path / "a.mp4", frames, 8.0)
    assert path == tmp_path / "a.webp"
    assert numbers(decoded(str(path)).frames) == list(range(5))
    assert not (tmp_path / "a.mp4").exists()
    with pytest.raises(MissingExtraError, match=r"mmalign\[video\]"):
        write_clip(tmp_path / "a.mkv", frames, 8.0)


def test_a_strip_shows_frames_from_the_first_to_the_last():
    frames = tensor_of(frames_of(11))
    strip = clip_strip(frames, count=3, labels=("0 s", "1 s", "2 s"))
    assert strip.size == (3 * 48 + 2 * 4, 32)
    pixels = np.asarray(strip)
    assert [int(pixels[28, left + 40, 0]) for left in (0, 52, 104)] == [0, 100, 200]
    assert pixels[16, 49].tolist() == [255, 255, 255]
    assert clip_strip(frames, count=20, height=16).size == (11 * 24 + 10 * 4, 16)
    assert clip_strip(frames[:1]).size == (48, 32)
    with pytest.raises(ShapeError, match="no frames"):
        clip_strip(frames[:0])


def test_motion_is_how_much_pixels_change_within_an_eighth_of_a_second():
    def motion(frames, rate):
        data = clip("matroska", frames, rate=rate)
        return look_at_clip(data, where="x", limits=LIMITS).motion

    frames = np.zeros((17, 32, 32, 3), np.uint8)
    for place in range(17):
        frames[place, :, place : place + 8] = 255  # a bar moves a pixel per frame: two of 32 columns change
    assert motion(frames, 8) == pytest.approx(2 / 32)
    assert motion(frames, 16) == pytest.approx(4 / 32)
    assert motion(frames[::2], 8) == pytest.approx(4 / 32)
    assert motion(frames[:1].repeat(5, 0), 8) == 0.0
    short = look_at_clip(clip("matroska", frames[:2], rate=16), where="x", limits=LIMITS)
    assert short.motion == pytest.approx(2 / 32)


def test_a_page_shows_a_clip_or_what_is_wrong_with_it():
    shown = moving_picture(clip("mp4"), "x", LIMITS)
    assert "data:image/webp;base64," in shown
    assert "1.10 s · 11 frames at 10 fps · 48 x 32" in shown
    assert "expected a clip" in moving_picture(b"<no clip>", "x", LIMITS)


def test_equal_frames_give_equal_bytes_whatever_memory_held_before():
    # x264 reads memory it never wrote unless it is told not to: seen as other bytes on every third run.
    frames = torch.zeros(9, 3, 32, 42)
    for place in range(9):
        frames[place, :, 8:24, 3 * place : 3 * place + 8] = 1
    frames += 0.3 * torch.rand(1, 3, 32, 42, generator=torch.Generator().manual_seed(3))
    found = set()
    for filled in range(0, 256, 16):
        held = [np.full(2**size, filled, np.uint8) for size in range(6, 20) for _ in range(20)]
        del held
        found.add(encode_clip(frames, 8.0))
    assert len(found) == 1
