"""SIGTERM and SIGINT end a run in order: the step is finished, the state is saved."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["stop_signals"]

_IMPATIENT_SECONDS = 2.0
"""A second Ctrl-C within this time is the same one: of a launcher, or of a key that bounced."""


@contextlib.contextmanager
def stop_signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """Tell of SIGTERM and SIGINT instead of dying of them; in the main thread, elsewhere nothing is changed.

    Launchers send more than one of them; only a second Ctrl-C by somebody who does not want to wait for
    the checkpoint ends the run without it.

    Args:
        interrupt: called at every such signal.

    Raises:
        KeyboardInterrupt: at that second Ctrl-C.
    """
    first = math.inf

    def note(number: int, _: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if number == signal.SIGINT and now - first > _IMPATIENT_SECONDS:
            raise KeyboardInterrupt
        first = min(first, now)
        interrupt()

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
