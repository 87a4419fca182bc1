"""A language model's reference computed once, before training: one number per answer, or one per token.

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
from mmalign.likelihood.stored_tokens import StoredTokenReference, precompute_log_probs
from mmalign.likelihood.token_table import TokenTable
from mmalign.likelihood.tokens import Tokens
from mmalign.train.config import ResolvedRun
from mmalign.train.loader import make_loader, to_batch
from mmalign.train.model import PreferenceModel
from mmalign.train.stored import OnceThrough
from mmalign.train.token_sections import tokens_of

__all__ = ["REFERENCE_FILE", "stored_token_reference"]

REFERENCE_FILE = "reference_log_probs.safetensors"
_BATCHES_PER_SAVE = 200


def stored_token_reference(
    run: ResolvedRun,
    model: PreferenceModel,
    likelihood: Tokens,
    *,
    table: RowTable,
    accelerator: Accelerator,
    autocast: Callable[[], AbstractContextManager[None]],
) -> StoredTokenReference:
    """The stored log-probabilities of this run, computed now as far as the run folder does not hold them.

    Numbers per token are kept where the objective looks inside answers (it reads more than sums), or where
    `tokens.store_tokens` asks for them.

    Args:
        run: the resolved run.
        model: the base model, nothing attached yet.
        likelihood: of the run.
        table: rows.
        accelerator: ranks share the work.
        autocast: the arithmetic of training.
    """
    path = Path(run.config.train.output) / REFERENCE_FILE
    tokens = tokens_of(run.config)
    per_token = tokens is not None and tokens.store_tokens
    facts = _facts(run)
    base = AdaptersOff(model.policy(model.network), contextlib.nullcontext)  # type: ignore[attr-defined]
    rank, world_size = accelerator.process_index, accelerator.num_processes
    own = path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
    found = [TokenTable.load(part) for part in (path, own) if part.exists()]
    done = found[0].merged(found[1]) if len(found) > 1 else next(iter(found), None)
    batches = _batches(run, model, table, rank=rank, world_size=world_size, accelerator=accelerator)
    while chunk := list(islice(batches, _BATCHES_PER_SAVE)):
        with autocast():
            done = precompute_log_probs(base, likelihood, chunk, facts=facts, per_token=per_token, done=done)
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
    return StoredTokenReference(TokenTable.load(path), likelihood, facts, per_token=per_token)


def _facts(run: ResolvedRun) -> dict[str, str]:
    """What a log-probability depends on besides what the network reads, which is in its key."""
    model = run.config.model.model_dump(exclude={"attention", "gradient_checkpointing", "offload_encoders"})
    return {
        **{name: str(value) for name, value in model.items()},
        "mixed_precision": run.config.train.mixed_precision,
    }


def _batches(
    run: ResolvedRun,
    model: PreferenceModel,
    table: RowTable,
    *,
    rank: int,
    world_size: int,
    accelerator: Accelerator,
) -> Iterator[Batch]:
    """Every row of this rank's share once, in micro-batches of training's size."""
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
        yield to_batch(micro, model, accelerator.device)
