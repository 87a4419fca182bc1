"""One self-contained HTML page with thumbnails of rows: what to look at before training on a data set."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.audio_preview import player
from mmalign.data.config import AudioLimits, ImageLimits, VideoLimits
from mmalign.data.dialogues.media import video_frames
from mmalign.data.media import decode_image, read_media
from mmalign.data.video_preview import moving_picture
from mmalign.errors import RowError
from mmalign.files import atomic_write

__all__ = ["write_preview"]

_SIDE = 256
"""Longer side of a thumbnail in pixels."""

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #2a8f4e; --bad: #c0392b; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
vertical-align: top; } .row { border-top: 1px solid var(--line); padding: 1rem 0; }
.prompt { font-weight: 600; overflow-wrap: anywhere; }
.facts { color: #888; font-size: .85rem; overflow-wrap: anywhere; }
.candidates { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: .5rem; }
figure { margin: 0; width: min(256px, 46%); } img { max-width: 100%; border-radius: 4px; border: 3px solid
var(--line); } .chosen img { border-color: var(--good); } .rejected img { border-color: var(--bad); }
figcaption { font-size: .85rem; } .problem { color: var(--bad); overflow-wrap: anywhere; font-size: .85rem; }
.verdict { font-weight: 600; } .shown { display: flex; flex-wrap: wrap; gap: .5rem; max-width: 60rem; }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; border: 3px solid var(--line); padding: .4rem; }
.chosen .answer { border-color: var(--good); } .rejected .answer { border-color: var(--bad); }
.dialogue figure { width: min(32rem, 96%); }
audio { width: 100%; margin-top: .3rem; } .wave { width: 100%; height: 64px; border: 3px solid var(--line);
border-radius: 4px; } .chosen .wave { border-color: var(--good); }
.rejected .wave { border-color: var(--bad); }
"""


@dataclass(frozen=True)
class _Limits:
    images: ImageLimits
    audio: AudioLimits
    video: VideoLimits


def _thumbnail(candidate: Candidate, where: str, bounds: _Limits) -> str:
    """An <img> element, a player, the words of an answer, or what is wrong with the medium."""
    limits = bounds.images
    if candidate.video is not None:
        return moving_picture(candidate.video, where, bounds.video)
    if candidate.audio is not None:
        return player(candidate.audio, where, bounds.audio)
    if candidate.image is None and candidate.text is not None:
        own = "".join(_picture(image, where, limits) for image in candidate.images or ())
        return f'{own}<div class="answer">{html.escape(candidate.text)}</div>'
    if candidate.image is None:
        return '<div class="problem">no image</div>'
    return _picture(candidate.image, where, limits)


def _picture(media: bytes | str, where: str, limits: ImageLimits) -> str:
    try:
        data = read_media(media, where=where, max_bytes=limits.max_bytes)
        image = decode_image(data, where=where, limits=limits, shorter_side=_SIDE).image
    except RowError as error:
        return f'<div class="problem">{html.escape(str(error))}</div>'
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=82)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{encoded}">'


def _labels(row: PreferenceRow) -> list[tuple[str, str]]:
    """(class, caption) of each candidate."""
    if row.kind == "pairs":
        if row.preference == 0.5:
            return [("tie", "tie"), ("tie", "tie")]
        share = "" if row.preference == 1.0 else f" ({row.preference:.2f})"
        return [("chosen", f"chosen{share}"), ("rejected", "rejected")]
    if row.kind == "lists":
        best = max(row.relevance or (0.0,))
        return [("chosen" if value == best else "", f"relevance {value:g}") for value in row.relevance or ()]
    return [("chosen", "liked") if row.desirable else ("rejected", "disliked")]


def _row(row: PreferenceRow, bounds: _Limits) -> str:
    figures = []
    for number, (candidate, (role, caption)) in enumerate(zip(row.candidates, _labels(row), strict=True)):
        facts = [caption]
        if candidate.reward is not None:
            facts.append(f"reward {candidate.reward:.4g}")
        if candidate.model:
            facts.append(candidate.model)
        picture = _thumbnail(candidate, f"{row.source} candidate {number}", bounds)
        text = html.escape(" · ".join(facts))
        figures.append(f'<figure class="{role}">{picture}<figcaption>{text}</figcaption></figure>')
    shown = _shown(row, bounds.images)
    prompt = row.prompt if len(row.prompt) <= 600 else f"{row.prompt[:600]} … ({len(row.prompt)} characters)"
    return (
        f'<div class="row"><div class="prompt">{html.escape(prompt)}</div>'
        f'<div class="facts">{html.escape(row.source)}</div>{shown}'
        f'<div class="candidates{" dialogue" if row.messages else ""}">{"".join(figures)}</div></div>'
    )


_MAX_FRAMES = 4
"""Frames of a video that the page shows."""


def _shown(row: PreferenceRow, limits: ImageLimits) -> str:
    """What a dialogue is about: its images, and frames or names of its videos."""
    parts = [_picture(image, f"{row.source} image {place}", limits) for place, image in enumerate(row.images)]
    for video in row.videos:
        try:
            frames = video_frames(video, where=f"{row.source} video")
        except RowError as error:
            parts.append(f'<div class="problem">{html.escape(str(error))}</div>')
            continue
        step = max(1, -(-len(frames) // _MAX_FRAMES))
        parts += [_picture(frame, f"{row.source} video", limits) for frame in frames[::step]]
        if not frames:
            name = "a video inside the row" if isinstance(video, bytes) else Path(str(video)).name
            parts.append(f'<div class="facts">{html.escape(name)}</div>')
    return f'<div class="shown">{"".join(parts)}</div>' if parts else ""


def write_preview(
    path: str | Path,
    rows: Sequence[PreferenceRow],
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    verdict: str,
    problems: Sequence[str],
    limits: ImageLimits,
    audio: AudioLimits | None = None,
    video: VideoLimits | None = None,
) -> Path:
    """Write the page. Returns its path.

    Args:
        path: file to write.
        rows: what to show.
        title: name of the data set.
        facts: (name, value) lines of the table on top.
        verdict: one sentence.
        problems: messages about unusable rows.
        limits: sizes beyond which an image is refused.
        audio: sounds that are refused.
        video: clips that are refused.
    """
    table = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts
    )
    listed = "".join(f'<p class="problem">{html.escape(problem)}</p>' for problem in problems)
    bounds = _Limits(limits, audio or AudioLimits(), video or VideoLimits())
    shown = "".join(_row(row, bounds) for row in rows)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        f'<p class="verdict">{html.escape(verdict)}</p><table>{table}</table>'
        f"{'<h2>Unusable rows</h2>' + listed if listed else ''}<h2>{len(rows)} "
        f"rows</h2>{shown}</body></html>\n"
    )
    # Half a surrogate pair cannot be written; the page shows a mark in its place.
    return atomic_write(path, page.encode(errors="replace"))
