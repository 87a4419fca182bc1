"""gpu.py's steps at true size on a CUDA device that is not there: do shapes, dtypes and devices hold?

Networks are made and steps are run on tensors without numbers, so that a machine without a GPU plays them
in minutes and in little memory. Peaks are those of tensors: an allocator's losses and the workspaces of
libraries come on top. Kernels, compiled blocks and speed are not rehearsed.
"""

import gc
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import torch

__all__ = ["rehearse"]


def _races(names: list[str], folder: Path) -> Iterator[tuple[str, Callable[[], Generator[Any, None, None]]]]:
    """Title of every race, and what makes its contestants."""
    from gpu_subjects import DENOISERS, language_steps, steps_of

    device = torch.device("cuda", 0)
    for title, subject in DENOISERS.items():
        if title.split()[0] not in names:
            continue
        for precision in ("bf16", "fp16") if title.startswith("sdxl") else ("bf16",):
            for pairs in subject.pairs if precision == "bf16" else subject.pairs[:1]:

                def made(
                    subject: Any = subject, pairs: int = pairs, precision: str = precision, title: str = title
                ) -> Generator[Any, None, None]:
                    place = folder / title.replace(" ", "_")
                    return steps_of(subject, place, device, pairs=pairs, precision=precision, dry=False)

                yield f"{title}, {precision}, {pairs} pairs", made
    for pairs in (2, 4) if "llava" in names else ():
        yield (
            f"llava 7b, {pairs} pairs",
            lambda pairs=pairs: language_steps(folder / "llava", device, pairs=pairs, dry=False),
        )


def _played(step: Any, device: Any) -> str:
    """A contestant's gradient and two updates; the waits and the peak are those of the last."""
    started = time.perf_counter()
    step.gradient()
    for parameter in step.parameters.values():
        parameter.grad = None
    step.call()
    device.waits.clear()
    device.reset_peak()
    step.call()
    waits = Counter(f"{wait.what} in {wait.where}" for wait in device.waits)
    said = "; ".join(f"{number} x {what}" for what, number in waits.most_common(4)) or "no waits"
    seconds = time.perf_counter() - started
    return f"runs on shapes, peak {device.peak / 2**30:.1f} GiB, {said} ({seconds:.0f} s)"


def rehearse(names: list[str], folder: Path) -> list[str]:
    """Play every contestant of the named parts; prints what came of each, returns the titles that failed.

    Args:
        names: of gpu.py's parts; attention has nothing to rehearse.
        folder: scratch.
    """
    from mmalign.testing.fake_cuda import fake_cuda

    failed = []
    for title, made in _races(names, folder):
        with fake_cuda() as device:
            steps, name = made(), "mmalign"
            try:
                while (step := next(steps, None)) is not None:
                    name = step.name
                    print(f"{title}, {name}: {_played(step, device)}", flush=True)
                    del step
                    name = "the next contestant"
                    gc.collect()
            except Exception as error:  # the other subjects can still be played
                traceback.print_exc()
                failed.append(f"{title}, {name}")
                print(f"{title}, {name}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            finally:
                steps.close()
            gc.collect()
    return failed
