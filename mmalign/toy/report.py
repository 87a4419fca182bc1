"""Reports of the demos: one HTML file that needs nothing else, readable on a phone, in light and in dark.

Style inline, charts as inline SVG, pictures as base64 PNG of their 64 pixels, enlarged by the browser. Here
are the parts that every world's page has; its own are in `*_demo_report.py`.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any, Generic, TypeVar

from PIL import Image

from mmalign.toy.charts import Line, curve, interval_bar, pair_of_dots, sorted_bars
from mmalign.toy.comparison import Interval

__all__ = [
    "Chart",
    "Report",
    "accuracy_chart",
    "axis_card",
    "chart",
    "curves_section",
    "denoising_curves",
    "footer",
    "headline_card",
    "judge_section",
    "next_section",
    "png_base64",
    "points",
    "ranked_groups",
    "render_page",
    "signed",
    "tables_section",
    "verdict_section",
    "what_section",
]

_PER_GROUP = 6

ComparisonT = TypeVar("ComparisonT")

Chart = tuple[str, str, str]
"""Title, explanation, picture as SVG."""


@dataclass(frozen=True)
class Report(Generic[ComparisonT]):
    """Everything a page shows.

    Args:
        comparison: what both models made, judged.
        records: metrics of the training run in order.
        verdict: what they say, one sentence each.
        settings: name to value, in the order of the table.
        seconds: stage to seconds, in order.
        commands: what to run next: explanation and command.
        versions: package to version.
    """

    comparison: ComparisonT
    records: Sequence[Mapping[str, Any]]
    verdict: Sequence[str]
    settings: Mapping[str, str]
    seconds: Mapping[str, float]
    commands: Sequence[tuple[str, str]]
    versions: Mapping[str, str]


def render_page(title: str, parts: Sequence[str]) -> str:
    """A page of these parts that needs nothing else."""
    style = files("mmalign.toy").joinpath("report.css").read_text(encoding="utf-8")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


# --- headline -----------------------------------------------------------------------------------------------


def headline_card(rate: Interval, outcomes: tuple[int, int, int], *, things: str, remark: str) -> str:
    """The win rate with its interval.

    Args:
        rate: share won, ties counting half, with Wilson's interval.
        outcomes: won, tied, lost.
        things: what was compared, in the plural.
        remark: how it was counted; ends the small print.
    """
    won, tied, lost = outcomes
    return (
        '<div class="card headline">\n'
        f'<div><div class="rate num">{rate.value:.0%}</div><p class="small muted">win rate on '
        f"{won + tied + lost} held-out {things}</p></div>\n"
        f'<div>{interval_bar(rate)}<p class="small muted">95 % interval {rate.low:.1%} to {rate.high:.1%} '
        f"(Wilson). Won {won}, tied {tied}, lost {lost}{remark}</p></div>\n</div>\n"
    )


def signed(value: float) -> str:
    """A change with its sign, as HTML."""
    return f"{value:+.3f}".replace("-", "&minus;")


def axis_card(title: str, meaning: str, means: tuple[float, float], gain: Interval) -> str:
    """One number of both models, in [0, 1], and its change."""
    before, after = means
    return (
        f'<div class="card"><h3>{title}</h3><p class="small muted">{meaning}</p>'
        f'<p class="values num">{before:.3f} &rarr; {after:.3f}</p>{pair_of_dots(before, after)}'
        f'<p class="small muted num">{signed(gain.value)}, 95 % interval {signed(gain.low)} to '
        f"{signed(gain.high)}</p></div>"
    )


def what_section(text: str) -> str:
    """What was done, as HTML."""
    return f'<section>\n<h2>What was done</h2>\n<p class="lead">{text}</p>\n</section>'


# --- what both models made ----------------------------------------------------------------------------------


def ranked_groups(
    change: Sequence[float],
    show: Callable[[int], str],
    *,
    title: str,
    thing: str,
    value: str,
    harm: str = "The worst there are.",
) -> str:
    """Everything compared as one bar each, then both ends and the middle of their order: no selection.

    Args:
        change: of the value, per thing.
        show: the list item of one of them, by number.
        title: of the section.
        thing: what is compared, in the singular.
        value: what changed.
        harm: said of the worst where they lost.
    """
    ranked = sorted(range(len(change)), key=lambda index: (-change[index], index))
    num = min(_PER_GROUP, max(len(ranked) // 3, 1))
    start = (len(ranked) - num) // 2
    fell = change[ranked[-1]] < 0
    groups = (
        ("Largest gains", f"The {thing}s whose {value} rose most.", ranked[:num]),
        ("Typical", f"The {thing}s around the median change.", ranked[start : start + num]),
        (
            "Largest losses" if fell else "Smallest gains",
            harm if fell else f"No {thing} got worse; these gained least.",
            ranked[: -num - 1 : -1],
        ),
    )
    listed = "\n".join(
        f'<h3>{name}</h3><p class="small muted">{text}</p><ul class="pictures">'
        f"{''.join(show(index) for index in chosen)}</ul>"
        for name, text, chosen in groups
    )
    bars = sorted_bars(list(change), y_label=f"Change of {value} per {thing}")
    return (
        f"<section>\n<h2>{title}</h2>\n"
        f'<p class="muted">Not a selection of the best: first every {thing} as a bar, then the two ends and '
        f'the middle of that order.</p>\n<div class="card">{bars}<p class="small muted under">'
        f"Change of {value}, one bar per {thing}, sorted.</p></div>\n{listed}\n</section>"
    )


def png_base64(image: Image.Image) -> str:
    """The picture as the text of a data address."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


# --- curves -------------------------------------------------------------------------------------------------


def points(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of a metric, where it was recorded."""
    return [(float(record["step"]), float(record[name])) for record in records if name in record]


def chart(
    records: Sequence[Mapping[str, Any]],
    name: str,
    title: str,
    text: str,
    *,
    label: str = "",
    rule: tuple[float, str] | None = None,
) -> Chart:
    """One metric over the steps.

    Args:
        records: of the run.
        name: of the metric.
        title: of the chart.
        text: what it shows.
        label: of its axis; default its title in small letters.
        rule: a level to compare with, and its name.
    """
    label = label or title.lower()
    return title, text, curve([Line(label, points(records, name))], y_label=label, rule=rule)


def accuracy_chart(records: Sequence[Mapping[str, Any]]) -> Chart:
    """The share of pairs told apart, against chance."""
    accuracy = points(records, "implicit_accuracy") or points(records, "accuracy")
    drawn = curve(
        [Line("accuracy", accuracy)], y_label="implicit accuracy", rule=(0.5, "chance"), percent=True
    )
    return "Implicit accuracy", "Share of pairs whose chosen side gained more than the rejected one.", drawn


def curves_section(charts: Sequence[Chart]) -> str:
    """Curves of the training: title, explanation, chart."""
    cards = "".join(
        f'<div class="card"><h3>{title}</h3><p class="small muted">{text}</p>{chart}</div>'
        for title, text, chart in charts
    )
    return f'<section>\n<h2>Did it learn?</h2>\n<div class="curves">{cards}</div>\n</section>'


def verdict_section(sentences: Sequence[str]) -> str:
    """What the metrics of the run say."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return (
        '<section>\n<h2>What the curves say</h2>\n<p class="muted">The verdict that ends every training run, '
        f'from its metrics alone.</p><ul class="plain">{items}</ul>\n</section>'
    )


# --- the rest -----------------------------------------------------------------------------------------------


def tables_section(settings: Mapping[str, str], seconds: Mapping[str, float]) -> str:
    """Settings, and seconds per stage."""
    listed = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in settings.items()
    )
    stages = "".join(
        f'<tr><th>{escape(name)}</th><td class="num">{value:.1f} s</td></tr>'
        for name, value in seconds.items()
    )
    whole = f'<tr class="sum"><th>together</th><td class="num">{sum(seconds.values()):.1f} s</td></tr>'
    return (
        '<section class="columns">\n'
        f"<div><h2>Settings</h2><table>{listed}</table></div>\n"
        f"<div><h2>Where the time went</h2><table>{stages}{whole}</table></div>\n</section>"
    )


def judge_section(title: str, text: str, held_out: str) -> str:
    """How was judged: no model did.

    Args:
        title: of the section.
        text: how, as HTML.
        held_out: what neither the base's training nor any pair contained.
    """
    return (
        f"<section>\n<h2>{title}</h2>\n<p>No model judges here. {text}</p>\n"
        f'<p class="muted">{held_out}</p>\n</section>'
    )


def next_section(title: str, commands: Sequence[tuple[str, str]]) -> str:
    """What to run next: explanations with commands."""
    steps = "".join(
        f"<p>{escape(text)}</p><pre><code>{escape(command)}</code></pre>" for text, command in commands
    )
    return f"<section>\n<h2>{title}</h2>\n{steps}\n</section>"


def footer(versions: Mapping[str, str]) -> str:
    """Packages and their versions."""
    listed = ", ".join(f"{escape(name)} {escape(version)}" for name, version in versions.items())
    return f'<footer class="small muted">{listed}</footer>'


def denoising_curves(report: Report[Any]) -> str:
    """What a run on denoising errors logged: loss, accuracy, errors, margin, gradients and drift."""
    records = report.records
    errors = curve(
        [
            Line("chosen", points(records, "error/relative_chosen"), "a"),
            Line("rejected", points(records, "error/relative_rejected"), "b"),
        ],
        y_label="relative error",
        rule=(0.0, "base"),
        percent=True,
    )
    return curves_section(
        (
            chart(
                records,
                "loss",
                "Loss",
                "At log 2 = 0.693 the model cannot tell the sides apart.",
                rule=(0.6931, "log 2"),
            ),
            accuracy_chart(records),
            (
                "Denoising error relative to the reference",
                '<span class="key"></span>chosen<span class="key b"></span>rejected. Below 0: better than '
                "base.",
                errors,
            ),
            chart(records, "logit", "Logit", "Beta times the margin; 0 at the start.", rule=(0.0, "start")),
            chart(records, "grad_norm", "Gradient norm", "Before clipping. Steady or falling is healthy."),
            chart(
                records,
                "drift",
                "Drift",
                "Mean squared distance of the predictions from the base's.",
                rule=(0.0, "base"),
            ),
        )
    )
