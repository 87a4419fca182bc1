"""Writing preference data: Pick-a-Pic or Audio-Alpaca parquet, JSON lines with files, folders; dialogues.

Everything is written aside and renamed, so that a half-written data set never looks like a whole one. Rows
that cannot be used are counted and left out.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from mmalign.batch import Candidate, PreferenceRow
from mmalign.data.audio_codecs import audio_ending
from mmalign.data.audio_writers import write_audio_alpaca
from mmalign.data.config import DataConfig
from mmalign.data.dialogues.facts import DialogueFacts
from mmalign.data.dialogues.writers import DialogueTarget, is_dialogue_target, write_dialogues
from mmalign.data.media import image_ending, read_media
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import RowReport, issue_of
from mmalign.data.segments import COLUMN
from mmalign.data.video_stills import check_clip_files, clip_ending, copy_clip
from mmalign.errors import CheckpointError, ConfigError, RowError, explain
from mmalign.files import atomic_directory

__all__ = ["Target", "convert", "write_jsonl", "write_pickapic"]

Target = Literal["pickapic", "audio-alpaca", "jsonl", "folders", "trl-jsonl", "ms-swift", "llama-factory"]

_GROUP_BYTES = 4 * 2**20
"""Size of a row group: reading one random row reads this much."""


def convert(config: DataConfig, output: str | Path, *, to: Target, force: bool = False) -> RowReport:
    """Write the rows of a data set in another layout.

    Args:
        config: what to read.
        output: parquet file (`pickapic`, `audio-alpaca`) or folder to write.
        to: the layout.
        force: replace what is there.

    Returns:
        Rows written, and rows left out by reason.

    Raises:
        ConfigError: `output` exists, or the rows do not fit the layout.
        CheckpointError: the disk refused.
    """
    output = Path(output)
    if output.exists() and not force:
        message = f"{output}: exists. Give another name, or --force to replace it."
        raise ConfigError(message)
    table = open_rows(config)
    dialogues = [part.match.layout.structure == "dialogue" for part in table.parts]
    if is_dialogue_target(to) or any(dialogues):
        if not (is_dialogue_target(to) and all(dialogues)):
            known = ", ".join(get_args(DialogueTarget))
            message = (
                f"data convert: got {'dialogues' if any(dialogues) else 'no dialogues'}, expected "
                f"{'dialogues' if is_dialogue_target(to) else 'pictures or texts'} for {to}. Layouts of "
                f"dialogues are {known}."
            )
            raise ConfigError(message)
        return _convert_dialogues(table, output, cast(DialogueTarget, to))
    _require_media(table, to)
    if to != "jsonl" and table.kind != "pairs":
        message = (
            f"data convert: got {table.kind} rows, expected pairs for {to}. Use --to jsonl, or make pairs "
            "of rankings with "
            "--lists pairs."
        )
        raise ConfigError(message)
    report = RowReport(read=table.report.read - table.report.kept, dropped=table.report.dropped.copy())
    report.bad.update(table.report.bad)
    rows = _usable(table, config, report)
    if to in ("pickapic", "audio-alpaca"):
        (write_pickapic if to == "pickapic" else write_audio_alpaca)(output, rows)
        return report
    with atomic_directory(output) as folder:
        (write_jsonl if to == "jsonl" else _write_folders)(folder, rows)
    return report


def _require_media(table: RowTable, to: Target) -> None:
    """Raise `ConfigError` where the layout cannot hold the table's kind of media."""
    if to != "jsonl" and "text" in table.media:
        message = (
            f"data convert: got texts, expected images for {to}. Texts stand in the rows themselves: use "
            "--to jsonl."
        )
        raise ConfigError(message)
    wanted = {"pickapic": "image", "audio-alpaca": "audio"}.get(to)
    if wanted is not None and table.media != {wanted}:
        message = explain(
            "data convert",
            got=f"[{' and '.join(sorted(table.media))} files]",
            expected=f"{wanted} files for {to}",
            do="Use --to jsonl or folders.",
        )
        raise ConfigError(message)


def _convert_dialogues(table: RowTable, output: Path, to: DialogueTarget) -> RowReport:
    report = RowReport(read=table.report.read - table.report.kept, dropped=table.report.dropped.copy())
    report.bad.update(table.report.bad)
    limits = table.config.images

    def usable() -> Iterator[PreferenceRow]:
        for index in range(len(table)):
            try:
                row = table[index]
                DialogueFacts(limits, decode=False).look(row)
            except RowError as error:
                report.add_bad(issue_of(error, table.where(index)))
                continue
            report.add_kept()
            yield row

    with atomic_directory(output) as folder:
        write_dialogues(folder, usable(), to)
    return report


def _usable(table: RowTable, config: DataConfig, report: RowReport) -> Iterator[PreferenceRow]:
    """Rows whose files can be read, with the encoded bytes in place of paths."""
    for index in range(len(table)):
        try:
            row = table[index]
            candidates = tuple(
                _with_bytes(candidate, f"{row.source} candidate {number}", config)
                for number, candidate in enumerate(row.candidates)
            )
            limit = config.images.max_bytes
            images = tuple(
                read_media(image, where=f"{row.source} image", max_bytes=limit) for image in row.images
            )
        except RowError as error:
            report.add_bad(issue_of(error, table.where(index)))
            continue
        report.add_kept()
        yield replace(row, candidates=candidates, images=images)


def _with_bytes(candidate: Candidate, where: str, config: DataConfig) -> Candidate:
    if candidate.video is not None:  # clips stay on the disk until they are copied
        check_clip_files(candidate.video, where=where, max_bytes=config.video.max_bytes)
        return candidate
    if candidate.audio is not None:
        limit = config.audio.max_bytes
        return replace(
            candidate, audio=read_media(candidate.audio, where=where, max_bytes=limit, kind="audio")
        )
    if candidate.image is None:
        return candidate
    data = read_media(candidate.image, where=where, max_bytes=config.images.max_bytes)
    return replace(candidate, image=data)


def write_pickapic(path: str | Path, rows: Iterable[PreferenceRow]) -> Path:
    """Write pairs as one parquet file in the layout of Pick-a-Pic v2, with the images inside.

    Row groups are kept small, so that a random row is cheap to read. The preferred image is image 0.

    Args:
        path: file to write; it appears when it is complete.
        rows: pairs whose candidates hold encoded bytes.

    Raises:
        CheckpointError: the disk refused.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    schema = pa.schema(
        [
            ("caption", pa.string()),
            ("jpg_0", pa.binary()),
            ("jpg_1", pa.binary()),
            ("label_0", pa.float64()),
            ("label_1", pa.float64()),
            ("has_label", pa.bool_()),
            ("are_different", pa.bool_()),
            ("image_0_uid", pa.string()),
            ("image_1_uid", pa.string()),
            ("best_image_uid", pa.string()),
            ("model_0", pa.string()),
            ("model_1", pa.string()),
            ("score_0", pa.float64()),
            ("score_1", pa.float64()),
            ("weight", pa.float64()),
            ("id", pa.string()),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    try:
        with pq.ParquetWriter(name, schema) as writer:
            held: list[dict[str, Any]] = []
            size = 0
            for row in rows:
                record = _pickapic_record(row)
                held.append(record)
                size += len(record["jpg_0"]) + len(record["jpg_1"])
                if size >= _GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(held, schema=schema))
                    held, size = [], 0
            if held:
                writer.write_table(pa.Table.from_pylist(held, schema=schema))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        message = (
            f"{path}: could not be written ({error.strerror or error}). Free some space or choose another "
            "folder."
        )
        raise CheckpointError(message) from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def _pickapic_record(row: PreferenceRow) -> dict[str, Any]:
    chosen, rejected = row.candidates
    first, second = chosen.id or f"{row.id}/chosen", rejected.id or f"{row.id}/rejected"
    return {
        "caption": row.prompt,
        "jpg_0": chosen.image,
        "jpg_1": rejected.image,
        "label_0": row.preference,
        "label_1": 1.0 - row.preference,
        "has_label": True,
        "are_different": chosen.image != rejected.image,
        "image_0_uid": first,
        "image_1_uid": second,
        "best_image_uid": "tie" if row.preference == 0.5 else first,
        "model_0": chosen.model,
        "model_1": rejected.model,
        "score_0": chosen.reward,
        "score_1": rejected.reward,
        "weight": row.weight,
        "id": row.id,
    }


def write_jsonl(folder: Path, rows: Iterable[PreferenceRow]) -> None:
    """Write rows.jsonl with paths into images/, audio/ or videos/, named by row and candidate; texts inside.

    Args:
        folder: an empty one, see `mmalign.files.atomic_directory`.
        rows: whose candidates hold encoded bytes, or (clips) paths.
    """
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            names = []
            for place, candidate in enumerate(row.candidates):
                if candidate.text is not None:
                    names.append(candidate.text)
                    continue
                kind = {"image": "images", "audio": "audio", "video": "videos"}[_media_of(candidate)]
                name = f"{kind}/{number:07d}_{place}{_ending(candidate)}"
                (folder / kind).mkdir(exist_ok=True)
                _write_media(candidate, folder / name)
                names.append(name)
            record = _json_record(row, names)
            if row.images and isinstance(row.images[0], bytes):
                record["image"] = f"images/{number:07d}{image_ending(row.images[0])}"
                (folder / "images").mkdir(exist_ok=True)
                (folder / record["image"]).write_bytes(row.images[0])
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _json_record(row: PreferenceRow, names: list[str]) -> dict[str, Any]:
    record: dict[str, Any] = {"id": row.id, "prompt": row.prompt}
    single = _media_of(row.candidates[0])
    if row.kind == "pairs":
        record |= {"chosen": names[0], "rejected": names[1], "preference": row.preference}
        rewards = [candidate.reward for candidate in row.candidates]
        if None not in rewards:
            record |= {"score_chosen": rewards[0], "score_rejected": rewards[1]}
    elif row.kind == "lists":
        record |= {
            {"audio": "candidates", "video": "videos"}.get(single, "images"): names,
            "scores": list(row.relevance or ()),
        }
    elif row.kind == "chosen":
        record |= {single: names[0]}
    else:
        record |= {single: names[0], "label": row.desirable}
    kept = ("strategy", *_CLIP_COLUMNS) if single == "video" else ("strategy",)
    record |= {name: row.extras[name] for name in kept if row.extras.get(name) is not None}
    return record if row.weight == 1.0 else record | {"weight": row.weight}


def _write_folders(folder: Path, rows: Iterator[PreferenceRow]) -> None:
    """chosen/, rejected/ and captions/ with equal names; ties have no place there."""
    for side in ("chosen", "rejected", "captions"):
        (folder / side).mkdir()
    for number, row in enumerate(rows):
        if row.preference == 0.5:
            message = f"{row.source}: two folders cannot say that a pair is a tie. Use --ties drop or random."
            raise ConfigError(message)
        for side, candidate in zip(("chosen", "rejected"), row.candidates, strict=True):
            _write_media(candidate, folder / side / f"{number:07d}{_ending(candidate)}")
        (folder / "captions" / f"{number:07d}.txt").write_text(row.prompt + "\n", encoding="utf-8")


_CLIP_COLUMNS = ("fps", COLUMN, "negative_prompt", "shared_prefix_frames", "real", "scores")
"""Columns that methods for clips read."""


def _media_of(candidate: Candidate) -> Literal["image", "audio", "video"]:
    if candidate.video is not None:
        return "video"
    return "image" if candidate.audio is None else "audio"


def _ending(candidate: Candidate) -> str:
    """The ending of a candidate's file; "" for a folder of frames."""
    if candidate.video is not None:
        return clip_ending(candidate.video)
    return image_ending(candidate.image) if candidate.audio is None else audio_ending(candidate.audio)


def _write_media(candidate: Candidate, path: Path) -> None:
    """Copy a candidate's file, or its folder of frames."""
    if candidate.video is not None:
        copy_clip(candidate.video, path)
        return
    data = getattr(candidate, _media_of(candidate))
    path.write_bytes(data if isinstance(data, bytes) else b"")
