"""The report of `mmalign demo audio`: players and spectrograms of both models, and the reward that judges."""

import base64
from html import escape

from torch import Tensor

from mmalign.toy.audio_comparison import AXES, ClipComparison, spectrogram, wav_bytes
from mmalign.toy.audio_reward import Score
from mmalign.toy.paired_report import headline, held_out_groups, paired_page, said_of
from mmalign.toy.report import Report, judge_section, png_base64, what_section

__all__ = ["render_sound_report"]


def render_sound_report(report: Report[ClipComparison]) -> str:
    """The page as HTML text."""
    groups = held_out_groups(report.comparison, _figure, thing="caption")
    return paired_page(
        report,
        "mmalign demo audio: base against aligned",
        [_headline(report.comparison), _what(report), groups],
        judge=_judge(),
        real="Tango",
    )


def _headline(comparison: ClipComparison) -> str:
    said = said_of(
        comparison.gain("order"),
        more="The aligned model keeps the order better than its base",
        less="The aligned model keeps the order worse than its base",
        neither="No difference in order that these captions can show",
    )
    axes = [(axis, title.capitalize(), meaning) for axis, title, meaning in AXES if axis != "total"]
    remark = " by total reward; ties count half. Both models start from the same noise."
    return headline(comparison, said, axes, world="sound", things="captions", remark=remark)


def _what(report: Report[ClipComparison]) -> str:
    return what_section(
        "A small model with the structure of Tango was aligned by Diffusion-DPO, as Tango 2 was, on "
        f"{escape(report.settings['preference pairs'])} pairs of clips whose chosen side plays the events of "
        "its caption in its order, training LoRA weights only, through the same code that trains Tango. Then "
        "base and aligned played captions with orders of events that no caption in training had named, from "
        "the same noise, and an exact reward judged both."
    )


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
