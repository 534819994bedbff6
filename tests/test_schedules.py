"""Schedules of the learning rate, against their definitions."""

import warnings

import numpy as np
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


def test_warmup():
    s = fb.schedules
    assert [s.Constant(1.0, warmup=3)(t) for t in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    warm = s.Cosine(1.0, 13, 0.1, warmup=3)
    assert [warm(t) for t in range(3)] == [0.25, 0.5, 0.75]
    assert [warm(t) for t in range(3, 14)] == [s.Cosine(1.0, 10, 0.1)(t) for t in range(11)]
    assert s.Step(1.0, 2, 0.5, warmup=1)(3) == 0.5
    assert s.Exponential(1.0, 0.5, warmup=1)(3) == 0.25
    assert s.InverseScaling(1.0, 1, warmup=2)(3) == 0.5


def test_units():
    s = fb.schedules
    for schedule, same in (
        (s.Cosine(1.0, epochs=2, warmup=0.5), s.Cosine(1.0, 14, warmup=3.5)),
        (s.OneCycle(1.0, epochs=2), s.OneCycle(1.0, 14)),
        (s.Step(1.0, gamma=0.5, epochs=1), s.Step(1.0, 7, 0.5)),
        (s.Exponential(1.0, 0.5, epochs=1), s.Exponential(1.0, 0.5, 7)),
    ):
        schedule.bind(7)
        assert [schedule(t) for t in range(20)] == [same(t) for t in range(20)]
        assert schedule.settings()["epochs"] in (1, 2)


def test_callables_are_schedules():
    model = fb.Sequential([fb.Dense(1, 1)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=lambda t: 1 / (t + 1))
    for steps, expected in ((0, 1), (3, 0.25)):
        optimizer.steps = steps
        assert optimizer.lr == expected
    optimizer.lr = 0.5
    assert optimizer.lr == 0.5
    for wrong, error in (("0.1", TypeError), (-1, ValueError), (fb.schedules.Cosine, TypeError), (None, TypeError)):
        with pytest.raises(error, match="lr: expected"):
            optimizer.lr = wrong
        assert optimizer.lr == 0.5
    optimizer.lr = lambda t: -1
    with pytest.raises(ValueError, match="lr: expected a number"):
        model.train_on_batch([[1.0]], [1.0], "mse", optimizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fb.schedules.Cosine(0.1), "steps, epochs: expected one of them, got steps=None, epochs=None"),
        (lambda: fb.schedules.Cosine(0.1, 5, epochs=5), "steps, epochs: expected one of them"),
        (lambda: fb.schedules.Cosine(0.1, 5, warmup=5), "warmup: expected less than steps, 5, got 5"),
        (lambda: fb.schedules.Cosine(0.1, epochs=0), "epochs: expected a number"),
        (lambda: fb.schedules.Constant(0.1, warmup=-1), "warmup: expected a number"),
        (lambda: fb.schedules.Step(0.1, 1).bind(0), "steps_per_epoch: expected a positive"),
    ],
)
def test_durations_that_do_not_fit(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("make", [fb.schedules.Cosine, fb.schedules.OneCycle])
def test_a_fit_warns_of_a_schedule_that_has_ended(make):
    """It counts the steps that the optimizer has done before: what is meant for the next epochs may be over."""
    X, y = np.zeros((20, 3)), np.arange(20) % 2
    model = fb.Sequential([fb.Dense(3, 2)], seed=0)
    optimizer = fb.SGD(model.parameters(), lr=make(0.1, epochs=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, y, "cross_entropy", optimizer, epochs=3, batch_size=5, verbose=0)
    with pytest.warns(RuntimeWarning, match=r"lr: .*epochs=2.* has ended: .* 12 by now, and stays at .*new optimizer"):
        model.fit(X, y, "cross_entropy", optimizer, epochs=1, batch_size=5, verbose=0)
    optimizer.lr = make(0.1, steps=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, y, "cross_entropy", optimizer, epochs=1, batch_size=5, verbose=0)
