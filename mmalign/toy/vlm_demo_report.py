"""The report of `mmalign demo vlm`: one HTML file that needs nothing else.

Style, charts and the parts that every demo has are those of `mmalign.toy.report`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mmalign.toy.charts import Line, curve, interval_bar, pair_of_dots, sorted_bars
from mmalign.toy.dialogue_answers import Judgement
from mmalign.toy.dialogue_exam import Axis, ExamComparison
from mmalign.toy.report import (
    curves_section,
    footer,
    next_section,
    png_base64,
    render_page,
    signed,
    tables_section,
    verdict_section,
)

__all__ = ["DialogueReport", "render_dialogue_report"]

_PER_GROUP = 6

_AXES: tuple[tuple[Axis, str, str], ...] = (
    (
        "hallucinated",
        "Hallucination",
        "share of descriptions that name what is not there; low is good",
    ),
    ("recall", "Recall", "share of what is there that a description names"),
    ("score", "Score", "harmonic mean of recall and of the share of named things that are there"),
)


@dataclass(frozen=True)
class DialogueReport:
    """Everything the page shows.

    Args:
        comparison: both models' answers, judged.
        records: metrics of the training run in order.
        verdict: what they say, one sentence each.
        settings: name to value, in the order of the table.
        seconds: stage to seconds, in order.
        commands: what to run next: explanation and command.
        versions: package to version.
    """

    comparison: ExamComparison
    records: Sequence[Mapping[str, Any]]
    verdict: Sequence[str]
    settings: Mapping[str, str]
    seconds: Mapping[str, float]
    commands: Sequence[tuple[str, str]]
    versions: Mapping[str, str]


def render_dialogue_report(report: DialogueReport) -> str:
    """The page as HTML text."""
    return render_page(
        "mmalign demo vlm: base against aligned",
        [
            _headline(report.comparison),
            _what(report),
            _questions(report.comparison),
            _pictures(report.comparison),
            _curves(report.records),
            verdict_section(report.verdict),
            tables_section(report.settings, report.seconds),
            _judge(),
            next_section("Next: your own model", report.commands),
            footer(report.versions),
        ],
    )


# --- headline -----------------------------------------------------------------------------------------------


def _said(comparison: ExamComparison) -> str:
    """The headline, no stronger than the intervals allow."""
    less, recall = comparison.gain("hallucinated"), comparison.gain("recall")
    if less.low > 0:
        return "The aligned model hallucinates more than its base"
    if less.high >= 0:
        return "No difference in hallucination that these pictures can show"
    if recall.high < 0:
        return "The aligned model hallucinates less, and leaves more out"
    return "The aligned model hallucinates less, and leaves nothing more out"


def _headline(comparison: ExamComparison) -> str:
    rate = comparison.win_rate()
    won, tied, lost = comparison.outcomes()
    return (
        f'<header>\n<p class="eyebrow">mmalign demo &middot; toy world of dialogues</p>\n'
        f"<h1>{_said(comparison)}</h1>\n"
        '<div class="card headline">\n'
        f'<div><div class="rate num">{rate.value:.0%}</div><p class="small muted">win rate on '
        f"{len(comparison.exam.pictures)} held-out pictures</p></div>\n"
        f'<div>{interval_bar(rate)}<p class="small muted">95 % interval {rate.low:.1%} to {rate.high:.1%} '
        f"(Wilson). Won {won}, tied {tied}, lost {lost} by score; ties count half.</p></div>\n</div>\n"
        f'<div class="axes">{"".join(_axis(comparison, *axis) for axis in _AXES)}</div>\n'
        f"{_lengths(comparison)}</header>"
    )


def _axis(comparison: ExamComparison, axis: Axis, title: str, meaning: str) -> str:
    before, after = comparison.means(axis)
    gain = comparison.gain(axis)
    return (
        f'<div class="card"><h3>{title}</h3><p class="small muted">{meaning}</p>'
        f'<p class="values num">{before:.3f} &rarr; {after:.3f}</p>{pair_of_dots(before, after)}'
        f'<p class="small muted num">{signed(gain.value)}, 95 % interval {signed(gain.low)} to '
        f"{signed(gain.high)}</p></div>"
    )


def _lengths(comparison: ExamComparison) -> str:
    (before, after), change = comparison.means("words"), comparison.gain("words")
    objects = [rates.hallucinated_objects for rates in comparison.rates()]
    return (
        f'<p class="small muted num under">Words per description {before:.1f} &rarr; {after:.1f} (change '
        f"{signed(change.value)}, {signed(change.low)} to {signed(change.high)}). Of all things named, "
        f"{objects[0]:.1%} &rarr; {objects[1]:.1%} are not there.</p>\n"
    )


def _what(report: DialogueReport) -> str:
    settings = report.settings
    return (
        "<section>\n<h2>What was done</h2>\n"
        '<p class="lead">A small model with the structure of LLaVA sees well but says what usually is there: '
        "in what it read, a red circle comes with a blue square even where there is none. It was aligned by "
        f"{escape(settings['method'])} on {escape(settings['preference pairs'])} pairs of answers, training "
        "LoRA weights only, through the same code that trains LLaVA. Every pair has a twin, the same two "
        "answers about another picture the other way round, so that only looking tells which is better."
        "</p>\n</section>"
    )


def _questions(comparison: ExamComparison) -> str:
    base, aligned = comparison.exists()
    meaning = {
        "random": "about any kind that is not there",
        "adversarial": "about a companion that is missing",
    }
    rows = "".join(
        f'<tr><th>{split}: {meaning[split]}</th><td class="num">{base[split].accuracy:.1%} &rarr; '
        f'{aligned[split].accuracy:.1%}</td><td class="num">{base[split].yes_share:.1%} &rarr; '
        f'{aligned[split].yes_share:.1%}</td><td class="num">{base[split].num}</td></tr>'
        for split in base
    )
    return (
        "<section>\n<h2>Is there a red circle?</h2>\n"
        '<p class="muted">Half of these questions ask for what is there, half for what is not. Right answers '
        'would say yes to 50 %.</p>\n<div class="card"><table><tr><th>questions</th><td class="num">accuracy'
        f'</td><td class="num">yes</td><td class="num">number</td></tr>{rows}</table></div>\n</section>'
    )


# --- pictures -----------------------------------------------------------------------------------------------


def _pictures(comparison: ExamComparison) -> str:
    change = comparison.differences("score").tolist()
    ranked = sorted(range(len(change)), key=lambda index: (-change[index], index))
    num = min(_PER_GROUP, max(len(ranked) // 3, 1))
    start = (len(ranked) - num) // 2
    fell = change[ranked[-1]] < 0
    groups = (
        ("Largest gains", "The pictures whose score rose most.", ranked[:num]),
        ("Typical", "The pictures around the median change.", ranked[start : start + num]),
        (
            "Largest losses" if fell else "Smallest gains",
            "The worst there are." if fell else "No picture got worse; these gained least.",
            ranked[: -num - 1 : -1],
        ),
    )
    listed = "\n".join(
        f'<h3>{title}</h3><p class="small muted">{text}</p><ul class="pictures">'
        f"{''.join(_pair(comparison, index) for index in chosen)}</ul>"
        for title, text, chosen in groups
    )
    bars = sorted_bars(change, y_label="Change of score per picture")
    return (
        "<section>\n<h2>Held-out pictures, both descriptions</h2>\n"
        '<p class="muted">Not a selection of the best: first every picture as a bar, then the two ends and '
        f'the middle of that order.</p>\n<div class="card">{bars}<p class="small muted under">'
        f"Change of score, one bar per picture, sorted.</p></div>\n{listed}\n</section>"
    )


def _pair(comparison: ExamComparison, index: int) -> str:
    picture = comparison.exam.pictures[index]
    there = escape(", ".join(group.words() for group in picture.groups), quote=True)
    sides = "".join(
        f'<p class="small"><strong>{name}</strong> <span class="num">{judged[index].score:.2f}</span><br>'
        f"{escape(side.descriptions[index])}<br>{_remarks(judged[index])}</p>"
        for name, side, judged in zip(
            ("base", "aligned"), (comparison.base, comparison.tuned), comparison.judgements(), strict=True
        )
    )
    return (
        f'<li class="card"><div class="pair"><figure><img alt="{there}" width="64" height="64" '
        f'src="data:image/png;base64,{png_base64(picture.image())}"><figcaption>{there}</figcaption></figure>'
        f"<div>{sides}</div></div></li>"
    )


def _remarks(judged: Judgement) -> str:
    remarks = [
        (judged.hallucinated, "not there"),
        (judged.present - judged.recalled, "left out"),
        (judged.miscounted, "miscounted"),
    ]
    said = ", ".join(f"{number} {what}" for number, what in remarks if number)
    return f'<span class="wrong">{said}</span>' if said else '<span class="muted">all right</span>'


# --- curves -------------------------------------------------------------------------------------------------


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    def points(name: str) -> list[tuple[float, float]]:
        return [(float(record["step"]), float(record[name])) for record in records if name in record]

    accuracy = points("implicit_accuracy") or points("accuracy")
    rewards = [
        Line("chosen", points("reward_chosen"), "a"),
        Line("rejected", points("reward_rejected"), "b"),
    ]
    return curves_section(
        (
            (
                "Loss",
                "Falls as chosen and rejected part.",
                curve([Line("loss", points("loss"))], y_label="loss"),
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
                "Implicit rewards",
                '<span class="key"></span>chosen<span class="key b"></span>rejected: beta times log-ratio.',
                curve(rewards, y_label="implicit reward", rule=(0.0, "base")),
            ),
            (
                "Gradient norm",
                "Before clipping.",
                curve([Line("gradient norm", points("grad_norm"))], y_label="gradient norm"),
            ),
        )
    )


def _judge() -> str:
    return (
        "<section>\n<h2>How answers are judged</h2>\n"
        "<p>No model judges here. The program that painted a picture knows what is on it, and a grammar "
        "reads the descriptions. One <strong>hallucinates</strong> if it names a colour and shape that is "
        "not there, in whatever number; the share of such descriptions is CHAIR<sub>s</sub>, the share of "
        "such names CHAIR<sub>i</sub>. <strong>Recall</strong> guards against saying less.</p>\n"
        '<p class="muted">Pictures are held out by combination of kinds: neither the base\'s training nor '
        "any preference pair shows them.</p>\n</section>"
    )
