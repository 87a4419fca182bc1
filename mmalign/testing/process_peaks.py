"""The highest memory of every process of a launch, measured on the CPU, to hold plans against."""

import gc
import itertools
import json
from pathlib import Path

import torch

from mmalign.testing.processes import launch_variables, on_processes
from mmalign.train.planning.launches import Launch

__all__ = ["living_bytes", "process_peaks", "write_peak"]


def living_bytes() -> int:
    """Bytes of all tensors that Python knows of, every storage once.

    What autograd alone holds is not among them: to be asked between steps.
    """
    gc.collect()
    sizes: dict[int, int] = {}
    for found in gc.get_objects():
        # A type says it without a look inside, which lazy modules answer by importing themselves.
        if not issubclass(type(found), torch.Tensor) or found.device.type != "cpu":
            continue
        if type(found).__name__ in ("DTensor", "FakeTensor"):  # a wrapper; what it holds is on the list
            continue
        storage = found.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def write_peak(config: str, target: str, updates: int = 3) -> None:
    """Train some updates and measure the next one. Runs in every process, which writes its own number.

    Args:
        config: of the run.
        target: folder of the numbers, one file per process.
        updates: before it; DeepSpeed's stage 3 learns the order of layers in the first two.
    """
    from mmalign.train.config import load_run
    from mmalign.train.planning.measuring import allocated_peak
    from mmalign.train.run import prepare

    loop, loader = prepare(load_run(config))
    rows = list(itertools.islice(iter(loader), 2 * loop.layout.accumulation))
    batches = loop._batches(itertools.cycle(rows))

    def update() -> None:
        loop._update(batches, is_record=False)
        loop.progress.step += 1

    for _ in range(updates):
        update()
    still = living_bytes()
    moving = allocated_peak(update)
    loop.tracking.close()
    path = Path(target) / f"{loop.layout.rank}.json"
    path.write_text(json.dumps({"still": still, "moving": moving, "highest": still + moving}))


def process_peaks(config: Path, launch: Launch, folder: Path) -> list[dict[str, int]]:
    """What every process takes: between steps, in a step on top, and together; bytes.

    Args:
        config: of the run; its folder must be new.
        launch: by gloo, with the limits of DeepSpeed that it says.
        folder: for files that come and go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = launch_variables(launch.name)
    if launch.is_zero:
        limits = launch.zero
        settings = {
            "stage": int(launch.name[-1]),
            "reduce_bucket_size": limits.bucket,
            "stage3_param_persistence_threshold": limits.small,
            "stage3_max_reuse_distance": limits.reuse,
            "stage3_max_live_parameters": limits.reuse,
            "stage3_prefetch_bucket_size": limits.prefetch,
        }
        path = folder / "deepspeed.json"
        content = {"zero_optimization": settings, "train_micro_batch_size_per_gpu": 1}
        path.write_text(json.dumps(content))
        environment = {
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path),
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        }
    on_processes(
        launch.processes, write_peak, str(config), str(folder), environment=environment, timeout=900.0
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(launch.processes)]
