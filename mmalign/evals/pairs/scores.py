"""Scores of things that lie anywhere, in the same store and under the same keys as those of pictures."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.evals.scoring import Picture, read_scores, score_key, scores_table
from mmalign.rewards.base import Reward, Scored
from mmalign.rewards.sample import Sample, media_hash

__all__ = ["Entry", "ScoreBook", "entry_of", "score_rows"]


@dataclass(frozen=True)
class Entry:
    """A sample with the hash of what it shows.

    Args:
        sample: what a reward is given.
        sha256: of the file, of the text where there is none, of both hashes where there are both.
    """

    sample: Sample
    sha256: str

    def key(self, reward: Reward, fingerprint: str) -> str:
        """Under which its score is stored."""
        return self.key_of(reward.card.needs, fingerprint)

    def key_of(self, needs: Sequence[str], fingerprint: str) -> str:
        """The same without the reward at hand.

        Args:
            needs: extras the reward reads.
            fingerprint: of the reward.
        """
        sample = self.sample
        return score_key(
            Picture(sample.id, sample.prompt, Path(), self.sha256, sample.extras), needs, fingerprint
        )


def entry_of(sample: Sample) -> Entry:
    """The sample with its hash.

    Raises:
        RowError: its file cannot be read.
    """
    parts = [media_hash(media) for media in (sample.image, sample.audio) if media is not None]
    if sample.text is not None or not parts:
        text = (sample.text or "").encode("utf-8", "surrogatepass")
        parts.append(hashlib.sha256(text).hexdigest())
    # An answer to a picture or sound is told apart from the picture, and from the same answer to another one.
    joined = parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
    return Entry(sample, joined)


def score_rows(
    reward: Reward, fingerprint: str, entries: Sequence[Entry], batch_size: int
) -> list[dict[str, Any]]:
    """Rows of the table of scores. Nothing in them depends on time, machine or order of work."""
    if not entries:
        return []
    scored = reward.score([entry.sample for entry in entries], batch_size=batch_size)
    keys = [entry.key(reward, fingerprint) for entry in entries]
    return [
        _row(reward, fingerprint, keys[place], entries[place], scored, place, column)
        for place in range(len(entries))
        for column in range(len(scored.outputs))
    ]


def _row(
    reward: Reward,
    fingerprint: str,
    key: str,
    entry: Entry,
    scored: Scored,
    place: int,
    column: int,
) -> dict[str, Any]:
    return {
        "key": key,
        "output": scored.outputs[column],
        "sample_id": entry.sample.id,
        "sha256": entry.sha256,
        "prompt": entry.sample.prompt,
        "reward": reward.card.name,
        "fingerprint": fingerprint,
        "value": float(scored.values[place, column]),
        "truncated": scored.truncated[place],
        "error": scored.errors[place],
        "raw": scored.raw[place],
        "seconds": None,
        "device": None,
        "created": None,
    }


class ScoreBook:
    """Scores of one reward in a store: looked up, and made where they are missing.

    Args:
        reward: loaded reward.
        store: folder of scores.
        batch_size: samples per call.
    """

    def __init__(self, reward: Reward, store: Path, *, batch_size: int = 16) -> None:
        self.reward, self.batch_size = reward, batch_size
        self.fingerprint = reward.fingerprint()
        self.table = scores_table(store)
        self.fresh = 0
        self.values: dict[str, float] = {}
        self.errors: dict[str, str] = {}
        first = reward.card.outputs[0]
        for row in read_scores(store, ("key", "output", "value", "error", "fingerprint")):
            if row["fingerprint"] == self.fingerprint and row["output"] == first:
                self._note(row)

    def _note(self, row: Mapping[str, Any]) -> None:
        self.values.setdefault(row["key"], row["value"])
        if row["error"] is not None:
            self.errors.setdefault(row["key"], row["error"])

    def score(self, entries: Iterable[Entry]) -> list[float]:
        """The first output of each entry, higher or lower as the reward has it; NaN where it failed.

        What is new is stored before this returns.
        """
        entries = list(entries)
        keys = [entry.key(self.reward, self.fingerprint) for entry in entries]
        new = {key: entry for key, entry in zip(keys, entries, strict=True) if key not in self.values}
        rows = score_rows(self.reward, self.fingerprint, list(new.values()), self.batch_size)
        self.table.write(rows)
        first = self.reward.card.outputs[0]
        for row in rows:
            if row["output"] == first:
                self._note(row)
        self.fresh += len(new)
        return [self.values[key] for key in keys]
