"""Log-probabilities of a frozen reference as data: computed once, read back by every later run and epoch.

An answer under a frozen language model has one log-likelihood: 4 bytes per answer replace a forward pass with
vision tower, and 4 bytes per token serve methods that look inside. Entries are keyed by content, per answer:
`Batch.recorded["content_key"]`, int64 `[prompt, candidate]`, a digest of everything the network reads for it
(prompt tokens, media, answer tokens; see `content_key`). Rows that share an answer share its entry, a row
that moved in its file keeps it, and one whose picture, template or text changed no longer finds it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmalign.batch import Batch
from mmalign.errors import CheckpointError, ConfigError, ShapeError, explain
from mmalign.files import load_tensors, save_tensors
from mmalign.likelihood.base import AnyDraw, Evaluation, Likelihood, Reference
from mmalign.likelihood.schedules import DeviceTable
from mmalign.likelihood.stored import facts_of, require_same_facts

__all__ = [
    "CONTENT_KEY",
    "Lookup",
    "StoredTokenReference",
    "TokenTable",
    "content_key",
    "precompute_log_probs",
    "uncovered",
]

CONTENT_KEY = "content_key"
"""Name of the keys in `Batch.recorded`."""

_KINDS = ("adapters_off", "frozen")


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


def _keys_and_mask(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and mask of a batch, and which of its answers count: of readable rows, with tokens."""
    key, mask = batch.recorded.get(CONTENT_KEY), batch.element_mask
    if key is None or mask is None or key.shape != batch.clean.shape[:2] or key.dtype != torch.int64:
        got = "nothing" if key is None else f"{key.dtype} of shape {list(key.shape)}"
        message = explain(
            f"Batch.recorded[{CONTENT_KEY!r}], needed by stored references",
            got=got if mask is not None else f"{got}, no element_mask",
            expected=f"int64 {list(batch.clean.shape[:2])} and a mask of the answers' tokens",
        )
        raise ConfigError(message)
    return key, mask, batch.valid.unsqueeze(1) & (mask != 0).any(-1)


def uncovered(table: TokenTable | None, batch: Batch) -> Bool[Tensor, "prompt candidate"]:
    """Which answers of readable rows a table does not hold; all of them without a table.

    Raises:
        ConfigError: the batch has no content keys.
    """
    key, mask, counts = _keys_and_mask(batch)
    return counts if table is None else counts & ~table.find(key, mask).found


class StoredTokenReference:
    """Log-likelihoods from a table: no forward, no vision tower, no second network.

    Args:
        table: the numbers.
        likelihood: the run's likelihood; must describe itself as the one that made the table.
        facts: what else this run's numbers depend on (model, adapter, precision).
        per_token: whether the objective looks inside answers; a table of sums is then refused.

    Raises:
        CheckpointError: the table was made under other facts, or lacks numbers per token.
    """

    kind = "stored"

    def __init__(
        self, table: TokenTable, likelihood: Likelihood, facts: Mapping[str, str], *, per_token: bool = False
    ) -> None:
        wanted = {**likelihood.describe(), **facts}
        require_same_facts("reference stored", table.facts, wanted, what="log-probabilities")
        if per_token and table.token is None:
            message = (
                "reference stored: got sums per answer, expected log-probabilities per token, which this "
                "method compares. Precompute them with per_token=True."
            )
            raise CheckpointError(message)
        self.table = table

    def evaluate(
        self, likelihood: Likelihood, batch: Batch, draw: AnyDraw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Stored numbers of the batch's answers; hidden states are not stored.

        An answer without an entry gives NaN, which the training loop drops and counts; on the CPU it raises.

        Raises:
            CheckpointError: on the CPU, an answer of a readable row has no entry.
            ConfigError: the batch has no content keys.
        """
        del likelihood, draw, keep_prediction
        key, mask, counts = _keys_and_mask(batch)
        stored = self.table.find(key, mask)
        missing = counts & ~stored.found
        if missing.device.type == "cpu" and bool(missing.any()):
            self._refuse(missing, batch.ids)
        # Unreadable rows and padding count nowhere; NaN would still poison their masked loss.
        total = torch.where(counts, stored.total, stored.total.nan_to_num(0.0))
        inner = stored.inner
        if inner is not None:
            inner = torch.where(counts.unsqueeze(-1), inner, inner.nan_to_num(0.0))
        return Evaluation(score=total, error=-total, inner=inner, mask=None if inner is None else mask)

    def update(self, step: int) -> None:
        """Nothing moves."""
        del step

    def _refuse(self, missing: Tensor, ids: tuple[str, ...]) -> None:
        rows = missing.any(1).nonzero().flatten().tolist()
        named = [ids[row] if row < len(ids) else f"row {row} of the batch" for row in rows[:3]]
        message = (
            f"reference stored: no stored log-probabilities for {int(missing.sum())} answers of this batch, "
            f"first rows: {', '.join(named)} ({len(self.table)} entries). Precompute them for every row, "
            "with the prompts, media settings and corruptions of this run."
        )
        raise CheckpointError(message)


def precompute_log_probs(
    reference: Reference,
    likelihood: Likelihood,
    batches: Iterable[Batch],
    *,
    facts: Mapping[str, str],
    per_token: bool = False,
    done: TokenTable | None = None,
) -> TokenTable:
    """Log-likelihoods of a frozen reference for every answer of every readable row of `batches`.

    Args:
        reference: adapters_off or frozen.
        likelihood: the run's likelihood; its description joins the facts.
        batches: every row once (once per draw, where media are corrupted at random), in any order and batch
            size; each rank passes its own and merges.
        facts: what else the numbers depend on (model, adapter, precision); prompts, media and answers are in
            the keys.
        per_token: keep every token's number, for methods that look inside answers.
        done: an earlier, interrupted result: batches it covers are not computed again.

    Returns:
        A table of all answers, those of `done` included.

    Raises:
        ConfigError: the reference moves or is none, the likelihood gives no numbers per token, there are no
            batches, or they have no content keys.
        CheckpointError: `done` was computed under other facts, or keeps sums where tokens are wanted.
    """
    if reference.kind not in _KINDS:
        message = explain(
            "precompute_log_probs",
            got=f"reference {reference.kind}",
            expected="adapters_off or frozen, which never move",
        )
        raise ConfigError(message)
    described = {**likelihood.describe(), **facts}
    if done is not None:
        require_same_facts(
            "continuing stored log-probabilities", done.facts, described, what="log-probabilities"
        )
        if per_token != (done.token is not None):
            message = (
                "continuing stored log-probabilities: got sums alone or numbers per token, expected what "
                f"was asked for now (per_token={per_token}). Start anew, or ask for the same."
            )
            raise CheckpointError(message)
    parts = [
        _entries(reference, likelihood, batch, described, per_token=per_token)
        for batch in batches
        if bool(uncovered(done, batch).any())
    ]
    if not parts:
        if done is None:
            raise ConfigError(explain("precompute_log_probs", got="no answers", expected="at least one"))
        return done
    return _joined(parts if done is None else [done, *parts])


def _entries(
    reference: Reference,
    likelihood: Likelihood,
    batch: Batch,
    facts: Mapping[str, str],
    *,
    per_token: bool,
) -> TokenTable:
    """The answers of one batch."""
    key, mask, counts = _keys_and_mask(batch)
    found = reference.evaluate(likelihood, batch, likelihood.draw(batch))
    if found is None or found.inner is None:
        message = explain(
            "precompute_log_probs",
            got=f"likelihood {likelihood.kind}, which gives no numbers per token",
            expected="tokens",
        )
        raise ConfigError(message)
    marked = (mask != 0) & counts.unsqueeze(-1)
    return TokenTable(
        key[counts],
        found.score[counts],
        marked.sum(-1)[counts],
        facts,
        found.inner[marked] if per_token else None,
    )


def _joined(parts: list[TokenTable]) -> TokenTable:
    """All entries, put together at once: pair by pair would sort the first ones again and again."""
    token = [part.token for part in parts if part.token is not None]
    return TokenTable(
        torch.cat([part.key for part in parts]),
        torch.cat([part.total for part in parts]),
        torch.cat([part.length for part in parts]),
        parts[0].facts,
        torch.cat(token) if token else None,
    )
