"""The entrance to everything numeric: it picks the backend, shows which one it picked, and counts the threads.

A backend is a module with the functions of `reference`. The compiled ones are the same source under other flags; the
best one that this CPU and operating system can run is picked at import, or the one that FASTBP_BACKEND names.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import numpy as np

from fastbp.core.plan import check_codes
from fastbp.core.threads import MAX_THREADS, available_cpus, default_threads, requested_threads

try:
    import fastbp.core._cpu as _cpu
except ImportError as error:
    raise ImportError(
        f"the compiled core of fastbp is not in {os.path.dirname(__file__)}. If this is the source folder, run outside "
        "of it, use the `fastbp` command, or build in place with: pip install -e ."
    ) from error

#: Best first; the instruction sets each one needs are in the table below.
BACKENDS = ("avx512", "avx2", "neon", "generic", "numpy")
_NEEDS = {
    "avx512": ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx2", "fma"),
    "avx2": ("avx2", "fma"),
    "neon": ("neon",),
}


def why_not(name: str) -> str | None:
    """Why a backend cannot run here, or None if it can."""
    features = _cpu.features()
    missing = [feature for feature in _NEEDS.get(name, ()) if not features[feature]]
    if missing:
        return f"this CPU or operating system does not offer {', '.join(missing)}"
    if name != "numpy" and importlib.util.find_spec(f"fastbp.core._{name}") is None:
        return "it was not built in this installation"
    return None


def available_backends() -> list[str]:
    """The backends that can run here, best first."""
    return [name for name in BACKENDS if why_not(name) is None]


@functools.cache
def _load(name: str, asked_by: str) -> tuple[str, ModuleType]:
    if name not in BACKENDS:
        raise ValueError(f"{asked_by}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    reason = why_not(name)
    if reason is not None:
        raise RuntimeError(f"{asked_by}: backend {name!r} cannot run here: {reason}")
    module = importlib.import_module("fastbp.core.reference" if name == "numpy" else f"fastbp.core._{name}")
    check_codes(module)
    return name, module


def _pick() -> tuple[str, ModuleType]:
    forced = os.environ.get("FASTBP_BACKEND", "")
    if forced:
        return _load(forced, "FASTBP_BACKEND")
    return _load(available_backends()[0], "fastbp")


_picked = _pick()
_chosen: ContextVar[tuple[str, ModuleType]] = ContextVar("fastbp_backend")


def backend() -> ModuleType:
    """The active backend's kernels."""
    return _chosen.get(_picked)[1]


def backend_name() -> str:
    """The active backend's name."""
    return _chosen.get(_picked)[0]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the body of a ``with`` statement on another backend.

    Parameters
    ----------
    name : {"avx512", "avx2", "neon", "generic", "numpy"}
        The compiled ones are the same kernels for other instruction sets; ``"numpy"`` is the plain NumPy reference.
        The choice holds for the current thread.

    Raises
    ------
    ValueError
        If there is no backend of that name.
    RuntimeError
        If it cannot run on this machine; the message says why.
    """
    chosen, before = _load(name, "use_backend"), _chosen.get(_picked)
    try:  # an interrupt may follow any call: what is to be undone is known before it is done
        _chosen.set(chosen)
        yield
    finally:
        _chosen.set(before)


_num_threads, _threads_set = default_threads(), False  # whether by the user
_openmp_threads = _picked[1].openmp_threads
_openmp_threads_before = (
    requested_threads() or available_cpus()
)  # if fewer later, another library has set OpenMP's limit


def _after_fork() -> None:
    # GNU's OpenMP remembers the parent's idle team, which a forked child does not have: the child would wait for ever.
    # The pool would not, but there are usually many children, which share the cores.
    global _num_threads
    _num_threads = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels may use; results do not depend on it.

    Parameters
    ----------
    n : int
        From 1 to 1024. Work that is too small for so many runs on fewer. Until this is called fastbp decides by itself:
        a small network trains on one thread, unless a few steps show that more are faster by a quarter.

    Raises
    ------
    ValueError
        If n is anything else.
    """
    global _num_threads, _threads_set, _openmp_threads_before
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= MAX_THREADS:
        raise ValueError(f"n: expected an integer from 1 to {MAX_THREADS}, got {n!r}")
    _num_threads, _threads_set, _openmp_threads_before = int(n), True, _openmp_threads()


def get_num_threads() -> int:
    """How many threads the kernels may use.

    At first as many as the process has CPUs, by affinity and by the quota of its control group (cgroup), or
    OMP_NUM_THREADS if that is less; 1 after a fork. Where they are OpenMP's, as on Linux, ``threadpoolctl`` sees and
    limits them, and so may another library that shares the runtime; ``set_num_threads`` is the last word until OpenMP
    is told of fewer again.
    """
    return abs(thread_limit())


def thread_limit() -> int:
    """``get_num_threads()`` for a kernel; negative unless the user has set it: then more than one has to pay."""
    limit = _openmp_threads()
    threads = _num_threads if limit >= _openmp_threads_before else min(_num_threads, limit)
    return threads if _threads_set else -threads


def show_config() -> None:
    """Print the version's backends, which one is active and why others are not, and the threads."""
    from fastbp import __version__

    print(f"fastbp {__version__}")
    print(f"backend  {backend_name()}")
    for name in BACKENDS:
        print(f"  {name:8} {why_not(name) or 'available'}")
    runtime = "OpenMP" if backend().openmp() else "a pool of its own"
    if backend_name() == "numpy":
        runtime = "for compiled backends; NumPy has its own"
    print(f"threads  {get_num_threads()} ({runtime})")
