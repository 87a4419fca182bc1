"""From a path or hub id to raw records: which reader, which files, which split."""

import json
import re
from pathlib import Path, PurePath
from typing import Any, TypeVar

from mmalign.data import folders
from mmalign.data.config import SourceConfig
from mmalign.data.records import (
    ArrowRecords,
    JsonLinesRecords,
    ListRecords,
    ParquetRecords,
    Records,
    read_csv,
    read_json,
)
from mmalign.data.video_records import is_videodpo, read_videodpo
from mmalign.errors import ConfigError

__all__ = ["open_records", "shards_of_split"]

_Name = TypeVar("_Name", bound=PurePath)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OTHER_NAMES = {"declare-lab/audio_alpaca": "declare-lab/audio-alpaca"}
"""Hub ids as published scripts spell them, and as the hub does."""

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TABLES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
_ENDINGS = (*_TABLES, ".txt")


def open_records(source: SourceConfig) -> Records:
    """The raw records of a source, opened but not read.

    Raises:
        ConfigError: nothing there, several splits to choose from, or a kind of file nobody reads.
    """
    text = source.path.removeprefix("hf://datasets/")
    path = Path(text).expanduser()
    if path.is_file():
        return _open_file(path, source)
    if path.is_dir():
        return _open_folder(path, source)
    if _HUB_ID.fullmatch(text) and path.suffix not in _ENDINGS:
        return _open_hub(_OTHER_NAMES.get(text, text), source)
    message = (
        f"data source {source.path!r}: no such file or folder, and not a hub id (owner/name). "
        f"The current folder is {Path.cwd()}."
    )
    raise ConfigError(message)


def _open_file(path: Path, source: SourceConfig) -> Records:
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _rooted(ParquetRecords([path]), source)
    if ending == ".jsonl" or (ending == ".json" and _looks_like_lines(path)):
        return _rooted(JsonLinesRecords(path), source)
    if is_videodpo(path):
        return _rooted(read_videodpo(path), source)
    if ending == ".json":
        return _rooted(read_json(path), source)
    if ending in (".csv", ".tsv"):
        return _rooted(read_csv(path, delimiter="\t" if ending == ".tsv" else ","), source)
    if ending == ".arrow":
        return _open_saved(path.parent, source)
    if ending == ".txt":
        return _rooted(_text_lines(path), source)
    message = f"{path}: got a file ending in {ending!r}, expected one of {', '.join(_ENDINGS)}."
    raise ConfigError(message)


def _text_lines(path: Path) -> ListRecords:
    """A prompt per line; empty lines are none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    records = [{"prompt": line} for _, line in numbered]
    places = [number for number, _ in numbered]
    return ListRecords(records, path=path, description="text lines", places=places, columns=("prompt",))


def _looks_like_lines(path: Path) -> bool:
    """Whether a .json file holds one object per line: the hub has many of those."""
    with path.open("rb") as file:
        first, second = file.readline().strip(), file.readline().strip()
    if not (first.startswith(b"{") and first.endswith(b"}")):
        return False
    return second.startswith(b"{") if second else not _holds_records(first)


def _holds_records(line: bytes) -> bool:
    """Whether one line is a whole file: records under their ids."""
    try:
        content = json.loads(line)
    except ValueError:
        return False
    values = list(content.values()) if isinstance(content, dict) else []
    return bool(values) and all(isinstance(value, dict) for value in values)


def _rooted(records: Any, source: SourceConfig) -> Records:
    if source.root is not None:
        records.root = Path(source.root).expanduser()
        if not records.root.is_dir():
            message = (
                f"data root {source.root!r}: no such folder; relative media paths of {source.path} start "
                "there."
            )
            raise ConfigError(message)
    found: Records = records
    return found


def _listed_table(folder: Path, source: SourceConfig) -> Path | None:
    """The table that LLaMA-Factory's dataset_info.json names: the only one, or the one of the wanted split.

    `datasets` gives the same name to another file, which names no files.
    """
    info = folder / "dataset_info.json"
    try:
        content = json.loads(info.read_text(encoding="utf-8")) if info.is_file() else {}
    except (OSError, ValueError):
        return None
    tables: dict[str, Path] = {
        name: folder / entry["file_name"]
        for name, entry in (content.items() if isinstance(content, dict) else ())
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
    }
    inside = {name: table for name, table in tables.items() if table.is_file() and table.parent == folder}
    if source.split in inside:
        return inside[source.split]
    return next(iter(inside.values())) if len(inside) == 1 else None


def _open_folder(path: Path, source: SourceConfig) -> Records:
    if is_videodpo(path):
        return _rooted(read_videodpo(path), source)
    listed = _listed_table(path, source)
    if listed is not None:
        return _open_file(listed, source)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _open_saved(path, source)
    if folders.is_matched(path):
        return _rooted(folders.read_matched(path, frames=source.media == "video"), source)
    if folders.is_kohya(path):
        return _rooted(folders.read_kohya(path, frames=source.media == "video"), source)
    inside = path / source.split if source.split is not None and (path / source.split).is_dir() else path
    for name in _METADATA:
        if (inside / name).is_file():
            return _open_file(inside / name, source)
    shards = sorted([*inside.glob("*.parquet"), *inside.glob("data/*.parquet")])
    if shards:
        chosen = shards if inside != path else shards_of_split(shards, source, path)
        return _rooted(ParquetRecords(chosen), source)
    tables = sorted(file for ending in _TABLES for file in inside.glob(f"*{ending}"))
    if len(tables) == 1:
        return _open_file(tables[0], source)
    named = [file for file in tables if source.split is not None and file.stem == source.split]
    if len(named) == 1:
        return _open_file(named[0], source)
    found = sorted(child.name + ("/" if child.is_dir() else "") for child in path.iterdir())
    message = (
        f"{path}: expected parquet shards, a saved data set (dataset_info.json), "
        f"{' or '.join(_METADATA[:2])}, one table, "
        f"or folders chosen/ and rejected/; found {', '.join(found[:12]) or 'an empty folder'}"
        f"{' ...' if len(found) > 12 else ''}. Give the file itself, or set split."
    )
    raise ConfigError(message)


def shards_of_split(shards: list[_Name], source: SourceConfig, folder: str | Path) -> list[_Name]:
    """Shards of the wanted split, by the hub's naming `SPLIT-00000-of-00012.parquet`.

    Raises:
        ConfigError: no shards of that split, or of several and none was named.
    """
    by_split: dict[str, list[_Name]] = {}
    for shard in shards:
        by_split.setdefault(re.split(r"-\d{3,}", shard.stem)[0], []).append(shard)
    if source.split is not None:
        # A split column may do the choosing instead, when no file is named for a split.
        if source.split in by_split:
            return by_split[source.split]
        if len(by_split) == 1:
            return shards
        message = f"{folder}: no shards of split {source.split!r}; found splits {', '.join(by_split)}."
        raise ConfigError(message)
    if len(by_split) == 1:
        return shards
    if "train" in by_split:
        return by_split["train"]
    message = f"{folder}: got shards of several splits ({', '.join(by_split)}), expected one. Set split."
    raise ConfigError(message)


def _open_saved(path: Path, source: SourceConfig) -> Records:
    """A folder written by `datasets`' save_to_disk."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        message = f"{path}: not a complete saved data set ({error})."
        raise ConfigError(message) from error
    return _arrow(loaded, source, root=path, description="saved datasets folder")


def _open_hub(name: str, source: SourceConfig) -> Records:
    """A hub data set; without a network (HF_HUB_OFFLINE=1) only what is already downloaded."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    failures = (OSError, ValueError, datasets.exceptions.DatasetsError, HfHubHTTPError, OfflineModeIsEnabled)
    try:
        loaded = datasets.load_dataset(name, revision=source.revision)
    except failures as error:
        message = (
            f"data source {name!r}: no such file or folder here, and the hub did not give a data set of "
            "that name "
            f"({type(error).__name__}: {error}). Check the path, log in with `hf auth login`, or unset "
            "HF_HUB_OFFLINE."
        )
        raise ConfigError(message) from error
    return _arrow(loaded, source, root=Path(datasets.config.HF_DATASETS_CACHE), description="hub data set")


def _arrow(loaded: Any, source: SourceConfig, *, root: Path, description: str) -> Records:
    import datasets

    if isinstance(loaded, datasets.DatasetDict | dict):
        names = list(loaded)
        split = source.split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
        if split not in names:
            wanted = f"split {source.split!r}" if source.split else "a split named train"
            message = f"{source.path}: expected {wanted}, found {', '.join(names)}. Set split to one of them."
            raise ConfigError(message)
        loaded = loaded[split]
        description = f"{description}, split {split}"
    return _rooted(ArrowRecords(loaded, description=description, root=root, name=source.path), source)
