"""Scored candidates of many prompts, and which of them take part: failures, thresholds, near-duplicates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmalign.errors import ConfigError, RowError, explain
from mmalign.evals.pairs.plan import DuplicatesConfig
from mmalign.evals.store import PartTable
from mmalign.rewards.sample import Media, to_image

__all__ = [
    "Pool",
    "PoolCandidate",
    "PoolPrompt",
    "Step",
    "distinct",
    "picture_hash",
    "read_embeddings",
    "within_thresholds",
    "without_duplicates",
    "without_failures",
]


@dataclass(frozen=True)
class PoolCandidate:
    """One picture of a prompt.

    Args:
        id: unique in the pool and stable: MODEL:ITEM/COPY, or the name a shard gives it.
        model: what made it.
        sha256: of its file.
        read: returns its encoded bytes.
        path: its file, where it has one of its own.
        ending: of its file, with the dot.
    """

    id: str
    model: str
    sha256: str
    read: Callable[[], bytes] = field(repr=False, compare=False)
    path: Path | None = None
    ending: str = ".png"


@dataclass(frozen=True)
class PoolPrompt:
    """A prompt with its candidates.

    Args:
        id: of the prompt's item.
        prompt: its text.
        candidates: in a fixed order that does not depend on scores.
        values: [candidate, reward], higher is better, NaN where a reward failed.
    """

    id: str
    prompt: str
    candidates: tuple[PoolCandidate, ...]
    values: Float[Tensor, "candidate reward"]

    def keep(self, places: Sequence[int]) -> "PoolPrompt":
        """The prompt with some of its candidates."""
        if len(places) == len(self.candidates):
            return self
        chosen = tuple(self.candidates[place] for place in places)
        return replace(self, candidates=chosen, values=self.values[list(places)])


@dataclass(frozen=True)
class Step:
    """What one filter did.

    Args:
        name: in words.
        prompts: that are left.
        candidates: that are left.
        pairs: that are left, once there are pairs.
        left_out: what went, by reason.
    """

    name: str
    prompts: int
    candidates: int | None = None
    pairs: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """For the card: without what does not apply."""
        shown = {"step": self.name, "prompts": self.prompts}
        for name in ("candidates", "pairs"):
            if getattr(self, name) is not None:
                shown[name] = getattr(self, name)
        return shown | ({"left_out": dict(self.left_out)} if self.left_out else {})

    def describe(self) -> str:
        """One line."""
        counts = {"prompts": self.prompts, "candidates": self.candidates, "pairs": self.pairs}
        left = ", ".join(f"{count} {name}" for name, count in counts.items() if count is not None)
        gone = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return f"{self.name}: {left}" + (f" (left out: {gone})" if gone else "")


@dataclass
class Pool:
    """All prompts, with the steps that led here.

    Args:
        titles: of the rewards, in the order of the values.
        prompts: with at least two candidates each, once filters ran.
        steps: what was left out so far.
    """

    titles: tuple[str, ...]
    prompts: list[PoolPrompt]
    steps: list[Step] = field(default_factory=list)

    @property
    def num_candidates(self) -> int:
        """Candidates of all prompts."""
        return sum(len(prompt.candidates) for prompt in self.prompts)

    def column(self, title: str) -> int:
        """Number of a reward.

        Raises:
            ConfigError: there is none of this title.
        """
        if title not in self.titles:
            raise ConfigError(explain("pairs reward", got=title, expected=f"one of {', '.join(self.titles)}"))
        return self.titles.index(title)

    def filtered(self, name: str, keep: Callable[[PoolPrompt], Sequence[int]]) -> "Pool":
        """Candidates that `keep` names; prompts with fewer than two are left out and counted."""
        prompts, gone, alone = [], 0, 0
        for prompt in self.prompts:
            left = prompt.keep(keep(prompt))
            gone += len(prompt.candidates) - len(left.candidates)
            if len(left.candidates) < 2:
                alone += 1
                continue
            prompts.append(left)
        reasons = {"candidates": gone, "prompts with fewer than two candidates": alone}
        found = Pool(self.titles, prompts)
        left_out = {reason: count for reason, count in reasons.items() if count}
        found.steps = [*self.steps, Step(name, len(prompts), found.num_candidates, left_out=left_out)]
        return found


def without_failures(pool: Pool) -> Pool:
    """Candidates that every reward could score."""

    def keep(prompt: PoolPrompt) -> list[int]:
        complete = torch.isfinite(prompt.values).all(dim=1)
        return [place for place, whole in enumerate(complete.tolist()) if whole]

    return pool.filtered("scored by every reward", keep)


def within_thresholds(pool: Pool, thresholds: Mapping[str, tuple[float | None, float | None]]) -> Pool:
    """Candidates whose rewards lie in [least, most], ends included; None leaves a side open.

    Raises:
        ConfigError: a title that no reward has.
    """
    limits = [
        (pool.column(title), -torch.inf if low is None else low, torch.inf if high is None else high)
        for title, (low, high) in thresholds.items()
    ]

    def keep(prompt: PoolPrompt) -> list[int]:
        return [
            place
            for place, values in enumerate(prompt.values.tolist())
            if all(low <= values[column] <= high for column, low, high in limits)
        ]

    return pool.filtered("within thresholds", keep) if thresholds else pool


# ------------------------------------------------------------------------------------------------ duplicates


def distinct(same: Bool[Tensor, "candidate other"]) -> list[int]:
    """Places that stay when each that is the same as an earlier kept one goes."""
    kept: list[int] = []
    for place in range(len(same)):
        if not any(bool(same[place, other]) for other in kept):
            kept.append(place)
    return kept


def picture_hash(media: Media) -> int:
    """A 64-bit hash of what a picture looks like: signs of horizontal differences of a 9 x 8 grey thumbnail.

    Re-encoding or resizing a picture moves few bits or none. A picture without any contrast is 0.

    Raises:
        RowError: the picture cannot be read.
    """
    from PIL import Image

    small = to_image(media).convert("L").resize((9, 8), Image.Resampling.BOX)
    grey = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).reshape(8, 9).to(torch.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).flatten().tolist()
    return sum(1 << place for place, bit in enumerate(bits) if bit)


def read_embeddings(path: str | Path) -> dict[str, Tensor]:
    """Unit vectors by the SHA-256 of the file they belong to.

    Raises:
        ConfigError: the file lacks a column, cannot be read, or holds vectors of length 0.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["sha256", "embedding"])
    except (pa.ArrowException, OSError, KeyError) as error:
        expected = "a parquet file with the columns sha256 and embedding"
        raise ConfigError(explain("duplicates.embeddings", got=str(path), expected=expected)) from error
    found = {}
    for row in table.to_pylist():
        vector = torch.tensor(row["embedding"], dtype=torch.float64)
        length = float(vector.norm())
        if not 0 < length < float("inf"):
            raise ConfigError(explain(f"{path} embedding", got=length, expected="a vector of length > 0"))
        found[row["sha256"]] = vector / length
    return found


def without_duplicates(pool: Pool, settings: DuplicatesConfig, folder: Path | None = None) -> Pool:
    """Candidates that look like no earlier one of their prompt.

    Args:
        pool: candidates.
        settings: what counts as the same; equal files always do, unless `by` is "none".
        folder: hashes of pictures are kept there, so that a second run need not decode them again.

    Raises:
        ConfigError: a candidate has no embedding, or a picture cannot be read.
    """
    if settings.by == "none":
        return pool
    if settings.by == "embedding":
        same = _same_by_embedding(read_embeddings(str(settings.embeddings)), settings.cosine)
        return pool.filtered(f"no near-duplicates (cosine > {settings.cosine:g})", same)
    if settings.by == "bytes":
        return pool.filtered("no equal files", lambda prompt: distinct(_equal_files(prompt)))
    hashes = _hashes(pool, folder)
    name = f"no near-duplicates (perceptual hash within {settings.max_bits} of 64 bits)"
    return pool.filtered(name, lambda prompt: distinct(_close(prompt, hashes, settings.max_bits)))


def _equal_files(prompt: PoolPrompt) -> Tensor:
    names = [candidate.sha256 for candidate in prompt.candidates]
    return torch.tensor([[one == other for other in names] for one in names])


def _close(prompt: PoolPrompt, hashes: Mapping[str, int], max_bits: int) -> Tensor:
    found = [hashes[candidate.sha256] for candidate in prompt.candidates]
    near = [[(one ^ other).bit_count() <= max_bits for other in found] for one in found]
    return torch.tensor(near) | _equal_files(prompt)


def _same_by_embedding(vectors: Mapping[str, Tensor], cosine: float) -> Callable[[PoolPrompt], Sequence[int]]:
    def keep(prompt: PoolPrompt) -> list[int]:
        lacking = [candidate.id for candidate in prompt.candidates if candidate.sha256 not in vectors]
        if lacking:
            expected = "an embedding for the SHA-256 of every candidate's file"
            raise ConfigError(
                explain("duplicates.embeddings", got=f"none of {lacking[0]}", expected=expected)
            )
        stacked = torch.stack([vectors[candidate.sha256] for candidate in prompt.candidates])
        return distinct((stacked @ stacked.T > cosine) | _equal_files(prompt))

    return keep


def _hashes(pool: Pool, folder: Path | None) -> dict[str, int]:
    """Hash of every picture, from the store where it was computed before."""
    table = (
        None
        if folder is None
        else PartTable(folder / "picture_hashes", {"sha256": "string", "hash": "string"}, key=("sha256",))
    )
    known = {} if table is None else {row["sha256"]: int(row["hash"], 16) for row in table.read()}
    fresh: dict[str, int] = {}
    for prompt in pool.prompts:
        for candidate in prompt.candidates:
            if candidate.sha256 in known or candidate.sha256 in fresh:
                continue
            try:
                fresh[candidate.sha256] = picture_hash(candidate.read())
            except RowError as error:
                message = f"{candidate.id}: {error} Set selection.duplicates.by: bytes to skip decoding."
                raise ConfigError(message) from error
    if table is not None:
        table.write([{"sha256": name, "hash": f"{value:016x}"} for name, value in fresh.items()])
    return known | fresh
