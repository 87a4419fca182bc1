"""When the frames of a clip are shown, exactly; and which of them stand at chosen moments.

Times are fractions of seconds from the clip's first frame. Containers round them (Matroska to milliseconds,
GIF to hundredths): where a clip has one frame rate but for that rounding, the unrounded times are used, so
that one clip in two containers gives the same frames.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

__all__ = ["Timeline", "even_timeline", "fraction_of", "held_timeline", "sampled_places", "timeline_of"]

_COARSE = 4
"""Ticks per frame below which rounding cannot be told from a missing frame."""


def fraction_of(value: float) -> Fraction:
    """A number of settings as a fraction: 23.976 as written, 24000/1001 from its float."""
    return Fraction(value).limit_denominator(100_000)


@dataclass(frozen=True)
class Timeline:
    """The frames of a clip in the order in which they are shown.

    Args:
        keys: what the file calls each frame.
        moments: seconds from the first frame at which each appears; increasing, the first is 0.
        seconds: when the last one disappears.
        steady: whether there is one frame rate.
    """

    keys: tuple[int, ...]
    moments: tuple[Fraction, ...]
    seconds: Fraction
    steady: bool = True

    def __len__(self) -> int:
        return len(self.moments)

    @property
    def fps(self) -> Fraction:
        """Frames per second, in the mean where they vary."""
        return len(self) / self.seconds

    def nearest(self, moment: Fraction) -> int:
        """The place of the frame whose time is nearest; of two as near, the earlier one."""
        after = bisect.bisect_left(self.moments, moment)
        if after == 0:
            return 0
        if after == len(self):
            return after - 1
        before = after - 1
        return before if moment - self.moments[before] <= self.moments[after] - moment else after


def even_timeline(count: int, fps: Fraction, keys: Sequence[int] | None = None) -> Timeline:
    """`count` frames at one rate, called by their numbers where no keys are given."""
    return Timeline(
        tuple(range(count) if keys is None else keys),
        tuple(place / fps for place in range(count)),
        count / fps,
    )


def timeline_of(
    ticks: Sequence[int], tick: Fraction, *, last: int = 0, rates: Sequence[Fraction] = ()
) -> Timeline:
    """The timeline of frames with time stamps.

    A clip is steady where one of `rates`, or the mean rate, explains every stamp as a rounded one: the errors
    t_i - i / rate all lie within one tick. Where a frame lasts less than four ticks they must be 0.

    Args:
        ticks: time stamps, increasing.
        tick: seconds of one.
        last: ticks for which the last frame is shown; 0 where that is not known: as long as the median one.
        rates: frames per second that the file says it has.
    """
    gaps = sorted(after - before for before, after in pairwise(ticks))
    lasting = last or (gaps[len(gaps) // 2] if gaps else 0)
    if not gaps:
        known = next((rate for rate in rates if rate > 0), None)
        return even_timeline(1, 1 / (lasting * tick) if lasting else known or Fraction(1), ticks)
    mean = Fraction(len(gaps), ticks[-1] - ticks[0]) / tick
    for rate in (*rates, *_likely(mean)):
        if rate > 0 and _explains(rate, ticks, tick, range(len(ticks))):
            return even_timeline(len(ticks), rate, ticks)
    moments = tuple((stamp - ticks[0]) * tick for stamp in ticks)
    return Timeline(tuple(ticks), moments, moments[-1] + lasting * tick, steady=False)


def held_timeline(lasting: Sequence[int], tick: Fraction) -> Timeline:
    """The timeline of pictures that say how long they are held, called by their numbers.

    Programs that write animations merge equal frames into one that is held longer: where all times are
    multiples of the shortest, but for rounding, a picture held n times as long counts as n frames.

    Args:
        lasting: ticks for which each is shown, above 0.
        tick: seconds of one.
    """
    counts = [round(Fraction(time, min(lasting))) for time in lasting]
    stamps, places = [0], [0]
    for time, count in zip(lasting, counts, strict=True):
        stamps.append(stamps[-1] + time)
        places.append(places[-1] + count)
    if places[-1] <= _MOST_HELD:
        for rate in _likely(places[-1] / (stamps[-1] * tick)):
            if rate > 0 and _explains(rate, stamps, tick, places):
                keys = [key for key, count in enumerate(counts) for _ in range(count)]
                return even_timeline(places[-1], rate, keys)
    moments = tuple(stamp * tick for stamp in stamps[:-1])
    return Timeline(tuple(range(len(lasting))), moments, stamps[-1] * tick, steady=False)


_MOST_HELD = 100_000
"""Frames beyond which an animation that counts its pictures several times is a joke."""


def _likely(mean: Fraction) -> tuple[Fraction, ...]:
    """Rates near a mean one, the simplest first."""
    whole = Fraction(round(mean))
    simple = (mean.limit_denominator(4), mean.limit_denominator(100))
    return (whole, whole * Fraction(1000, 1001), *simple, mean)


def _explains(rate: Fraction, ticks: Sequence[int], tick: Fraction, places: Sequence[int]) -> bool:
    """Whether the stamps of frames at some places are those of one rate, rounded."""
    step = 1 / (rate * tick)
    errors = [stamp - ticks[0] - place * step for place, stamp in zip(places, ticks, strict=True)]
    spread = max(errors) - min(errors)
    return spread < 1 if step >= _COARSE else spread == 0


def sampled_places(
    timeline: Timeline,
    fps: Fraction | None,
    *,
    start: Fraction = Fraction(0),
    count: int | None = None,
    seconds: Fraction | None = None,
) -> list[int]:
    """Places of the frames nearest to start, start + 1 / fps, start + 2 / fps, ...

    Moments after the end of the clip have no frame: the list is shorter than `count` there.

    Args:
        timeline: of the clip.
        fps: frames per second that are wanted; None takes the clip's own frames one after another.
        start: seconds from the first frame.
        count: how many at most; None takes all there are.
        seconds: length of the part; None goes to the end.
    """
    end = timeline.seconds if seconds is None else min(timeline.seconds, start + seconds)
    if fps is None:
        first = timeline.nearest(start) if start < end else len(timeline)
        places = [place for place in range(first, len(timeline)) if timeline.moments[place] < end]
        return places if count is None else places[:count]
    fitting = max(0, -int(-(end - start) * fps // 1))  # moments before the end: the ceiling
    number = fitting if count is None else min(count, fitting)
    return [timeline.nearest(start + place / fps) for place in range(number)]
