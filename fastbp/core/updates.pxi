# The optimizers: one pass over the flat buffers of parameters, gradients and state.
#
# Every entry of the buffer is updated alike, so a chunk of each buffer is read once, updated in L1 and written once.
# grad_scale is what clipping by the global norm multiplies the gradient with: clipping costs no pass of its own.

cdef enum Rule:  # the codes of fastbp.core.plan.RULES
    SGD, ADAM, RMSPROP, ADAGRAD

cdef struct Update:
    int rule
    double lr, momentum, beta1, beta2, alpha, eps, weight_decay, grad_scale
    bint nesterov, decoupled
    long step     # Adam's, from 1
    void *first   # velocity, m, square or total; NULL where SGD keeps no velocity
    void *second  # v, or RMSprop's velocity


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


cdef void adagrad_chunk(real *param, real *total, const real *grad, real lr, real eps, real weight_decay,
                        real grad_scale, long n) noexcept nogil:
    cdef long i
    cdef real g, s
    for i in range(n):
        g = grad[i] * grad_scale + weight_decay * param[i]
        s = total[i] + g * g
        total[i] = s
        param[i] -= lr * g / (sqrt_(s) + eps)


cdef void update_chunk(const Update *u, real *param, const real *grad, long i, long n) noexcept nogil:
    """Entries i..i+n of the buffers."""
    cdef real *first = <real *> u.first + i if u.first != NULL else NULL
    cdef real *second = <real *> u.second + i if u.second != NULL else NULL
    if u.rule == SGD:
        sgd_chunk(param + i, first, grad + i, <real> u.lr, <real> u.momentum, u.nesterov, <real> u.weight_decay,
                  <real> u.grad_scale, n)
    elif u.rule == ADAM:
        adam_chunk(param + i, first, second, grad + i, <real> (u.lr / (1 - pow(u.beta1, u.step))),
                   <real> (1 - u.beta1), <real> (1 - u.beta2), <real> sqrt(1 - pow(u.beta2, u.step)), <real> u.eps,
                   <real> (1 - u.lr * u.weight_decay if u.decoupled else 1),
                   <real> (0 if u.decoupled else u.weight_decay), <real> u.grad_scale, n)
    elif u.rule == RMSPROP:
        rmsprop_chunk(param + i, first, second, grad + i, <real> u.lr, <real> (1 - u.alpha), <real> u.eps,
                      <real> u.momentum, <real> u.weight_decay, <real> u.grad_scale, n)
    else:
        adagrad_chunk(param + i, first, grad + i, <real> u.lr, <real> u.eps, <real> u.weight_decay,
                      <real> u.grad_scale, n)


cdef void apply_update(const Update *u, real *param, const real *grad, long n, int threads) noexcept nogil:
    """One step of the rule over param (n,) and its state vectors, from grad (n,)."""
    cdef long chunk
    for chunk in prange(ceil_div(n, CHUNK_ELEMENTS), num_threads=team_for(n, threads), schedule="static"):
        update_chunk(u, param, grad, chunk * CHUNK_ELEMENTS, min(n - chunk * CHUNK_ELEMENTS, <long> CHUNK_ELEMENTS))


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


cdef double squared_norm_(const real *x, long n, int threads) noexcept nogil:
    """The sum of squares of x (n,) in float64."""
    cdef double partial[CHUNKS]
    cdef long chunk, begin
    for chunk in prange(CHUNKS, num_threads=team_for(n, threads), schedule="static"):
        begin = chunk_begin(chunk, n)
        partial[chunk] = squared_norm_chunk(x + begin, chunk_begin(chunk + 1, n) - begin)
    return total(partial)


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
