# The door to a plan: a Network owns the workspace of one model and runs passes and epochs in it.

cdef double OPERATIONS_PER_THREAD_AND_CALL = 1e6  # a call has to wake its threads, which takes microseconds
cdef double OPERATIONS_PER_LOOK_UP = 10      # of a number in a table, and of the update of one: the time of so many
cdef double OPERATIONS_PER_THREAD_AND_STEP = 2e5  # an epoch's threads are awake: they meet in a fraction of one

cdef struct Pass:  # a forward or backward pass over arrays of the caller, row by row
    Net net
    void *y
    const void *x
    const void *dy
    void *dx


# Whether somebody else wants the cores: a thread that is not on its core keeps all others waiting, step by step. A team
# that has lost half of its time is disbanded and a single thread goes on for a while, then the team again; or the team
# at once, and in peace for as long, if alone is no faster. Every time the while is twice as long. No bit depends on it.
cdef struct Crowd:
    bint alone           # whether a single thread is to work
    double until         # when that ends, or the peace of the team
    double trial         # for how long, the next time
    double speed         # steps per second of the team that was disbanded
    double lost, spent   # of the team, in seconds, in calls too short to tell
    intp steps           # in these


cdef void begin_watch(Crowd *crowd, Epoch *e, bint alone) noexcept:
    """Tell the team from when on it is watched, or a single thread when its time is over."""
    cdef double time = e.net.polled
    e.disturbed, e.disband, e.deadline = 0, 0, crowd.until if alone else 0
    e.peace = 1e300 if alone else crowd.until
    e.began, e.lost, e.counted = time - crowd.spent, crowd.lost, e.done - crowd.steps


cdef void judge(Crowd *crowd, Epoch *e, bint alone) noexcept:
    """Who is to work next, after what was seen of a team or of a single thread."""
    cdef double time = now(), spent = time - e.began
    cdef double speed = (e.done - e.counted) / (spent + 1e-9)
    if alone:
        if time < crowd.until:
            return
        crowd.alone, crowd.until = False, time + crowd.trial if speed < crowd.speed else 0
        crowd.trial = min(MOST_TRIAL, 2 * crowd.trial)
    elif e.disband or (time > crowd.until and e.lost > LEAST_LOSS and e.lost > 0.5 * spent):
        crowd.trial = max(LEAST_TRIAL, crowd.trial)
        crowd.alone, crowd.until, crowd.speed = True, time + crowd.trial, speed
    elif spent < LEAST_TRIAL:
        crowd.lost, crowd.spent, crowd.steps = e.lost, spent, e.done - e.counted
        return
    elif time > crowd.until:
        crowd.trial = 0
    crowd.lost = crowd.spent = crowd.steps = 0


cdef void forward_share(Pass *p, Share *me, const real *_) noexcept nogil:
    cdef Net *net = &p.net
    cdef intp begin = first_row(net.batch, me.number, me.team), end = first_row(net.batch, me.number + 1, me.team)
    cdef Layer *last = &net.layers[net.count - 1]
    pack_weights(net, me, True, False, _)
    copy_rows(<real *> net.x, net.layout, <const real *> p.x, in_rows(net.layers[0].op.inputs, _), begin, end,
              net.layers[0].op.inputs)
    forward_rows(net, me, begin, end, _)
    copy_rows(<real *> p.y, in_rows(last.op.outputs, _), <const real *> last.y, net.layout, begin, end,
              last.op.outputs)
    if net.training:
        track_statistics(net, me, _)


cdef void backward_share(Pass *p, Share *me, const real *_) noexcept nogil:
    cdef Net *net = &p.net
    cdef intp begin = first_row(net.batch, me.number, me.team), end = first_row(net.batch, me.number + 1, me.team)
    cdef Layer *last = &net.layers[net.count - 1]
    pack_weights(net, me, False, True, _)
    copy_rows(<real *> last.dy, net.layout, <const real *> p.dy, in_rows(last.op.outputs, _), begin, end,
              last.op.outputs)
    backward_rows(net, me, begin, end, _)
    if p.dx != NULL:
        copy_rows(<real *> p.dx, in_rows(net.layers[0].op.inputs, _), <const real *> net.dx, net.layout, begin, end,
                  net.layers[0].op.inputs)
    meet(me)
    gradients_share(net, me, _)


cdef class Network:
    """Runs a plan over the flat buffers values and grads (n,) and stats (s,), and the embedding's tables (t,)."""

    cdef Net net
    cdef object owned        # keeps alive what the layers point to
    cdef object memory       # the arrays of the workspace, by what they hold
    cdef bint single
    cdef void *values
    cdef void *grads
    cdef intp parameters
    cdef double work         # operations of a forward pass, per sample
    cdef double entries      # of an embedding's tables
    cdef intp batch_capacity, gradient_capacity, epoch_capacity  # samples
    cdef intp longest_row    # of a weight
    cdef int thread_capacity
    cdef readonly int threads  # that the last epoch was worth
    cdef Crowd crowd
    cdef int taken           # whether a thread that predicts is in this workspace
    cdef bint pending        # whether it has a forward pass that waits for its backward pass
    cdef list spares         # networks whose workspaces serve predictions while that is so

    def __init__(self, ops, values, grads, stats, tables):
        cdef const Op[::1] records = ops
        cdef const Table[::1] of_tables = tables
        cdef int i
        self.owned = (ops, values, grads, stats, tables)
        self.memory, self.spares = {}, []
        self.single = values.dtype.itemsize == 4
        self.values, self.grads, self.parameters = address(values), address(grads), values.size
        self.net.count = <int> records.shape[0]
        self.net.layers = <Layer *> self.take("layers", self.net.count * sizeof(Layer))
        self.net.table_count = <int> of_tables.shape[0]
        if self.net.table_count > 0:
            self.net.tables = &of_tables[0]
            for i in range(self.net.table_count):
                self.entries += of_tables[i].rows * of_tables[i].dim
        for i in range(self.net.count):
            self.net.layers[i].op = records[i]
            self.work += 2.0 * records[i].inputs * records[i].outputs if records[i].kind == DENSE else 0
            self.work += OPERATIONS_PER_LOOK_UP * records[i].outputs if records[i].kind == EMBEDDING else 0
            self.longest_row = max(self.longest_row, records[i].outputs)
            self.bind(&self.net.layers[i], address(stats))

    cdef void *take(self, what, size_t bytes_) except? NULL:
        """Memory, zeroed, that lives as long as the workspace or until the same is taken again."""
        array = aligned(bytes_, "uint8")
        array[:] = 0
        self.memory[what] = array
        return address(array)

    cdef void *offset(self, void *base, intp elements) noexcept:
        """A tensor of a flat buffer, NULL where the op has none."""
        return <char *> base + elements * (4 if self.single else 8) if elements >= 0 else NULL

    cdef int bind(self, Layer *layer, void *stats) except -1:
        """Point a layer to its parameters, and to panels of its weight if its rows are too long to be read in place."""
        cdef Op *op = &layer.op
        layer.weight, layer.dweight = self.offset(self.values, op.weight), self.offset(self.grads, op.weight)
        layer.bias, layer.dbias = self.offset(self.values, op.bias), self.offset(self.grads, op.bias)
        layer.stats = self.offset(stats, op.stats)
        if op.kind == EMBEDDING:
            layer.weight, layer.dweight = self.values, self.grads
        if op.kind == DENSE and not (reads_in_place(op, <float *> NULL) if self.single else
                                     reads_in_place(op, <double *> NULL)):
            layer.panels = self.take(("panels", op.weight), self.in_panels_bytes(op.inputs, op.outputs))
        return 0

    cdef intp in_panels_bytes(self, intp rows, intp n) noexcept:
        """Bytes of a matrix in panels, rounded up to whole cache lines."""
        if self.single:
            return ceil_div(panels_size(rows, n, <float *> NULL) * sizeof(float), 64) * 64
        return ceil_div(panels_size(rows, n, <double *> NULL) * sizeof(double), 64) * 64

    cdef begin_batch(self, intp batch):
        """Make room for the activations of a batch; it is kept from step to step."""
        cdef int i
        cdef Layer *layer
        self.net.batch = batch
        self.net.layout = in_panels(batch, <float *> NULL) if self.single else in_panels(batch, <double *> NULL)
        if batch <= self.batch_capacity:
            return
        self.net.x = self.take("x", self.in_panels_bytes(batch, self.net.layers[0].op.inputs))
        for i in range(self.net.count):
            layer = &self.net.layers[i]
            layer.y = self.take(("y", i), self.in_panels_bytes(batch, layer.op.outputs))
            if layer.op.kind == DENSE and (layer.op.activation == GELU or layer.op.activation == SILU):
                layer.z = self.take(("z", i), self.in_panels_bytes(batch, layer.op.outputs))
            if layer.op.kind == LAYERNORM:
                layer.moments = self.take(("moments", i), 2 * batch * sizeof(double))
        self.batch_capacity = batch

    cdef begin_gradients(self, bint input_gradient):
        """Make room for the batch's gradients, and for the transposed weights that they need."""
        cdef int i
        cdef Layer *layer
        for i in range(self.net.count):
            layer = &self.net.layers[i]
            if layer.op.kind == DENSE and (i > 0 or input_gradient) and layer.transposed == NULL:
                layer.transposed = self.take(("transposed", i),
                                             self.in_panels_bytes(layer.op.outputs, layer.op.inputs))
        if self.batch_capacity > self.gradient_capacity:
            for i in range(self.net.count):
                layer = &self.net.layers[i]
                layer.dy = self.take(("dy", i), self.in_panels_bytes(self.batch_capacity, layer.op.outputs))
            for i in range(self.net.count - 1, 0, -1):
                if self.net.layers[i].op.kind == ACTIVATION:  # its derivative is applied where dy lies
                    self.net.layers[i - 1].dy = self.net.layers[i].dy
            self.gradient_capacity = self.batch_capacity
        self.net.dx = NULL
        if input_gradient and self.net.layers[0].op.kind == ACTIVATION:
            self.net.dx = self.net.layers[0].dy
        elif input_gradient:
            self.net.dx = self.take("dx", self.in_panels_bytes(self.net.batch, self.net.layers[0].op.inputs))

    cdef int team(self, double work, double least, int threads) noexcept:
        """How many threads so much work is worth."""
        return <int> max(1.0, min(<double> min(threads, <int> CHUNKS), work * self.net.batch / least))

    def forward(self, y, x, uint64_t step, bint training, int threads):
        """y (B, O) = network(x (B, I)); keeps what the backward pass needs. step selects dropout's masks.

        Out of training any number of threads may be here; nothing that a backward pass waits for is touched.
        """
        cdef Network spare
        if training:
            self.pending = False
            self.run_forward(y, x, step, True, threads)
            self.pending = True
            return
        if not self.pending and take_workspace(&self.taken):
            try:
                self.run_forward(y, x, step, False, threads)
            finally:
                give_back(&self.taken)
            return
        try:
            spare = self.spares.pop()
        except IndexError:
            spare = Network(*self.owned)
        spare.run_forward(y, x, step, False, threads)
        self.spares.append(spare)

    cdef run_forward(self, y, x, uint64_t step, bint training, int threads):
        cdef Pass work
        self.begin_batch(x.shape[0])
        self.net.step, self.net.training = step, training
        work.net, work.y, work.x = self.net, address(y), address(x)
        threads = self.team(self.work, OPERATIONS_PER_THREAD_AND_CALL, threads)
        with nogil:
            run_team(<Task> forward_share[float] if self.single else <Task> forward_share[double], &work, threads)

    def backward(self, dx, dy, int threads):
        """Fill grads from dy (B, O), the gradient of the last forward's y, and dx (B, I) if it is not None."""
        cdef Pass work
        self.begin_gradients(dx is not None)
        work.net, work.dy, work.dx = self.net, address(dy), address(dx) if dx is not None else NULL
        threads = self.team(2 * self.work, OPERATIONS_PER_THREAD_AND_CALL, threads)
        with nogil:
            run_team(<Task> backward_share[float] if self.single else <Task> backward_share[double], &work, threads)
        self.pending = False

    def watch(self, spent):
        """Add up where the time goes: seconds in gather, loss and waiting, then forward, dx and dweight of each layer.

        spent (3 + 3 * layers,) float64, or None to stop.
        """
        self.net.spent = <double *> address(spent) if spent is not None else NULL
        self.memory["spent"] = spent

    cdef share_layers(self, int threads):
        """Choose the layers whose forward pass is shared by columns: then no other core reads a thread's weights.

        Each thread needs all rows of x for it, and waits for the others.
        """
        cdef int i
        cdef intp panels
        for i in range(self.net.count):
            panels = self.net.layers[i].op.outputs * (4 if self.single else 8) // (2 * VECTOR_BYTES)
            self.net.layers[i].by_columns = threads > 1 and self.net.layers[i].panels != NULL and panels >= 2 * threads

    cdef begin_epoch(self, Epoch *e, int threads):
        """Make room for a batch as the loss sees it, and for every thread's block of gradients."""
        cdef intp inputs, batch = self.net.batch, size = sizeof(float) if self.single else sizeof(double)
        cdef intp outputs = self.net.layers[self.net.count - 1].op.outputs
        if batch > self.epoch_capacity:
            self.take("pred", batch * outputs * size)
            self.take("dpred", batch * outputs * size)
            self.take("targets", batch * max(8, outputs * size))
            self.take("weights", batch * size)
            self.epoch_capacity = batch
            self.thread_capacity = 0
        e.block_size = VECTOR_BYTES // size * 2 * max(<intp> BLOCK_COLUMNS_BYTES // size, self.longest_row)
        inputs = self.in_panels_bytes(self.epoch_capacity, self.net.layers[0].op.inputs)
        if threads > self.thread_capacity:
            self.take("blocks", threads * e.block_size * size)
            self.take("rows", threads * 2 * self.epoch_capacity * sizeof(int64_t))
            self.take("inputs", (threads - 1) * inputs)
            self.thread_capacity = threads
        e.inputs, e.inputs_size, e.rows_size = address(self.memory["inputs"]), inputs // size, 2 * self.epoch_capacity
        e.state_in_blocks = e.steps >= LONG_RUN
        e.pred, e.dpred = address(self.memory["pred"]), address(self.memory["dpred"])
        e.batch_targets, e.rows = <char *> address(self.memory["targets"]), <int64_t *> address(self.memory["rows"])
        e.batch_weights = address(self.memory["weights"]) if e.sample_weight != NULL else NULL
        e.blocks = address(self.memory["blocks"])
        e.grads, e.parameters = self.grads, self.parameters

    cdef void run_steps(self, Epoch *e, int threads, int *stop) noexcept:
        """The steps of an epoch by a team or, where somebody else wants the cores, some of them alone."""
        cdef intp steps = e.steps, first = e.first
        cdef const double *lrs = e.lrs
        cdef const double *decays = e.decays
        cdef uint64_t step = self.net.step
        cdef bint alone
        while True:
            alone = threads > 1 and self.crowd.alone
            self.share_layers(1 if alone else threads)
            e.net = self.net
            e.net.step, e.net.stop, e.net.polled, e.net.unpolled = step + e.done, stop, now(), 0
            begin_watch(&self.crowd, e, alone)
            with nogil:
                run_team(<Task> train_share[float] if self.single else <Task> train_share[double], e,
                         1 if alone else threads)
            if threads > 1:
                judge(&self.crowd, e, alone)
            if e.done == steps or e.diverged or stop[0]:
                return
            e.first, e.steps = first + e.done * e.batch_size, steps - e.done
            e.lrs = lrs + e.done if lrs != NULL else NULL
            e.decays = decays + e.done if decays != NULL else NULL

    def train(self, progress, X, y, sample_weight, key, intp first, intp steps, intp batch_size, loss, update, lrs,
              decays, double clip_norm, uint64_t step, int threads):
        """Steps of one epoch over X (n, I) and y, from position `first` of its order, batch_size rows at a time.

        sample_weight (n,) may be None, key is the order's, as for ``order``, loss ``(name, parameter, class weight)``,
        update ``(rule, state vectors, settings)``, lrs (steps,) float64 or, for all steps, a float, decays (steps,)
        float64 or, for the weight decay of the settings, None, clip_norm 0 for none; step numbers the first step, for
        dropout. progress, a list, becomes the loss summed over the samples, how many were right, and the steps done,
        after an interrupt too; and where a loss, which is then added as it is, or a gradient that is clipped by its
        norm is not finite: such a step is not taken, nor any after it.
        """
        cdef Criterion criterion
        cdef Update u
        cdef Epoch e
        cdef double per_sample
        cdef int stop = 0
        fill_criterion(&criterion, loss)
        fill_update(&u, update)
        u.idle = self.net.table_count > 0 and u.clip_value == 0 and idle_without_gradient(update[0], update[2])
        begin_shuffle(&e.order, len(X), key)
        e.features, e.targets, e.target_bytes = address(X), <char *> address(y), y.nbytes // len(y)
        e.sample_weight = address(sample_weight) if sample_weight is not None else NULL
        e.first, e.steps, e.batch_size = first, steps, batch_size
        e.criterion, e.update, e.clip_norm = &criterion, &u, clip_norm
        e.lrs = NULL
        if isinstance(lrs, float):
            e.lr = lrs
        else:
            e.lrs = <const double *> address(lrs)
        e.decays = <const double *> address(decays) if decays is not None else NULL
        e.loss = e.right = e.done = 0
        e.diverged = self.pending = False
        try:
            self.begin_batch(min(batch_size, e.order.samples - first))
            self.begin_gradients(False)
            self.net.step, self.net.training = step, True
            per_sample = 3 * self.work
            if not u.idle:  # a step visits every row
                per_sample += OPERATIONS_PER_LOOK_UP * self.entries / self.net.batch
            self.threads = threads = self.team(per_sample, OPERATIONS_PER_THREAD_AND_STEP, threads)
            self.begin_epoch(&e, threads)
            self.run_steps(&e, threads, &stop)
            if stop:
                raise_signal()
        finally:
            self.share_layers(1)
            progress[:] = [e.loss, e.right, e.done]


cdef int raise_signal() except -1:
    """Hand on the exception that `interrupted` found."""
    return -1


cdef fill_criterion(Criterion *criterion, loss):
    """The loss that its recipe describes."""
    name, criterion.parameter, weight = loss
    criterion.kind = CROSS_ENTROPY if name == "cross_entropy" else ELEMENTWISE_LOSSES[name]
    criterion.weight = address(weight) if weight is not None else NULL


cdef fill_update(Update *u, update):
    """The update that an optimizer's recipe describes; what its rule does not know stays zero."""
    rule, state, settings = update
    u.rule = RULES[rule]
    u.first = address(state[0]) if state[0] is not None else NULL
    u.second = address(state[1]) if len(state) > 1 and state[1] is not None else NULL
    u.momentum, u.nesterov = settings.get("momentum", 0.0), settings.get("nesterov", False)
    u.beta1, u.beta2 = settings.get("beta1", 0.0), settings.get("beta2", 0.0)
    u.alpha, u.eps = settings.get("alpha", 0.0), settings.get("eps", 0.0)
    u.decoupled, u.step = settings.get("decoupled", False), settings.get("step", 1)
    u.eps_hat = settings.get("eps_hat", False)
    u.weight_decay, u.clip_value = settings["weight_decay"], settings.get("clip_value", 0.0)
    undecayed = settings.get("undecayed")
    u.undecayed, u.undecayed_count = NULL, 0
    if undecayed is not None:
        u.undecayed, u.undecayed_count = <const int64_t *> address(undecayed), len(undecayed)


cdef void *address(array) except? NULL:
    """Where the data of a C-contiguous array lies; whoever asks keeps the array alive."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef void *data = view.buf
    PyBuffer_Release(&view)
    return data
