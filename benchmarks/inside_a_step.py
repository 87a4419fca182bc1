"""Where the time and the arithmetic of a step go: the real loop with stopwatches around its parts.

The measured code is not changed: methods are wrapped from outside while `Loop.train` runs, and each stopwatch
shows what its own part took, less the parts inside it. What no stopwatch saw is "other".

    data               the loader: read, decode, crop
    encode             what is frozen and computed at every step: VAE, text states, vision features
    reference forward  the network under no_grad
    policy forward     the network with gradients
    likelihood         noise, errors or log-probabilities, around the network
    backward
    clip               norm, scale
    optimiser          its step and its schedule
    log                panel, means, records
    other              the rest: what the framework costs
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from contestants import _prepared, settings
from tiny_models import TINY
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["PARTS", "Watch", "breakdown", "flops_of", "matmul_rate"]

PARTS = (
    "data",
    "encode",
    "reference forward",
    "policy forward",
    "likelihood",
    "backward",
    "clip",
    "optimiser",
    "log",
    "other",
)


class Watch:
    """Exclusive times of nested parts: a part's clock stands while one inside it runs."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.clock = clock
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._names: list[str] = ["other"]
        self._since = clock()

    def _mark(self) -> None:
        now = self.clock()
        self.seconds[self._names[-1]] += now - self._since
        self._since = now

    def enter(self, name: str) -> None:
        """A part begins."""
        self._mark()
        self._names.append(name)

    def leave(self) -> None:
        """The last part that began ends."""
        self._mark()
        self._names.pop()

    def restart(self) -> None:
        """Forget what was measured: the warm-up is over."""
        self._mark()
        self.seconds.clear()

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a stopwatch."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(name)
            try:
                return call(*args, **kwargs)
            finally:
                self.leave()

        return timed

    def over(self, name: str, values: Iterator[Any]) -> Iterator[Any]:
        """The iterator with a stopwatch around each step of it."""
        advance = self.around(name, lambda: next(values, None))
        while (value := advance()) is not None:
            yield value


@contextlib.contextmanager
def _watched(loop: Any, watch: Watch) -> Iterator[None]:
    """Stopwatches on every part of a loop."""
    import mmalign.train.step as step_module

    network = loop.trainables.network

    def begin(*_: Any) -> None:
        watch.enter("policy forward" if torch.is_grad_enabled() else "reference forward")

    def end(*_: Any) -> None:
        watch.leave()

    targets = [
        (loop.model, "encode", "encode"),
        (type(loop.parts.likelihood), "draw", "likelihood"),
        (type(loop.parts.likelihood), "evaluate", "likelihood"),
        (loop.accelerator, "backward", "backward"),
        (loop.updater, "apply", "clip"),
        (loop.optimizer, "step", "optimiser"),
        (loop.schedule, "step", "optimiser"),
        (loop, "_record", "log"),
        (loop.meter, "add", "log"),
        (loop.updates, "add", "log"),
        (loop.tracking, "advance", "log"),
        (step_module, "panel_values", "log"),
        (step_module, "token_panel_values", "log"),
    ]
    with contextlib.ExitStack() as stack:
        for owner, attribute, part in targets:
            timed = watch.around(part, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        for hook in (network.register_forward_pre_hook(begin), network.register_forward_hook(end)):
            stack.callback(hook.remove)
        yield


def breakdown(
    name: str, folder: Path, *, pairs: int, steps: int, warm_up: int = 3, **options: Any
) -> dict[str, float]:
    """Milliseconds of CPU time per step and part, of the real loop with its real loader.

    Args:
        name: of a tiny model.
        folder: holds model, rows and runs.
        pairs: per step.
        steps: measured.
        warm_up: steps before them.
        options: of `contestants.settings`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = settings(
        TINY[name], folder, name=f"inside {len(list(folder.iterdir()))}", pairs=pairs, **options
    )
    # One more than is measured: a run's last step is always logged, whatever `log.every` says.
    config["train"] |= {"steps": warm_up + steps + 1}
    loop, loader = _prepared(config)
    watch = Watch()
    found: dict[str, float] = {}

    def after(step: int) -> None:
        if step == warm_up:
            watch.restart()
        if step == warm_up + steps:
            watch.enter("other")
            watch.leave()
            found.update({part: 1e3 * watch.seconds[part] / steps for part in PARTS})

    # The last step saves a checkpoint first; a part of no step.
    saving = mock.patch.object(loop, "save", watch.around("checkpoint", loop.save))
    with _watched(loop, watch), saving, mock.patch.object(loop, "on_update", after):
        loop.train(watch.over("data", iter(loader)))
    return found


def flops_of(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def matmul_rate(size: int = 1024, rounds: int = 7) -> float:
    """FLOP per second of CPU time that a float32 product of square matrices reaches, best of some rounds."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = left @ right
    times = []
    for _ in range(rounds):
        started = time.process_time()
        torch.mm(left, right, out=out)
        times.append(time.process_time() - started)
    return 2 * size**3 / min(times)
