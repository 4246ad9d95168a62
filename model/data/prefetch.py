"""The batches of the next steps, made in the background while this one trains.

    with Prefetch(make_batch, steps) as batches:
        train(model, config, batches, …)

For batches that depend on nothing but the step (pretraining, SFT); those of reinforcement learning depend on the
weights. One thread makes them, one after the other and in order, so they are exactly what make_batch gives. It must
not use torch's global generator, which the training loop seeds for itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Prefetch(Generic[Made]):
    """make(step) with the results of the next `ahead` steps at hand. Another step than the next restarts it from there;
    an error in `make` is raised when its step is asked for. waited: seconds that callers have waited so far."""

    def __init__(self, make: Callable[[int], Made], steps: int, ahead: int = 4):
        self.make, self.steps, self.ahead = make, steps, ahead
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._under_way: deque[tuple[int, Future[Made]]] = deque()

    def __call__(self, step: int) -> Made:
        if not self._under_way or self._under_way[0][0] != step:
            self._forget()
            self._start(step)
        made = self._under_way.popleft()[1]
        following = self._under_way[-1][0] + 1 if self._under_way else step + 1
        for other in range(following, min(step + self.ahead + 1, self.steps)):
            self._start(other)
        begin = time.perf_counter()
        try:
            return made.result()
        except BaseException:
            self._forget()  # whoever asks again gets another try
            raise
        finally:
            self.waited += time.perf_counter() - begin

    def close(self) -> None:
        """Stop; the thread is gone when this returns."""
        self._forget()
        self._thread.shutdown()

    def __enter__(self) -> Prefetch[Made]:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _start(self, step: int) -> None:
        self._under_way.append((step, self._thread.submit(self.make, step)))

    def _forget(self) -> None:
        while self._under_way:
            self._under_way.popleft()[1].cancel()
