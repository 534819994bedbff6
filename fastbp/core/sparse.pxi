# Sparse rows: the input of a first dense layer in compressed sparse rows (CSR), where only stored entries cost.
#
# The rows are read where the user has them. Who may write into them meanwhile: every column is compared with the width
# before it is used, and the starts of the rows are a copy.

cdef extern from "microkernel.h" nogil:
    void sparse_row_float(float *out, intp out_panel, const float *values, const int32_t *columns, intp count, intp k,
                          const float *b, intp b_row, intp n, const float *initial)
    void sparse_row_double(double *out, intp out_panel, const double *values, const int32_t *columns, intp count,
                           intp k, const double *b, intp b_row, intp n, const double *initial)
    void prefetch_for_writing(const char *p)
    void add_scaled_float(float *out, const float *src, intp src_panel, float scale, intp n)
    void add_scaled_double(double *out, const double *src, intp src_panel, double scale, intp n)

cdef enum:
    ENTRIES_AHEAD = 4

cdef double ENTRIES_PER_ROW = 8  # of a weight: to update a row takes as long as to add so many entries to a gradient

cdef struct SparseRows:  # core/sparse.py
    const void *values
    const int32_t *columns  # in ascending order within a row
    const int64_t *starts
    const int64_t *rows     # of the batch, or NULL for the first ones
    const int32_t *sample   # columns of some of the entries, in ascending order
    intp sampled


cdef inline Range row_entries(const SparseRows *x, intp i) noexcept nogil:
    """The entries of row i of the batch."""
    cdef intp row = x.rows[i] if x.rows != NULL else i
    cdef Range entries
    entries.begin, entries.end = x.starts[row], x.starts[row + 1]
    return entries


cdef inline intp first_from(const int32_t *columns, intp begin, intp end, intp column) noexcept nogil:
    """The first of columns begin..end, in ascending order, that is not before this one."""
    cdef intp middle
    while begin < end:
        middle = (begin + end) // 2
        if columns[middle] < column:
            begin = middle + 1
        else:
            end = middle
    return begin


cdef inline Range entries_between(const SparseRows *x, intp i, intp c0, intp c1) noexcept nogil:
    """Those of row i whose columns are from c0 to c1."""
    cdef Range entries = row_entries(x, i)
    entries.begin = first_from(x.columns, entries.begin, entries.end, c0)
    entries.end = first_from(x.columns, entries.begin, entries.end, c1)
    return entries


cdef inline void prefetch_row(const real *rows, const SparseRows *x, intp e, intp end, intp n) noexcept nogil:
    """Of a gradient or a weight, the row that an entry a few after this one changes: the hardware cannot predict it."""
    cdef intp at
    if e + ENTRIES_AHEAD < end:
        for at in range(0, n * <intp> sizeof(real), 64):
            prefetch_for_writing(<const char *> (rows + x.columns[e + ENTRIES_AHEAD] * n) + at)


cdef void multiply_sparse(real *c, Layout layout, const SparseRows *x, const real *b, intp begin, intp end, intp n,
                          intp k, const Epilogue *epilogue) noexcept nogil:
    """Rows begin..end of c (m, n) = x (m, k) @ b (k, n), c in panels."""
    cdef const real *values = <const real *> x.values
    cdef Range entries
    cdef intp width = panel_width(c), i, q
    cdef real *out
    for i in range(begin, end):
        entries = row_entries(x, i)
        out = c + i * layout.row
        if real is float:
            sparse_row_float(out, layout.panel, values + entries.begin, x.columns + entries.begin,
                             entries.end - entries.begin, k, b, n, n, <const real *> epilogue.bias)
        else:
            sparse_row_double(out, layout.panel, values + entries.begin, x.columns + entries.begin,
                              entries.end - entries.begin, k, b, n, n, <const real *> epilogue.bias)
        for q in range(ceil_div(n, width)):
            if fused_in_tile(epilogue):
                activate(RELU, out, out, width)
            else:
                apply_epilogue(out, 1, epilogue, out - c)
            out += layout.panel


cdef void multiply_sparse_transposed(real *out, char *used, const SparseRows *x, const real *dy, Layout layout, intp c0,
                                     intp c1, intp n, intp batch) noexcept nogil:
    """Rows c0..c1 of out (k, n) += x^T (k, batch) @ dy (batch, n), in the order of the batch; these become used."""
    cdef const real *values = <const real *> x.values
    cdef Range entries
    cdef intp i, e, c
    for i in range(batch):
        entries = entries_between(x, i, c0, c1)
        for e in range(entries.begin, entries.end):
            c = x.columns[e]
            prefetch_row(out, x, e, entries.end, n)
            if c0 <= c < c1:
                used[c] = True
                if real is float:
                    add_scaled_float(out + c * n, dy + i * layout.row, layout.panel, values[e], n)
                else:
                    add_scaled_double(out + c * n, dy + i * layout.row, layout.panel, values[e], n)


cdef intp entries_of(const SparseRows *x, intp batch) noexcept nogil:
    """How many entries a batch has."""
    cdef intp i, count = 0
    cdef Range entries
    for i in range(batch):
        entries = row_entries(x, i)
        count += entries.end - entries.begin
    return count


cdef Range thread_columns(const SparseRows *x, intp k, double entries, bint all_rows, const Thread *thread,
                          const real *witness) noexcept nogil:
    """Whole panels of the k columns, so that threads have equal work: entries and, if need be, all rows of the weight.

    Where the entries are, a sample of them says.
    """
    cdef intp panels = ceil_div(k, panel_width(witness)), bound, low, high, middle, column
    cdef intp bounds[2]
    cdef double rows = ENTRIES_PER_ROW * k if all_rows else 1
    cdef double share = rows / (rows + (entries if x.sampled > 0 else 0)), done
    cdef Range columns
    for bound in range(2):
        low, high = 0, panels
        while low < high:  # the first panel before which so much of the work is
            middle = (low + high) // 2
            column = middle * panel_width(witness)
            done = share * middle / panels
            if x.sampled > 0:
                done += (1 - share) * first_from(x.sample, 0, x.sampled, column) / x.sampled
            if done * thread.team_size < thread.number + bound:
                low = middle + 1
            else:
                high = middle
        bounds[bound] = low
    columns.begin, columns.end = bounds[0] * panel_width(witness), min(k, bounds[1] * panel_width(witness))
    return columns
