# Batch norm and layer norm, over matrices in any layout.
#
# Threads share rows where rows are independent, and panels where columns are reduced over the batch. Sums are float64:
# those of columns run down the batch in order, those of a row have a lane for every column of a panel.

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


cdef void batchnorm_forward_panel(real *y, real *stats, double *batch_variance, const real *x, Layout layout,
                                  const real *weight, const real *bias, double eps, bint training, intp batch, intp n,
                                  intp q) noexcept nogil:
    """Panel q of y (B, n) = (x - mean) / std * weight + bias; stats (4, n): as in the reference.

    In training batch_variance (n,) keeps the variance: 1/std of float32 does not give it back where eps hides it.
    """
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
            batch_variance[j0 + j] = variance[j]
            center[j] = s[2 * n + j]
            scale[j] = s[3 * n + j] * weight[j0 + j]
    else:
        for j in range(width):
            center[j] = s[j]
            scale[j] = <real> (1 / sqrt(s[n + j] + eps)) * weight[j0 + j]
    for i in range(batch):
        for j in range(width):
            y[at + i * layout.row + j] = (x[at + i * layout.row + j] - center[j]) * scale[j] + bias[j0 + j]


cdef void update_running_statistics(real *stats, const double *batch_variance, double momentum, intp batch, intp n,
                                    intp begin, intp end) noexcept nogil:
    """Move columns begin..end of the running mean and variance towards the batch's; one sample has no variance."""
    cdef double unbiased
    cdef intp j
    if batch < 2:
        return
    for j in range(begin, end):
        unbiased = batch_variance[j] * batch / (batch - 1)
        stats[j] += <real> (momentum * (stats[2 * n + j] - stats[j]))
        stats[n + j] += <real> (momentum * (unbiased - stats[n + j]))


cdef inline void column_gradients(real *weight_gradient, real *bias_gradient, const real *dy, const real *x,
                                  Layout layout, const real *center, const real *scale, intp center_row,
                                  intp center_column, intp batch, intp n, intp q) noexcept nogil:
    """For the columns of panel q: the sums of dy * xhat and of dy, with xhat = (x - center) * scale.

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
        weight_gradient[j] = <real> weight_sum[j]
        bias_gradient[j] = <real> bias_sum[j]


cdef void batchnorm_backward_panel(real *dweight, real *dbias, real *dx, const real *dy, const real *x, Layout layout,
                                   const real *stats, const real *weight, intp batch, intp n, intp q) noexcept nogil:
    """Panel q of the gradients, dx (B, n) through the batch's mean and variance too; what is NULL is left out."""
    cdef real weight_gradient[MAX_PANEL]
    cdef real bias_gradient[MAX_PANEL]
    cdef const real *mean = stats + 2 * n
    cdef const real *scale = stats + 3 * n
    cdef intp i, j, k, j0 = q * panel_width(x), width = min(n - j0, panel_width(x)), at = q * layout.panel
    column_gradients(&weight_gradient[0], &bias_gradient[0], dy, x, layout, mean, scale, 0, 1, batch, n, q)
    if dweight != NULL:
        copy_run(dweight + j0, &weight_gradient[0], width)
        copy_run(dbias + j0, &bias_gradient[0], width)
    if dx == NULL:
        return
    for i in range(batch):
        for j in range(width):
            k = j0 + j
            dx[at + j] = (weight[k] * scale[k]) * (
                dy[at + j] - bias_gradient[j] / batch - (x[at + j] - mean[k]) * scale[k] * (weight_gradient[j] / batch))
        at += layout.row


cdef void batchnorm_reserve(Net *net, Layer *layer, Arena *arena, bint backward, const real *witness) noexcept nogil:
    if not backward:
        layer.moments = take(arena, layer.op.inputs * sizeof(double))


cdef void batchnorm_forward_columns(Net *net, Layer *layer, Thread *thread, intp begin, intp end,
                                    const real *witness) noexcept nogil:
    """A thread's panels, whose statistics need all samples."""
    cdef Op *op = &layer.op
    cdef Slot *src = src_slot(net, layer)
    cdef Range panels = thread_panels(layer, thread, witness)
    cdef intp q
    for q in range(panels.begin, panels.end):
        batchnorm_forward_panel(<real *> dst_slot(net, layer).value, <real *> layer.stats, <double *> layer.moments,
                                <const real *> src.value, src.layout, <real *> layer.weight, <real *> layer.bias,
                                op.eps, net.training, src.rows, op.inputs, q)


cdef void batchnorm_backward_columns(Net *net, Layer *layer, Thread *thread, void *dx, intp begin, intp end,
                                     const real *witness) noexcept nogil:
    """A thread's panels of dx, and of dweight and dbias, which dx needs too."""
    cdef Slot *src = src_slot(net, layer)
    cdef Range panels = thread_panels(layer, thread, witness)
    cdef real *dweight = <real *> layer.dweight if net.parameter_gradients else NULL
    cdef intp q
    for q in range(panels.begin, panels.end):
        batchnorm_backward_panel(dweight, <real *> layer.dbias, <real *> dx, <real *> dst_slot(net, layer).grad,
                                 <const real *> src.value, src.layout, <real *> layer.stats, <real *> layer.weight,
                                 src.rows, layer.op.inputs, q)


cdef void batchnorm_commit(Net *net, Layer *layer, const Thread *thread, const real *witness) noexcept nogil:
    cdef Range columns = thread_part(layer.op.inputs, thread)
    update_running_statistics(<real *> layer.stats, <double *> layer.moments, layer.op.momentum, net.batch,
                              layer.op.inputs, columns.begin, columns.end)


cdef void batchnorm_weights(Net *net, Layer *layer, const Thread *thread, WeightPass *work,
                            const real *witness) noexcept nogil:
    """The gradients came with dx."""
    if work.updates:
        update_vectors(layer, thread, work, witness)


cdef void batchnorm_kind(LayerKind *kind, const real *witness) noexcept:
    kind.forward, kind.backward = <Forward> batchnorm_forward_columns[real], <Backward> batchnorm_backward_columns[real]
    kind.weights, kind.commit = <Weights> batchnorm_weights[real], <Commit> batchnorm_commit[real]
    kind.reserve = <Reserve> batchnorm_reserve[real]
    kind.input_columns, kind.by_columns = <Columns> panel_input_columns[real], True


register_kind("batchnorm", <FillKind> batchnorm_kind[float], <FillKind> batchnorm_kind[double])


cdef inline double sum_lanes(double *sums, intp width) noexcept nogil:
    """The sum of width numbers, a power of two, in pairs: the order follows from the panel's width alone."""
    cdef intp j
    while width > 1:
        width //= 2
        for j in range(width):
            sums[j] += sums[width + j]
    return sums[0]


cdef inline double row_sum(const real *x, intp panel, intp n) noexcept nogil:
    """The sum of a row, a lane for every column of a panel."""
    cdef double sums[MAX_PANEL]
    cdef intp width = panel_width(x), q, j
    for j in range(width):
        sums[j] = 0
    for q in range(n // width):
        for j in range(width):
            sums[j] += x[q * panel + j]
    for j in range(n % width):
        sums[j] += x[n // width * panel + j]
    return sum_lanes(sums, width)


cdef inline double row_squares(const real *x, intp panel, double mean, intp n) noexcept nogil:
    """The sum of the squared distances from the mean."""
    cdef double sums[MAX_PANEL]
    cdef double d
    cdef intp width = panel_width(x), q, j
    for j in range(width):
        sums[j] = 0
    for q in range(n // width):
        for j in range(width):
            d = x[q * panel + j] - mean
            sums[j] += d * d
    for j in range(n % width):
        d = x[n // width * panel + j] - mean
        sums[j] += d * d
    return sum_lanes(sums, width)


cdef inline void normalize_run(real *y, const real *x, real center, real scale, const real *weight, const real *bias,
                               intp n) noexcept nogil:
    cdef intp j
    for j in range(n):
        y[j] = (x[j] - center) * scale * weight[j] + bias[j]


cdef void normalize_rows(real *y, real *moments, const real *x, Layout layout, const real *weight, const real *bias,
                         double eps, intp begin, intp end, intp n) noexcept nogil:
    """Rows of y (B, n) = (x - mean) / std * weight + bias; moments (B, 2) keeps each row's mean and 1/std."""
    cdef double mean, variance
    cdef intp i, q, at, width = panel_width(x)
    for i in range(begin, end):
        at = i * layout.row
        mean = row_sum(x + at, layout.panel, n) / n
        variance = row_squares(x + at, layout.panel, mean, n) / n
        moments[2 * i] = <real> mean
        moments[2 * i + 1] = <real> (1 / sqrt(variance + eps))
        for q in range(n // width):
            normalize_run(y + at + q * layout.panel, x + at + q * layout.panel, moments[2 * i], moments[2 * i + 1],
                          weight + q * width, bias + q * width, width)
        q = n // width
        normalize_run(y + at + q * layout.panel, x + at + q * layout.panel, moments[2 * i], moments[2 * i + 1],
                      weight + q * width, bias + q * width, n % width)


cdef inline void gradient_sums_run(double *sums, double *products, const real *dy, const real *x, real center,
                                   real scale, const real *weight, intp n) noexcept nogil:
    """Of n columns, each added to its lane: dy * weight, and its product with xhat = (x - center) * scale."""
    cdef real g
    cdef intp j
    for j in range(n):
        g = dy[j] * weight[j]
        sums[j] += g
        products[j] += g * ((x[j] - center) * scale)


cdef inline void input_gradient_run(real *dx, const real *dy, const real *x, real center, real scale,
                                    const real *weight, real mean, real product, intp n) noexcept nogil:
    cdef intp j
    for j in range(n):
        dx[j] = scale * (dy[j] * weight[j] - mean - (x[j] - center) * scale * product)


cdef void normalize_rows_backward(real *dx, const real *dy, const real *moments, const real *x, Layout layout,
                                  const real *weight, intp begin, intp end, intp n) noexcept nogil:
    """Rows of dx (B, n), through each row's mean and variance too."""
    cdef double sums[MAX_PANEL]
    cdef double products[MAX_PANEL]
    cdef real center, scale, mean, product
    cdef intp i, j, q, at, width = panel_width(x), panels = n // width, rest = n % width
    for i in range(begin, end):
        center, scale = moments[2 * i], moments[2 * i + 1]
        for j in range(width):
            sums[j] = products[j] = 0
        for q in range(panels):
            at = i * layout.row + q * layout.panel
            gradient_sums_run(sums, products, dy + at, x + at, center, scale, weight + q * width, width)
        at = i * layout.row + panels * layout.panel
        gradient_sums_run(sums, products, dy + at, x + at, center, scale, weight + panels * width, rest)
        mean, product = <real> (sum_lanes(sums, width) / n), <real> (sum_lanes(products, width) / n)
        for q in range(panels):
            at = i * layout.row + q * layout.panel
            input_gradient_run(dx + at, dy + at, x + at, center, scale, weight + q * width, mean, product, width)
        at = i * layout.row + panels * layout.panel
        input_gradient_run(dx + at, dy + at, x + at, center, scale, weight + panels * width, mean, product, rest)


cdef void layernorm_reserve(Net *net, Layer *layer, Arena *arena, bint backward, const real *witness) noexcept nogil:
    if not backward:
        layer.moments = take(arena, 2 * src_slot(net, layer).rows * sizeof(real))


cdef void layernorm_forward_rows(Net *net, Layer *layer, Thread *thread, intp begin, intp end,
                                 const real *witness) noexcept nogil:
    cdef Slot *src = src_slot(net, layer)
    normalize_rows(<real *> dst_slot(net, layer).value, <real *> layer.moments, <const real *> src.value, src.layout,
                   <real *> layer.weight, <real *> layer.bias, layer.op.eps, begin, end, layer.op.inputs)


cdef void layernorm_backward_rows(Net *net, Layer *layer, Thread *thread, void *dx, intp begin, intp end,
                                  const real *witness) noexcept nogil:
    cdef Slot *src = src_slot(net, layer)
    if dx != NULL:
        normalize_rows_backward(<real *> dx, <const real *> dst_slot(net, layer).grad, <real *> layer.moments,
                                <const real *> src.value, src.layout, <real *> layer.weight, begin, end,
                                layer.op.inputs)


cdef void layernorm_weights(Net *net, Layer *layer, const Thread *thread, WeightPass *work,
                            const real *witness) noexcept nogil:
    """A thread's panels of dweight and dbias."""
    cdef Slot *src = src_slot(net, layer)
    cdef real *moments = <real *> layer.moments
    cdef Range panels = thread_panels(layer, thread, witness)
    cdef intp q
    if work.gradients:
        for q in range(panels.begin, panels.end):
            column_gradients(<real *> layer.dweight + q * panel_width(witness),
                             <real *> layer.dbias + q * panel_width(witness), <const real *> dst_slot(net, layer).grad,
                             <const real *> src.value, src.layout, moments, moments + 1, 2, 0, src.rows,
                             layer.op.inputs, q)
    if work.updates:
        update_vectors(layer, thread, work, witness)


cdef void layernorm_kind(LayerKind *kind, const real *witness) noexcept:
    kind.reserve, kind.weights = <Reserve> layernorm_reserve[real], <Weights> layernorm_weights[real]
    kind.forward, kind.backward = <Forward> layernorm_forward_rows[real], <Backward> layernorm_backward_rows[real]
    kind.input_columns = <Columns> panel_input_columns[real]


register_kind("layernorm", <FillKind> layernorm_kind[float], <FillKind> layernorm_kind[double])
