"""The scaling law: found again where it is known, and drawn from real trainings."""

import pytest

from evals.scaling import Point, draw, fit


def on_a_law(a: float, b: float, off: float = 1.0) -> list[Point]:
    flops = [1e12, 4e12, 3e13]
    return [Point(d, 10**d, 10**6, f, a * f**-b * (off if d == 3 else 1)) for d, f in enumerate(flops, 2)]


def test_a_power_law_is_found_again():
    law = fit(on_a_law(40.0, 0.1))
    assert (law.a, law.b, law.worst) == pytest.approx((40.0, 0.1, 0.0), abs=1e-9)
    assert law.at(1e15) == pytest.approx(40.0 * 1e15**-0.1)


def test_a_badly_trained_model_is_off_the_line():
    assert fit(on_a_law(40.0, 0.1, off=1.3)).worst > 0.1


def test_one_size_is_too_few_for_a_law():
    with pytest.raises(ValueError, match="different size"):
        fit(on_a_law(40.0, 0.1)[:1])


def test_the_plot_depends_on_the_numbers_alone(tmp_path):
    points = on_a_law(40.0, 0.1)
    for name in ("a.png", "b.png"):
        draw(points, fit(points), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
