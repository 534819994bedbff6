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


cdef class Network:
    """Runs a plan over the flat buffers values and grads (n,) and stats (s,); the twin of reference.Network."""

    cdef Buffers net
    cdef object owned  # keeps alive what net points to
    cdef object activations, scratch, dtype
    cdef long per_sample, widest
    cdef long batch_capacity, scratch_capacity  # samples, bytes
    cdef bint busy  # only read and written with the GIL
    cdef long batch
    cdef uint64_t step
    cdef object x

    def __init__(self, ops, values, grads, stats):
        cdef const Op[::1] records = ops
        cdef long i
        self.owned = (ops, values, grads, stats)
        self.dtype = values.dtype
        self.net.ops = &records[0]
        self.net.count = <int> records.shape[0]
        self.net.values, self.net.grads, self.net.stats = address(values), address(grads), address(stats)
        self.batch_capacity = self.scratch_capacity = 0
        self.per_sample = self.widest = 0
        for i in range(self.net.count):
            self.per_sample = max(self.per_sample, records[i].y + records[i].outputs,
                                  records[i].z + records[i].outputs, records[i].row + 2)
            self.widest = max(self.widest, records[i].inputs, records[i].outputs)

    cdef enter(self):
        """Take the workspace for one pass, which runs without the GIL; leave with ``self.busy = False``."""
        if self.busy:
            raise RuntimeError("the model is at work in another thread; give every thread a model of its own")
        self.busy = True

    cdef reserve_batch(self, long batch):
        """Make room for the activations and gradients of a batch; it is kept from step to step."""
        if batch > self.batch_capacity:
            activations = aligned((self.per_sample + 2 * self.widest) * batch, self.dtype)
            self.net.activations = address(activations)
            self.net.delta[0] = <char *> address(activations) + self.per_sample * batch * <long> self.dtype.itemsize
            self.net.delta[1] = <char *> self.net.delta[0] + self.widest * batch * <long> self.dtype.itemsize
            self.activations, self.batch_capacity = activations, batch

    cdef reserve_scratch(self, int threads):
        """Make room for the packed blocks of this many threads."""
        cdef long needed = scratch_of(&self.net, self.batch, self.dtype.itemsize, threads)
        if needed > self.scratch_capacity:
            scratch = aligned(needed, "uint8")
            self.net.scratch = <char *> address(scratch)
            self.scratch, self.scratch_capacity = scratch, needed

    def forward(self, y, x, uint64_t step, bint training, int threads):
        """y (B, O) = network(x (B, I)); keeps what the backward pass needs. step selects dropout's masks."""
        cdef void *y_ = address(y)
        cdef void *x_ = address(x)
        cdef bint single = self.dtype.itemsize == 4
        self.enter()
        try:
            self.batch, self.x, self.step = x.shape[0], x, step
            self.reserve_batch(self.batch)
            self.reserve_scratch(threads)
            with nogil:
                if single:
                    forward_pass(&self.net, <float *> y_, <const float *> x_, self.batch, step, training, threads)
                else:
                    forward_pass(&self.net, <double *> y_, <const double *> x_, self.batch, step, training, threads)
        finally:
            self.busy = False

    def backward(self, dx, dy, int threads):
        """Fill grads from dy (B, O), the gradient of the last forward's y, and dx (B, I) if it is not None."""
        cdef void *dx_ = address(dx) if dx is not None else NULL
        cdef void *dy_ = address(dy)
        cdef void *x_ = address(self.x)
        cdef bint single = self.dtype.itemsize == 4
        self.enter()
        try:
            self.reserve_scratch(threads)
            with nogil:
                if single:
                    backward_pass(&self.net, <float *> dx_, <const float *> dy_, <const float *> x_, self.batch,
                                  self.step, threads)
                else:
                    backward_pass(&self.net, <double *> dx_, <const double *> dy_, <const double *> x_, self.batch,
                                  self.step, threads)
        finally:
            self.busy = False


cdef void *address(array) except? NULL:
    """Where the data of a C-contiguous array lies; whoever asks keeps the array alive."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef void *data = view.buf
    PyBuffer_Release(&view)
    return data
