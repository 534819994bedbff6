# Where the data of arrays begins: from Python objects and typed memoryviews to pointers.

cdef void *address(array) except? NULL:
    """Where the data of a C-contiguous array begins; the caller keeps the array alive."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef void *data = view.buf
    PyBuffer_Release(&view)
    return data


cdef void *address_or_null(array) except? NULL:
    return address(array) if array is not None else NULL


# An empty array has no first element, and a build that checks indices would raise for it.

@cython.boundscheck(False)
cdef inline real *vector(const real[::1] x) noexcept nogil:
    return <real *> &x[0]


@cython.boundscheck(False)
cdef inline real *matrix(const real[:, ::1] x) noexcept nogil:
    return <real *> &x[0, 0]


@cython.boundscheck(False)
cdef inline real *strided(const real[:, :] x) noexcept nogil:
    return <real *> &x[0, 0]
