"""The report of `mmalign demo vlm`: both descriptions of every picture, and what in them is not there."""

from html import escape

from mmalign.toy.charts import Line, curve
from mmalign.toy.dialogue_answers import Judgement
from mmalign.toy.dialogue_exam import Axis, ExamComparison
from mmalign.toy.report import (
    Report,
    accuracy_chart,
    axis_card,
    chart,
    curves_section,
    footer,
    headline_card,
    judge_section,
    next_section,
    png_base64,
    points,
    ranked_groups,
    render_page,
    signed,
    tables_section,
    verdict_section,
    what_section,
)

__all__ = ["render_dialogue_report"]

_AXES: tuple[tuple[Axis, str, str], ...] = (
    (
        "hallucinated",
        "Hallucination",
        "share of descriptions that name what is not there; low is good",
    ),
    ("recall", "Recall", "share of what is there that a description names"),
    ("score", "Score", "harmonic mean of recall and of the share of named things that are there"),
)


def render_dialogue_report(report: Report[ExamComparison]) -> str:
    """The page as HTML text."""
    return render_page(
        "mmalign demo vlm: base against aligned",
        [
            _headline(report.comparison),
            _what(report),
            _questions(report.comparison),
            _pictures(report.comparison),
            _curves(report),
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
    remark = " by score; ties count half."
    card = headline_card(comparison.win_rate(), comparison.outcomes(), things="pictures", remark=remark)
    axes = "".join(
        axis_card(title, meaning, comparison.means(axis), comparison.gain(axis))
        for axis, title, meaning in _AXES
    )
    return (
        '<header>\n<p class="eyebrow">mmalign demo &middot; toy world of dialogues</p>\n'
        f"<h1>{_said(comparison)}</h1>\n{card}"
        f'<div class="axes">{axes}</div>\n{_lengths(comparison)}</header>'
    )


def _lengths(comparison: ExamComparison) -> str:
    (before, after), change = comparison.means("words"), comparison.gain("words")
    objects = [rates.hallucinated_objects for rates in comparison.rates()]
    return (
        f'<p class="small muted num under">Words per description {before:.1f} &rarr; {after:.1f} (change '
        f"{signed(change.value)}, {signed(change.low)} to {signed(change.high)}). Of all things named, "
        f"{objects[0]:.1%} &rarr; {objects[1]:.1%} are not there.</p>\n"
    )


def _what(report: Report[ExamComparison]) -> str:
    settings = report.settings
    return what_section(
        "A small model with the structure of LLaVA sees well but says what usually is there: in what it "
        "read, a red circle comes with a blue square even where there is none. It was aligned by "
        f"{escape(settings['method'])} on {escape(settings['preference pairs'])} pairs of answers, training "
        "LoRA weights only, through the same code that trains LLaVA. Every pair has a twin, the same two "
        "answers about another picture the other way round, so that only looking tells which is better."
    )


def _questions(comparison: ExamComparison) -> str:
    base, aligned = comparison.exists()
    meaning = {
        "random": "about any kind that is not there",
        "adversarial": "about a companion that is missing",
    }
    rows = "".join(
        f'<tr><th>{split}: {meaning[split]}</th><td class="num">{base[split].accuracy:.1%} &rarr; '
        f"{aligned[split].accuracy:.1%}{_change(comparison, split)}</td>"
        f'<td class="num">{base[split].yes_share:.1%} &rarr; '
        f'{aligned[split].yes_share:.1%}</td><td class="num">{base[split].num}</td></tr>'
        for split in base
    )
    return (
        "<section>\n<h2>Is there a red circle?</h2>\n"
        '<p class="muted">Half of these questions ask for what is there, half for what is not. Right answers '
        'would say yes to 50 %.</p>\n<div class="card"><table><tr><th>questions</th><td class="num">accuracy'
        f'</td><td class="num">yes</td><td class="num">number</td></tr>{rows}</table>'
        '<p class="small muted under">Change of accuracy: 95 % interval, paired over pictures.</p></div>'
        "\n</section>"
    )


def _change(comparison: ExamComparison, split: str) -> str:
    """In accuracy with its interval; nothing where one picture shows no spread."""
    if len(comparison.exists_differences(split)) < 2:
        return ""
    change = comparison.exists_gain(split)
    said = f"{signed(change.value)}, {signed(change.low)} to {signed(change.high)}"
    return f'<br><span class="small muted">{said}</span>'


# --- pictures -----------------------------------------------------------------------------------------------


def _pictures(comparison: ExamComparison) -> str:
    return ranked_groups(
        comparison.differences("score").tolist(),
        lambda index: _pair(comparison, index),
        title="Held-out pictures, both descriptions",
        thing="picture",
        value="score",
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


def _curves(report: Report[ExamComparison]) -> str:
    records = report.records
    rewards = [
        Line("chosen", points(records, "reward_chosen"), "a"),
        Line("rejected", points(records, "reward_rejected"), "b"),
    ]
    return curves_section(
        (
            chart(records, "loss", "Loss", "Falls as chosen and rejected part."),
            accuracy_chart(records),
            (
                "Implicit rewards",
                '<span class="key"></span>chosen<span class="key b"></span>rejected: beta times log-ratio.',
                curve(rewards, y_label="implicit reward", rule=(0.0, "base")),
            ),
            chart(records, "grad_norm", "Gradient norm", "Before clipping."),
        )
    )


def _judge() -> str:
    return judge_section(
        "How answers are judged",
        "The program that painted a picture knows what is on it, and a grammar reads the descriptions. One "
        "<strong>hallucinates</strong> if it names a colour and shape that is not there, in whatever number; "
        "the share of such descriptions is CHAIR<sub>s</sub>, the share of such names CHAIR<sub>i</sub>. "
        "<strong>Recall</strong> guards against saying less.",
        "Pictures are held out by combination of kinds: neither the base's training nor any preference pair "
        "shows them.",
    )
