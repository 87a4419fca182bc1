"""Rows that were made, written as dialogues with where they come from in columns of their own.

`rows.jsonl` holds TRL's conversational columns (`prompt`, `chosen`, `rejected`, `images`); media lie beside
it, named by their content. `card.yaml` says how the rows were made.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.batch import ContentItem, Media, Message, PreferenceRow
from mmalign.data.dialogues.media import video_frames
from mmalign.data.media import image_ending, read_media
from mmalign.data.pair_making.output import MadeFiles, Provenance, write_rows

__all__ = ["MadeAnswer", "MadePair", "messages_of", "png", "write_pairs", "write_records"]

_MAX_BYTES = 2**40
"""Media were checked when they were read; copying has no limit of its own."""


@dataclass(frozen=True)
class MadePair:
    """One pair.

    Args:
        row: whose prompt and media it has; a multi-image recipe gives a row of its own.
        chosen: the better answer.
        rejected: the worse one.
        name: tells pairs of one row apart.
        columns: further columns: scores, severities, spans, what was drawn.
        rejected_images: seen beside the rejected answer instead of the row's.
        rejected_videos: the same of videos.
    """

    row: PreferenceRow
    chosen: str
    rejected: str
    name: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    rejected_images: tuple[bytes | str, ...] | None = None
    rejected_videos: tuple[Media, ...] | None = None


@dataclass(frozen=True)
class MadeAnswer:
    """One answer to imitate.

    Args:
        row: whose prompt and media it has.
        answer: what is said.
        name: tells answers of one row apart.
        columns: further columns.
    """

    row: PreferenceRow
    answer: str
    name: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


def messages_of(row: PreferenceRow) -> tuple[Message, ...]:
    """The dialogue of a row; one without messages shows its media, then its prompt."""
    if row.messages:
        return row.messages
    media = (*(ContentItem("image"),) * len(row.images), *(ContentItem("video"),) * len(row.videos))
    if any(f"<{item.type}>" in row.prompt for item in media):
        media = ()  # tags in the words say where
    return (Message("user", (*media, ContentItem("text", row.prompt))),)


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


class _Files(MadeFiles):
    """Pictures and videos of rows in the output folder."""

    def image(self, value: bytes | str) -> str:
        data = read_media(value, where=str(value)[:80], max_bytes=_MAX_BYTES)
        return self.put("images", data, image_ending(data))

    def video(self, value: Media) -> Any:
        frames = video_frames(value, where=str(value)[:80])
        if frames:
            return [self.image(frame) for frame in frames]
        if isinstance(value, bytes):
            return self.put("videos", value, ".mp4")
        path = Path(str(value))
        return self.put("videos", path.read_bytes(), path.suffix)


def _turn(message: Message) -> dict[str, Any]:
    content = [
        {"type": item.type, "text": item.text if item.type == "text" else None} for item in message.content
    ]
    return {"role": message.role, "content": content}


def _answer(text: str) -> list[dict[str, Any]]:
    return [_turn(Message("assistant", (ContentItem("text", text),)))]


def _record(files: _Files, made: MadePair | MadeAnswer, provenance: Provenance) -> dict[str, Any]:
    row = made.row
    record: dict[str, Any] = {"id": "-".join(part for part in (row.id, made.name) if part)}
    record["prompt"] = [_turn(message) for message in messages_of(row)]
    if isinstance(made, MadeAnswer):
        record["completion"] = _answer(made.answer)
    else:
        record |= {"chosen": _answer(made.chosen), "rejected": _answer(made.rejected)}
    if row.images:
        record["images"] = [files.image(image) for image in row.images]
    if isinstance(made, MadePair) and made.rejected_images is not None:
        record["rejected_images"] = [files.image(image) for image in made.rejected_images]
    if row.videos:
        record["videos"] = [files.video(video) for video in row.videos]
    if isinstance(made, MadePair) and made.rejected_videos is not None:
        record["rejected_videos"] = [files.video(video) for video in made.rejected_videos]
    return record | dict(made.columns) | provenance.columns(row.id)


def write_pairs(
    folder: str | Path,
    pairs: Iterable[MadePair | MadeAnswer],
    provenance: Provenance,
    counts: Mapping[str, int],
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write rows, media and card; returns `rows.jsonl`, which appears when all of it is there.

    Args:
        folder: where; media that are there already are not written again.
        pairs: or single answers, in order.
        provenance: goes into every row and, in full, into the card.
        counts: of what was made and left out, for the card.
        facts: what else the card says.
    """
    folder = Path(folder)
    files = _Files(folder)
    return write_rows(folder, (_record(files, pair, provenance) for pair in pairs), provenance, counts, facts)


def write_records(
    folder: str | Path,
    records: Sequence[tuple[PreferenceRow, Mapping[str, Any]]],
    provenance: Provenance,
    counts: Mapping[str, int],
) -> Path:
    """Rows in another layout: their own columns beside `images` and provenance; returns `rows.jsonl`."""
    folder = Path(folder)
    files = _Files(folder)
    made = (
        {**columns, "images": [files.image(image) for image in row.images], **provenance.columns(row.id)}
        for row, columns in records
    )
    return write_rows(folder, made, provenance, counts)
