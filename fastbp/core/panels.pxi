# How matrices lie in memory: in rows, as in NumPy, or in panels, as the register tile reads them.
#
# A panel is PANEL columns (two vectors) of a matrix, row after row. The last panel is as wide as the others; what it
# holds beyond the matrix is never used. An activation in panels is an operand of all three products as it is: of the
# rows of y = x W and dx = dy W^T, and of the columns of dW = x^T dy. So a step packs only the weights, once for all
# threads.
#
# `witness` is an argument that only tells the compiler whether `real` is float or double; it may be NULL.

cdef extern from "microkernel.h" nogil:
    const char *TARGET
    const int VECTOR_BYTES
    const int MAX_ROWS
    const int TURN
    const int MAX_TILE
    const int SQUARE_float
    const int SQUARE_double
    void transpose_square_float(float *out, intp ld_out, const float *src, intp ld_in)
    void transpose_square_double(double *out, intp ld_out, const double *src, intp ld_in)
    void add_run_float(float *out, const float *src, intp n)
    void add_run_double(double *out, const double *src, intp n)

cdef enum:
    MAX_PANEL = 32  # columns, over all machines and dtypes

cdef struct Layout:  # element (i, j) lies at i * row + (j // PANEL) * panel + j % PANEL
    intp row, panel


cdef inline intp lanes(const real *witness) noexcept nogil:
    return VECTOR_BYTES // <intp> sizeof(real)


cdef inline intp panel_width(const real *witness) noexcept nogil:
    return 2 * lanes(witness)


cdef inline Layout in_rows(intp n, const real *witness) noexcept nogil:
    """A C-contiguous matrix of n columns."""
    cdef Layout layout
    layout.row, layout.panel = n, panel_width(witness)
    return layout


cdef inline Layout in_panels(intp rows, const real *witness) noexcept nogil:
    """A matrix of so many rows in panels; gaps between them keep the pieces of a row out of the same cache set."""
    cdef Layout layout
    layout.row = panel_width(witness)
    layout.panel = rows * layout.row + lanes(witness)
    return layout


cdef inline intp panels_size(intp rows, intp n, const real *witness) noexcept nogil:
    """Elements of a (rows, n) matrix in panels."""
    return ceil_div(n, panel_width(witness)) * in_panels(rows, witness).panel


cdef inline Layout panel_layout(intp rows, intp size) noexcept nogil:
    """As ``in_panels``, for numbers of so many bytes."""
    return in_panels(rows, <float *> NULL) if size == 4 else in_panels(rows, <double *> NULL)


cdef inline intp panel_bytes(intp rows, intp n, intp size) noexcept nogil:
    """Bytes of a matrix in panels, of numbers of so many bytes, rounded up to whole cache lines."""
    return ceil_div(size * (panels_size(rows, n, <float *> NULL) if size == 4 else
                            panels_size(rows, n, <double *> NULL)), 64) * 64


cdef inline void copy_run(real *out, const real *src, intp n) noexcept nogil:
    """out (n,) = src (n,) by whole vectors; the last one overlaps the one before it."""
    cdef intp i = 0, quad = 16 // <intp> sizeof(real), lane = lanes(out)
    if n < quad:
        for i in range(n):
            out[i] = src[i]
        return
    while i + lane <= n:
        memcpy(out + i, src + i, VECTOR_BYTES)
        i += lane
    while i + quad <= n:
        memcpy(out + i, src + i, 16)
        i += quad
    if i < n:
        memcpy(out + n - quad, src + n - quad, 16)


cdef inline void copy_row(real *out, Layout out_layout, const real *src, Layout src_layout, intp n) noexcept nogil:
    """A row of n elements from one layout to another; the pointers are to its first element."""
    cdef intp q, whole = n // panel_width(out)
    for q in range(whole):  # of a constant length
        memcpy(out + q * out_layout.panel, src + q * src_layout.panel, 2 * VECTOR_BYTES)
    copy_run(out + whole * out_layout.panel, src + whole * src_layout.panel, n - whole * panel_width(out))


cdef void copy_rows(real *out, Layout out_layout, const real *src, Layout src_layout, intp begin, intp end,
                    intp n) noexcept nogil:
    """Rows begin..end of an (m, n) matrix from one layout to another."""
    cdef intp i
    for i in range(begin, end):
        copy_row(out + i * out_layout.row, out_layout, src + i * src_layout.row, src_layout, n)


cdef inline intp panel_offset(Layout layout, intp j, const real *witness) noexcept nogil:
    """Where column j begins."""
    return j // panel_width(witness) * layout.panel + j % panel_width(witness)


cdef inline void add_run(real *out, const real *src, intp n) noexcept nogil:
    """out (n,) += src (n,)."""
    if real is float:
        add_run_float(out, src, n)
    else:
        add_run_double(out, src, n)


cdef void copy_columns(real *out, Layout out_layout, intp out_column, const real *src, Layout src_layout,
                       intp src_column, intp begin, intp end, intp n, bint adds) noexcept nogil:
    """Rows begin..end of n columns, from any column to any other: copied or added. A place to itself costs nothing."""
    cdef intp width = panel_width(out), at = 0, run, i, rows, length
    cdef real *to_run
    cdef const real *from_run
    if not adds and out + panel_offset(out_layout, out_column, out) == src + panel_offset(src_layout, src_column, out):
        return
    while at < n:
        run = min(n - at, min(width - (out_column + at) % width, width - (src_column + at) % width))
        rows, length = end - begin, run
        if run == out_layout.row and run == src_layout.row:  # whole panels: their rows lie side by side
            rows, length = 1, run * (end - begin)
        to_run = out + panel_offset(out_layout, out_column + at, out) + begin * out_layout.row
        from_run = src + panel_offset(src_layout, src_column + at, out) + begin * src_layout.row
        for i in range(rows):
            if adds:
                add_run(to_run + i * out_layout.row, from_run + i * src_layout.row, length)
            else:
                copy_run(to_run + i * out_layout.row, from_run + i * src_layout.row, length)
        at += run


cdef void transpose(real *out, intp out_row, const real *src, intp src_row, intp rows, intp columns) noexcept nogil:
    """out (columns, rows) = src (rows, columns)^T, by squares that fit registers."""
    cdef intp a, b, i, j, square = SQUARE_float if real is float else SQUARE_double
    cdef intp whole_rows = rows // square * square, whole_columns = columns // square * square
    for a in range(rows // square):
        for b in range(columns // square):
            i, j = a * square, b * square
            if real is float:
                transpose_square_float(out + j * out_row + i, out_row, src + i * src_row + j, src_row)
            else:
                transpose_square_double(out + j * out_row + i, out_row, src + i * src_row + j, src_row)
    for i in range(rows):
        for j in range(whole_columns if i < whole_rows else 0, columns):
            out[j * out_row + i] = src[i * src_row + j]
