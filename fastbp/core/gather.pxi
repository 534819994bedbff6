# An epoch's data: what an epoch is given, and how threads gather its batches.
#
# A cache line that one core writes and another reads costs as much as a hundred operations. So every thread has a batch
# of its own in panels, and gathers its own rows and what its blocks of the first weight need of the others.

cdef extern from "microkernel.h" nogil:
    void prefetch_line(const char *p)

cdef struct Gather:      # a thread's part of the batches
    int64_t *rows        # of the whole batch
    int64_t *next_rows   # and of the one that follows
    intp prefetched, count  # the features of how many of these were prefetched, of how many
    intp begin, end      # the thread's rows of the next batch
    intp left, right     # the columns that it needs of all rows

cdef struct Epoch:
    Net net
    # the data
    const void *features   # (samples, inputs)
    const char *targets    # (samples,) labels or (samples, outputs)
    intp target_bytes      # of one sample
    const void *sample_weight  # (samples,) or NULL
    Shuffle order
    intp first, steps, batch_size  # position in the order of the first sample, and how far to go from there
    # the batch, row by row
    int64_t *rows          # of two batches, for every thread
    void *inputs           # for every thread but the first, a batch in panels that only this thread writes
    intp rows_size, inputs_size  # in entries
    char *batch_targets
    void *batch_weights    # or NULL
    void *pred
    void *dpred
    # what is done with it
    const Criterion *criterion
    Update *update
    const double *lrs      # of every step, or NULL where all have the same
    double lr
    const double *decays   # the weight decay of every step, or NULL where all have that of the update
    double clip_norm       # 0 for none
    const void *grads
    intp parameters        # entries of grads
    void *blocks           # for every thread, a block of gradients, or some rows of the longest state vector
    intp block_size        # in entries
    bint state_in_blocks   # whether the state vectors of weights in panels are in the order of their blocks
    ContentionCheck check
    # what the threads tell each other
    double losses[CHUNKS]
    double norms[CHUNKS]
    intp correct[CHUNKS]
    # what is reported
    double loss            # summed over samples
    intp total_correct, done
    bint diverged


cdef Gather init_gather(Epoch *e, Net *net, const Thread *thread, const real *witness) noexcept nogil:
    """Find the columns of x that a thread needs of all rows: those of its blocks of the first weight, or the ids."""
    cdef Gather g
    cdef Op *op = &net.layers[0].op
    cdef Range blocks
    cdef Block b
    cdef intp index
    g.next_rows = e.rows + thread.number * e.rows_size
    g.rows = g.next_rows + e.rows_size // 2
    g.prefetched = g.count = g.begin = g.end = 0
    g.left, g.right = 0, op.inputs
    if op.kind == EMBEDDING:
        g.left = op.numeric // panel_width(witness) * panel_width(witness)
    elif op.kind == DENSE and not net.layers[0].by_columns:
        g.left, g.right = op.inputs, 0
        blocks = thread_blocks(&net.layers[0], thread, witness)
        for index in range(blocks.begin, blocks.end):
            b = block_at(&net.layers[0], index, witness)
            g.left, g.right = min(g.left, b.i0), max(g.right, b.i1)
    return g


cdef void next_batch(Gather *g, Epoch *e, intp first, const Thread *thread) noexcept nogil:
    """The next batch becomes the present one, and the batch from position `first` of the order the next one."""
    cdef Range own
    g.rows, g.next_rows = g.next_rows, g.rows
    g.prefetched, g.count = 0, min(e.batch_size, e.order.samples - first)
    own = thread_rows(g.count, thread)
    g.begin, g.end = own.begin, own.end
    shuffled(&e.order, g.next_rows, first, g.count)


cdef void gather_rows(Gather *g, Epoch *e, Net *net, intp begin, intp end, const real *witness) noexcept nogil:
    """Rows begin..end of the batch: features into panels, targets and weights; of others, columns left..right.

    Rows that other threads gather too are gathered again: a copy is cheaper than lines from another core's cache.
    """
    cdef intp i, left, right, inputs = net.layers[0].op.inputs
    cdef Layout rows = in_rows(inputs, witness)
    cdef const real *features = <const real *> e.features
    for i in range(net.batch):
        left, right = g.left, g.right
        if begin <= i < end:
            left, right = 0, inputs
        copy_row(<real *> net.x + left // panel_width(witness) * net.layout.panel + i * net.layout.row, net.layout,
                 features + g.rows[i] * inputs + left, rows, right - left)
    if e.target_bytes == 8:
        for i in range(begin, end):
            (<int64_t *> e.batch_targets)[i] = (<const int64_t *> e.targets)[g.rows[i]]
    elif e.target_bytes == 4:
        for i in range(begin, end):
            (<int32_t *> e.batch_targets)[i] = (<const int32_t *> e.targets)[g.rows[i]]
    else:
        for i in range(begin, end):
            memcpy(e.batch_targets + i * e.target_bytes, e.targets + g.rows[i] * e.target_bytes, e.target_bytes)
    if e.sample_weight != NULL:
        for i in range(begin, end):
            (<real *> e.batch_weights)[i] = (<const real *> e.sample_weight)[g.rows[i]]


cdef void prefetch_rows(Gather *g, Epoch *e, intp inputs, const real *witness) noexcept nogil:
    """Prefetch the features of the next batch that were not prefetched yet."""
    cdef intp left, right, at
    cdef const char *row
    while g.prefetched < g.count:
        left, right = g.left, g.right
        if g.begin <= g.prefetched < g.end:
            left, right = 0, inputs
        row = <const char *> (<const real *> e.features + g.next_rows[g.prefetched] * inputs)
        for at in range(left * <intp> sizeof(real), right * <intp> sizeof(real), 64):
            prefetch_line(row + at)
        g.prefetched += 1
