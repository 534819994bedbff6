# Parts of the weights, in which threads share gradients, updates and packing: blocks of a matrix, panels of a vector.

cdef struct Block:     # one panel of x by some columns
    intp i0, i1, j0, j1


cdef inline bint has_short_rows(const Op *op, const real *witness) noexcept nogil:
    """Whether the rows of weight are short enough to be read where they are, as if they were panels."""
    return op.outputs * <intp> sizeof(real) <= IN_PLACE_BYTES


cdef enum:
    PANELS_TOGETHER = 4  # of x, which stay in L2 while the panels of dy pass through it
    ROWS_TO_SHARE = 8    # panels of inputs, from which on a block has whole rows of the weight


cdef inline intp columns_per_block(const Layer *layer, const real *witness) noexcept nogil:
    """A panel; of a weight that is read in place whole rows, which lie side by side, if they are enough to share."""
    if layer.panels != NULL:
        return panel_width(witness)
    return (layer.op.outputs if layer.op.inputs >= ROWS_TO_SHARE * panel_width(witness) else
            BLOCK_COLUMNS_BYTES // <intp> sizeof(real))


cdef inline intp block_count(const Layer *layer, const real *witness) noexcept nogil:
    return ceil_div(layer.op.inputs, panel_width(witness)) * ceil_div(layer.op.outputs,
                                                                      columns_per_block(layer, witness))


cdef inline intp most_blocks(const Layer *layer, const real *witness) noexcept nogil:
    """Wherever the weight is read."""
    return ceil_div(layer.op.inputs, panel_width(witness)) * ceil_div(layer.op.outputs, panel_width(witness))


cdef inline Block block_at(const Layer *layer, intp index, const real *witness) noexcept nogil:
    """PANELS_TOGETHER panels of x with every panel of dy, then the next of x; by_columns, the other way round."""
    cdef Block b
    cdef intp columns = columns_per_block(layer, witness)
    cdef intp major = ceil_div(layer.op.inputs, panel_width(witness)), minor = ceil_div(layer.op.outputs, columns)
    if layer.by_columns:
        major, minor = minor, major
    cdef intp group = index // (minor * PANELS_TOGETHER) * PANELS_TOGETHER
    cdef intp together = min(<intp> PANELS_TOGETHER, major - group)
    index -= group * minor
    b.i0, b.j0 = group + index % together, index // together
    if layer.by_columns:
        b.i0, b.j0 = b.j0, b.i0
    b.i0, b.j0 = b.i0 * panel_width(witness), b.j0 * columns
    b.i1, b.j1 = min(layer.op.inputs, b.i0 + panel_width(witness)), min(layer.op.outputs, b.j0 + columns)
    return b


cdef inline intp block_number(const Layer *layer, Block b, const real *witness) noexcept nogil:
    """Of a block among those of all layers, however threads share them."""
    cdef intp columns = columns_per_block(layer, witness)
    return layer.first_block + b.i0 // panel_width(witness) * ceil_div(layer.op.outputs, columns) + b.j0 // columns


cdef inline double sum_of_squares(const real *x, intp row, intp rows, intp columns) noexcept nogil:
    cdef double total = 0
    cdef intp i, j
    for i in range(rows):
        for j in range(columns):
            total += <double> x[i * row + j] * x[i * row + j]
    return total


cdef inline real *block_in_panels(Layer *layer, Block b, const real *witness) noexcept nogil:
    return <real *> layer.panels + b.j0 // panel_width(witness) * in_panels(layer.op.inputs, witness).panel + (
        b.i0 * panel_width(witness))


cdef void pack_block(Layer *layer, Block b, const real *witness) noexcept nogil:
    """weight -> panels."""
    cdef intp outputs = layer.op.outputs
    copy_rows(block_in_panels(layer, b, witness), in_panels(layer.op.inputs, witness),
              <const real *> layer.weight + b.i0 * outputs + b.j0, in_rows(outputs, witness), 0, b.i1 - b.i0,
              b.j1 - b.j0)


cdef void unpack_block(Layer *layer, Block b, const real *witness) noexcept nogil:
    """panels -> weight."""
    cdef intp outputs = layer.op.outputs
    copy_rows(<real *> layer.weight + b.i0 * outputs + b.j0, in_rows(outputs, witness),
              block_in_panels(layer, b, witness), in_panels(layer.op.inputs, witness), 0, b.i1 - b.i0, b.j1 - b.j0)


cdef inline intp transposed_offset(Layer *layer, Block b, const real *witness) noexcept nogil:
    """Where a block begins in the transposed weight."""
    return b.i0 // panel_width(witness) * in_panels(layer.op.outputs, witness).panel + b.j0 * panel_width(witness)


cdef void transpose_block(Layer *layer, Block b, bint from_panels, const real *witness) noexcept nogil:
    """weight, or in an epoch the panels that replace it, -> transposed."""
    cdef intp width = panel_width(witness), outputs = layer.op.outputs
    cdef real *out = <real *> layer.transposed + transposed_offset(layer, b, witness)
    cdef const real *weight = <const real *> layer.weight + b.i0 * outputs + b.j0
    if from_panels:
        transpose(out, width, block_in_panels(layer, b, witness), width, b.i1 - b.i0, b.j1 - b.j0)
    else:
        transpose(out, width, weight, outputs, b.i1 - b.i0, b.j1 - b.j0)


cdef void reorder_state(Layer *layer, real *state, intp i0, real *buffer, bint back,
                        const real *witness) noexcept nogil:
    """Reorder up to PANEL rows of a state vector in place: from rows into contiguous blocks, or back."""
    cdef intp width = panel_width(witness), outputs = layer.op.outputs, j = 0, w, i
    cdef intp rows = min(width, layer.op.inputs - i0)
    memcpy(buffer, state, rows * outputs * sizeof(real))
    while j < outputs:
        w = min(width, outputs - j)
        for i in range(rows):
            if back:
                copy_run(state + i * outputs + j, buffer + j * rows + i * w, w)
            else:
                copy_run(state + j * rows + i * w, buffer + i * outputs + j, w)
        j += w


cdef inline Range thread_blocks(const Layer *layer, const Thread *thread, const real *witness) noexcept nogil:
    return thread_part(block_count(layer, witness), thread)


cdef inline Range thread_panels(const Layer *layer, const Thread *thread, const real *witness) noexcept nogil:
    return thread_part(ceil_div(layer.op.inputs, panel_width(witness)), thread)


cdef Range panel_input_columns(const Layer *layer, const Thread *thread, const real *witness) noexcept nogil:
    """Those of a thread's panels."""
    cdef Range columns = thread_panels(layer, thread, witness)
    columns.begin = columns.begin * panel_width(witness)
    columns.end = min(layer.op.inputs, columns.end * panel_width(witness))
    return columns


cdef void update_vectors(const Layer *layer, const Thread *thread, const WeightPass *work,
                         const real *witness) noexcept nogil:
    """Apply the gradients of a thread's panels of a weight and a bias that are vectors along the features."""
    cdef Range columns = panel_input_columns(layer, thread, witness)
    cdef intp begin = columns.begin, n = columns.end - columns.begin
    if n > 0:
        update_rows(work.update, <real *> layer.weight + begin, 0, layer.op.weight + begin, 0,
                    <real *> layer.dweight + begin, 0, work.grad_scale, 1, n)
    if n > 0 and layer.bias != NULL:
        update_rows(work.update, <real *> layer.bias + begin, 0, layer.op.bias + begin, 0,
                    <real *> layer.dbias + begin, 0, work.grad_scale, 1, n)
