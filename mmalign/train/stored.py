"""Reference errors computed once, before training: the second copy of the network is never needed.

The pass runs while the network is still the base model (before adapters are attached), over every row and
every
draw of the fixed bank, and saves as it goes: an interrupted pass continues, a finished one is reused by later
runs in the same folder.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import torch

from mmalign.batch import Batch
from mmalign.data.readers import RowTable
from mmalign.data.sampler import RowOrder
from mmalign.files import fingerprint
from mmalign.likelihood import Elbo, StoredReference
from mmalign.likelihood.reference import AdaptersOff
from mmalign.likelihood.stored import ReferenceTable, precompute_errors
from mmalign.train.config import ResolvedRun
from mmalign.train.loader import Layout, make_loader, to_batch
from mmalign.train.model import PreferenceModel

__all__ = ["REFERENCE_FILE", "stored_reference"]

REFERENCE_FILE = "reference_errors.safetensors"
_BATCHES_PER_SAVE = 200


def stored_reference(
    run: ResolvedRun,
    model: PreferenceModel,
    likelihood: Elbo,
    *,
    table: RowTable,
    order: RowOrder,
    autocast: Callable[[], AbstractContextManager[None]],
) -> StoredReference:
    """The stored errors of this run, computed now as far as the run folder does not hold them.

    Args:
        run: the resolved run.
        model: the base model, nothing attached yet.
        likelihood: decides draws and errors.
        table: rows.
        order: with a fixed bank of draws per row.
        autocast: the arithmetic of training.
    """
    path = Path(run.config.train.output) / REFERENCE_FILE
    facts = _facts(run, table)
    done = ReferenceTable.load(path) if path.exists() else None
    base = AdaptersOff(model.denoise, contextlib.nullcontext)
    batches = _batches(run, model, table=table, order=order)
    num_entries = len(table) * run.config.reference.draws_per_row
    while done is None or len(done) < num_entries:
        chunk = list(islice(batches, _BATCHES_PER_SAVE))
        if not chunk:
            break
        with autocast():
            done = precompute_errors(base, likelihood, chunk, facts=facts, done=done)
        done.save(path)
    if done is None:
        done = ReferenceTable(
            torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2), {**likelihood.describe(), **facts}
        )
    return StoredReference(done, likelihood, facts)


def _facts(run: ResolvedRun, table: RowTable) -> dict[str, str]:
    """Everything outside the likelihood that a reference error depends on."""
    config = run.config
    return {
        "family": config.model.family,
        "source": config.model.source,
        "revision": str(config.model.revision),
        "mixed_precision": config.train.mixed_precision,
        "seed": str(config.train.seed),
        "draws_per_row": str(config.reference.draws_per_row),
        "image": fingerprint(config.image.model_dump(mode="json", exclude={"cache"})),
        "data": fingerprint(config.data.model_dump(mode="json", exclude={"quarantine", "max_bad_share"})),
        "rows": str(len(table)),
    }


def _batches(
    run: ResolvedRun, model: PreferenceModel, *, table: RowTable, order: RowOrder
) -> Iterator[Batch]:
    """Every row once per draw of the bank: the first `draws_per_row` epochs of the run's own order."""
    layout = Layout(batch_size=run.config.train.batch_size, accumulation=1)
    num_positions = len(table) * run.config.reference.draws_per_row
    loader = make_loader(
        table,
        order,
        model,
        layout,
        start_step=0,
        steps=-(-num_positions // layout.batch_size),
        num_workers=run.config.train.num_workers,
        pin_memory=False,
    )
    device = next(model.network.parameters()).device
    for micro in loader:
        yield to_batch(micro, model, device)
