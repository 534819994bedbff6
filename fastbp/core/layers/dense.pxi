# Dense: y = activation(x @ weight + bias). Rows forward and back, and blocks of the weight: gradient, update, packing.
#
# In an epoch a block's gradient is applied while it is in L1, and the panels of the weight are rewritten at once: no
# weight is packed again, and no gradient passes through memory.

cdef void dense_reserve(Net *net, Layer *layer, Arena *arena, bint backward, const real *witness) noexcept nogil:
    """Panels of a weight whose rows are too long to be read in place, and of its transpose where dx is computed."""
    cdef Op *op = &layer.op
    if not backward:
        layer.own_panels = NULL
        if net.has_panels and not has_short_rows(op, witness):
            layer.own_panels = take(arena, panel_bytes(op.inputs, op.outputs, sizeof(real)))
        return
    layer.own_transposed = NULL
    if net.has_panels and needs_gradient(net, src_slot(net, layer)):
        layer.own_transposed = take(arena, panel_bytes(op.outputs, op.inputs, sizeof(real)))


cdef inline bint needs_transposed(Net *net, const Layer *layer) noexcept nogil:
    return layer.transposed != NULL and src_slot(net, layer).grad != NULL


cdef void dense_forward_rows(Net *net, Layer *layer, Thread *thread, intp begin, intp end,
                             const real *witness) noexcept nogil:
    """A thread's rows of y; or, by_columns, its columns of all rows."""
    cdef Op *op = &layer.op
    cdef Slot *src = src_slot(net, layer)
    cdef Slot *dst = dst_slot(net, layer)
    cdef Epilogue epilogue
    cdef const real *weight = <const real *> (layer.weight if layer.panels == NULL else layer.panels)
    cdef Layout weight_layout = in_rows(op.outputs, witness) if layer.panels == NULL else in_panels(op.inputs, witness)
    cdef intp width = panel_width(witness), first = 0, columns = op.outputs
    cdef Range own
    if is_set(net.stop):
        return
    if layer.by_columns:
        own = thread_part(ceil_div(columns, width), thread)
        first, columns = own.begin, min(columns, own.end * width) - own.begin * width
        begin, end = 0, dst.rows
    epilogue.action, epilogue.accumulate = BIAS_ACTIVATION, False
    epilogue.activation = op.activation
    epilogue.bias = <const real *> layer.bias + first * width if layer.bias != NULL else NULL
    epilogue.y, epilogue.z = NULL, NULL
    if op.z >= 0:
        epilogue.z = <real *> net.slots[op.z].value + first * dst.layout.panel
    if layer.panels == NULL and not has_short_rows(op, witness):
        multiply_in_place(<real *> dst.value + first * dst.layout.panel, <const real *> src.value, src.layout,
                          weight + first * width, op.outputs, False, begin, end, columns, op.inputs, &epilogue)
    else:
        multiply_rows(<real *> dst.value + first * dst.layout.panel, <const real *> src.value, src.layout,
                      weight + first * weight_layout.panel, weight_layout, begin, end, columns, op.inputs, &epilogue)
    poll_signals(net, thread, 2.0 * (end - begin) * op.inputs * columns)


cdef void dense_backward_rows(Net *net, Layer *layer, Thread *thread, void *dx, intp begin, intp end,
                              const real *witness) noexcept nogil:
    """dx = dy @ weight^T, added to what is there if the op accumulates, times the derivative of src's activation."""
    cdef Op *op = &layer.op
    cdef Slot *src = src_slot(net, layer)
    cdef Epilogue epilogue
    cdef Layout weight_layout = in_panels(op.outputs, witness)
    cdef intp width = panel_width(witness), first = src.first // width, columns = op.inputs  # first: of its panels
    cdef Range own
    if dx == NULL or is_set(net.stop):
        return
    if layer.dx_by_columns:
        own = thread_part(ceil_div(columns, width) - first, thread)
        first, columns = first + own.begin, min(columns, (first + own.end) * width)
        begin, end = 0, src.rows
    columns -= first * width
    if columns <= 0:
        return
    epilogue.action = DERIVATIVE if op.input_activation != LINEAR else NO_ACTION
    epilogue.accumulate, epilogue.activation, epilogue.bias = op.accumulates, op.input_activation, NULL
    epilogue.y, epilogue.z = NULL, NULL
    if op.input_activation != LINEAR:
        epilogue.y = <const real *> src.value + first * src.layout.panel
        if op.input_z >= 0:
            epilogue.z = <real *> net.slots[op.input_z].value + first * src.layout.panel
    if layer.transposed == NULL:
        multiply_in_place(<real *> dx + first * src.layout.panel, <const real *> dst_slot(net, layer).grad, src.layout,
                          <const real *> layer.weight + first * width * op.outputs, op.outputs, True, begin, end,
                          columns, op.outputs, &epilogue)
    else:
        multiply_rows(<real *> dx + first * src.layout.panel, <const real *> dst_slot(net, layer).grad, src.layout,
                      <const real *> layer.transposed + first * weight_layout.panel, weight_layout, begin, end,
                      columns, op.outputs, &epilogue)
    poll_signals(net, thread, 2.0 * (end - begin) * columns * op.outputs)


cdef void block_gradient(Net *net, Layer *layer, Block b, real *gradient, Layout gradient_layout,
                         const PrefetchPlan *plan) noexcept nogil:
    """The block's part of dweight goes to `gradient`, its part of dbias to the flat gradients."""
    cdef Slot *src = src_slot(net, layer)
    cdef intp width = panel_width(gradient)
    cdef const real *dy = <const real *> dst_slot(net, layer).grad + b.j0 // width * src.layout.panel
    cdef const real *x = <const real *> src.value + b.i0 // width * src.layout.panel
    if layer.op.outputs == 1:  # dy^T x fills the vectors, and a column in rows is a row
        multiply_columns(gradient, in_rows(b.i1 - b.i0, gradient), dy, x, src.layout, 1, b.i1 - b.i0, src.rows, plan)
    else:
        multiply_columns(gradient, gradient_layout, x, dy, src.layout, b.i1 - b.i0, b.j1 - b.j0, src.rows, plan)
    if b.i0 == 0 and layer.dbias != NULL:
        column_sums(<real *> layer.dbias + b.j0, dy, src.layout, b.j1 - b.j0, src.rows)


cdef inline intp state_offset(const WeightPass *work, const Layer *layer, Block b) noexcept nogil:
    """Where in the state vectors a block begins."""
    return layer.op.weight + b.i0 * layer.op.outputs + (
        b.j0 * (b.i1 - b.i0) if work.state_in_blocks and layer.panels != NULL else b.j0)


cdef PrefetchPlan plan_prefetch(Net *net, Layer *layer, Block b, WeightPass *work, const real *witness) noexcept nogil:
    """What an update of a block in panels reads besides its gradient; and the next panel of x, or rows of the data."""
    cdef PrefetchPlan plan
    cdef Slot *src = src_slot(net, layer)
    cdef NextBatch *data = work.next
    cdef intp offset, size = sizeof(real), p
    for p in range(6):
        plan.pieces[p] = <const char *> (
            <const real *> src.value + (b.i0 // panel_width(witness) + 1) * src.layout.panel) + p % 2 * src.rows * 64
    plan.bytes[0] = plan.bytes[1] = 0
    plan.bytes[2] = src.rows * 64
    if layer.op.src == 0 and work.updates and data.prefetched + 2 <= data.count:
        plan.bytes[2] = layer.op.inputs * size  # x is in the cache already, the next batch is not
        for p in range(2):
            plan.pieces[4 + p] = data.features + data.rows[data.prefetched] * layer.op.inputs * size
            data.prefetched += 1
    if work.updates and layer.panels != NULL:
        offset = state_offset(work, layer, b)
        plan.bytes[0] = plan.bytes[1] = (b.i1 - b.i0) * panel_width(witness) * size
        plan.pieces[0] = <const char *> block_in_panels(layer, b, witness)
        if needs_transposed(net, layer):
            plan.pieces[1] = <const char *> layer.transposed + transposed_offset(layer, b, witness) * size
        for p in range(2):
            if work.state_in_blocks and work.update.state[p] != NULL:
                plan.pieces[2 + p] = <const char *> work.update.state[p] + offset * size
    return plan


cdef void update_block(Net *net, Layer *layer, Block b, const real *gradient, intp gradient_row,
                       const WeightPass *work) noexcept nogil:
    """Apply the block's gradients, to the panels if the weight has any; blocks of the first rows update the bias."""
    cdef const Update *update = work.update
    cdef intp outputs = layer.op.outputs, row = outputs, state_row = outputs
    cdef real *weight = <real *> layer.weight + b.i0 * outputs + b.j0
    if layer.panels != NULL:
        weight, row = block_in_panels(layer, b, gradient), panel_width(gradient)
        state_row = b.j1 - b.j0 if work.state_in_blocks else outputs
    if work.squares != NULL:
        work.squares[block_number(layer, b, gradient)] = sum_of_squares(<const real *> weight, row, b.i1 - b.i0,
                                                                        b.j1 - b.j0)
    update_rows(update, weight, row, state_offset(work, layer, b), state_row, gradient, gradient_row, work.grad_scale,
                b.i1 - b.i0, b.j1 - b.j0)
    if b.i0 == 0 and layer.bias != NULL:
        update_rows(update, <real *> layer.bias + b.j0, 0, layer.op.bias + b.j0, 0, <real *> layer.dbias + b.j0, 0,
                    work.grad_scale, 1, b.j1 - b.j0)
    if needs_transposed(net, layer):
        transpose_block(layer, b, layer.panels != NULL, gradient)


cdef void dense_weights(Net *net, Layer *layer, const Thread *thread, WeightPass *work,
                        const real *witness) noexcept nogil:
    """A thread's blocks, one after the other. Gradients that only a frozen layer would use are left out."""
    cdef Range blocks = thread_blocks(layer, thread, witness)
    cdef intp index
    cdef Block b
    cdef real *gradient
    cdef Layout rows
    cdef PrefetchPlan plan
    if work.updates and not work.keep and is_frozen(work.update, layer.op.weight) and (
            layer.bias == NULL or is_frozen(work.update, layer.op.bias)):
        return
    for index in range(blocks.begin, blocks.end):
        b = block_at(layer, index, witness)
        if work.in_memory:
            gradient = <real *> layer.dweight + b.i0 * layer.op.outputs + b.j0
            rows = in_rows(layer.op.outputs, witness)
        else:  # the thread's own block, in L1
            gradient = <real *> work.block
            rows = in_rows(b.j1 - b.j0 if layer.panels == NULL else panel_width(witness), witness)
        if work.gradients:
            plan = plan_prefetch(net, layer, b, work, witness)
            block_gradient(net, layer, b, gradient, rows, &plan)
        if work.updates:
            update_block(net, layer, b, gradient, rows.row, work)


cdef void reorder_states(Layer *layer, const Thread *thread, const WeightPass *work, bint back,
                         const real *witness) noexcept nogil:
    """For a long run, put the state of a weight in panels into the order of its blocks; afterwards, back."""
    cdef Range panels = thread_part(ceil_div(layer.op.inputs, panel_width(witness)), thread)
    cdef intp index, at
    cdef int v
    if layer.panels == NULL or not work.state_in_blocks:
        return
    for v in range(MAX_STATE):
        if work.update.state[v] != NULL:
            for index in range(panels.begin, panels.end):
                at = index * panel_width(witness)
                reorder_state(layer, <real *> work.update.state[v] + layer.op.weight + at * layer.op.outputs, at,
                              <real *> work.block, back, witness)


cdef void dense_pack(Net *net, Layer *layer, const Thread *thread, const WeightPass *work, bint forward, bint backward,
                     const real *witness) noexcept nogil:
    """weight -> panels and transposed, a thread's blocks."""
    cdef Range blocks = thread_blocks(layer, thread, witness)
    cdef bint packs = forward and layer.panels != NULL, transposes = backward and needs_transposed(net, layer)
    cdef Block b
    cdef intp index
    if work != NULL:
        reorder_states(layer, thread, work, False, witness)
    if packs or transposes:
        for index in range(blocks.begin, blocks.end):
            b = block_at(layer, index, witness)
            if packs:
                pack_block(layer, b, witness)
            if transposes:
                transpose_block(layer, b, False, witness)


cdef void dense_unpack(Net *net, Layer *layer, const Thread *thread, const WeightPass *work,
                       const real *witness) noexcept nogil:
    """panels -> weight, what an epoch has done to them."""
    cdef Range blocks = thread_blocks(layer, thread, witness)
    cdef intp index
    if layer.panels != NULL:
        for index in range(blocks.begin, blocks.end):
            unpack_block(layer, block_at(layer, index, witness), witness)
    reorder_states(layer, thread, work, True, witness)


cdef Range dense_input_columns(const Layer *layer, const Thread *thread, const real *witness) noexcept nogil:
    """Those of its blocks; by_columns, all."""
    cdef Range columns, blocks = thread_blocks(layer, thread, witness)
    cdef Block b
    cdef intp index
    columns.begin, columns.end = 0, layer.op.inputs
    if not layer.by_columns:
        columns.begin, columns.end = layer.op.inputs, 0
        for index in range(blocks.begin, blocks.end):
            b = block_at(layer, index, witness)
            columns.begin, columns.end = min(columns.begin, b.i0), max(columns.end, b.i1)
    return columns


cdef double dense_operations(const Op *op) noexcept nogil:
    return 2.0 * op.inputs * op.outputs


cdef void dense_kind(LayerKind *kind, const real *witness) noexcept:
    kind.reserve, kind.operations = <Reserve> dense_reserve[real], dense_operations
    kind.pack, kind.unpack = <Pack> dense_pack[real], <Unpack> dense_unpack[real]
    kind.forward, kind.backward = <Forward> dense_forward_rows[real], <Backward> dense_backward_rows[real]
    kind.weights, kind.input_columns = <Weights> dense_weights[real], <Columns> dense_input_columns[real]
    kind.adds_gradient = kind.splits_columns = True


register_kind("dense", <FillKind> dense_kind[float], <FillKind> dense_kind[double])
