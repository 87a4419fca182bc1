"""What reports share whose models made media of the same captions: the page, its headline, what they made."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, TypeVar

from mmalign.toy.comparison import Interval, Paired
from mmalign.toy.report import (
    Report,
    axis_card,
    denoising_curves,
    footer,
    headline_card,
    next_section,
    ranked_groups,
    render_page,
    tables_section,
    verdict_section,
)

__all__ = ["headline", "held_out_groups", "paired_page", "said_of"]

PairedT = TypeVar("PairedT", bound=Paired[Any, Any])


def paired_page(report: Report[PairedT], title: str, parts: Iterable[str], *, judge: str, real: str) -> str:
    """The page as HTML text.

    Args:
        report: of the demo.
        title: of the page.
        parts: sections of its own, the headline first.
        judge: the section on the exact reward.
        real: the model that the toy stands for.
    """
    return render_page(
        title,
        [
            *parts,
            denoising_curves(report),
            verdict_section(report.verdict),
            tables_section(report.settings, report.seconds),
            judge,
            next_section(f"Next: real {real}", report.commands),
            footer(report.versions),
        ],
    )


def said_of(found: Interval, *, more: str, less: str, neither: str, even: float = 0.0) -> str:
    """The one of three sentences that the interval allows; `even` is where nothing has changed."""
    if found.low > even:
        return more
    return less if found.high < even else neither


def headline(
    comparison: Paired[Any, Any],
    said: str,
    axes: Sequence[tuple[str, str, str]],
    *,
    world: str,
    things: str,
    remark: str,
) -> str:
    """The head of the page: a sentence, the win rate, a card per axis.

    Args:
        comparison: of both models.
        said: no stronger than the intervals allow.
        axes: name, title, meaning.
        world: what the toy world is of.
        things: what is compared, in the plural.
        remark: on the win rate.
    """
    card = headline_card(comparison.win_rate(), comparison.outcomes(), things=things, remark=remark)
    cards = "".join(
        axis_card(title, meaning, comparison.means(axis), comparison.gain(axis))
        for axis, title, meaning in axes
    )
    return (
        f'<header>\n<p class="eyebrow">mmalign demo &middot; toy world of {world}</p>\n'
        f'<h1>{said}</h1>\n{card}<div class="axes">{cards}</div>\n</header>'
    )


def held_out_groups(
    comparison: Paired[Any, Any], figure: Callable[[str, str, Any, Any], str], *, thing: str
) -> str:
    """What both models made, the largest gains and the worst harm first.

    Args:
        comparison: of both models.
        figure: HTML of (escaped caption, model's name, what it made, score).
        thing: what is compared, in the singular.
    """

    def pair(index: int) -> str:
        prompt = escape(comparison.prompts[index], quote=True)
        sides = (
            ("base", comparison.base[index], comparison.base_scores[index]),
            ("aligned", comparison.aligned[index], comparison.aligned_scores[index]),
        )
        figures = "".join(figure(prompt, *side) for side in sides)
        return f'<li class="card"><p class="caption">{prompt}</p><div class="pair">{figures}</div></li>'

    return ranked_groups(
        comparison.differences().tolist(),
        pair,
        title=f"Held-out {thing}s, base beside aligned",
        thing=thing,
        value="total reward",
        harm="The worst there are: where alignment did harm, or nothing.",
    )
