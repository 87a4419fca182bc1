"""The second stage: every reward scores every picture once; a score is stored under what it depends on.

The key of a score is the picture's bytes, the prompt and the reward's fingerprint. Neither the run, the
model, the machine nor the number of processes is in it: what was scored anywhere is not scored again.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmalign.evals.jobs import shard_of
from mmalign.evals.store import PartTable
from mmalign.rewards.base import Reward, Scored
from mmalign.rewards.sample import Sample

__all__ = ["Picture", "score_key", "score_missing", "scores_table", "unscored"]


@dataclass(frozen=True)
class Picture:
    """A stored picture with what rewards read.

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


def score_key(picture: Picture, needs: Sequence[str], fingerprint: str) -> str:
    """Hexadecimal hash under which the scores of a picture by one reward are stored."""
    extras = sorted((name, repr(picture.extras[name])) for name in needs if name in picture.extras)
    parts = [picture.sha256, picture.prompt, repr(extras), fingerprint]
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def unscored(pictures: Sequence[Picture], needs: Sequence[str], fingerprint: str, folder: Path) -> int:
    """How many pictures a reward has no stored score of; the reward itself need not be loaded for it."""
    if not pictures:
        return 0
    stored = {key for key, _ in scores_table(folder).stored_keys()}
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
    """
    make = sample_of or _sample
    table = scores_table(folder)
    fingerprint, needs = reward.fingerprint(), reward.card.needs
    stored = {key for key, _ in table.stored_keys()}
    todo: dict[str, Picture] = {}
    mine = [picture for picture in pictures if shard_of(picture.sample_id, shard[1]) == shard[0]]
    for picture in mine:
        key = score_key(picture, needs, fingerprint)
        if key not in stored:
            todo.setdefault(key, picture)
    progress(len(mine) - len(todo))
    with table.writer() as writer:
        for batch in _batches(todo, batch_size):
            started = time.perf_counter()
            samples = [make(picture, needs) for picture in batch.values()]
            scored = reward.score(samples, batch_size=batch_size)
            seconds = (time.perf_counter() - started) / len(batch)
            writer.add(_rows(reward, fingerprint, batch, scored, seconds, device))
            progress(len(batch))
    return len(todo)


def _batches(todo: Mapping[str, Picture], size: int) -> Iterator[dict[str, Picture]]:
    keys = list(todo)
    for start in range(0, len(keys), size):
        yield {key: todo[key] for key in keys[start : start + size]}


def _sample(picture: Picture, needs: Sequence[str]) -> Sample:
    extras = {name: picture.extras[name] for name in needs if name in picture.extras}
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
