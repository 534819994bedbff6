# A plan at work: the forward and the backward pass over a model's ops, without Python between them.
#
# The activation buffer keeps every op's result for the backward pass; two delta buffers take turns holding the gradient
# that travels back. A dense op multiplies its dx by the derivative of the activation before it (`prior`), so the
# gradient arrives at most ops as dz, not dy.

cdef enum Kind:  # the codes of fastbp.core.plan
    DENSE, ACTIVATION, DROPOUT, BATCHNORM, LAYERNORM

cdef struct Op:  # fastbp.core.plan.OP
    int32_t kind, activation, prior, reserved
    int64_t inputs, outputs, weight, bias, stats, y, z, row
    double p, eps, momentum
    uint64_t key

cdef struct Buffers:
    const Op *ops
    int count
    void *values
    void *grads
    void *stats
    void *activations
    void *delta[2]
    char *scratch


cdef inline real *at(void *base, long offset, const real *_) noexcept nogil:
    """A tensor of a flat buffer, NULL where the op has none."""
    return <real *> base + offset if offset >= 0 else NULL


cdef inline real *kept(Buffers *net, long per_sample, long batch, const real *like) noexcept nogil:
    """A tensor of the activation buffer, whose offsets are per sample."""
    return at(net.activations, per_sample * batch if per_sample >= 0 else -1, like)


cdef inline const real *input_of(Buffers *net, int i, const real *x, long batch) noexcept nogil:
    return x if i == 0 else kept(net, net.ops[i - 1].y, batch, x)


cdef inline const real *argument_of(Buffers *net, int i, const real *x, long batch) noexcept nogil:
    """What op i's activation was applied to, where that was kept."""
    return input_of(net, i, x, batch) if net.ops[i].kind == ACTIVATION else kept(net, net.ops[i].z, batch, x)


cdef void forward_pass(Buffers *net, real *result, const real *x, long batch, uint64_t step, bint training,
                       int threads) noexcept nogil:
    """result (B, O) = the network's output for x (B, I)."""
    cdef int i
    cdef const Op *op = net.ops
    cdef const real *a
    cdef real *y = NULL
    cdef real *weight
    cdef real *bias
    for i in range(net.count):
        op = &net.ops[i]
        a = input_of(net, i, x, batch)
        # the last result is the caller's, unless an activation's derivative will need it again
        y = result if i == net.count - 1 and op.activation == LINEAR else kept(net, op.y, batch, x)
        weight, bias = at(net.values, op.weight, x), at(net.values, op.bias, x)
        if op.kind == DENSE:
            dense_forward_(y, kept(net, op.z, batch, x), a, weight, bias, op.activation, batch, op.inputs, op.outputs,
                           net.scratch, threads)
        elif op.kind == ACTIVATION:
            activation_forward_(y, a, op.activation, batch * op.outputs, threads)
        elif op.kind == DROPOUT:
            if training:
                dropout_(y, a, op.p, op.key, step, batch * op.outputs, threads)
            else:
                memcpy(y, a, batch * op.outputs * sizeof(real))
        elif op.kind == BATCHNORM:
            batchnorm_forward_(y, at(net.stats, op.stats, x), a, weight, bias, op.momentum, op.eps, training, batch,
                               op.inputs, threads)
        else:
            layernorm_forward_(y, kept(net, op.row, batch, x), a, weight, bias, op.eps, batch, op.inputs, threads)
    if y != result:
        memcpy(result, y, batch * op.outputs * sizeof(real))


cdef void backward_pass(Buffers *net, real *result, const real *dy, const real *x, long batch, uint64_t step,
                        int threads) noexcept nogil:
    """Fill the gradients from dy (B, O); result (B, I) gets the gradient of x unless it is NULL."""
    cdef int i, j, slot = 0
    cdef const Op *op
    cdef const real *a
    cdef real *dx
    cdef real *weight
    cdef real *dweight
    cdef real *dbias
    for j in range(net.count):
        i = net.count - 1 - j
        op = &net.ops[i]
        a = input_of(net, i, x, batch)
        if op.activation != LINEAR and (j == 0 or net.ops[i + 1].prior == LINEAR):
            dx = <real *> net.delta[slot]
            activation_backward_(dx, dy, kept(net, op.y, batch, x), argument_of(net, i, x, batch), op.activation,
                                 batch * op.outputs, threads)
            dy = dx
            slot = 1 - slot
        if op.kind == ACTIVATION and i > 0:
            continue
        dx = <real *> net.delta[slot] if i > 0 else result
        weight, dweight = at(net.values, op.weight, x), at(net.grads, op.weight, x)
        dbias = at(net.grads, op.bias, x)
        if op.kind == DENSE:
            dense_backward_(dweight, dbias, dx, dy, a, argument_of(net, i - 1, x, batch) if i > 0 else NULL, weight,
                            op.prior, batch, op.inputs, op.outputs, net.scratch, threads)
        elif op.kind == DROPOUT and dx != NULL:
            dropout_(dx, dy, op.p, op.key, step, batch * op.outputs, threads)
        elif op.kind == BATCHNORM:
            batchnorm_backward_(dweight, dbias, dx, dy, a, at(net.stats, op.stats, x), weight, batch, op.inputs,
                                threads)
        elif op.kind == LAYERNORM:
            layernorm_backward_(dweight, dbias, dx, dy, a, kept(net, op.row, batch, x), weight, batch, op.inputs,
                                threads)
        elif dx != NULL:
            memcpy(dx, dy, batch * op.inputs * sizeof(real))  # an activation at the very front
        dy = dx
        slot = 1 - slot


cdef long scratch_of(Buffers *net, long batch, long itemsize, int threads) noexcept nogil:
    """Bytes of scratch for the largest of the plan's products."""
    cdef long i, needed = 64
    for i in range(net.count):
        if net.ops[i].kind == DENSE:
            needed = max(needed, scratch_per_thread(batch, net.ops[i].outputs, net.ops[i].inputs, itemsize))
            needed = max(needed, scratch_per_thread(batch, net.ops[i].inputs, net.ops[i].outputs, itemsize))
            needed = max(needed, scratch_per_thread(net.ops[i].inputs, net.ops[i].outputs, batch, itemsize))
    return needed * threads
