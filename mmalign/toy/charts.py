"""Small charts as inline SVG: no script, no font, no colour of their own (the style sheet colours classes).

Sizes are in user units of a fixed view box; the page scales them to its columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmalign.toy.comparison import Interval

__all__ = ["Line", "curve", "interval_bar", "pair_of_dots", "sorted_bars"]

_WIDTH, _HEIGHT = 360, 224
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
_NUM_TICKS = 5


@dataclass(frozen=True)
class Line:
    """One curve: what it is called, its points, and the class that colours it (`a` or `b`)."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str = "a"


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """About five round numbers (1, 2 or 5 times a power of ten apart) that lie in [low, high]."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / _NUM_TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= _NUM_TICKS)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, *, percent: bool = False) -> str:
    if percent:
        return f"{value * 100:g} %" if abs(value * 100 - round(value * 100)) < 1e-9 else f"{value:.1%}"
    # The minus sign of typography is as wide as a digit.
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}".replace("-", "\N{MINUS SIGN}")


def _bounds(values: Sequence[float], *, include: float | None) -> tuple[float, float]:
    known = [*values, *([include] if include is not None else [])]
    low, high = min(known), max(known)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def curve(
    lines: Sequence[Line],
    *,
    y_label: str,
    x_label: str = "optimiser step",
    rule: tuple[float, str] | None = None,
    percent: bool = False,
) -> str:
    """A line chart with labelled axes.

    Args:
        lines: one or two; points that are not finite are left out.
        y_label: what the heights are; read out to those who do not see the chart.
        x_label: below the horizontal axis.
        rule: height and name of a dashed level to compare with.
        percent: write the vertical axis in per cent.
    """
    kept = [[(x, y) for x, y in line.points if math.isfinite(y)] for line in lines]
    xs = [x for points in kept for x, _ in points]
    ys = [y for points in kept for _, y in points]
    if not xs:
        return f'<p class="muted">{escape(y_label)}: nothing was recorded.</p>'
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    y_low, y_high = _bounds(ys, include=rule[0] if rule else None)

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (y_high - y) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 7}" y="{down(y) + 3.5:.1f}" text-anchor="end">'
        f"{_number(y, percent=percent)}</text>"
        for y in _ticks(y_low, y_high)
    ]
    parts += [
        f'<text class="tick" x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
        f"{_number(x)}</text>"
        for x in _ticks(x_low, x_high, whole=True)
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>'
    )
    if rule is not None:
        y = down(rule[0])
        parts.append(
            f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="note" x="{_WIDTH - _RIGHT - 2}" y="{y - 5:.1f}" text-anchor="end">'
            f"{escape(rule[1])}</text>"
        )
    for line, points in zip(lines, kept, strict=True):
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        parts += [
            f'<circle class="dot {line.style}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.2"/>'
            for x, y in points
        ]
    ends = "; ".join(
        f"{line.label} from {_number(points[0][1])} to {_number(points[-1][1])}"
        for line, points in zip(lines, kept, strict=True)
        if points
    )
    label = escape(f"{y_label} over {x_label}: {ends}", quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def interval_bar(interval: Interval, *, neutral: float = 0.5, neutral_label: str = "no change") -> str:
    """A share on a line from 0 to 100 % with its interval, and a tick where nothing would have changed."""
    width, left, right, y = 640, 14, 14, 40

    def across(share: float) -> float:
        return left + share * (width - left - right)

    scale = "".join(
        f'<text class="tick" x="{across(share):.1f}" y="{y + 34}" text-anchor="{anchor}">{share:.0%}</text>'
        for share, anchor in (
            (0.0, "start"),
            (0.25, "middle"),
            (0.5, "middle"),
            (0.75, "middle"),
            (1.0, "end"),
        )
    )
    label = f"win rate {interval.value:.1%}, 95 % interval {interval.low:.1%} to {interval.high:.1%}"
    low, point, high, middle = (
        f"{across(share):.1f}" for share in (interval.low, interval.value, interval.high, neutral)
    )
    return (
        f'<svg class="bar" viewBox="0 0 {width} 80" role="img" aria-label="{label}">'
        f'<line class="track" x1="{across(0.0)}" x2="{across(1.0)}" y1="{y}" y2="{y}"/>'
        f'<line class="rule" x1="{middle}" x2="{middle}" y1="{y - 18}" y2="{y + 16}"/>'
        f'<text class="note" x="{middle}" y="{y - 24}" text-anchor="middle">{escape(neutral_label)}</text>'
        f'<line class="span" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
        f'<circle class="point" cx="{point}" cy="{y}" r="9"/>{scale}</svg>'
    )


def pair_of_dots(before: float, after: float) -> str:
    """Two values in [0, 1] on one line: a hollow dot for base, a filled one for aligned."""
    width, y = 320, 14

    def across(share: float) -> float:
        return 10 + share * (width - 20)

    label = f"base {before:.3f}, aligned {after:.3f}"
    return (
        f'<svg class="dots" viewBox="0 0 {width} 28" role="img" aria-label="{label}">'
        f'<line class="track thin" x1="{across(0.0)}" x2="{across(1.0)}" y1="{y}" y2="{y}"/>'
        f'<line class="span thin" x1="{across(before):.1f}" x2="{across(after):.1f}" y1="{y}" y2="{y}"/>'
        f'<circle class="hollow" cx="{across(before):.1f}" cy="{y}" r="6"/>'
        f'<circle class="point" cx="{across(after):.1f}" cy="{y}" r="6.5"/></svg>'
    )


def sorted_bars(values: Sequence[float], *, y_label: str) -> str:
    """One bar per value, sorted from largest to smallest: gains above the line, losses below, ties on it."""
    width, height, left, top = 640, 150, 44, 10
    ordered = sorted(values, reverse=True)
    high, low = max(ordered[0], 0.05), min(ordered[-1], -0.05)
    unit = (height - 2 * top) / (high - low)
    slot = (width - left) / len(ordered)
    zero = top + high * unit
    kinds = ["gain" if value > 0 else "loss" if value < 0 else "same" for value in ordered]
    parts = [
        f'<rect class="{kinds[index]}" x="{left + index * slot:.2f}" '
        f'y="{zero - max(value, 0.0) * unit:.2f}" width="{max(slot * 0.78, 0.6):.2f}" '
        f'height="{max(abs(value) * unit, 1.0):.2f}"/>'
        for index, value in enumerate(ordered)
    ]
    parts += [
        f'<text class="tick" x="{left - 6}" y="{zero - value * unit + 4:.1f}" text-anchor="end">'
        f"{_number(value)}</text>"
        for value in _ticks(low, high)
        if value == 0.0 or abs(value) > 0.12 * (high - low)
    ]
    won = sum(value > 0 for value in ordered)
    label = escape(f"{y_label}: {won} of {len(ordered)} rise, from {ordered[0]:+.2f} to {ordered[-1]:+.2f}")
    return (
        f'<svg class="bar" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<line class="grid" x1="{left}" x2="{width}" y1="{zero:.1f}" y2="{zero:.1f}"/>{"".join(parts)}</svg>'
    )
