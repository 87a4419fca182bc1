"""Writing preference data: Pick-a-Pic parquet, JSON lines with image files, two matched folders; dialogues.

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
from mmalign.data.config import DataConfig, ImageLimits
from mmalign.data.dialogues.facts import DialogueFacts
from mmalign.data.dialogues.writers import DialogueTarget, is_dialogue_target, write_dialogues
from mmalign.data.media import image_ending, read_media
from mmalign.data.readers import RowTable, open_rows
from mmalign.data.rows import RowReport, issue_of
from mmalign.errors import CheckpointError, ConfigError, RowError
from mmalign.files import atomic_directory

__all__ = ["Target", "convert", "write_pickapic"]

Target = Literal["pickapic", "jsonl", "folders", "trl-jsonl", "ms-swift", "llama-factory"]

_GROUP_BYTES = 4 * 2**20
"""Size of a row group: reading one random row reads this much."""


def convert(config: DataConfig, output: str | Path, *, to: Target, force: bool = False) -> RowReport:
    """Write the rows of a data set in another layout.

    Args:
        config: what to read.
        output: parquet file (`pickapic`) or folder to write.
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
    if to != "jsonl" and any(source.media == "text" for source in config.all_sources):
        message = (
            f"data convert: got texts, expected images for {to}. Texts stand in the rows themselves: use "
            "--to jsonl."
        )
        raise ConfigError(message)
    if to != "jsonl" and table.kind != "pairs":
        message = (
            f"data convert: got {table.kind} rows, expected pairs for {to}. Use --to jsonl, or make pairs "
            "of rankings with "
            "--lists pairs."
        )
        raise ConfigError(message)
    report = RowReport(read=table.report.read - table.report.kept, dropped=table.report.dropped.copy())
    report.bad.update(table.report.bad)
    rows = _usable(table, config.images, report)
    if to == "pickapic":
        write_pickapic(output, rows)
        return report
    with atomic_directory(output) as folder:
        (_write_jsonl if to == "jsonl" else _write_folders)(folder, rows)
    return report


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


def _usable(table: RowTable, limits: ImageLimits, report: RowReport) -> Iterator[PreferenceRow]:
    """Rows whose images can be read, with the encoded bytes in place of paths."""
    for index in range(len(table)):
        try:
            row = table[index]
            candidates = tuple(
                _with_bytes(candidate, f"{row.source} candidate {number}", limits)
                for number, candidate in enumerate(row.candidates)
            )
        except RowError as error:
            report.add_bad(issue_of(error, table.where(index)))
            continue
        report.add_kept()
        yield replace(row, candidates=candidates)


def _with_bytes(candidate: Candidate, where: str, limits: ImageLimits) -> Candidate:
    if candidate.image is None:
        return candidate
    data = read_media(candidate.image, where=where, max_bytes=limits.max_bytes)
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


def _write_jsonl(folder: Path, rows: Iterator[PreferenceRow]) -> None:
    """rows.jsonl with paths into images/, named by row and candidate; texts stand in the rows."""
    (folder / "images").mkdir()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            names = []
            for place, candidate in enumerate(row.candidates):
                if candidate.text is not None:
                    names.append(candidate.text)
                    continue
                name = f"images/{number:07d}_{place}{image_ending(candidate.image)}"
                (folder / name).write_bytes(_bytes_of(candidate))
                names.append(name)
            file.write(json.dumps(_json_record(row, names), ensure_ascii=False) + "\n")


def _json_record(row: PreferenceRow, names: list[str]) -> dict[str, Any]:
    record: dict[str, Any] = {"id": row.id, "prompt": row.prompt}
    if row.kind == "pairs":
        record |= {"chosen": names[0], "rejected": names[1], "preference": row.preference}
        rewards = [candidate.reward for candidate in row.candidates]
        if None not in rewards:
            record |= {"score_chosen": rewards[0], "score_rejected": rewards[1]}
    elif row.kind == "lists":
        record |= {"images": names, "scores": list(row.relevance or ())}
    else:
        record |= {"image": names[0], "label": row.desirable}
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
            (folder / side / f"{number:07d}{image_ending(candidate.image)}").write_bytes(_bytes_of(candidate))
        (folder / "captions" / f"{number:07d}.txt").write_text(row.prompt + "\n", encoding="utf-8")


def _bytes_of(candidate: Candidate) -> bytes:
    return candidate.image if isinstance(candidate.image, bytes) else b""
