# Bindings of single kernels, over arrays that Python has checked: each releases the GIL and runs a team.
#
# A layer's binding is a network of that one layer. Every function has a reference in NumPy with the same name and its
# documentation, in reference/; arguments run outputs, inputs, scalars, scratch, threads. `size` is that of a number, 4
# or 8 bytes, and selects the kernel for float or double.

cdef double ELEMENTS_PER_THREAD = 65536.0  # of an elementwise kernel; with fewer, a thread costs more than it saves

cdef struct Product:
    Matrix c
    Strided a, b
    intp block_rows, block_columns  # of c, which a thread has in panels at a time
    void *c_blocks  # for every thread
    void *a_blocks
    void *b_panels

cdef struct LayerCall:  # a network of one layer, over arrays of the caller
    Pass work
    Layer layer
    Slot slots[3]  # x, y and z; backward, the input's z

cdef struct DenseBackward:
    LayerCall call
    const void *x
    const void *x_z
    const void *dz
    void *dx

cdef struct LossCall:
    Criterion criterion
    Matrix losses, dpred, pred
    const void *targets
    const void *sample_weight  # or NULL
    double scale
    double partial[CHUNKS]

cdef struct UpdateCall:
    Update update
    Matrix param, grad
    double grad_scale

cdef struct NormCall:
    Update update  # its groups alone
    Matrix x
    double partial[CHUNKS]


cdef enum:
    PRODUCT_COLUMNS_BYTES = 2048  # of a row of c that is computed at a time: with BLOCK_ROWS rows it fits L2


cdef inline int elementwise_team(double elements, int threads) noexcept nogil:
    return team_size(elements, ELEMENTS_PER_THREAD, abs(threads))


# --- products

cdef void pack_rows(real *out, Layout layout, const Strided *src, intp begin, intp end) noexcept nogil:
    """Rows begin..end of a matrix with any strides, into panels."""
    cdef intp width = panel_width(out), i, j, q, n = src.columns
    cdef const real *data = <const real *> src.data
    cdef Layout rows
    if src.column == 1:
        rows.row, rows.panel = src.row, width
        copy_rows(out, layout, data, rows, begin, end, n)
    elif src.row == 1:
        for q in range(ceil_div(n, width)):
            transpose(out + q * layout.panel + begin * width, width, data + q * width * src.column + begin, src.column,
                      min(width, n - q * width), end - begin)
    else:
        for i in range(begin, end):
            for j in range(n):
                out[j // width * layout.panel + i * width + j % width] = data[i * src.row + j * src.column]


cdef void thread_product(Product *p, Thread *thread, const real *witness) noexcept nogil:
    """Block by block of c: the rows of a are packed just before they are used, and c is copied while it is in L2."""
    cdef Range rows = thread_part(p.a.rows, thread), b_rows = thread_part(p.b.rows, thread)
    cdef intp n = p.b.columns, k = p.a.columns, depth = block_depth(k, witness), width = panel_width(witness)
    cdef intp first, i0, i1, j0 = 0, columns
    cdef Layout layout = in_panels(p.block_rows, witness), b_layout = in_panels(p.b.rows, witness)
    cdef real *a_block = <real *> p.a_blocks + thread.number * panels_size(p.block_rows, depth, witness)
    cdef real *c_block = <real *> p.c_blocks + thread.number * panels_size(p.block_rows, p.block_columns, witness)
    cdef Strided a = p.a
    cdef Epilogue epilogue
    memset(&epilogue, 0, sizeof(Epilogue))  # no action
    pack_rows(<real *> p.b_panels, b_layout, &p.b, b_rows.begin, b_rows.end)
    barrier(thread)
    while j0 < n:
        i0, columns = rows.begin, min(p.block_columns, n - j0)
        while i0 < rows.end:
            i1, first = min(i0 + p.block_rows, rows.end), 0
            while first == 0 or first < k:
                a.columns = min(depth, k - first)
                a.data = <real *> p.a.data + i0 * a.row + first * a.column
                pack_rows(a_block, layout, &a, 0, i1 - i0)
                multiply_block(c_block, a_block - first // width * layout.panel, layout,
                               <real *> p.b_panels + j0 // width * b_layout.panel, b_layout, 0, i1 - i0, columns, first,
                               depth, k, &epilogue)
                first += depth
            copy_rows(<real *> p.c.data + i0 * n + j0, in_rows(n, witness), c_block, layout, 0, i1 - i0, columns)
            i0 = i1
        j0 += columns


cdef inline void *scratch_panels(char **scratch, intp rows, intp n, intp size) noexcept nogil:
    """The next piece of scratch: a (rows, n) matrix in panels."""
    cdef char *begin = scratch[0]
    scratch[0] += panel_bytes(rows, n, size)
    return begin


def scratch_bytes(intp m, intp n, intp k, dtype):
    cdef intp rows, columns, size = dtype.itemsize, total = 0
    for rows, columns in [(m, n), (m, n), (m, k), (m, k), (m, k), (k, n), (n, k), (1, n)]:
        total += panel_bytes(rows, columns, size)
    return total


def product_scratch_bytes(intp m, intp n, intp k, dtype, int threads):
    cdef intp size = dtype.itemsize
    cdef intp rows = min(m + threads, threads * (BLOCK_ROWS_BYTES // size)) + threads  # and gaps between panels
    return (panel_bytes(rows, min(n, PRODUCT_COLUMNS_BYTES // size), size) + panel_bytes(rows, k, size) +
            panel_bytes(k, n, size))


def matmul(c, a, b, scratch, int threads):
    cdef intp size = c.itemsize
    cdef char *free = <char *> address(scratch)
    cdef Product p
    p.c, p.a, p.b = output(c, size), strided(a, size), strided(b, size)
    threads = call_team(2.0 * p.a.rows * p.a.columns * p.b.columns, threads)
    p.block_rows = min(ceil_div(p.a.rows, threads), BLOCK_ROWS_BYTES // size)
    p.block_columns = min(p.c.columns, PRODUCT_COLUMNS_BYTES // size)
    p.c_blocks = scratch_panels(&free, threads * (p.block_rows + 1), p.block_columns, size)
    p.a_blocks = scratch_panels(&free, threads * (p.block_rows + 1), p.a.columns, size)
    p.b_panels = scratch_panels(&free, p.b.rows, p.b.columns, size)
    with nogil:
        run_team(<Task> thread_product[float] if size == 4 else <Task> thread_product[double], &p, threads)


# --- layers

cdef void thread_layer_forward(LayerCall *call, Thread *thread, const real *witness) noexcept nogil:
    cdef Net *net = &call.work.net
    cdef Range rows = thread_rows(net.batch, thread)
    forward_rows(net, thread, rows.begin, rows.end, False, witness)
    if net.training:
        commit_statistics(net, thread, witness)


cdef void thread_layer_backward(LayerCall *call, Thread *thread, const real *witness) noexcept nogil:
    cdef Net *net = &call.work.net
    cdef Range rows = thread_rows(net.batch, thread)
    backward_rows(net, thread, rows.begin, rows.end, witness)
    barrier(thread)
    thread_gradients(net, thread, witness)


cdef void run_layer_forward(LayerCall *call, intp size, int threads) noexcept nogil:
    threads = elementwise_team(<double> call.work.net.batch * call.layer.op.outputs, threads)
    run_team(<Task> thread_layer_forward[float] if size == 4 else <Task> thread_layer_forward[double], call, threads)


cdef void run_layer_backward(LayerCall *call, intp size, int threads) noexcept nogil:
    threads = elementwise_team(<double> call.work.net.batch * call.layer.op.outputs, threads)
    run_team(<Task> thread_layer_backward[float] if size == 4 else <Task> thread_layer_backward[double], call, threads)


cdef Layer *init_call(LayerCall *call, str kind, Matrix x, intp outputs, intp size) except NULL:
    """A layer of a kind, from x to so many outputs; all lie row by row where that is as good as panels."""
    cdef Net *net = &call.work.net
    cdef int i
    memset(call, 0, sizeof(LayerCall))
    net.layers, net.count, net.slots, net.slot_count = &call.layer, 1, call.slots, 3
    net.batch, net.training, net.parameter_gradients = x.rows, True, True
    call.layer.kind = find_kind(kind, size)
    call.layer.by_columns = call.layer.dx_by_columns = call.layer.kind.by_columns
    call.layer.op.inputs, call.layer.op.outputs = x.columns, outputs
    call.layer.op.dst, call.layer.op.z, call.layer.op.input_z = 1, -1, -1
    for i in range(3):
        call.slots[i].rows, call.slots[i].plan.width = x.rows, x.columns if i == 0 else outputs
        call.slots[i].layout = (in_rows(x.columns, <float *> NULL) if size == 4 else
                                in_rows(x.columns, <double *> NULL))
    call.slots[0].value = x.data
    return &call.layer


cdef void copy_from_panels(Matrix out, const void *panels, intp size) noexcept nogil:
    if size == 4:
        copy_rows(<float *> out.data, in_rows(out.columns, <float *> NULL), <const float *> panels,
                  in_panels(out.rows, <float *> NULL), 0, out.rows, out.columns)
    else:
        copy_rows(<double *> out.data, in_rows(out.columns, <double *> NULL), <const double *> panels,
                  in_panels(out.rows, <double *> NULL), 0, out.rows, out.columns)


cdef void use_panels(LayerCall *call, intp size) noexcept:
    cdef int i
    for i in range(3):
        call.slots[i].layout = panel_layout(call.work.net.batch, size)


def dense_forward(y, z, x, weight, bias, int activation, scratch, int threads):
    cdef intp size = x.itemsize
    cdef char *free = <char *> address(scratch)
    cdef Matrix from_x = matrix(x, size), to_y = output(y, size), to_z = output(z, size), w = matrix(weight, size)
    cdef Matrix b = matrix(bias, size)
    cdef LayerCall call
    cdef Layer *layer = init_call(&call, "dense", from_x, w.columns, size)
    check_activation(activation)
    use_panels(&call, size)
    call.work.x, call.work.y = from_x.data, to_y.data
    layer.op.activation, layer.weight = activation, w.data
    if b.data != NULL:  # a kernel reads whole registers of it
        layer.bias = scratch_panels(&free, 1, b.columns, size)
        memcpy(layer.bias, b.data, b.columns * size)
    call.slots[1].value = scratch_panels(&free, to_y.rows, to_y.columns, size)
    call.slots[0].value = scratch_panels(&free, to_y.rows, w.rows, size)
    layer.panels = scratch_panels(&free, w.rows, w.columns, size)
    if to_z.data != NULL:
        layer.op.z, call.slots[2].value = 2, scratch_panels(&free, to_y.rows, to_y.columns, size)
    threads = call_team(2.0 * to_y.rows * w.rows * w.columns, threads)
    with nogil:
        run_team(<Task> thread_forward[float] if size == 4 else <Task> thread_forward[double], &call.work, threads)
        if to_z.data != NULL:
            copy_from_panels(to_z, call.slots[2].value, size)


cdef void thread_dense_backward(DenseBackward *d, Thread *thread, const real *witness) noexcept nogil:
    cdef Net *net = &d.call.work.net
    cdef Slot *first = &net.slots[0]
    cdef Slot *last = &net.slots[1]
    cdef Range rows = thread_rows(net.batch, thread)
    cdef intp inputs = first.plan.width, outputs = last.plan.width
    cdef Layout x_layout = in_rows(inputs, witness)
    pack_weights(net, thread, NULL, False, True, witness)
    copy_rows(<real *> first.value, first.layout, <const real *> d.x, x_layout, rows.begin, rows.end, inputs)
    if d.x_z != NULL:
        copy_rows(<real *> net.slots[2].value, first.layout, <const real *> d.x_z, x_layout, rows.begin, rows.end,
                  inputs)
    copy_rows(<real *> last.grad, last.layout, <const real *> d.dz, in_rows(outputs, witness), rows.begin, rows.end,
              outputs)
    backward_rows(net, thread, rows.begin, rows.end, witness)
    if d.dx != NULL:
        copy_rows(<real *> d.dx, x_layout, <const real *> first.grad, first.layout, rows.begin, rows.end, inputs)
    barrier(thread)
    thread_gradients(net, thread, witness)


def dense_backward(dweight, dbias, dx, dz, x, x_z, weight, int input_activation, scratch, int threads):
    cdef intp size = x.itemsize
    cdef char *free = <char *> address(scratch)
    cdef Matrix from_x = matrix(x, size), from_dz = matrix(dz, size), w = matrix(weight, size)
    cdef intp batch = from_x.rows
    cdef DenseBackward d
    cdef Layer *layer = init_call(&d.call, "dense", from_x, w.columns, size)
    check_activation(input_activation)
    use_panels(&d.call, size)
    layer.op.input_activation, layer.op.input_z = input_activation, 2 if x_z is not None else -1
    layer.weight, layer.dweight, layer.dbias = w.data, output(dweight, size).data, output(dbias, size).data
    d.call.slots[1].grad = scratch_panels(&free, batch, w.columns, size)
    layer.transposed = scratch_panels(&free, w.columns, w.rows, size)
    d.x, d.dz, d.x_z, d.dx = from_x.data, from_dz.data, matrix(x_z, size).data, output(dx, size).data
    d.call.slots[0].value = scratch_panels(&free, batch, w.rows, size)
    d.call.slots[0].grad = scratch_panels(&free, batch, w.rows, size) if d.dx != NULL else NULL
    d.call.slots[2].value = scratch_panels(&free, batch, w.rows, size)
    threads = call_team(4.0 * batch * w.rows * w.columns, threads)
    with nogil:
        run_team(<Task> thread_dense_backward[float] if size == 4 else <Task> thread_dense_backward[double], &d,
                 threads)


def activation_forward(y, z, int code, int threads):
    cdef intp size = y.itemsize
    cdef LayerCall call
    cdef Matrix from_z = matrix(z, size)
    cdef Layer *layer = init_call(&call, "activation", from_z, from_z.columns, size)
    check_activation(code)
    layer.op.activation, call.slots[1].value = code, output(y, size).data
    with nogil:
        run_layer_forward(&call, size, threads)


def activation_backward(dz, dy, y, z, int code, int threads):
    cdef intp size = dz.itemsize
    cdef Matrix to_dz = output(dz, size), from_dy = matrix(dy, size)
    cdef LayerCall call
    cdef Layer *layer = init_call(&call, "activation", matrix(z, size) if z is not None else to_dz, to_dz.columns, size)
    check_activation(code)
    layer.op.activation, layer.op.derivative, layer.op.z = code, code != LINEAR, 0 if z is not None else -1
    call.slots[0].grad = call.slots[1].grad = to_dz.data
    call.slots[1].value = matrix(y, size).data
    with nogil:
        if to_dz.data != from_dy.data:
            memcpy(to_dz.data, from_dy.data, to_dz.rows * to_dz.columns * size)
        run_layer_backward(&call, size, threads)


def dropout(y, x, double p, uint64_t key, uint64_t step, int threads):
    cdef intp size = y.itemsize
    cdef LayerCall call
    cdef Matrix from_x = matrix(x, size)
    cdef Layer *layer = init_call(&call, "dropout", from_x, from_x.columns, size)
    layer.op.p, layer.op.key, call.work.net.step, call.slots[1].value = p, key, step, output(y, size).data
    with nogil:
        run_layer_forward(&call, size, threads)


def batchnorm_forward(y, stats, x, weight, bias, double momentum, double eps, bint training, int threads):
    cdef intp size = y.itemsize
    cdef LayerCall call
    cdef Matrix from_x = matrix(x, size)
    cdef Layer *layer = init_call(&call, "batchnorm", from_x, from_x.columns, size)
    variance = aligned(from_x.columns, "float64")
    layer.moments = address(variance)
    call.slots[1].value, layer.stats = output(y, size).data, output(stats, size).data
    layer.weight, layer.bias = matrix(weight, size).data, matrix(bias, size).data
    layer.op.momentum, layer.op.eps, call.work.net.training = momentum, eps, training
    with nogil:
        run_layer_forward(&call, size, threads)


def batchnorm_backward(dweight, dbias, dx, dy, x, stats, weight, int threads):
    cdef intp size = x.itemsize
    cdef LayerCall call
    cdef Matrix from_x = matrix(x, size)
    cdef Layer *layer = init_call(&call, "batchnorm", from_x, from_x.columns, size)
    call.slots[0].grad, call.slots[1].grad = output(dx, size).data, matrix(dy, size).data
    layer.weight, layer.stats = matrix(weight, size).data, matrix(stats, size).data
    layer.dweight, layer.dbias = output(dweight, size).data, output(dbias, size).data
    with nogil:
        run_layer_backward(&call, size, threads)


def layernorm_forward(y, rows, x, weight, bias, double eps, int threads):
    cdef intp size = y.itemsize
    cdef LayerCall call
    cdef Matrix from_x = matrix(x, size)
    cdef Layer *layer = init_call(&call, "layernorm", from_x, from_x.columns, size)
    call.slots[1].value, layer.moments = output(y, size).data, output(rows, size).data
    layer.weight, layer.bias, layer.op.eps = matrix(weight, size).data, matrix(bias, size).data, eps
    with nogil:
        run_layer_forward(&call, size, threads)


def layernorm_backward(dweight, dbias, dx, dy, x, rows, weight, int threads):
    cdef intp size = x.itemsize
    cdef LayerCall call
    cdef Matrix from_x = matrix(x, size)
    cdef Layer *layer = init_call(&call, "layernorm", from_x, from_x.columns, size)
    call.slots[0].grad, call.slots[1].grad = output(dx, size).data, matrix(dy, size).data
    layer.weight, layer.moments = matrix(weight, size).data, matrix(rows, size).data
    layer.dweight, layer.dbias = output(dweight, size).data, output(dbias, size).data
    with nogil:
        run_layer_backward(&call, size, threads)


# --- losses

cdef void thread_loss_call(LossCall *call, Thread *thread, const real *witness) noexcept nogil:
    thread_loss(call.partial, &call.criterion, <real *> call.dpred.data, <const real *> call.pred.data,
                one_strip(call.pred.columns), call.targets, <const real *> call.sample_weight, call.scale,
                call.pred.rows, thread)


cdef void run_loss(LossCall *call, int threads, const real *witness) noexcept nogil:
    cdef double weight = loss_weight(&call.criterion, call.targets, <const real *> call.sample_weight, call.pred.rows,
                                     call.pred.columns)
    call.scale = loss_scale(&call.criterion, weight, call.pred.columns)
    run_team(<Task> thread_loss_call[real], call,
             elementwise_team(<double> call.pred.rows * call.pred.columns, threads))


def loss(dpred, pred, target, sample_weight, spec, int threads):
    cdef intp size = pred.itemsize
    cdef LossCall call
    read_criterion(&call.criterion, spec, target, sample_weight)
    call.dpred, call.pred = output(dpred, size), matrix(pred, size)
    call.targets, call.sample_weight = address(target), matrix(sample_weight, size).data
    with nogil:
        if size == 4:
            run_loss(&call, threads, <float *> NULL)
        else:
            run_loss(&call, threads, <double *> NULL)
    return total(call.partial, ceil_div(call.pred.rows, chunk_rows(call.pred.rows)))


cdef void thread_sample_losses_call(LossCall *call, Thread *thread, const real *witness) noexcept nogil:
    thread_sample_losses(<real *> call.losses.data, &call.criterion, <real *> call.dpred.data,
                         <const real *> call.pred.data, one_strip(call.pred.columns), call.targets,
                         <const real *> call.sample_weight, call.pred.rows, thread)


def sample_losses(losses, dpred, pred, target, sample_weight, spec, int threads):
    cdef intp size = pred.itemsize
    cdef LossCall call
    read_criterion(&call.criterion, spec, target, sample_weight)
    call.losses, call.dpred, call.pred = output(losses, size), output(dpred, size), matrix(pred, size)
    call.targets, call.sample_weight = address(target), matrix(sample_weight, size).data
    threads = elementwise_team(<double> call.pred.rows * call.pred.columns, threads)
    with nogil:
        run_team(<Task> thread_sample_losses_call[float] if size == 4 else <Task> thread_sample_losses_call[double],
                 &call, threads)


cdef void thread_softmax(LossCall *call, Thread *thread, const real *witness) noexcept nogil:
    cdef Range rows = thread_rows(call.pred.rows, thread)
    softmax_rows(<real *> call.dpred.data, <const real *> call.pred.data, rows.begin, rows.end, call.pred.columns)


def softmax(y, logits, int threads):
    cdef intp size = logits.itemsize
    cdef LossCall call
    call.dpred, call.pred = output(y, size), matrix(logits, size)
    threads = elementwise_team(<double> call.pred.rows * call.pred.columns, threads)
    with nogil:
        run_team(<Task> thread_softmax[float] if size == 4 else <Task> thread_softmax[double], &call, threads)


# --- updates

cdef inline void update_run(UpdateCall *call, intp begin, intp end, const real *witness) noexcept nogil:
    update_rows(&call.update, <real *> call.param.data + begin, 0, begin, 0, <const real *> call.grad.data + begin, 0,
                call.grad_scale, 1, end - begin)


cdef void thread_update(UpdateCall *call, Thread *thread, const real *witness) noexcept nogil:
    """A thread's whole cache lines of the vectors, in parts of which each is in one group."""
    cdef intp n = call.param.rows * call.param.columns, line = 64 // <intp> sizeof(real), low, high
    cdef const Group *group
    cdef Range lines = thread_part(ceil_div(n, line), thread)
    cdef intp begin = lines.begin * line, end = min(n, lines.end * line)
    for group in call.update.groups[:call.update.group_count]:
        low, high = max(begin, <intp> group.begin), min(end, <intp> group.end)
        if low < high:
            update_run(call, begin, low, witness)
            update_run(call, low, high, witness)
            begin = high
    update_run(call, begin, end, witness)


def update(param, grad, spec, double grad_scale, int threads):
    cdef intp size = param.itemsize
    cdef UpdateCall call
    read_update(&call.update, spec)
    call.update.weight_decay = spec.weight_decay
    call.param, call.grad, call.grad_scale = output(param, size), matrix(grad, size), grad_scale
    prepare_update(&call.update, spec.lr)
    threads = elementwise_team(call.param.rows * call.param.columns, threads)
    with nogil:
        run_team(<Task> thread_update[float] if size == 4 else <Task> thread_update[double], &call, threads)
    spec.applied = True


cdef void thread_norm(NormCall *call, Thread *thread, const real *witness) noexcept nogil:
    thread_squared_norm(call.partial, &call.update, <const real *> call.x.data, call.x.columns, thread)


def squared_norm(x, groups, int threads):
    cdef intp size = x.itemsize
    cdef NormCall call
    call.x = matrix(x, size)
    read_groups(&call.update, groups)
    threads = elementwise_team(call.x.columns, threads)
    with nogil:
        run_team(<Task> thread_norm[float] if size == 4 else <Task> thread_norm[double], &call, threads)
    return total(call.partial, CHUNKS)


# --- the rest

def batch_order(rows, intp first, intp samples, order):
    cdef Matrix out = output(rows, sizeof(int64_t))
    cdef Shuffle shuffle
    if out.columns == 0:
        return
    init_shuffle(&shuffle, samples, order)
    with nogil:
        shuffled(&shuffle, <int64_t *> out.data, first, out.columns)


def all_finite(x):
    cdef const void *data = address(x)
    cdef intp n = x.size, size = x.itemsize
    cdef bint result
    if n == 0:
        return True
    with nogil:
        if size == 4:
            result = all_finite_vector(<const float *> data, n)
        else:
            result = all_finite_vector(<const double *> data, n)
    return result


def unknown_category(x, categories):
    cdef intp size = x.itemsize, at
    cdef Matrix from_x = matrix(x, size), counts = matrix(categories, sizeof(int64_t))
    cdef const char *ids = <const char *> from_x.data + (from_x.columns - counts.columns) * size
    cdef const int64_t *limits = <const int64_t *> counts.data
    with nogil:
        if size == 4:
            at = first_unknown(<const float *> ids, from_x.columns, limits, from_x.rows, counts.columns)
        else:
            at = first_unknown(<const double *> ids, from_x.columns, limits, from_x.rows, counts.columns)
    return at


def peak_flops(dtype, intp repeats):
    """Run 2 * lanes * chains * repeats fused multiply-adds on registers alone; returns the operations done."""
    cdef char sink[64]
    cdef intp size = dtype.itemsize
    cdef double operations
    with nogil:
        operations = peak_float(repeats, <float *> sink) if size == 4 else peak_double(repeats, <double *> sink)
    return operations
