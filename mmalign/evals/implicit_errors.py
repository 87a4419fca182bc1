"""Denoising errors of labelled pairs under a tuned model and its base, stored draw by draw.

The same (timestep, noise) goes to both pictures of a pair and to both networks; the draws of a pair spread
the timesteps evenly. Every draw follows from the seed and the row's number alone, so that a run that was
killed goes on, and shards on several machines fill one table.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from mmalign.batch import Batch, RowKeys
from mmalign.data.readers import RowTable
from mmalign.data.sampler import RowOrder
from mmalign.errors import ConfigError, explain
from mmalign.evals.implicit_models import ComparedModels
from mmalign.evals.jobs import shard_of
from mmalign.evals.store import PartTable
from mmalign.files import fingerprint
from mmalign.train.loader import make_loader
from mmalign.train.micro_batch import MicroBatch, to_batch

__all__ = ["Errors", "Measured", "errors_table", "measure_errors", "read_errors"]

_ERRORS = ("policy_chosen", "policy_rejected", "base_chosen", "base_rejected")
_COLUMNS = {
    "pair": "int64",
    "draw": "int64",
    "prompt": "string",
    "level": "double",
    **dict.fromkeys(_ERRORS, "double"),
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Measured:
    """What one call of `measure_errors` did.

    Args:
        new: pairs whose errors were computed now.
        failed: row to what was wrong with it.
        missing: pairs that have no errors yet: failed here, or of other shards.
    """

    new: int
    failed: Mapping[int, str]
    missing: int


@dataclass(frozen=True)
class Errors:
    """Denoising errors of pairs.

    Args:
        prompts: of each pair.
        level: noise level of each draw, 0 (clean) to 1 (noise).
        values: policy and base errors of the preferred and the other picture, in the order of `policy_chosen,
            policy_rejected, base_chosen, base_rejected`.
    """

    prompts: tuple[str, ...]
    level: Float64[np.ndarray, "pair draw"]
    values: Float64[np.ndarray, "pair draw error"]

    @property
    def margins(self) -> Float64[np.ndarray, "pair draw"]:
        """How much more the policy gained on the preferred picture than on the other one."""
        policy_chosen, policy_rejected, base_chosen, base_rejected = np.moveaxis(self.values, 2, 0)
        return np.asarray((base_chosen - policy_chosen) - (base_rejected - policy_rejected))


def errors_table(
    folder: Path, models: ComparedModels, table: RowTable, *, draws: int, seed: int
) -> PartTable:
    """Where the errors of these models on these rows lie, whatever the number of processes.

    Rows are known by their number and the data settings, `limit` apart: more rows later are new ones.
    """
    data = table.config.model_dump(mode="json", exclude={"max_bad_share"})
    for source in [data.get("source") or {}, *data.get("sources", ())]:
        source.pop("limit", None)
    files = [_files(part.source.path) for part in table.parts]
    name = fingerprint(dict(models.identity), data, files, draws, seed)
    return PartTable(folder / "implicit" / name, _COLUMNS, key=("pair", "draw"))


def _files(path: str) -> list[list[Any]]:
    """Names and sizes of local data files; of a hub id, nothing: its revision is a setting."""
    place = Path(path)
    if place.is_file():
        return [[place.suffix, place.stat().st_size]]
    if not place.is_dir():
        return []
    found = sorted(
        file for file in place.rglob("*") if file.suffix in (".parquet", ".jsonl", ".json", ".csv")
    )
    return [[file.relative_to(place).as_posix(), file.stat().st_size] for file in found]


def measure_errors(
    models: ComparedModels,
    table: RowTable,
    store: PartTable,
    *,
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 4,
    shard: tuple[int, int] = (0, 1),
    num_workers: int | None = None,
    progress: Progress = lambda *_: None,
) -> Measured:
    """Compute and store the errors that are not stored yet.

    Args:
        models: policy and base.
        table: pairs.
        store: from `errors_table`, of the same draws and seed.
        draws: timesteps and noises per pair.
        seed: of the draws.
        batch_size: pairs per forward.
        shard: (number, count): this process's part.
        num_workers: processes that read pictures.
        progress: called with (pairs done, pairs of this shard).

    Raises:
        ConfigError: no draws, or rows that are no pairs.
    """
    if draws < 1:
        raise ConfigError(explain("--draws", got=draws, expected="at least 1"))
    if table.kind != "pairs":
        do = "Rankings become pairs with --lists pairs."
        raise ConfigError(explain("--data", got=f"rows of kind {table.kind}", expected="pairs", do=do))
    stored = {int(pair) for pair, _ in store.stored_keys()}
    own = [row for row in range(len(table)) if shard_of(str(row), shard[1]) == shard[0]]
    todo = [row for row in own if row not in stored]
    order = RowOrder((len(table),), seed=seed, shuffle=False)
    device = models.model.device
    done, failed = len(own) - len(todo), dict[int, str]()
    progress(done, len(own))
    with store.writer() as writer:
        for rows, micro in _micro_batches(models, table, order, todo, batch_size, num_workers):
            found = _errors_of(models, to_batch(micro, models.loadable, device), order, rows, draws)
            failed |= {bad.index: bad.message for bad in micro.bad if bad.index is not None}
            for place, row in enumerate(rows):
                values = found[:, place]
                if row in failed:
                    continue
                if not np.isfinite(values).all():
                    failed[row] = f"{table.where(row)}: a denoising error is not finite."
                    continue
                writer.add(_records(row, micro.prompts[place], values))
            done += len(rows)
            progress(done, len(own))
    missing = len(table) - len(stored) - (len(todo) - len(failed))
    return Measured(len(todo) - len(failed), failed, missing)


def _micro_batches(
    models: ComparedModels,
    table: RowTable,
    order: RowOrder,
    rows: Sequence[int],
    batch_size: int,
    num_workers: int | None,
) -> Iterator[tuple[list[int], MicroBatch]]:
    parts = [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    loader = make_loader(
        table,
        order,
        models.loadable,
        parts,
        rows_per_step=batch_size,
        world_size=1,
        num_workers=num_workers,
        pin_memory=models.model.device.type == "cuda",
    )
    # The loader is typed by what it reads; its collator makes micro-batches of it.
    yield from zip(parts, cast("Iterator[MicroBatch]", loader), strict=True)


@torch.no_grad()
def _errors_of(
    models: ComparedModels, batch: Batch, order: RowOrder, rows: Sequence[int], draws: int
) -> Float64[np.ndarray, "draw pair number"]:
    """Level and the four errors of every draw: pictures are encoded once, one copy to the host."""
    found: list[Tensor] = []
    for number in range(draws):
        keys = RowKeys(
            key=torch.tensor([order.row_key(row, number) for row in rows], dtype=torch.int64),
            stratum=torch.full((len(rows),), number / draws),
            num_strata=draws,
        )
        drawn = replace(batch, keys=keys.to(batch.clean.device))
        draw = models.likelihood.draw(drawn)
        # The same draw for both: what is compared is the networks.
        policy = models.likelihood.evaluate(models.policy, drawn, draw).error
        base = models.likelihood.evaluate(models.base, drawn, draw).error
        schedule = models.likelihood.schedule
        level = schedule.network_time(draw.timestep[:, :1]).to(policy.dtype) / schedule.num_timesteps
        found.append(torch.cat([level, policy, base], dim=1))
    return np.asarray(torch.stack(found).double().cpu().numpy())


def _records(row: int, prompt: str, values: Float64[np.ndarray, "draw number"]) -> list[dict[str, Any]]:
    names = ("level", *_ERRORS)
    return [
        {"pair": row, "draw": number, "prompt": prompt, **dict(zip(names, line, strict=True))}
        for number, line in enumerate(values.tolist())
    ]


def read_errors(store: PartTable, num_rows: int) -> Errors:
    """Everything stored of the first `num_rows` rows, in their order.

    Raises:
        ConfigError: nothing is stored.
    """
    pairs: dict[int, dict[int, dict[str, Any]]] = {}
    for line in store.read():
        if line["pair"] < num_rows:
            pairs.setdefault(line["pair"], {})[line["draw"]] = line
    if not pairs:
        message = explain("--data", got="no pair with errors", expected="at least one that can be read")
        raise ConfigError(message)
    lines = [[draws[number] for number in sorted(draws)] for _, draws in sorted(pairs.items())]
    return Errors(
        prompts=tuple(entry[0]["prompt"] for entry in lines),
        level=np.array([[line["level"] for line in entry] for entry in lines]),
        values=np.array([[[line[name] for name in _ERRORS] for line in entry] for entry in lines]),
    )
