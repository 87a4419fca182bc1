"""Reference errors as data: computed once for a fixed bank of draws, read back by every later run.

A row's noise and timestep come from its key, and the key from (seed, row, draw number). The error of a frozen
reference is therefore a constant per key: 4 bytes per candidate and draw replace a forward pass, and the
second copy of the weights. The numbers are only valid for the model, data preparation and likelihood that
made them, so these facts are stored beside them and compared before anything is read. They equal the live
reference's to the bit where the arithmetic is the same, batch size included: it decides how products round.
"""

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

__all__ = ["ReferenceTable", "StoredReference", "precompute_errors"]


@dataclass(frozen=True, eq=False)
class ReferenceTable:
    """Errors of a frozen reference, one entry per row and draw.

    Args:
        key: row keys, made ascending and unique here.
        error: error of every candidate.
        facts: what the numbers depend on, in words; a table is refused where they differ.
    """

    key: Int[Tensor, " entry"]
    error: Float[Tensor, "entry candidate"]
    facts: Mapping[str, str]
    _keys: DeviceTable = field(init=False, repr=False)
    _errors: DeviceTable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Sort by key and drop repeated keys, so that lookups are a binary search."""
        key, error = self.key.detach().to("cpu"), self.error.detach().to("cpu")
        if error.ndim != 2 or key.shape != error.shape[:1]:
            message = explain(
                "ReferenceTable",
                got=f"[{list(key.shape)} keys, {list(error.shape)} errors]",
                expected="one key and one row of candidate errors per entry",
            )
            raise ShapeError(message)
        ascending, order = torch.sort(key, stable=True)
        first = torch.ones_like(ascending, dtype=torch.bool)
        first[1:] = ascending[1:] != ascending[:-1]
        object.__setattr__(self, "key", ascending[first])
        object.__setattr__(self, "error", error[order][first])
        object.__setattr__(self, "facts", dict(self.facts))
        object.__setattr__(self, "_keys", DeviceTable(self.key))
        object.__setattr__(self, "_errors", DeviceTable(self.error))

    def __len__(self) -> int:
        """Entries."""
        return self.key.shape[0]

    def find(
        self, key: Int[Tensor, " prompt"]
    ) -> tuple[Float[Tensor, "prompt candidate"], Bool[Tensor, " prompt"]]:
        """`(errors, found)` of row keys, on their device, without waiting for it; NaN where not found."""
        if len(self) == 0:
            missing = self.error.new_full((key.shape[0], self.error.shape[1]), torch.nan).to(key.device)
            return missing, torch.zeros_like(key, dtype=torch.bool)
        keys, errors = self._keys.on(key.device), self._errors.on(key.device)
        place = torch.searchsorted(keys, key.contiguous()).clamp(max=len(self) - 1)
        found = keys.index_select(0, place) == key
        return torch.where(found.unsqueeze(1), errors.index_select(0, place), torch.nan), found

    def merged(self, other: "ReferenceTable") -> "ReferenceTable":
        """The entries of both (ranks, or an interrupted computation and its continuation).

        Raises:
            CheckpointError: they were computed under different facts.
        """
        require_same_facts("tables to merge", self.facts, other.facts)
        return ReferenceTable(
            torch.cat([self.key, other.key]), torch.cat([self.error, other.error]), self.facts
        )

    def save(self, path: str | Path) -> Path:
        """Write as safetensors, atomically, the facts in its header. Returns the path."""
        tensors = {"key": self.key, "error": self.error}
        return save_tensors(path, tensors, {"facts": json.dumps(dict(self.facts), sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> "ReferenceTable":
        """The table in a file.

        Raises:
            CheckpointError: missing, damaged, or another kind of file.
        """
        tensors = load_tensors(path)
        facts = facts_of(path)
        if facts is None or {"key", "error"} - tensors.keys():
            message = (
                f"{path}: got a safetensors file with {sorted(tensors)}, expected stored reference errors "
                "(key, error, facts). Was it made by precompute_errors?"
            )
            raise CheckpointError(message)
        return cls(tensors["key"], tensors["error"], facts)


def facts_of(path: str | Path) -> dict[str, str] | None:
    """The facts in a table's header; None in another kind of file."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        text = (file.metadata() or {}).get("facts")
    return None if text is None else dict(json.loads(text))


def require_same_facts(
    where: str, stored: Mapping[str, str], wanted: Mapping[str, str], *, what: str = "errors"
) -> None:
    """Raise `CheckpointError` naming every fact in which two sides differ."""
    names = [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]
    if not names:
        return
    listing = "; ".join(
        f"{name}: stored {stored.get(name, 'nothing')!r}, this run {wanted.get(name, 'nothing')!r}"
        for name in names
    )
    message = (
        f"{where}: the stored reference {what} belong to another set-up ({listing}). They would be wrong "
        "here. Compute them again, or restore these settings."
    )
    raise CheckpointError(message)


class StoredReference:
    """Scores from a table: no forward, no second network.

    Args:
        table: the numbers.
        likelihood: the run's likelihood; must describe itself as the one that made the table.
        facts: what else this run's numbers depend on (model, data preparation, seed, dtype).

    Raises:
        CheckpointError: the table was made under other facts.
    """

    kind = "stored"

    def __init__(self, table: ReferenceTable, likelihood: Likelihood, facts: Mapping[str, str]) -> None:
        require_same_facts("reference stored", table.facts, {**likelihood.describe(), **facts})
        self.table = table

    def evaluate(
        self, likelihood: Likelihood, batch: Batch, draw: AnyDraw, *, keep_prediction: bool = False
    ) -> Evaluation:
        """Stored errors of the batch's rows; predictions are not stored.

        A valid row without an entry gives NaN, which the training loop drops and counts; on the CPU it
        raises.

        Raises:
            CheckpointError: on the CPU, a valid row has no entry.
            ShapeError: another number of candidates than stored.
        """
        del likelihood, draw, keep_prediction
        if batch.num_candidates != self.table.error.shape[1]:
            message = explain(
                "reference stored",
                got=f"{batch.num_candidates} candidates",
                expected=str(self.table.error.shape[1]),
            )
            raise ShapeError(message)
        error, found = self.table.find(batch.keys.key)
        missing = batch.valid & ~found
        if missing.device.type == "cpu" and bool(missing.any()):
            self._refuse(missing, batch.ids)
        # An unreadable row has no entry and counts nowhere; NaN would still poison its masked loss.
        return Evaluation.from_error(torch.where(batch.valid.unsqueeze(1), error, error.nan_to_num(0.0)))

    def update(self, step: int) -> None:
        """Nothing moves."""
        del step

    def _refuse(self, missing: Tensor, ids: tuple[str, ...]) -> None:
        rows = missing.nonzero().flatten().tolist()
        named = [ids[row] if row < len(ids) else f"row {row} of the batch" for row in rows[:3]]
        message = (
            f"reference stored: no stored errors for {len(rows)} rows of this batch, first: "
            f"{', '.join(named)} ({len(self.table)} entries). Precompute them for every row and draw, with "
            "the run's seed and draws_per_row."
        )
        raise CheckpointError(message)


def precompute_errors(
    reference: Reference,
    likelihood: Likelihood,
    batches: Iterable[Batch],
    *,
    facts: Mapping[str, str],
    done: ReferenceTable | None = None,
) -> ReferenceTable:
    """Errors of a frozen reference for every readable row of `batches`.

    Args:
        reference: adapters_off or frozen.
        likelihood: the run's likelihood; its description joins the facts.
        batches: every row once per draw, in any order and batch size; each rank passes its own and merges.
        facts: what else the numbers depend on (model, data preparation, seed, dtype).
        done: an earlier, interrupted result: batches it covers are not computed again.

    Raises:
        ConfigError: the reference moves or is none, so that nothing can be stored.
        CheckpointError: `done` was computed under other facts.
    """
    if reference.kind not in ("adapters_off", "frozen"):
        message = explain(
            "precompute_errors",
            got=f"reference {reference.kind}",
            expected="adapters_off or frozen, which never move",
        )
        raise ConfigError(message)
    described = {**likelihood.describe(), **facts}
    if done is not None:
        require_same_facts("continuing stored reference errors", done.facts, described)
    keys, errors = [], []
    for batch in batches:
        if done is not None and bool((done.find(batch.keys.key)[1] | ~batch.valid).all()):
            continue
        evaluation = reference.evaluate(likelihood, batch, likelihood.draw(batch))
        if evaluation is not None:
            keys.append(batch.keys.key[batch.valid].to("cpu"))
            errors.append(evaluation.error[batch.valid].to("cpu"))
    if not keys:
        if done is None:
            raise ConfigError(explain("precompute_errors", got="no batches", expected="at least one"))
        return done
    table = ReferenceTable(torch.cat(keys), torch.cat(errors), described)
    return table if done is None else done.merged(table)
