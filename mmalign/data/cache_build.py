"""Filling a cache: every image or clip and every unique prompt of a table is encoded once.

Rows are read in order on one thread, media decoded on a few, encoded in batches on the device. What the
folder holds already is skipped before anything is decoded, so an interrupted build goes on where it stopped.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmalign.data.cache import CacheIdentity, CacheWriter, CandidateLoader
from mmalign.data.readers import RowTable
from mmalign.data.rows import RowReport, issue_of
from mmalign.errors import ConfigError, RowError

__all__ = ["EncodingModel", "build_cache"]

Progress = Callable[[str, int, int], None]


@runtime_checkable
class EncodingModel(Protocol):
    """What the builder needs of a model."""

    def cache_moments(self, inputs: Shaped[Tensor, "row ..."]) -> Any:
        """Mean and standard deviation (`mean`, `std`) of unscaled latents."""
        ...

    def cache_text(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Text conditioning `[...]` of each prompt."""
        ...


@dataclass(frozen=True)
class _Job:
    """The images of one row being decoded."""

    keys: list[str]
    where: str
    future: "Future[Any]"


@dataclass
class _Encoder:
    """Collects decoded images and encodes them in batches."""

    model: EncodingModel
    writer: CacheWriter
    report: RowReport
    batch_size: int
    ready: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    scheduled: set[str] = field(default_factory=set)  # what is being decoded, or waits to be encoded
    skipped: list[tuple[int, bool]] = field(default_factory=list)  # (row, flipped) that waited for those

    def take(self, job: _Job) -> None:
        """Accept the images of a row, or count it as bad (once, though its mirror image fails too)."""
        try:
            candidates = job.future.result()
        except RowError as error:
            if job.where not in self.failed:
                self.failed.add(job.where)
                self.report.kept -= 1
                self.report.read -= 1
                self.report.add_bad(issue_of(error, job.where))
            # Of the others of this row, rows that share them may still want the moments.
            self.scheduled.difference_update(key for key in job.keys if key not in self.ready)
            return
        for key, inputs, geometry in zip(job.keys, candidates.inputs, candidates.geometry, strict=True):
            if not self.writer.has_moments(key):
                self.ready[key] = (inputs, geometry)
            else:
                self.scheduled.discard(key)
        while len(self.ready) >= self.batch_size:
            self.encode(list(self.ready)[: self.batch_size])

    def take_all(self, jobs: Iterator[_Job], *, most: int) -> None:
        """Accept the images of many rows, `most` of which are decoded at a time, and encode all of them."""
        waiting: deque[_Job] = deque()
        for job in jobs:
            waiting.append(job)
            # A bounded queue: decoded images of a whole data set do not fit into memory.
            if len(waiting) > most:
                self.take(waiting.popleft())
        while waiting:
            self.take(waiting.popleft())
        if self.ready:
            self.encode(list(self.ready))

    def encode(self, keys: list[str]) -> None:
        """Encode some of the images that are ready."""
        entries = [self.ready.pop(key) for key in keys]
        inputs = torch.stack([inputs for inputs, _ in entries])
        moments = self.model.cache_moments(inputs)
        mean, std = moments.mean.cpu(), moments.std.cpu()
        # Clips that go on from a picture keep what the network is told of it.
        cache_more = getattr(self.model, "cache_more", None)
        more = {} if cache_more is None else cache_more(inputs)
        for number, (key, (_, geometry)) in enumerate(zip(keys, entries, strict=True)):
            own = {name: value[number] for name, value in more.items()}
            self.writer.add_moments(key, mean[number], std[number], geometry, own)
            self.scheduled.discard(key)  # the writer knows it now


def _jobs(
    table: RowTable,
    loader: CandidateLoader,
    encoder: _Encoder,
    pool: ThreadPoolExecutor,
    flips: Sequence[bool],
    progress: Progress,
) -> Iterator[_Job]:
    """Decoding work of every row that is not cached yet."""
    scheduled = encoder.scheduled
    for index in range(len(table)):
        progress(encoder.writer.identity.medium, index + 1, len(table))
        try:
            row = table[index]
            encoded = loader.encoded(row)
        except RowError as error:
            encoder.report.add_bad(issue_of(error, table.where(index)))
            continue
        encoder.report.add_kept()
        for flipped in flips:
            keys = loader.keys(encoded, flipped=flipped)
            missing = [key for key in keys if not encoder.writer.has_moments(key)]
            if not all(key in scheduled for key in missing):
                scheduled.update(missing)
                # Decoding releases the interpreter lock; reading rows stays on this thread, as parquet
                # readers need.
                yield _Job(keys, row.source, pool.submit(loader.centered, row, encoded, flipped=flipped))
            elif missing:
                encoder.skipped.append((index, flipped))


def _jobs_again(
    table: RowTable, loader: CandidateLoader, encoder: _Encoder, pool: ThreadPoolExecutor
) -> Iterator[_Job]:
    """Decoding work of rows that waited for the images of another row, which could not be read after all."""
    waited, encoder.skipped = encoder.skipped, []
    for index, flipped in waited:
        row = table[index]
        encoded = loader.encoded(row)
        keys = loader.keys(encoded, flipped=flipped)
        missing = [key for key in keys if not encoder.writer.has_moments(key)]
        if not all(key in encoder.scheduled for key in missing):
            encoder.scheduled.update(missing)
            yield _Job(keys, row.source, pool.submit(loader.centered, row, encoded, flipped=flipped))
        elif missing:
            encoder.skipped.append((index, flipped))


def _no_progress(what: str, done: int, total: int) -> None:
    del what, done, total


def build_cache(
    table: RowTable,
    model: EncodingModel,
    identity: CacheIdentity,
    folder: str | Path,
    *,
    loader: CandidateLoader,
    crop: str = "center",
    flip: bool = False,
    batch_size: int = 8,
    text_batch_size: int = 32,
    num_threads: int = 4,
    shard_bytes: int = 256 * 2**20,
    flush_seconds: float = 120.0,
    progress: Progress = _no_progress,
) -> RowReport:
    """Encode every image or clip and every unique prompt that the folder does not hold yet.

    Args:
        table: rows to encode.
        model: gives moments and text states.
        identity: what the cache is made for; an existing folder must agree.
        folder: where to write; an interrupted or smaller cache there is completed.
        loader: reads, names and decodes the media of a row.
        crop: of pictures; must be "center".
        flip: also encode mirrored images.
        batch_size: images per call of the VAE.
        text_batch_size: prompts per call of the text encoders.
        num_threads: decoding threads.
        shard_bytes: size of a shard file.
        flush_seconds: longest time between two shards.
        progress: called with ("images" | "clips" | "prompts", done, total).

    Returns:
        Rows kept, and unreadable ones by reason (they are left out of the cache).

    Raises:
        ConfigError: random crops, or a folder made for something else.
        TrainingError: the VAE gives values that are not finite.
    """
    if crop != "center":
        message = (
            f"data cache: got image.crop {crop}, expected center: a random crop is another image at every "
            "visit and "
            "cannot be cached. Set image.crop: center, or train without image.cache."
        )
        raise ConfigError(message)
    writer = CacheWriter(folder, identity, shard_bytes=shard_bytes, flush_seconds=flush_seconds)
    encoder = _Encoder(model, writer, RowReport(), batch_size)
    _encode_prompts(table, model, writer, text_batch_size, progress)
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        flips = (False, True) if flip else (False,)
        encoder.take_all(_jobs(table, loader, encoder, pool, flips, progress), most=4 * num_threads)
        while encoder.skipped:
            encoder.take_all(_jobs_again(table, loader, encoder, pool), most=4 * num_threads)
    writer.flush()
    return encoder.report


def _encode_prompts(
    table: RowTable,
    model: EncodingModel,
    writer: CacheWriter,
    batch_size: int,
    progress: Progress,
) -> None:
    """Text states of every unique prompt, and of the empty one (for prompt dropout)."""
    prompts = ["", *(prompt for prompt in table.prompts() if prompt and _is_text(prompt))]
    missing = [prompt for prompt in prompts if not writer.has_text(prompt)]
    for start in range(0, len(missing), batch_size):
        part = missing[start : start + batch_size]
        for prompt, states in zip(part, model.cache_text(part), strict=True):
            writer.add_text(prompt, states)
        progress("prompts", start + len(part), len(missing))


def _is_text(prompt: str) -> bool:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True
