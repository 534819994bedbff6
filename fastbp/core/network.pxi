# A Network owns the workspace of one model and runs passes and epochs in it.

cdef double SPARSE_WORK = 4  # an operation on a stored entry takes as long as so many in a tile
cdef double OPERATIONS_PER_THREAD_AND_STEP = 2e5  # the threads of an epoch are awake: a barrier takes less than 1 us

cdef struct Pass:  # a forward or backward pass over arrays of the caller, row by row
    Net net
    void *y
    const void *x
    const void *dy
    void *dx


cdef struct EpochMemory:  # as in Epoch
    void *pred
    void *dpred
    void *targets
    void *weights
    void *rows
    void *inputs
    void *blocks
    void *slots
    void *squares
    intp block_size, input_size


cdef void thread_forward(Pass *p, Thread *thread, const real *witness) noexcept nogil:
    cdef Net *net = &p.net
    cdef Range rows = thread_rows(net.batch, thread)
    cdef Slot *first = &net.slots[0]
    cdef Slot *last = dst_slot(net, &net.layers[net.count - 1])
    cdef intp inputs = first.plan.width, outputs = last.plan.width
    pack_weights(net, thread, NULL, True, False, witness)
    if not net.is_sparse:
        copy_rows(<real *> first.value, first.layout, <const real *> p.x, in_rows(inputs, witness), rows.begin,
                  rows.end, inputs)
    check_input(net, rows.begin, rows.end, witness)
    forward_rows(net, thread, rows.begin, rows.end, False, witness)
    copy_rows(<real *> p.y, in_rows(outputs, witness), <const real *> last.value, last.layout, rows.begin, rows.end,
              outputs)
    if net.training:
        commit_statistics(net, thread, witness)


cdef void thread_backward(Pass *p, Thread *thread, const real *witness) noexcept nogil:
    cdef Net *net = &p.net
    cdef Range rows = thread_rows(net.batch, thread)
    cdef Slot *first = &net.slots[0]
    cdef Slot *last = dst_slot(net, &net.layers[net.count - 1])
    cdef intp inputs = first.plan.width, outputs = last.plan.width
    pack_weights(net, thread, NULL, False, True, witness)
    if last.grad != NULL:
        copy_rows(<real *> last.grad, last.layout, <const real *> p.dy, in_rows(outputs, witness), rows.begin,
                  rows.end, outputs)
    backward_rows(net, thread, rows.begin, rows.end, witness)
    if p.dx != NULL:
        copy_rows(<real *> p.dx, in_rows(inputs, witness), <const real *> first.grad, first.layout, rows.begin,
                  rows.end, inputs)
    if net.parameter_gradients:
        barrier(thread)
        thread_gradients(net, thread, witness)


cdef class Network:
    """Runs a program over the flat buffers values and grads (n,) and stats (s,)."""

    cdef Net net
    cdef object owned        # keeps alive what the layers point to
    cdef object memory       # the arrays of the workspace, by what they hold
    cdef intp size           # of a number in bytes: 4 or 8
    cdef intp parameters
    cdef double work         # operations of a forward pass, per sample, for the input that it was given last
    cdef double input_work, other_work  # of layers that read a dense input, and of all others
    cdef double entries      # of an embedding's tables
    cdef intp blocks         # of all weights
    cdef EpochMemory epoch
    cdef intp batch_capacity, gradient_capacity, epoch_capacity  # samples
    cdef bint has_input_gradient  # whether the memory of a backward pass has place for the gradient of the input
    cdef intp longest_row    # of a weight
    cdef int thread_capacity
    cdef readonly double density  # of the last input: the share of its entries that is stored
    cdef readonly int threads  # of the last epoch's team, if there was no contention
    cdef Trial trial
    cdef int lock            # of the workspace, for predictions
    cdef bint pending        # whether it holds a forward pass that waits for its backward pass
    cdef Epoch *at_work      # the steps that are done now, or NULL
    cdef readonly long long passes  # forward passes in training
    cdef list spares         # networks whose workspaces serve predictions meanwhile

    def __init__(self, ops, slots, tables, values, grads, stats):
        cdef const Op *records = <const Op *> matrix(ops, sizeof(Op)).data
        cdef const SlotPlan *plans = <const SlotPlan *> matrix(slots, sizeof(SlotPlan)).data
        cdef const Table *table_records = <const Table *> matrix(tables, sizeof(Table)).data
        cdef Layer *layer
        cdef int i
        self.owned = (ops, slots, tables, values, grads, stats)
        self.memory, self.spares = {}, []
        self.size = values.itemsize
        self.net.values, self.net.grads, self.parameters = address(values), address(grads), values.size
        self.net.count, self.net.slot_count, self.net.table_count = <int> len(ops), <int> len(slots), <int> len(tables)
        self.net.layers = <Layer *> self.allocate("layers", self.net.count * sizeof(Layer))
        self.net.slots = <Slot *> self.allocate("slots", self.net.slot_count * sizeof(Slot))
        self.net.tables = table_records
        for i in range(self.net.table_count):
            self.entries += table_records[i].rows * table_records[i].dim
        for i in range(self.net.slot_count):
            self.net.slots[i].plan = plans[i]
        for i in range(self.net.count):
            check_op(&records[i], self.net.slot_count)
            layer = &self.net.layers[i]
            layer.op, layer.kind = records[i], find_kind(kind_name(&records[i]), self.size)
            layer.by_columns = layer.kind.by_columns
            if layer.kind.operations != NULL:
                if layer.op.src == 0:
                    self.input_work += layer.kind.operations(&layer.op)
                else:
                    self.other_work += layer.kind.operations(&layer.op)
            self.longest_row = max(self.longest_row, layer.op.outputs)
            layer.first_block = self.blocks
            self.blocks += most_blocks(layer, <float *> NULL) if self.size == 4 else most_blocks(layer, <double *> NULL)
            layer.weight, layer.bias = self.tensor(values, layer.op.weight), self.tensor(values, layer.op.bias)
            layer.dweight, layer.dbias = self.tensor(grads, layer.op.weight), self.tensor(grads, layer.op.bias)
            layer.stats = self.tensor(stats, layer.op.stats)
        self.work = self.input_work + self.other_work

    cdef void *allocate(self, what, size_t bytes_) except? NULL:
        """Memory, zeroed, that lives as long as the workspace or until the same is allocated again."""
        array = aligned(bytes_, "uint8")
        array[:] = 0
        self.memory[what] = array
        return address(array)

    cdef void *tensor(self, flat, intp offset) except? NULL:
        """A tensor of a flat buffer, NULL where the op has none."""
        return <char *> address(flat) + offset * self.size if offset >= 0 else NULL

    cdef reserve(self, intp batch, bint backward):
        """Lay out and allocate the memory of one kind of pass; what it had before is given back first."""
        cdef Arena arena
        what = "backward" if backward else "forward"
        arena.base, arena.size = NULL, 0
        self.memory.pop(what, None)
        if self.size == 4:
            reserve_memory(&self.net, &arena, batch, backward, <float *> NULL)
        else:
            reserve_memory(&self.net, &arena, batch, backward, <double *> NULL)
        arena.base, arena.size = <char *> self.allocate(what, arena.size), 0
        if self.size == 4:
            reserve_memory(&self.net, &arena, batch, backward, <float *> NULL)
        else:
            reserve_memory(&self.net, &arena, batch, backward, <double *> NULL)

    cdef const void *read_input(self, x, bint trains) except? NULL:
        """Where a dense x begins; sparse rows, which the caller keeps alive, are read by layers of another kind."""
        cdef Net *net = &self.net
        cdef Layer *layer
        cdef bint sparse = isinstance(x, CSR)
        if sparse != net.is_sparse:
            net.is_sparse, net.batch = sparse, 0
            self.batch_capacity = self.gradient_capacity = self.epoch_capacity = 0  # until there is memory
            self.work = self.input_work + self.other_work
            for layer in net.layers[:net.count]:
                if layer.op.src == 0:
                    layer.kind = find_kind("sparse" if sparse else kind_name(&layer.op), self.size)
        self.density = x.density if sparse else 1
        if not sparse:
            return address(x)
        net.sparse.values, net.sparse.columns = address(x.values), <const int32_t *> address(x.columns)
        net.sparse.starts, net.sparse.rows = <const int64_t *> address(x.starts), NULL
        if trains:
            net.sparse.sample, net.sparse.sampled = <const int32_t *> address(x.sample), len(x.sample)
        self.work = self.other_work + SPARSE_WORK * self.density * self.input_work
        return NULL

    cdef prepare(self, intp batch, bint training, bint backward, bint input_gradient, bint epoch):
        """Reserve memory for a pass, and lay out the slots where that of before was another; an epoch packs weights."""
        cdef Net *net = &self.net
        cdef Layer *layer
        cdef bint packs = epoch and batch > FEW_ROWS_OF_EPOCH
        cdef bint same = (batch == net.batch and training == net.training and input_gradient == net.input_gradient and
                          packs == net.packs)
        net.packs, net.training, net.input_gradient = packs, training, input_gradient
        if batch > self.batch_capacity or packs > net.has_panels:
            net.batch = self.batch_capacity = self.gradient_capacity = 0  # until there is memory
            net.has_panels = net.has_panels or packs
            self.reserve(batch, False)
            same, self.batch_capacity = False, batch
        if backward and (self.batch_capacity > self.gradient_capacity or input_gradient > self.has_input_gradient):
            net.batch = self.gradient_capacity = 0
            self.reserve(self.batch_capacity, True)
            same, self.gradient_capacity, self.has_input_gradient = False, self.batch_capacity, input_gradient
        if same:
            return
        for layer in net.layers[:net.count]:
            layer.panels = layer.own_panels if packs else NULL
            layer.transposed = layer.own_transposed if packs else NULL
        if self.size == 4:
            set_batch(net, batch, <float *> NULL)
        else:
            set_batch(net, batch, <double *> NULL)

    def forward(self, y, x, uint64_t step, bint training, int threads):
        """y (B, O) = network(x (B, I)); in training it keeps what the backward pass needs. step selects dropout masks.

        Outside of training any number of threads may call it at once; what a backward pass waits for is not touched.
        """
        cdef Network spare
        if training:
            self.pending = False
            self.run_forward(y, x, step, True, threads)
            self.pending = True
            self.passes += 1
            return
        if self.at_work != NULL:
            self.publish()
        if not self.pending and self.at_work == NULL and try_lock(&self.lock):
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
        self.net.step = step
        work.x = self.read_input(x, training)
        self.prepare(x.shape[0], training, False, False, False)
        work.net, work.y = self.net, address(y)
        threads = call_team(self.work * max(self.net.batch, <intp> ROWS_PER_WEIGHT), threads)
        self.choose_partition(threads)
        with nogil:
            run_team(<Task> thread_forward[float] if self.size == 4 else <Task> thread_forward[double], &work, threads)

    def backward(self, dx, dy, bint parameter_gradients, int threads):
        """From dy (B, O), the gradient of the last y: grads, if asked for, and dx (B, I) if it is not None."""
        cdef Pass work
        self.net.parameter_gradients = parameter_gradients
        self.prepare(dy.shape[0], True, True, dx is not None, False)
        work.net, work.dy, work.dx = self.net, address(dy), address_or_null(dx)
        threads = call_team(2 * self.work * max(self.net.batch, <intp> ROWS_PER_WEIGHT), threads)
        self.choose_partition(threads)
        with nogil:
            run_team(<Task> thread_backward[float] if self.size == 4 else <Task> thread_backward[double], &work,
                     threads)
        self.pending = False

    def publish(self):
        """In the middle of an epoch, for a signal handler that reads the weights: those of the steps done so far.

        Thread 0 of the team is here, so that the others read panels, and no step ends.
        """
        cdef WeightPass work
        cdef Thread alone
        if self.at_work == NULL:
            return
        memset(&work, 0, sizeof(WeightPass))
        memset(&alone, 0, sizeof(Thread))
        alone.team_size = 1
        if self.size == 4:
            unpack_weights(&self.at_work.net, &alone, &work, <float *> NULL)
        else:
            unpack_weights(&self.at_work.net, &alone, &work, <double *> NULL)

    def record_times(self, times):
        """Add up where the time goes: seconds in gather, loss and waiting, then forward, dx and dweight of each layer.

        times (3 + 3 * layers,) float64, or None to stop.
        """
        self.net.times = <double *> address_or_null(times)
        self.memory["times"] = times

    cdef choose_partition(self, int threads):
        """Choose the layers whose passes are shared by columns: then no other core reads a thread's weights.

        Each thread needs all rows of x, or of dy, for it, and waits for the others. Wide layers are shared so on the
        way forward where weights are packed, and in all passes where they are not and are more than the rows.
        """
        cdef bint packs = self.net.packs
        cdef Layer *layer
        for layer in self.net.layers[:self.net.count]:
            layer.by_columns = layer.kind.by_columns or (
                layer.kind.splits_columns and self.has_panels_for(layer.op.outputs, threads) and
                (layer.panels != NULL if packs else self.net.batch <= layer.op.outputs))
            layer.dx_by_columns = layer.kind.by_columns or (
                layer.kind.splits_columns and self.has_panels_for(layer.op.inputs, threads) and
                not packs and self.net.batch <= layer.op.inputs)

    cdef bint has_panels_for(self, intp columns, int threads) noexcept:
        """Whether columns are enough to share them."""
        return threads > 1 and columns * self.size // (2 * VECTOR_BYTES) >= 2 * threads

    cdef void lay_out_epoch(self, Arena *arena) noexcept:
        """For a batch as the loss reads it, and for every thread: rows, an input, slots, a block of gradients."""
        cdef EpochMemory *m = &self.epoch
        cdef intp batch = self.epoch_capacity, threads = self.thread_capacity, size = self.size
        cdef intp outputs = dst_slot(&self.net, &self.net.layers[self.net.count - 1]).plan.width
        m.pred, m.dpred = take(arena, batch * outputs * size), take(arena, batch * outputs * size)
        m.targets, m.weights = take(arena, batch * max(8, outputs * size)), take(arena, batch * outputs * size)
        m.block_size = VECTOR_BYTES // size * 2 * max(<intp> BLOCK_COLUMNS_BYTES // size, self.longest_row)
        m.input_size = 0 if self.net.is_sparse else panel_bytes(batch, self.net.slots[0].plan.width, size) // size
        m.blocks = take(arena, threads * m.block_size * size)
        m.inputs = take(arena, (threads - 1) * m.input_size * size)
        m.rows = take(arena, threads * 2 * batch * sizeof(int64_t))
        m.slots = take(arena, threads * self.net.slot_count * sizeof(Slot))
        m.squares = take(arena, self.blocks * sizeof(double))

    cdef reserve_epoch(self, Epoch *e, int threads):
        """Reserve memory for the steps of an epoch."""
        cdef Arena arena
        cdef intp batch
        if self.net.batch > self.epoch_capacity or threads > self.thread_capacity:
            batch, threads = max(self.net.batch, self.epoch_capacity), max(threads, self.thread_capacity)
            self.epoch_capacity, self.thread_capacity = batch, threads
            arena.base, arena.size = NULL, 0
            self.lay_out_epoch(&arena)
            self.epoch_capacity = self.thread_capacity = 0  # until there is memory
            self.memory.pop("epoch", None)
            arena.base, arena.size = <char *> self.allocate("epoch", arena.size), 0
            self.epoch_capacity, self.thread_capacity = batch, threads
            self.lay_out_epoch(&arena)
        e.pred, e.dpred, e.batch_targets = self.epoch.pred, self.epoch.dpred, <char *> self.epoch.targets
        e.batch_weights = self.epoch.weights if e.sample_weight != NULL else NULL
        e.rows, e.rows_size = <int64_t *> self.epoch.rows, 2 * self.epoch_capacity
        e.inputs, e.inputs_size = self.epoch.inputs, self.epoch.input_size
        e.blocks, e.block_size, e.slots = self.epoch.blocks, self.epoch.block_size, <Slot *> self.epoch.slots
        e.squares, e.square_count = <double *> self.epoch.squares if e.decays != NULL else NULL, self.blocks
        if e.squares != NULL:  # other kinds of layers leave theirs
            memset(e.squares, 0, self.blocks * sizeof(double))
        e.state_in_blocks = e.steps >= MIN_STEPS_TO_REORDER
        e.grads, e.parameters = self.net.grads, self.parameters

    cdef void run_steps(self, Epoch *e, int threads, bint may_try, int *stop) noexcept:
        """The steps of an epoch by a team or, where that is faster, by a single thread (contention.pxi)."""
        cdef intp steps = e.steps, first = e.first
        cdef const double *lrs = e.lrs
        cdef const double *decays = e.decays
        cdef uint64_t step = self.net.step
        cdef bint single, trial
        cdef double time
        while True:
            time = now()
            single, trial = threads > 1 and CONTENTION.single, False
            if may_try and not single:
                trial = tries(&self.trial, e.batch_size, threads, time)
                single = self.trial.left % 2 == 0 if trial else self.trial.single
                if trial and e.steps >= 2 * STEPS_PER_TRIAL:  # a few steps that are left over say little
                    e.steps = STEPS_PER_TRIAL
            self.choose_partition(1 if single else threads)
            e.net = self.net
            e.net.step, e.net.stop, e.net.polled, e.net.unpolled = step + e.done, stop, time, 0
            start_check(&e.check, trial, 0 if trial or not single else self.trial.until if may_try and not
                        CONTENTION.single else CONTENTION.until, time, e.done)
            with nogil:
                run_team(<Task> thread_epoch[float] if self.size == 4 else <Task> thread_epoch[double], e,
                         1 if single else threads)
            self.threads = 1 if single and not CONTENTION.single else threads
            if trial:
                end_trial(&self.trial, <void *> self, &e.check, single, e.done)
            elif threads > 1:
                update_policy(<void *> self, &e.check, single, e.done)
            if e.done == steps or e.diverged or stop[0] or has_ended(e.reduction):
                return
            e.first, e.steps = first + e.done * e.batch_size, steps - e.done
            e.lrs = lrs + e.done if lrs != NULL else NULL
            e.decays = decays + e.done if decays != NULL else NULL

    def train(self, report, data, batches, loss_specs, update_spec, reducer, int threads):
        """Steps of one epoch over the rows that a plan.BatchPlan names.

        report is a plan.Report, which is filled after an interrupt too, that ends the work after a whole step. data is
        ``(X (n, I), y, sample_weight (n,), (n, O) or None)``, loss_specs a list of one plan.LossSpec, update_spec a
        plan.UpdateSpec. A step whose loss, or whose gradient where it is clipped by its norm, is not finite is not
        applied, nor any after it. reducer, if there is one, adds up the gradients of several processes
        (reduction.pxi).
        """
        cdef Criterion criterion
        cdef Update u
        cdef Epoch e
        cdef Reduction reduction
        cdef PythonReducer adapter = None
        cdef int stop = 0
        cdef double work
        cdef bint may_try
        X, y, sample_weight = data
        (loss_spec,) = loss_specs
        read_criterion(&criterion, loss_spec, y, sample_weight)
        read_update(&u, update_spec)
        u.idle = u.clip_value == 0 and update_spec.idle and reducer is None
        init_shuffle(&e.order, len(X), batches.order)
        e.features, e.targets, e.target_bytes = self.read_input(X, True), <char *> address(y), y.nbytes // len(y)
        e.sample_weight = address_or_null(sample_weight)
        e.first, e.steps, e.batch_size = batches.first, batches.steps, batches.batch_size
        e.criterion, e.update, e.clip_norm = &criterion, &u, update_spec.clip_norm
        read_rates(&e.lr, &e.lrs, update_spec.lr, e.steps)
        read_rates(&u.weight_decay, &e.decays, update_spec.weight_decay, e.steps)
        e.loss = e.penalty = e.weighted_loss = e.total_weight = e.total_correct = e.done = e.invalid = 0
        e.diverged = self.pending = False
        e.invalid_row = -1
        e.reduction = NULL
        if reducer is not None:
            e.reduction = &reduction
            adapter = self.start_reduction(&reduction, reducer)
        self.net.step, self.net.parameter_gradients = batches.dropout_step, True
        self.prepare(min(e.batch_size, e.order.samples - e.first), True, True, False, e.steps >= MIN_STEPS_TO_REORDER)
        work = self.step_work(&u)
        may_try = threads < 0 and work < TRIED_OPERATIONS
        threads = team_size(work, OPERATIONS_PER_THREAD_AND_STEP, abs(threads))
        self.reserve_epoch(&e, threads)
        self.at_work = &e
        try:
            self.run_steps(&e, threads, may_try and threads > 1, &stop)
            if adapter is not None and adapter.error is not None:
                raise adapter.error
            if stop:
                raise_interrupt()
            if e.reduction != NULL and reduction.failed:
                raise RuntimeError("the reducer could not go on: a function of it returned an error")
            report.stopped = has_ended(e.reduction)
        finally:
            self.at_work = NULL
            self.choose_partition(1)
            report.loss, report.correct, report.steps = e.loss, e.total_correct, e.done
            report.weighted_loss, report.weight, report.penalty = e.weighted_loss, e.total_weight, e.penalty
            report.invalid_row = e.invalid_row

    cdef PythonReducer start_reduction(self, Reduction *r, reducer):
        """Divide the gradients into buckets of layers that follow each other."""
        cdef PythonReducer adapter
        cdef Bucket *b
        cdef const Op *op
        cdef int i
        header = aligned(HEADER, "float64")
        adapter = PythonReducer(reducer, header, self.owned[4])
        self.memory["header"] = header
        r.reducer, r.header, r.failed = read_reducer(reducer, adapter), <double *> address(header), 0
        r.buckets = b = <Bucket *> self.allocate("buckets", self.net.count * sizeof(Bucket))
        r.header[3] = 0
        for i in range(self.net.count):
            op = &self.net.layers[i].op
            if op.begin < op.end and b.size * self.size >= BUCKET_BYTES:
                b += 1
                b.first, b.begin = i, (b - 1).begin + (b - 1).size
            b.end, b.size = i + 1, max(b.begin + b.size, op.end) - b.begin
        r.bucket_count = <int> (b - r.buckets) + 1
        return adapter

    cdef double step_work(self, const Update *u) noexcept:
        """The operations of a step of an epoch."""
        cdef double work = 3 * self.work * max(self.net.batch, <intp> ROWS_PER_WEIGHT), weights
        if u.idle:
            return work
        weights = self.entries + (self.input_work / 2 if self.net.is_sparse else 0)
        return work + OPERATIONS_PER_LOOKUP * weights  # it updates every row of the tables, or of such a weight
