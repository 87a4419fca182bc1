"""Scoring on a Ray cluster: the blocks of `shards` as a Ray Data set, one actor per device.

Ray hands blocks to actors, restarts actors that die and hands their blocks out again. Whatever happens, a
block's scores lie under one name with the same bytes, so the store holds what a single process would have
written. Needs the extra `ray`; nothing else of mmalign imports it.
"""

import hashlib
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.errors import ConfigError, MissingExtraError, TrainingError, explain
from mmalign.evals.pairs.shards import Block, blocks_of
from mmalign.evals.suite import RewardSpec

if TYPE_CHECKING:
    from mmalign.evals.pairs.shard_scoring import Receipt

__all__ = ["score_on_ray"]

_ATTEMPTS = 3
"""How many workers may die on one block before the job gives up."""


class _Actor:
    """Holds the loaded rewards of one worker; what Ray Data calls with a batch of one block."""

    def __init__(self, specs: Sequence[Mapping[str, Any]], store: str, device: str, attempts: str) -> None:
        from mmalign.evals.pairs.shard_scoring import BlockScorer

        read = [RewardSpec.model_validate(spec) for spec in specs]
        self.scorer = BlockScorer(read, Path(store), device)
        self.attempts = Path(attempts)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = ("shard", "group", "first", "count")
        blocks = [Block(*row) for row in zip(*(batch[name].tolist() for name in columns), strict=True)]
        receipts = []
        for block in blocks:
            _count_attempt(self.attempts, block)
            receipts.append(asdict(self.scorer.score(block)))
        return {name: [receipt[name] for receipt in receipts] for name in receipts[0]}


def _count_attempt(folder: Path, block: Block) -> None:
    """Note that a worker starts on a block: Ray hands a lost block out for ever, and some blocks kill.

    Raises:
        TrainingError: too many workers started on it and none finished.
    """
    path = folder / hashlib.sha256(block.name.encode()).hexdigest()[:40]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(b".")
    started = path.stat().st_size
    if started > _ATTEMPTS:
        message = f"{block.name}: {_ATTEMPTS} workers died on it. Score it alone, without Ray, to see why."
        raise TrainingError(message)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        message = "Scoring on Ray needs the extra ray: pip install 'mmalign[ray]'. One machine needs no Ray."
        raise MissingExtraError(message) from error
    return ray


def score_on_ray(
    source: str | Path,
    specs: Sequence[RewardSpec],
    store: Path,
    *,
    workers: int,
    device: str = "cpu",
    gpus_per_worker: float = 0.0,
    cpus_per_worker: float = 1.0,
    address: str | None = None,
    environment: Mapping[str, str] | None = None,
    rows: int = 256,
    progress: Callable[[int], None] = lambda _: None,
) -> "list[Receipt]":
    """Score all blocks of the shards on a cluster. Returns what came of each, in order of their names.

    The shards and the store lie on a disk that all machines see under the same path.

    Args:
        source: shards, see `shards.blocks_of`.
        specs: rewards; every worker loads all of them.
        store: folder of scores.
        workers: actors; one per device.
        device: where rewards run in a worker. Ray shows each worker its own GPUs alone, so `cuda` is enough.
        gpus_per_worker: GPUs of one worker.
        cpus_per_worker: CPUs of one worker.
        address: of a running cluster; None starts one on this machine and stops it at the end.
        environment: environment variables of the workers.
        rows: most samples of a block; as in every other run over these shards.
        progress: called with the number of samples that are done.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: fewer than one worker.
        TrainingError: a worker died on one block again and again, or a reward failed; what is scored stays.
    """
    from mmalign.evals.pairs.shard_scoring import Receipt

    if workers < 1:
        raise ConfigError(explain("--workers", got=workers, expected="at least 1"))
    ray = _import_ray()
    blocks = blocks_of(source, rows=rows)
    variables = dict(environment or {})
    attempts = store / "attempts" / uuid.uuid4().hex
    started = not ray.is_initialized()
    if started:
        local = {} if address is not None else {"num_cpus": max(2, int(workers * cpus_per_worker) + 1)}
        ray.init(
            address=address,
            runtime_env={"env_vars": variables} if variables else None,
            log_to_driver=False,
            include_dashboard=False if address is None else None,
            **local,
        )
    try:
        limits = (gpus_per_worker, cpus_per_worker)
        found = _scored(ray, blocks, specs, store, attempts, workers, device, limits, progress)
    except ray.exceptions.RayError as error:
        message = (
            f"pairs score on Ray: a worker failed for good ({error}). What was scored is kept in {store}: "
            "mend the cause and run again."
        )
        raise TrainingError(message) from error
    finally:
        if started:
            ray.shutdown()
        shutil.rmtree(attempts, ignore_errors=True)
    receipts = {receipt["block"]: Receipt(**receipt) for receipt in found}
    return [receipts[block.name] for block in blocks]


def _scored(
    ray: Any,
    blocks: Sequence[Block],
    specs: Sequence[RewardSpec],
    store: Path,
    attempts: Path,
    workers: int,
    device: str,
    limits: tuple[float, float],
    progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Receipts as they come."""
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars
    context.enable_progress_bars = False
    try:
        # A Ray block per block of ours: the unit of retries is the unit of what is stored.
        table = ray.data.from_items(
            [{**asdict(block), "shard": str(Path(block.shard).resolve())} for block in blocks],
            override_num_blocks=len(blocks),
        )
        scored = table.map_batches(
            _Actor,
            fn_constructor_args=(
                [spec.model_dump() for spec in specs],
                str(store.resolve()),
                device,
                str(attempts.resolve()),
            ),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_gpus=limits[0] or None,
            num_cpus=limits[1],
        )
        found = []
        for row in scored.iter_rows():
            progress(int(row["samples"]))
            counts = {name: int(row[name]) for name in ("samples", "unusable", "scored")}
            found.append({"block": str(row["block"]), **counts})
        return found
    finally:
        context.enable_progress_bars = before
