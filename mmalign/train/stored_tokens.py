"""A language model's reference computed once, before training: one number per token of every answer.

The pass runs while the network is still the base model. Each rank takes its share of the rows and saves as
it goes; an interrupted pass goes on where it was, and a table is reused by every later run of the folder.
Answers are found again by their content, so that other rows, another order or another batch size change
nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

from accelerate import Accelerator

from mmalign.batch import Batch
from mmalign.data.readers import RowTable
from mmalign.likelihood.reference import AdaptersOff
from mmalign.likelihood.stored_tokens import CONTENT_KEY, StoredTokenReference, precompute_log_probs
from mmalign.likelihood.token_table import TokenTable
from mmalign.likelihood.tokens import Tokens
from mmalign.train.config import ResolvedRun
from mmalign.train.loader import make_loader
from mmalign.train.micro_batch import MicroBatch, to_batch
from mmalign.train.model import TrainedModel
from mmalign.train.sections import NO_BITS
from mmalign.train.stored import OnceThrough

__all__ = ["REFERENCE_FILE", "stored_token_reference"]

REFERENCE_FILE = "reference_log_probs.safetensors"
_BATCHES_PER_SAVE = 200


def stored_token_reference(
    run: ResolvedRun,
    model: TrainedModel,
    likelihood: Tokens,
    *,
    table: RowTable,
    accelerator: Accelerator,
    autocast: Callable[[], AbstractContextManager[None]],
) -> StoredTokenReference:
    """The stored log-probabilities of this run, computed now as far as the run folder does not hold them.

    Numbers are kept per token (4 bytes each, 240 MB for 100,000 pairs of 300 tokens): every method finds what
    it reads, and a table serves later runs with other methods. Rows that the table holds are read, and not
    shown to the network again.

    Args:
        run: the resolved run.
        model: the base model, nothing attached yet.
        likelihood: of the run.
        table: rows.
        accelerator: ranks share the work.
        autocast: the arithmetic of training.
    """
    path = Path(run.config.train.output) / REFERENCE_FILE
    facts = _facts(run)
    base = AdaptersOff(model.policy(model.network), contextlib.nullcontext)  # type: ignore[attr-defined]
    rank, world_size = accelerator.process_index, accelerator.num_processes
    own = path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
    found = [TokenTable.load(part) for part in (path, own) if part.exists()]
    done = found[0].merged(found[1]) if len(found) > 1 else next(iter(found), None)
    batches = _batches(run, model, table, done, rank=rank, world_size=world_size, accelerator=accelerator)
    while chunk := list(islice(batches, _BATCHES_PER_SAVE)):
        with autocast():
            done = precompute_log_probs(base, likelihood, chunk, facts=facts, per_token=True, done=done)
        done.save(own)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        parts = sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}"))
        merged: TokenTable | None = None
        for part in parts:
            loaded = TokenTable.load(part)
            merged = loaded if merged is None else merged.merged(loaded)
        if merged is not None:
            merged.save(path)
        for part in parts:
            part.unlink()
    accelerator.wait_for_everyone()
    return StoredTokenReference(TokenTable.load(path), likelihood, facts, per_token=True)


def _facts(run: ResolvedRun) -> dict[str, str]:
    """What a log-probability depends on besides what the network reads, which is in its key."""
    model = run.config.model.model_dump(exclude=set(NO_BITS))
    return {
        **{name: str(value) for name, value in model.items()},
        "mixed_precision": run.config.train.mixed_precision,
    }


def _batches(
    run: ResolvedRun,
    model: TrainedModel,
    table: RowTable,
    done: TokenTable | None,
    *,
    rank: int,
    world_size: int,
    accelerator: Accelerator,
) -> Iterator[Batch]:
    """Every row of this rank's share once, in micro-batches of training's size; those that `done` lacks."""
    size = run.config.train.batch_size
    positions = list(range(len(table)))[rank::world_size]
    loader = make_loader(
        table,
        OnceThrough(table.sizes, seed=run.config.train.seed, draws_per_row=1, shuffle=False),
        model,
        [positions[start : start + size] for start in range(0, len(positions), size)],
        rows_per_step=size,
        world_size=world_size,
        num_workers=run.config.train.num_workers,
        pin_memory=False,
    )
    for micro in loader:
        if not _holds(done, micro):
            yield to_batch(micro, model, accelerator.device)


def _holds(done: TokenTable | None, micro: MicroBatch) -> bool:
    """Whether a table has every answer of a micro-batch that is not on the device yet."""
    key, mask = micro.collated.get(f"recorded.{CONTENT_KEY}"), micro.collated.get("mask")
    if done is None or key is None or mask is None:
        return False
    counts = micro.valid.unsqueeze(1) & (mask != 0).any(-1)
    return not bool((counts & ~done.find(key, mask).found).any())
