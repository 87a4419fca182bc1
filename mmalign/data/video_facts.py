"""What `mmalign data check` says of clips: lengths, rates, sizes, motion, doubts, cues that give labels away.

Motion is how much a pixel changes within an eighth of a second, in the mean over the clip, of 1 for black to
white. Annotators like calm clips: pairs whose chosen side moves less teach a model to stand still
(arXiv 2506.03517).
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.batch import Media, PreferenceRow
from mmalign.data.config import VideoLimits
from mmalign.data.cues import cue
from mmalign.data.rows import FieldError
from mmalign.data.segment_labels import LABELS, SECONDS, expected_count
from mmalign.data.segments import COLUMN, stretches_of
from mmalign.data.video_opening import (
    VIDEO_NOTES,
    ClipFile,
    ShownClip,
    check_clip_size,
    noted,
    nothing_decodable,
    open_clip,
)
from mmalign.data.video_stills import clip_contents
from mmalign.data.video_timeline import Timeline, sampled_places
from mmalign.errors import RowError, explain

__all__ = ["LookedAtClip", "VideoFacts", "clip_digest", "look_at_clip", "stored_fps"]

_PLACES = 8
"""Moments of a clip at which its motion is measured."""

_STEP = Fraction(1, 8)
"""Seconds between the two frames that are compared there."""

_SIDE = 96
"""Pixels of the longer side at which frames are compared: every n-th pixel of every n-th row."""


@dataclass(frozen=True)
class LookedAtClip:
    """A clip whose frames were looked at.

    Args:
        shown: its length, rate, size and notes.
        motion: mean change of a pixel within an eighth of a second, in [0, 1].
    """

    shown: ShownClip
    motion: float


def clip_digest(media: Media) -> str:
    """What tells one clip from another: a hash of its bytes, or of all its frames."""
    digest = hashlib.blake2b(digest_size=12)
    for piece in clip_contents(media):
        digest.update(piece)
    return digest.hexdigest()


def look_at_clip(
    media: Media, *, where: str, limits: VideoLimits, stored_fps: float | None = None
) -> LookedAtClip:
    """A clip's facts and motion; it is decoded to its last frame, so that damage anywhere is found.

    Args:
        media: as `mmalign.data.video_media.open_clip`.
        where: file, row and field, for messages.
        limits: what is refused.
        stored_fps: of frames that lie as images.

    Raises:
        MissingExtraError: PyAV is needed and not installed.
        RowError: what `open_clip` raises, and damage of its frames.
    """
    with open_clip(media, where=where, limits=limits, stored_fps=stored_fps) as (clip, timeline):
        pairs = _compared(timeline)
        wanted = {timeline.keys[place] for pair in pairs for place in pair} | {timeline.keys[-1]}
        small, size = _small_frames(clip, wanted, where, limits)
        changes = [
            float(np.abs(small[timeline.keys[first]] - small[timeline.keys[second]]).mean()) / 255.0
            for first, second in pairs
            if timeline.keys[first] in small and timeline.keys[second] in small
        ]
        frozen = len(small) > 1 and all(
            np.array_equal(one, next(iter(small.values()))) for one in small.values()
        )
        if frozen:
            clip.notes.add("still")
        if any(side % 2 for side in size):
            clip.notes.add("odd_size")
        shown = ShownClip(
            seconds=float(timeline.seconds),
            num_frames=len(timeline),
            fps=float(timeline.fps),
            height=size[0],
            width=size[1],
            container=clip.head.container,
            coding=clip.head.coding,
            notes=noted(clip, None),
        )
        return LookedAtClip(shown, sum(changes) / len(changes) if changes else 0.0)


def _compared(timeline: Timeline) -> list[tuple[int, int]]:
    """Places of frames an eighth of a second apart, spread over the clip."""
    slack = max(Fraction(0), timeline.seconds - 2 * _STEP)
    starts = [slack * place / (_PLACES - 1) for place in range(_PLACES)]
    found = []
    for start in starts:
        places = sampled_places(timeline, 1 / _STEP, start=start, count=2)
        if len(places) == 2 and places[0] != places[1]:
            found.append((places[0], places[1]))
    return list(dict.fromkeys(found)) or [(0, len(timeline) - 1)]


def _small_frames(
    clip: ClipFile, wanted: set[int], where: str, limits: VideoLimits
) -> tuple[dict[int, NDArray[np.float32]], tuple[int, int]]:
    """Thinned pictures of some frames, and (height, width) of the first."""
    small: dict[int, NDArray[np.float32]] = {}
    size = (0, 0)
    for picture in clip.pictures(wanted):
        height, width = picture.values.shape[:2]
        if not small:
            size = (height, width)
            check_clip_size(height, width, where, limits)
        if (height, width) != size:
            message = explain(
                where, got=f"[frames of {size} and {(height, width)} pixels]", expected="one size"
            )
            raise RowError(message, reason="mixed_sizes")
        if picture.transparent:
            clip.notes.add("transparent")
        step = max(1, max(size) // _SIDE)
        small[picture.key] = picture.values[::step, ::step].astype(np.float32)
    if not small:
        raise nothing_decodable(where)
    if len(small) < len(wanted):
        clip.notes.add("lost_frames")
    return small, size


@dataclass
class VideoFacts:
    """Collects facts about the clips of the rows looked at.

    Args:
        limits: what is refused.
        decode: whether clips are decoded, or only read.
    """

    limits: VideoLimits
    decode: bool
    num_clips: int = 0
    seconds: list[float] = field(default_factory=list)
    num_frames: list[int] = field(default_factory=list)
    motion: list[float] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    rates: Counter[str] = field(default_factory=Counter)
    codings: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    segments: Counter[str] = field(default_factory=Counter)
    unlike: Counter[str] = field(default_factory=Counter)
    prompts: list[str] = field(default_factory=list)
    pairs: list[tuple[LookedAtClip, LookedAtClip]] = field(default_factory=list)

    def look(self, row: PreferenceRow) -> list[str]:
        """Digests of the row's clips, after each was opened.

        Raises:
            RowError: a clip cannot be used, or labels of segments do not fit it.
            MissingExtraError: PyAV is needed and not installed.
        """
        digests: list[str] = []
        looked: list[LookedAtClip] = []
        for number, candidate in enumerate(row.candidates):
            if candidate.video is None:
                continue
            where = f"{row.source} candidate {number}"
            if self.decode:
                looked.append(
                    look_at_clip(candidate.video, where=where, limits=self.limits, stored_fps=stored_fps(row))
                )
            digests.append(_digest(candidate.video, where))
        if looked:
            self._segments(row, looked)
        self.num_clips += len(digests)
        for clip in looked:
            self._count(clip)
        if row.kind == "pairs" and len(looked) == 2:
            self._compare(row, looked[0], looked[1])
        return digests

    def _count(self, clip: LookedAtClip) -> None:
        shown = clip.shown
        self.seconds.append(shown.seconds)
        self.num_frames.append(shown.num_frames)
        self.motion.append(clip.motion)
        self.sizes.append((shown.height, shown.width))
        self.rates[f"{shown.fps:.5g}"] += 1
        self.codings[f"{shown.container} {shown.coding}"] += 1
        self.notes.update(shown.notes)

    def _compare(self, row: PreferenceRow, first: LookedAtClip, second: LookedAtClip) -> None:
        a, b = first.shown, second.shown
        self.unlike.update(
            name
            for name, differs in (
                ("fps", abs(a.fps - b.fps) > 0.01 * a.fps),
                ("frames", a.num_frames != b.num_frames),
                ("size", (a.height, a.width) != (b.height, b.width)),
            )
            if differs
        )
        if row.preference != 0.5:
            self.prompts.append(row.prompt)
            self.pairs.append((first, second))

    def _segments(self, row: PreferenceRow, looked: Sequence[LookedAtClip]) -> None:
        """Count labels of segments; those that do not fit the clips are errors."""
        if row.extras.get(COLUMN) in (None, ""):
            return
        found = stretches_of(row)
        given = row.extras.get(SECONDS)
        for clip in looked:
            seconds = clip.shown.seconds
            fitting = expected_count(seconds, float(given)) if given is not None else None
            if (fitting is not None and len(found) != fitting) or any(one.start >= seconds for one in found):
                expected = f"{fitting} segments" if fitting is not None else "segments within the clip"
                message = explain(
                    f"{row.source} {LABELS if fitting is not None else COLUMN}",
                    got=f"[{len(found)} of {given or 'some'} seconds for a clip of {seconds:.4g} seconds]",
                    expected=expected,
                )
                raise FieldError(message, "wrong_segments", LABELS if fitting is not None else COLUMN)
        self.segments["rows"] += 1
        self.segments["chosen"] += sum(one.preference > 0 for one in found)
        self.segments["rejected"] += sum(one.preference < 0 for one in found)
        self.segments["tie"] += sum(one.preference == 0 for one in found)

    def facts(self) -> dict[str, Any]:
        """Seconds, frames, sizes and motion (least, median, most), counts by rate, coding, note and label."""
        if not self.num_clips:
            return {}
        found: dict[str, Any] = {"looked_at": self.num_clips}
        if self.seconds:
            heights, widths = zip(*self.sizes, strict=True)
            for name, values, digits in (
                ("seconds", self.seconds, 3),
                ("frames", self.num_frames, 0),
                ("height", heights, 0),
                ("width", widths, 0),
                ("motion", self.motion, 4),
            ):
                ends = (min(values), float(np.median(values)), max(values))
                found[name] = [round(value, digits) if digits else int(value) for value in ends]
            found["frames_per_second"] = dict(self.rates.most_common())
            found["codings"] = dict(self.codings.most_common())
        for name, counts in (
            ("pairs_unlike_in", self.unlike),
            ("segments", self.segments),
            ("notes", self.notes),
        ):
            if counts:
                found[name] = dict(counts.most_common())
        return found

    def advice(self) -> list[str]:
        """Sentences about what may spoil training."""
        found = [
            f"{count} {'clip' if count == 1 else 'clips'} noted as {name}: {VIDEO_NOTES[name]}."
            for name, count in self.notes.most_common()
        ]
        if len(self.rates) > 1:
            listed = ", ".join(f"{count} at {rate}" for rate, count in self.rates.most_common(6))
            found.append(f"Frames per second differ ({listed}); frames are taken at the model's rate.")
        found += cue(
            "longer", self._sides("seconds"), self.prompts, "the model's number of frames cuts both alike"
        )
        found += cue(
            "faster-running",
            self._sides("fps"),
            self.prompts,
            "both are sampled at one rate; prefer equal ones",
        )
        sizes = [
            (float(a.shown.height * a.shown.width), float(b.shown.height * b.shown.width))
            for a, b in self.pairs
        ]
        found += cue("larger", sizes, self.prompts, "both are resized alike, but sharpness differs")
        motions = [(a.motion, b.motion) for a, b in self.pairs]
        found += cue(
            "livelier",
            motions,
            self.prompts,
            "where the rejected one is, models come to stand still: keep pairs with like motion, or label "
            "segments of pairs that share their motion",
        )
        return found

    def _sides(self, name: str) -> list[tuple[float, float]]:
        return [(float(getattr(a.shown, name)), float(getattr(b.shown, name))) for a, b in self.pairs]


def stored_fps(row: PreferenceRow) -> float | None:
    """Frames per second that a row's own column says; None where it says none."""
    found = row.extras.get("fps")
    if isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < float("inf"):
        return float(found)
    return None


def _digest(media: Media, where: str) -> str:
    try:
        return clip_digest(media)
    except OSError as error:
        message = f"{where}: {media!r} cannot be read ({error.strerror or error})."
        raise RowError(
            message, reason="missing_file" if isinstance(error, FileNotFoundError) else "unreadable_file"
        ) from error
