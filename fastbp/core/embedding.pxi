# Embedding, the first layer: ids are replaced by rows of tables, whose gradients are added up in the flat buffer.
#
# Forward, a thread takes its rows of the batch, as in every layer. Backward, it takes rows of the tables: it looks at
# the ids of the whole batch and adds up those of its own, in the order of the columns and then of the batch, so that a
# sum does not depend on the number of threads. Between two steps of an epoch the tables' gradients are zero: a step
# clears the rows that it has touched.

cdef extern from "microkernel.h" nogil:
    void add_run_float(float *out, const float *src, intp n)
    void add_run_double(double *out, const double *src, intp n)

cdef struct Column:  # a column of ids and what it becomes; the pointers are to the first row of the batch
    const void *ids
    intp id_row      # between two ids
    void *y          # dim columns of the output, or of its gradient, which begin in the middle of a panel
    Layout layout
    intp first       # where in that panel


cdef inline intp column_at(Layout layout, intp j, const real *like) noexcept nogil:
    return j // panel_width(like) * layout.panel + j % panel_width(like)


cdef inline Column column_of(const real *x, intp i, real *y, intp j, Layout layout) noexcept nogil:
    """Column i of x and, from j on, those of y."""
    cdef Column c
    c.ids, c.id_row = x + column_at(layout, i, x), layout.row
    c.y, c.layout, c.first = y + column_at(layout, j, x) - j % panel_width(x), layout, j % panel_width(x)
    return c


cdef inline intp id_at(const Column *c, intp i, const real *_) noexcept nogil:
    return <intp> (<const real *> c.ids)[i * c.id_row]


cdef inline void add_run(real *out, const real *src, intp n) noexcept nogil:
    """out (n,) += src (n,)."""
    if real is float:
        add_run_float(out, src, n)
    else:
        add_run_double(out, src, n)


cdef void look_up(const Column *c, const real *table, intp dim, intp begin, intp end) noexcept nogil:
    """Rows begin..end of y = table[ids], panel by panel."""
    cdef intp at = 0, first = c.first, run, i
    cdef real *y = <real *> c.y
    while at < dim:
        run = min(dim - at, panel_width(table) - first)
        for i in range(begin, end):
            copy_run(y + i * c.layout.row + first, table + id_at(c, i, table) * dim + at, run)
        at, first, y = at + run, 0, y + c.layout.panel


cdef void add_rows(const Column *c, real *table, intp dim, intp r0, intp r1, intp batch) noexcept nogil:
    """table[ids] += dy for the ids from r0 to r1, in the order of the batch."""
    cdef intp at = 0, first = c.first, run, i, row
    cdef const real *dy = <const real *> c.y
    while at < dim:
        run = min(dim - at, panel_width(table) - first)
        for i in range(batch):
            row = id_at(c, i, table)
            if r0 <= row < r1:
                add_run(table + row * dim + at, dy + i * c.layout.row + first, run)
        at, first, dy = at + run, 0, dy + c.layout.panel


cdef void clear_rows(const Column *c, real *table, intp dim, intp r0, intp r1, intp batch) noexcept nogil:
    """table[ids] = 0 for the ids from r0 to r1."""
    cdef intp i, row
    for i in range(batch):
        row = id_at(c, i, table)
        if r0 <= row < r1:
            memset(table + row * dim, 0, dim * sizeof(real))


cdef void update_touched(const Column *c, const Update *u, real *table, real *gradient, const Table *t,
                         double grad_scale, intp r0, intp r1, intp batch) noexcept nogil:
    """Update table[ids], and clear their gradients: an id that comes again finds none, which changes nothing."""
    cdef intp i, row, dim = t.dim
    for i in range(batch):
        row = id_at(c, i, table)
        if r0 <= row < r1:
            update_rows(u, table + row * dim, 0, t.offset + row * dim, 0, gradient + row * dim, 0, grad_scale,
                        True, 1, dim)
            memset(gradient + row * dim, 0, dim * sizeof(real))


cdef void embedding_forward_rows(Net *net, real *y, const real *x, intp begin, intp end) noexcept nogil:
    """The numeric columns as they are, then for every column of ids the rows of its table."""
    cdef Layer *layer = &net.layers[0]
    cdef const Table *t
    cdef Column column
    cdef intp i = layer.op.numeric, j = i, k
    copy_rows(y, net.layout, x, net.layout, begin, end, layer.op.numeric)
    for t in net.tables[:net.table_count]:
        for k in range(t.columns):
            column = column_of(x, i, y, j, net.layout)
            look_up(&column, <const real *> layer.weight + t.offset, t.dim, begin, end)
            i, j = i + 1, j + t.dim


cdef void embedding_backward_rows(Net *net, real *dx, intp begin, intp end) noexcept nogil:
    """The numeric columns' gradient, and zero for ids."""
    cdef Layer *layer = &net.layers[0]
    cdef intp i, j
    copy_rows(dx, net.layout, <const real *> layer.dy, net.layout, begin, end, layer.op.numeric)
    for j in range(layer.op.numeric, layer.op.inputs):
        for i in range(begin, end):
            dx[column_at(net.layout, j, dx) + i * net.layout.row] = 0


cdef inline bint skips_rows(const Update *u, Net *net, const Table *t) noexcept nogil:
    """Whether a step updates only those rows of a table that are in the batch: if that is the same, and less."""
    return u != NULL and u.idle and t.rows > net.batch * t.columns


cdef inline double table_work(const Update *u, Net *net, const Table *t) noexcept nogil:
    """What a step does with a table, in entries."""
    return <double> t.dim * (net.batch * t.columns + (0 if skips_rows(u, net, t) else t.rows))


cdef inline intp share_of_table(const Table *t, double before, double work, double whole, Share *me,
                                int number) noexcept nogil:
    """Where thread `number`'s rows of a table begin: the whole work is shared, of which `before` is earlier tables'."""
    return <intp> (max(0.0, min(1.0, (whole * number / me.team - before) / work)) * t.rows)


cdef void add_table_rows(Net *net, const Table *t, intp i, intp j, intp r0, intp r1, const real *_) noexcept nogil:
    """A table's gradients, rows r0..r1; its columns of ids begin at i, those of dy at j."""
    cdef Layer *layer = &net.layers[0]
    cdef Column column
    cdef intp k
    for k in range(t.columns):
        column = column_of(input_of(net, 0, _), i + k, <real *> layer.dy, j + k * t.dim, net.layout)
        add_rows(&column, <real *> layer.dweight + t.offset, t.dim, r0, r1, net.batch)


cdef void descend_table(const Update *u, Net *net, const Table *t, intp i, intp r0, intp r1, double grad_scale,
                        bint keep, const real *_) noexcept nogil:
    """Update rows r0..r1 of a table and, unless they are kept, clear their gradients."""
    cdef Layer *layer = &net.layers[0]
    cdef Column column
    cdef real *weight = <real *> layer.weight + t.offset
    cdef real *gradient = <real *> layer.dweight + t.offset
    cdef intp k
    if not skips_rows(u, net, t):
        update_rows(u, weight + r0 * t.dim, 0, t.offset + r0 * t.dim, 0, gradient + r0 * t.dim, 0, grad_scale,
                    True, 1, (r1 - r0) * t.dim)
        if not keep and t.rows <= net.batch * t.columns:
            memset(gradient + r0 * t.dim, 0, (r1 - r0) * t.dim * sizeof(real))
            return
    for k in range(t.columns):
        column = column_of(input_of(net, 0, _), i + k, <real *> NULL, 0, net.layout)
        if skips_rows(u, net, t):
            update_touched(&column, u, weight, gradient, t, grad_scale, r0, r1, net.batch)
        elif not keep:
            clear_rows(&column, gradient, t.dim, r0, r1, net.batch)


cdef void tables_share(const Update *u, Net *net, Share *me, bint gradients, bint updates, bint keep, double grad_scale,
                       const real *_) noexcept nogil:
    """A thread's rows of the tables. In an epoch, where there is an update, their gradients are zero before."""
    cdef Layer *layer = &net.layers[0]
    cdef const Table *t
    cdef intp i = layer.op.numeric, j = i, r0, r1
    cdef double whole = 0, before = 0, work
    for t in net.tables[:net.table_count]:
        whole += table_work(u, net, t)
    for t in net.tables[:net.table_count]:
        work = table_work(u, net, t)
        r0 = share_of_table(t, before, work, whole, me, me.number)
        r1 = share_of_table(t, before, work, whole, me, me.number + 1)
        if r0 < r1:
            if gradients:
                if u == NULL:
                    memset(<real *> layer.dweight + t.offset + r0 * t.dim, 0, (r1 - r0) * t.dim * sizeof(real))
                add_table_rows(net, t, i, j, r0, r1, _)
            if updates:
                descend_table(u, net, t, i, r0, r1, grad_scale, keep, _)
                if keep and skips_rows(u, net, t):
                    add_table_rows(net, t, i, j, r0, r1, _)  # once more: they were cleared one by one
        i, j, before = i + t.columns, j + t.columns * t.dim, before + work


cdef void clear_tables(Net *net, Share *me, const real *_) noexcept nogil:
    """A thread's part of the tables' gradients becomes zero."""
    cdef const Table *t
    cdef intp begin, end
    for t in net.tables[:net.table_count]:
        begin, end = share_of(t.rows, me.number, me.team) * t.dim, share_of(t.rows, me.number + 1, me.team) * t.dim
        memset(<real *> net.layers[0].dweight + t.offset + begin, 0, (end - begin) * sizeof(real))


cdef intp first_unknown(const real *x, intp row, const int64_t *counts, intp batch, intp columns) noexcept nogil:
    """Which entry of x (batch, columns) is no whole number from 0 to counts[j] - 1, or -1."""
    cdef intp i, j
    cdef real id_
    for i in range(batch):
        for j in range(columns):
            id_ = x[i * row + j]
            if not (0 <= id_ < counts[j] and <real> <intp> id_ == id_):
                return i * columns + j
    return -1
