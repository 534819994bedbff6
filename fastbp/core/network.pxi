# A Network owns the workspace of one model and runs passes and epochs in it.

cdef double OPERATIONS_PER_THREAD_AND_CALL = 1e6  # a call has to wake its threads, which takes microseconds
cdef double OPERATIONS_PER_LOOKUP = 10       # the time to read a number in a table, or to update one, in operations
cdef double OPERATIONS_PER_THREAD_AND_STEP = 2e5  # the threads of an epoch are awake: a barrier takes less than 1 us

cdef struct Pass:  # a forward or backward pass over arrays of the caller, row by row
    Net net
    void *y
    const void *x
    const void *dy
    void *dx


cdef void thread_forward(Pass *p, Thread *thread, const real *witness) noexcept nogil:
    cdef Net *net = &p.net
    cdef Range rows = thread_rows(net.batch, thread)
    cdef Layer *last = &net.layers[net.count - 1]
    cdef intp inputs = net.layers[0].op.inputs, outputs = last.op.outputs
    pack_weights(net, thread, True, False, witness)
    copy_rows(<real *> net.x, net.layout, <const real *> p.x, in_rows(inputs, witness), rows.begin, rows.end, inputs)
    forward_rows(net, thread, rows.begin, rows.end, witness)
    copy_rows(<real *> p.y, in_rows(outputs, witness), <const real *> last.y, net.layout, rows.begin, rows.end, outputs)
    if net.training:
        commit_statistics(net, thread, witness)


cdef void thread_backward(Pass *p, Thread *thread, const real *witness) noexcept nogil:
    cdef Net *net = &p.net
    cdef Range rows = thread_rows(net.batch, thread)
    cdef Layer *last = &net.layers[net.count - 1]
    cdef intp inputs = net.layers[0].op.inputs, outputs = last.op.outputs
    pack_weights(net, thread, False, True, witness)
    copy_rows(<real *> last.dy, net.layout, <const real *> p.dy, in_rows(outputs, witness), rows.begin, rows.end,
              outputs)
    backward_rows(net, thread, rows.begin, rows.end, witness)
    if p.dx != NULL:
        copy_rows(<real *> p.dx, in_rows(inputs, witness), <const real *> net.dx, net.layout, rows.begin, rows.end,
                  inputs)
    barrier(thread)
    thread_gradients(net, thread, witness)


cdef int raise_pending() except -1:
    """Raise what `interrupted` found: the exception is set already, and -1 tells the caller so."""
    return -1


cdef class Network:
    """Runs a plan over the flat buffers values and grads (n,) and stats (s,), and the embedding's tables (t,)."""

    cdef Net net
    cdef object owned        # keeps alive what the layers point to
    cdef object memory       # the arrays of the workspace, by what they hold
    cdef intp size           # of a number in bytes: 4 or 8
    cdef void *values
    cdef void *grads
    cdef intp parameters
    cdef double work         # operations of a forward pass, per sample
    cdef double entries      # of an embedding's tables
    cdef intp batch_capacity, gradient_capacity, epoch_capacity  # samples
    cdef intp longest_row    # of a weight
    cdef int thread_capacity
    cdef readonly int threads  # that the last epoch used
    cdef ContentionPolicy policy
    cdef int lock            # of the workspace, for predictions
    cdef bint pending        # whether it holds a forward pass that waits for its backward pass
    cdef list spares         # networks whose workspaces serve predictions meanwhile

    def __init__(self, ops, values, grads, stats, tables):
        cdef const Op *records = <const Op *> matrix(ops, sizeof(Op)).data
        cdef const Table *table_records = <const Table *> matrix(tables, sizeof(Table)).data
        cdef int i
        self.owned = (ops, values, grads, stats, tables)
        self.memory, self.spares = {}, []
        self.size = values.itemsize
        self.values, self.grads, self.parameters = address(values), address(grads), values.size
        self.net.count = <int> len(ops)
        self.net.layers = <Layer *> self.allocate("layers", self.net.count * sizeof(Layer))
        self.net.table_count = <int> len(tables)
        if self.net.table_count > 0:
            self.net.tables = table_records
            for i in range(self.net.table_count):
                self.entries += table_records[i].rows * table_records[i].dim
        for i in range(self.net.count):
            check_op(&records[i])
            self.net.layers[i].op = records[i]
            self.work += 2.0 * records[i].inputs * records[i].outputs if records[i].kind == DENSE else 0
            self.work += OPERATIONS_PER_LOOKUP * records[i].outputs if records[i].kind == EMBEDDING else 0
            self.longest_row = max(self.longest_row, records[i].outputs)
            self.bind(&self.net.layers[i], address(stats))

    cdef void *allocate(self, what, size_t bytes_) except? NULL:
        """Memory, zeroed, that lives as long as the workspace or until the same is allocated again."""
        array = aligned(bytes_, "uint8")
        array[:] = 0
        self.memory[what] = array
        return address(array)

    cdef void *offset(self, void *base, intp elements) noexcept:
        """A tensor of a flat buffer, NULL where the op has none."""
        return <char *> base + elements * self.size if elements >= 0 else NULL

    cdef int bind(self, Layer *layer, void *stats) except -1:
        """Point a layer to its parameters, and to panels of its weight if its rows are too long to be read in place."""
        cdef Op *op = &layer.op
        layer.weight, layer.dweight = self.offset(self.values, op.weight), self.offset(self.grads, op.weight)
        layer.bias, layer.dbias = self.offset(self.values, op.bias), self.offset(self.grads, op.bias)
        layer.stats = self.offset(stats, op.stats)
        if op.kind == EMBEDDING:
            layer.weight, layer.dweight = self.values, self.grads
        if op.kind == DENSE and not (reads_in_place(op, <float *> NULL) if self.size == 4 else
                                     reads_in_place(op, <double *> NULL)):
            layer.panels = self.allocate(("panels", op.weight), panel_bytes(op.inputs, op.outputs, self.size))
        return 0

    cdef reserve_batch(self, intp batch):
        """Reserve memory for the activations of a batch; it is kept from step to step."""
        cdef int i
        cdef Layer *layer
        self.net.batch = batch
        self.net.layout = panel_layout(batch, self.size)
        if batch <= self.batch_capacity:
            return
        self.net.x = self.allocate("x", panel_bytes(batch, self.net.layers[0].op.inputs, self.size))
        for i in range(self.net.count):
            layer = &self.net.layers[i]
            layer.y = self.allocate(("y", i), panel_bytes(batch, layer.op.outputs, self.size))
            if layer.op.kind == DENSE and NEEDS_INPUT[layer.op.activation]:
                layer.z = self.allocate(("z", i), panel_bytes(batch, layer.op.outputs, self.size))
            if layer.op.kind == LAYERNORM:
                layer.moments = self.allocate(("moments", i), 2 * batch * sizeof(double))
        self.batch_capacity = batch

    cdef reserve_gradients(self, bint input_gradient):
        """Reserve memory for the batch's gradients, and for the transposed weights that they need."""
        cdef int i
        cdef Layer *layer
        for i in range(self.net.count):
            layer = &self.net.layers[i]
            if layer.op.kind == DENSE and (i > 0 or input_gradient) and layer.transposed == NULL:
                layer.transposed = self.allocate(("transposed", i),
                                                 panel_bytes(layer.op.outputs, layer.op.inputs, self.size))
        if self.batch_capacity > self.gradient_capacity:
            for i in range(self.net.count):
                layer = &self.net.layers[i]
                layer.dy = self.allocate(("dy", i), panel_bytes(self.batch_capacity, layer.op.outputs, self.size))
            for i in range(self.net.count - 1, 0, -1):
                if self.net.layers[i].op.kind == ACTIVATION:  # its derivative is applied in place
                    self.net.layers[i - 1].dy = self.net.layers[i].dy
            self.gradient_capacity = self.batch_capacity
        self.net.dx = NULL
        if input_gradient and self.net.layers[0].op.kind == ACTIVATION:
            self.net.dx = self.net.layers[0].dy
        elif input_gradient:
            self.net.dx = self.allocate("dx", panel_bytes(self.net.batch, self.net.layers[0].op.inputs, self.size))

    cdef int team_size(self, double work, double work_per_thread, int threads) noexcept:
        """How many threads pay for so much work per sample."""
        return <int> max(1.0, min(<double> min(threads, <int> CHUNKS), work * self.net.batch / work_per_thread))

    def forward(self, y, x, uint64_t step, bint training, int threads):
        """y (B, O) = network(x (B, I)); in training it keeps what the backward pass needs. step selects dropout masks.

        Outside of training any number of threads may call it at once; what a backward pass waits for is not touched.
        """
        cdef Network spare
        if training:
            self.pending = False
            self.run_forward(y, x, step, True, threads)
            self.pending = True
            return
        if not self.pending and try_lock(&self.lock):
            try:
                self.run_forward(y, x, step, False, threads)
            finally:
                unlock(&self.lock)
            return
        try:
            spare = self.spares.pop()
        except IndexError:
            spare = Network(*self.owned)
        spare.run_forward(y, x, step, False, threads)
        self.spares.append(spare)

    cdef run_forward(self, y, x, uint64_t step, bint training, int threads):
        cdef Pass work
        self.reserve_batch(x.shape[0])
        self.net.step, self.net.training = step, training
        work.net, work.y, work.x = self.net, address(y), address(x)
        threads = self.team_size(self.work, OPERATIONS_PER_THREAD_AND_CALL, threads)
        with nogil:
            run_team(<Task> thread_forward[float] if self.size == 4 else <Task> thread_forward[double], &work, threads)

    def backward(self, dx, dy, int threads):
        """Fill grads from dy (B, O), the gradient of the last forward's y, and dx (B, I) if it is not None."""
        cdef Pass work
        self.reserve_gradients(dx is not None)
        work.net, work.dy, work.dx = self.net, address(dy), address_or_null(dx)
        threads = self.team_size(2 * self.work, OPERATIONS_PER_THREAD_AND_CALL, threads)
        with nogil:
            run_team(<Task> thread_backward[float] if self.size == 4 else <Task> thread_backward[double], &work,
                     threads)
        self.pending = False

    def record_times(self, times):
        """Add up where the time goes: seconds in gather, loss and waiting, then forward, dx and dweight of each layer.

        times (3 + 3 * layers,) float64, or None to stop.
        """
        self.net.times = <double *> address_or_null(times)
        self.memory["times"] = times

    cdef choose_partition(self, int threads):
        """Choose the layers whose forward pass is shared by columns: then no other core reads a thread's weights.

        Each thread needs all rows of x for it, and waits for the others.
        """
        cdef int i
        cdef intp panels
        for i in range(self.net.count):
            panels = self.net.layers[i].op.outputs * self.size // (2 * VECTOR_BYTES)
            self.net.layers[i].by_columns = threads > 1 and self.net.layers[i].panels != NULL and panels >= 2 * threads

    cdef reserve_epoch(self, Epoch *e, int threads):
        """Reserve memory for a batch as the loss reads it, and for every thread's block of gradients."""
        cdef intp inputs, size = self.size
        cdef intp batch = self.net.batch, outputs = self.net.layers[self.net.count - 1].op.outputs
        if batch > self.epoch_capacity:
            self.allocate("pred", batch * outputs * size)
            self.allocate("dpred", batch * outputs * size)
            self.allocate("targets", batch * max(8, outputs * size))
            self.allocate("weights", batch * size)
            self.epoch_capacity = batch
            self.thread_capacity = 0
        e.block_size = VECTOR_BYTES // size * 2 * max(<intp> BLOCK_COLUMNS_BYTES // size, self.longest_row)
        inputs = panel_bytes(self.epoch_capacity, self.net.layers[0].op.inputs, size)
        if threads > self.thread_capacity:
            self.allocate("blocks", threads * e.block_size * size)
            self.allocate("rows", threads * 2 * self.epoch_capacity * sizeof(int64_t))
            self.allocate("inputs", (threads - 1) * inputs)
            self.thread_capacity = threads
        e.inputs, e.inputs_size, e.rows_size = address(self.memory["inputs"]), inputs // size, 2 * self.epoch_capacity
        e.state_in_blocks = e.steps >= MIN_STEPS_TO_REORDER
        e.pred, e.dpred = address(self.memory["pred"]), address(self.memory["dpred"])
        e.batch_targets, e.rows = <char *> address(self.memory["targets"]), <int64_t *> address(self.memory["rows"])
        e.batch_weights = address(self.memory["weights"]) if e.sample_weight != NULL else NULL
        e.blocks = address(self.memory["blocks"])
        e.grads, e.parameters = self.grads, self.parameters

    cdef void run_steps(self, Epoch *e, int threads, int *stop) noexcept:
        """The steps of an epoch by a team or, under contention, some of them by a single thread."""
        cdef intp steps = e.steps, first = e.first
        cdef const double *lrs = e.lrs
        cdef const double *decays = e.decays
        cdef uint64_t step = self.net.step
        cdef bint single
        while True:
            single = threads > 1 and self.policy.single
            self.choose_partition(1 if single else threads)
            e.net = self.net
            e.net.step, e.net.stop, e.net.polled, e.net.unpolled = step + e.done, stop, now(), 0
            start_check(&self.policy, &e.check, single, e.net.polled, e.done)
            with nogil:
                run_team(<Task> thread_epoch[float] if self.size == 4 else <Task> thread_epoch[double], e,
                         1 if single else threads)
            if threads > 1:
                update_policy(&self.policy, &e.check, single, e.done)
            if e.done == steps or e.diverged or stop[0]:
                return
            e.first, e.steps = first + e.done * e.batch_size, steps - e.done
            e.lrs = lrs + e.done if lrs != NULL else NULL
            e.decays = decays + e.done if decays != NULL else NULL

    def train(self, report, data, batches, loss_specs, update_spec, int threads):
        """Steps of one epoch over the rows that a plan.BatchPlan names.

        report is a plan.Report, which is filled after an interrupt too, that ends the work after a whole step. data is
        ``(X (n, I), y, sample_weight (n,) or None)``, loss_specs a list of one plan.LossSpec, update_spec a
        plan.UpdateSpec. A step whose loss, or whose gradient where it is clipped by its norm, is not finite is not
        applied, nor any after it.
        """
        cdef Criterion criterion
        cdef Update u
        cdef Epoch e
        cdef int stop = 0
        X, y, sample_weight = data
        (loss_spec,) = loss_specs
        read_criterion(&criterion, loss_spec)
        read_update(&u, update_spec)
        u.idle = self.net.table_count > 0 and u.clip_value == 0 and update_spec.idle
        init_shuffle(&e.order, len(X), batches.order)
        e.features, e.targets, e.target_bytes = address(X), <char *> address(y), y.nbytes // len(y)
        e.sample_weight = address_or_null(sample_weight)
        e.first, e.steps, e.batch_size = batches.first, batches.steps, batches.batch_size
        e.criterion, e.update, e.clip_norm = &criterion, &u, update_spec.clip_norm
        read_rates(&e.lr, &e.lrs, update_spec.lr, e.steps)
        read_rates(&u.weight_decay, &e.decays, update_spec.weight_decay, e.steps)
        e.loss = e.total_correct = e.done = 0
        e.diverged = self.pending = False
        self.net.step, self.net.training = batches.dropout_step, True
        self.reserve_batch(min(e.batch_size, e.order.samples - e.first))
        self.reserve_gradients(False)
        self.threads = threads = self.epoch_threads(&u, threads)
        self.reserve_epoch(&e, threads)
        try:
            self.run_steps(&e, threads, &stop)
            if stop:
                raise_pending()
        finally:
            self.choose_partition(1)
            report.loss, report.correct, report.steps = e.loss, e.total_correct, e.done

    cdef int epoch_threads(self, const Update *u, int threads) noexcept:
        """How many threads the steps of an epoch pay for."""
        cdef double work = 3 * self.work
        if not u.idle:  # a step updates every row of the tables
            work += OPERATIONS_PER_LOOKUP * self.entries / self.net.batch
        return self.team_size(work, OPERATIONS_PER_THREAD_AND_STEP, threads)
