"""Clips to frames: taken by their time stamps, the one nearest to each wanted moment.

Clips of data sets are opened in one place (`video_opening`), which believes nothing about them; whoever needs
frames imports from here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mmalign.batch import Media
from mmalign.data.config import VideoLimits
from mmalign.data.video_codecs import Picture
from mmalign.data.video_opening import (
    VIDEO_NOTES,
    ClipFile,
    ShownClip,
    check_clip_size,
    describe_clip,
    noted,
    nothing_decodable,
    open_clip,
)
from mmalign.data.video_structure import video_ending
from mmalign.data.video_timeline import Timeline, fraction_of, sampled_places
from mmalign.errors import RowError, explain

__all__ = [
    "VIDEO_NOTES",
    "ClipFile",
    "DecodedClip",
    "ShownClip",
    "common_start",
    "decode_clip",
    "decode_clips",
    "describe_clip",
    "open_clip",
    "video_ending",
]


@dataclass(frozen=True)
class DecodedClip:
    """Frames of a clip.

    Args:
        frames: RGB, upright, square pixels, all of one size.
        fps: frames per second of these frames.
        notes: what is suspicious about the clip, names of `VIDEO_NOTES`.
        moments: seconds from the clip's first frame at which these frames stand in the file.
        shown_size: (height, width) of the first of them before anything was done to it; None if not known.
    """

    frames: UInt8[Tensor, "frame 3 height width"]
    fps: float
    notes: tuple[str, ...] = ()
    moments: tuple[float, ...] = ()
    shown_size: tuple[int, int] | None = None

    @property
    def seconds(self) -> float:
        """How long these frames are shown."""
        return len(self.frames) / self.fps

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.frames.shape[2], self.frames.shape[3]


Each = Callable[[UInt8[Tensor, "3 height width"]], UInt8[Tensor, "3 smaller_height smaller_width"]]
"""What is done to every frame before it is kept, such as making it smaller."""


def decode_clip(
    media: Media,
    *,
    where: str,
    limits: VideoLimits,
    fps: float | None = None,
    num_frames: int | None = None,
    seconds: float | None = None,
    start: float = 0.0,
    stored_fps: float | None = None,
    each: Each | None = None,
) -> DecodedClip:
    """Frames of a clip: those nearest in time to start, start + 1 / fps, start + 2 / fps, ...

    Only the frames that are taken are kept, and decoding ends with the last of them.

    Args:
        media: as `open_clip`.
        where: file, row and field, for messages.
        limits: what is refused.
        fps: frames per second to take; None takes the clip's own frames one after another.
        num_frames: how many, no fewer; None takes all.
        seconds: length of the part to take; None goes to the end.
        start: where it begins, seconds from the first frame (see `common_start`).
        stored_fps: of frames that lie as images; None takes `limits.frames_fps`, or else `fps`.
        each: is given every frame that is kept, and returns what is kept of it; must make them equally large.

    Raises:
        MissingExtraError: as `open_clip`.
        RowError: as `open_clip`; `too_short`, the clip ends before `num_frames` are found; `too_many_pixels`,
            all of them together are more than `limits.max_kept_pixels`.
    """
    told = stored_fps if stored_fps is not None else limits.frames_fps
    stored_fps = fps if told is None else told
    with open_clip(media, where=where, limits=limits, stored_fps=stored_fps) as (clip, timeline):
        rate = None if fps is None else fraction_of(fps)
        begin = Fraction(start).limit_denominator(1_000_000)
        length = None if seconds is None else fraction_of(seconds)

        def chosen(line: Timeline) -> list[int]:
            found = sampled_places(line, rate, start=begin, count=num_frames, seconds=length)
            if not found or (num_frames is not None and len(found) < num_frames):
                raise _ends_early(line, len(found), num_frames, start, rate, where)
            return found

        places = chosen(timeline)
        kept = _kept(clip, timeline, places, where, limits, each)
        if kept is None:  # packets that hold no picture, or none that can be decoded: count what comes out
            timeline = _decodable(clip, where)
            places = chosen(timeline)
            kept = _kept(clip, timeline, places, where, limits, each)
        if kept is None:
            raise nothing_decodable(where)
        frames, first = kept
        if len(set(places)) < len(places):
            clip.notes.add("repeated_frames")
        return DecodedClip(
            frames,
            float(timeline.fps if rate is None else rate),
            noted(clip, first),
            tuple(float(timeline.moments[place]) for place in places),
            (first.values.shape[0], first.values.shape[1]),
        )


def _decodable(clip: ClipFile, where: str) -> Timeline:
    """The timeline of the frames that can be decoded; most must be."""
    promised = clip.timeline()
    there = {picture.key for picture in clip.pictures()}
    places = [place for place, key in enumerate(promised.keys) if key in there]
    if len(places) < 0.9 * len(promised):
        message = (
            f"{where}: the clip is damaged: {len(places)} of {len(promised)} frames can be decoded. Copy or "
            "download it again."
        )
        raise RowError(message, reason="damaged_video" if places else "no_frames")
    clip.notes.add("lost_frames")
    zero = promised.moments[places[0]]
    return Timeline(
        tuple(promised.keys[place] for place in places),
        tuple(promised.moments[place] - zero for place in places),
        promised.seconds - zero,
        promised.steady,
    )


def _ends_early(
    timeline: Timeline, found: int, wanted: int | None, start: float, fps: Fraction | None, where: str
) -> RowError:
    rate = float(timeline.fps if fps is None else fps)
    message = explain(
        where,
        got=f"[{float(timeline.seconds):.4g} seconds: {found} frames from {start:g} s, {rate:.4g} a second]",
        expected=f"{wanted or 'some'} frames",
        do="Take fewer frames, more of them a second, or leave the clip out.",
    )
    return RowError(message, reason="too_short")


def _kept(
    clip: ClipFile,
    timeline: Timeline,
    places: Sequence[int],
    where: str,
    limits: VideoLimits,
    each: Each | None,
) -> tuple[UInt8[Tensor, "frame 3 height width"], Picture] | None:
    """The frames at some places, and the first picture as decoded; None where one of them never comes."""
    wanted: dict[int, list[int]] = {}
    for number, place in enumerate(places):
        wanted.setdefault(timeline.keys[place], []).append(number)
    frames: Tensor | None = None
    first: Picture | None = None
    left = set(wanted)
    for picture in clip.pictures(frozenset(wanted)):
        if first is None:
            first = picture
            check_clip_size(picture.values.shape[0], picture.values.shape[1], where, limits)
        if picture.transparent:
            clip.notes.add("transparent")
        frame = torch.from_numpy(np.array(picture.values)).permute(2, 0, 1)
        frame = frame if each is None else each(frame)
        if frames is None:
            _check_total(len(places), frame, where, limits)
            frames = torch.empty((len(places), *frame.shape), dtype=torch.uint8)
        if frame.shape != frames.shape[1:]:
            got = f"[frames of {tuple(frames.shape[2:])} and {tuple(frame.shape[1:])} pixels]"
            raise RowError(explain(where, got=got, expected="one size"), reason="mixed_sizes")
        frames[wanted[picture.key]] = frame
        left.discard(picture.key)
    return None if left or frames is None or first is None else (frames, first)


def _check_total(count: int, frame: Tensor, where: str, limits: VideoLimits) -> None:
    height, width = frame.shape[1:]
    if count * height * width > limits.max_kept_pixels:
        message = explain(
            where,
            got=f"[{count} frames of {width} x {height} pixels]",
            expected=f"at most {limits.max_kept_pixels} pixels in all",
            do="Take fewer frames or make them smaller, or raise data.video.max_kept_pixels.",
        )
        raise RowError(message, reason="too_many_pixels")


# ------------------------------------------------------------------------------------- the same part of each


def common_start(lengths: Sequence[float], *, needed: float, place: float) -> float:
    """Where a part of `needed` seconds begins in every clip of a row: the same moment in all of them.

    place times what is left over of the shortest clip; 0 where nothing is.

    Args:
        lengths: seconds of the clips.
        needed: seconds of the part.
        place: 0 takes the beginning, 0.5 the middle, 1 the end.
    """
    return max(0.0, place * (min(lengths) - needed))


def decode_clips(
    clips: Sequence[Media],
    *,
    where: Sequence[str],
    limits: VideoLimits,
    fps: float,
    num_frames: int,
    place: float = 0.0,
    stored_fps: float | None = None,
    each: Each | None = None,
) -> tuple[DecodedClip, ...]:
    """The same part of every clip of a row: labels of its segments mean something only then.

    Args:
        clips: of the row's candidates.
        where: of each, for messages.
        limits: what is refused.
        fps: frames per second to take.
        num_frames: how many.
        place: which part, see `common_start`.
        stored_fps: of clips that lie as images.
        each: as `decode_clip`.

    Raises:
        MissingExtraError: as `decode_clip`.
        RowError: as `decode_clip`.
    """
    begin = 0.0
    if place > 0.0:
        told = stored_fps if stored_fps is not None else limits.frames_fps or fps
        lengths = [
            describe_clip(media, where=name, limits=limits, stored_fps=told).seconds
            for media, name in zip(clips, where, strict=True)
        ]
        begin = common_start(lengths, needed=num_frames / fps, place=place)
    return tuple(
        decode_clip(
            media,
            where=name,
            limits=limits,
            fps=fps,
            num_frames=num_frames,
            start=begin,
            stored_fps=stored_fps,
            each=each,
        )
        for media, name in zip(clips, where, strict=True)
    )
