# The epoch: gather, forward, loss, backward, update, batch after batch, by one team and without a Python object.
#
# It runs the very functions that the explicit loop reaches through the doors of network.pxi and doors.pxi, on the same
# numbers; that is why both give the same bits. What it saves is traffic: a block of gradients is applied while it is in
# L1, and the panels of the weights are rewritten then, so that no weight is packed again and no gradient travels
# through memory. A line that one core writes and another reads costs as much as a hundred operations, so every thread
# has a batch of its own in panels, of which it gathers what its rows and its blocks of the first weight need.

cdef extern from "Python.h":
    int check_signals "PyErr_CheckSignals" () noexcept  # leaves its exception for the caller of the epoch

cdef double SECONDS_BETWEEN_SIGNAL_CHECKS = 0.05
cdef double LEAST_LOSS = 0.01, LEAST_TRIAL = 0.1, MOST_TRIAL = 2  # seconds, of Crowd in network.pxi
cdef enum:
    LONG_RUN = 4  # steps that pay for reordering the state
cdef double OPERATIONS_BETWEEN_CLOCK_READINGS = 1e8  # a few milliseconds

cdef extern from "microkernel.h" nogil:
    void ask_for(const char *p)

cdef struct Gathering:   # a thread's part of the batches: its rows, and what its blocks of weights need of the others
    int64_t *rows        # of the whole batch
    int64_t *next_rows   # and of the one that follows
    intp asked, count    # for how many of those their features were asked for, of how many
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
    void *inputs           # for every thread but the first, a batch in panels that is written by itself alone
    intp rows_size, inputs_size  # in entries
    char *batch_targets
    void *batch_weights    # or NULL
    void *pred
    void *dpred
    # what to do with it
    const Criterion *criterion
    Update *update
    const double *lrs      # of every step, or NULL where all have
    double lr
    const double *decays   # the weight decay of every step, or NULL where all have that of the update
    double clip_norm       # 0 for none
    const void *grads
    intp parameters        # entries of grads
    void *blocks           # for every thread, a block of gradients, or some rows of the longest state
    intp block_size        # in entries
    bint state_in_blocks   # whether the optimizer's state of weights in panels is in the order of their blocks
    # whether this team is the right one, see Crowd in network.pxi
    double began, lost     # when thread 0 began to count, and the seconds that it has lost since
    intp counted           # the steps before that
    double peace, deadline  # until when the team is left alone; when it is disbanded in any case, or 0
    int disturbed, disband
    # what the threads tell each other
    double losses[CHUNKS]
    double norms[CHUNKS]
    intp correct[CHUNKS]
    # what the caller is told
    double loss            # summed over samples
    intp right, done
    bint diverged


cdef Gathering begin_gathering(Epoch *e, Net *net, Share *me, const real *_) noexcept nogil:
    """Find out which columns of x a thread needs of all rows: those of its blocks of the first weight, or the ids."""
    cdef Gathering g
    cdef Op *op = &net.layers[0].op
    cdef Block b
    cdef intp index
    g.next_rows = e.rows + me.number * e.rows_size
    g.rows = g.next_rows + e.rows_size // 2
    g.asked = g.count = g.begin = g.end = 0
    g.left, g.right = 0, op.inputs
    if op.kind == EMBEDDING:
        g.left = op.numeric // panel_width(_) * panel_width(_)
    elif op.kind == DENSE and not net.layers[0].by_columns:
        g.left, g.right = op.inputs, 0
        for index in range(share_of(blocks_of(op, _), me.number, me.team),
                           share_of(blocks_of(op, _), me.number + 1, me.team)):
            b = block_at(&net.layers[0], index, _)
            g.left, g.right = min(g.left, b.i0), max(g.right, b.i1)
    return g


cdef void order_rows(Gathering *g, Epoch *e, intp first, Share *me) noexcept nogil:
    """The rows of the batch that starts at position `first` of the order become those of the next batch."""
    g.rows, g.next_rows = g.next_rows, g.rows
    g.asked, g.count = 0, min(e.batch_size, e.order.samples - first)
    g.begin, g.end = first_row(g.count, me.number, me.team), first_row(g.count, me.number + 1, me.team)
    shuffled(&e.order, g.next_rows, first, g.count)


cdef void gather_rows(Gathering *g, Epoch *e, Net *net, intp begin, intp end, const real *_) noexcept nogil:
    """Rows begin..end of the batch: features into panels, targets and weights; of others, columns left..right.

    What other threads gather is gathered again: copying is cheaper than taking lines out of another core's cache.
    """
    cdef intp i, left, right, inputs = net.layers[0].op.inputs
    cdef Layout rows = in_rows(inputs, _)
    cdef const real *features = <const real *> e.features
    for i in range(net.batch):
        left, right = g.left, g.right
        if begin <= i < end:
            left, right = 0, inputs
        copy_row(<real *> net.x + left // panel_width(_) * net.layout.panel + i * net.layout.row, net.layout,
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


cdef void ask_for_rows(Gathering *g, Epoch *e, intp inputs, const real *_) noexcept nogil:
    """Ask for the features of the next batch that were not yet asked for."""
    cdef intp left, right, at
    cdef const char *row
    while g.asked < g.count:
        left, right = g.left, g.right
        if g.begin <= g.asked < g.end:
            left, right = 0, inputs
        row = <const char *> (<const real *> e.features + g.next_rows[g.asked] * inputs)
        for at in range(left * <intp> sizeof(real), right * <intp> sizeof(real), 64):
            ask_for(row + at)
        g.asked += 1


cdef void loss_of_rows(Epoch *e, Net *net, Share *me, intp begin, intp end, const real *_) noexcept nogil:
    """The loss of a thread's rows; its gradient becomes the last layer's dy."""
    cdef Layer *last = &net.layers[net.count - 1]
    cdef intp outputs = last.op.outputs
    cdef Layout rows = in_rows(outputs, _)
    cdef double scale
    if e.criterion.weight != NULL or e.sample_weight != NULL:
        meet(me)  # the total weight is that of all threads' samples
    scale = loss_scale(e.criterion, e.batch_targets, <const real *> e.batch_weights, net.batch, outputs)
    copy_rows(<real *> e.pred, rows, <const real *> last.y, net.layout, begin, end, outputs)
    loss_share(e.losses, e.criterion, <real *> e.dpred, <const real *> e.pred, e.batch_targets,
               <const real *> e.batch_weights, scale, net.batch, outputs, me)
    e.correct[me.number] = count_correct(<const real *> e.pred, e.batch_targets, e.criterion.kind, begin, end,
                                         outputs)
    copy_rows(<real *> last.dy, net.layout, <const real *> e.dpred, rows, begin, end, outputs)


cdef inline intp state_offset(Epoch *e, Layer *layer, Block b) noexcept nogil:
    """Where in the state vectors a block begins."""
    return layer.op.weight + b.i0 * layer.op.outputs + (
        b.j0 * (b.i1 - b.i0) if e.state_in_blocks and layer.panels != NULL else b.j0)


cdef Soon needed_soon(Epoch *e, Gathering *g, Net *net, int i, Block b, bint updates, const real *_) noexcept nogil:
    """What updating a block in panels touches besides its gradient; and the next panel of x or rows of the data."""
    cdef Soon soon
    cdef Layer *layer = &net.layers[i]
    cdef intp offset, size = sizeof(real), p
    for p in range(6):
        soon.pieces[p] = <const char *> (
            input_of(net, i, _) + (b.i0 // panel_width(_) + 1) * net.layout.panel) + p % 2 * net.batch * 64
    soon.bytes[0] = soon.bytes[1] = 0
    soon.bytes[2] = net.batch * 64
    if i == 0 and updates and g.asked + 2 <= g.count:  # x is near already, the next batch is not
        soon.bytes[2] = layer.op.inputs * size
        for p in range(2):
            soon.pieces[4 + p] = <const char *> (<const real *> e.features + g.next_rows[g.asked] * layer.op.inputs)
            g.asked += 1
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


cdef void update_block(Epoch *e, Net *net, int i, Block b, const real *gradient, intp gradient_row,
                       double grad_scale) noexcept nogil:
    """Apply the block's gradients, in the panels if the weight has any; the first rows' blocks see to the bias."""
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


cdef void reorder_states(Epoch *e, Net *net, Share *me, bint back, const real *_) noexcept nogil:
    """For a long run, the state of weights in panels is put into the order of their blocks, and afterwards back."""
    cdef Layer *layer
    cdef void *vectors[2]
    cdef intp index, down, at
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
    cdef intp n = layer.op.inputs, panels = ceil_div(n, panel_width(like))
    cdef intp begin = share_of(panels, me.number, me.team) * panel_width(like)
    cdef intp end = min(n, share_of(panels, me.number + 1, me.team) * panel_width(like))
    cdef bint decays = e.update.undecayed_count == 0
    if begin < end:
        update_rows(e.update, <real *> layer.weight + begin, 0, layer.op.weight + begin, 0,
                    <real *> layer.dweight + begin, 0, grad_scale, decays, 1, end - begin)
        update_rows(e.update, <real *> layer.bias + begin, 0, layer.op.bias + begin, 0, <real *> layer.dbias + begin,
                    0, grad_scale, decays, 1, end - begin)


cdef void weights_share(Epoch *e, Gathering *g, Net *net, Share *me, bint gradients, bint updates, bint in_memory,
                        bint keep, double grad_scale, const real *_) noexcept nogil:
    """A thread's blocks of every layer: their gradients, their update, or one after the other while they are in L1.

    Gradients that must be in memory go to the flat buffer at once; those of tables, which always do, are cleared after
    the update unless they are to be kept. e and g are only looked at where there are updates, e also by tables.
    """
    cdef int i
    cdef intp index
    cdef Layer *layer
    cdef Block b
    cdef real *gradient
    cdef Layout rows
    cdef Soon soon
    for i in range(net.count):
        layer = &net.layers[i]
        if layer.op.kind == DENSE:
            for index in range(share_of(blocks_of(&layer.op, _), me.number, me.team),
                               share_of(blocks_of(&layer.op, _), me.number + 1, me.team)):
                b = block_at(layer, index, _)
                if in_memory:
                    gradient = <real *> layer.dweight + b.i0 * layer.op.outputs + b.j0
                    rows = in_rows(layer.op.outputs, _)
                else:  # the thread's own block, in L1
                    gradient = <real *> e.blocks + me.number * e.block_size
                    rows = in_rows(b.j1 - b.j0 if layer.panels == NULL else panel_width(_), _)
                if gradients:
                    soon = needed_soon(e, g, net, i, b, updates, _)
                    block_gradient(net, i, b, gradient, rows, soon)
                if updates:
                    update_block(e, net, i, b, gradient, rows.row, grad_scale)
        elif layer.op.kind == BATCHNORM or layer.op.kind == LAYERNORM:
            if gradients and layer.op.kind == LAYERNORM:
                layernorm_gradients(net, i, me, _)
            if updates:
                update_vectors(e, net, i, me, grad_scale, _)
        elif layer.op.kind == EMBEDDING:
            tables_share(e.update if e != NULL else NULL, net, me, gradients, updates, keep, grad_scale, _)
        if i == 0 and updates:
            ask_for_rows(g, e, net.layers[0].op.inputs, _)
        lap(net, me, i, IN_DWEIGHT)


cdef void gradients_share(Net *net, Share *me, const real *_) noexcept nogil:
    """A thread's blocks of every layer, of a pass that ends with the gradients in memory."""
    weights_share(<Epoch *> NULL, <Gathering *> NULL, net, me, True, False, True, True, 1, _)


cdef bint descend(Epoch *e, Gathering *g, Net *net, Share *me, bint last, const real *_) noexcept nogil:
    """Gradients and update. The last step's gradients stay in memory, and clipping needs all of them first.

    False where these turn out not to be finite; nothing is updated then.
    """
    cdef double scale = 1, square
    if e.clip_norm > 0:
        weights_share(e, g, net, me, True, False, True, True, 1, _)
        meet(me)
        squared_norm_share(e.norms, <const real *> e.grads, e.parameters, me)
        meet(me)
        square = total(e.norms, CHUNKS)
        if not is_finite(square):
            return False
        scale = min(1.0, e.clip_norm / (sqrt(square) + 1e-6))
        weights_share(e, g, net, me, False, True, True, last, scale, _)
    else:
        weights_share(e, g, net, me, True, True, last, last, 1, _)
    track_statistics(net, me, _)
    return True


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


cdef struct Watch:  # of a thread over itself: when it began to count, and what it had lost before
    double began, lost


cdef void question_team(Epoch *e, Net *net, Share *me, Watch *watch) noexcept nogil:
    """Whether a thread has lost half of its time lately, or that of the team is over; thread 0 disbands it then."""
    cdef double time
    if me.lost - watch.lost > LEAST_LOSS:
        time = now()
        if time > e.peace and me.lost - watch.lost > 0.5 * (time - watch.began):
            raise_flag(&e.disturbed)
        elif time - watch.began > LEAST_TRIAL:
            watch.began, watch.lost = time, me.lost
            if me.number == 0:
                e.began, e.counted = time, e.done
    if me.number == 0 and (is_raised(&e.disturbed) or 0 < e.deadline < net.polled):
        raise_flag(&e.disband)


cdef void train_share(Epoch *e, Share *me, const real *_) noexcept nogil:
    """One thread's part of e.steps steps, or of those before the loss is no finite number any more."""
    cdef double loss
    cdef Watch watch
    cdef Net net = e.net  # a copy: its batch is this thread's step, while others may still be at the one before
    cdef Gathering g = begin_gathering(e, &net, me, _)
    cdef intp s, begin, end, i
    if me.number > 0:
        net.x = <real *> e.inputs + (me.number - 1) * e.inputs_size
    else:
        me.lost = e.lost
    watch.began, watch.lost = e.began, 0
    net.last = now()
    reorder_states(e, &net, me, False, _)
    clear_tables(&net, me, _)
    pack_weights(&net, me, True, True, _)
    lap(&net, me, 0, IN_WAITING)
    order_rows(&g, e, e.first, me)
    for s in range(e.steps):
        net.batch, begin, end = g.count, g.begin, g.end
        net.layout, net.step = in_panels(net.batch, _), e.net.step + s
        order_rows(&g, e, e.first + (s + 1) * e.batch_size if s + 1 < e.steps else e.order.samples, me)
        gather_rows(&g, e, &net, begin, end, _)
        lap(&net, me, 0, IN_GATHER)
        forward_rows(&net, me, begin, end, _)
        loss_of_rows(e, &net, me, begin, end, _)
        lap(&net, me, 0, IN_LOSS)
        backward_rows(&net, me, begin, end, _)
        if me.number == 0:
            if e.decays != NULL:
                e.update.weight_decay = e.decays[s]
            begin_update(e.update, e.lrs[s] if e.lrs != NULL else e.lr)
        meet(me)
        lap(&net, me, 0, IN_WAITING)
        loss = total(e.losses, ceil_div(net.batch, chunk_rows(net.batch)))
        # by thread 0, before the meeting; or by the loss, which is the same to all: nothing has changed in this step
        if is_raised(net.stop) or is_raised(&e.disband):
            break
        if not is_finite(loss) or not descend(e, &g, &net, me, s + 1 == e.steps, _):
            if me.number == 0:
                e.loss += loss
                e.diverged = True
            break
        if me.number == 0:
            e.loss += loss * net.batch
            for i in range(me.team):
                e.right += e.correct[i]
            e.update.step += 1
            e.done += 1
        meet(me)
        # not before: a thread that is late to look at the flags of this step would leave, and the others wait for it
        poll(&net, me, OPERATIONS_BETWEEN_CLOCK_READINGS / 64)
        question_team(e, &net, me, &watch)
        lap(&net, me, 0, IN_WAITING)
    if me.number == 0:
        e.lost = me.lost - watch.lost
    unpack_weights(&net, me, _)
    reorder_states(e, &net, me, True, _)
    lap(&net, me, 0, IN_WAITING)
