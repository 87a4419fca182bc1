"""The report of `mmalign demo audio`: players and spectrograms of both models, and the reward that judges."""

import base64
from html import escape

from torch import Tensor

from mmalign.toy.audio_comparison import AXES, ClipComparison, spectrogram, wav_bytes
from mmalign.toy.audio_reward import Score
from mmalign.toy.comparison import Interval
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

__all__ = ["render_sound_report"]


def render_sound_report(report: Report[ClipComparison]) -> str:
    """The page as HTML text."""
    return render_page(
        "mmalign demo audio: base against aligned",
        [
            *(part(report) for part in (_headline, _what, _clips, denoising_curves)),
            verdict_section(report.verdict),
            tables_section(report.settings, report.seconds),
            _judge(),
            next_section("Next: real Tango", report.commands),
            footer(report.versions),
        ],
    )


def _said(order: Interval) -> str:
    """The headline, no stronger than the interval allows."""
    if order.low > 0:
        return "The aligned model keeps the order better than its base"
    if order.high < 0:
        return "The aligned model keeps the order worse than its base"
    return "No difference in order that these captions can show"


def _headline(report: Report[ClipComparison]) -> str:
    comparison = report.comparison
    remark = " by total reward; ties count half. Both models start from the same noise."
    card = headline_card(comparison.win_rate(), comparison.outcomes(), things="captions", remark=remark)
    axes = "".join(
        axis_card(title.capitalize(), meaning, comparison.means(axis), comparison.gain(axis))
        for axis, title, meaning in AXES
        if axis != "total"
    )
    return (
        '<header>\n<p class="eyebrow">mmalign demo &middot; toy world of sound</p>\n'
        f'<h1>{_said(comparison.gain("order"))}</h1>\n{card}<div class="axes">{axes}</div>\n</header>'
    )


def _what(report: Report[ClipComparison]) -> str:
    return what_section(
        "A small model with the structure of Tango was aligned by Diffusion-DPO, as Tango 2 was, on "
        f"{escape(report.settings['preference pairs'])} pairs of clips whose chosen side plays the events of "
        "its caption in its order, training LoRA weights only, through the same code that trains Tango. Then "
        "base and aligned played captions with orders of events that no caption in training had named, from "
        "the same noise, and an exact reward judged both."
    )


def _clips(report: Report[ClipComparison]) -> str:
    comparison = report.comparison
    return ranked_groups(
        comparison.differences().tolist(),
        lambda index: _pair(comparison, index),
        title="Held-out captions, base beside aligned",
        thing="caption",
        value="total reward",
        harm="The worst there are: where alignment did harm, or nothing.",
    )


def _pair(comparison: ClipComparison, index: int) -> str:
    prompt = escape(comparison.prompts[index], quote=True)
    sides = (
        ("base", comparison.base[index], comparison.base_scores[index]),
        ("aligned", comparison.aligned[index], comparison.aligned_scores[index]),
    )
    figures = "".join(_figure(prompt, name, wave, score) for name, wave, score in sides)
    return f'<li class="card"><p class="caption">{prompt}</p><div class="pair">{figures}</div></li>'


def _figure(prompt: str, name: str, wave: Tensor, score: Score) -> str:
    sound = base64.b64encode(wav_bytes(wave)).decode("ascii")
    right = score.heard == score.expected
    heard = escape(", ".join(score.heard)) or "nothing"
    told = f"heard: {heard}" if right else f'<span class="wrong">heard: {heard}</span>'
    return (
        f'<figure><img class="sound" alt="spectrogram of {prompt}, played by the {name} model" width="128" '
        f'height="64" src="data:image/png;base64,{png_base64(spectrogram(wave))}">'
        f'<audio controls preload="none" aria-label="{prompt}, {name}" '
        f'src="data:audio/wav;base64,{sound}"></audio>'
        f'<figcaption>{name} <strong class="num">{score.total:.2f}</strong><br>{told}</figcaption></figure>'
    )


def _judge() -> str:
    return judge_section(
        "How the exact reward works",
        "The reward cuts the clip where it is silent. A piece in which a narrow band carries most of the "
        "energy is a tone or a chirp, told apart by where that band lies and how fast it moves; any other "
        "piece is noise or clicks, told apart by the gaps in it. <strong>Presence</strong> is the share of "
        "events that caption and clip have in common; <strong>order</strong> is the longest common "
        "subsequence of both, as a share; the total is their mean. Clips rendered from their captions score "
        "1.",
        "Captions are held out by the order of their events: no caption of the base's training or of a "
        "preference pair names these orders. Clips that go wrong, such as rejected ones, may play them.",
    )
