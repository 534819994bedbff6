"""The compiled kernels: this file is built once per instruction set, as _avx512, _avx2, _neon and _generic.

Every included file has one idea and uses only names that are defined above it: pointers, the partition of work,
layouts, functions of numbers, products, losses, updates, the layers of a network, its passes, epochs, and last the
bindings that Python calls. `real` is float or double, one body for both.
"""

from cpython.buffer cimport (
    PyBUF_ND,
    PyBUF_SIMPLE,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.math cimport NAN, fabs, fabsf, pow, sqrt, sqrtf
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastbp.core.plan import BUCKET_BYTES, aligned
from fastbp.core.sparse import CSR

ctypedef Py_ssize_t intp  # counts, indices and distances; a long has 32 bits on Windows

ctypedef fused real:
    float
    double

cdef extern from "team.h" nogil:
    const bint HAVE_OPENMP
    ctypedef struct Thread:
        int number, team_size
        double waited
    ctypedef void (*Task)(void *work, Thread *thread) noexcept nogil
    void run_team(Task task, void *work, int team_size)
    double now "clock_now"()
    int max_threads()
    void barrier(Thread *thread)
    void set_flag(int *flag)
    bint is_set(const int *flag)
    bint try_lock(int *lock)
    void unlock(int *lock)

include "arrays.pxi"
include "partition.pxi"
include "panels.pxi"
include "reductions.pxi"
include "activations.pxi"
include "products.pxi"
include "sparse.pxi"
include "losses.pxi"
include "updates.pxi"
include "order.pxi"
include "records.pxi"
include "specs.pxi"
include "timing.pxi"
include "slots.pxi"
include "blocks.pxi"
include "layers/dense.pxi"
include "layers/sparse.pxi"
include "layers/activation.pxi"
include "layers/copy.pxi"
include "layers/dropout.pxi"
include "layers/normalization.pxi"
include "layers/embedding.pxi"
include "passes.pxi"
include "contention.pxi"
include "reduction.pxi"
include "gather.pxi"
include "engine.pxi"
include "network.pxi"
include "bindings.pxi"


def openmp():
    return HAVE_OPENMP


def openmp_threads():
    return max_threads()


def target():
    return TARGET.decode()
