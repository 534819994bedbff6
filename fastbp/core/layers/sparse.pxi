# Dense, as the first layer on a sparse input: a pass costs what the stored entries cost, and no batch is ever dense.
#
# The weight is read and updated where it lies. Its gradient is added up in the flat buffer, by threads that own columns
# of the input, in the order of the batch. As for an embedding, it is zero between two steps of an epoch: a step clears
# the rows that it has used and, where the optimizer lets it, updates only these.

cdef void sparse_reserve(Net *net, Layer *layer, Arena *arena, bint backward, const real *witness) noexcept nogil:
    """A flag for each row of the weight: whether the step's gradient has one of it."""
    if backward:
        layer.used = <char *> take(arena, layer.op.inputs)
    else:
        layer.own_panels = layer.own_transposed = NULL


cdef void sparse_forward_rows(Net *net, Layer *layer, Thread *thread, intp begin, intp end,
                              const real *witness) noexcept nogil:
    cdef Op *op = &layer.op
    cdef Slot *dst = dst_slot(net, layer)
    cdef Epilogue epilogue
    if is_set(net.stop):
        return
    epilogue.action, epilogue.accumulate, epilogue.activation = BIAS_ACTIVATION, False, op.activation
    epilogue.bias, epilogue.y, epilogue.z = layer.bias, NULL, NULL
    if op.z >= 0:
        epilogue.z = net.slots[op.z].value
    multiply_sparse(<real *> dst.value, dst.layout, &net.sparse, <const real *> layer.weight, begin, end, op.outputs,
                    op.inputs, &epilogue)
    poll_signals(net, thread, 2.0 * entries_of(&net.sparse, net.batch) * op.outputs)


cdef void update_used(Net *net, Layer *layer, const WeightPass *work, bint skips, intp c0, intp c1,
                      const real *witness) noexcept nogil:
    """Rows c0..c1 of the weight whose gradient the step has used: updated, if others are skipped, and cleared."""
    cdef const SparseRows *x = &net.sparse
    cdef intp n = layer.op.outputs, i, e, c
    cdef Range entries
    cdef real *gradient
    for i in range(net.batch):
        entries = entries_between(x, i, c0, c1)
        for e in range(entries.begin, entries.end):
            c = x.columns[e]
            prefetch_row(<real *> layer.dweight, x, e, entries.end, n)
            if skips:
                prefetch_row(<real *> layer.weight, x, e, entries.end, n)
            if c0 <= c < c1 and layer.used[c]:
                layer.used[c], gradient = False, <real *> layer.dweight + c * n
                if skips:
                    update_rows(work.update, <real *> layer.weight + c * n, 0, layer.op.weight + c * n, 0, gradient, 0,
                                work.grad_scale, 1, n)
                if work.sparse and not work.keep:
                    memset(gradient, 0, n * sizeof(real))


cdef void sparse_weights(Net *net, Layer *layer, const Thread *thread, WeightPass *work,
                         const real *witness) noexcept nogil:
    """A thread's rows of the weight, and by the first thread the bias."""
    cdef intp inputs = layer.op.inputs, outputs = layer.op.outputs, entries = entries_of(&net.sparse, net.batch)
    cdef Slot *dst = dst_slot(net, layer)
    cdef bint skips = work.updates and work.update.idle
    cdef Range own = thread_columns(&net.sparse, inputs, entries, work.updates and not skips, thread, witness)
    cdef real *gradient = <real *> layer.dweight
    cdef Block b
    if work.updates and not work.keep and is_frozen(work.update, layer.op.weight) and (
            layer.bias == NULL or is_frozen(work.update, layer.op.bias)):
        return
    if work.gradients:
        if not work.sparse:
            memset(gradient + own.begin * outputs, 0, (own.end - own.begin) * outputs * sizeof(real))
        multiply_sparse_transposed(gradient, layer.used, &net.sparse, <const real *> dst.grad, dst.layout, own.begin,
                                   own.end, outputs, net.batch)
        if thread.number == 0 and layer.dbias != NULL:
            column_sums(<real *> layer.dbias, <const real *> dst.grad, dst.layout, outputs, net.batch)
    if not work.updates:
        return
    b.i0, b.j0, b.j1 = own.begin, 0, outputs
    while b.i0 < own.end and not skips:
        b.i1 = min(own.end, b.i0 + panel_width(witness))
        update_block(net, layer, b, gradient + b.i0 * outputs, outputs, work)
        b.i0 = b.i1
    if skips and thread.number == 0 and layer.bias != NULL:
        update_rows(work.update, <real *> layer.bias, 0, layer.op.bias, 0, <real *> layer.dbias, 0, work.grad_scale, 1,
                    outputs)
    if skips or work.sparse:
        update_used(net, layer, work, skips, own.begin, own.end, witness)


cdef void sparse_pack(Net *net, Layer *layer, const Thread *thread, const WeightPass *work, bint forward,
                      bint backward, const real *witness) noexcept nogil:
    """Before the steps of an epoch the gradient becomes zero, a thread's part."""
    cdef Range rows
    if work != NULL and work.sparse:
        rows = thread_part(layer.op.inputs, thread)
        memset(layer.used + rows.begin, 0, rows.end - rows.begin)
        memset(<real *> layer.dweight + rows.begin * layer.op.outputs, 0,
               (rows.end - rows.begin) * layer.op.outputs * sizeof(real))


cdef intp sparse_check_rows(Net *net, Layer *layer, intp begin, intp end, const real *witness) noexcept nogil:
    """The last sample that has an entry in a column that the input does not have, or -1."""
    cdef Range entries
    cdef intp i, e, found = -1
    for i in range(begin, end):
        entries = row_entries(&net.sparse, i)
        for e in range(entries.begin, entries.end):
            if not 0 <= net.sparse.columns[e] < layer.op.inputs:
                found = i
    return found


cdef Range sparse_input_columns(const Layer *layer, const Thread *thread, const real *witness) noexcept nogil:
    """None is copied."""
    cdef Range columns
    columns.begin = columns.end = 0
    return columns


cdef void sparse_kind(LayerKind *kind, const real *witness) noexcept:
    kind.reserve, kind.pack = <Reserve> sparse_reserve[real], <Pack> sparse_pack[real]
    kind.forward, kind.backward = <Forward> sparse_forward_rows[real], <Backward> dense_backward_rows[real]
    kind.weights, kind.check = <Weights> sparse_weights[real], <Check> sparse_check_rows[real]
    kind.input_columns, kind.adds_gradient = <Columns> sparse_input_columns[real], True


register_kind("sparse", <FillKind> sparse_kind[float], <FillKind> sparse_kind[double])
