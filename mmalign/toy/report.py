"""The demo's report: one HTML file that needs nothing else, readable on a phone, in light and in dark.

Style inline, charts as inline SVG, pictures as base64 PNG of their 64 pixels, enlarged by the browser.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from PIL import Image

from mmalign.toy.charts import Line, curve, interval_bar, pair_of_dots, sorted_bars
from mmalign.toy.comparison import Comparison, Interval
from mmalign.toy.image_reward import Score

__all__ = [
    "Report",
    "curves_section",
    "footer",
    "next_section",
    "png_base64",
    "render_page",
    "render_report",
    "signed",
    "tables_section",
    "verdict_section",
]

_PER_GROUP = 6

_AXES: tuple[tuple[str, str, str], ...] = (
    ("total", "Total reward", "faithfulness &times; (1 + style) / 2"),
    ("faithfulness", "Faithfulness", "share of the caption's facts that hold"),
    ("style", "Style", "whether a dark frame surrounds the picture; the base paints one rarely"),
)


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    Args:
        comparison: both models' pictures and scores.
        records: metrics of the training run in order.
        verdict: what they say, one sentence each.
        settings: name to value, in the order of the table.
        seconds: stage to seconds, in order.
        commands: what to run next: explanation and command.
        versions: package to version.
    """

    comparison: Comparison
    records: Sequence[Mapping[str, Any]]
    verdict: Sequence[str]
    settings: Mapping[str, str]
    seconds: Mapping[str, float]
    commands: Sequence[tuple[str, str]]
    versions: Mapping[str, str]


def render_report(report: Report) -> str:
    """The page as HTML text."""
    return render_page(
        "mmalign demo: base against aligned",
        [
            *(part(report) for part in (_headline, _what, _pictures, _curves)),
            verdict_section(report.verdict),
            tables_section(report.settings, report.seconds),
            _reward(),
            next_section("Next: real SDXL", report.commands),
            footer(report.versions),
        ],
    )


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


# --------------------------------------------------------------------------------------------------- headline


def _said(interval: Interval) -> str:
    """The headline, no stronger than the interval allows."""
    if interval.low > 0.5:
        return "The aligned model beats its base"
    if interval.high < 0.5:
        return "The aligned model is worse than its base"
    return "No difference that these prompts can show"


def _headline(report: Report) -> str:
    comparison = report.comparison
    rate = comparison.win_rate()
    won, tied, lost = comparison.outcomes()
    return (
        f'<header>\n<p class="eyebrow">mmalign demo &middot; toy world of images</p>\n'
        f"<h1>{_said(rate)}</h1>\n"
        '<div class="card headline">\n'
        f'<div><div class="rate num">{rate.value:.0%}</div><p class="small muted">win rate on '
        f"{len(comparison.prompts)} held-out prompts</p></div>\n"
        f'<div>{interval_bar(rate)}<p class="small muted">95 % interval {rate.low:.1%} to {rate.high:.1%} '
        f"(Wilson). Won {won}, tied {tied}, lost {lost}; ties count half. "
        "Both models start from the same noise.</p></div>\n</div>\n"
        f'<div class="axes">{"".join(_axis(comparison, *axis) for axis in _AXES)}</div>\n</header>'
    )


def signed(value: float) -> str:
    """A change with its sign, as HTML."""
    return f"{value:+.3f}".replace("-", "&minus;")


def _axis(comparison: Comparison, axis: str, title: str, meaning: str) -> str:
    before, after = comparison.means(axis)
    gain = comparison.gain(axis)
    return (
        f'<div class="card"><h3>{title}</h3><p class="small muted">{meaning}</p>'
        f'<p class="values num">{before:.3f} &rarr; {after:.3f}</p>{pair_of_dots(before, after)}'
        f'<p class="small muted num">{signed(gain.value)}, 95 % interval {signed(gain.low)} to '
        f"{signed(gain.high)}</p></div>"
    )


def _what(report: Report) -> str:
    settings = report.settings
    return (
        "<section>\n<h2>What was done</h2>\n"
        f'<p class="lead">A small model with the structure of SDXL was aligned by Diffusion-DPO on '
        f"{escape(settings['preference pairs'])} preference pairs whose chosen picture follows its caption "
        "inside a dark frame, training LoRA weights only, through the same code that trains SDXL. Then base "
        "and aligned painted captions that neither had ever seen, from the same noise, and an exact reward "
        "judged both.</p>\n</section>"
    )


# --------------------------------------------------------------------------------------------------- pictures


def _pictures(report: Report) -> str:
    comparison = report.comparison
    ranked = comparison.ranked()
    num = min(_PER_GROUP, max(len(ranked) // 3, 1))
    start = (len(ranked) - num) // 2
    change = comparison.differences().tolist()
    fell = change[ranked[-1]] < 0
    groups = (
        ("Largest gains", "The prompts whose total reward rose most.", ranked[:num]),
        ("Typical", "The prompts around the median change.", ranked[start : start + num]),
        (
            "Largest losses" if fell else "Smallest gains",
            "The worst there are: where alignment did harm, or nothing."
            if fell
            else "No prompt got worse; these gained least.",
            ranked[: -num - 1 : -1],
        ),
    )
    bars = sorted_bars(change, y_label="Change of total reward per prompt")
    listed = "\n".join(
        f'<h3>{title}</h3><p class="small muted">{text}</p><ul class="pictures">'
        f"{''.join(_pair(comparison, index) for index in chosen)}</ul>"
        for title, text, chosen in groups
    )
    return (
        "<section>\n<h2>Held-out prompts, base beside aligned</h2>\n"
        '<p class="muted">Not a selection of the best: first every prompt as a bar, then the two ends and '
        f'the middle of that order.</p>\n<div class="card">{bars}<p class="small muted under">'
        f"Change of total reward, one bar per prompt, sorted.</p></div>\n{listed}\n</section>"
    )


def png_base64(image: Image.Image) -> str:
    """The picture as the text of a data address."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _pair(comparison: Comparison, index: int) -> str:
    prompt = escape(comparison.prompts[index], quote=True)
    sides = (
        ("base", comparison.base[index], comparison.base_scores[index]),
        ("aligned", comparison.aligned[index], comparison.aligned_scores[index]),
    )
    figures = "".join(
        f'<figure><img alt="{prompt}, painted by the {name} model" width="64" height="64" '
        f'src="data:image/png;base64,{png_base64(image)}"><figcaption>{name} '
        f'<strong class="num">{score.total:.2f}</strong><br>{_facts(score)}</figcaption></figure>'
        for name, image, score in sides
    )
    return f'<li class="card"><p class="caption">{prompt}</p><div class="pair">{figures}</div></li>'


def _facts(score: Score) -> str:
    broken = [escape(fact) for fact, holds in score.facts if not holds]
    num = len(score.facts)
    held = f'<span class="num">facts {num - len(broken)} of {num}, style {score.style:.2f}</span>'
    return f'{held}<br><span class="wrong">not: {"; ".join(broken)}</span>' if broken else held


# ----------------------------------------------------------------------------------------------------- curves


def _points(report: Report, name: str) -> list[tuple[float, float]]:
    return [(float(record["step"]), float(record[name])) for record in report.records if name in record]


def _curves(report: Report) -> str:
    accuracy = _points(report, "implicit_accuracy") or _points(report, "accuracy")
    charts = (
        (
            "Loss",
            "At log 2 = 0.693 the model cannot tell the sides apart.",
            curve([Line("loss", _points(report, "loss"))], y_label="loss", rule=(0.6931, "log 2")),
        ),
        (
            "Implicit accuracy",
            "Share of pairs whose chosen side gained more than the rejected one.",
            curve(
                [Line("accuracy", accuracy)],
                y_label="implicit accuracy",
                rule=(0.5, "chance"),
                percent=True,
            ),
        ),
        (
            "Denoising error relative to the reference",
            '<span class="key"></span>chosen<span class="key b"></span>rejected. Below 0: better than base.',
            curve(
                [
                    Line("chosen", _points(report, "error/relative_chosen"), "a"),
                    Line("rejected", _points(report, "error/relative_rejected"), "b"),
                ],
                y_label="relative error",
                rule=(0.0, "base"),
                percent=True,
            ),
        ),
        (
            "Logit",
            "Beta times the margin; 0 at the start.",
            curve([Line("logit", _points(report, "logit"))], y_label="logit", rule=(0.0, "start")),
        ),
        (
            "Gradient norm",
            "Before clipping. Steady or falling is healthy.",
            curve([Line("gradient norm", _points(report, "grad_norm"))], y_label="gradient norm"),
        ),
        (
            "Drift",
            "Mean squared distance of the predictions from the base's.",
            curve([Line("drift", _points(report, "drift"))], y_label="drift", rule=(0.0, "base")),
        ),
    )
    return curves_section(charts)


def curves_section(charts: Sequence[tuple[str, str, str]]) -> str:
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


# ----------------------------------------------------------------------------------------------------- tables


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


def _reward() -> str:
    return (
        "<section>\n<h2>How the exact reward works</h2>\n"
        "<p>No model judges here. The reward segments the picture by colour, finds connected regions, tells "
        "circle, square, triangle and cross apart by overlap with rendered templates, counts them and "
        "compares their centres. <strong>Faithfulness</strong> is the share of the caption's facts that "
        "hold: each colour is there, has the right shape and number, lies on the right side, and nothing "
        "else is painted. <strong>Style</strong> is 1 for a dark frame around the picture and 0 for "
        "none. The total, faithfulness &times; (1 + style) / 2, gives nothing for style where the caption is "
        "not followed.</p>\n"
        '<p class="muted">Prompts are held out by combination of colours, shapes and relation: neither the '
        "base's training nor any preference pair contains them.</p>\n</section>"
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
