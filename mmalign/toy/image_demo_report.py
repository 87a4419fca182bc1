"""The report of `mmalign demo images`: pictures of both models, and the exact reward that judges them."""

from html import escape

from mmalign.toy.comparison import Comparison, Interval
from mmalign.toy.image_reward import Score
from mmalign.toy.report import (
    Report,
    axis_card,
    denoising_curves,
    footer,
    headline_card,
    judge_section,
    next_section,
    png_base64,
    ranked_groups,
    render_page,
    tables_section,
    verdict_section,
    what_section,
)

__all__ = ["render_report"]

_AXES: tuple[tuple[str, str, str], ...] = (
    ("total", "Total reward", "faithfulness &times; (1 + style) / 2"),
    ("faithfulness", "Faithfulness", "share of the caption's facts that hold"),
    ("style", "Style", "whether a dark frame surrounds the picture; the base paints one rarely"),
)


def render_report(report: Report[Comparison]) -> str:
    """The page as HTML text."""
    return render_page(
        "mmalign demo: base against aligned",
        [
            *(part(report) for part in (_headline, _what, _pictures, denoising_curves)),
            verdict_section(report.verdict),
            tables_section(report.settings, report.seconds),
            _reward(),
            next_section("Next: real SDXL", report.commands),
            footer(report.versions),
        ],
    )


def _said(interval: Interval) -> str:
    """The headline, no stronger than the interval allows."""
    if interval.low > 0.5:
        return "The aligned model beats its base"
    if interval.high < 0.5:
        return "The aligned model is worse than its base"
    return "No difference that these prompts can show"


def _headline(report: Report[Comparison]) -> str:
    comparison = report.comparison
    rate = comparison.win_rate()
    remark = "; ties count half. Both models start from the same noise."
    axes = "".join(
        axis_card(title, meaning, comparison.means(axis), comparison.gain(axis))
        for axis, title, meaning in _AXES
    )
    return (
        '<header>\n<p class="eyebrow">mmalign demo &middot; toy world of images</p>\n'
        f"<h1>{_said(rate)}</h1>\n"
        f"{headline_card(rate, comparison.outcomes(), things='prompts', remark=remark)}"
        f'<div class="axes">{axes}</div>\n</header>'
    )


def _what(report: Report[Comparison]) -> str:
    return what_section(
        "A small model with the structure of SDXL was aligned by Diffusion-DPO on "
        f"{escape(report.settings['preference pairs'])} preference pairs whose chosen picture follows its "
        "caption inside a dark frame, training LoRA weights only, through the same code that trains SDXL. "
        "Then base and aligned painted captions that neither had ever seen, from the same noise, and an "
        "exact reward judged both."
    )


def _pictures(report: Report[Comparison]) -> str:
    comparison = report.comparison
    return ranked_groups(
        comparison.differences().tolist(),
        lambda index: _pair(comparison, index),
        title="Held-out prompts, base beside aligned",
        thing="prompt",
        value="total reward",
        harm="The worst there are: where alignment did harm, or nothing.",
    )


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


def _reward() -> str:
    return judge_section(
        "How the exact reward works",
        "The reward segments the picture by colour, finds connected regions, tells circle, square, triangle "
        "and cross apart by overlap with rendered templates, counts them and compares their centres. "
        "<strong>Faithfulness</strong> is the share of the caption's facts that hold: each colour is there, "
        "has the right shape and number, lies on the right side, and nothing else is painted. "
        "<strong>Style</strong> is 1 for a dark frame around the picture and 0 for none. The total, "
        "faithfulness &times; (1 + style) / 2, gives nothing for style where the caption is not followed.",
        "Prompts are held out by combination of colours, shapes and relation: neither the base's training "
        "nor any preference pair contains them.",
    )
