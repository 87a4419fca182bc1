"""Log-likelihoods of answers under a frozen reference, as a table keyed by content.

One entry per answer: its sum, its length and, on request, the number of every token, all answers' tokens in
one row behind each other. Lookups run on the device of the keys and never wait for it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmalign.errors import CheckpointError, ConfigError, ShapeError, explain
from mmalign.files import load_tensors, save_tensors
from mmalign.likelihood.schedules import DeviceTable
from mmalign.likelihood.stored import facts_of, require_same_facts

__all__ = ["Lookup", "TokenTable", "content_key"]


def content_key(*parts: str | bytes | int | Tensor) -> int:
    """A 63-bit key of what a network reads for one answer, equal on every machine.

    Args:
        parts: token ids (integer tensors on the CPU), digests of media, names; their order, number and
            boundaries matter.

    Raises:
        ConfigError: a floating tensor, whose last bits differ between machines. Pass a digest of its source.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        match part:
            case Tensor():
                if part.is_floating_point():
                    message = explain("content_key", got=str(part.dtype), expected="token ids or digests")
                    raise ConfigError(message)
                data = b"t" + part.to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes()
            case bytes():
                data = b"b" + part
            case _:
                data = b"s" + str(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "big") >> 1


@dataclass(frozen=True)
class Lookup:
    """What a table knows about answers, on the device of their keys.

    Args:
        total: log-likelihood; NaN where not found.
        found: whether there is an entry of that key and length.
        inner: log-probability of every token, 0 behind an answer, NaN where not found; None where the table
            holds sums alone.
    """

    total: Float[Tensor, "prompt candidate"]
    found: Bool[Tensor, "prompt candidate"]
    inner: Float[Tensor, "prompt candidate token"] | None = None


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Log-likelihoods under a frozen reference, one entry per answer.

    Args:
        key: content keys, made ascending and unique here.
        total: log-likelihood of every answer.
        length: its tokens.
        facts: what the numbers depend on, in words; a table is refused where they differ.
        token: log-probabilities of all tokens, answer after answer in the order of `key`; None keeps sums.

    Raises:
        ShapeError: the parts do not belong together.
    """

    key: Int[Tensor, " entry"]
    total: Float[Tensor, " entry"]
    length: Int[Tensor, " entry"]
    facts: Mapping[str, str]
    token: Float[Tensor, " token"] | None = None
    _placed: Mapping[str, DeviceTable] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Sort by key and drop repeated keys, so that lookups are a binary search."""
        key, total, length = (value.detach().to("cpu") for value in (self.key, self.total, self.length))
        token = None if self.token is None else self.token.detach().to("cpu")
        if not key.shape == total.shape == length.shape or key.ndim != 1:
            message = explain(
                "TokenTable",
                got=f"{list(key.shape)} keys, {list(total.shape)} sums, {list(length.shape)} lengths",
                expected="one of each per answer",
            )
            raise ShapeError(message)
        if token is not None and token.shape != (int(length.sum()),):
            message = explain(
                "TokenTable token",
                got=list(token.shape),
                expected=f"[{int(length.sum())}], the sum of the lengths",
            )
            raise ShapeError(message)
        ascending, order = torch.sort(key, stable=True)
        first = torch.ones_like(ascending, dtype=torch.bool)
        first[1:] = ascending[1:] != ascending[:-1]
        kept = order[first]
        if token is not None:
            token = token[_spans(length.cumsum(0) - length, length, kept)]
        length = length[kept]
        begin = length.cumsum(0) - length
        placed = {"key": key[kept], "total": total[kept], "length": length, "begin": begin}
        object.__setattr__(self, "key", placed["key"])
        object.__setattr__(self, "total", placed["total"])
        object.__setattr__(self, "length", length)
        object.__setattr__(self, "token", token)
        object.__setattr__(self, "facts", dict(self.facts))
        placed |= {} if token is None else {"token": token}
        object.__setattr__(self, "_placed", {name: DeviceTable(value) for name, value in placed.items()})

    def __len__(self) -> int:
        """Entries."""
        return self.key.shape[0]

    def find(
        self, key: Int[Tensor, "prompt candidate"], mask: Float[Tensor, "prompt candidate token"]
    ) -> Lookup:
        """What is stored of answers, without waiting for their device.

        Args:
            key: content keys.
            mask: 1 at the tokens of the answers; an entry of another length is not theirs.
        """
        if len(self) == 0:
            total = torch.full(key.shape, torch.nan, dtype=self.total.dtype, device=key.device)
            inner = None if self.token is None else total.unsqueeze(-1).expand(mask.shape)
            return Lookup(total, torch.zeros_like(key, dtype=torch.bool), inner)
        there = {name: table.on(key.device) for name, table in self._placed.items()}
        flat = key.flatten().contiguous()
        entry = torch.searchsorted(there["key"], flat).clamp(max=len(self) - 1)
        marked = mask.flatten(0, 1) != 0
        length = there["length"][entry]
        found = (there["key"][entry] == flat) & (length == marked.sum(-1))
        total = torch.where(found, there["total"][entry], torch.nan).view(key.shape)
        if self.token is None:
            return Lookup(total, found.view(key.shape))
        if not len(self.token):
            return Lookup(total, found.view(key.shape), torch.zeros_like(mask, dtype=self.token.dtype))
        # The k-th marked position of an answer holds its k-th number, wherever it stands.
        rank = marked.cumsum(-1) - 1
        place = (there["begin"][entry].unsqueeze(-1) + rank).clamp(min=0, max=len(self.token) - 1)
        inner = torch.where(found.unsqueeze(-1), there["token"][place], torch.nan)
        return Lookup(total, found.view(key.shape), torch.where(marked, inner, 0.0).view(mask.shape))

    def merged(self, other: "TokenTable") -> "TokenTable":
        """The entries of both (ranks, or an interrupted computation and its continuation).

        Raises:
            CheckpointError: they were computed under different facts, or one keeps sums alone.
        """
        require_same_facts("tables to merge", self.facts, other.facts, what="log-probabilities")
        if (self.token is None) != (other.token is None):
            message = (
                "tables to merge: got one with log-probabilities per token and one with sums alone, expected "
                "two of a kind. Compute the smaller one again."
            )
            raise CheckpointError(message)
        token = None if self.token is None or other.token is None else torch.cat([self.token, other.token])
        return TokenTable(
            torch.cat([self.key, other.key]),
            torch.cat([self.total, other.total]),
            torch.cat([self.length, other.length]),
            self.facts,
            token,
        )

    def save(self, path: str | Path) -> Path:
        """Write as safetensors, atomically, the facts in its header. Returns the path."""
        tensors = {"key": self.key, "total": self.total, "length": self.length}
        if self.token is not None:
            tensors["token"] = self.token
        return save_tensors(path, tensors, {"facts": json.dumps(dict(self.facts), sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> "TokenTable":
        """The table in a file.

        Raises:
            CheckpointError: missing, damaged, or another kind of file.
        """
        tensors = load_tensors(path)
        facts = facts_of(path)
        if facts is None or {"key", "total", "length"} - tensors.keys():
            message = (
                f"{path}: got a safetensors file with {sorted(tensors)}, expected stored log-probabilities "
                "(key, total, length, facts). Was it made by precompute_log_probs?"
            )
            raise CheckpointError(message)
        return cls(tensors["key"], tensors["total"], tensors["length"], facts, tensors.get("token"))


def _spans(begin: Tensor, length: Tensor, entries: Tensor) -> Tensor:
    """Indices of the tokens of `entries`, one entry after another."""
    lengths = length[entries]
    shift = begin[entries] - (lengths.cumsum(0) - lengths)
    return torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)
