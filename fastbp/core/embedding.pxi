# Embedding: ids are replaced by rows of tables, and the gradients of those rows are added up where the tables have them.
#
# Forward, a thread takes its rows of the batch, as in every layer. Backward, it takes rows of the tables: it looks at
# the ids of the whole batch and adds up those of its own, in the order of the columns and then of the batch, so that a
# sum does not depend on the number of threads. Between two steps of an epoch the tables' gradients are zero: a step
# clears the rows that it has touched.

cdef extern from "microkernel.h" nogil:
    void add_run_float(float *out, const float *src, long n)
    void add_run_double(double *out, const double *src, long n)

cdef struct Table:  # fastbp.core.plan.TABLE
    int64_t rows, dim, offset, columns

cdef struct Column:  # a column of ids and what it becomes; the pointers are to the first row of the batch
    const void *ids
    long id_row      # between two ids
    void *y          # dim columns of the output, or of its gradient, which begin in the middle of a panel
    Layout layout
    long first       # where in that panel


cdef inline long column_at(Layout layout, long j, const real *like) noexcept nogil:
    return j // panel_width(like) * layout.panel + j % panel_width(like)


cdef inline Column column_of(const real *x, long i, real *y, long j, Layout layout) noexcept nogil:
    """Column i of x and, from j on, those of y."""
    cdef Column c
    c.ids, c.id_row = x + column_at(layout, i, x), layout.row
    c.y, c.layout, c.first = y + column_at(layout, j, x) - j % panel_width(x), layout, j % panel_width(x)
    return c


cdef inline long id_at(const Column *c, long i, const real *_) noexcept nogil:
    return <long> (<const real *> c.ids)[i * c.id_row]


cdef inline void add_run(real *out, const real *src, long n) noexcept nogil:
    """out (n,) += src (n,)."""
    if real is float:
        add_run_float(out, src, n)
    else:
        add_run_double(out, src, n)


cdef void look_up(const Column *c, const real *table, long dim, long begin, long end) noexcept nogil:
    """Rows begin..end of y = table[ids], panel by panel."""
    cdef long at = 0, first = c.first, run, i
    cdef real *y = <real *> c.y
    while at < dim:
        run = min(dim - at, panel_width(table) - first)
        for i in range(begin, end):
            copy_run(y + i * c.layout.row + first, table + id_at(c, i, table) * dim + at, run)
        at, first, y = at + run, 0, y + c.layout.panel


cdef void add_rows(const Column *c, real *table, long dim, long r0, long r1, long batch) noexcept nogil:
    """table[ids] += dy for the ids from r0 to r1, in the order of the batch."""
    cdef long at = 0, first = c.first, run, i, row
    cdef const real *dy = <const real *> c.y
    while at < dim:
        run = min(dim - at, panel_width(table) - first)
        for i in range(batch):
            row = id_at(c, i, table)
            if r0 <= row < r1:
                add_run(table + row * dim + at, dy + i * c.layout.row + first, run)
        at, first, dy = at + run, 0, dy + c.layout.panel


cdef void clear_rows(const Column *c, real *table, long dim, long r0, long r1, long batch) noexcept nogil:
    """table[ids] = 0 for the ids from r0 to r1."""
    cdef long i, row
    for i in range(batch):
        row = id_at(c, i, table)
        if r0 <= row < r1:
            memset(table + row * dim, 0, dim * sizeof(real))


cdef void update_touched(const Column *c, const Update *u, real *table, real *gradient, const Table *t,
                         double grad_scale, long r0, long r1, long batch) noexcept nogil:
    """Update table[ids], and clear their gradients: an id that comes again finds none, which changes nothing."""
    cdef long i, row, dim = t.dim
    for i in range(batch):
        row = id_at(c, i, table)
        if r0 <= row < r1:
            update_rows(u, table + row * dim, 0, t.offset + row * dim, 0, gradient + row * dim, 0, grad_scale, 1, dim)
            memset(gradient + row * dim, 0, dim * sizeof(real))


cdef long first_unknown(const real *x, long row, const int64_t *counts, long batch, long columns) noexcept nogil:
    """Which entry of x (batch, columns) is no whole number from 0 to counts[j] - 1, or -1."""
    cdef long i, j
    cdef real id_
    for i in range(batch):
        for j in range(columns):
            id_ = x[i * row + j]
            if not (0 <= id_ < counts[j] and <real> <long> id_ == id_):
                return i * columns + j
    return -1
