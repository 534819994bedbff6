# The reduction seam of a step: gradients → [reduce] → [clip] → update, where several processes train one model.
#
# Every process brings sums over its samples, weighted, not means. A reducer adds them up over all processes, bucket by
# bucket while the remaining gradients are computed. The total weight, the loss, whether it is finite and whether to
# stop travel with them, so that all processes decide alike; the update divides by the total weight.

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid

cdef extern from "reducer.h" nogil:
    ctypedef struct Reducer:
        void *context
        int (*begin)(void *context, double *header, intp count) noexcept nogil
        int (*reduce)(void *context, void *bucket, intp count, int itemsize) noexcept nogil
        int (*wait)(void *context) noexcept nogil

cdef enum:
    HEADER = 4  # numbers: total weight, sum of the losses, processes whose loss is not finite, processes that stop

cdef struct Bucket:  # of gradients that are reduced together
    int first, end   # of these layers
    intp begin, size  # entries of the flat buffer

cdef struct Reduction:
    Reducer reducer
    double *header
    Bucket *buckets
    int bucket_count
    int failed  # whether a function of the reducer has returned an error


cdef class PythonReducer:
    """Calls the methods begin(header), reduce(bucket) and wait() of an object, with the GIL, on views of the arrays."""

    cdef object reducer, header, grads
    cdef void *first  # gradient
    cdef object error

    def __init__(self, reducer, header, grads):
        self.reducer, self.header, self.grads, self.first = reducer, header, grads, address(grads)

    cdef int call(self, method, arguments) noexcept:
        try:
            getattr(self.reducer, method)(*arguments)
        except BaseException as error:
            self.error = error
            return -1
        return 0


cdef int python_begin(void *context, double *header, intp count) noexcept with gil:
    cdef PythonReducer own = <PythonReducer> context
    return own.call("begin", (own.header,))


cdef int python_reduce(void *context, void *bucket, intp count, int itemsize) noexcept with gil:
    cdef PythonReducer own = <PythonReducer> context
    cdef intp begin = (<char *> bucket - <char *> own.first) // itemsize
    return own.call("reduce", (own.grads[begin:begin + count],))


cdef int python_wait(void *context) noexcept with gil:
    return (<PythonReducer> context).call("wait", ())


cdef Reducer read_reducer(reducer, PythonReducer adapter) except *:
    """A reducer in C, in a capsule, or the adapter of one in Python."""
    cdef Reducer r
    if PyCapsule_IsValid(reducer, "fastbp.Reducer"):
        return (<Reducer *> PyCapsule_GetPointer(reducer, "fastbp.Reducer"))[0]
    r.context = <void *> adapter
    r.begin, r.reduce, r.wait = python_begin, python_reduce, python_wait
    return r


cdef void begin_reduction(Reduction *r, double total_weight, double loss, bint stop) noexcept nogil:
    """Thread 0: what travels with the gradients."""
    r.header[0], r.header[1], r.header[2], r.header[3] = total_weight, loss, not is_finite(loss), stop
    r.failed = r.reducer.begin(r.reducer.context, r.header, HEADER)


cdef void thread_reduce(Reduction *r, Net *net, Thread *thread, WeightPass *work, real *grads) noexcept nogil:
    """All gradients, bucket by bucket; they are reduced when this returns."""
    cdef Bucket *b
    for b in r.buckets[:r.bucket_count]:
        thread_weights(net, thread, work, b.first, b.end, grads)
        barrier(thread)
        if thread.number == 0 and not r.failed:
            r.failed = r.reducer.reduce(r.reducer.context, grads + b.begin, b.size, sizeof(real))
    if thread.number == 0 and not r.failed:
        r.failed = r.reducer.wait(r.reducer.context)
    barrier(thread)


cdef inline bint has_ended(const Reduction *r) noexcept nogil:
    """Whether the processes end their work together, or the reducer could not go on."""
    return r != NULL and (r.failed or r.header[3] > 0)


cdef inline double reduced_scale(const Reduction *r) noexcept nogil:
    """What makes a mean of a sum."""
    return 1 / r.header[0] if r.header[0] != 0 else 0
