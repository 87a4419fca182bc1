"""Rows written into a folder: `rows.jsonl`, and the media they use, each stored once and named by content."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.audio_codecs import audio_ending
from mmalign.data.config import DataConfig
from mmalign.data.curation import candidate_key
from mmalign.data.layouts import ALIASES
from mmalign.data.media import image_ending, read_media
from mmalign.data.video_stills import check_clip_files, clip_ending, copy_clip

__all__ = ["row_record", "stored_candidate", "write_rows"]


def stored_candidate(candidate: Candidate, where: str, config: DataConfig, folder: Path) -> Candidate:
    """The candidate with its file in the folder and the path in place of the bytes.

    Args:
        candidate: with a path, or encoded bytes.
        where: file, row and candidate, for messages.
        config: with the limits of media.
        folder: of the data set that is written.

    Raises:
        RowError: the file cannot be read.
    """
    if candidate.video is not None:
        return replace(candidate, video=_put_clip(folder, candidate.video, where, config.video.max_bytes))
    if candidate.audio is not None:
        sound = read_media(candidate.audio, where=where, max_bytes=config.audio.max_bytes, kind="audio")
        name = f"audio/{candidate_key(Candidate(audio=sound))}{audio_ending(sound)}"
        return replace(candidate, audio=_put(folder, name, sound))
    if candidate.image is None:
        return candidate
    data = read_media(candidate.image, where=where, max_bytes=config.images.max_bytes)
    name = f"images/{candidate_key(Candidate(image=data))}{image_ending(data)}"
    return replace(candidate, image=_put(folder, name, data))


def _put(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return name


def _put_clip(folder: Path, clip: bytes | str, where: str, max_bytes: int) -> str:
    """Copy a clip's file, or its folder of frames, without holding it in memory."""
    check_clip_files(clip, where=where, max_bytes=max_bytes)
    name = f"videos/{candidate_key(Candidate(video=clip))}{clip_ending(clip)}"
    if not (folder / name).exists():
        (folder / "videos").mkdir(exist_ok=True)
        copy_clip(clip, folder / name)
    return name


def write_rows(folder: Path, rows: Sequence[PreferenceRow]) -> None:
    """rows.jsonl, without the files that no row uses any more."""
    used: set[str] = set()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            files = [file for one in row.candidates for file in (one.image, one.audio, one.video)]
            files += row.images
            used.update(file for file in files if isinstance(file, str))
            file.write(json.dumps(row_record(row), ensure_ascii=False) + "\n")
    for path in (*folder.glob("images/*"), *folder.glob("audio/*"), *folder.glob("videos/*")):
        if f"{path.parent.name}/{path.name}" in used:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


_NAMES = frozenset(name for names in ALIASES.values() for name in names)


def row_record(row: PreferenceRow) -> dict[str, Any]:
    """A row as the readers understand it; extra columns that would be mistaken for others are renamed."""
    contents = [
        candidate.text or candidate.image or candidate.audio or candidate.video
        for candidate in row.candidates
    ]
    rewards = [candidate.reward for candidate in row.candidates]
    record: dict[str, Any] = {"id": row.id, "prompt": row.prompt}
    if row.kind == "pairs":
        record |= {"chosen": contents[0], "rejected": contents[1], "preference": row.preference}
        if None not in rewards:
            record |= {"score_chosen": rewards[0], "score_rejected": rewards[1]}
        own = [candidate.prompt for candidate in row.candidates]
        if own != [None, None]:
            first, second = (row.prompt if prompt is None else prompt for prompt in own)
            record |= {"prompt_chosen": first, "prompt_rejected": second}
        models = [candidate.model for candidate in row.candidates]
        if None not in models:
            record |= {"model_chosen": models[0], "model_rejected": models[1]}
    elif row.kind == "lists":
        record |= {"candidates": contents, "scores": list(row.relevance or ())}
    else:
        # Its score is no column of its own name: with one, the row would read as a ranked candidate.
        record |= {"completion": contents[0], "label": bool(row.desirable), "source_score": rewards[0]}
    if row.weight != 1.0:
        record["weight"] = row.weight
    if row.images:
        record["image"] = row.images[0]
    for name, value in row.extras.items():
        if not _is_plain(value):
            continue
        kept = name if name == "split" or name.lower() not in _NAMES else f"source_{name}"
        record.setdefault(kept, value)
    return record


def _is_plain(value: object) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    return value is None or isinstance(value, str | int | float | bool)
