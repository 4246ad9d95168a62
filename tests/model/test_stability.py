"""The rule for loss spikes: when it applies, when it does not, and which step read which data."""

import math
import random

import pytest

from model.training.stability import (
    GIVE_UP_AFTER,
    IN_A_ROW,
    MARGIN,
    WINDOW,
    data_step,
    describe_divergence,
    loss_limit,
    step_of,
    steps_that_read,
    update_losses,
)


def most_high_in_a_row(losses: list[float]) -> int:
    """The most high losses in a row that the rule counts over a run."""
    recent, high, most = [], 0, 0
    for loss in losses:
        recent, high = update_losses(loss, recent, high)
        most = max(most, high)
    return most


def healthy(noise: float, seed: int, steps: int = 3000) -> list[float]:
    """A typical curve: a power law from 7 nats down, with normal noise."""
    draw = random.Random(seed)
    return [1.5 + 5.5 * (1 + step / 20) ** -0.4 + draw.gauss(0, noise) for step in range(steps)]


@pytest.mark.parametrize("noise", [0.005, 0.05, 0.2, 0.5])
def test_healthy_curves_never_come_near_a_spike(noise):
    assert max(most_high_in_a_row(healthy(noise, seed)) for seed in range(5)) <= 1 < IN_A_ROW


@pytest.mark.parametrize("noise", [0.005, 0.05])
def test_a_jump_that_stays_is_a_spike_and_a_single_bad_batch_is_none(noise):
    curve = healthy(noise, 0, 1000)
    jumped = curve[:900] + [loss + 1.0 for loss in curve[900:]]
    assert most_high_in_a_row(jumped) >= IN_A_ROW
    assert most_high_in_a_row([*curve[:900], curve[900] + 5, *curve[901:]]) == 1


def test_the_limit_is_six_robust_deviations_above_the_median():
    """scipy's median absolute deviation, scaled to a normal one, is the independent reference."""
    from scipy.stats import median_abs_deviation

    draw = random.Random(1)
    losses = [draw.gauss(3, 0.4) for _ in range(WINDOW)]
    middle = sorted(losses)[WINDOW // 2 - 1 : WINDOW // 2 + 1]
    deviation = median_abs_deviation(losses, scale="normal")
    assert loss_limit(losses) == pytest.approx(sum(middle) / 2 + 6 * deviation, rel=1e-4)
    assert loss_limit([2.0] * WINDOW) == 2.0 + MARGIN
    assert loss_limit(losses[1:]) == math.inf


def test_a_loss_that_is_not_finite_is_not_in_the_window():
    assert update_losses(math.nan, [1.0, 2.0], 3) == ([1.0, 2.0], 3)


def test_the_problem_is_described():
    assert describe_divergence(IN_A_ROW - 1, GIVE_UP_AFTER - 1) is None
    assert "loss was high in 5 steps" in describe_divergence(IN_A_ROW, 0)
    assert "not finite in 10 steps" in describe_divergence(0, GIVE_UP_AFTER)


def test_each_step_reads_the_data_after_those_that_were_skipped():
    """Against a simulated run: go back to `at`, and read the next data that no step has read."""
    draw = random.Random(0)
    for _ in range(50):
        skipped, read, at = [], {}, 0
        fresh = iter(range(10_000))
        step = 0
        for _ in range(draw.randrange(4)):
            end = step + draw.randrange(1, 30)
            read |= {number: next(fresh) for number in range(step, end)}
            at = draw.randrange(at, end)
            undone = [number for number in read if number >= at]
            skipped.append([at, len(undone)])
            for number in undone:
                del read[number]
            step = at
        read |= {number: next(fresh) for number in range(step, step + 40)}
        assert {number: data_step(number, skipped) for number in read} == read
        taken = {data: number for number, data in read.items()}
        assert all(step_of(data, skipped) == taken.get(data) for data in range(max(taken) + 1))


def test_a_page_whose_data_were_skipped_was_never_read():
    assert steps_that_read([3, 9, 11, 30], [[8, 5]], steps=20) == [3]
    assert steps_that_read([13, 14, 30], [[8, 5]], steps=20) == [8, 9]
