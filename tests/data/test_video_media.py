"""Clips of every kind: frames taken by their times, or refused with a reason; what is suspicious is noted."""

import builtins
import io
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.data.config import VideoLimits
from mmalign.data.video_media import (
    VIDEO_NOTES,
    common_start,
    decode_clip,
    decode_clips,
    describe_clip,
    video_ending,
)
from mmalign.data.video_timeline import even_timeline, fraction_of, sampled_places, timeline_of
from mmalign.errors import MissingExtraError, RowError
from mmalign.testing.clips import SIZE, animation, clip, frames_of, numbers, sound_alone

WHERE = "rows.jsonl:3 chosen"


def decoded(
    media, *, fps=None, num_frames=None, seconds=None, start=0.0, stored_fps=None, each=None, **limits
):
    return decode_clip(
        media,
        where=WHERE,
        limits=VideoLimits(**limits),
        fps=None if fps is None else float(fps),
        num_frames=num_frames,
        seconds=seconds,
        start=start,
        stored_fps=None if stored_fps is None else float(stored_fps),
        each=each,
    )


def refused(reason, media, match, **settings):
    with pytest.raises(RowError, match=match) as error:
        decoded(media, **settings)
    assert error.value.reason == reason
    assert str(error.value).startswith(WHERE)


# ------------------------------------------------------------------------------------------------ times


def test_frames_of_one_rate_are_the_same_in_every_container_whatever_it_rounds():
    milliseconds = [round(1000 * place / 24) for place in range(120)]
    ninety = [round(90_000 * place / 24) for place in range(120)]
    rounded = timeline_of(milliseconds, Fraction(1, 1000), last=42)
    exact = timeline_of(ninety, Fraction(1, 90_000), rates=(Fraction(24),))
    assert rounded.steady
    assert rounded.fps == exact.fps == 24
    assert rounded.seconds == 5
    for fps in (8.0, 16.0, 23.976, 30.0):
        assert sampled_places(rounded, fraction_of(fps)) == sampled_places(exact, fraction_of(fps))


def test_a_missing_frame_is_not_taken_for_rounding():
    coarse = [place for place in range(30) if place != 17]
    assert not timeline_of(coarse, Fraction(1, 10)).steady
    fine = [100 * place + (50 if place >= 17 else 0) for place in range(30)]
    assert not timeline_of(fine, Fraction(1, 1000)).steady


def test_the_nearest_frame_is_taken_and_of_two_as_near_the_earlier():
    line = timeline_of([0, 100, 150, 400], Fraction(1, 1000), last=200)
    assert (line.steady, line.seconds) == (False, Fraction(6, 10))
    assert sampled_places(line, Fraction(8)) == [0, 1, 2, 3, 3]  # 0, .125 (a tie), .25, .375, .5
    assert even_timeline(3, Fraction(24)).nearest(Fraction(1, 16)) == 1


def test_as_many_moments_as_fit_before_the_end_are_taken():
    line = even_timeline(49, Fraction(8))
    assert len(sampled_places(line, Fraction(8))) == 49
    assert len(sampled_places(line, Fraction(16))) == 98
    assert sampled_places(line, Fraction(8), start=Fraction(6)) == [48]
    assert sampled_places(line, Fraction(4), seconds=Fraction(1)) == [0, 2, 4, 6]
    assert sampled_places(line, None, start=Fraction(1), count=3) == [8, 9, 10]


def test_ntsc_rates_come_back_from_floats():
    assert fraction_of(24000 / 1001) == Fraction(24000, 1001)
    assert fraction_of(23.976) == Fraction(23976, 1000)


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize("container", ["mov", "matroska", "mp4", "webm", "avi", "mpegts"])
def test_every_second_frame_is_taken_at_half_the_rate(container):
    data = clip(container)
    found = decoded(data, fps=5, num_frames=5)
    assert numbers(found.frames) == [0, 2, 4, 6, 8]
    assert found.frames.dtype == torch.uint8
    assert found.frames.shape == (5, 3, *SIZE)
    assert (found.fps, found.seconds, found.size, found.notes) == (5.0, 1.0, SIZE, ())
    assert found.moments == (0.0, 0.2, 0.4, 0.6, 0.8)
    shown = describe_clip(data, where=WHERE, limits=VideoLimits())
    assert (shown.seconds, shown.num_frames, shown.fps) == (1.1, 11, 10.0)
    assert (shown.height, shown.width, shown.notes) == (*SIZE, ())


@pytest.mark.parametrize("container", ["mov", "matroska"])
def test_lossless_files_give_the_pixels_that_were_written(container):
    frames = np.random.default_rng(3).integers(0, 256, (5, *SIZE, 3), dtype=np.uint8)
    found = decoded(clip(container, frames))
    assert torch.equal(found.frames, torch.from_numpy(frames).permute(0, 3, 1, 2))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_read_without_the_extra(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    found = decoded(animation(kind), fps=5)
    assert numbers(found.frames) == [0, 2, 4, 6]
    assert found.notes == ()
    held = decoded(animation(kind, duration=[100, 100, 300, 100, 100, 100, 100]))
    assert numbers(held.frames) == [0, 1, 2, 2, 2, 3, 4, 5, 6]
    assert (held.fps, held.notes) == (10.0, ())
    uneven = decoded(animation(kind, duration=[70, 110, 310, 130, 100, 100, 100]), fps=10)
    assert numbers(uneven.frames) == [0, 1, 2, 2, 3, 3, 4, 5, 6, 6]
    assert uneven.notes == ("variable_fps", "repeated_frames")


def test_an_animation_without_times_is_shown_as_browsers_show_it():
    found = decoded(animation("GIF", duration=0))
    assert (found.fps, found.notes) == (10.0, ("no_timestamps",))


def test_folders_and_lists_of_frames_are_clips_in_natural_order(tmp_path):
    for place, values in enumerate(frames_of(11)):
        Image.fromarray(values).save(tmp_path / f"frame_{place}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    found = decoded(str(tmp_path), stored_fps=10, fps=5)
    assert numbers(found.frames) == [0, 2, 4, 6, 8, 10]
    data = tuple((tmp_path / f"frame_{place}.png").read_bytes() for place in (3, 5, 7))
    listed = decoded(data, fps=16)
    assert (numbers(listed.frames), listed.fps) == ([3, 5, 7], 16.0)
    assert decoded(str(tmp_path), fps=5, frames_fps=10).moments == found.moments
    assert decoded(data).notes == ("no_timestamps",)


def test_a_file_and_its_bytes_are_the_same_clip(tmp_path):
    path = tmp_path / "a.mov"
    path.write_bytes(clip())
    assert torch.equal(decoded(str(path)).frames, decoded(clip()).frames)


def test_raw_streams_without_times_count_their_frames():
    found = decoded(clip("h264"))
    assert numbers(found.frames) == list(range(11))
    assert found.notes == ("no_timestamps",)


# ------------------------------------------------------------------------------------------------ dealt with


@pytest.mark.parametrize(
    ("rotate", "mirror", "corner"),
    [(0, False, 0), (90, False, 2), (180, False, 3), (-90, False, 1), (0, True, 1), (90, True, 3)],
)
def test_clips_of_turned_phones_stand_upright(rotate, mirror, corner):
    found = decoded(clip(rotate=rotate, mirror=mirror), num_frames=1)
    assert found.size == (SIZE if rotate in (0, 180) else SIZE[::-1])
    frame = found.frames[0, 0]
    assert [int(frame[row, column]) for row in (0, -1) for column in (0, -1)].index(255) == corner
    assert found.notes == (("rotated",) if rotate or mirror else ())


def test_a_varying_rate_is_noted_and_the_nearest_frames_are_taken():
    stamps = [0, 100, 150, 400, 450, 500, 900]
    found = decoded(clip("matroska", 7, stamps=stamps), fps=5)
    assert numbers(found.frames) == [0, 2, 3, 5, 6]
    assert found.moments == (0.0, 0.15, 0.4, 0.5, 0.9)
    assert found.notes == ("variable_fps",)


def test_more_frames_a_second_than_there_are_repeat_some():
    found = decoded(clip(), fps=20, num_frames=6)
    assert numbers(found.frames) == [0, 0, 1, 1, 2, 2]
    assert found.notes == ("repeated_frames",)


def test_transparent_parts_become_white():
    frames = np.zeros((3, *SIZE, 4), np.uint8)
    frames[..., 3] = 255
    frames[:, :, :24, 3] = 0
    frames[:, :, 40:, 3] = 128
    found = decoded(clip("mov", frames, pixels="rgba"))
    assert [int(found.frames[0, 0, 5, column]) for column in (3, 30, 45)] == [255, 0, 127]
    assert found.notes == ("transparent",)
    assert decoded(animation("WEBP", mode="RGBA")).notes == ()


def test_pixels_that_are_not_square_are_stretched():
    found = decoded(clip("mp4", sample_aspect_ratio=Fraction(3, 2)))
    assert (found.size, found.notes) == ((32, 72), ("not_square",))


def test_odd_sizes_are_read_whole_and_noted():
    found = decoded(clip("matroska", frames_of(3, (33, 47))))
    assert (found.size, found.notes) == ((33, 47), ("odd_size",))


def test_the_wrong_ending_is_noted(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(clip("webm"))
    assert decoded(str(path)).notes == ("wrong_ending",)
    path.write_bytes(animation("GIF"))
    assert decoded(str(path)).notes == ("wrong_ending",)


def test_sound_beside_the_pictures_does_no_harm():
    assert numbers(decoded(clip("mp4", sound=True)).frames) == list(range(11))


def test_every_frame_may_be_made_smaller_before_it_is_kept():
    found = decoded(clip(), each=lambda frame: frame[:, ::2, ::4], max_kept_pixels=11 * 16 * 12)
    assert found.size == (16, 12)
    refused(
        "too_many_pixels",
        clip(),
        "11 frames of 48 x 32 pixels.*max_kept_pixels",
        max_kept_pixels=11 * 16 * 12,
    )


# ------------------------------------------------------------------------------------------------ parts


def test_every_candidate_of_a_row_gets_the_same_part():
    pair = (clip("mov", 11), clip("matroska", 7))
    first, second = decode_clips(
        pair, where=("a", "b"), limits=VideoLimits(), fps=10.0, num_frames=3, place=0.5
    )
    assert numbers(first.frames) == numbers(second.frames) == [2, 3, 4]
    first, second = decode_clips(pair, where=("a", "b"), limits=VideoLimits(), fps=10.0, num_frames=3)
    assert numbers(first.frames) == numbers(second.frames) == [0, 1, 2]
    assert common_start([5.0, 3.0], needed=4.0, place=1.0) == 0.0


def test_a_part_of_some_seconds_is_taken():
    assert numbers(decoded(clip(), start=0.3, seconds=0.4).frames) == [3, 4, 5, 6]
    assert numbers(decoded(clip(), fps=5, start=0.25, num_frames=3).frames) == [2, 4, 6]


def test_clips_too_short_for_the_frames_asked_of_them_are_refused():
    refused(
        "too_short",
        clip(),
        r"1\.1 seconds: 9 frames from 0 s, 8 a second.*expected 17",
        fps=8,
        num_frames=17,
    )
    refused("too_short", clip(), "0 frames from 3 s", start=3.0)


# ------------------------------------------------------------------------------------------------ damage


def test_missing_and_empty_files_have_their_reasons(tmp_path):
    refused("missing_file", str(tmp_path / "a.mp4"), "no such file")
    refused("empty_file", b"", "0 bytes.*expected an encoded video")
    refused("too_many_bytes", clip(), r"Raise data\.video\.max_bytes", max_bytes=7)
    (tmp_path / "empty").mkdir()
    refused("no_frames", str(tmp_path / "empty"), "no frames")
    refused("no_frames", (), "no frames")


@pytest.mark.parametrize(
    "data",
    [
        b"a text that is no clip, long enough for every demuxer to guess at it\n" * 90,
        bytes(5_000),
        np.random.default_rng(3).bytes(20_000),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ],
    ids=["text", "zeros", "noise", "playlist", "concat"],
)
def test_files_that_are_no_clips_are_refused(data):
    refused("no_video_stream", data, "expected a clip")


def test_sound_alone_and_covers_are_no_clips():
    refused("no_video_stream", sound_alone(), "no video stream, sound alone")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_still_picture_is_no_clip(kind):
    file = io.BytesIO()
    Image.fromarray(frames_of(1)[0]).save(file, kind)
    with pytest.raises(RowError) as error:
        decoded(file.getvalue())
    assert error.value.reason in ("too_short", "no_video_stream")


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("container", "settings"),
    [
        ("mp4", {}),
        ("mp4", {"index_first": True}),
        ("mov", {}),
        ("webm", {}),
        ("matroska", {}),
        ("avi", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("PNG", {}),
    ],
    ids=["mp4", "mp4 with its index first", "mov", "webm", "mkv", "avi", "gif", "webp", "apng"],
)
def test_files_that_were_cut_off_are_refused(container, settings, part):
    data = animation(container) if container.isupper() else clip(container, 30, **settings)
    refused("truncated_video", data[: int(len(data) * part)], "cut off: it lacks")


def test_a_lost_middle_and_a_damaged_head_are_refused():
    data = clip("mov", np.random.default_rng(3).integers(0, 256, (11, *SIZE, 3), dtype=np.uint8))
    hole = data[:9_000] + bytes(3_000) + data[12_000:]
    refused("damaged_video", hole, "damaged")
    place = data.index(b"stsd")
    refused("unsupported_coding", data[:place] + bytes(200) + data[place + 200 :], "no decoder")


def test_frames_of_several_sizes_are_refused():
    frames = tuple(_png(frames_of(1, size)[0]) for size in ((32, 48), (48, 32)))
    refused("mixed_sizes", frames, r"frame 1: got \[\(48, 32\) pixels\], expected \(32, 48\)")
    joined = b"".join(clip("mpegts", frames_of(5, size)) for size in ((32, 48), (48, 64)))
    refused("mixed_sizes", joined, "expected one size")


def _png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def test_a_damaged_frame_of_a_folder_is_named():
    good = _png(np.random.default_rng(3).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    refused("truncated_video", (good, good[:900], good), "frame 1")
    refused("no_video_stream", (good, b"words"), "frame 1")


def test_sizes_and_lengths_beyond_the_limits_are_refused():
    refused("too_many_pixels", clip(), "48 x 32 pixels.*at most 1000.*max_pixels", max_pixels=1000)
    refused("too_many_pixels", animation("GIF"), "48 x 32 pixels", max_pixels=1000)
    refused("too_small", clip(), "at least 33 on the shorter side", min_side=33)
    refused("extreme_aspect", clip(), r"at most 1\.2 times", max_aspect_ratio=1.2)
    refused("too_long", clip(), r"1\.1 seconds.*at most 1.*max_seconds", max_seconds=1)
    refused("too_short", clip(), r"1\.1 seconds.*at least 2.*min_seconds", min_seconds=2)
    refused("too_short", clip("mov", 1), "1 frame.*at least 2")
    refused("too_many_frames", clip(), "11 frames.*at most 10.*max_frames", max_frames=10)
    refused("too_many_frames", (b"x",) * 11, "11 frames", max_frames=10)
    refused("bad_frame_rate", clip(), "10 frames per second.*at most 9", max_fps=9)


def test_a_clip_that_is_too_long_is_refused_before_it_is_decoded(monkeypatch):
    from mmalign.data.video_codecs import FFmpegClip

    monkeypatch.setattr(FFmpegClip, "pictures", None)
    refused("too_long", clip("mp4", 11, rate=1), "11 seconds", max_seconds=10)


def test_random_damage_never_escapes_as_another_error():
    draw = np.random.default_rng(7)
    files = [clip(kind) for kind in ("mp4", "mov", "webm", "matroska", "avi", "mpegts")]
    files += [animation(kind) for kind in ("GIF", "WEBP", "PNG")]
    reasons = set()
    for data in files:
        for _ in range(40):
            broken = bytearray(data)
            for place in draw.integers(0, len(broken), 5):
                broken[place] = draw.integers(0, 256)
            if draw.random() < 0.2:
                broken = broken[: draw.integers(1, len(broken))]
            try:
                found = decoded(bytes(broken), fps=5)
                assert found.frames.dtype == torch.uint8
                assert set(found.notes) <= set(VIDEO_NOTES)
            except RowError as error:
                reasons.add(error.reason)
    assert {"damaged_video", "truncated_video"} <= reasons
    assert "invalid_row" not in reasons


# ------------------------------------------------------------------------------------------------ the rest


def test_every_note_is_made_somewhere():
    folder = Path(sys.modules["mmalign.data.video_media"].__file__).parent
    sources = "".join(path.read_text() for path in folder.glob("video_*.py"))
    assert all(sources.count(f'"{name}"') >= 2 for name in VIDEO_NOTES)


def test_without_the_extra_the_message_names_it(monkeypatch):
    data = clip("mp4")
    plain = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return plain(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmalign\[video\]'"):
        decoded(data)


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (clip("mp4"), ".mp4"),
        (clip("webm"), ".webm"),
        (clip("matroska"), ".mkv"),
        (clip("avi"), ".avi"),
        (clip("mpegts"), ".ts"),
        (animation("GIF"), ".gif"),
        (animation("WEBP"), ".webp"),
        (b"something", ".video"),
        (None, ".video"),
    ],
    ids=["mp4", "webm", "mkv", "avi", "ts", "gif", "webp", "words", "nothing"],
)
def test_endings_fit_the_bytes(data, ending):
    assert video_ending(data) == ending
