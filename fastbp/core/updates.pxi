# The optimizers: one pass over the flat buffers of parameters, gradients and state.
#
# Every entry of the buffer is updated alike, so a chunk of each buffer is read once, updated in L1 and written once.
# grad_scale is what clipping by the global norm multiplies the gradient with: clipping costs no pass of its own.

cdef void sgd_chunk(real *param, real *velocity, const real *grad, real lr, real momentum, bint nesterov,
                    real weight_decay, real grad_scale, long n) noexcept nogil:
    cdef long i
    cdef real g, v
    if velocity == NULL:
        for i in range(n):
            g = grad[i] * grad_scale + weight_decay * param[i]
            param[i] -= lr * g
        return
    for i in range(n):
        g = grad[i] * grad_scale + weight_decay * param[i]
        v = momentum * velocity[i] + g
        velocity[i] = v
        param[i] -= lr * (g + momentum * v if nesterov else v)


cdef void adam_chunk(real *param, real *m, real *v, const real *grad, real step_size, real share1, real share2,
                     real root_correction, real eps, real decay, real weight_decay, real grad_scale,
                     long n) noexcept nogil:
    """share = 1 - beta, which float32 would round far off for a beta close to one.

    decay multiplies param (decoupled), weight_decay is added to the gradient (L2); one of them is idle.
    """
    cdef long i
    cdef real g, m_i, v_i
    for i in range(n):
        g = grad[i] * grad_scale + weight_decay * param[i]
        m_i = m[i] + share1 * (g - m[i])
        v_i = v[i] + share2 * (g * g - v[i])
        m[i] = m_i
        v[i] = v_i
        param[i] = param[i] * decay - step_size * m_i / (sqrt_(v_i) / root_correction + eps)


cdef void rmsprop_chunk(real *param, real *square, real *velocity, const real *grad, real lr, real share, real eps,
                        real momentum, real weight_decay, real grad_scale, long n) noexcept nogil:
    cdef long i
    cdef real g, s
    for i in range(n):
        g = grad[i] * grad_scale + weight_decay * param[i]
        s = square[i] + share * (g * g - square[i])
        square[i] = s
        g = g / (sqrt_(s) + eps)
        if velocity != NULL:
            g = momentum * velocity[i] + g
            velocity[i] = g
        param[i] -= lr * g


cdef void adagrad_chunk(real *param, real *total_, const real *grad, real lr, real eps, real weight_decay,
                        real grad_scale, long n) noexcept nogil:
    cdef long i
    cdef real g, s
    for i in range(n):
        g = grad[i] * grad_scale + weight_decay * param[i]
        s = total_[i] + g * g
        total_[i] = s
        param[i] -= lr * g / (sqrt_(s) + eps)


cdef double squared_norm_chunk(const real *x, long n) noexcept nogil:
    """Eight sums side by side: one float64 chain of additions would wait four cycles for each."""
    cdef double sums[8]
    cdef long i, j
    for j in range(8):
        sums[j] = 0
    for i in range(n // 8):
        for j in range(8):
            sums[j] += <double> x[8 * i + j] * <double> x[8 * i + j]
    for i in range(n - n % 8, n):
        sums[0] += <double> x[i] * <double> x[i]
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


cdef bint all_finite_chunk(const real *x, long n) noexcept nogil:
    """x - x is zero for finite x and NaN otherwise; adding them up keeps a NaN."""
    cdef real sums[16]
    cdef real result = 0
    cdef long i, j
    for j in range(16):
        sums[j] = 0
    for i in range(n // 16):
        for j in range(16):
            sums[j] += x[16 * i + j] - x[16 * i + j]
    for i in range(n - n % 16, n):
        result += x[i] - x[i]
    for j in range(16):
        result += sums[j]
    return result == 0
