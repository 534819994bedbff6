# The epoch: gather, forward, loss, backward, update, batch after batch, by one team and without a Python object.
#
# It runs the very functions that the explicit loop reaches through network.pxi and bindings.pxi, on the same numbers:
# that is why both give the same bits. What it saves are barriers, calls and traffic between memory and caches.

cdef enum:
    MIN_STEPS_TO_REORDER = 4  # with fewer steps, reordering the state costs more than it saves


cdef void loss_of_rows(Epoch *e, Net *net, Thread *thread, intp begin, intp end, const real *witness) noexcept nogil:
    """The loss of a thread's rows; its gradient becomes the last layer's dy."""
    cdef Layer *last = &net.layers[net.count - 1]
    cdef intp outputs = last.op.outputs
    cdef Layout rows = in_rows(outputs, witness)
    cdef double scale
    if e.criterion.weight != NULL or e.sample_weight != NULL:
        barrier(thread)  # the total weight is that of all threads' samples
    scale = loss_scale(e.criterion, e.batch_targets, <const real *> e.batch_weights, net.batch, outputs)
    copy_rows(<real *> e.pred, rows, <const real *> last.y, net.layout, begin, end, outputs)
    thread_loss(e.losses, e.criterion, <real *> e.dpred, <const real *> e.pred, e.batch_targets,
                <const real *> e.batch_weights, scale, net.batch, outputs, thread)
    e.correct[thread.number] = count_correct(<const real *> e.pred, e.batch_targets, e.criterion.code, begin, end,
                                             outputs)
    copy_rows(<real *> last.dy, net.layout, <const real *> e.dpred, rows, begin, end, outputs)


cdef bint apply_gradients(Epoch *e, Gather *g, Net *net, Thread *thread, bint last,
                          const real *witness) noexcept nogil:
    """Gradients and update. The last step's gradients stay in memory; clipping needs all gradients before the update.

    False where the gradient is not finite; then nothing is updated.
    """
    cdef double scale = 1, square
    if e.clip_norm > 0:
        thread_weights(e, g, net, thread, True, False, True, True, 1, witness)
        barrier(thread)
        thread_squared_norm(e.norms, <const real *> e.grads, e.parameters, thread)
        barrier(thread)
        square = total(e.norms, CHUNKS)
        if not is_finite(square):
            return False
        scale = min(1.0, e.clip_norm / (sqrt(square) + 1e-6))
        thread_weights(e, g, net, thread, False, True, True, last, scale, witness)
    else:
        thread_weights(e, g, net, thread, True, True, last, last, 1, witness)
    commit_statistics(net, thread, witness)
    return True


cdef inline void prepare_step(Epoch *e, intp s) noexcept nogil:
    """Thread 0 sets the learning rate and the weight decay of step s."""
    if e.decays != NULL:
        e.update.weight_decay = e.decays[s]
    prepare_update(e.update, e.lrs[s] if e.lrs != NULL else e.lr)


cdef inline void count_step(Epoch *e, double loss, intp batch, intp team_size) noexcept nogil:
    """Thread 0 adds a step that was applied to what the epoch reports."""
    cdef intp i
    e.loss += loss * batch
    for i in range(team_size):
        e.total_correct += e.correct[i]
    e.update.step += 1
    e.done += 1


cdef void thread_epoch(Epoch *e, Thread *thread, const real *witness) noexcept nogil:
    """A thread's part of e.steps steps, or of those up to a loss that is not finite."""
    cdef double loss
    cdef ThreadWait wait
    cdef Net net = e.net  # a copy: its batch is that of this thread's step, while others may be one step behind
    cdef Gather g = init_gather(e, &net, thread, witness)
    cdef intp s, begin, end
    if thread.number > 0:
        net.x = <real *> e.inputs + (thread.number - 1) * e.inputs_size
    else:
        thread.waited = e.check.waited
    wait.since, wait.waited = e.check.since, 0
    net.charged = now()
    reorder_states(e, &net, thread, False, witness)
    clear_tables(&net, thread, witness)
    pack_weights(&net, thread, True, True, witness)
    charge_time(&net, thread, 0, IN_WAITING)
    next_batch(&g, e, e.first, thread)
    for s in range(e.steps):
        net.batch, begin, end = g.count, g.begin, g.end
        net.layout, net.step = in_panels(net.batch, witness), e.net.step + s
        next_batch(&g, e, e.first + (s + 1) * e.batch_size if s + 1 < e.steps else e.order.samples, thread)
        gather_rows(&g, e, &net, begin, end, witness)
        charge_time(&net, thread, 0, IN_GATHER)
        forward_rows(&net, thread, begin, end, witness)
        loss_of_rows(e, &net, thread, begin, end, witness)
        charge_time(&net, thread, 0, IN_LOSS)
        backward_rows(&net, thread, begin, end, witness)
        if thread.number == 0:
            prepare_step(e, s)
        barrier(thread)
        charge_time(&net, thread, 0, IN_WAITING)
        loss = total(e.losses, ceil_div(net.batch, chunk_rows(net.batch)))
        # Thread 0 set the flags before the barrier, and the loss is the same for all threads, so all leave together.
        # Nothing has changed in this step yet.
        if is_set(net.stop) or is_set(&e.check.disband):
            break
        if not is_finite(loss) or not apply_gradients(e, &g, &net, thread, s + 1 == e.steps, witness):
            if thread.number == 0:
                e.loss += loss
                e.diverged = True
            break
        if thread.number == 0:
            count_step(e, loss, net.batch, thread.team_size)
        barrier(thread)
        # Flags may be set only from here on: before the barrier, a thread that reads this step's flags late would leave
        # while the others wait for it.
        poll_signals(&net, thread, OPERATIONS_BETWEEN_CLOCK_READINGS / 64)
        check_contention(&e.check, &wait, thread, net.polled, e.done)
        charge_time(&net, thread, 0, IN_WAITING)
    if thread.number == 0:
        e.check.waited = thread.waited - wait.waited
    unpack_weights(&net, thread, witness)
    reorder_states(e, &net, thread, True, witness)
    charge_time(&net, thread, 0, IN_WAITING)
