"""Shards behind addresses: which there are, how many records they hold, and their records part by part.

An address is anything fsspec opens (`s3://`, `gs://`, `hf://`, `https://`, a path): one shard, a folder, a
pattern with `*`, or a range in braces (`shard-{00000..00099}.tar`). Shards are parquet files, or tar files
whose members come sample by sample, named `KEY.FIELD` (the layout of webdataset). A part is a few dozen
records: memory does not grow with the size of a shard.

Source: webdataset, "The WebDataset Format" (members of one sample are neighbours and share what stands before
    the first dot of their name; `sizes.json` and `index.json` tell the samples of each shard).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from mmalign.data.config import SourceConfig
from mmalign.data.sources import shards_of_split
from mmalign.data.streaming_files import Damage, SteadyFile, attempted, file_system
from mmalign.data.streaming_tar import is_tar, tar_parts
from mmalign.errors import ConfigError, explain

__all__ = ["PART", "Shard", "list_shards", "open_shard"]

PART = 64
"""Records that are looked at together."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Shard:
    """One file of records.

    Args:
        url: its address, with the protocol.
        kind: how records lie in it.
        records: how many, where that is known without reading it.
    """

    url: str
    kind: Literal["parquet", "tar"]
    records: int | None = None

    @property
    def name(self) -> str:
        """The file's own name, as messages and ids of rows have it."""
        return PurePosixPath(self.url).name


def list_shards(source: SourceConfig, *, count: bool = True) -> list[Shard]:
    """The shards of a source in the order of their names, with their numbers of records where known.

    Args:
        source: its path is an address; a hub id stands for `hf://datasets/ID`.
        count: look for the numbers of records: the footers of parquet files, `sizes.json` beside tar files.

    Raises:
        ConfigError: no shards there, or shards of both kinds.
        MissingExtraError: a package is missing for this kind of address.
    """
    urls = _addresses(source)
    kinds = {"tar" if is_tar(url) else "parquet" for url in urls}
    if len(kinds) > 1:
        message = (
            f"{source.path}: got parquet and tar shards, expected one kind. Name one: {source.path}/*.tar"
        )
        raise ConfigError(message)
    if kinds == {"tar"}:
        sizes = _listed_sizes(urls) if count else {}
        return [Shard(url, "tar", sizes.get(PurePosixPath(url).name)) for url in urls]
    if not count:
        return [Shard(url, "parquet") for url in urls]
    shards, expected = list[Shard](), list[str]()
    with ThreadPoolExecutor(max_workers=16) as pool:
        for url, (rows, columns) in zip(urls, pool.map(_footer, urls), strict=True):
            expected = expected or columns
            _require_columns(url, columns, expected, urls[0])
            shards.append(Shard(url, "parquet", rows))
    return shards


def _require_columns(url: str, columns: Sequence[str], expected: Sequence[str], first: str) -> None:
    """Raise unless a shard has the columns of the first one: rows of all are made in the same way."""
    if missing := [name for name in expected if name not in columns]:
        message = explain(
            url,
            got=", ".join(columns),
            expected=f"the column {', '.join(missing)}, too, which {first} has",
            do="Name shards of one kind (a pattern with *), or write this one again.",
        )
        raise ConfigError(message)


def _addresses(source: SourceConfig) -> list[str]:
    path = source.path
    urls = _without_braces(path)
    if len(urls) > 1:
        return urls
    if "://" not in path and _HUB_ID.fullmatch(path) and not _exists(path):
        revision = "" if source.revision is None else f"@{source.revision}"
        path = f"hf://datasets/{path}{revision}"
    system, inner = file_system(path)
    if "*" in inner:
        found = attempted(lambda: system.glob(inner), path)
    elif inner.endswith(".parquet") or is_tar(inner):
        found = [inner]
    else:
        inside = f"{inner.rstrip('/')}/{source.split}" if source.split else inner.rstrip("/")
        folders = [inside, inner.rstrip("/")] if source.split else [inside]
        patterns = [f"{folder}{deeper}/*" for folder in folders for deeper in ("", "/data")]
        found = next((shards for pattern in patterns if (shards := _shards_in(system, pattern))), [])
        in_folder = source.split is not None and bool(found) and found[0].startswith(f"{inside}/")
        # Names of parquet shards tell their split; those of tar shards are looked at when one is wanted.
        if found and not in_folder and (source.split is not None or not is_tar(found[0])):
            chosen = set(shards_of_split([PurePosixPath(item) for item in found], source, path))
            found = [item for item in found if PurePosixPath(item) in chosen]
    if not found:
        message = (
            f"{source.path}: no shards there. data.streaming reads parquet and tar files: the address of "
            "one, of a folder, or a pattern such as s3://bucket/set/train-*.parquet or "
            "shard-{00000..00099}.tar. Data in other forms: `mmalign data convert` writes parquet."
        )
        raise ConfigError(message)
    return [str(system.unstrip_protocol(item)) for item in sorted(str(item) for item in found)]


def _exists(path: str) -> bool:
    return bool(file_system(path)[0].exists(path))


def _shards_in(system: Any, pattern: str) -> list[str]:
    """Parquet files of a folder, else tar files."""
    found = [str(item) for item in attempted(lambda: system.glob(pattern), pattern)]
    return [item for item in found if item.endswith(".parquet")] or [item for item in found if is_tar(item)]


def _without_braces(path: str) -> list[str]:
    """`a-{00..02}.tar` as a-00.tar, a-01.tar, a-02.tar: as many digits as the first number has."""
    match = _BRACES.search(path)
    if match is None:
        return [path]
    first, last = match.groups()
    numbers = range(int(first), int(last) + 1)
    made = [f"{path[: match.start()]}{n:0{len(first)}}{path[match.end() :]}" for n in numbers]
    return [url for one in made for url in _without_braces(one)]


def _listed_sizes(urls: Sequence[str]) -> dict[str, int]:
    """Samples of tar shards by file name, as a file beside them tells; empty where there is none.

    Raises:
        ConfigError: it cannot be understood.
        TrainingError: the network gave up.
    """
    folder = urls[0].rpartition("/")[0]
    for name in ("sizes.json", "index.json"):
        url = f"{folder}/{name}"
        content = _content_if_there(url)
        if content is None:
            continue
        try:
            return _sizes_in(json.loads(content))
        except (ValueError, TypeError, KeyError) as error:
            message = explain(
                url,
                got=content[:60],
                expected="samples by shard ({shard name: samples}, or webdataset's shardlist of url and "
                f"nsamples; {type(error).__name__}: {error})",
                do="Write it again, or remove it: without it, lengths are unknown and set train.steps.",
            )
            raise ConfigError(message) from error
    return {}


def _content_if_there(url: str) -> bytes | None:
    system, path = file_system(url)

    def read() -> bytes | None:
        try:
            return bytes(system.cat_file(path))
        # Stores that do not let one list a bucket say that what is not there may not be read.
        except (FileNotFoundError, PermissionError):
            return None

    return attempted(read, url)


def _sizes_in(content: Any) -> dict[str, int]:
    """Raises ValueError, TypeError or KeyError for what says no sizes."""
    if not isinstance(content, Mapping):
        message = "expected a mapping"
        raise TypeError(message)
    if isinstance(content.get("shardlist"), list):
        pairs = [(PurePosixPath(item["url"]).name, item["nsamples"]) for item in content["shardlist"]]
    else:
        pairs = [(str(name), value) for name, value in content.items()]
    return {name: int(value) for name, value in pairs}


def _footer(url: str) -> tuple[int, list[str]]:
    """(rows, columns) of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with SteadyFile(url) as file:
            opened = pq.ParquetFile(file)
            return int(opened.metadata.num_rows), list(opened.schema_arrow.names)
    except (OSError, pa.ArrowException) as error:
        message = f"{url}: not a complete parquet file ({error}). Upload it again."
        raise ConfigError(message) from error


def open_shard(
    shard: Shard, columns: Sequence[str] | None, *, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, Any] | Damage]:
    """Parts of a shard: (number of the first record in the file, records), or what is broken.

    Args:
        shard: the file.
        columns: of parquet files, those to read; None reads all.
        start: first record.
        stop: the record behind the last; None goes to the end.

    Returns:
        Tables of Arrow for parquet, lists of dictionaries (None where one is unreadable) for tar.

    Raises:
        TrainingError: the network gave up.
    """
    if shard.kind == "tar":
        return tar_parts(shard.url, shard.name, start=start, stop=stop, part=PART)
    return _parquet_parts(shard, columns, start, stop)


def _parquet_parts(
    shard: Shard, columns: Sequence[str] | None, start: int, stop: int | None
) -> Iterator[tuple[int, Any] | Damage]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with SteadyFile(shard.url) as raw:
        try:
            file = pq.ParquetFile(raw)
        except (OSError, pa.ArrowException) as error:
            yield Damage(f"{shard.name}:0", f"{shard.url}: not a complete parquet file ({error}).")
            return
        first = 0
        for group in range(file.metadata.num_row_groups):
            rows = int(file.metadata.row_group(group).num_rows)
            at, first = first, first + rows
            if first <= start:
                continue
            if stop is not None and at >= stop:
                return
            try:
                # One thread: loader workers are processes, and the pool does not survive a fork.
                for batch in file.iter_batches(
                    batch_size=PART,
                    row_groups=[group],
                    columns=None if columns is None else list(columns),
                    use_threads=False,
                ):
                    low = max(start - at, 0)
                    high = batch.num_rows if stop is None else min(batch.num_rows, stop - at)
                    if low < high:
                        yield at + low, pa.Table.from_batches([batch.slice(low, high - low)])
                    at += batch.num_rows
                    if stop is not None and at >= stop:
                        return  # the rest of the group is another reader's
            except (OSError, pa.ArrowException) as error:
                message = f"{shard.url}: rows {at} to {first - 1} cannot be read ({error})."
                yield Damage(f"{shard.name}:{at}", message)
