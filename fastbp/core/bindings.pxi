# Bindings of single kernels, over arrays that Python has checked: each releases the GIL and runs a team.
#
# A layer's binding is a network of that one layer. Every function has a reference in NumPy with the same name and its
# documentation, in reference/; arguments run outputs, inputs, scalars, scratch, threads.

cdef double ELEMENTS_PER_THREAD = 65536.0  # of an elementwise kernel; with fewer, waking a thread costs more than it saves

cdef struct Product:
    void *c
    const void *a
    const void *b
    intp a_row, a_column, b_row, b_column, m, n, k  # strides in elements
    void *c_panels
    void *a_panels
    void *b_panels

cdef struct DenseBackward:
    Net net  # an activation with output x and input x_z, and the dense layer
    const void *x
    const void *x_z
    const void *dz
    void *dx

cdef struct LossCall:
    Criterion criterion
    void *dpred
    const void *pred
    const void *targets
    const void *sample_weight  # or NULL
    intp batch, outputs
    double scale
    double partial[CHUNKS]

cdef struct UpdateCall:
    Update update
    void *param
    const void *grad
    double grad_scale
    intp n

cdef struct NormCall:
    const void *x
    intp n
    double partial[CHUNKS]


cdef inline int elementwise_team(double elements, int threads) noexcept nogil:
    return <int> max(1.0, min(<double> min(threads, <int> CHUNKS), elements / ELEMENTS_PER_THREAD))


# --- products

cdef void pack_rows(real *out, Layout layout, const real *src, intp row, intp column, intp begin, intp end,
                    intp n) noexcept nogil:
    """Rows begin..end of an (m, n) matrix with any strides, into panels."""
    cdef intp width = panel_width(out), i, j, q
    cdef Layout rows
    if column == 1:
        rows.row, rows.panel = row, width
        copy_rows(out, layout, src, rows, begin, end, n)
    elif row == 1:
        for q in range(ceil_div(n, width)):
            transpose(out + q * layout.panel + begin * width, width, src + q * width * column + begin, column,
                      min(width, n - q * width), end - begin)
    else:
        for i in range(begin, end):
            for j in range(n):
                out[j // width * layout.panel + i * width + j % width] = src[i * row + j * column]


cdef void thread_product(Product *p, Thread *thread, const real *witness) noexcept nogil:
    cdef Range rows = thread_part(p.m, thread), b_rows = thread_part(p.k, thread)
    cdef Layout layout = in_panels(p.m, witness), b_layout = in_panels(p.k, witness)
    cdef Epilogue epilogue
    epilogue.action, epilogue.activation, epilogue.bias = NO_ACTION, LINEAR, NULL
    pack_rows(<real *> p.a_panels, layout, <const real *> p.a, p.a_row, p.a_column, rows.begin, rows.end, p.k)
    pack_rows(<real *> p.b_panels, b_layout, <const real *> p.b, p.b_row, p.b_column, b_rows.begin,
              b_rows.end, p.n)
    barrier(thread)
    multiply_rows(<real *> p.c_panels, <real *> p.a_panels, layout, <real *> p.b_panels, b_layout, rows.begin,
                  rows.end, p.n, p.k, &epilogue)
    copy_rows(<real *> p.c, in_rows(p.n, witness), <real *> p.c_panels, layout, rows.begin, rows.end, p.n)


cdef inline void *scratch_panels(char **scratch, intp rows, intp n, const real *witness) noexcept nogil:
    """The next piece of scratch: a (rows, n) matrix in panels."""
    cdef char *begin = scratch[0]
    scratch[0] += ceil_div(panels_size(rows, n, witness) * <intp> sizeof(real), 64) * 64
    return begin


def scratch_bytes(intp m, intp n, intp k, dtype):
    """Scratch for an (m, k) x (k, n) product, or for the backward pass of a layer that does it."""
    cdef char *end = NULL
    cdef intp rows, columns
    for rows, columns in [(m, n), (m, n), (m, k), (m, k), (m, k), (k, n), (n, k), (1, n)]:
        if dtype.itemsize == 4:
            scratch_panels(&end, rows, columns, <float *> NULL)
        else:
            scratch_panels(&end, rows, columns, <double *> NULL)
    return <intp> end


def matmul(real[:, ::1] c, const real[:, :] a, const real[:, :] b, char[::1] scratch, int threads):
    cdef intp size = sizeof(real)
    cdef char *free = &scratch[0]
    cdef Product p
    p.c, p.a, p.b, p.m, p.n, p.k = matrix(c), strided(a), strided(b), c.shape[0], c.shape[1], a.shape[1]
    p.a_row, p.a_column = a.strides[0] // size, a.strides[1] // size
    p.b_row, p.b_column = b.strides[0] // size, b.strides[1] // size
    p.c_panels = scratch_panels(&free, p.m, p.n, matrix(c))
    p.a_panels = scratch_panels(&free, p.m, p.k, matrix(c))
    p.b_panels = scratch_panels(&free, p.k, p.n, matrix(c))
    with nogil:
        run_team(<Task> thread_product[real], &p, <int> max(1.0, min(
            <double> threads, 2.0 * p.m * p.n * p.k / OPERATIONS_PER_THREAD_AND_CALL)))


# --- layers

cdef void thread_layer_forward(Net *net, Thread *thread, const real *witness) noexcept nogil:
    cdef Range rows = thread_rows(net.batch, thread)
    forward_rows(net, thread, rows.begin, rows.end, witness)
    if net.training:
        commit_statistics(net, thread, witness)


cdef void thread_layer_backward(Net *net, Thread *thread, const real *witness) noexcept nogil:
    cdef Range rows = thread_rows(net.batch, thread)
    backward_rows(net, thread, rows.begin, rows.end, witness)
    barrier(thread)
    thread_gradients(net, thread, witness)


cdef void init_layer(Net *net, Layer *layer, int kind, const void *y, const void *x, const void *dy, void *dx,
                     intp batch, intp n, const real *witness) noexcept nogil:
    """A network of one layer over arrays that lie row by row."""
    memset(net, 0, sizeof(Net))
    memset(layer, 0, sizeof(Layer))
    net.layers, net.count, net.x, net.dx, net.batch = layer, 1, <void *> x, dx, batch
    net.layout, net.training = in_rows(n, witness), True
    layer.op.kind, layer.op.inputs, layer.op.outputs, layer.y, layer.dy = kind, n, n, <void *> y, <void *> dy


def dense_forward(real[:, ::1] y, real[:, ::1] z, const real[:, ::1] x, const real[:, ::1] weight,
                  const real[::1] bias, int activation, char[::1] scratch, int threads):
    cdef Pass p
    cdef Layer layer
    cdef intp batch = x.shape[0], inputs = weight.shape[0], outputs = weight.shape[1]
    cdef char *free = &scratch[0]
    check_activation(activation)
    with nogil:
        init_layer(&p.net, &layer, DENSE, NULL, NULL, NULL, NULL, batch, outputs, matrix(x))
        layer.op.inputs, layer.op.activation, p.net.layout = inputs, activation, in_panels(batch, matrix(x))
        layer.weight = matrix(weight)
        if bias is not None:  # whole registers of it are read
            layer.bias = scratch_panels(&free, 1, outputs, matrix(x))
            memcpy(layer.bias, vector(bias), outputs * sizeof(real))
        layer.y, p.net.x = scratch_panels(&free, batch, outputs, matrix(x)), scratch_panels(&free, batch, inputs, matrix(x))
        layer.panels = scratch_panels(&free, inputs, outputs, matrix(x))
        layer.z = scratch_panels(&free, batch, outputs, matrix(x)) if z is not None else NULL
        p.x, p.y = matrix(x), matrix(y)
        run_team(<Task> thread_forward[real], &p, <int> max(1.0, min(
            <double> threads, 2.0 * batch * inputs * outputs / OPERATIONS_PER_THREAD_AND_CALL)))
        if z is not None:
            copy_rows(matrix(z), in_rows(outputs, matrix(x)), <real *> layer.z, p.net.layout, 0, batch, outputs)


cdef void thread_dense_backward(DenseBackward *d, Thread *thread, const real *witness) noexcept nogil:
    cdef Net *net = &d.net
    cdef Range rows = thread_rows(net.batch, thread)
    cdef intp inputs = net.layers[1].op.inputs, outputs = net.layers[1].op.outputs
    pack_weights(net, thread, False, True, witness)
    copy_rows(<real *> net.layers[0].y, net.layout, <const real *> d.x, in_rows(inputs, witness), rows.begin, rows.end, inputs)
    if d.x_z != NULL:
        copy_rows(<real *> net.x, net.layout, <const real *> d.x_z, in_rows(inputs, witness), rows.begin, rows.end, inputs)
    copy_rows(<real *> net.layers[1].dy, net.layout, <const real *> d.dz, in_rows(outputs, witness), rows.begin, rows.end, outputs)
    if d.dx != NULL:
        dense_backward_rows(net, 1, thread, <real *> net.layers[0].dy, rows.begin, rows.end)
        copy_rows(<real *> d.dx, in_rows(inputs, witness), <real *> net.layers[0].dy, net.layout, rows.begin, rows.end, inputs)
    barrier(thread)
    thread_gradients(net, thread, witness)


def dense_backward(real[:, ::1] dweight, real[::1] dbias, real[:, ::1] dx, const real[:, ::1] dz,
                   const real[:, ::1] x, const real[:, ::1] x_z, const real[:, ::1] weight, int input_activation,
                   char[::1] scratch, int threads):
    cdef DenseBackward d
    cdef Layer layers[2]
    cdef intp batch = x.shape[0], inputs = weight.shape[0], outputs = weight.shape[1]
    cdef char *free = &scratch[0]
    check_activation(input_activation)
    with nogil:
        init_layer(&d.net, &layers[1], DENSE, NULL, NULL, NULL, NULL, batch, outputs, matrix(x))
        init_layer(&d.net, &layers[0], ACTIVATION, NULL, NULL, NULL, NULL, batch, inputs, matrix(x))
        d.net.count, d.net.layout = 2, in_panels(batch, matrix(x))
        layers[1].op.inputs, layers[1].op.input_activation = inputs, input_activation
        layers[1].weight, layers[1].dweight = matrix(weight), matrix(dweight)
        layers[1].dbias = vector(dbias) if dbias is not None else NULL
        layers[1].dy, layers[1].transposed = (scratch_panels(&free, batch, outputs, matrix(x)),
                                              scratch_panels(&free, outputs, inputs, matrix(x)))
        layers[0].y, layers[0].dy = (scratch_panels(&free, batch, inputs, matrix(x)),
                                     scratch_panels(&free, batch, inputs, matrix(x)))
        d.net.x = scratch_panels(&free, batch, inputs, matrix(x))
        d.x, d.dz = matrix(x), matrix(dz)
        d.x_z, d.dx = matrix(x_z) if x_z is not None else NULL, matrix(dx) if dx is not None else NULL
        run_team(<Task> thread_dense_backward[real], &d, <int> max(1.0, min(
            <double> threads, 4.0 * batch * inputs * outputs / OPERATIONS_PER_THREAD_AND_CALL)))


def activation_forward(real[:, ::1] y, const real[:, ::1] z, int code, int threads):
    cdef Net net
    cdef Layer layer
    check_activation(code)
    with nogil:
        init_layer(&net, &layer, ACTIVATION, matrix(y), matrix(z), NULL, NULL, y.shape[0], y.shape[1], matrix(z))
        layer.op.activation = code
        run_team(<Task> thread_layer_forward[real], &net, elementwise_team(<double> y.shape[0] * y.shape[1], threads))


def activation_backward(real[:, ::1] dz, const real[:, ::1] dy, const real[:, ::1] y, const real[:, ::1] z, int code,
                        int threads):
    cdef Net net
    cdef Layer layer
    check_activation(code)
    with nogil:
        if matrix(dz) != matrix(dy):
            memcpy(matrix(dz), matrix(dy), dz.shape[0] * dz.shape[1] * sizeof(real))
        init_layer(&net, &layer, ACTIVATION, matrix(y), matrix(z) if z is not None else NULL, matrix(dz), NULL,
                    dz.shape[0], dz.shape[1], matrix(y))
        layer.op.activation = code
        run_team(<Task> thread_layer_backward[real], &net, elementwise_team(<double> dz.shape[0] * dz.shape[1], threads))


def dropout(real[:, ::1] y, const real[:, ::1] x, double p, uint64_t key, uint64_t step, int threads):
    cdef Net net
    cdef Layer layer
    with nogil:
        init_layer(&net, &layer, DROPOUT, matrix(y), matrix(x), NULL, NULL, y.shape[0], y.shape[1], matrix(x))
        layer.op.p, layer.op.key, net.step = p, key, step
        run_team(<Task> thread_layer_forward[real], &net, elementwise_team(<double> y.shape[0] * y.shape[1], threads))


def batchnorm_forward(real[:, ::1] y, real[:, ::1] stats, const real[:, ::1] x, const real[::1] weight,
                      const real[::1] bias, double momentum, double eps, bint training, int threads):
    cdef Net net
    cdef Layer layer
    with nogil:
        init_layer(&net, &layer, BATCHNORM, matrix(y), matrix(x), NULL, NULL, y.shape[0], y.shape[1], matrix(x))
        layer.weight, layer.bias, layer.stats = vector(weight), vector(bias), matrix(stats)
        layer.op.momentum, layer.op.eps, net.training = momentum, eps, training
        run_team(<Task> thread_layer_forward[real], &net, elementwise_team(<double> y.shape[0] * y.shape[1], threads))


def batchnorm_backward(real[::1] dweight, real[::1] dbias, real[:, ::1] dx, const real[:, ::1] dy,
                       const real[:, ::1] x, const real[:, ::1] stats, const real[::1] weight, int threads):
    cdef Net net
    cdef Layer layer
    with nogil:
        init_layer(&net, &layer, BATCHNORM, NULL, matrix(x), matrix(dy), matrix(dx) if dx is not None else NULL,
                    x.shape[0], x.shape[1], matrix(x))
        layer.weight, layer.stats = vector(weight), matrix(stats)
        layer.dweight, layer.dbias = vector(dweight), vector(dbias)
        run_team(<Task> thread_layer_backward[real], &net, elementwise_team(<double> x.shape[0] * x.shape[1], threads))


def layernorm_forward(real[:, ::1] y, real[:, ::1] rows, const real[:, ::1] x, const real[::1] weight,
                      const real[::1] bias, double eps, int threads):
    cdef Net net
    cdef Layer layer
    with nogil:
        init_layer(&net, &layer, LAYERNORM, matrix(y), matrix(x), NULL, NULL, y.shape[0], y.shape[1], matrix(x))
        layer.weight, layer.bias, layer.moments = vector(weight), vector(bias), matrix(rows)
        layer.op.eps = eps
        run_team(<Task> thread_layer_forward[real], &net, elementwise_team(<double> y.shape[0] * y.shape[1], threads))


def layernorm_backward(real[::1] dweight, real[::1] dbias, real[:, ::1] dx, const real[:, ::1] dy,
                       const real[:, ::1] x, const real[:, ::1] rows, const real[::1] weight, int threads):
    cdef Net net
    cdef Layer layer
    with nogil:
        init_layer(&net, &layer, LAYERNORM, NULL, matrix(x), matrix(dy), matrix(dx) if dx is not None else NULL,
                    x.shape[0], x.shape[1], matrix(x))
        layer.weight, layer.moments = vector(weight), matrix(rows)
        layer.dweight, layer.dbias = vector(dweight), vector(dbias)
        run_team(<Task> thread_layer_backward[real], &net, elementwise_team(<double> x.shape[0] * x.shape[1], threads))


# --- losses

cdef void thread_loss_call(LossCall *call, Thread *thread, const real *witness) noexcept nogil:
    thread_loss(call.partial, &call.criterion, <real *> call.dpred, <const real *> call.pred, call.targets,
                <const real *> call.sample_weight, call.scale, call.batch, call.outputs, thread)


def loss(real[:, ::1] dpred, const real[:, ::1] pred, target, const real[::1] sample_weight, spec, int threads):
    cdef LossCall call
    cdef double result
    read_criterion(&call.criterion, spec)
    call.dpred, call.pred, call.targets = matrix(dpred), matrix(pred), address(target)
    call.batch, call.outputs = pred.shape[0], pred.shape[1]
    call.sample_weight = vector(sample_weight) if sample_weight is not None else NULL
    with nogil:
        call.scale = loss_scale(&call.criterion, call.targets, <const real *> call.sample_weight, call.batch,
                                call.outputs)
        run_team(<Task> thread_loss_call[real], &call, elementwise_team(<double> call.batch * call.outputs, threads))
        result = total(call.partial, ceil_div(call.batch, chunk_rows(call.batch)))
    return result


# --- updates

cdef inline void update_run(UpdateCall *call, intp begin, intp end, bint decays, const real *witness) noexcept nogil:
    update_rows(&call.update, <real *> call.param + begin, 0, begin, 0, <const real *> call.grad + begin, 0,
                call.grad_scale, decays, 1, end - begin)


cdef void thread_update(UpdateCall *call, Thread *thread, const real *witness) noexcept nogil:
    """A thread's whole cache lines of the vectors; weight decay spares the ranges that the update names."""
    cdef intp line = 64 // <intp> sizeof(real), k, low, high
    cdef Range lines = thread_part(ceil_div(call.n, line), thread)
    cdef intp begin = lines.begin * line, end = min(call.n, lines.end * line)
    for k in range(call.update.undecayed_count):
        low, high = max(begin, call.update.undecayed[2 * k]), min(end, call.update.undecayed[2 * k + 1])
        if low < high:
            update_run(call, begin, low, True, witness)
            update_run(call, low, high, False, witness)
            begin = high
    update_run(call, begin, end, True, witness)


def update(real[::1] param, const real[::1] grad, spec, double grad_scale, int threads):
    cdef UpdateCall call
    read_update(&call.update, spec)
    call.update.weight_decay = spec.weight_decay
    call.param, call.grad, call.n, call.grad_scale = vector(param), vector(grad), param.shape[0], grad_scale
    prepare_update(&call.update, spec.lr)
    with nogil:
        run_team(<Task> thread_update[real], &call, elementwise_team(call.n, threads))


cdef void thread_norm(NormCall *call, Thread *thread, const real *witness) noexcept nogil:
    thread_squared_norm(call.partial, <const real *> call.x, call.n, thread)


def squared_norm(const real[::1] x, int threads):
    cdef NormCall call
    cdef double result
    call.x, call.n = vector(x), x.shape[0]
    with nogil:
        run_team(<Task> thread_norm[real], &call, elementwise_team(call.n, threads))
        result = total(call.partial, CHUNKS)
    return result


# --- the rest

def batch_order(int64_t[::1] rows, intp first, intp samples, key):
    cdef Shuffle shuffle
    if rows.shape[0] == 0:
        return
    init_shuffle(&shuffle, samples, key)
    with nogil:
        shuffled(&shuffle, &rows[0], first, rows.shape[0])


def all_finite(x):
    cdef const char *data = <const char *> address(x)
    cdef intp n = x.size
    cdef bint single = x.dtype.itemsize == 4, result
    if n == 0:
        return True
    with nogil:
        result = all_finite_vector(<const float *> data, n) if single else all_finite_vector(<const double *> data, n)
    return result


def unknown_category(const real[:, ::1] x, const int64_t[::1] categories):
    cdef intp columns = categories.shape[0], at
    with nogil:
        at = first_unknown(matrix(x) + x.shape[1] - columns, x.shape[1], &categories[0], x.shape[0], columns)
    return at


def peak_flops(dtype, intp repeats):
    """Run 2 * lanes * chains * repeats fused multiply-adds on registers alone; returns the operations done."""
    cdef char sink[64]
    cdef bint single = dtype.itemsize == 4
    cdef double operations
    with nogil:
        operations = peak_float(repeats, <float *> sink) if single else peak_double(repeats, <double *> sink)
    return operations
