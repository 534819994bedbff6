# Losses and their gradients in one pass over the predictions.
#
# A loss is the mean over the batch (cross-entropy) or over all entries (the others). Rows or entries are summed in
# float64 over CHUNKS fixed chunks, which are then added in order.

cdef enum ElementwiseLoss:  # the codes of fastbp.core.plan.ELEMENTWISE_LOSSES
    BINARY_CROSS_ENTROPY, MSE, MAE, HUBER, QUANTILE, POISSON


cdef double cross_entropy_row(real *dlogits, const real *logits, long label, const real *weight, double weight_sum,
                              double smoothing, double scale, long classes) noexcept nogil:
    """One row's loss and gradient, both divided by the total weight; log-sum-exp is shifted by the maximum."""
    cdef real top = logits[0], share
    cdef double normal = 0
    cdef double of_label = weight[label] if weight != NULL else 1
    cdef double uniform = smoothing / classes, log_sum, loss = 0
    cdef real hot = <real> ((1 - smoothing) * of_label * scale)
    cdef real mass = <real> (((1 - smoothing) * of_label + uniform * weight_sum) * scale)
    cdef long j
    for j in range(classes):
        top = logits[j] if not logits[j] <= top else top  # a NaN takes over
    for j in range(classes):
        dlogits[j] = exp_(logits[j] - top)
    for j in range(classes):
        normal += dlogits[j]
    log_sum = top + log(normal)
    loss = (1 - smoothing) * of_label * (log_sum - logits[label])
    if smoothing != 0:
        for j in range(classes):
            loss += uniform * (weight[j] if weight != NULL else 1) * (log_sum - logits[j])
    share = <real> (mass / normal)
    for j in range(classes):
        dlogits[j] *= share
    if smoothing != 0:
        for j in range(classes):
            dlogits[j] -= <real> (uniform * (weight[j] if weight != NULL else 1) * scale)
    dlogits[label] -= hot
    return loss * scale


cdef double cross_entropy_(real *dlogits, const real *logits, const int64_t *labels, const real *weight,
                           double smoothing, long batch, long classes, int threads) noexcept nogil:
    """Softmax cross-entropy of logits (B, C), labels (B,), weights (C,) or NULL; dlogits (B, C) is its gradient."""
    cdef double partial[CHUNKS]
    cdef double weight_sum = classes, label_weight = batch, scale
    cdef long i, chunk
    if weight != NULL:
        weight_sum = label_weight = 0
        for i in range(classes):
            weight_sum += weight[i]
        for i in range(batch):
            label_weight += weight[labels[i]]
    scale = 1 / label_weight if label_weight != 0 else 0  # a batch of labels that weigh nothing teaches nothing
    for chunk in prange(CHUNKS, num_threads=team_for(batch * classes, threads), schedule="static"):
        partial[chunk] = 0
        for i in range(chunk_begin(chunk, batch), chunk_begin(chunk + 1, batch)):
            partial[chunk] += cross_entropy_row(dlogits + i * classes, logits + i * classes, labels[i], weight,
                                                weight_sum, smoothing, scale, classes)
    return total(partial)


cdef inline double elementwise_term(real *gradient, real p, real t, int kind, real parameter) noexcept nogil:
    cdef real e = p - t
    if kind == BINARY_CROSS_ENTROPY:
        gradient[0] = sigmoid(p) - t
        return (0 if p < 0 else p) - p * t + log1p_(exp_(-abs_(p)))
    if kind == MSE:
        gradient[0] = 2 * e
        return e * e
    if kind == MAE:
        gradient[0] = 1 if e > 0 else -1 if e < 0 else e  # e: zero, or NaN
        return abs_(e)
    if kind == HUBER:
        if abs_(e) > parameter:
            gradient[0] = parameter if e > 0 else -parameter
            return parameter * (abs_(e) - <real> 0.5 * parameter)
        gradient[0] = e
        return <real> 0.5 * e * e
    if kind == QUANTILE:
        gradient[0] = 1 - parameter if e > 0 else -parameter if e < 0 else e
        return (1 - parameter) * e if e > 0 else -parameter * e
    gradient[0] = exp_(p) - t
    return exp_(p) - t * p


cdef double elementwise_chunk(real *dpred, const real *pred, const real *target, int kind, real parameter, real scale,
                              long begin, long end) noexcept nogil:
    cdef double loss = 0
    cdef real gradient = 0
    cdef long i
    for i in range(begin, end):
        loss += elementwise_term(&gradient, pred[i], target[i], kind, parameter)
        dpred[i] = gradient * scale
    return loss


cdef double elementwise_loss_(real *dpred, const real *pred, const real *target, int kind, double parameter, long n,
                              int threads) noexcept nogil:
    """The mean of an elementwise loss of pred (n,) and target (n,); dpred (n,) is its gradient."""
    cdef double partial[CHUNKS]
    cdef long chunk
    for chunk in prange(CHUNKS, num_threads=team_for(n, threads), schedule="static"):
        partial[chunk] = elementwise_chunk(dpred, pred, target, kind, <real> parameter, <real> (1.0 / n),
                                           chunk_begin(chunk, n), chunk_begin(chunk + 1, n))
    return total(partial) / n
