"""Reference errors computed once, before training: the second copy of the network is never needed.

The pass runs while the network is still the base model (before adapters are attached), over every draw of the
fixed bank of every row. Each rank takes its share and saves as it goes; an interrupted pass continues without
encoding anything twice, a finished one is reused by later runs in the same folder.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor

from mmalign.batch import Batch
from mmalign.data.readers import RowTable
from mmalign.data.sampler import RowOrder
from mmalign.errors import CheckpointError, explain
from mmalign.files import fingerprint
from mmalign.likelihood import Elbo, StoredReference
from mmalign.likelihood.reference import AdaptersOff
from mmalign.likelihood.stored import ReferenceTable, precompute_errors
from mmalign.train.config import ResolvedRun
from mmalign.train.loader import make_loader
from mmalign.train.micro_batch import to_batch
from mmalign.train.model import PreferenceModel
from mmalign.train.parts import draws_of
from mmalign.train.sections import NO_BITS

__all__ = ["REFERENCE_FILE", "OnceThrough", "stored_reference"]

REFERENCE_FILE = "reference_errors.safetensors"
_BATCHES_PER_SAVE = 200


class OnceThrough(RowOrder):
    """Every draw of every row once: position p is draw p % draws of row p // draws."""

    def at(self, position: int) -> tuple[int, int]:
        """(row, draw) at a position."""
        return divmod(position % self.num_entries, self.draws_per_row or 1)

    @property
    def num_entries(self) -> int:
        """Rows times draws."""
        return sum(self.sizes) * (self.draws_per_row or 1)


def stored_reference(
    run: ResolvedRun,
    model: PreferenceModel,
    likelihood: Elbo,
    *,
    table: RowTable,
    accelerator: Accelerator,
    autocast: Callable[[], AbstractContextManager[None]],
) -> StoredReference:
    """The stored errors of this run, computed now as far as the run folder does not hold them.

    Args:
        run: the resolved run.
        model: the base model, nothing attached yet.
        likelihood: decides draws and errors.
        table: rows.
        accelerator: ranks share the work.
        autocast: the arithmetic of training.
    """
    path = Path(run.config.train.output) / REFERENCE_FILE
    bank = OnceThrough(
        table.sizes,
        seed=run.config.train.seed,
        draws_per_row=run.config.reference.draws_per_row,
        shuffle=False,
    )
    facts = _facts(run, table)
    parts = [path, *sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}"))]
    done = [ReferenceTable.load(part) for part in parts if part.exists()]
    # What a rank that is ahead saves must not be done already for others, which would share out other rows.
    accelerator.wait_for_everyone()
    draws = draws_of(run)
    visits = torch.tensor([bank.key(position) for position in range(bank.num_entries)], dtype=torch.int64)
    keys = draws.row_keys(visits)
    missing = _missing(keys, done)
    own = missing[accelerator.process_index :: accelerator.num_processes]
    result = _compute(
        run,
        model,
        likelihood,
        batches=_batches(run, model, table, bank, own, accelerator),
        facts=facts,
        save_to=path.with_name(f"{path.stem}.rank{accelerator.process_index}{path.suffix}"),
        autocast=autocast,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and (len(missing) or len(done) > 1):
        _merge(path, [*done, *([result] if result is not None else [])])
    accelerator.wait_for_everyone()
    stored = ReferenceTable.load(path)
    _require_all(keys.flatten(), stored, path)
    return StoredReference(stored, likelihood, facts)


def _require_all(keys: Tensor, stored: ReferenceTable, path: Path) -> None:
    """Every draw of the bank has an entry, be it that of a row which could not be read.

    Raises:
        CheckpointError: a rank's share is not there.
    """
    _, known = stored.find(keys)
    if not bool(known.all()):
        message = explain(
            str(path),
            got=f"stored reference errors of {int(known.sum())} draws",
            expected=f"{len(keys)}: every rank saves its share, and the first process joins them",
            do="Choose a train.output that all machines see, then run again; what is there is kept.",
        )
        raise CheckpointError(message)


def _missing(keys: Int[Tensor, "entry draw"], done: list[ReferenceTable]) -> list[int]:
    """Positions of the bank with a draw that has no usable entry; unreadable rows are tried again."""
    found = torch.zeros_like(keys, dtype=torch.bool)
    for table in done:
        errors, known = table.find(keys.flatten())
        found |= (known & errors.isfinite().all(1)).view_as(keys)
    positions: list[int] = (~found.all(1)).nonzero().flatten().tolist()
    return positions


def _merge(path: Path, own: list[ReferenceTable]) -> None:
    """One table of everything the ranks computed; their files are removed after it is safe."""
    others = sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}"))
    merged: ReferenceTable | None = None
    for table in [*(ReferenceTable.load(part) for part in others), *own]:
        merged = table if merged is None else merged.merged(table)
    if merged is not None:
        merged.save(path)
    for part in others:
        part.unlink()


def _compute(
    run: ResolvedRun,
    model: PreferenceModel,
    likelihood: Elbo,
    *,
    batches: Iterator[Batch],
    facts: dict[str, str],
    save_to: Path,
    autocast: Callable[[], AbstractContextManager[None]],
) -> ReferenceTable | None:
    """Errors of the batches, saved every so many of them; NaN for rows that could not be read."""
    base = AdaptersOff(model.denoise, contextlib.nullcontext)
    described = {**likelihood.describe(), **facts}
    candidates = 1 if run.method.data == "unpaired" else 2
    result = ReferenceTable.load(save_to) if save_to.exists() else None
    while chunk := list(islice(batches, _BATCHES_PER_SAVE)):
        unreadable = torch.cat([batch.keys.key[~batch.valid].cpu() for batch in chunk])
        if any(bool(batch.valid.any()) for batch in chunk):
            with autocast():
                result = precompute_errors(base, likelihood, chunk, facts=facts, done=result)
        if len(unreadable):
            count = result.error.shape[1] if result is not None else candidates
            empty = ReferenceTable(unreadable, torch.full((len(unreadable), count), torch.nan), described)
            result = empty if result is None else result.merged(empty)
        if result is not None:
            result.save(save_to)
    return result


def _facts(run: ResolvedRun, table: RowTable) -> dict[str, str]:
    """Everything outside the likelihood that a reference error depends on."""
    config = run.config
    model = config.model.model_dump(exclude=set(NO_BITS))
    return {
        **{name: str(value) for name, value in model.items()},
        "mixed_precision": config.train.mixed_precision,
        "seed": str(config.train.seed),
        "draws_per_row": str(config.reference.draws_per_row),
        config.media_name: fingerprint(config.media.model_dump(mode="json", exclude={"cache"})),
        "data": fingerprint(config.data.model_dump(mode="json", exclude={"max_bad_share"})),
        "rows": str(len(table)),
    }


def _batches(
    run: ResolvedRun,
    model: PreferenceModel,
    table: RowTable,
    bank: OnceThrough,
    positions: list[int],
    accelerator: Accelerator,
) -> Iterator[Batch]:
    """The bank's positions in micro-batches of training's size, for the last bits depend on it, all draws."""
    size = run.config.train.batch_size
    padded = positions + positions[:1] * (-len(positions) % size)
    loader = make_loader(
        table,
        bank,
        model,
        [padded[start : start + size] for start in range(0, len(padded), size)],
        rows_per_step=size,
        world_size=accelerator.num_processes,
        num_workers=run.config.train.num_workers,
        pin_memory=False,
    )
    draws = draws_of(run)
    for micro in loader:
        yield draws.over(to_batch(micro, model, accelerator.device))
