"""The compiled kernels: this file is built once per instruction set, as _avx512, _avx2, _neon and _generic.

The included files have one idea each and stand in the order in which they build on each other: how matrices lie in
memory, functions of numbers, products, layers, losses, updates, passes through a network, embeddings, epochs; and last
the doors, through which Python calls them. `real` is float or double, one body for both.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport fabs, fabsf, pow, sqrt, sqrtf
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastbp.core.plan import ELEMENTWISE_LOSSES, RULES, aligned, idle_without_gradient

ctypedef Py_ssize_t intp  # counts, indices and distances; a long has 32 bits on Windows

ctypedef fused real:
    float
    double

cdef extern from "team.h" nogil:
    const bint HAVE_OPENMP
    ctypedef struct Share:
        int number, team
        double lost
    ctypedef void (*Task)(void *work, Share *me) noexcept nogil
    void run_team(Task task, void *work, int team)
    double now "clock_now"()
    int most_threads()
    void meet(Share *me)
    void raise_flag(int *flag)
    bint is_raised(const int *flag)
    bint take_workspace(int *taken)
    void give_back(int *taken)

include "panels.pxi"
include "activations.pxi"
include "products.pxi"
include "layers.pxi"
include "losses.pxi"
include "updates.pxi"
include "order.pxi"
include "passes.pxi"
include "embedding.pxi"
include "engine.pxi"
include "network.pxi"
include "doors.pxi"


def openmp():
    """Whether the threads of this backend's kernels are OpenMP's; else they are those of a pool of its own."""
    return HAVE_OPENMP


def openmp_threads():
    """How many threads OpenMP would start from here, as it may have been told by others; a pool of its own, any."""
    return most_threads()


def target():
    return TARGET.decode()
