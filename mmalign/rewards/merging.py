"""Callers on many threads, one thread that scores: what waits meanwhile is scored in one call."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from mmalign.errors import ConfigError
from mmalign.rewards.base import Scored
from mmalign.rewards.sample import Sample

__all__ = ["Merger"]

_LOG = logging.getLogger(__name__)


@dataclass
class _Order:
    """What one caller wants scored.

    Args:
        samples: in its order.
        found: its scores, once they came with another order's.
        alone: a call with others failed; it is scored by itself.
    """

    samples: Sequence[Sample]
    found: Scored | None = None
    alone: bool = False


class Merger:
    """Scores for many threads with a function that one thread may run.

    Nothing waits for company: an order that finds the scorer idle starts at once, and what arrives while it
    is busy is taken together, up to `max_samples`. Samples' values do not depend on their batch, so this
    changes how fast answers come and nothing else.

    Args:
        score: scores samples; runs on one thread only.
        max_samples: of one call; a single order may have more.
    """

    def __init__(self, score: Callable[[Sequence[Sample]], Scored], *, max_samples: int = 256) -> None:
        self._run, self._most = score, max_samples
        self._waiting: deque[_Order] = deque()
        self._open, self._lock = True, Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward-scorer")

    def score(self, samples: Sequence[Sample]) -> Scored:
        """Scores of the samples, in their order; waits for them.

        Raises:
            ConfigError: it was closed.
            Exception: whatever the scoring function raised on these samples.
        """
        order = _Order(samples)
        with self._lock:
            if not self._open:
                message = "this reward is shutting down; it takes no more samples."
                raise ConfigError(message)
            self._waiting.append(order)
            turn = self._thread.submit(self._turn, order)
        return turn.result()

    def close(self) -> None:
        """Score what waits, then stop the thread. May be called twice."""
        with self._lock:
            self._open = False
        self._thread.shutdown(wait=True)

    def _turn(self, order: _Order) -> Scored:
        """The scores of an order, which an earlier turn may have found already."""
        if order.found is not None:
            return order.found
        together = self._take(order)
        try:
            found = self._run([sample for one in together for sample in one.samples])
        except Exception:
            if len(together) == 1:
                raise
            count = sum(len(one.samples) for one in together)
            _LOG.warning(
                "a call of %d samples failed; its requests are scored one by one", count, exc_info=True
            )
            for one in together:  # the others are not to blame: each is scored by itself in its own turn
                one.alone = True
            return self._run(order.samples)
        start = 0
        for one in together:
            one.found = _part(found, start, start + len(one.samples))
            start += len(one.samples)
        return _part(found, 0, len(order.samples))

    def _take(self, order: _Order) -> list[_Order]:
        """The order and those that wait behind it, as many as fit in one call."""
        if order.alone:
            return [order]
        with self._lock:
            taken = [self._waiting.popleft()]  # turns come in the order of arrival, so this is `order`
            count = len(order.samples)
            while self._waiting and count + len(self._waiting[0].samples) <= self._most:
                taken.append(self._waiting.popleft())
                count += len(taken[-1].samples)
        return taken


def _part(whole: Scored, start: int, stop: int) -> Scored:
    return Scored(
        whole.values[start:stop],
        whole.outputs,
        whole.errors[start:stop],
        whole.truncated[start:stop],
        whole.raw[start:stop],
    )
