"""The intervals agree with scipy, with Newcombe's published example, and with brute force."""

import numpy as np
import pytest
from scipy.stats import binomtest

from evals.statistics import newcombe_difference, paired_bootstrap, proportion, wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (250, 500), (499, 500)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_wilson_interval_equals_scipys(successes, n, confidence):
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_an_empty_sample_gives_the_whole_interval():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="not a proportion"):
        wilson_interval(3, 2)


def test_newcombe_difference_is_the_papers_example():
    first, second = proportion([True] * 48 + [False] * 32), proportion([True] * 56 + [False] * 14)
    found = newcombe_difference(first, second)  # Newcombe 1998, table II, example (a), method 10
    assert (found.difference, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_paired_bootstrap_is_that_of_resampled_problems():
    rng = np.random.default_rng(1)
    first, second = rng.random(200) < 0.3, rng.random(200) < 0.45
    found = paired_bootstrap(first.tolist(), second.tolist())
    picks = rng.integers(0, 200, (4000, 200))
    differences = second[picks].mean(1) - first[picks].mean(1)
    assert found.difference == pytest.approx(second.mean() - first.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.01)


def test_paired_bootstrap_is_the_same_each_time_and_refuses_unequal_samples():
    assert paired_bootstrap([True, False] * 50, [True] * 100) == paired_bootstrap(
        [True, False] * 50, [True] * 100
    )
    with pytest.raises(ValueError, match="same problems"):
        paired_bootstrap([True], [])
