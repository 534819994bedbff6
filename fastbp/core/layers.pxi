# The layers: dense (three products with their epilogues), activation, dropout, batch norm and layer norm.
#
# Rows are shared among threads where rows are independent, blocks of columns where a column is reduced over the batch;
# column sums are float64 and run down the batch in order.

cdef enum:
    COLUMN_BLOCK = 64


cdef void dense_forward_(real *y, real *z, const real *x, const real *weight, const real *bias, int activation,
                         long batch, long inputs, long outputs, char *scratch, int threads) noexcept nogil:
    """y (B, O) = activation(x (B, I) @ weight (I, O) + bias (O,)); z (B, O) keeps the argument unless NULL."""
    cdef Epilogue epilogue
    epilogue.after = BIAS_ACTIVATION if bias != NULL or z != NULL or activation != LINEAR else NOTHING
    epilogue.activation = activation
    epilogue.bias, epilogue.y, epilogue.z = <void *> bias, NULL, <void *> z
    gemm(y, outputs, x, inputs, 1, weight, outputs, 1, batch, outputs, inputs, &epilogue, <real *> NULL, scratch,
         threads)


cdef void dense_backward_(real *dweight, real *dbias, real *dx, const real *dz, const real *x, const real *x_z,
                          const real *weight, int prior, long batch, long inputs, long outputs, char *scratch,
                          int threads) noexcept nogil:
    """dweight (I, O) = x^T dz, dbias (O,) = sums of dz (B, O), dx (B, I) = dz weight^T * prior'(x_z) unless NULL."""
    cdef Epilogue epilogue
    epilogue.after = NOTHING
    gemm(dweight, outputs, x, 1, inputs, dz, outputs, 1, inputs, outputs, batch, &epilogue, dbias, scratch, threads)
    if dx != NULL:
        epilogue.after = DERIVATIVE if prior != LINEAR else NOTHING
        epilogue.activation = prior
        epilogue.bias, epilogue.y, epilogue.z = NULL, <void *> x, <void *> x_z
        gemm(dx, inputs, dz, outputs, 1, weight, 1, outputs, batch, inputs, outputs, &epilogue, <real *> NULL, scratch,
             threads)


cdef void activation_forward_(real *y, const real *z, int kind, long n, int threads) noexcept nogil:
    """y (n,) = activation(z (n,))."""
    cdef long chunk
    for chunk in prange(ceil_div(n, CHUNK_ELEMENTS), num_threads=team_for(n, threads), schedule="static"):
        activate(kind, y + chunk * CHUNK_ELEMENTS, z + chunk * CHUNK_ELEMENTS,
                 min(n - chunk * CHUNK_ELEMENTS, <long> CHUNK_ELEMENTS))


cdef void activation_backward_(real *dz, const real *dy, const real *y, const real *z, int kind, long n,
                               int threads) noexcept nogil:
    """dz (n,) = dy * activation'(z)."""
    cdef long chunk, i
    for chunk in prange(ceil_div(n, CHUNK_ELEMENTS), num_threads=team_for(n, threads), schedule="static"):
        i = chunk * CHUNK_ELEMENTS
        multiply_by_derivative(kind, dz + i, dy + i, y + i, z + i, min(n - i, <long> CHUNK_ELEMENTS))


cdef inline uint64_t mix(uint64_t h) noexcept nogil:
    h = (h ^ (h >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    h = (h ^ (h >> 27)) * <uint64_t> 0x94D049BB133111EB
    return h ^ (h >> 31)


cdef void dropout_(real *y, const real *x, double p, uint64_t key, uint64_t step, long n, int threads) noexcept nogil:
    """y (n,) = x * mask / (1 - p), the mask from a counter: the same for every team, and again in the backward pass."""
    cdef uint64_t golden = 0x9E3779B97F4A7C15, start = mix(key + golden * step)
    cdef uint64_t threshold = <uint64_t> (p * 4294967296.0)
    cdef real scale = <real> (1 / (1 - p))
    cdef long chunk, i
    for chunk in prange(ceil_div(n, CHUNK_ELEMENTS), num_threads=team_for(n, threads), schedule="static"):
        for i in range(chunk * CHUNK_ELEMENTS, min(n, (chunk + 1) * CHUNK_ELEMENTS)):
            y[i] = x[i] * scale if mix(start + golden * <uint64_t> (i + 1)) >> 32 >= threshold else 0


cdef inline void column_moments(const real *x, long batch, long n, long j0, long width, double *mean,
                                double *variance) noexcept nogil:
    """Mean and (biased) variance of columns j0..j0+width of x (batch, n), in two passes for accuracy."""
    cdef long i, j
    for j in range(width):
        mean[j] = variance[j] = 0
    for i in range(batch):
        for j in range(width):
            mean[j] += x[i * n + j0 + j]
    for j in range(width):
        mean[j] /= batch
    for i in range(batch):
        for j in range(width):
            variance[j] += (x[i * n + j0 + j] - mean[j]) * (x[i * n + j0 + j] - mean[j])
    for j in range(width):
        variance[j] /= batch


cdef void batchnorm_block(real *y, real *stats, const real *x, const real *weight, const real *bias, double momentum,
                          double eps, bint training, long batch, long n, long j0) noexcept nogil:
    """batchnorm_forward for the COLUMN_BLOCK columns from j0; stats (4, n) as in the reference."""
    cdef double mean[COLUMN_BLOCK]
    cdef double variance[COLUMN_BLOCK]
    cdef real center[COLUMN_BLOCK]
    cdef real scale[COLUMN_BLOCK]
    cdef long i, j, width = min(n - j0, <long> COLUMN_BLOCK)
    cdef real *s = stats + j0
    if training:
        column_moments(x, batch, n, j0, width, mean, variance)
        for j in range(width):
            s[2 * n + j] = <real> mean[j]
            s[3 * n + j] = <real> (1 / sqrt(variance[j] + eps))
            if batch > 1:
                s[j] += <real> (momentum * (mean[j] - s[j]))
                s[n + j] += <real> (momentum * (variance[j] * batch / (batch - 1) - s[n + j]))
            center[j] = s[2 * n + j]
            scale[j] = s[3 * n + j] * weight[j0 + j]
    else:
        for j in range(width):
            center[j] = s[j]
            scale[j] = <real> (1 / sqrt(s[n + j] + eps)) * weight[j0 + j]
    for i in range(batch):
        for j in range(width):
            y[i * n + j0 + j] = (x[i * n + j0 + j] - center[j]) * scale[j] + bias[j0 + j]


cdef void batchnorm_forward_(real *y, real *stats, const real *x, const real *weight, const real *bias,
                             double momentum, double eps, bint training, long batch, long n,
                             int threads) noexcept nogil:
    cdef long block
    if batch > 0:
        for block in prange(ceil_div(n, COLUMN_BLOCK), num_threads=team_for(batch * n, threads), schedule="static"):
            batchnorm_block(y, stats, x, weight, bias, momentum, eps, training, batch, n, block * COLUMN_BLOCK)


cdef inline void column_gradients(real *dweight, real *dbias, const real *dy, const real *x, const real *center,
                                  const real *scale, long center_row, long center_column, long batch, long n,
                                  long j0) noexcept nogil:
    """dweight = sums of dy * xhat, dbias = sums of dy, for COLUMN_BLOCK columns; xhat = (x - center) * scale, which
    are vectors along the columns (batch norm) or the rows (layer norm), as their strides say."""
    cdef double weight_sum[COLUMN_BLOCK]
    cdef double bias_sum[COLUMN_BLOCK]
    cdef long i, j, k, width = min(n - j0, <long> COLUMN_BLOCK)
    for j in range(width):
        weight_sum[j] = bias_sum[j] = 0
    for i in range(batch):
        for j in range(width):
            k = i * center_row + (j0 + j) * center_column
            weight_sum[j] += dy[i * n + j0 + j] * ((x[i * n + j0 + j] - center[k]) * scale[k])
            bias_sum[j] += dy[i * n + j0 + j]
    for j in range(width):
        dweight[j0 + j] = <real> weight_sum[j]
        dbias[j0 + j] = <real> bias_sum[j]


cdef void batchnorm_backward_block(real *dweight, real *dbias, real *dx, const real *dy, const real *x,
                                   const real *stats, const real *weight, long batch, long n, long j0) noexcept nogil:
    cdef const real *mean = stats + 2 * n
    cdef const real *scale = stats + 3 * n
    cdef long i, j
    column_gradients(dweight, dbias, dy, x, mean, scale, 0, 1, batch, n, j0)
    if dx == NULL:
        return
    for i in range(batch):
        for j in range(j0, min(n, j0 + COLUMN_BLOCK)):
            dx[i * n + j] = (weight[j] * scale[j]) * (
                dy[i * n + j] - dbias[j] / batch - (x[i * n + j] - mean[j]) * scale[j] * (dweight[j] / batch))


cdef void batchnorm_backward_(real *dweight, real *dbias, real *dx, const real *dy, const real *x, const real *stats,
                              const real *weight, long batch, long n, int threads) noexcept nogil:
    cdef long block
    for block in prange(ceil_div(n, COLUMN_BLOCK), num_threads=team_for(batch * n, threads), schedule="static"):
        batchnorm_backward_block(dweight, dbias, dx, dy, x, stats, weight, batch, n, block * COLUMN_BLOCK)


cdef void layernorm_row(real *y, real *row, const real *x, const real *weight, const real *bias, double eps,
                        long n) noexcept nogil:
    cdef double mean = 0, variance = 0
    cdef real center, scale
    cdef long j
    for j in range(n):
        mean += x[j]
    mean /= n
    for j in range(n):
        variance += (x[j] - mean) * (x[j] - mean)
    center = row[0] = <real> mean
    scale = row[1] = <real> (1 / sqrt(variance / n + eps))
    for j in range(n):
        y[j] = (x[j] - center) * scale * weight[j] + bias[j]


cdef void layernorm_forward_(real *y, real *rows, const real *x, const real *weight, const real *bias, double eps,
                             long batch, long n, int threads) noexcept nogil:
    cdef long i
    for i in prange(batch, num_threads=team_for(batch * n, threads), schedule="static"):
        layernorm_row(y + i * n, rows + 2 * i, x + i * n, weight, bias, eps, n)


cdef void layernorm_backward_row(real *dx, const real *dy, const real *row, const real *x, const real *weight,
                                 long n) noexcept nogil:
    cdef double g_mean = 0, gx_mean = 0
    cdef real xhat, a, b
    cdef long j
    for j in range(n):
        xhat = (x[j] - row[0]) * row[1]
        g_mean += dy[j] * weight[j]
        gx_mean += dy[j] * weight[j] * xhat
    a, b = <real> (g_mean / n), <real> (gx_mean / n)
    for j in range(n):
        dx[j] = row[1] * (dy[j] * weight[j] - a - (x[j] - row[0]) * row[1] * b)


cdef void layernorm_backward_(real *dweight, real *dbias, real *dx, const real *dy, const real *x, const real *rows,
                              const real *weight, long batch, long n, int threads) noexcept nogil:
    cdef long i, block
    for block in prange(ceil_div(n, COLUMN_BLOCK), num_threads=team_for(batch * n, threads), schedule="static"):
        column_gradients(dweight, dbias, dy, x, rows, rows + 1, 2, 0, batch, n, block * COLUMN_BLOCK)
    if dx != NULL:
        for i in prange(batch, num_threads=team_for(batch * n, threads), schedule="static"):
            layernorm_backward_row(dx + i * n, dy + i * n, rows + 2 * i, x + i * n, weight, n)
