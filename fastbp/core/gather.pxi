# An epoch's data: what an epoch is given, and how threads gather its batches.
#
# A cache line that one core writes and another reads costs as much as a hundred operations. So every thread has a batch
# of its own in panels, and gathers its own rows and what its blocks of the first weight need of the others.

cdef struct Gather:      # a thread's part of the batches
    int64_t *rows        # of the whole batch
    intp invalid         # a row of the data that the kernels cannot use, or -1
    NextBatch next

cdef struct Epoch:
    Net net
    # the data
    const void *features   # (samples, inputs), or NULL for sparse rows
    const char *targets    # (samples,) labels or (samples, outputs)
    intp target_bytes      # of one sample
    const void *sample_weight  # (samples,), (samples, outputs) or NULL
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
    Slot *slots            # for every thread, slots of its own
    # what is done with it
    const Criterion *criterion
    Update *update
    const double *lrs      # of every step, or NULL where all have the same
    double lr
    const double *decays   # the weight decay of every step, or NULL where all have that of the update
    double clip_norm       # 0 for none
    void *grads
    intp parameters        # entries of grads
    Reduction *reduction   # or NULL
    void *blocks           # for every thread, a block of gradients, or some rows of the longest state vector
    intp block_size        # in entries
    double *squares        # of every block of the weights in this step, or NULL
    intp square_count
    bint state_in_blocks   # whether the state vectors of weights in panels are in the order of their blocks
    ContentionCheck check
    # what the threads tell each other
    double losses[CHUNKS]
    double norms[CHUNKS]
    intp correct[CHUNKS]
    double weight          # of the batch
    int invalid            # a flag: what the batch has gathered has changed, and cannot be used
    # what is reported
    double loss            # summed over samples
    double penalty         # see plan.Report
    double weighted_loss, total_weight  # the sum of the losses, each with its sample's weight; of these weights
    intp total_correct, done
    bint diverged
    intp invalid_row       # of the data, at which the steps ended, or -1


cdef Gather init_gather(Epoch *e, Net *net, const Thread *thread, const real *witness) noexcept nogil:
    """Find the columns of x that a thread needs of all rows, for any op that reads the input."""
    cdef Gather g
    cdef Layer *layer
    cdef Range columns
    memset(&g, 0, sizeof(Gather))
    g.invalid = -1
    g.next.features = <const char *> e.features
    g.next.rows = e.rows + thread.number * e.rows_size
    g.rows = g.next.rows + e.rows_size // 2
    g.next.left = net.slots[0].plan.width
    for layer in net.layers[:net.count]:
        if layer.op.src == 0 and (layer.by_columns or layer.kind.weights != NULL):
            columns.begin, columns.end = 0, layer.op.inputs
            if layer.kind.input_columns != NULL:
                columns = layer.kind.input_columns(layer, thread, witness)
            g.next.left, g.next.right = min(g.next.left, columns.begin), max(g.next.right, columns.end)
    return g


cdef void next_batch(Gather *g, Epoch *e, intp first, const Thread *thread) noexcept nogil:
    """The next batch becomes the present one, and the batch from position `first` of the order the next one."""
    cdef Range own
    g.rows, g.next.rows = g.next.rows, g.rows
    g.next.prefetched, g.next.count = 0, min(e.batch_size, e.order.samples - first)
    own = thread_rows(g.next.count, thread)
    g.next.begin, g.next.end = own.begin, own.end
    shuffled(&e.order, g.next.rows, first, g.next.count)


cdef void gather_labels(Gather *g, Epoch *e, intp classes, intp begin, intp end) noexcept nogil:
    """Labels begin..end of the batch; one that is no class any more becomes 0."""
    cdef int64_t label
    cdef intp i
    for i in range(begin, end):
        label = (<const int64_t *> e.targets)[g.rows[i]]
        if not 0 <= label < classes:
            label, g.invalid = 0, g.rows[i]
        (<int64_t *> e.batch_targets)[i] = label


cdef void gather_rows(Gather *g, Epoch *e, Net *net, intp begin, intp end, const real *witness) noexcept nogil:
    """Rows begin..end of the batch: features into panels, targets and weights; of others, columns left..right.

    Rows that other threads gather too are gathered again: a copy is cheaper than lines from another core's cache.
    """
    cdef Slot *x = &net.slots[0]
    cdef intp i, left, right, inputs = x.plan.width
    cdef Layout rows = in_rows(inputs, witness)
    cdef const real *features = <const real *> e.features
    if net.is_sparse:
        net.sparse.rows = g.rows
    for i in range(0 if net.is_sparse else net.batch):
        left, right = g.next.left, g.next.right
        if begin <= i < end:
            left, right = 0, inputs
        if left < right:
            copy_row(<real *> x.value + left // panel_width(witness) * x.layout.panel + i * x.layout.row, x.layout,
                     features + g.rows[i] * inputs + left, rows, right - left)
    i = check_input(net, begin if net.is_sparse else 0, end if net.is_sparse else net.batch, witness)
    if i >= 0:
        g.invalid = g.rows[i]
    if e.criterion.code == CROSS_ENTROPY and not e.criterion.soft:
        gather_labels(g, e, dst_slot(net, &net.layers[net.count - 1]).plan.width, begin, end)
    elif e.target_bytes == 8:
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
            copy_run(<real *> e.batch_weights + i * e.criterion.weight_columns,
                     <const real *> e.sample_weight + g.rows[i] * e.criterion.weight_columns,
                     e.criterion.weight_columns)
