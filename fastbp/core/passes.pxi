# The passes of a thread over a program: forward, backward to the gradients of the slots, and over the weights.
#
# A step has two parts. In the first, every thread takes its own samples through all ops and back; a layer that is
# shared by columns (batch norm and, in an epoch, a wide dense layer) waits for all threads before and after. In the
# second, after a barrier, every thread computes the gradients of its own part of the weights and, in the engine,
# applies them.

cdef extern from "microkernel.h" nogil:
    void prefetch_line(const char *p)


cdef void pack_weights(Net *net, Thread *thread, const WeightPass *work, bint forward, bint backward,
                       const real *witness) noexcept nogil:
    """Bring the copies of weights up to date that the forward or the backward pass reads; wait for all threads."""
    cdef Layer *layer
    for layer in net.layers[:net.count]:
        if layer.kind.pack != NULL:
            layer.kind.pack(net, layer, thread, work, forward, backward, witness)
    barrier(thread)


cdef void unpack_weights(Net *net, const Thread *thread, const WeightPass *work, const real *witness) noexcept nogil:
    """Write what an epoch has done to the copies back to the weights."""
    cdef Layer *layer
    for layer in net.layers[:net.count]:
        if layer.kind.unpack != NULL:
            layer.kind.unpack(net, layer, thread, work, witness)


cdef void forward_rows(Net *net, Thread *thread, intp begin, intp end, bint together,
                       const real *witness) noexcept nogil:
    """A thread's samples through all ops; together: whether it sees all samples of the input already."""
    cdef int i
    cdef Layer *layer
    for i in range(net.count):
        layer = &net.layers[i]
        if layer.by_columns and not together:
            barrier(thread)
        layer.kind.forward(net, layer, thread, begin, end, witness)
        together = layer.by_columns
        if together:
            barrier(thread)
        charge_time(net, thread, i, IN_FORWARD)


cdef void backward_rows(Net *net, Thread *thread, intp begin, intp end, const real *witness) noexcept nogil:
    """The gradients of a thread's samples, from that of the last slot down to all that are needed."""
    cdef int i
    cdef Layer *layer
    cdef Slot *src
    cdef bint together = False, adds
    for i in range(net.count - 1, -1, -1):
        layer = &net.layers[i]
        src = src_slot(net, layer)
        if dst_slot(net, layer).grad != NULL:
            if layer.op.derivative:
                apply_derivative(net, layer, begin, end, witness)
                together = False
            adds = src.grad != NULL and layer.op.accumulates and not layer.kind.adds_gradient
            if layer.dx_by_columns and not together:
                barrier(thread)
            layer.kind.backward(net, layer, thread, layer.partial if adds else src.grad, begin, end, witness)
            together = layer.dx_by_columns
            if together:
                barrier(thread)
            if adds:
                copy_columns(<real *> src.grad, src.layout, 0, <const real *> layer.partial, src.layout, 0, begin, end,
                             layer.op.inputs, True)
                together = False
        charge_time(net, thread, i, IN_DX)


cdef intp check_input(Net *net, intp begin, intp end, const real *witness) noexcept nogil:
    """Of rows begin..end of the model's input one whose ids no table has, or -1; the kernels find ids that it has.

    All ids were checked before; but the array is the user's, who may have written into it since then.
    """
    cdef Layer *layer
    cdef intp found = -1
    for layer in net.layers[:net.count]:
        if layer.op.src == 0 and layer.kind.check != NULL:
            found = max(found, layer.kind.check(net, layer, begin, end, witness))
    return found


cdef void commit_statistics(Net *net, const Thread *thread, const real *witness) noexcept nogil:
    """Update running statistics, once it is sure that the step is applied."""
    cdef Layer *layer
    for layer in net.layers[:net.count]:
        if layer.kind.commit != NULL:
            layer.kind.commit(net, layer, thread, witness)


cdef void prefetch_rows(NextBatch *b, intp inputs, const real *witness) noexcept nogil:
    """Prefetch the features of the next batch that were not prefetched yet."""
    cdef intp left, right, at
    cdef const char *row
    while b.prefetched < b.count:
        left, right = b.left, b.right
        if b.begin <= b.prefetched < b.end:
            left, right = 0, inputs
        row = b.features + b.rows[b.prefetched] * inputs * <intp> sizeof(real)
        for at in range(left * <intp> sizeof(real), right * <intp> sizeof(real), 64):
            prefetch_line(row + at)
        b.prefetched += 1


cdef void thread_weights(Net *net, const Thread *thread, WeightPass *work, int first, int end,
                         const real *witness) noexcept nogil:
    """A thread's part of the weights of layers first..end: gradients, update, or one after the other."""
    cdef int i
    cdef Layer *layer
    for i in range(first, end):
        layer = &net.layers[i]
        if layer.kind.weights != NULL:
            layer.kind.weights(net, layer, thread, work, witness)
        if i == 0 and work.updates and not net.is_sparse:
            prefetch_rows(work.next, net.slots[0].plan.width, witness)
        charge_time(net, thread, i, IN_DWEIGHT)


cdef void thread_gradients(Net *net, const Thread *thread, const real *witness) noexcept nogil:
    """A thread's part of the gradients, of a pass that leaves them in memory."""
    cdef WeightPass work
    memset(&work, 0, sizeof(WeightPass))
    work.gradients, work.in_memory, work.grad_scale = True, True, 1
    thread_weights(net, thread, &work, 0, net.count, witness)
