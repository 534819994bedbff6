# Where the data of arrays lies: from Python objects to pointers. The caller keeps an array alive while they are used.
#
# Python has checked the arrays. What is checked here again costs nothing: that they are contiguous, that an output can
# be written, and that entries have the expected size.

cdef struct Matrix:  # (rows, columns), C-contiguous; a vector has one row
    void *data
    intp rows, columns

cdef struct Strided:  # a matrix whose rows and columns are at any distance, in elements
    void *data
    intp rows, columns, row, column


cdef int open_buffer(Py_buffer *view, array, int flags, intp itemsize) except -1:
    PyObject_GetBuffer(array, view, flags)
    if view.itemsize != itemsize:
        PyBuffer_Release(view)
        raise TypeError(f"expected entries of {itemsize} bytes, got an array of {array.dtype}")
    return 0


cdef void *address(array) except? NULL:
    """Where the data of a C-contiguous array begins, whatever its entries are."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef void *data = view.buf
    PyBuffer_Release(&view)
    return data


cdef void *address_or_null(array) except? NULL:
    return address(array) if array is not None else NULL


cdef Matrix matrix(array, intp itemsize, bint written=False) except *:
    """An array of one or two dimensions; None is a matrix at NULL."""
    cdef Py_buffer view
    cdef Matrix m
    m.data, m.rows, m.columns = NULL, 0, 0
    if array is None:
        return m
    open_buffer(&view, array, PyBUF_ND | (PyBUF_WRITABLE if written else 0), itemsize)
    m.data, m.rows, m.columns = view.buf, view.shape[0] if view.ndim == 2 else 1, view.shape[view.ndim - 1]
    PyBuffer_Release(&view)
    return m


cdef Matrix output(array, intp itemsize) except *:
    """A matrix that is written; None is a matrix at NULL."""
    return matrix(array, itemsize, True)


cdef Strided strided(array, intp itemsize) except *:
    """An array of two dimensions and any strides."""
    cdef Py_buffer view
    cdef Strided s
    open_buffer(&view, array, PyBUF_STRIDES, itemsize)
    s.data, s.rows, s.columns = view.buf, view.shape[0], view.shape[1]
    s.row, s.column = view.strides[0] // itemsize, view.strides[1] // itemsize
    PyBuffer_Release(&view)
    return s
