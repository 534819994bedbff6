# The epoch: gather, forward, loss, backward, update, batch after batch, by one team and without a Python object.
#
# It runs the very functions that the explicit loop reaches through the doors of network.pxi and doors.pxi, on the same
# numbers; that is why both give the same bits. What it saves is traffic: a block of gradients is applied while it is in
# L1, and the panels of the weights are rewritten then, so that no weight is packed again and no gradient travels
# through memory.

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    const int TIME_UTC
    int timespec_get(timespec *now, int base)

cdef extern from "Python.h":
    int check_signals "PyErr_CheckSignals" () noexcept  # leaves its exception for the caller of the epoch

cdef double SECONDS_BETWEEN_SIGNAL_CHECKS = 0.05
cdef enum:
    LONG_RUN = 4  # steps that pay for reordering the state
cdef double OPERATIONS_BETWEEN_CLOCK_READINGS = 1e8  # a few milliseconds

cdef struct Epoch:
    Net net
    # the data
    const void *features   # (samples, inputs)
    const char *targets    # (samples,) labels or (samples, outputs)
    long target_bytes      # of one sample
    Shuffle order
    long first, steps, batch_size  # position in the order of the first sample, and how far to go from there
    # the batch, row by row
    int64_t *rows
    char *batch_targets
    void *pred
    void *dpred
    # what to do with it
    const Criterion *criterion
    Update *update
    const double *lrs
    bint lr_is_constant
    double clip_norm       # 0 for none
    const void *grads
    long parameters        # entries of grads
    void *blocks           # for every thread, a block of gradients, or some rows of the longest state
    long block_size        # in entries
    bint state_in_blocks   # whether the optimizer's state of weights in panels is in the order of their blocks
    # what the threads tell each other
    double losses[CHUNKS]
    double norms[CHUNKS]
    long correct[CHUNKS]
    # what the caller is told
    double loss            # summed over samples
    long right, done


cdef inline double now() noexcept nogil:
    cdef timespec t
    timespec_get(&t, TIME_UTC)
    return t.tv_sec + 1e-9 * t.tv_nsec


cdef void gather_rows(Epoch *e, Net *net, long first, long begin, long end, const real *_) noexcept nogil:
    """Rows begin..end of the batch that starts at position `first` of the order: features into panels, and targets."""
    cdef long i, inputs = net.layers[0].op.inputs
    cdef Layout rows = in_rows(inputs, _)
    cdef const real *features = <const real *> e.features
    shuffled(&e.order, e.rows + begin, first + begin, end - begin)
    for i in range(begin, end):
        copy_row(<real *> net.x + i * net.layout.row, net.layout, features + e.rows[i] * inputs, rows, inputs)
    if e.target_bytes == 8:
        for i in range(begin, end):
            (<int64_t *> e.batch_targets)[i] = (<const int64_t *> e.targets)[e.rows[i]]
    else:
        for i in range(begin, end):
            memcpy(e.batch_targets + i * e.target_bytes, e.targets + e.rows[i] * e.target_bytes, e.target_bytes)


cdef void loss_of_rows(Epoch *e, Net *net, Share *me, long begin, long end, const real *_) noexcept nogil:
    """The loss of a thread's rows; its gradient becomes the last layer's dy."""
    cdef Layer *last = &net.layers[net.count - 1]
    cdef long outputs = last.op.outputs
    cdef Layout rows = in_rows(outputs, _)
    cdef double scale
    if e.criterion.weight != NULL:
        meet(me)  # the total weight is that of all threads' labels
    scale = loss_scale(e.criterion, e.batch_targets, net.batch, outputs, _)
    copy_rows(<real *> e.pred, rows, <const real *> last.y, net.layout, begin, end, outputs)
    loss_share(e.losses, e.criterion, <real *> e.dpred, <const real *> e.pred, e.batch_targets, scale, net.batch,
               outputs, me)
    e.correct[me.number] = count_correct(<const real *> e.pred, e.batch_targets, e.criterion.kind, begin, end,
                                         outputs)
    copy_rows(<real *> last.dy, net.layout, <const real *> e.dpred, rows, begin, end, outputs)


cdef inline long state_offset(Epoch *e, Layer *layer, Block b) noexcept nogil:
    """Where in the state vectors a block begins."""
    return layer.op.weight + b.i0 * layer.op.outputs + (
        b.j0 * (b.i1 - b.i0) if e.state_in_blocks and layer.panels != NULL else b.j0)


cdef Soon needed_soon(Epoch *e, Net *net, int i, Block b, bint updates, const real *_) noexcept nogil:
    """What updating a block in panels touches besides its gradient, and the next panel of x."""
    cdef Soon soon
    cdef Layer *layer = &net.layers[i]
    cdef long offset, size = sizeof(real), p
    for p in range(6):
        soon.pieces[p] = <const char *> (
            input_of(net, i, _) + (b.i0 // panel_width(_) + 1) * net.layout.panel) + p % 2 * net.batch * 64
    soon.bytes[0] = soon.bytes[1] = 0
    soon.bytes[2] = net.batch * 64
    if updates and layer.panels != NULL:
        offset = state_offset(e, layer, b)
        soon.bytes[0] = soon.bytes[1] = (b.i1 - b.i0) * panel_width(_) * size
        soon.pieces[0] = <const char *> block_in_panels(layer, b, _)
        if layer.transposed != NULL:
            soon.pieces[1] = <const char *> layer.transposed + transposed_offset(layer, b, _) * size
        if e.state_in_blocks and e.update.first != NULL:
            soon.pieces[2] = <const char *> e.update.first + offset * size
        if e.state_in_blocks and e.update.second != NULL:
            soon.pieces[3] = <const char *> e.update.second + offset * size
    return soon


cdef void update_block(Epoch *e, Net *net, int i, Block b, const real *gradient, long gradient_row,
                       double grad_scale) noexcept nogil:
    """Apply the block's gradients, in the panels if the weight has any; the first rows' blocks see to the bias."""
    cdef Layer *layer = &net.layers[i]
    cdef long outputs = layer.op.outputs, row = outputs, state_row = outputs
    cdef real *weight = <real *> layer.weight + b.i0 * outputs + b.j0
    if layer.panels != NULL:
        weight, row = block_in_panels(layer, b, gradient), panel_width(gradient)
        state_row = b.j1 - b.j0 if e.state_in_blocks else outputs
    update_rows(e.update, weight, row, state_offset(e, layer, b), state_row, gradient, gradient_row, grad_scale,
                b.i1 - b.i0, b.j1 - b.j0)
    if b.i0 == 0 and layer.bias != NULL:
        update_rows(e.update, <real *> layer.bias + b.j0, 0, layer.op.bias + b.j0, 0, <real *> layer.dbias + b.j0, 0,
                    grad_scale, 1, b.j1 - b.j0)
    if layer.transposed != NULL:
        transpose_block(layer, b, layer.panels != NULL, gradient)


cdef void reorder_states(Epoch *e, Net *net, Share *me, bint back, const real *_) noexcept nogil:
    """For a long run, the state of weights in panels is put into the order of their blocks, and afterwards back."""
    cdef Layer *layer
    cdef void *vectors[2]
    cdef long index, down, at
    cdef int v
    vectors[0], vectors[1] = e.update.first, e.update.second
    for layer in net.layers[:net.count]:
        down = ceil_div(layer.op.inputs, panel_width(_))
        for v in range(2):
            if layer.panels == NULL or vectors[v] == NULL or not e.state_in_blocks:
                continue
            for index in range(share_of(down, me.number, me.team), share_of(down, me.number + 1, me.team)):
                at = index * panel_width(_)
                reorder_state(layer, <real *> vectors[v] + layer.op.weight + at * layer.op.outputs, at,
                              <real *> e.blocks + me.number * e.block_size, back, _)


cdef void update_vectors(Epoch *e, Net *net, int i, Share *me, double grad_scale, const real *like) noexcept nogil:
    """A thread's panels of the two vectors of batch norm or layer norm."""
    cdef Layer *layer = &net.layers[i]
    cdef long n = layer.op.inputs, panels = ceil_div(n, panel_width(like))
    cdef long begin = share_of(panels, me.number, me.team) * panel_width(like)
    cdef long end = min(n, share_of(panels, me.number + 1, me.team) * panel_width(like))
    if begin < end:
        update_rows(e.update, <real *> layer.weight + begin, 0, layer.op.weight + begin, 0,
                    <real *> layer.dweight + begin, 0, grad_scale, 1, end - begin)
        update_rows(e.update, <real *> layer.bias + begin, 0, layer.op.bias + begin, 0, <real *> layer.dbias + begin,
                    0, grad_scale, 1, end - begin)


cdef void weights_share(Epoch *e, Net *net, Share *me, bint gradients, bint updates, bint in_memory, double grad_scale,
                        const real *_) noexcept nogil:
    """A thread's blocks of every layer: their gradients, their update, or one after the other while they are in L1.

    Gradients that must be in memory go to the flat buffer at once. e is only looked at where there are updates.
    """
    cdef int i
    cdef long index
    cdef Layer *layer
    cdef Block b
    cdef real *gradient
    cdef Layout rows
    for i in range(net.count):
        layer = &net.layers[i]
        if layer.op.kind == DENSE:
            for index in range(share_of(blocks_of(&layer.op, _), me.number, me.team),
                               share_of(blocks_of(&layer.op, _), me.number + 1, me.team)):
                b = block_at(&layer.op, index, _)
                if in_memory:
                    gradient = <real *> layer.dweight + b.i0 * layer.op.outputs + b.j0
                    rows = in_rows(layer.op.outputs, _)
                else:  # the thread's own block, in L1
                    gradient = <real *> e.blocks + me.number * e.block_size
                    rows = in_rows(b.j1 - b.j0 if layer.panels == NULL else panel_width(_), _)
                if gradients:
                    block_gradient(net, i, b, gradient, rows, needed_soon(e, net, i, b, updates, _))
                if updates:
                    update_block(e, net, i, b, gradient, rows.row, grad_scale)
        elif layer.op.kind == BATCHNORM or layer.op.kind == LAYERNORM:
            if gradients and layer.op.kind == LAYERNORM:
                layernorm_gradients(net, i, me, _)
            if updates:
                update_vectors(e, net, i, me, grad_scale, _)
        lap(net, me, i, IN_DWEIGHT)


cdef void descend(Epoch *e, Net *net, Share *me, bint last, const real *_) noexcept nogil:
    """Gradients and update. The last step's gradients stay in memory, and clipping needs all of them first."""
    cdef double scale = 1
    if e.clip_norm > 0:
        weights_share(e, net, me, True, False, True, 1, _)
        meet(me)
        squared_norm_share(e.norms, <const real *> e.grads, e.parameters, me)
        meet(me)
        scale = min(1.0, e.clip_norm / (sqrt(total(e.norms, CHUNKS)) + 1e-6))
        weights_share(e, net, me, False, True, True, scale, _)
    else:
        weights_share(e, net, me, True, True, last, 1, _)
    track_statistics(net, me, _)


cdef inline bint interrupted() noexcept nogil:
    """Whether a signal handler raised; the exception is set then."""
    with gil:
        return check_signals() != 0


cdef void poll(Net *net, Share *me, double operations) noexcept nogil:
    """Look at the signals now and then: thread 0, which is the caller's, raises the flag that all others obey."""
    cdef double time
    if me.number != 0 or net.stop == NULL:
        return
    net.unpolled += operations
    if net.unpolled >= OPERATIONS_BETWEEN_CLOCK_READINGS:
        net.unpolled = 0
        time = now()
        if time - net.polled > SECONDS_BETWEEN_SIGNAL_CHECKS:
            net.polled = time
            if interrupted():
                raise_flag(net.stop)


cdef void train_share(Epoch *e, Share *me, const real *_) noexcept nogil:
    """One thread's part of e.steps steps."""
    cdef Net net = e.net  # a copy: its batch is this thread's step, while others may still be at the one before
    cdef long s, first, begin, end, i
    net.last = now()
    reorder_states(e, &net, me, False, _)
    pack_weights(&net, me, True, True, _)
    lap(&net, me, 0, IN_WAITING)
    for s in range(e.steps):
        first = e.first + s * e.batch_size
        net.batch, net.step = min(e.batch_size, e.order.samples - first), e.net.step + s
        net.layout = in_panels(net.batch, _)
        begin, end = first_row(net.batch, me.number, me.team), first_row(net.batch, me.number + 1, me.team)
        gather_rows(e, &net, first, begin, end, _)
        lap(&net, me, 0, IN_GATHER)
        forward_rows(&net, me, begin, end, _)
        loss_of_rows(e, &net, me, begin, end, _)
        lap(&net, me, 0, IN_LOSS)
        backward_rows(&net, me, begin, end, _)
        if me.number == 0:
            begin_update(e.update, e.lrs[0 if e.lr_is_constant else s])
        meet(me)
        lap(&net, me, 0, IN_WAITING)
        if is_raised(net.stop):  # by thread 0, before the meeting; nothing has changed in this step
            break
        descend(e, &net, me, s + 1 == e.steps, _)
        if me.number == 0:
            e.loss += total(e.losses, ceil_div(net.batch, chunk_rows(net.batch))) * net.batch
            for i in range(me.team):
                e.right += e.correct[i]
            e.update.step += 1
            e.done += 1
            poll(&net, me, OPERATIONS_BETWEEN_CLOCK_READINGS / 64)
        meet(me)
        lap(&net, me, 0, IN_WAITING)
    unpack_weights(&net, me, _)
    reorder_states(e, &net, me, True, _)
    lap(&net, me, 0, IN_WAITING)
