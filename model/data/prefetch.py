"""The batches of the next steps, made in the background during the current step.

    with Prefetch(make_batch, steps) as batches:
        train(model, config, batches, …)

For batches that depend on nothing but the step (pretraining, SFT); those of reinforcement learning depend on the
weights. One thread makes them in order, so they are exactly what make_batch returns. make_batch must not use torch's
global generator, which the training loop seeds itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """make(step), with the results of the next `ahead` steps prepared. A step out of order restarts it from there;
    an error in `make` is raised when its step is requested. waited: seconds that callers have waited so far."""

    def __init__(self, make: Callable[[int], T], steps: int, ahead: int = 4):
        self.make, self.steps, self.ahead = make, steps, ahead
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._pending: deque[tuple[int, Future[T]]] = deque()

    def __call__(self, step: int) -> T:
        if not self._pending or self._pending[0][0] != step:
            self._cancel()
            self._start(step)
        result = self._pending.popleft()[1]
        following = self._pending[-1][0] + 1 if self._pending else step + 1
        for other in range(following, min(step + self.ahead + 1, self.steps)):
            self._start(other)
        begin = time.perf_counter()
        try:
            return result.result()
        except BaseException:
            self._cancel()  # another request tries again
            raise
        finally:
            self.waited += time.perf_counter() - begin

    def close(self) -> None:
        """Stop the thread and wait for its end."""
        self._cancel()
        self._thread.shutdown()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, step: int) -> None:
        self._pending.append((step, self._thread.submit(self.make, step)))

    def _cancel(self) -> None:
        while self._pending:
            self._pending.popleft()[1].cancel()
