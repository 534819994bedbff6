# The optimizers: one pass over the flat buffers of parameters, gradients and state vectors.
#
# An entry is updated in the same way whether a whole buffer is or the rows of a block whose gradient was just computed.
# grad_scale multiplies the gradient: clipping by the global norm costs no pass of its own.
#
# To add a rule: a code here, a function over a vector, its branch in `update_vector`, a class in fastbp/optim.py, a
# function in reference/updates.py.

cpdef enum _Rule:  # checked against fastbp.optim.OPTIMIZERS when the package is imported
    SGD, ADAM, RMSPROP, ADAGRAD

cdef enum:
    MAX_STATE = 4  # state vectors of a rule

cdef struct Update:
    int rule
    double lr, momentum, beta1, beta2, alpha, eps, weight_decay
    double clip_value  # bound on the entries of a gradient; 0 for none
    bint nesterov, decoupled
    bint idle     # whether a gradient of zero changes nothing
    bint eps_hat  # Adam's eps is added before the bias correction (Kingma & Ba 2015, end of section 2)
    intp step     # Adam's, from 1
    void *state[MAX_STATE]  # vectors as long as the parameters, in the rule's order; NULL for those it does not use
    const int64_t *undecayed  # (undecayed_count, 2): from where to where in the flat buffers weight decay does not act
    intp undecayed_count
    double rate, correction, added_eps, decay, l2  # derived from lr and step by prepare_update


cdef void prepare_update(Update *u, double lr) noexcept nogil:
    """Set a step's learning rate and what follows from it; the bias corrections are 1 for rules without betas."""
    u.lr = lr
    u.rate = lr / (1 - pow(u.beta1, u.step))
    u.correction = 1 / sqrt(1 - pow(u.beta2, u.step))
    u.added_eps = u.eps * u.correction if u.eps_hat else u.eps
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


cdef inline void adam_run(real *param, real *m, real *v, const real *grad, real step_size, real one_minus_beta1,
                          real one_minus_beta2, real correction, real eps, real decay, real weight_decay,
                          real grad_scale, intp n) noexcept nogil:
    """1 - beta comes from float64: float32 would lose it for a beta close to one.

    decay multiplies param (decoupled); weight_decay times param is added to the gradient (L2). One has no effect.
    """
    cdef intp i
    cdef real g, m_i, v_i
    for i in range(n):
        g = grad[i] * grad_scale + weight_decay * param[i]
        m_i = m[i] + one_minus_beta1 * (g - m[i])
        v_i = v[i] + one_minus_beta2 * (g * g - v[i])
        m[i] = m_i
        v[i] = v_i
        param[i] = param[i] * decay - step_size * m_i / (sqrt_(v_i) * correction + eps)


cdef inline void rmsprop_run(real *param, real *square, real *velocity, const real *grad, real lr,
                             real one_minus_alpha, real eps, real momentum, real weight_decay, real grad_scale,
                             intp n) noexcept nogil:
    cdef intp i
    cdef real g, s
    for i in range(n):
        g = grad[i] * grad_scale + weight_decay * param[i]
        s = square[i] + one_minus_alpha * (g * g - square[i])
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


cdef inline void clip_run(real *grad, real limit, intp n) noexcept nogil:
    """Every entry into [-limit, limit]; NaN stays."""
    cdef intp i
    for i in range(n):
        grad[i] = -limit if grad[i] < -limit else limit if grad[i] > limit else grad[i]


cdef inline void update_vector(const Update *u, real *param, real **state, const real *grad, real scale, real decay,
                               real l2, intp n) noexcept nogil:
    """Apply the rule to n parameters that lie side by side."""
    cdef real rate = <real> u.rate, eps = <real> u.added_eps, momentum = <real> u.momentum
    cdef intp i
    if u.rule == SGD:
        sgd_run(param, state[0], grad, rate, momentum, u.nesterov, l2, scale, n)
    elif u.rule == ADAM:
        adam_run(param, state[0], state[1], grad, rate, <real> (1 - u.beta1), <real> (1 - u.beta2),
                 <real> u.correction, eps, decay, l2, scale, n)
    elif u.rule == RMSPROP:
        rmsprop_run(param, state[0], state[1], grad, rate, <real> (1 - u.alpha), eps, momentum, l2, scale, n)
    elif u.rule == ADAGRAD:
        adagrad_run(param, state[0], grad, rate, eps, l2, scale, n)
    else:  # a code without a branch here: NaN ends the training
        for i in range(n):
            param[i] = NAN


cdef void update_rows(const Update *u, real *param, intp param_row, intp offset, intp state_row, const real *grad,
                      intp grad_row, double grad_scale, bint decays, intp rows, intp n) noexcept nogil:
    """Update a (rows, n) part of the parameters; every array has its own distance between two rows.

    offset says where in the flat buffers, and so in the state vectors, the part begins; decays, whether weight decay
    acts on it. Clipping by value changes grad.
    """
    cdef real *state[MAX_STATE]
    cdef real scale = <real> grad_scale, decay = <real> (u.decay if decays else 1), l2 = <real> (u.l2 if decays else 0)
    cdef intp r
    cdef int v
    for v in range(MAX_STATE):
        state[v] = <real *> u.state[v] + offset if u.state[v] != NULL else NULL
    if param_row == n and grad_row == n and (state_row == n or state[0] == NULL):
        rows, n = 1, rows * n
    for r in range(rows):
        if u.clip_value > 0:  # in place, as in PyTorch
            clip_run(<real *> grad, <real> u.clip_value, n)
        update_vector(u, param, state, grad, scale, decay, l2, n)
        param += param_row
        grad += grad_row
        for v in range(MAX_STATE):
            state[v] = state[v] + state_row if state[v] != NULL else NULL
