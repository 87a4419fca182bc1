"""Frames of video files: written losslessly, read back exactly, chosen as the official reader chooses."""

import builtins
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from mmalign import rewards
from mmalign.errors import MissingExtraError, RowError
from mmalign.rewards import Sample
from mmalign.rewards.video_files import read_frames, sampled_frames
from mmalign.rewards.vision_language import sample_media
from mmalign.testing.reward_checkpoints import qwen_heads

RATE = 10


def frames_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 255, size=(count, 56, 28, 3), dtype=np.uint8)


def write(path: Path, frames: np.ndarray, rate: int = RATE) -> Path:
    """A lossless clip. MOV says how many frames it has, Matroska does not."""
    codec, pixels = ("ffv1", "bgr0") if path.suffix == ".mkv" else ("png", "rgb24")
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["clip.mov", "clip.mkv"])
def test_chosen_frames_come_back_in_their_order(tmp_path: Path, name: str) -> None:
    frames = frames_of(11)
    told: list[tuple[int, float]] = []

    def choose(total: int, rate: float) -> list[int]:
        told.append((total, rate))
        return [7, 2, 2]

    found = read_frames(write(tmp_path / name, frames), choose)
    assert told[-1] == (11, pytest.approx(RATE))
    assert torch.equal(found, torch.from_numpy(frames[[7, 2, 2]]).permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["clip.mov", "clip.mkv"])
def test_two_frames_a_second_are_read_an_even_number_at_even_distances(tmp_path: Path, name: str) -> None:
    frames = frames_of(25)  # 2.5 seconds: five frames wanted, rounded to the even 4
    found = sampled_frames(write(tmp_path / name, frames))
    assert torch.equal(found, torch.from_numpy(frames[[0, 8, 16, 24]]).permute(0, 3, 1, 2))


def test_videoreward_scores_a_file_as_its_frames_with_their_rate(tmp_path: Path) -> None:
    folder = qwen_heads.write_videoreward(tmp_path / "weights", 3)
    reward = rewards.load("videoreward", weights=folder, **qwen_heads.LOAD_OPTIONS["videoreward"])
    frames = frames_of(25)
    clip = write(tmp_path / "clip.mov", frames)
    as_frames = Sample(prompt="a cat", frames=list(frames), extras={"fps": RATE})
    found = reward.score([Sample(prompt="a cat", video=clip), as_frames])
    assert found.errors == (None, None)
    assert torch.equal(found.values[0], found.values[1])


def test_chat_models_are_shown_a_file_s_frames_where_there_is_nothing_else(tmp_path: Path) -> None:
    frames = frames_of(25)
    clip = write(tmp_path / "clip.mov", frames)
    shown = sample_media(Sample(video=clip))
    assert isinstance(shown, list)
    assert torch.equal(torch.stack(shown), torch.from_numpy(frames[[0, 8, 16, 24]]).permute(0, 3, 1, 2))
    assert sample_media(Sample(video=clip, frames=["a.png"])) == ["a.png"]


def test_files_that_cannot_be_read_fail_alone_and_say_why(tmp_path: Path) -> None:
    (tmp_path / "words.mp4").write_text("no clip")
    for path, reason in (
        (tmp_path / "none.mp4", "missing_file"),
        (tmp_path / "words.mp4", "unreadable_file"),
    ):
        with pytest.raises(RowError, match="expected a video file") as caught:
            sampled_frames(path)
        assert caught.value.reason == reason
    with pytest.raises(RowError, match="at least 2") as caught:
        sampled_frames(write(tmp_path / "still.mov", frames_of(1)))
    assert caught.value.reason == "too_few_frames"


def test_a_playlist_cannot_name_other_files(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mkv", frames_of(5))
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n")
    with pytest.raises(RowError, match="expected a video file"):
        sampled_frames(playlist)


def test_without_the_extra_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write(tmp_path / "clip.mov", frames_of(5))
    plain = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return plain(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmalign\[video\]'"):
        sampled_frames(clip)
