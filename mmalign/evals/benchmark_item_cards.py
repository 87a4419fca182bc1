"""Items on the page of a benchmark: what was asked, what it was about, what every model made of it."""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmalign.errors import ConfigError, MissingExtraError, RowError
from mmalign.evals.adopted_pictures import is_sound
from mmalign.evals.answering import clip_frames, is_clip
from mmalign.evals.number_texts import number_text
from mmalign.evals.report_page import scroll_table
from mmalign.evals.sound_previews import PLAYED, playable
from mmalign.evals.thumbnails import priority, thumbnail

__all__ = ["item_cards"]

_THUMBNAIL_BYTES = 12_000_000
_LONGEST_ANSWER = 1200

Record = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def _judged_by(record: Record, rows: Rows) -> tuple[str, int] | None:
    """(Metric by which items are put in order, 1 where more is better else -1); None where there is none."""
    names = [model["name"] for model in record["models"]]
    for metric in record["models"][0]["metrics"]:
        name = metric["name"]
        shared = any(
            all(row["models"][model]["values"].get(name) is not None for model in names) for row in rows
        )
        if metric["higher_is_better"] is not None and shared:
            return name, 1 if metric["higher_is_better"] else -1
    return None


def _gains(record: Record, rows: Rows, judged: tuple[str, int] | None) -> list[float | None]:
    """By how much the last model is better than the first; of one model alone, its own value."""
    if judged is None:
        return [None] * len(rows)
    name, sign = judged
    first, last = record["models"][0]["name"], record["models"][-1]["name"]
    gains: list[float | None] = []
    for row in rows:
        before, after = (row["models"][model]["values"].get(name) for model in (first, last))
        known = before is not None and after is not None
        gains.append(sign * (after - (before if first != last else 0.0)) if known else None)
    return gains


def item_cards(record: Record, rows: Rows, max_items: int) -> str:
    """The section of items as HTML; "" where there are no answers to show.

    Args:
        record: of the run.
        rows: as `item_rows` makes them.
        max_items: shown at most; those that differ most come first.
    """
    if not rows or not any(row["models"][m["name"]]["answers"] for row in rows for m in record["models"]):
        return ""  # results of an official script: there are no answers to show
    judged = _judged_by(record, rows)
    gains = _gains(record, rows, judged)
    order = list(priority([row["id"] for row in rows], gains))[:max_items]
    pictures = _Pictures(_THUMBNAIL_BYTES)
    cards = "\n".join(_item(rows[place], record, gains[place], pictures) for place in sorted(order))
    left = len(rows) - len(order)
    said = f"{len(order)} of {len(rows)} items; items.jsonl holds all." if left else f"{len(rows)} items."
    by = "" if judged is None else f" Gains are of {judged[0]}."
    several = len(record["models"]) > 1
    orders = [("item", "as asked"), ("gain", "gains first"), ("loss", "losses first")]
    if not several:
        orders[1:] = [("gain", "best first"), ("loss", "worst first")]
    options = "".join(f'<option value="{value}">{text}</option>' for value, text in orders)
    return (
        f'<section id="items">\n<h2>Items</h2>\n<p class="muted">{escape(said + by)}</p>\n'
        '<form class="tools"><label class="wide">Search in questions and answers'
        '<input type="search" id="search" autocomplete="off"></label>'
        f'<label>Order<select id="order">{options}</select></label></form>\n'
        f'<p id="status" role="status" class="muted small">{len(order)} shown</p>\n'
        f'<ul class="pictures" id="grid">\n{cards}\n</ul>\n</section>'
    )


class _Pictures:
    """Thumbnails, and clips and sounds to play, as HTML while they fit."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def html(self, media: str, caption: str) -> str:
        """A figure; in words where the picture cannot be shown."""
        said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        played = ""
        try:
            path = _shown(media)
            small = thumbnail(path) if self._left > 0 else None
            if small is not None and is_sound(media):
                played = self._player(media, caption)
            elif small is not None and path == media and media.lower().endswith(_PLAYABLE):
                played = self._film(media, caption)
        except (RowError, ConfigError, MissingExtraError):
            return f'<figure><div class="absent">cannot be read: {escape(media)}</div>{said}</figure>'
        if small is None:
            return f'<figure><div class="absent">{escape(media)}</div>{said}</figure>'
        self._left -= len(small)
        text = base64.b64encode(small).decode("ascii")
        alt = escape(caption or "what is asked about")
        image = f'<img alt="{alt}" loading="lazy" src="data:image/webp;base64,{text}">'
        return f"<figure>{image}{played}{said}</figure>"

    def _player(self, media: str, caption: str) -> str:
        """What plays a sound."""
        data = playable(media)
        self._left -= len(data)
        text = base64.b64encode(data).decode("ascii")
        label = escape(f"sound of {caption}" if caption else "the reference")
        source = f"data:{PLAYED};base64,{text}"
        return f'<audio controls preload="none" aria-label="{label}" src="{source}"></audio>'

    def _film(self, media: str, caption: str) -> str:
        """What plays a clip, inside of the page while it fits; else a link beside the page's own place."""
        label = escape(f"clip of {caption}" if caption else "the clip")
        path = Path(media)
        if path.stat().st_size > self._left:
            return f'<a href="{escape(path.resolve().as_uri())}">{label}</a>'
        data = path.read_bytes()
        self._left -= len(data)
        text = base64.b64encode(data).decode("ascii")
        kind = "webm" if path.suffix.lower() == ".webm" else "mp4"
        return (
            f'<video controls loop muted playsinline preload="metadata" aria-label="{label}" '
            f'src="data:video/{kind};base64,{text}"></video>'
        )


_PLAYABLE = (".mp4", ".m4v", ".webm")
"""Clips that every browser plays."""


def _shown(media: str) -> str | Path:
    """The picture or clip itself; of a clip whose frames lie beside it the middle one."""
    if not is_clip(media) or not Path(media).with_suffix("").is_dir():
        return media
    frames = clip_frames(Path(media))
    return frames[len(frames) // 2]


def _item(row: Record, record: Record, gain: float | None, pictures: _Pictures) -> str:
    names = [model["name"] for model in record["models"]]
    shown = [pictures.html(media, "") for media in row["media"][:1]]
    for name in names:
        answers = row["models"][name]["answers"]
        media = [picture for answer in answers for picture in answer.get("media", [])]
        if media:
            several = f" (1 of {len(media)})" if len(media) > 1 else ""
            shown.append(pictures.html(media[0], f"{name}{several}"))
    told = "".join(_told(name, row["models"][name]["answers"]) for name in names)
    where = " &middot; ".join(escape(text) for text in (row["id"], row["group"]) if text)
    mark = "" if gain is None or not math.isfinite(gain) else f' data-gain="{gain!r}"'
    return (
        f'<li class="card"{mark}><p class="prompt">{escape(row["prompt"])}</p>'
        f'<p class="where muted small">{where}</p>'
        + (f'<div class="pair">{"".join(shown)}</div>' if shown else "")
        + (f"<dl>{told}</dl>" if told else "")
        + _values(row, names)
        + "</li>"
    )


def _told(name: str, answers: Rows) -> str:
    """What a model said, or why it said nothing; "" where it painted."""
    said = [_said(answer) for answer in answers if "text" in answer or "error" in answer]
    return f"<dt>{escape(name)}</dt><dd>{'<br>'.join(said)}</dd>" if said else ""


def _said(answer: Record) -> str:
    if "error" in answer:
        return f'<span class="wrong">{escape(answer["error"])}</span>'
    text = answer.get("text", "")
    return escape(text if len(text) <= _LONGEST_ANSWER else f"{text[:_LONGEST_ANSWER]} [...]")


def _values(row: Record, names: Sequence[str]) -> str:
    """The item's parts of metrics, a row each."""
    titles = list(dict.fromkeys(title for name in names for title in row["models"][name]["values"]))
    # What an item is to a part (`random/accuracy`) it is to the whole.
    titles = [title for title in titles if title.rpartition("/")[2] not in titles or "/" not in title]
    if not titles:
        return ""
    rows = [
        [escape(title), *(escape(_number(row["models"][name]["values"].get(title))) for name in names)]
        for title in titles
    ]
    return scroll_table("Values", ["", *map(escape, names)], rows)


def _number(value: float | None) -> str:
    return "none" if value is None else number_text(value)
