# The optimizers: one pass over the flat buffers of parameters, gradients and state.
#
# Every entry of a buffer is updated alike, whether a whole buffer is or the rows of a block whose gradient was just
# computed. grad_scale is what clipping by the global norm multiplies the gradient with: it costs no pass of its own.

cdef enum Rule:  # the codes of fastbp.core.plan.RULES
    SGD, ADAM, RMSPROP, ADAGRAD

cdef struct Update:
    int rule
    double lr, momentum, beta1, beta2, alpha, eps, weight_decay
    double clip_value  # that no entry of a gradient exceeds; 0 for any
    bint nesterov, decoupled
    bint idle     # whether a gradient of zero changes nothing
    bint eps_hat  # Adam's eps is added before the bias correction (Kingma & Ba 2015, end of section 2)
    intp step     # Adam's, from 1
    void *first   # velocity, m, square or total; NULL where SGD keeps no velocity
    void *second  # v, or RMSprop's velocity
    const int64_t *undecayed  # (undecayed_count, 2): where in the flat buffers weight decay begins and ends not to act
    intp undecayed_count
    double rate, root, floor, decay, l2  # what a step's lr and number come to, see begin_update


cdef void begin_update(Update *u, double lr) noexcept nogil:
    """Set the learning rate and what follows from it and, for Adam, the step: its bias corrections."""
    u.lr = lr
    u.rate, u.root = lr, 1
    if u.rule == ADAM:
        u.rate = lr / (1 - pow(u.beta1, u.step))
        u.root = 1 / sqrt(1 - pow(u.beta2, u.step))
    u.floor = u.eps * u.root if u.eps_hat else u.eps
    u.decay = 1 - lr * u.weight_decay if u.decoupled else 1
    u.l2 = 0 if u.decoupled else u.weight_decay


cdef inline void sgd_run(real *param, real *velocity, const real *grad, real lr, real momentum, bint nesterov,
                         real weight_decay, real grad_scale, intp n) noexcept nogil:
    cdef intp i
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


cdef inline void adam_run(real *param, real *m, real *v, const real *grad, real step_size, real share1, real share2,
                          real root, real eps, real decay, real weight_decay, real grad_scale,
                          intp n) noexcept nogil:
    """share = 1 - beta, which float32 would round far off for a beta close to one.

    decay multiplies param (decoupled), weight_decay is added to the gradient (L2); one of them is idle.
    """
    cdef intp i
    cdef real g, m_i, v_i
    for i in range(n):
        g = grad[i] * grad_scale + weight_decay * param[i]
        m_i = m[i] + share1 * (g - m[i])
        v_i = v[i] + share2 * (g * g - v[i])
        m[i] = m_i
        v[i] = v_i
        param[i] = param[i] * decay - step_size * m_i / (sqrt_(v_i) * root + eps)


cdef inline void rmsprop_run(real *param, real *square, real *velocity, const real *grad, real lr, real share, real eps,
                             real momentum, real weight_decay, real grad_scale, intp n) noexcept nogil:
    cdef intp i
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


cdef inline void adagrad_run(real *param, real *total, const real *grad, real lr, real eps, real weight_decay,
                             real grad_scale, intp n) noexcept nogil:
    cdef intp i
    cdef real g, s
    for i in range(n):
        g = grad[i] * grad_scale + weight_decay * param[i]
        s = total[i] + g * g
        total[i] = s
        param[i] -= lr * g / (sqrt_(s) + eps)


cdef inline void clip_run(real *grad, real most, intp n) noexcept nogil:
    """Every entry into [-most, most]; NaN stays."""
    cdef intp i
    for i in range(n):
        grad[i] = -most if grad[i] < -most else most if grad[i] > most else grad[i]


cdef void update_rows(const Update *u, real *param, intp param_row, intp offset, intp state_row, const real *grad,
                      intp grad_row, double grad_scale, bint decays, intp rows, intp n) noexcept nogil:
    """Update a (rows, n) part of the parameters; every array has its own distance between two rows.

    The gradient changes where it is clipped by value.
    offset says where in the flat buffers, and so in the state vectors, the part begins; decays, whether weight decay
    acts on it.
    """
    cdef real *first = <real *> u.first + offset if u.first != NULL else NULL
    cdef real *second = <real *> u.second + offset if u.second != NULL else NULL
    cdef real rate = <real> u.rate, eps = <real> u.floor, decay = <real> (u.decay if decays else 1)
    cdef real l2 = <real> (u.l2 if decays else 0)
    cdef real momentum = <real> u.momentum, scale = <real> grad_scale
    cdef intp r
    if param_row == n and grad_row == n and (state_row == n or first == NULL):
        rows, n = 1, rows * n
    for r in range(rows):
        if u.clip_value > 0:  # where it lies, as in PyTorch
            clip_run(<real *> grad, <real> u.clip_value, n)
        if u.rule == SGD:
            sgd_run(param, first, grad, rate, momentum, u.nesterov, l2, scale, n)
        elif u.rule == ADAM:
            adam_run(param, first, second, grad, rate, <real> (1 - u.beta1), <real> (1 - u.beta2), <real> u.root, eps,
                     decay, l2, scale, n)
        elif u.rule == RMSPROP:
            rmsprop_run(param, first, second, grad, rate, <real> (1 - u.alpha), eps, momentum, l2, scale, n)
        else:
            adagrad_run(param, first, grad, rate, eps, l2, scale, n)
        param += param_row
        grad += grad_row
        first = first + state_row if first != NULL else NULL
        second = second + state_row if second != NULL else NULL


cdef double squared_norm_chunk(const real *x, intp n) noexcept nogil:
    """Eight sums side by side: one float64 chain of additions would wait four cycles for each."""
    cdef double sums[8]
    cdef intp i, j
    for j in range(8):
        sums[j] = 0
    for i in range(n // 8):
        for j in range(8):
            sums[j] += <double> x[8 * i + j] * <double> x[8 * i + j]
    for i in range(n - n % 8, n):
        sums[0] += <double> x[i] * <double> x[i]
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


cdef void squared_norm_share(double *partial, const real *x, intp n, Share *me) noexcept nogil:
    """This thread's part of CHUNKS partial sums of squares of x (n,)."""
    cdef intp chunk, begin
    for chunk in range(share_of(CHUNKS, me.number, me.team), share_of(CHUNKS, me.number + 1, me.team)):
        begin = share_of(n, chunk, CHUNKS)
        partial[chunk] = squared_norm_chunk(x + begin, share_of(n, chunk + 1, CHUNKS) - begin)


cdef inline double total(const double *partial, intp count) noexcept nogil:
    """Partial sums, added in their order."""
    cdef double result = 0
    cdef intp i
    for i in range(count):
        result += partial[i]
    return result


cdef inline bint is_finite(double x) noexcept nogil:
    return x - x == 0


cdef bint all_finite_chunk(const real *x, intp n) noexcept nogil:
    """x - x is zero for finite x and NaN otherwise; adding them up keeps a NaN."""
    cdef real sums[16]
    cdef real result = 0
    cdef intp i, j
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
