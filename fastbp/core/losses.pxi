# Losses and their gradients in one pass over the predictions.
#
# A loss is the mean over the batch (cross-entropy) or over all entries (the others), weighted where samples or labels
# have weights. Rows are summed in float64 over fixed chunks, which are then added in order.

cdef enum:
    CROSS_ENTROPY = -1  # beside the codes of ElementwiseLoss

cdef enum ElementwiseLoss:  # the codes of fastbp.core.plan.ELEMENTWISE_LOSSES
    BINARY_CROSS_ENTROPY, MSE, MAE, HUBER, QUANTILE, POISSON


cdef double cross_entropy_row(real *dlogits, const real *logits, double normal, double log_sum, intp label,
                              const real *weight, double weight_sum, double smoothing, double scale,
                              intp classes) noexcept nogil:
    """One row's loss and gradient, both divided by the total weight; dlogits comes as exp(logits - top).

    normal is the sum of those, log_sum that of exp(logits), as a logarithm.
    """
    cdef double of_label = weight[label] if weight != NULL else 1
    cdef double uniform = smoothing / classes, loss = 0
    cdef real hot = <real> ((1 - smoothing) * of_label * scale)
    cdef real mass = <real> (((1 - smoothing) * of_label + uniform * weight_sum) * scale), share
    cdef intp j
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


cdef inline double sum_of(const real *x, intp n) noexcept nogil:
    cdef double result = 0
    cdef intp j
    for j in range(n):
        result += x[j]
    return result


cdef inline real largest(const real *logits, intp classes) noexcept nogil:
    """What log-sum-exp is shifted by. A NaN may be lost here, but not in the sum of exponentials."""
    cdef real top = logits[0]
    cdef intp j
    for j in range(1, classes):
        top = top if top > logits[j] else logits[j]  # exactly the instruction MAX
    return top


cdef double cross_entropy_rows(real *dlogits, const real *logits, const int64_t *labels, const real *weight,
                               const real *sample_weight, double smoothing, double scale, intp rows,
                               intp classes) noexcept nogil:
    """Softmax cross-entropy of logits (rows, C) and labels (rows,); dlogits is its gradient.

    The classes' weights (C,) and the samples' (rows,) may be NULL.
    """
    cdef double loss = 0, weight_sum = classes
    cdef real top[ROWS_PER_CHUNK]
    cdef double normal[ROWS_PER_CHUNK]
    cdef double log_sum[ROWS_PER_CHUNK]
    cdef intp first = 0, count, row, i, j
    if weight != NULL:
        weight_sum = 0
        for i in range(classes):
            weight_sum += weight[i]
    for i in range(ROWS_PER_CHUNK):  # of rows that the last chunk may not have, there is a logarithm too
        normal[i] = 1
    while first < rows:  # a few rows at a time: their exponentials are one vectorised loop, however few the classes
        count = min(rows - first, <intp> ROWS_PER_CHUNK)
        for i in range(count):
            top[i] = largest(logits + (first + i) * classes, classes)
            for j in range((first + i) * classes, (first + i + 1) * classes):
                dlogits[j] = logits[j] - top[i]
        for j in range(first * classes, (first + count) * classes):
            dlogits[j] = exp_(dlogits[j])
        for i in range(count):
            normal[i] = sum_of(dlogits + (first + i) * classes, classes)
        for i in range(ROWS_PER_CHUNK):  # vectorised as well
            log_sum[i] = log_double(normal[i])
        for i in range(count):
            row = (first + i) * classes
            loss += cross_entropy_row(dlogits + row, logits + row, normal[i], top[i] + log_sum[i], labels[first + i],
                                      weight, weight_sum, smoothing,
                                      scale * sample_weight[first + i] if sample_weight != NULL else scale, classes)
        first += count
    return loss


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


cdef double elementwise_run(real *dpred, const real *pred, const real *target, int kind, real parameter, real scale,
                            intp n) noexcept nogil:
    """The sum of an elementwise loss of pred (n,) and target (n,), not scaled; dpred is the gradient, scaled."""
    cdef double loss = 0
    cdef real gradient = 0
    cdef intp i
    for i in range(n):
        loss += elementwise_term(&gradient, pred[i], target[i], kind, parameter)
        dpred[i] = gradient * scale
    return loss


cdef struct Criterion:
    int kind             # of ElementwiseLoss, or CROSS_ENTROPY
    double parameter
    const void *weight   # (classes,) or NULL


cdef double loss_scale(const Criterion *criterion, const void *targets, const real *sample_weight, intp batch,
                       intp outputs) noexcept nogil:
    """What a batch's weighted sum of losses is multiplied with to be their mean."""
    cdef const real *class_weight = <const real *> criterion.weight
    cdef double of_sample, sum_of_weights = 0
    cdef intp i
    if class_weight == NULL and sample_weight == NULL:
        return 1.0 / batch if criterion.kind == CROSS_ENTROPY else 1.0 / (batch * outputs)
    for i in range(batch):
        of_sample = sample_weight[i] if sample_weight != NULL else 1
        sum_of_weights += of_sample * (class_weight[(<const int64_t *> targets)[i]] if class_weight != NULL else 1)
    if sum_of_weights == 0:
        return 0  # a batch that weighs nothing teaches nothing
    return 1 / sum_of_weights if criterion.kind == CROSS_ENTROPY else 1 / (sum_of_weights * outputs)


cdef double loss_rows(const Criterion *criterion, real *dpred, const real *pred, const void *targets,
                      const real *sample_weight, double scale, intp begin, intp end, intp outputs) noexcept nogil:
    """Rows begin..end of a batch: their part of the loss, and its gradient in dpred (B, O)."""
    cdef const real *target = <const real *> targets
    cdef real parameter = <real> criterion.parameter
    cdef double loss = 0, of_row
    cdef intp i
    if criterion.kind == CROSS_ENTROPY:
        return cross_entropy_rows(dpred + begin * outputs, pred + begin * outputs, <const int64_t *> targets + begin,
                                  <const real *> criterion.weight,
                                  sample_weight + begin if sample_weight != NULL else sample_weight,
                                  criterion.parameter, scale, end - begin, outputs)
    if sample_weight == NULL:
        return scale * elementwise_run(dpred + begin * outputs, pred + begin * outputs, target + begin * outputs,
                                       criterion.kind, parameter, <real> scale, (end - begin) * outputs)
    for i in range(begin, end):
        of_row = scale * sample_weight[i]
        loss += of_row * elementwise_run(dpred + i * outputs, pred + i * outputs, target + i * outputs,
                                         criterion.kind, parameter, <real> of_row, outputs)
    return loss


cdef void loss_share(double *partial, const Criterion *criterion, real *dpred, const real *pred, const void *targets,
                     const real *sample_weight, double scale, intp batch, intp outputs, Share *me) noexcept nogil:
    """A thread's rows, chunk by chunk; partial (CHUNKS,) gets each one's part of the loss."""
    cdef intp chunk, rows = chunk_rows(batch)
    for chunk in range(first_chunk(batch, me.number, me.team), first_chunk(batch, me.number + 1, me.team)):
        partial[chunk] = loss_rows(criterion, dpred, pred, targets, sample_weight, scale, chunk * rows,
                                   min(batch, (chunk + 1) * rows), outputs)


cdef intp count_correct(const real *pred, const void *targets, int kind, intp begin, intp end,
                        intp outputs) noexcept nogil:
    """Rows whose largest logit is the label's, or whose every output is on its target's side; 0 for a regression."""
    cdef const int64_t *labels = <const int64_t *> targets
    cdef const real *target = <const real *> targets
    cdef const real *row
    cdef intp i, j, correct = 0
    cdef real top
    cdef bint right
    if kind == CROSS_ENTROPY:
        for i in range(begin, end):
            row = pred + i * outputs
            top = largest(row, outputs)
            right = row[labels[i]] == top
            for j in range(labels[i]):  # the first of the largest counts
                right = right & (row[j] != top)
            correct += right
    elif kind == BINARY_CROSS_ENTROPY:
        for i in range(begin, end):
            right = True
            for j in range(i * outputs, (i + 1) * outputs):
                right = right and (pred[j] > 0) == (target[j] > <real> 0.5)
            correct += right
    return correct
