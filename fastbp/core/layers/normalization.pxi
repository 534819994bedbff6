# Batch norm and layer norm, over matrices in any layout.
#
# Threads share rows where rows are independent, and panels where columns are reduced over the batch. Column sums are
# float64 and run down the batch in order.

cdef enum:
    MAX_PANEL = 32  # columns, over all machines and dtypes


cdef inline void column_moments(const real *x, intp row, intp batch, intp width, double *mean,
                                double *variance) noexcept nogil:
    """Mean and (biased) variance of width columns of x, whose rows are `row` apart, in two passes for accuracy."""
    cdef intp i, j
    for j in range(width):
        mean[j] = variance[j] = 0
    for i in range(batch):
        for j in range(width):
            mean[j] += x[i * row + j]
    for j in range(width):
        mean[j] /= batch
    for i in range(batch):
        for j in range(width):
            variance[j] += (x[i * row + j] - mean[j]) * (x[i * row + j] - mean[j])
    for j in range(width):
        variance[j] /= batch


cdef void batchnorm_forward_panel(real *y, real *stats, const real *x, Layout layout, const real *weight,
                                  const real *bias, double eps, bint training, intp batch, intp n,
                                  intp q) noexcept nogil:
    """Panel q of y (B, n) = (x - mean) / std * weight + bias; stats (4, n): as in the reference."""
    cdef double mean[MAX_PANEL]
    cdef double variance[MAX_PANEL]
    cdef real center[MAX_PANEL]
    cdef real scale[MAX_PANEL]
    cdef intp i, j, j0 = q * panel_width(x), width = min(n - j0, panel_width(x)), at = q * layout.panel
    cdef real *s = stats + j0
    if batch == 0:
        return
    if training:
        column_moments(x + at, layout.row, batch, width, mean, variance)
        for j in range(width):
            s[2 * n + j] = <real> mean[j]
            s[3 * n + j] = <real> (1 / sqrt(variance[j] + eps))
            center[j] = s[2 * n + j]
            scale[j] = s[3 * n + j] * weight[j0 + j]
    else:
        for j in range(width):
            center[j] = s[j]
            scale[j] = <real> (1 / sqrt(s[n + j] + eps)) * weight[j0 + j]
    for i in range(batch):
        for j in range(width):
            y[at + i * layout.row + j] = (x[at + i * layout.row + j] - center[j]) * scale[j] + bias[j0 + j]


cdef void update_running_statistics(real *stats, double momentum, double eps, intp batch, intp n, intp begin,
                                    intp end) noexcept nogil:
    """Move columns begin..end of the running mean and variance towards the batch's; one sample has no variance."""
    cdef intp j
    cdef double variance
    if batch < 2:
        return
    for j in range(begin, end):
        variance = 1 / (<double> stats[3 * n + j] * <double> stats[3 * n + j]) - eps
        stats[j] += <real> (momentum * (stats[2 * n + j] - stats[j]))
        stats[n + j] += <real> (momentum * (variance * batch / (batch - 1) - stats[n + j]))


cdef inline void column_gradients(real *dweight, real *dbias, const real *dy, const real *x, Layout layout,
                                  const real *center, const real *scale, intp center_row, intp center_column,
                                  intp batch, intp n, intp q) noexcept nogil:
    """For the columns of panel q: dweight = sums of dy * xhat, dbias = sums of dy, with xhat = (x - center) * scale.

    center and scale are vectors along the columns (batch norm) or the rows (layer norm), as their strides say.
    """
    cdef double weight_sum[MAX_PANEL]
    cdef double bias_sum[MAX_PANEL]
    cdef intp i, j, k, j0 = q * panel_width(x), width = min(n - j0, panel_width(x)), at = q * layout.panel
    for j in range(width):
        weight_sum[j] = bias_sum[j] = 0
    for i in range(batch):
        for j in range(width):
            k = i * center_row + (j0 + j) * center_column
            weight_sum[j] += dy[at + j] * ((x[at + j] - center[k]) * scale[k])
            bias_sum[j] += dy[at + j]
        at += layout.row
    for j in range(width):
        dweight[j0 + j] = <real> weight_sum[j]
        dbias[j0 + j] = <real> bias_sum[j]


cdef void batchnorm_backward_panel(real *dweight, real *dbias, real *dx, const real *dy, const real *x, Layout layout,
                                   const real *stats, const real *weight, intp batch, intp n, intp q) noexcept nogil:
    """Panel q of the gradients, dx (B, n) through the batch's mean and variance too, unless it is NULL."""
    cdef const real *mean = stats + 2 * n
    cdef const real *scale = stats + 3 * n
    cdef intp i, j, j0 = q * panel_width(x), at = q * layout.panel
    column_gradients(dweight, dbias, dy, x, layout, mean, scale, 0, 1, batch, n, q)
    if dx == NULL:
        return
    for i in range(batch):
        for j in range(j0, min(n, j0 + panel_width(x))):
            dx[at + j - j0] = (weight[j] * scale[j]) * (
                dy[at + j - j0] - dbias[j] / batch - (x[at + j - j0] - mean[j]) * scale[j] * (dweight[j] / batch))
        at += layout.row


cdef void thread_batchnorm_forward(Net *net, int i, const real *x, Thread *thread) noexcept nogil:
    """Its statistics need every thread's rows, and every thread's rows then need all columns: hence two barriers."""
    cdef Layer *layer = &net.layers[i]
    cdef Op *op = &layer.op
    cdef Range panels = thread_part(ceil_div(op.inputs, panel_width(x)), thread)
    cdef intp q
    barrier(thread)
    for q in range(panels.begin, panels.end):
        batchnorm_forward_panel(<real *> layer.y, <real *> layer.stats, x, net.layout, <real *> layer.weight,
                                <real *> layer.bias, op.eps, net.training, net.batch, op.inputs, q)
    barrier(thread)


cdef void thread_batchnorm_backward(Net *net, int i, real *dx, Thread *thread) noexcept nogil:
    cdef Layer *layer = &net.layers[i]
    cdef Op *op = &layer.op
    cdef Range panels = thread_part(ceil_div(op.inputs, panel_width(dx)), thread)
    cdef intp q
    barrier(thread)
    for q in range(panels.begin, panels.end):
        batchnorm_backward_panel(<real *> layer.dweight, <real *> layer.dbias, dx, <real *> layer.dy,
                                 layer_input(net, i, dx), net.layout, <real *> layer.stats, <real *> layer.weight,
                                 net.batch, op.inputs, q)
    barrier(thread)


cdef void layernorm_forward_rows(real *y, real *moments, const real *x, Layout layout, const real *weight,
                                 const real *bias, double eps, intp begin, intp end, intp n) noexcept nogil:
    """Rows of y (B, n) = (x - mean) / std * weight + bias; moments (B, 2) keeps each row's mean and 1/std."""
    cdef double mean, variance
    cdef real center, scale
    cdef intp i, j, at, width = panel_width(x)
    for i in range(begin, end):
        at = i * layout.row
        mean = variance = 0
        for j in range(n):
            mean += x[at + j // width * layout.panel + j % width]
        mean /= n
        for j in range(n):
            variance += (x[at + j // width * layout.panel + j % width] - mean) ** 2
        center = moments[2 * i] = <real> mean
        scale = moments[2 * i + 1] = <real> (1 / sqrt(variance / n + eps))
        for j in range(n):
            y[at + j // width * layout.panel + j % width] = (
                x[at + j // width * layout.panel + j % width] - center) * scale * weight[j] + bias[j]


cdef void layernorm_backward_rows(real *dx, const real *dy, const real *moments, const real *x, Layout layout,
                                  const real *weight, intp begin, intp end, intp n) noexcept nogil:
    """Rows of dx (B, n)."""
    cdef double g_mean, gx_mean
    cdef real center, scale, a, b
    cdef intp i, j, at, k, width = panel_width(x)
    for i in range(begin, end):
        at = i * layout.row
        center, scale = moments[2 * i], moments[2 * i + 1]
        g_mean = gx_mean = 0
        for j in range(n):
            k = at + j // width * layout.panel + j % width
            g_mean += dy[k] * weight[j]
            gx_mean += dy[k] * weight[j] * ((x[k] - center) * scale)
        a, b = <real> (g_mean / n), <real> (gx_mean / n)
        for j in range(n):
            k = at + j // width * layout.panel + j % width
            dx[k] = scale * (dy[k] * weight[j] - a - (x[k] - center) * scale * b)


cdef void layernorm_gradients(Net *net, int i, const Thread *thread, const real *witness) noexcept nogil:
    """A thread's panels of dweight and dbias."""
    cdef Layer *layer = &net.layers[i]
    cdef real *moments = <real *> layer.moments
    cdef Range panels = thread_part(ceil_div(layer.op.inputs, panel_width(witness)), thread)
    cdef intp q
    for q in range(panels.begin, panels.end):
        column_gradients(<real *> layer.dweight, <real *> layer.dbias, <real *> layer.dy, layer_input(net, i, witness),
                         net.layout, moments, moments + 1, 2, 0, net.batch, layer.op.inputs, q)
