"""Schedules of the learning rate, against their definitions."""

import pytest

import fastbp as fb


def test_schedules():
    s = fb.schedules
    assert s.Constant(0.1)(1000) == 0.1
    assert [s.Step(1.0, 2, 0.5)(t) for t in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    assert s.Exponential(2.0, 0.5)(3) == 0.25
    assert s.Cosine(1.0, 10)(5) == pytest.approx(0.5)
    assert s.Cosine(1.0, 10, 0.1)(99) == pytest.approx(0.1)
    assert s.InverseScaling(1.0, 0.5)(3) == 0.5
    cycle = s.OneCycle(1.0, 100)
    assert cycle(0) == pytest.approx(1 / 25)
    assert cycle(29) == pytest.approx(1)
    assert cycle(99) == pytest.approx(1 / 25e4)
    assert all(0 <= s.OneCycle(1.0, n)(t) <= 1 for n in (1, 2, 10) for t in range(12))
