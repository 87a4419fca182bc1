"""The report of `mmalign demo images`: pictures of both models, and the exact reward that judges them."""

from html import escape

from PIL.Image import Image

from mmalign.toy.comparison import Comparison
from mmalign.toy.image_reward import Score
from mmalign.toy.paired_report import headline, held_out_groups, paired_page, said_of
from mmalign.toy.report import Report, judge_section, png_base64, what_section

__all__ = ["render_report"]

_AXES: tuple[tuple[str, str, str], ...] = (
    ("total", "Total reward", "faithfulness &times; (1 + style) / 2"),
    ("faithfulness", "Faithfulness", "share of the caption's facts that hold"),
    ("style", "Style", "whether a dark frame surrounds the picture; the base paints one rarely"),
)


def render_report(report: Report[Comparison]) -> str:
    """The page as HTML text."""
    groups = held_out_groups(report.comparison, _figure, thing="prompt")
    return paired_page(
        report,
        "mmalign demo: base against aligned",
        [_headline(report.comparison), _what(report), groups],
        judge=_reward(),
        real="SDXL",
    )


def _headline(comparison: Comparison) -> str:
    said = said_of(
        comparison.win_rate(),
        more="The aligned model beats its base",
        less="The aligned model is worse than its base",
        neither="No difference that these prompts can show",
        even=0.5,
    )
    remark = "; ties count half. Both models start from the same noise."
    return headline(comparison, said, _AXES, world="images", things="prompts", remark=remark)


def _what(report: Report[Comparison]) -> str:
    return what_section(
        "A small model with the structure of SDXL was aligned by Diffusion-DPO on "
        f"{escape(report.settings['preference pairs'])} preference pairs whose chosen picture follows its "
        "caption inside a dark frame, training LoRA weights only, through the same code that trains SDXL. "
        "Then base and aligned painted captions that neither had ever seen, from the same noise, and an "
        "exact reward judged both."
    )


def _figure(prompt: str, name: str, image: Image, score: Score) -> str:
    return (
        f'<figure><img alt="{prompt}, painted by the {name} model" width="64" height="64" '
        f'src="data:image/png;base64,{png_base64(image)}"><figcaption>{name} '
        f'<strong class="num">{score.total:.2f}</strong><br>{_facts(score)}</figcaption></figure>'
    )


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
