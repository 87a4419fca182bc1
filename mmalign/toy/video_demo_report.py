"""The report of `mmalign demo video`: moving clips, frame strips, and how both models are judged."""

from html import escape

from torch import Tensor

from mmalign.toy.paired_report import headline, held_out_groups, paired_page, said_of
from mmalign.toy.report import Report, judge_section, what_section
from mmalign.toy.video_comparison import AXES, MotionComparison, moving, strip
from mmalign.toy.video_reward import Score

__all__ = ["render_motion_report"]

_CARDS = ("direction", "identity", "motion")


def render_motion_report(report: Report[MotionComparison]) -> str:
    """The page as HTML text."""
    comparison = report.comparison
    groups = held_out_groups(comparison, _figure, thing="caption")
    return paired_page(
        report,
        "mmalign demo video: base against aligned",
        [_headline(comparison), _what(report), _motion(comparison), groups],
        judge=_judge(),
        real="Wan",
    )


def _headline(comparison: MotionComparison) -> str:
    said = said_of(
        comparison.gain("direction"),
        more="The aligned model goes where it is told more often than its base",
        less="The aligned model goes where it is told less often than its base",
        neither="No difference in direction that these captions can show",
    )
    axes = [(axis, title.capitalize(), meaning) for axis, title, meaning in AXES if axis in _CARDS]
    remark = " by total reward; ties count half. Both models start from the same noise."
    return headline(comparison, said, axes, world="video", things="captions", remark=remark)


def _what(report: Report[MotionComparison]) -> str:
    return what_section(
        f"A small model with the structure of Wan was aligned by {escape(report.settings['method'])} on "
        f"{escape(report.settings['preference pairs'])} pairs of clips whose chosen side shows what its "
        "caption says, training LoRA weights only, through the same code that trains Wan. Then base and "
        "aligned made clips of captions that neither had ever seen, from the same noise, and an exact reward "
        "judged both."
    )


def _motion(comparison: MotionComparison) -> str:
    """Whether the gain was bought with stillness, as judges of whole clips reward."""
    (before, after), gain = comparison.means("pixels"), comparison.gain("pixels")
    said = said_of(
        gain,
        more="The aligned model moves more than its base.",
        less="The aligned model moves less than its base: part of the gain may be calm.",
        neither="The amount of motion did not change by more than these captions can show.",
    )
    return (
        '<section>\n<h2>Did it keep moving?</h2>\n<p class="muted">Clips can look better because less '
        f'happens in them, so motion stands beside every gain here.</p><div class="card"><p>{said}</p>'
        f'<p class="values num">{before:.3f} &rarr; {after:.3f} pixels per frame</p>'
        f'<p class="small muted num">{gain.value:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}; '
        "0.9 is slow, 1.6 is quick</p></div>\n</section>"
    )


def _figure(prompt: str, name: str, clip: Tensor, score: Score) -> str:
    told = ", ".join(
        "right way" if segment.right_way else '<span class="wrong">wrong way</span>'
        for segment in score.segments
    )
    return (
        f'<figure><img alt="moving clip of {prompt}, made by the {name} model" width="32" height="32" '
        f'src="data:image/webp;base64,{moving(clip)}">'
        f'<img class="strip" alt="five frames of it" width="176" height="32" '
        f'style="aspect-ratio:5.5;margin-top:4px" src="data:image/png;base64,{strip(clip)}">'
        f'<figcaption>{name} <strong class="num">{score.total:.2f}</strong>, '
        f"{score.pixels:.2f} px per frame<br>{told}</figcaption></figure>"
    )


def _judge() -> str:
    return judge_section(
        "How the exact reward works",
        "What differs from a frame's border is the shape; its centre is followed from frame to frame. "
        "<strong>Direction</strong> is the cosine between the way gone and the way asked for, in each half "
        "of the clip; <strong>smoothness</strong> the share of steps that neither leap nor jerk; "
        "<strong>identity</strong> the share of frames in which shape and colour are the caption's; "
        "<strong>motion</strong> the speed against the caption's. The total is their mean, direction "
        "counting twice. What it says of true clips, of the same clips backwards, still and shuffled, and of "
        "those that the autoencoder has seen: docs/video-world.md.",
        "Captions are held out by colour, shape and directions together: no caption of the base's training "
        "or of a preference pair names these combinations. Clips that go another way than their caption "
        "says, such as rejected ones, may show them.",
    )
