"""When a run has diverged, and what it does then: roll back, and skip the data that led there.

The rule. A step's loss is *high* when it exceeds the median of the last WINDOW finite losses by more than
max(DEVIATIONS robust standard deviations, MARGIN nats). IN_A_ROW high losses in a row are a spike; so are
GIVE_UP_AFTER gradients in a row that are not finite. After a spike the run rolls back to its newest periodic
checkpoint, and the data of all steps since then are skipped: PaLM restarted from a checkpoint before each spike and
skipped the batches around it, after which "the loss did not spike again at the same point"; replayed from another
checkpoint the same batches did no harm (arXiv 2204.02311, section 5.1). After config.rollbacks rollbacks the run
stops with an error: then the data are not the cause.

Notable:
- no periodic checkpoint is made while losses are high, so the newest one is always older than the spike;
- every decision follows from numbers that are equal on all ranks and stored in the checkpoint, so a killed run
  repeats it;
- step numbers continue; what shifts is the data. `data_step` gives the data that a step reads, `step_of` the inverse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from core.errors import RunError

WINDOW = 128  # steps; the rule is silent until that many losses are known
DEVIATIONS = 6.0  # of 1.4826 · median absolute deviation, which is a normal distribution's standard deviation
MARGIN = 0.5  # nats; large models' losses deviate by hundredths, and a jump of that size recovers by itself
IN_A_ROW = 5  # steps; a single hard batch is no spike
GIVE_UP_AFTER = 10  # steps without a finite gradient: the run has diverged

Skips = Sequence[Sequence[int]]  # [step, n]: from that step on, the data of n more steps are left out


class Diverged(RunError):
    """The loss or the gradients of a run went out of bounds, and rollbacks did not help."""


def loss_limit(recent: Sequence[float]) -> float:
    """The loss (nats a token) above which a step is high, given the finite losses of the steps before, oldest first."""
    if len(recent) < WINDOW:
        return math.inf
    middle = median(recent[-WINDOW:])
    deviation = 1.4826 * median(abs(loss - middle) for loss in recent[-WINDOW:])
    return middle + max(DEVIATIONS * deviation, MARGIN)


def update_losses(loss: float, recent: Sequence[float], high_in_a_row: int) -> tuple[list[float], int]:
    """The recent losses and the number of high ones in a row, after a step with this loss (nats a token)."""
    if not math.isfinite(loss):
        return list(recent), high_in_a_row
    return [*recent, loss][-WINDOW:], high_in_a_row + 1 if loss > loss_limit(recent) else 0


def describe_divergence(high_in_a_row: int, not_finite_in_a_row: int) -> str | None:
    """Why a run has to roll back, as half a sentence; None where it has not."""
    if not_finite_in_a_row >= GIVE_UP_AFTER:
        return f"the gradient was not finite in {not_finite_in_a_row} steps in a row"
    if high_in_a_row >= IN_A_ROW:
        return f"the loss was high in {high_in_a_row} steps in a row"
    return None


def data_step(step: int, skipped: Skips) -> int:
    """The number of the data that `step` reads: the step's own, plus the number of data skipped before it."""
    return step + sum(n for at, n in skipped if at <= step)


def step_of(data: int, skipped: Skips) -> int | None:
    """The step that read the data of that number; None if they were skipped. The inverse of `data_step`."""
    shift = 0
    for at, n in skipped:
        if data < at + shift:
            break
        shift += n
        if data < at + shift:
            return None
    return data - shift


def steps_that_read(data: Iterable[int], skipped: Skips, steps: int) -> list[int]:
    """Of the first `steps` steps, those that read one of these data; steps undone by a rollback are left out.

    steps_that_read(loader.steps_that_saw(record_id, data_step(steps, skipped)), skipped, steps), with `skipped` as
    in the run's summary.json, are the steps in which a page influenced the weights.
    """
    found = (step_of(number, skipped) for number in data)
    return sorted(step for step in found if step is not None and step < steps)
