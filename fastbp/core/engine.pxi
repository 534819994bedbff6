# The epoch: gather, forward, loss, backward, update, batch after batch, by one team and without a Python object.
#
# It runs the very functions that the explicit loop reaches through network.pxi and bindings.pxi, on the same numbers:
# that is why both give the same bits. What it saves are barriers, calls and traffic between memory and caches.

cdef enum:
    MIN_STEPS_TO_REORDER = 4  # with fewer steps, reordering the state costs more than it saves


cdef void loss_of_rows(Epoch *e, Net *net, Thread *thread, intp begin, intp end, const real *witness) noexcept nogil:
    """The loss of a thread's rows; its gradient becomes that of the last slot."""
    cdef Slot *last = dst_slot(net, &net.layers[net.count - 1])
    cdef intp outputs = last.plan.width
    cdef Layout rows = in_rows(outputs, witness)
    cdef Strips strips = one_strip(outputs)
    cdef const real *pred = <const real *> e.pred
    cdef real *dpred = <real *> e.dpred
    cdef double total_weight = 1  # of sums, which a reducer wants
    if e.reduction == NULL:
        if e.criterion.weight != NULL or e.sample_weight != NULL or e.criterion.missing:
            barrier(thread)  # the total weight is that of all threads' samples
        total_weight = loss_weight(e.criterion, e.batch_targets, <const real *> e.batch_weights, net.batch, outputs)
        if thread.number == 0:
            e.weight = total_weight
    if outputs % panel_width(witness) == 0 and last.grad != NULL:
        strips, pred, dpred = panel_strips(last.layout, outputs), <const real *> last.value, <real *> last.grad
    else:  # a loss reads rows, or panels without padding
        copy_rows(<real *> e.pred, rows, <const real *> last.value, last.layout, begin, end, outputs)
    thread_loss(e.losses, e.criterion, dpred, pred, strips, e.batch_targets, <const real *> e.batch_weights,
                loss_scale(e.criterion, total_weight, outputs), net.batch, thread)
    e.correct[thread.number] = count_correct(e.criterion, pred, strips, e.batch_targets, begin, end)
    if dpred == <real *> e.dpred and last.grad != NULL:
        copy_rows(<real *> last.grad, last.layout, dpred, rows, begin, end, outputs)


cdef inline void only_gradients(WeightPass *work) noexcept nogil:
    """A pass that leaves the gradients in memory, for what comes before the update."""
    work.gradients, work.updates, work.in_memory, work.keep = True, False, True, True


cdef bint clip_and_update(Epoch *e, Net *net, Thread *thread, WeightPass *work, bint keep, double scale,
                          const real *witness) noexcept nogil:
    """Update by the gradients in memory times scale, clipped; False, and no update, where they are not finite."""
    cdef double square
    work.grad_scale = scale
    if e.clip_norm > 0:
        thread_squared_norm(e.norms, e.update, <const real *> e.grads, e.parameters, thread)
        barrier(thread)
        square = total(e.norms, CHUNKS)
        if not is_finite(square):
            return False
        work.grad_scale = scale * min(1.0, e.clip_norm / (scale * sqrt(square) + 1e-6))
    work.gradients, work.updates, work.in_memory, work.keep = False, True, True, keep
    thread_weights(net, thread, work, 0, net.count, witness)
    return True


cdef bint apply_gradients(Epoch *e, Net *net, Thread *thread, WeightPass *work, bint last,
                          const real *witness) noexcept nogil:
    """Gradients and update. The last step's gradients stay in memory; clipping needs all gradients before the update.

    False where the gradient is not finite; then nothing is updated.
    """
    if e.clip_norm > 0:
        only_gradients(work)
        thread_weights(net, thread, work, 0, net.count, witness)
        barrier(thread)
        return clip_and_update(e, net, thread, work, last, 1, witness)
    work.gradients, work.updates, work.in_memory, work.keep, work.grad_scale = True, True, last, last, 1
    thread_weights(net, thread, work, 0, net.count, witness)
    return True


cdef bint reduce_and_apply(Epoch *e, Net *net, Thread *thread, WeightPass *work, double *loss, bint last,
                           const real *witness) noexcept nogil:
    """As `apply_gradients`, by what is reduced over all processes; loss, that of this one, becomes that of all."""
    cdef Reduction *r = e.reduction
    cdef real *grads = <real *> e.grads
    cdef double scale, waited = thread.waited
    if thread.number == 0:
        begin_reduction(r, loss_weight(e.criterion, e.batch_targets, <const real *> e.batch_weights, net.batch,
                                       dst_slot(net, &net.layers[net.count - 1]).plan.width),
                        loss[0], is_set(net.stop))
    only_gradients(work)
    thread_reduce(r, net, thread, work, grads)
    thread.waited = waited  # for other processes: no contention
    if has_ended(r):
        return False
    scale = reduced_scale(r)
    if thread.number == 0:
        e.weight = r.header[0]
    loss[0] = NAN if r.header[2] > 0 else r.header[1] * scale
    if r.header[2] > 0:
        return False
    if e.update.clip_value > 0:  # bounds on the entries of the mean's gradient
        thread_scale(grads, scale, e.parameters, thread)
        barrier(thread)
        scale = 1
    if not clip_and_update(e, net, thread, work, True, scale, witness):
        return False
    if last and scale != 1:  # the gradients that stay are those of the mean
        barrier(thread)
        thread_scale(grads, scale, e.parameters, thread)
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
    e.weighted_loss += loss * e.weight
    e.total_weight += e.weight
    for i in range(team_size):
        e.total_correct += e.correct[i]
    e.update.step += 1
    e.done += 1


cdef void init_thread(Epoch *e, Net *net, Thread *thread, WeightPass *work, const real *witness) noexcept nogil:
    """A thread's own slots, input and block. It copies the net: others may be one step behind."""
    net[0] = e.net
    net.slots = e.slots + thread.number * net.slot_count
    memcpy(net.slots, e.net.slots, net.slot_count * sizeof(Slot))
    if thread.number > 0:
        net.slots[0].own_value = net.slots[0].value = <real *> e.inputs + (thread.number - 1) * e.inputs_size
    memset(work, 0, sizeof(WeightPass))
    work.update, work.state_in_blocks, work.sparse = e.update, e.state_in_blocks, e.reduction == NULL
    work.block, work.squares = <real *> e.blocks + thread.number * e.block_size, e.squares


cdef void thread_epoch(Epoch *e, Thread *thread, const real *witness) noexcept nogil:
    """A thread's part of e.steps steps, or of those up to a loss that is not finite."""
    cdef Net net
    cdef WeightPass work
    cdef Gather g
    cdef ThreadWait wait
    cdef double loss
    cdef bint applied, leaves
    cdef intp s, begin, end
    init_thread(e, &net, thread, &work, witness)
    g = init_gather(e, &net, thread, witness)
    work.next = &g.next
    if thread.number == 0:
        thread.waited = e.check.waited
    wait.since, wait.waited = e.check.since, 0
    net.charged = now()
    pack_weights(&net, thread, &work, True, True, witness)
    charge_time(&net, thread, 0, IN_WAITING)
    next_batch(&g, e, e.first, thread)
    for s in range(e.steps):
        if g.next.count != net.batch:
            set_batch(&net, g.next.count, witness)
        begin, end, net.step = g.next.begin, g.next.end, e.net.step + s
        next_batch(&g, e, e.first + (s + 1) * e.batch_size if s + 1 < e.steps else e.order.samples, thread)
        gather_rows(&g, e, &net, begin, end, witness)
        if g.invalid >= 0:
            e.invalid_row = g.invalid
            set_flag(&e.invalid)
        charge_time(&net, thread, 0, IN_GATHER)
        forward_rows(&net, thread, begin, end, True, witness)
        loss_of_rows(e, &net, thread, begin, end, witness)
        charge_time(&net, thread, 0, IN_LOSS)
        backward_rows(&net, thread, begin, end, witness)
        if thread.number == 0:
            prepare_step(e, s)
        barrier(thread)
        charge_time(&net, thread, 0, IN_WAITING)
        # The flags were set before the barrier, and the loss is the same for all threads, so all leave together.
        # Nothing has changed in this step yet.
        loss = NAN if is_set(&e.invalid) else total(e.losses, ceil_div(net.batch, chunk_rows(net.batch)))
        leaves = is_set(&e.check.disband)
        if e.reduction != NULL:  # the other processes count on this step: it is done first
            applied = reduce_and_apply(e, &net, thread, &work, &loss, s + 1 == e.steps or leaves, witness)
            if has_ended(e.reduction):
                break
        elif leaves or is_set(net.stop):
            break
        else:
            applied = is_finite(loss) and apply_gradients(e, &net, thread, &work, s + 1 == e.steps, witness)
        if not applied:
            if thread.number == 0:
                e.loss += loss
                e.diverged = True
            break
        commit_statistics(&net, thread, witness)
        if thread.number == 0:
            count_step(e, loss, net.batch, thread.team_size)
        barrier(thread)
        if thread.number == 0 and e.squares != NULL:  # of all threads; none writes them again before the next barrier
            e.penalty += e.update.weight_decay * net.batch * total(e.squares, e.square_count)
        if leaves:
            break
        # Flags may be set only from here on: before the barrier, a thread that reads this step's flags late would leave
        # while the others wait for it.
        poll_signals(&net, thread, OPERATIONS_BETWEEN_CLOCK_READINGS / 64)
        check_contention(&e.check, &wait, thread, net.polled, e.done)
        charge_time(&net, thread, 0, IN_WAITING)
    if thread.number == 0:
        e.check.waited = thread.waited - wait.waited
    unpack_weights(&net, thread, &work, witness)
    charge_time(&net, thread, 0, IN_WAITING)
