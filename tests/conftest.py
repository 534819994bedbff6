"""What the tests share: backends of this machine, the state that each finds, signals, the tolerance of a sum."""

import gc
import signal

import numpy as np
import pytest

import fastbp as fb
from fastbp.core import available_backends

COMPILED = [name for name in available_backends() if name != "numpy"]


@pytest.fixture(params=COMPILED)
def compiled(request):
    """Runs the test on every compiled backend that this machine can run."""
    with fb.use_backend(request.param):
        yield request.param


@pytest.fixture(params=available_backends())
def any_backend(request):
    with fb.use_backend(request.param):
        yield request.param


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(autouse=True, scope="session")
def _interrupts():
    """A shell's background job ignores SIGINT, and its Python too: tests that interrupt themselves would never end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def alarms():
    """Calls a handler after some time, and again and again after another: ``alarms(handler, seconds, again)``.

    Python loses what a handler raises while garbage is collected, so there is no collection.
    """
    if not hasattr(signal, "setitimer"):
        pytest.skip("no interval timer on this system")
    before = signal.getsignal(signal.SIGALRM)

    def start(handler, seconds, again=0.0):
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds, again)

    gc.disable()
    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    gc.enable()


@pytest.fixture(autouse=True)
def _threads():
    """A test may set the number of threads; the next one finds it as it was."""
    before = fb.get_num_threads()
    yield
    fb.set_num_threads(before)


def rounding(dtype, terms=1):
    """A bound on the relative difference of two ways to sum ``terms`` products of this dtype.

    Each of two orders of summation is off by at most terms * eps / 2 of the sum of absolute values (Higham 2002,
    section 4.2); in practice by its square root. Four times the root leaves room for the functions around the sum.
    """
    return 4 * np.finfo(dtype).eps * (4 + np.sqrt(terms))


def assert_close(got, expected, scale, dtype, terms=1):
    """|got - expected| within the rounding of sums whose absolute terms add up to ``scale``.

    Errors are judged against what went into a result: cancellation does not ask for digits that are not there.
    """
    assert np.all(np.abs(got - expected) <= rounding(dtype, terms) * scale + np.finfo(dtype).tiny)
