"""The second stage: every reward scores every picture or clip once; a score lies under what it depends on.

The key of a score is the picture's bytes, the prompt and the reward's fingerprint. Neither the run, the
model, the machine nor the number of processes is in it: what was scored anywhere is not scored again.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmalign.evals.adopted_pictures import is_clip, is_sound
from mmalign.evals.jobs import shard_of
from mmalign.evals.store import PartTable
from mmalign.rewards.base import Reward, Scored
from mmalign.rewards.sample import Sample

__all__ = ["Picture", "read_scores", "score_key", "score_missing", "scores_table", "unscored"]


@dataclass(frozen=True)
class Picture:
    """A stored picture, clip or sound with what rewards read.

    Args:
        sample_id: id in the suite.
        prompt: text it was made for.
        path: file.
        sha256: of the file.
        extras: further fields of the prompt's record.
    """

    sample_id: str
    prompt: str
    path: Path
    sha256: str
    extras: Mapping[str, Any] = field(default_factory=dict)


def scores_table(folder: Path) -> PartTable:
    """The table of scores under `folder`: one row per picture, reward and output."""
    columns = {
        "key": "string",
        "output": "string",
        "sample_id": "string",
        "sha256": "string",
        "prompt": "string",
        "reward": "string",
        "fingerprint": "string",
        "value": "double",
        "truncated": "bool",
        "error": "string",
        "raw": "string",
        "seconds": "double",
        "device": "string",
        "created": "string",
    }
    return PartTable(folder / "scores", columns, key=("key", "output"))


def _second_scores(folder: Path) -> PartTable:
    """Scores of samples that had failed before: they stand in place of the failures."""
    return PartTable(folder / "second_scores", scores_table(folder).columns, key=("key", "output"))


def read_scores(folder: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of all scores under `folder`, each key and output once.

    Args:
        folder: store of scores.
        columns: which ones; None = all. The key is always read.
    """
    mended = {(row["key"], row["output"]): row for row in _second_scores(folder).read(columns)}
    yield from mended.values()
    for row in scores_table(folder).read(columns):
        if (row["key"], row["output"]) not in mended:
            yield row


def score_key(picture: Picture, needs: Sequence[str], fingerprint: str) -> str:
    """Hexadecimal hash under which the scores of a picture by one reward are stored."""
    extras = sorted((name, repr(picture.extras[name])) for name in needs if name in picture.extras)
    parts = [picture.sha256, picture.prompt, repr(extras), fingerprint]
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _settled(folder: Path, fingerprint: str, *, retry_failed: bool) -> set[str]:
    """Keys of one reward that need no scoring; failures are not settled where they are to be retried."""
    settled: set[str] = set()
    failed: set[str] = set()
    for row in read_scores(folder, ("key", "fingerprint", "value", "error")):
        if row["fingerprint"] == fingerprint:
            settled.add(row["key"])
            if row["error"] is not None or not math.isfinite(row["value"]):
                failed.add(row["key"])
    return settled - failed if retry_failed else settled


def unscored(
    pictures: Sequence[Picture],
    needs: Sequence[str],
    fingerprint: str,
    folder: Path,
    *,
    retry_failed: bool = False,
) -> int:
    """How many pictures a reward has to score yet; the reward itself need not be loaded for it.

    Args:
        pictures: all of them.
        needs: extras the reward reads.
        fingerprint: of the reward.
        folder: store of scores.
        retry_failed: stored failures count as unscored.
    """
    if not pictures:
        return 0
    stored = _settled(folder, fingerprint, retry_failed=retry_failed)
    return sum(score_key(picture, needs, fingerprint) not in stored for picture in pictures)


def score_missing(
    reward: Reward,
    pictures: Sequence[Picture],
    folder: Path,
    *,
    batch_size: int = 16,
    shard: tuple[int, int] = (0, 1),
    device: str = "",
    progress: Callable[[int], None] = lambda _: None,
    sample_of: Callable[[Picture, Sequence[str]], Sample] | None = None,
    retry_failed: bool = False,
) -> int:
    """Score what is not stored yet. Returns how many pictures were scored now.

    Args:
        reward: loaded reward.
        pictures: all of them; the same file under the same prompt is scored once.
        folder: store of scores.
        batch_size: pictures per call; memory does not grow with the number of pictures.
        shard: (number, count) of this process.
        device: recorded.
        progress: called with the number of pictures that are done, stored ones included.
        sample_of: makes the sample of a picture and the extras a reward needs, where it is more than a file.
        retry_failed: score stored failures again. What fails again keeps its first error.
    """
    make = sample_of or _sample
    fingerprint, needs = reward.fingerprint(), reward.card.needs
    known = _settled(folder, fingerprint, retry_failed=False)
    stored = _settled(folder, fingerprint, retry_failed=True) if retry_failed else known
    todo: dict[str, Picture] = {}
    mine = [picture for picture in pictures if shard_of(picture.sample_id, shard[1]) == shard[0]]
    for picture in mine:
        key = score_key(picture, needs, fingerprint)
        if key not in stored:
            todo.setdefault(key, picture)
    progress(len(mine) - len(todo))
    with scores_table(folder).writer() as writer, _second_scores(folder).writer() as second:
        for batch in _batches(todo, batch_size):
            started = time.perf_counter()
            samples = [make(picture, needs) for picture in batch.values()]
            scored = reward.score(samples, batch_size=batch_size)
            seconds = (time.perf_counter() - started) / len(batch)
            rows = list(_rows(reward, fingerprint, batch, scored, seconds, device))
            writer.add(row for row in rows if row["key"] not in known)
            failed = {row["key"] for row in rows if row["error"] is not None}
            second.add(row for row in rows if row["key"] in known and row["key"] not in failed)
            progress(len(batch))
    return len(todo)


def _batches(todo: Mapping[str, Picture], size: int) -> Iterator[dict[str, Picture]]:
    keys = list(todo)
    for start in range(0, len(keys), size):
        yield {key: todo[key] for key in keys[start : start + size]}


def _sample(picture: Picture, needs: Sequence[str]) -> Sample:
    extras = {name: picture.extras[name] for name in needs if name in picture.extras}
    if is_clip(picture.path):
        return Sample(prompt=picture.prompt, video=picture.path, extras=extras, id=picture.sample_id)
    if is_sound(picture.path):
        return Sample(prompt=picture.prompt, audio=picture.path, extras=extras, id=picture.sample_id)
    return Sample(prompt=picture.prompt, image=picture.path, extras=extras, id=picture.sample_id)


def _rows(
    reward: Reward,
    fingerprint: str,
    batch: Mapping[str, Picture],
    scored: Scored,
    seconds: float,
    device: str,
) -> Iterator[dict[str, Any]]:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    for place, (key, picture) in enumerate(batch.items()):
        for column, output in enumerate(scored.outputs):
            yield {
                "key": key,
                "output": output,
                "sample_id": picture.sample_id,
                "sha256": picture.sha256,
                "prompt": picture.prompt,
                "reward": reward.card.name,
                "fingerprint": fingerprint,
                "value": float(scored.values[place, column]),
                "truncated": scored.truncated[place],
                "error": scored.errors[place],
                "raw": scored.raw[place],
                "seconds": seconds,
                "device": device,
                "created": created,
            }
