"""What a piece of work really takes, to hold plans against."""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["allocated_peak", "least_seconds"]


def allocated_peak(work: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes that a piece of work allocates at its highest, above what is there when it begins.

    On CUDA what the caching allocator says; on the CPU what torch's profiler sees of its allocator. Memory
    that libraries take for themselves is in neither.

    Args:
        work: called once.
        device: where its tensors are.
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        work()
    profiler: Any = profile.profiler
    results = profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    held = highest = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        highest = max(highest, held)
    return highest


def least_seconds(
    work: Callable[[], object], device: torch.device | str = "cpu", *, rounds: int = 5
) -> float:
    """Least seconds of a piece of work over a few rounds, after one that does not count.

    On CUDA the wall clock, with the device waited for; on the CPU the time that the process was at work,
    which other processes do not add to.

    Args:
        work: called `rounds` + 1 times.
        device: where it runs.
        rounds: that count.
    """
    device = torch.device(device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    found = []
    for _ in range(rounds):
        wait()
        start = clock()
        work()
        wait()
        found.append(clock() - start)
    return min(found)
