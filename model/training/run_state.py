"""The state of a run: with weights and optimiser state it is all that a resumed run needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class TrainState:
    """The counters and recent losses of a run, as a checkpoint stores them."""

    step: int = 0  # steps done
    tokens: int = 0  # supervised tokens trained on, over all ranks
    empty_steps: int = 0  # skipped because no token was supervised
    not_finite_steps: int = 0  # skipped because the gradient was not finite
    not_finite_in_a_row: int = 0
    loss: float = math.nan  # nats a token, of the last step that had any
    # The last losses, for the rule of stability.py.
    recent: list[float] = field(default_factory=list)
    high_in_a_row: int = 0
    skipped: list[list[int]] = field(default_factory=list)  # [step, n], one a rollback: data left out
    best: float | None = None  # the lowest value so far of the metric that marks the best checkpoint

    def failures(self) -> dict[str, int]:
        """The counts of what went wrong so far, by metric name; those that are 0 are left out."""
        counts = {
            "empty_steps": self.empty_steps,
            "not_finite_steps": self.not_finite_steps,
            "rollbacks": len(self.skipped),
            "skipped_steps": sum(n for _, n in self.skipped),
        }
        return {name: count for name, count in counts.items() if count}
