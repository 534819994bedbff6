# A plan at work: the forward and the backward pass over a model's layers, without Python between them.
#
# A team shares a step in two parts. First every thread takes its own rows of the batch through all layers and back to
# the gradients of the activations; batch norm makes it wait for the others on the way, and so does, in an epoch, a wide
# layer, whose columns are shared instead (by_columns). Then the threads meet, and each computes (and, in the engine,
# applies) the gradients of its own blocks of the weights.

cdef enum Kind:  # the codes of fastbp.core.plan
    DENSE, ACTIVATION, DROPOUT, BATCHNORM, LAYERNORM, EMBEDDING

cdef enum:
    CHUNKS = 64         # at most so many partial sums of a loss, combined in order
    ROWS_PER_CHUNK = 8  # at least

cdef struct Op:  # fastbp.core.plan.OP
    int32_t kind, activation, prior, numeric
    int64_t inputs, outputs, weight, bias, stats
    double p, eps, momentum
    uint64_t key

cdef struct Table:  # fastbp.core.plan.TABLE
    int64_t rows, dim, offset, columns

cdef struct Layer:
    Op op
    void *weight       # (I, O), row by row, as the user sees it; of an embedding, where the flat buffer begins
    void *bias         # (O,)
    void *dweight
    void *dbias
    void *stats
    void *panels       # weight in panels; NULL where its rows are read in place
    void *transposed   # weight^T in panels; NULL where no dx is needed
    void *y            # (B, O): the layer's result, in panels, as all that follows
    void *z            # the activation's argument, where its derivative needs it
    void *moments      # layer norm: mean and 1/std of each row, (B, 2)
    void *dy           # the gradient of y; from the activation's derivative on, of its argument
    bint by_columns    # in an epoch: a thread computes its columns of y for all rows (share_layers in network.pxi)

cdef struct Net:
    Layer *layers
    int count
    const Table *tables  # of the embedding, if there is one; it is the first layer
    int table_count
    void *x            # the batch in panels
    void *dx           # its gradient, or NULL
    intp batch
    Layout layout      # of all that has a row per sample
    uint64_t step      # numbers dropout's masks
    bint training
    double *spent      # where thread 0 adds up seconds by slot (profile), or NULL
    double last        # when it last did
    int *stop          # the flag that ends the work early, or NULL where nothing does
    double polled, unpolled  # when thread 0 last looked at the signals, and the operations since it read the clock

cdef struct Block:     # of a weight matrix: one panel of x by some columns
    intp i0, i1, j0, j1

cdef enum Slot:  # of Net.spent; the last three repeat for every layer
    IN_GATHER, IN_LOSS, IN_WAITING, IN_FORWARD, IN_DX, IN_DWEIGHT


cdef inline void lap(Net *net, Share *me, int layer, int slot) noexcept nogil:
    """Charge the time since the last call to a slot."""
    cdef double time
    if net.spent != NULL and me.number == 0:
        time = now()
        net.spent[slot + (IN_DWEIGHT - IN_WAITING) * layer] += time - net.last
        net.last = time


cdef inline intp share_of(intp items, intp number, intp team) noexcept nogil:
    """Where part `number` of a team's nearly equal parts of so many items begins."""
    return number * items // team


cdef inline intp chunk_rows(intp batch) noexcept nogil:
    return max(<intp> ROWS_PER_CHUNK, ceil_div(batch, CHUNKS))


cdef inline intp first_chunk(intp batch, intp number, intp team) noexcept nogil:
    return share_of(ceil_div(batch, chunk_rows(batch)), number, team)


cdef inline intp first_row(intp batch, intp number, intp team) noexcept nogil:
    """Where the rows of a thread begin: with a chunk, so that it sums whole chunks of the loss."""
    return min(batch, first_chunk(batch, number, team) * chunk_rows(batch))


cdef inline const real *input_of(Net *net, int i, const real *_) noexcept nogil:
    return <const real *> (net.x if i == 0 else net.layers[i - 1].y)


cdef inline const real *argument_of(Net *net, int i, const real *like) noexcept nogil:
    """What layer i's activation was applied to, where that was kept."""
    return input_of(net, i, like) if net.layers[i].op.kind == ACTIVATION else <const real *> net.layers[i].z


cdef inline bint reads_in_place(const Op *op, const real *_) noexcept nogil:
    """Whether the rows of weight are short enough to be read where they are."""
    return op.outputs * <intp> sizeof(real) <= IN_PLACE_BYTES


# --- blocks of a weight matrix ---------------------------------------------------------------------------------------

cdef enum:
    PANELS_TOGETHER = 4  # of x, which stay in L2 while those of dy come and go


cdef inline intp columns_per_block(const Op *op, const real *like) noexcept nogil:
    """One panel; of a weight that is read in place, so many that its rows are updated in one run."""
    return BLOCK_COLUMNS_BYTES // <intp> sizeof(real) if reads_in_place(op, like) else panel_width(like)


cdef inline intp blocks_of(const Op *op, const real *like) noexcept nogil:
    return ceil_div(op.inputs, panel_width(like)) * ceil_div(op.outputs, columns_per_block(op, like))


cdef inline Block block_at(const Layer *layer, intp index, const real *like) noexcept nogil:
    """PANELS_TOGETHER panels of x with every panel of dy, then the next of x; by_columns, the other way round."""
    cdef Block b
    cdef intp columns = columns_per_block(&layer.op, like)
    cdef intp major = ceil_div(layer.op.inputs, panel_width(like)), minor = ceil_div(layer.op.outputs, columns)
    if layer.by_columns:
        major, minor = minor, major
    cdef intp group = index // (minor * PANELS_TOGETHER) * PANELS_TOGETHER
    cdef intp together = min(<intp> PANELS_TOGETHER, major - group)
    index -= group * minor
    b.i0, b.j0 = group + index % together, index // together
    if layer.by_columns:
        b.i0, b.j0 = b.j0, b.i0
    b.i0, b.j0 = b.i0 * panel_width(like), b.j0 * columns
    b.i1, b.j1 = min(layer.op.inputs, b.i0 + panel_width(like)), min(layer.op.outputs, b.j0 + columns)
    return b


cdef inline real *block_in_panels(Layer *layer, Block b, const real *like) noexcept nogil:
    return <real *> layer.panels + b.j0 // panel_width(like) * in_panels(layer.op.inputs, like).panel + (
        b.i0 * panel_width(like))


cdef void pack_block(Layer *layer, Block b, const real *like) noexcept nogil:
    """weight -> panels."""
    cdef intp outputs = layer.op.outputs
    copy_rows(block_in_panels(layer, b, like), in_panels(layer.op.inputs, like),
              <const real *> layer.weight + b.i0 * outputs + b.j0, in_rows(outputs, like), 0, b.i1 - b.i0, b.j1 - b.j0)


cdef void unpack_block(Layer *layer, Block b, const real *like) noexcept nogil:
    """panels -> weight."""
    cdef intp outputs = layer.op.outputs
    copy_rows(<real *> layer.weight + b.i0 * outputs + b.j0, in_rows(outputs, like), block_in_panels(layer, b, like),
              in_panels(layer.op.inputs, like), 0, b.i1 - b.i0, b.j1 - b.j0)


cdef inline intp transposed_offset(Layer *layer, Block b, const real *like) noexcept nogil:
    """Where a block begins in the transposed weight."""
    return b.i0 // panel_width(like) * in_panels(layer.op.outputs, like).panel + b.j0 * panel_width(like)


cdef void transpose_block(Layer *layer, Block b, bint from_panels, const real *like) noexcept nogil:
    """weight, or the panels that stand for it in an epoch, -> transposed."""
    cdef intp width = panel_width(like), outputs = layer.op.outputs
    cdef real *out = <real *> layer.transposed + transposed_offset(layer, b, like)
    cdef const real *weight = <const real *> layer.weight + b.i0 * outputs + b.j0
    if from_panels:
        transpose(out, width, block_in_panels(layer, b, like), width, b.i1 - b.i0, b.j1 - b.j0)
    else:
        transpose(out, width, weight, outputs, b.i1 - b.i0, b.j1 - b.j0)


cdef void reorder_state(Layer *layer, real *state, intp i0, real *space, bint back, const real *like) noexcept nogil:
    """Up to PANEL rows of a state vector, from rows into blocks that each lie in one piece, or back, in place."""
    cdef intp width = panel_width(like), outputs = layer.op.outputs, j = 0, w, i
    cdef intp rows = min(width, layer.op.inputs - i0)
    memcpy(space, state, rows * outputs * sizeof(real))
    while j < outputs:
        w = min(width, outputs - j)
        for i in range(rows):
            if back:
                copy_run(state + i * outputs + j, space + j * rows + i * w, w)
            else:
                copy_run(state + j * rows + i * w, space + i * outputs + j, w)
        j += w


cdef void pack_weights(Net *net, Share *me, bint forward, bint backward, const real *like) noexcept nogil:
    """Bring panels (forward) and transposed (backward) up to date, and wait for all."""
    cdef Layer *layer
    cdef Block b
    cdef intp index
    for layer in net.layers[:net.count]:
        if (forward and layer.panels != NULL) or (backward and layer.transposed != NULL):
            for index in range(share_of(blocks_of(&layer.op, like), me.number, me.team),
                               share_of(blocks_of(&layer.op, like), me.number + 1, me.team)):
                b = block_at(layer, index, like)
                if forward and layer.panels != NULL:
                    pack_block(layer, b, like)
                if backward and layer.transposed != NULL:
                    transpose_block(layer, b, False, like)
    meet(me)


cdef void unpack_weights(Net *net, Share *me, const real *like) noexcept nogil:
    """What an epoch has done to the panels goes back to the weights."""
    cdef Layer *layer
    cdef intp index
    for layer in net.layers[:net.count]:
        if layer.panels != NULL:
            for index in range(share_of(blocks_of(&layer.op, like), me.number, me.team),
                               share_of(blocks_of(&layer.op, like), me.number + 1, me.team)):
                unpack_block(layer, block_at(layer, index, like), like)


cdef void block_gradient(Net *net, int i, Block b, real *gradient, Layout gradient_layout,
                         Soon soon) noexcept nogil:
    """The block's part of dweight goes to `gradient`, its part of dbias to the flat gradients."""
    cdef Layer *layer = &net.layers[i]
    cdef intp width = panel_width(gradient)
    cdef const real *dy = <const real *> layer.dy + b.j0 // width * net.layout.panel
    cdef const real *x = input_of(net, i, gradient) + b.i0 // width * net.layout.panel
    if layer.op.outputs == 1:  # dy^T x fills the vectors, and a column in rows is a row
        multiply_columns(gradient, in_rows(b.i1 - b.i0, gradient), dy, x, net.layout, 1, b.i1 - b.i0, net.batch, soon)
    else:
        multiply_columns(gradient, gradient_layout, x, dy, net.layout, b.i1 - b.i0, b.j1 - b.j0, net.batch, soon)
    if b.i0 == 0 and layer.dbias != NULL:
        column_sums(<real *> layer.dbias + b.j0, dy, net.layout, b.j1 - b.j0, net.batch)


# --- a thread's rows ------------------------------------------------------------------------------------------------

cdef void dense_forward_rows(Net *net, int i, Share *me, const real *x, intp begin, intp end) noexcept nogil:
    """y = activation(x @ weight + bias), a thread's rows; or, by_columns, its columns of all rows."""
    cdef Layer *layer = &net.layers[i]
    cdef Op *op = &layer.op
    cdef Epilogue epilogue
    cdef const real *weight = <const real *> (layer.weight if layer.panels == NULL else layer.panels)
    cdef Layout weight_layout = in_rows(op.outputs, x) if layer.panels == NULL else in_panels(op.inputs, x)
    cdef intp width = panel_width(x), panels = ceil_div(op.outputs, width), first = 0, columns = op.outputs
    if is_raised(net.stop):
        return
    if layer.by_columns:
        first = share_of(panels, me.number, me.team)
        columns = min(columns, share_of(panels, me.number + 1, me.team) * width) - first * width
        begin, end = 0, net.batch
    epilogue.after = BIAS_ACTIVATION
    epilogue.activation = op.activation
    epilogue.bias = <const real *> layer.bias + first * width if layer.bias != NULL else NULL
    epilogue.y, epilogue.z = NULL, <real *> layer.z + first * net.layout.panel if layer.z != NULL else NULL
    multiply_rows(<real *> layer.y + first * net.layout.panel, x, net.layout, weight + first * weight_layout.panel,
                  weight_layout, begin, end, columns, op.inputs, &epilogue)
    poll(net, me, 2.0 * (end - begin) * op.inputs * columns)


cdef void dense_backward_rows(Net *net, int i, Share *me, real *dx, intp begin, intp end) noexcept nogil:
    """dx = dy @ weight^T, times the derivative of the activation before it."""
    cdef Layer *layer = &net.layers[i]
    cdef Op *op = &layer.op
    cdef Epilogue epilogue
    cdef Layout weight_layout = in_panels(op.outputs, dx)
    cdef intp first = 0  # of its panels
    if is_raised(net.stop):
        return
    if i > 0 and net.layers[i - 1].op.kind == EMBEDDING and net.dx == NULL:  # which needs its tables' columns alone
        first = net.layers[i - 1].op.numeric // panel_width(dx)
    epilogue.after = DERIVATIVE if op.prior != LINEAR else NOTHING
    epilogue.activation = op.prior
    epilogue.bias, epilogue.y = NULL, <const void *> input_of(net, i, dx)
    epilogue.z = <void *> argument_of(net, i - 1, dx) if i > 0 else NULL
    multiply_rows(dx + first * net.layout.panel, <const real *> layer.dy, net.layout,
                  <const real *> layer.transposed + first * weight_layout.panel, weight_layout, begin, end,
                  op.inputs - first * panel_width(dx), op.outputs, &epilogue)
    poll(net, me, 2.0 * (end - begin) * op.inputs * op.outputs)


cdef inline intp strips(Layout layout, intp n, const real *like) noexcept nogil:
    """How many contiguous pieces some rows of n columns lie in."""
    return 1 if layout.panel == panel_width(like) else ceil_div(n, panel_width(like))


cdef void activation_forward_rows(real *y, const real *z, Layout layout, int kind, intp begin, intp end,
                                  intp n) noexcept nogil:
    cdef intp q
    for q in range(strips(layout, n, z)):
        activate(kind, y + q * layout.panel + begin * layout.row, z + q * layout.panel + begin * layout.row,
                 (end - begin) * layout.row)


cdef void activation_backward_rows(Net *net, int i, intp begin, intp end, const real *like) noexcept nogil:
    """dy becomes the gradient of the activation's argument."""
    cdef Layer *layer = &net.layers[i]
    cdef real *dy = <real *> layer.dy
    cdef const real *y = <const real *> layer.y
    cdef const real *z = argument_of(net, i, like)
    cdef intp q, at
    for q in range(strips(net.layout, layer.op.outputs, like)):
        at = q * net.layout.panel + begin * net.layout.row
        multiply_by_derivative(layer.op.activation, dy + at, dy + at, y + at, z + at, (end - begin) * net.layout.row)


cdef void batchnorm_forward_team(Net *net, int i, const real *x, Share *me) noexcept nogil:
    """Columns need every thread's rows, and every thread's rows need the columns."""
    cdef Layer *layer = &net.layers[i]
    cdef Op *op = &layer.op
    cdef intp panels = ceil_div(op.inputs, panel_width(x)), q
    meet(me)
    for q in range(share_of(panels, me.number, me.team), share_of(panels, me.number + 1, me.team)):
        batchnorm_forward_panel(<real *> layer.y, <real *> layer.stats, x, net.layout, <real *> layer.weight,
                                <real *> layer.bias, op.eps, net.training, net.batch, op.inputs, q)
    meet(me)


cdef void batchnorm_backward_team(Net *net, int i, real *dx, Share *me) noexcept nogil:
    cdef Layer *layer = &net.layers[i]
    cdef Op *op = &layer.op
    cdef intp panels = ceil_div(op.inputs, panel_width(dx)), q
    meet(me)
    for q in range(share_of(panels, me.number, me.team), share_of(panels, me.number + 1, me.team)):
        batchnorm_backward_panel(<real *> layer.dweight, <real *> layer.dbias, dx, <real *> layer.dy,
                                 input_of(net, i, dx), net.layout, <real *> layer.stats, <real *> layer.weight,
                                 net.batch, op.inputs, q)
    meet(me)


cdef void forward_rows(Net *net, Share *me, intp begin, intp end, const real *like) noexcept nogil:
    """A thread's rows through all layers; the result is the last layer's y."""
    cdef int i
    cdef Layer *layer
    cdef const real *x
    cdef real *y
    for i in range(net.count):
        layer = &net.layers[i]
        x, y = input_of(net, i, like), <real *> layer.y
        if layer.op.kind == DENSE:
            if layer.by_columns and i > 0 and not net.layers[i - 1].by_columns:
                meet(me)
            dense_forward_rows(net, i, me, x, begin, end)
            if layer.by_columns:
                meet(me)
        elif layer.op.kind == ACTIVATION:
            activation_forward_rows(y, x, net.layout, layer.op.activation, begin, end, layer.op.outputs)
        elif layer.op.kind == DROPOUT:
            dropout_rows(y, x, net.layout, layer.op.p if net.training else 0, layer.op.key, net.step, begin, end,
                         layer.op.outputs)
        elif layer.op.kind == BATCHNORM:
            batchnorm_forward_team(net, i, x, me)
        elif layer.op.kind == EMBEDDING:
            embedding_forward_rows(net, y, x, begin, end)
        else:
            layernorm_forward_rows(y, <real *> layer.moments, x, net.layout, <real *> layer.weight,
                                   <real *> layer.bias, layer.op.eps, begin, end, layer.op.inputs)
        lap(net, me, i, IN_FORWARD)


cdef void backward_rows(Net *net, Share *me, intp begin, intp end, const real *like) noexcept nogil:
    """The gradients of a thread's rows from the last layer's dy down to the first layer's, or net.dx."""
    cdef int i, j
    cdef Layer *layer
    cdef real *dx
    for j in range(net.count):
        i = net.count - 1 - j
        layer = &net.layers[i]
        dx = <real *> (net.layers[i - 1].dy if i > 0 else net.dx)
        if layer.op.activation != LINEAR and (j == 0 or net.layers[i + 1].op.prior == LINEAR):
            activation_backward_rows(net, i, begin, end, like)
        if layer.op.kind == BATCHNORM:
            batchnorm_backward_team(net, i, dx, me)
        elif dx == NULL or layer.op.kind == ACTIVATION:  # whose dx is its dy
            pass
        elif layer.op.kind == DENSE:
            dense_backward_rows(net, i, me, dx, begin, end)
        elif layer.op.kind == DROPOUT:
            dropout_rows(dx, <const real *> layer.dy, net.layout, layer.op.p, layer.op.key, net.step, begin, end,
                         layer.op.outputs)
        elif layer.op.kind == EMBEDDING:
            embedding_backward_rows(net, dx, begin, end)
        else:
            layernorm_backward_rows(dx, <const real *> layer.dy, <real *> layer.moments, input_of(net, i, like),
                                    net.layout, <real *> layer.weight, begin, end, layer.op.inputs)
        lap(net, me, i, IN_DX)


cdef void layernorm_gradients(Net *net, int i, Share *me, const real *like) noexcept nogil:
    cdef Layer *layer = &net.layers[i]
    cdef real *moments = <real *> layer.moments
    cdef intp panels = ceil_div(layer.op.inputs, panel_width(like)), q
    for q in range(share_of(panels, me.number, me.team), share_of(panels, me.number + 1, me.team)):
        column_gradients(<real *> layer.dweight, <real *> layer.dbias, <real *> layer.dy, input_of(net, i, like),
                         net.layout, moments, moments + 1, 2, 0, net.batch, layer.op.inputs, q)


cdef void track_statistics(Net *net, Share *me, const real *_) noexcept nogil:
    """The running statistics follow a batch only when its step is sure to be finished."""
    cdef Layer *layer
    for layer in net.layers[:net.count]:
        if layer.op.kind == BATCHNORM:
            batchnorm_track(<real *> layer.stats, layer.op.momentum, layer.op.eps, net.batch, layer.op.inputs,
                            share_of(layer.op.inputs, me.number, me.team),
                            share_of(layer.op.inputs, me.number + 1, me.team))
