# The second part of a step: every thread computes the gradients of its own blocks of the weights, and applies them.
#
# In an epoch a block's gradient is applied while it is in L1, and the panels of the weight are rewritten at once: no
# weight is packed again, and no gradient passes through memory.

cdef inline intp state_offset(Epoch *e, Layer *layer, Block b) noexcept nogil:
    """Where in the state vectors a block begins."""
    return layer.op.weight + b.i0 * layer.op.outputs + (
        b.j0 * (b.i1 - b.i0) if e.state_in_blocks and layer.panels != NULL else b.j0)


cdef PrefetchPlan plan_prefetch(Epoch *e, Gather *g, Net *net, int i, Block b, bint updates,
                                const real *witness) noexcept nogil:
    """What an update of a block in panels reads besides its gradient; and the next panel of x, or rows of the data."""
    cdef PrefetchPlan plan
    cdef Layer *layer = &net.layers[i]
    cdef intp offset, size = sizeof(real), p
    for p in range(6):
        plan.pieces[p] = <const char *> (
            layer_input(net, i, witness) + (b.i0 // panel_width(witness) + 1) * net.layout.panel) + (
            p % 2 * net.batch * 64)
    plan.bytes[0] = plan.bytes[1] = 0
    plan.bytes[2] = net.batch * 64
    if i == 0 and updates and g.prefetched + 2 <= g.count:  # x is in the cache already, the next batch is not
        plan.bytes[2] = layer.op.inputs * size
        for p in range(2):
            plan.pieces[4 + p] = <const char *> (
                <const real *> e.features + g.next_rows[g.prefetched] * layer.op.inputs)
            g.prefetched += 1
    if updates and layer.panels != NULL:
        offset = state_offset(e, layer, b)
        plan.bytes[0] = plan.bytes[1] = (b.i1 - b.i0) * panel_width(witness) * size
        plan.pieces[0] = <const char *> block_in_panels(layer, b, witness)
        if layer.transposed != NULL:
            plan.pieces[1] = <const char *> layer.transposed + transposed_offset(layer, b, witness) * size
        for p in range(2):
            if e.state_in_blocks and e.update.state[p] != NULL:
                plan.pieces[2 + p] = <const char *> e.update.state[p] + offset * size
    return plan


cdef void update_block(Epoch *e, Net *net, int i, Block b, const real *gradient, intp gradient_row,
                       double grad_scale) noexcept nogil:
    """Apply the block's gradients, to the panels if the weight has any; blocks of the first rows update the bias."""
    cdef Layer *layer = &net.layers[i]
    cdef intp outputs = layer.op.outputs, row = outputs, state_row = outputs
    cdef real *weight = <real *> layer.weight + b.i0 * outputs + b.j0
    if layer.panels != NULL:
        weight, row = block_in_panels(layer, b, gradient), panel_width(gradient)
        state_row = b.j1 - b.j0 if e.state_in_blocks else outputs
    update_rows(e.update, weight, row, state_offset(e, layer, b), state_row, gradient, gradient_row, grad_scale,
                True, b.i1 - b.i0, b.j1 - b.j0)
    if b.i0 == 0 and layer.bias != NULL:
        update_rows(e.update, <real *> layer.bias + b.j0, 0, layer.op.bias + b.j0, 0, <real *> layer.dbias + b.j0, 0,
                    grad_scale, e.update.undecayed_count == 0, 1, b.j1 - b.j0)
    if layer.transposed != NULL:
        transpose_block(layer, b, layer.panels != NULL, gradient)


cdef void reorder_states(Epoch *e, Net *net, const Thread *thread, bint back, const real *witness) noexcept nogil:
    """For a long run, put the state of weights in panels into the order of their blocks; afterwards, back."""
    cdef Layer *layer
    cdef Range panels
    cdef intp index, at
    cdef int v
    for layer in net.layers[:net.count]:
        panels = thread_part(ceil_div(layer.op.inputs, panel_width(witness)), thread)
        for v in range(MAX_STATE):
            if layer.panels == NULL or e.update.state[v] == NULL or not e.state_in_blocks:
                continue
            for index in range(panels.begin, panels.end):
                at = index * panel_width(witness)
                reorder_state(layer, <real *> e.update.state[v] + layer.op.weight + at * layer.op.outputs, at,
                              <real *> e.blocks + thread.number * e.block_size, back, witness)


cdef void update_normalization(Epoch *e, Net *net, int i, const Thread *thread, double grad_scale,
                               const real *witness) noexcept nogil:
    """A thread's panels of the weight and the bias of batch norm or layer norm."""
    cdef Layer *layer = &net.layers[i]
    cdef Range panels = thread_part(ceil_div(layer.op.inputs, panel_width(witness)), thread)
    cdef intp begin = panels.begin * panel_width(witness)
    cdef intp end = min(layer.op.inputs, panels.end * panel_width(witness))
    cdef bint decays = e.update.undecayed_count == 0
    if begin < end:
        update_rows(e.update, <real *> layer.weight + begin, 0, layer.op.weight + begin, 0,
                    <real *> layer.dweight + begin, 0, grad_scale, decays, 1, end - begin)
        update_rows(e.update, <real *> layer.bias + begin, 0, layer.op.bias + begin, 0, <real *> layer.dbias + begin,
                    0, grad_scale, decays, 1, end - begin)


cdef void dense_weights(Epoch *e, Gather *g, Net *net, int i, const Thread *thread, bint gradients, bint updates,
                        bint in_memory, double grad_scale, const real *witness) noexcept nogil:
    """A thread's blocks of a dense layer, one after the other; arguments as for `thread_weights`."""
    cdef Layer *layer = &net.layers[i]
    cdef Range blocks = thread_blocks(layer, thread, witness)
    cdef intp index
    cdef Block b
    cdef real *gradient
    cdef Layout rows
    cdef PrefetchPlan plan
    for index in range(blocks.begin, blocks.end):
        b = block_at(layer, index, witness)
        if in_memory:
            gradient = <real *> layer.dweight + b.i0 * layer.op.outputs + b.j0
            rows = in_rows(layer.op.outputs, witness)
        else:  # the thread's own block, in L1
            gradient = <real *> e.blocks + thread.number * e.block_size
            rows = in_rows(b.j1 - b.j0 if layer.panels == NULL else panel_width(witness), witness)
        if gradients:
            plan = plan_prefetch(e, g, net, i, b, updates, witness)
            block_gradient(net, i, b, gradient, rows, &plan)
        if updates:
            update_block(e, net, i, b, gradient, rows.row, grad_scale)


cdef void thread_weights(Epoch *e, Gather *g, Net *net, const Thread *thread, bint gradients, bint updates,
                         bint in_memory, bint keep, double grad_scale, const real *witness) noexcept nogil:
    """A thread's blocks of every layer: their gradients, their update, or one after the other while they are in L1.

    in_memory: the gradients go to the flat buffer at once. Those of tables always do; they are cleared after the update
    unless they are to be kept. e and g are used only where there are updates; by tables e may be NULL.
    """
    cdef int i
    cdef Layer *layer
    for i in range(net.count):
        layer = &net.layers[i]
        if layer.op.kind == DENSE:
            dense_weights(e, g, net, i, thread, gradients, updates, in_memory, grad_scale, witness)
        elif layer.op.kind == BATCHNORM or layer.op.kind == LAYERNORM:
            if gradients and layer.op.kind == LAYERNORM:
                layernorm_gradients(net, i, thread, witness)
            if updates:
                update_normalization(e, net, i, thread, grad_scale, witness)
        elif layer.op.kind == ACTIVATION or layer.op.kind == DROPOUT:
            pass  # they have no parameters
        elif layer.op.kind == EMBEDDING:
            thread_tables(e.update if e != NULL else NULL, net, thread, gradients, updates, keep, grad_scale, witness)
        if i == 0 and updates:
            prefetch_rows(g, e, net.layers[0].op.inputs, witness)
        charge_time(net, thread, i, IN_DWEIGHT)


cdef void thread_gradients(Net *net, const Thread *thread, const real *witness) noexcept nogil:
    """A thread's blocks of every layer, of a pass that leaves the gradients in memory."""
    thread_weights(<Epoch *> NULL, <Gather *> NULL, net, thread, True, False, True, True, 1, witness)
