# The optimizers: one pass over the flat buffers of parameters, gradients and state vectors.
#
# An entry is updated in the same way whether a whole buffer is or the rows of a block whose gradient was just computed.
# grad_scale multiplies the gradient: clipping by the global norm costs no pass of its own.
#
# To add a rule: a code here, a function over a vector, its branch in `apply_rule`, a class in fastbp/optim.py, a
# function in reference/updates.py.

cpdef enum _Rule:  # checked against fastbp.optim.OPTIMIZERS when the package is imported
    SGD, ADAM, RMSPROP, ADAGRAD

cdef enum:
    MAX_STATE = 4  # state vectors of a rule

cdef enum:
    L1_ENTRIES = 256  # of a gradient that are changed at a time

cdef packed struct Group:  # plan.GROUP
    int64_t begin, end
    double lr, weight_decay, l1

cdef struct Update:
    int rule
    double lr, momentum, beta1, beta2, alpha, eps, weight_decay
    double clip_value  # bound on the entries of a gradient; 0 for none
    bint nesterov, decoupled
    bint idle     # whether a gradient of zero changes nothing
    bint eps_hat  # Adam's eps is added before the bias correction (Kingma & Ba 2015, end of section 2)
    intp step     # Adam's, from 1
    void *state[MAX_STATE]  # vectors as long as the parameters, in the rule's order; NULL for those it does not use
    double l1              # times the sign of a parameter, added to its gradient; of AdamW, a soft threshold
    const Group *groups    # in their order, or NULL
    intp group_count
    double rate, correction, added_eps  # derived from lr and step by prepare_update


cdef void prepare_update(Update *u, double lr) noexcept nogil:
    """Set a step's learning rate and what follows from it; the bias corrections are 1 for rules without betas."""
    u.lr = lr
    u.rate = lr / (1 - pow(u.beta1, u.step))
    u.correction = 1 / sqrt(1 - pow(u.beta2, u.step))
    u.added_eps = u.eps * u.correction if u.eps_hat else u.eps


cdef inline const Group *group_at(const Update *u, intp offset) noexcept nogil:
    """The group of the parameter at this place in the flat buffers, or NULL."""
    cdef intp low = 0, high = u.group_count, middle
    while low < high:
        middle = (low + high) // 2
        if u.groups[middle].end <= offset:
            low = middle + 1
        else:
            high = middle
    return &u.groups[low] if low < u.group_count and u.groups[low].begin <= offset else NULL


cdef inline bint is_frozen(const Update *u, intp offset) noexcept nogil:
    """Whether no step changes the parameter at this place."""
    cdef const Group *group = group_at(u, offset)
    return group != NULL and group.lr == 0


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


cdef struct Rates:  # of a part of the parameters, which is in one group
    double rate, decay, l2, l1


cdef inline Rates rates_of(const Update *u, const Group *group) noexcept nogil:
    cdef Rates r
    cdef double lr = u.lr, weight_decay = u.weight_decay
    r.rate, r.l1 = u.rate, u.l1
    if group != NULL:
        lr, weight_decay, r.rate, r.l1 = lr * group.lr, weight_decay * group.weight_decay, r.rate * group.lr, (
            r.l1 * group.l1)
    r.decay = 1 - lr * weight_decay if u.decoupled else 1
    r.l2 = 0 if u.decoupled else weight_decay
    r.l1 = lr * r.l1 if u.decoupled else r.l1
    return r


cdef inline void apply_rule(const Update *u, real *param, real **state, const real *grad, real scale, real rate,
                            real decay, real l2, intp n) noexcept nogil:
    """The rule for n parameters that lie side by side."""
    cdef real eps = <real> u.added_eps, momentum = <real> u.momentum
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


cdef inline real sign(real x) noexcept nogil:
    return 1 if x > 0 else -1 if x < 0 else 0


cdef void apply_with_l1(const Update *u, real *param, real **state, const real *grad, real scale, const Rates *r,
                        intp n) noexcept nogil:
    """`apply_rule` with the gradient of an L1 penalty; after a decoupled one the proximal step, a soft threshold."""
    cdef real changed[L1_ENTRIES]
    cdef real *part[MAX_STATE]
    cdef real l1 = <real> r.l1, added = 0 if u.decoupled else l1, rate = <real> r.rate
    cdef intp first = 0, count, i
    cdef int v
    while first < n:
        count = min(n - first, <intp> L1_ENTRIES)
        for v in range(MAX_STATE):
            part[v] = state[v] + first if state[v] != NULL else NULL
        for i in range(count):
            changed[i] = grad[first + i] * scale + added * sign(param[first + i])
        apply_rule(u, param + first, part, changed, <real> 1, rate, <real> r.decay, <real> r.l2, count)
        if u.decoupled:
            for i in range(first, first + count):
                param[i] = sign(param[i]) * max(abs_(param[i]) - l1, <real> 0)
        first += count


cdef void update_rows(const Update *u, real *param, intp param_row, intp offset, intp state_row, const real *grad,
                      intp grad_row, double grad_scale, intp rows, intp n) noexcept nogil:
    """Update a (rows, n) part of a tensor; every array has its own distance between two rows.

    offset says where in the flat buffers, and so in the state vectors, the part begins. Clipping by value changes grad.
    """
    cdef real *state[MAX_STATE]
    cdef const Group *group = group_at(u, offset)
    cdef Rates rates = rates_of(u, group)
    cdef real scale = <real> grad_scale
    cdef intp r
    cdef int v
    if group != NULL and group.lr == 0:
        return
    for v in range(MAX_STATE):
        state[v] = <real *> u.state[v] + offset if u.state[v] != NULL else NULL
    if param_row == n and grad_row == n and (state_row == n or state[0] == NULL):
        rows, n = 1, rows * n
    for r in range(rows):
        if u.clip_value > 0:  # in place, as in PyTorch
            clip_run(<real *> grad, <real> u.clip_value, n)
        if rates.l1 != 0:
            apply_with_l1(u, param, state, grad, scale, &rates, n)
        else:
            apply_rule(u, param, state, grad, scale, <real> rates.rate, <real> rates.decay, <real> rates.l2, n)
        param += param_row
        grad += grad_row
        for v in range(MAX_STATE):
            state[v] = state[v] + state_row if state[v] != NULL else NULL


cdef double squared_norm_part(const Update *u, const real *x, intp begin, intp end) noexcept nogil:
    """Of the gradients begin..end those that are not of frozen parameters."""
    cdef double result = 0
    cdef const Group *group
    for group in u.groups[:u.group_count]:
        if group.lr == 0 and group.begin < end and group.end > begin:
            if begin < group.begin:
                result += squared_norm_chunk(x + begin, group.begin - begin)
            begin = min(end, group.end)
    return result + squared_norm_chunk(x + begin, end - begin)


cdef void thread_squared_norm(double *partial, const Update *u, const real *x, intp n,
                              const Thread *thread) noexcept nogil:
    """This thread's part of the CHUNKS partial sums of squares of a gradient x (n,)."""
    cdef Range chunks = thread_part(CHUNKS, thread), items
    cdef intp chunk
    for chunk in range(chunks.begin, chunks.end):
        items = part(n, chunk, CHUNKS)
        partial[chunk] = squared_norm_part(u, x, items.begin, items.end)
