# The door to a plan: a Network owns the workspace of one model and runs passes and epochs in it.

cdef class Network:
    """Runs a plan over the flat buffers values and grads (n,) and stats (s,); the twin of reference.Network."""

    cdef Buffers net
    cdef Batch gathered
    cdef object owned  # keeps alive what net points to
    cdef object activations, scratch, gathered_arrays, dtype
    cdef long per_sample, widest
    cdef long batch_capacity, gather_capacity, scratch_capacity  # samples, samples, bytes
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
        self.batch_capacity = self.gather_capacity = self.scratch_capacity = 0
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

    cdef reserve_gathered(self, long batch):
        """Make room for a batch's features, targets, predictions and their gradient."""
        cdef const Op *last = &self.net.ops[self.net.count - 1]
        if batch > self.gather_capacity:
            arrays = (aligned(batch * self.net.ops[0].inputs, self.dtype), aligned(batch * last.outputs, self.dtype),
                      aligned(batch * last.outputs, self.dtype), aligned(batch * max(1, last.outputs), "int64"))
            self.gathered.features, self.gathered.pred = address(arrays[0]), address(arrays[1])
            self.gathered.dpred, self.gathered.targets = address(arrays[2]), <char *> address(arrays[3])
            self.gathered_arrays, self.gather_capacity = arrays, batch

    def train(self, progress, X, y, order, batch_size, loss, update, lrs, double clip_norm, uint64_t step, int threads):
        """One epoch: the four steps for every batch_size rows of order (N,), rows of X (n, I) and y.

        loss is ``(name, parameter, weight)``, update ``(rule, state vectors, settings)``, lrs (steps,) float64,
        clip_norm 0 for none; step numbers the first step, for dropout. progress (3,) float64 gets the loss summed
        over the samples, how many were right, and the steps done, after an interrupt too.
        """
        cdef Criterion criterion
        cdef Update u
        cdef Data data
        cdef double[::1] rates = lrs
        cdef double[::1] result = progress
        cdef Progress done
        cdef bint single = self.dtype.itemsize == 4
        cdef long parameters = self.owned[1].size
        name, criterion.parameter, weight = loss
        criterion.kind = CROSS_ENTROPY if name == "cross_entropy" else ELEMENTWISE_LOSSES[name]
        criterion.weight = address(weight) if weight is not None else NULL
        rule, state, settings = update
        fill_update(&u, rule, state, settings)
        data.features, data.targets = address(X), <char *> address(y)
        data.order = <int64_t *> address(order)
        data.samples, data.batch_size = order.shape[0], batch_size
        data.inputs, data.outputs = X.shape[1], self.net.ops[self.net.count - 1].outputs
        data.target_bytes = y.nbytes // y.shape[0]  # not the stride, which is arbitrary where there is one row
        done.loss = done.correct = done.steps = 0
        self.enter()
        try:
            self.batch, self.x = min(data.batch_size, data.samples), None
            self.reserve_batch(self.batch)
            self.reserve_scratch(threads)
            self.reserve_gathered(self.batch)
            with nogil:
                if single:
                    train_epoch(&self.net, &self.gathered, &data, &criterion, &u, &rates[0], clip_norm, step,
                                parameters, &done, <float *> NULL, threads)
                else:
                    train_epoch(&self.net, &self.gathered, &data, &criterion, &u, &rates[0], clip_norm, step,
                                parameters, &done, <double *> NULL, threads)
        finally:
            self.busy = False
            result[0], result[1], result[2] = done.loss, done.correct, done.steps


cdef fill_update(Update *u, rule, state, settings):
    """The update that an optimizer describes; what its rule does not know stays zero."""
    u.rule = RULES[rule]
    u.first = address(state[0]) if state[0] is not None else NULL
    u.second = address(state[1]) if len(state) > 1 and state[1] is not None else NULL
    u.momentum, u.nesterov = settings.get("momentum", 0.0), settings.get("nesterov", False)
    u.beta1, u.beta2 = settings.get("beta1", 0.0), settings.get("beta2", 0.0)
    u.alpha, u.eps = settings.get("alpha", 0.0), settings.get("eps", 0.0)
    u.decoupled, u.step = settings.get("decoupled", False), settings.get("step", 1)
    u.weight_decay = settings["weight_decay"]


cdef void *address(array) except? NULL:
    """Where the data of a C-contiguous array lies; whoever asks keeps the array alive."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef void *data = view.buf
    PyBuffer_Release(&view)
    return data
