# Embedding, the first layer: ids are replaced by rows of tables, whose gradients are added up in the flat buffer.
#
# Forward, a thread computes its rows of the batch, as in every layer. Backward, it owns rows of the tables: it reads
# the ids of the whole batch and adds up the gradients of its own rows, in the order of the columns and then of the
# batch, so that a sum does not depend on the number of threads. Between two steps of an epoch the tables' gradients are
# zero: a step clears the rows that it has used.

cdef double OPERATIONS_PER_LOOKUP = 10  # the time to read a number in a table, or to update one, in operations

cdef struct IdColumn:  # a column of ids and its columns of the output; the pointers are to the first row of the batch
    const void *ids
    intp id_row      # distance between two ids
    void *y          # the panel of the output, or of its gradient, in which its `dim` columns begin
    Layout layout
    intp first       # the column of that panel in which they begin


cdef inline IdColumn id_column(const real *x, intp i, real *y, intp j, Layout layout) noexcept nogil:
    """Column i of x and, from j on, those of y."""
    cdef IdColumn c
    c.ids, c.id_row = x + panel_offset(layout, i, x), layout.row
    c.y, c.layout, c.first = y + panel_offset(layout, j, x) - j % panel_width(x), layout, j % panel_width(x)
    return c


cdef inline intp id_at(const IdColumn *c, intp i, const real *witness) noexcept nogil:
    return <intp> (<const real *> c.ids)[i * c.id_row]


cdef inline bint is_id(real number, intp rows) noexcept nogil:
    """Whether a number is whole and that of a row."""
    return 0 <= number < rows and <real> <intp> number == number


cdef void lookup_rows(const IdColumn *c, const real *table, intp dim, intp begin, intp end) noexcept nogil:
    """Rows begin..end of y = table[ids], panel by panel."""
    cdef intp at = 0, first = c.first, run, i
    cdef real *y = <real *> c.y
    while at < dim:
        run = min(dim - at, panel_width(table) - first)
        for i in range(begin, end):
            copy_run(y + i * c.layout.row + first, table + id_at(c, i, table) * dim + at, run)
        at, first, y = at + run, 0, y + c.layout.panel


cdef void scatter_add_rows(const IdColumn *c, real *table, intp dim, intp r0, intp r1, intp batch) noexcept nogil:
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


cdef void clear_rows(const IdColumn *c, real *table, intp dim, intp r0, intp r1, intp batch) noexcept nogil:
    """table[ids] = 0 for the ids from r0 to r1."""
    cdef intp i, row
    for i in range(batch):
        row = id_at(c, i, table)
        if r0 <= row < r1:
            memset(table + row * dim, 0, dim * sizeof(real))


cdef void update_used_rows(const IdColumn *c, const Update *u, real *table, real *gradient, const Table *t,
                           double grad_scale, intp r0, intp r1, intp batch) noexcept nogil:
    """Update table[ids] and clear their gradients; an id that comes again then has one of zero, which is idle."""
    cdef intp i, row, dim = t.dim
    for i in range(batch):
        row = id_at(c, i, table)
        if r0 <= row < r1:
            update_rows(u, table + row * dim, 0, t.offset + row * dim, 0, gradient + row * dim, 0, grad_scale,
                        1, dim)
            memset(gradient + row * dim, 0, dim * sizeof(real))


cdef void embedding_forward_rows(Net *net, Layer *layer, Thread *thread, intp begin, intp end,
                                 const real *witness) noexcept nogil:
    """The numeric columns as they are, then for every column of ids the rows of its table."""
    cdef Slot *src = src_slot(net, layer)
    cdef Slot *dst = dst_slot(net, layer)
    cdef const real *x = <const real *> src.value
    cdef real *y = <real *> dst.value
    cdef const Table *t
    cdef IdColumn column
    cdef intp i = layer.op.numeric, j = i, k
    copy_rows(y, dst.layout, x, src.layout, begin, end, layer.op.numeric)
    for t in net.tables[:net.table_count]:
        for k in range(t.columns):
            column = id_column(x, i, y, j, dst.layout)
            lookup_rows(&column, <const real *> net.values + t.offset, t.dim, begin, end)
            i, j = i + 1, j + t.dim


cdef void embedding_backward_rows(Net *net, Layer *layer, Thread *thread, void *dx, intp begin, intp end,
                                  const real *witness) noexcept nogil:
    """The numeric columns' gradient, and zero for ids."""
    cdef Layout layout = src_slot(net, layer).layout
    cdef intp i, j
    if dx == NULL:
        return
    copy_rows(<real *> dx, layout, <const real *> dst_slot(net, layer).grad, layout, begin, end, layer.op.numeric)
    for j in range(layer.op.numeric, layer.op.inputs):
        for i in range(begin, end):
            (<real *> dx)[panel_offset(layout, j, witness) + i * layout.row] = 0


cdef inline bint skips_rows(const Update *u, Net *net, const Table *t) noexcept nogil:
    """Whether a step updates only the rows of a table that the batch uses: where that is equal, and less work."""
    return u != NULL and u.idle and t.rows > net.batch * t.columns


cdef inline double table_work(const Update *u, Net *net, const Table *t) noexcept nogil:
    """The entries of a table that a step works on."""
    return <double> t.dim * (net.batch * t.columns + (0 if skips_rows(u, net, t) else t.rows))


cdef inline intp first_table_row(const Table *t, double before, double work, double all_work, int number,
                                 const Thread *thread) noexcept nogil:
    """The first row of thread `number`: the work of all tables is shared, of which `before` is that of earlier ones."""
    return <intp> (max(0.0, min(1.0, (all_work * number / thread.team_size - before) / work)) * t.rows)


cdef void add_table_rows(Net *net, Layer *layer, const Table *t, intp i, intp j, intp r0, intp r1,
                         const real *witness) noexcept nogil:
    """A table's gradients, rows r0..r1; its columns of ids begin at i, those of dy at j."""
    cdef Slot *src = src_slot(net, layer)
    cdef IdColumn column
    cdef intp k
    for k in range(t.columns):
        column = id_column(<const real *> src.value, i + k, <real *> dst_slot(net, layer).grad, j + k * t.dim,
                           src.layout)
        scatter_add_rows(&column, <real *> net.grads + t.offset, t.dim, r0, r1, net.batch)


cdef void update_table(const WeightPass *work, Net *net, Layer *layer, const Table *t, intp i, intp r0, intp r1,
                       const real *witness) noexcept nogil:
    """Update rows r0..r1 of a table and, where that is so between steps, make their gradients zero."""
    cdef Slot *src = src_slot(net, layer)
    cdef IdColumn column
    cdef real *weight = <real *> net.values + t.offset
    cdef real *gradient = <real *> net.grads + t.offset
    cdef bint skips = skips_rows(work.update, net, t), clears = work.sparse and not work.keep
    cdef intp k
    if not skips:
        update_rows(work.update, weight + r0 * t.dim, 0, t.offset + r0 * t.dim, 0, gradient + r0 * t.dim, 0,
                    work.grad_scale, 1, (r1 - r0) * t.dim)
        if clears and t.rows <= net.batch * t.columns:
            memset(gradient + r0 * t.dim, 0, (r1 - r0) * t.dim * sizeof(real))
            return
    for k in range(t.columns):
        column = id_column(<const real *> src.value, i + k, <real *> NULL, 0, src.layout)
        if skips:
            update_used_rows(&column, work.update, weight, gradient, t, work.grad_scale, r0, r1, net.batch)
        elif clears:
            clear_rows(&column, gradient, t.dim, r0, r1, net.batch)


cdef void embedding_weights(Net *net, Layer *layer, const Thread *thread, WeightPass *work,
                            const real *witness) noexcept nogil:
    """A thread's rows of the tables: the work of all tables is shared."""
    cdef const Update *u = work.update
    cdef const Table *t
    cdef intp i = layer.op.numeric, j = i, r0, r1
    cdef double all_work = 0, before = 0, own_work
    for t in net.tables[:net.table_count]:
        all_work += table_work(u, net, t)
    for t in net.tables[:net.table_count]:
        own_work = table_work(u, net, t)
        r0 = first_table_row(t, before, own_work, all_work, thread.number, thread)
        r1 = first_table_row(t, before, own_work, all_work, thread.number + 1, thread)
        if r0 < r1:
            if work.gradients:
                if not work.sparse:
                    memset(<real *> net.grads + t.offset + r0 * t.dim, 0, (r1 - r0) * t.dim * sizeof(real))
                add_table_rows(net, layer, t, i, j, r0, r1, witness)
            if work.updates:
                update_table(work, net, layer, t, i, r0, r1, witness)
                if work.keep and skips_rows(u, net, t):
                    add_table_rows(net, layer, t, i, j, r0, r1, witness)  # once more: they were cleared one by one
        i, j, before = i + t.columns, j + t.columns * t.dim, before + own_work


cdef void embedding_pack(Net *net, Layer *layer, const Thread *thread, const WeightPass *work, bint forward,
                         bint backward, const real *witness) noexcept nogil:
    """Before the steps of an epoch a thread's part of the tables' gradients becomes zero."""
    cdef const Table *t
    cdef Range rows
    if work == NULL or not work.sparse:
        return
    for t in net.tables[:net.table_count]:
        rows = thread_part(t.rows, thread)
        memset(<real *> net.grads + t.offset + rows.begin * t.dim, 0,
               (rows.end - rows.begin) * t.dim * sizeof(real))


cdef intp embedding_check_rows(Net *net, Layer *layer, intp begin, intp end, const real *witness) noexcept nogil:
    """Ids that are no rows of their tables become 0; the last sample that has one, or -1."""
    cdef Layout layout = src_slot(net, layer).layout
    cdef real *ids
    cdef const Table *t
    cdef intp column = layer.op.numeric, found = -1, k, i
    for t in net.tables[:net.table_count]:
        for k in range(t.columns):
            ids = <real *> src_slot(net, layer).value + panel_offset(layout, column, witness)
            for i in range(begin, end):
                if not is_id(ids[i * layout.row], t.rows):
                    ids[i * layout.row], found = 0, max(found, i)
            column += 1
    return found


cdef Range embedding_input_columns(const Layer *layer, const Thread *thread, const real *witness) noexcept nogil:
    """The ids."""
    cdef Range columns
    columns.begin = layer.op.numeric // panel_width(witness) * panel_width(witness)
    columns.end = layer.op.inputs
    return columns


cdef double embedding_operations(const Op *op) noexcept nogil:
    return OPERATIONS_PER_LOOKUP * op.outputs


cdef void embedding_kind(LayerKind *kind, const real *witness) noexcept:
    kind.forward, kind.backward = <Forward> embedding_forward_rows[real], <Backward> embedding_backward_rows[real]
    kind.weights, kind.pack = <Weights> embedding_weights[real], <Pack> embedding_pack[real]
    kind.check, kind.input_columns = <Check> embedding_check_rows[real], <Columns> embedding_input_columns[real]
    kind.operations = embedding_operations


register_kind("embedding", <FillKind> embedding_kind[float], <FillKind> embedding_kind[double])


cdef intp first_unknown(const real *x, intp row, const int64_t *counts, intp batch, intp columns) noexcept nogil:
    """The first entry of x (batch, columns) that is no whole number from 0 to counts[j] - 1, or -1."""
    cdef intp i, j
    for i in range(batch):
        for j in range(columns):
            if not is_id(x[i * row + j], counts[j]):
                return i * columns + j
    return -1
