"""Clips of rows: sizes, parts of longer clips, frame folders, pictures they go on from, names in caches."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.config import VideoLimits
from mmalign.errors import RowError
from mmalign.video.clips import Clip, ClipLoader, covering


def loader(**settings: object) -> ClipLoader:
    defaults = {"num_frames": 5, "fps": 5.0, "size": (32, 48), "limits": VideoLimits(min_side=2)}
    return ClipLoader(**{**defaults, **settings})


def counting(num_frames: int, *, size: tuple[int, int] = (48, 32), fps: float = 5.0, base: int = 0) -> bytes:
    """A clip whose frame k is grey of 10 k + base."""
    frames = [Image.new("RGB", size, (10 * k + base,) * 3) for k in range(num_frames)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="PNG", save_all=True, append_images=frames[1:], duration=round(1000 / fps))
    return buffer.getvalue()


def row(*clips: bytes | str, **settings: object) -> PreferenceRow:
    candidates = tuple(Candidate(video=clip) for clip in clips)
    return PreferenceRow(prompt="a", candidates=candidates, source="rows:3", **settings)


def shown(loaded: torch.Tensor) -> list[list[int]]:
    """The grey of every frame of every candidate."""
    return loaded[:, :, 0, 16, 24].tolist()


def test_frames_are_covered_and_cut_in_the_middle() -> None:
    wide = torch.zeros(1, 3, 20, 100, dtype=torch.uint8)
    wide[..., 35:65] = 200
    found = covering(wide, (40, 60))
    assert found.shape == (1, 3, 40, 60)
    assert found.dtype == torch.uint8
    assert bool((found[..., 4:-4] == 200).all())
    tall = covering(torch.full((11, 3, 90, 30), 7, dtype=torch.uint8), (20, 30))
    assert tall.shape == (11, 3, 20, 30)
    assert bool((tall == 7).all())
    same = torch.randint(0, 256, (2, 3, 7, 5), dtype=torch.uint8)
    assert covering(same, (7, 5)) is same


def test_clips_begin_at_the_beginning_or_in_the_middle() -> None:
    long = counting(13)
    assert shown(loader().load(row(long, long)).inputs) == [[0, 10, 20, 30, 40]] * 2
    assert shown(loader(start="middle").load(row(long, long)).inputs) == [[40, 50, 60, 70, 80]] * 2


def test_a_random_part_is_decided_by_the_key_and_the_same_for_all_candidates() -> None:
    random, pair = loader(start="random"), row(counting(23), counting(19, base=3))
    found = {}
    for key in (0x100000, 0x500000, 0x500000 + 2**40, 0xF00000):
        chosen, rejected = shown(random.load(pair, key=key).inputs)
        assert [value - 3 for value in rejected] == chosen
        assert chosen == list(range(chosen[0], chosen[0] + 50, 10))
        found[key] = chosen[0]
    assert found[0x500000] == found[0x500000 + 2**40]
    assert found[0x100000] < found[0x500000] < found[0xF00000]


def test_frames_are_taken_at_the_models_rate() -> None:
    assert shown(loader(fps=2.5).load(row(counting(13))).inputs) == [[0, 20, 40, 60, 80]]


def test_folders_of_frames_are_clips(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (96, 64), (5 * number,) * 3).save(tmp_path / f"frame_{number}.png")
    folder = row(str(tmp_path), extras={"fps": 10})
    found = loader().load(folder)
    assert shown(found.inputs) == [[0, 10, 20, 30, 40]]
    assert found.geometry.tolist() == [[64, 96, 0, 0, 32, 48]]
    before = loader().keys(loader().encoded(folder))
    Image.new("RGB", (96, 64), "red").save(tmp_path / "frame_11.png")
    assert loader().keys(loader().encoded(folder)) != before


def test_the_picture_that_a_clip_goes_on_from_comes_before_it(tmp_path: Path) -> None:
    clip = counting(6, base=4)
    found = loader(with_image=True).load(row(clip))
    assert shown(found.inputs) == [[4, 4, 14, 24, 34, 44]]
    path = tmp_path / "own.png"
    Image.new("RGB", (50, 50), (99, 99, 99)).save(path)
    own = loader(with_image=True).load(row(clip, clip, images=(str(path),)))
    assert [values[0] for values in shown(own.inputs)] == [99, 99]


def test_names_in_a_cache_tell_content_and_settings_apart(tmp_path: Path) -> None:
    one, two = counting(7), counting(7, base=1)
    path = tmp_path / "one.png"
    path.write_bytes(one)
    names = loader().keys([one, two, str(path)])
    assert names[0] == names[2] != names[1]
    for changed in ({"fps": 4.0}, {"num_frames": 4}, {"size": (32, 32)}, {"start": "middle"}):
        assert loader(**changed).keys([one]) != names[:1]


@pytest.mark.parametrize(
    ("clip", "reason", "message"),
    [
        (None, "missing_video", r"rows:3 candidate 0 \(chosen\): got no video. Is the source's `media` set"),
        (counting(4), "too_short", r"rows:3 candidate 0 \(chosen\): got .*4 frames.* expected 5 frames"),
        (b"no clip at all", None, "rows:3 candidate 0"),
        (str(Path("nowhere.mp4")), "missing_file", "no such file: nowhere.mp4"),
    ],
)
def test_clips_that_cannot_be_are_row_errors(clip: bytes | None, reason: str | None, message: str) -> None:
    with pytest.raises(RowError, match=message) as error:
        loader().load(row(clip, counting(6)))
    assert reason is None or error.value.reason == reason


def test_clips_of_pixels_are_rounded_and_clamped() -> None:
    clip = Clip.of(torch.tensor([-0.2, 0.5, 1.3]).view(3, 1, 1, 1).expand(3, 3, 2, 2), 8.0)
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 128, 255]


def test_names_of_frame_folders_tell_their_rate_and_those_of_files_do_not_change(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (96, 64), (5 * number,) * 3).save(tmp_path / f"frame_{number}.png")

    def names(media: bytes | str, fps: float | None, **settings: object) -> list[str]:
        one = row(media, extras={} if fps is None else {"fps": fps})
        return loader(**settings).keys(loader(**settings).encoded(one))

    folder = str(tmp_path)
    plain = loader().keys([folder])
    assert names(folder, None) == names(folder, 5.0) == plain
    assert len({*names(folder, 10.0), *names(folder, 20.0), *plain}) == 3
    # What a folder is taken for where no row says it decides as much.
    assert names(folder, None, limits=VideoLimits(min_side=2, frames_fps=10.0)) == names(folder, 10.0)
    clip = counting(9)
    assert names(clip, 10.0) == names(clip, None) == loader().keys([clip])
    assert shown(loader().load(row(folder, extras={"fps": 10.0})).inputs) == [[0, 10, 20, 30, 40]]


@pytest.mark.parametrize("start", ["middle", "random"])
def test_the_rows_own_picture_belongs_to_the_beginning_of_clips(tmp_path: Path, start: str) -> None:
    path = tmp_path / "own.png"
    Image.new("RGB", (50, 50), (99, 99, 99)).save(path)
    clips = loader(with_image=True, start=start)
    with pytest.raises(
        RowError, match=f"rows:3 image with video.start: got '{start}', expected first"
    ) as error:
        clips.load(row(counting(13), images=(str(path),)))
    assert error.value.reason == "picture_and_start"
    # Without a picture of the row's own the model goes on from the first frame that is shown.
    (values,) = shown(clips.load(row(counting(13))).inputs)
    assert values[0] == values[1]


def without_a_picture(place: int, *, size: tuple[int, int], num_frames: int = 20) -> bytes:
    """A clip of 5 frames a second, one packet of which holds no picture ("not coded" in MPEG-4).

    Args:
        place: of that packet.
        size: (height, width).
        num_frames: counted by the file.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=5, options={"g": "1"})
        (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
        packets = []
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            packets += stream.encode(frame)
        for number, packet in enumerate([*packets, *stream.encode(None)]):
            given = packet
            if number == place:
                given = av.Packet(b"\x00\x00\x01\xb6\x51\x00\x00\x00")
                given.stream, given.time_base = packet.stream, packet.time_base
                given.pts, given.dts, given.duration = packet.pts, packet.dts, packet.duration
            container.mux(given)
    return file.getvalue()


def test_sizes_stay_with_their_clips_where_one_must_be_decoded_twice() -> None:
    pair = row(without_a_picture(2, size=(64, 48)), counting(7), counting(7, size=(36, 40)))
    found = loader().load(pair)
    assert found.geometry[:, :2].tolist() == [[64, 48], [32, 48], [40, 36]]
    assert found.geometry[:, 4:].tolist() == [[32, 48]] * 3
    assert shown(found.inputs)[1] == [0, 10, 20, 30, 40]
    # The frame that is not there is replaced by its neighbour: the clip was decoded twice.
    assert shown(found.inputs)[0] == pytest.approx([0, 10, 10, 30, 40], abs=3)
