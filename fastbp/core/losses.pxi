# Losses and their gradients in one pass over the predictions.
#
# A loss is the mean over the batch (cross-entropy) or over all entries (the others), weighted where samples, entries or
# labels have weights. Rows are summed in float64 over the chunks of partition.pxi, which are then added in order.
#
# To add an elementwise loss: a code here, a branch in `elementwise_term`, a class in fastbp/losses.py, a function in
# reference/losses.py.

cpdef enum _Loss:  # checked against fastbp.losses.LOSSES when the package is imported
    CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MSE, MAE, HUBER, QUANTILE, POISSON


cdef struct Criterion:
    int code
    double parameter     # delta or quantile
    double smoothing     # of labels
    const void *weight   # of classes, (C,), of binary cross-entropy (2,); or NULL
    const void *parameters  # of each output (O,), a quantile or the weight of positive targets; or NULL
    bint soft            # whether the targets of cross-entropy are probabilities (B, C)
    bint missing         # whether a target that is NaN is left out
    bint normalized      # whether the mean is over the weights; else over the number of samples
    intp weight_columns  # of the samples' weights: 1, or one for each output


cdef struct Strips:  # a matrix in strips of `width` columns, each row by row: one for rows, or panels without padding
    intp count, width, distance  # distance: from strip to strip


cdef inline Strips one_strip(intp n) noexcept nogil:
    """Rows of n entries."""
    cdef Strips s
    s.count, s.width, s.distance = 1, n, 0
    return s


cdef inline Strips panel_strips(Layout layout, intp n) noexcept nogil:
    """Panels, of which n columns fill every one."""
    cdef Strips s
    s.count, s.width, s.distance = n // layout.row, layout.row, layout.panel
    return s


cdef inline intp entry(Strips s, intp j) noexcept nogil:
    """Where entry j of a row lies."""
    return j if s.count == 1 else j // s.width * s.distance + j % s.width


cdef double cross_entropy_row(real *dlogits, const real *logits, Strips s, double exp_sum, double log_sum, intp label,
                              const real *weight, double weight_sum, double smoothing, double scale) noexcept nogil:
    """One row's loss and gradient, both times scale; dlogits holds exp(logits - top), which `exp_sum` is the sum of.

    log_sum is the logarithm of the sum of exp(logits).
    """
    cdef double label_weight = weight[label] if weight != NULL else 1
    cdef double uniform = smoothing / (s.count * s.width), loss = 0
    cdef real label_target = <real> ((1 - smoothing) * label_weight * scale)
    cdef real row_target = <real> (((1 - smoothing) * label_weight + uniform * weight_sum) * scale), factor
    cdef intp q, at, first, j
    loss = (1 - smoothing) * label_weight * (log_sum - logits[entry(s, label)])
    factor = <real> (row_target / exp_sum)
    for q in range(s.count):
        at, first = q * s.distance, q * s.width
        for j in range(s.width):
            dlogits[at + j] *= factor
        if smoothing != 0:
            for j in range(s.width):
                loss += uniform * (weight[first + j] if weight != NULL else 1) * (log_sum - logits[at + j])
            for j in range(s.width):
                dlogits[at + j] -= <real> (uniform * (weight[first + j] if weight != NULL else 1) * scale)
    dlogits[entry(s, label)] -= label_target
    return loss * scale


cdef double soft_entropy_row(real *dlogits, const real *logits, Strips s, double exp_sum, double log_sum,
                             const real *target, const real *weight, double smoothing, double scale) noexcept nogil:
    """`cross_entropy_row` for a target that is a distribution over the classes."""
    cdef intp q, at, first, j
    cdef double uniform = smoothing / (s.count * s.width), loss = 0, mass = 0, share
    cdef real factor
    for j in range(s.count * s.width):
        mass += ((1 - smoothing) * target[j] + uniform) * (weight[j] if weight != NULL else 1)
    factor = <real> (mass * scale / exp_sum)
    for q in range(s.count):
        at, first = q * s.distance, q * s.width
        for j in range(s.width):
            share = ((1 - smoothing) * target[first + j] + uniform) * (weight[first + j] if weight != NULL else 1)
            loss += share * (log_sum - logits[at + j])
            dlogits[at + j] = dlogits[at + j] * factor - <real> (share * scale)
    return loss * scale


cdef inline double add_up(double result, const real *x, intp n) noexcept nogil:
    cdef intp j
    for j in range(n):
        result += x[j]
    return result


cdef inline void add_by_columns(double *sums, const real *x, intp n) noexcept nogil:
    """sums (PANEL,) += x (n,), entry j to sum j % PANEL: in a single one each addition would wait for the last."""
    cdef intp i, j
    for i in range(n // panel_width(x)):
        for j in range(panel_width(x)):
            sums[j] += x[i * panel_width(x) + j]
    i = n - n % panel_width(x)
    for j in range(n - i):
        sums[j] += x[i + j]


cdef inline real greater(real a, real b) noexcept nogil:
    """Exactly the instruction MAX."""
    return a if a > b else b


cdef inline real largest(real top, const real *logits, intp n) noexcept nogil:
    """Of top and n logits: the shift of log-sum-exp. A NaN may be lost here, but not in the sum of exponentials."""
    cdef real tops[MAX_PANEL]
    cdef intp i, j = 0, width = panel_width(logits)
    if n >= 2 * width:
        memcpy(&tops[0], logits, width * sizeof(real))
        for i in range(1, n // width):
            for j in range(width):
                tops[j] = greater(tops[j], logits[i * width + j])
        for j in range(width):
            top = greater(top, tops[j])
        j = n - n % width
    for j in range(j, n):
        top = greater(top, logits[j])
    return top


cdef double cross_entropy_rows(const Criterion *criterion, real *dlogits, const real *logits, const int64_t *labels,
                               const real *target, const real *sample_weight, double scale, intp rows,
                               Strips s) noexcept nogil:
    """Softmax cross-entropy of logits (rows, C) and labels (rows,), or probabilities target (rows, C).

    dlogits is its gradient. The weights of classes (C,) and of samples (rows,) may be NULL.
    """
    cdef const real *weight = <const real *> criterion.weight
    cdef double smoothing = criterion.smoothing, row_scale
    cdef intp classes = s.count * s.width, q, at
    cdef double loss = 0, weight_sum = classes
    cdef real top[ROWS_PER_CHUNK]
    cdef double exp_sum[ROWS_PER_CHUNK]
    cdef double sums[ROWS_PER_CHUNK][MAX_PANEL]  # of many classes
    cdef bint many = classes > panel_width(logits)
    cdef double log_sum[ROWS_PER_CHUNK]
    cdef intp first = 0, count, row, i, j
    if weight != NULL:
        weight_sum = 0
        for i in range(classes):
            weight_sum += weight[i]
    for i in range(ROWS_PER_CHUNK):  # the loop below takes ROWS_PER_CHUNK logarithms, also where there are fewer rows
        exp_sum[i] = 1
    while first < rows:  # a few rows at a time: their exponentials are one vectorised loop, however few the classes
        count = min(rows - first, <intp> ROWS_PER_CHUNK)
        for i in range(count):
            top[i], exp_sum[i] = logits[(first + i) * s.width], 0
            if many:
                memset(&sums[i][0], 0, MAX_PANEL * sizeof(double))
        for q in range(s.count):
            for i in range(count):
                top[i] = largest(top[i], logits + q * s.distance + (first + i) * s.width, s.width)
        for q in range(s.count):
            at = q * s.distance + first * s.width
            for i in range(count):
                for j in range(at + i * s.width, at + (i + 1) * s.width):
                    dlogits[j] = logits[j] - top[i]
            for j in range(at, at + count * s.width):
                dlogits[j] = exp_(dlogits[j])
            for i in range(count):
                if many:
                    add_by_columns(&sums[i][0], dlogits + at + i * s.width, s.width)
                else:
                    exp_sum[i] = add_up(exp_sum[i], dlogits + at + i * s.width, s.width)
        for i in range(count if many else 0):
            exp_sum[i] = add_up(0, &sums[i][0], panel_width(logits))
        for i in range(ROWS_PER_CHUNK):  # vectorised as well
            log_sum[i] = log_double(exp_sum[i])
        for i in range(count):
            row = (first + i) * s.width
            row_scale = scale * sample_weight[first + i] if sample_weight != NULL else scale
            if criterion.soft:
                loss += soft_entropy_row(dlogits + row, logits + row, s, exp_sum[i], top[i] + log_sum[i],
                                         target + (first + i) * classes, weight, smoothing, row_scale)
            else:
                loss += cross_entropy_row(dlogits + row, logits + row, s, exp_sum[i], top[i] + log_sum[i],
                                          labels[first + i], weight, weight_sum, smoothing, row_scale)
        first += count
    return loss


cdef void softmax_rows(real *y, const real *logits, intp begin, intp end, intp classes) noexcept nogil:
    """Rows begin..end of y = softmax(logits), both (B, C), which may be one array."""
    cdef intp row, i, j
    cdef real top
    cdef double exp_sum
    cdef double sums[MAX_PANEL]
    for row in range(begin, end):
        i = row * classes
        top = largest(logits[i], logits + i, classes)
        for j in range(i, i + classes):
            y[j] = exp_(logits[j] - top)
        memset(&sums[0], 0, MAX_PANEL * sizeof(double))
        add_by_columns(&sums[0], y + i, classes)
        exp_sum = add_up(0, &sums[0], min(classes, panel_width(y)))
        for j in range(i, i + classes):
            y[j] = <real> (y[j] / exp_sum)


cdef inline double elementwise_term(real *gradient, real p, real t, int code, real parameter) noexcept nogil:
    cdef real e = p - t
    if code == BINARY_CROSS_ENTROPY:
        gradient[0] = sigmoid(p) - t
        return (0 if p < 0 else p) - p * t + log1p_(exp_(-abs_(p)))
    if code == MSE:
        gradient[0] = 2 * e
        return e * e
    if code == MAE:
        gradient[0] = 1 if e > 0 else -1 if e < 0 else e  # e: zero, or NaN
        return abs_(e)
    if code == HUBER:
        if abs_(e) > parameter:
            gradient[0] = parameter if e > 0 else -parameter
            return parameter * (abs_(e) - <real> 0.5 * parameter)
        gradient[0] = e
        return <real> 0.5 * e * e
    if code == QUANTILE:
        gradient[0] = 1 - parameter if e > 0 else -parameter if e < 0 else e
        return (1 - parameter) * e if e > 0 else -parameter * e
    if code == POISSON:
        gradient[0] = exp_(p) - t
        return exp_(p) - t * p
    gradient[0] = NAN  # a code without a branch here: NaN ends the training
    return NAN


cdef inline double weighted_binary_term(real *gradient, real p, real t, real positive) noexcept nogil:
    """Binary cross-entropy in which positive targets weigh more: (1 - t) p + (1 + (w - 1) t) log(1 + exp(-p))."""
    cdef real weight = 1 + (positive - 1) * t
    gradient[0] = weight * sigmoid(p) - (weight - 1 + t)
    return (1 - t) * p + weight * (log1p_(exp_(-abs_(p))) + (-p if p < 0 else 0))


cdef inline bint is_plain(const Criterion *c) noexcept nogil:
    """Whether all entries of an elementwise loss have one parameter and the weight of their sample."""
    return not c.missing and c.parameters == NULL and c.weight_columns <= 1 and c.smoothing == 0


cdef double elementwise_entries(const Criterion *c, real *dpred, const real *pred, const real *target,
                                const real *weights, Strips s, real scale) noexcept nogil:
    """The sum of a row's losses, of which each has a weight (NULL for ones) and a parameter of its own, not scaled."""
    cdef const real *parameters = <const real *> c.parameters
    cdef real gradient = 0, t, parameter = <real> c.parameter, smoothing = <real> c.smoothing, weight
    cdef double loss = 0, term
    cdef intp j, at
    for j in range(s.count * s.width):
        at, t = entry(s, j), target[j]
        if c.missing and t != t:
            dpred[at] = 0
            continue
        parameter = parameters[j] if parameters != NULL else parameter
        weight = weights[j] if weights != NULL else 1
        if smoothing != 0:
            t = t * (1 - smoothing) + smoothing / 2
        if c.code == BINARY_CROSS_ENTROPY and parameters != NULL:
            term = weighted_binary_term(&gradient, pred[at], t, parameter)
        else:
            term = elementwise_term(&gradient, pred[at], t, c.code, parameter)
        loss += weight * term
        dpred[at] = gradient * (weight * scale)
    return loss


cdef double elementwise_run(double loss, real *dpred, const real *pred, const real *target, int code, real parameter,
                            real scale, intp n) noexcept nogil:
    """loss plus the elementwise losses of pred (n,) and target (n,), not scaled; dpred is the gradient, scaled."""
    cdef real gradient = 0
    cdef intp i
    for i in range(n):
        loss += elementwise_term(&gradient, pred[i], target[i], code, parameter)
        dpred[i] = gradient * scale
    return loss


cdef double elementwise_row(double loss, real *dpred, const real *pred, const real *target, Strips s, int code,
                            real parameter, real scale) noexcept nogil:
    """`elementwise_run` over a row."""
    cdef intp q, at
    for q in range(s.count):
        at = q * s.distance
        loss = elementwise_run(loss, dpred + at, pred + at, target + q * s.width, code, parameter, scale, s.width)
    return loss


cdef inline double weight_of_class(const Criterion *c, const void *targets, intp i, intp outputs,
                                   const real *witness) noexcept nogil:
    """The weight of a sample by its class; of probabilities, the mean of the classes' weights."""
    cdef const real *weight = <const real *> c.weight
    cdef const real *target
    cdef double result = 0
    cdef intp j
    if weight == NULL:
        return 1
    if c.code == CROSS_ENTROPY and not c.soft:
        return weight[(<const int64_t *> targets)[i]]
    target = <const real *> targets + i * outputs
    if c.code != CROSS_ENTROPY:  # binary, with one output
        return 0 if c.missing and target[0] != target[0] else weight[0] + (weight[1] - weight[0]) * target[0]
    for j in range(outputs):
        result += weight[j] * target[j]
    return result


cdef inline double entries_weight(const Criterion *c, const real *target, const real *weights,
                                  intp outputs) noexcept nogil:
    """The mean weight of a row's entries, of which each has its own; one that is missing has none."""
    cdef double result = 0
    cdef intp j
    for j in range(outputs):
        if not (c.missing and target[j] != target[j]):
            result += weights[j] if weights != NULL else 1
    return result / outputs


cdef double loss_weight(const Criterion *c, const void *targets, const real *sample_weight, intp batch,
                        intp outputs) noexcept nogil:
    """The total weight of a batch: of its samples, their labels and entries; or how many samples there are."""
    cdef bint by_entries = c.code != CROSS_ENTROPY and (c.missing or c.weight_columns > 1)
    cdef const real *weights
    cdef double weight, total_weight = 0
    cdef intp i
    if not c.normalized or (c.weight == NULL and sample_weight == NULL and not by_entries):
        return batch
    for i in range(batch):
        weight = sample_weight[i] if sample_weight != NULL and c.weight_columns == 1 else 1
        if by_entries:
            weights = sample_weight + i * outputs if c.weight_columns > 1 else NULL
            weight *= entries_weight(c, <const real *> targets + i * outputs, weights, outputs)
        total_weight += weight * weight_of_class(c, targets, i, outputs, sample_weight)
    return total_weight


cdef inline double loss_scale(const Criterion *criterion, double total_weight, intp outputs) noexcept nogil:
    """The factor that turns a weighted sum of losses into their mean."""
    if total_weight == 0:
        return 0  # all weights are zero: neither loss nor gradient
    return 1 / total_weight if criterion.code == CROSS_ENTROPY else 1 / (total_weight * outputs)


cdef double loss_rows(const Criterion *criterion, real *dpred, const real *pred, Strips s, const void *targets,
                      const real *sample_weight, double scale, intp begin, intp end) noexcept nogil:
    """Rows begin..end of a batch: their part of the loss, and its gradient in dpred (B, O), in strips as pred."""
    cdef intp outputs = s.count * s.width, i, row = begin * s.width
    cdef const real *target = <const real *> targets
    cdef const real *weights
    cdef real parameter = <real> criterion.parameter
    cdef bint plain = is_plain(criterion), weighted
    cdef double loss = 0, row_scale
    if criterion.code == CROSS_ENTROPY:
        return cross_entropy_rows(criterion, dpred + row, pred + row, <const int64_t *> targets + begin,
                                  target + begin * outputs,
                                  sample_weight + begin if sample_weight != NULL else sample_weight, scale,
                                  end - begin, s)
    weighted = (sample_weight != NULL and criterion.weight_columns == 1) or criterion.weight != NULL or not plain
    if not weighted and s.count == 1:
        return scale * elementwise_run(0, dpred + row, pred + row, target + row, criterion.code, parameter,
                                       <real> scale, (end - begin) * outputs)
    for i in range(begin, end):
        row = i * s.width
        if not weighted:  # one sum, as of one strip
            loss = elementwise_row(loss, dpred + row, pred + row, target + i * outputs, s, criterion.code, parameter,
                                   <real> scale)
            continue
        row_scale = scale * weight_of_class(criterion, targets, i, outputs, pred)
        if sample_weight != NULL and criterion.weight_columns == 1:
            row_scale *= sample_weight[i]
        if plain:
            loss += row_scale * elementwise_row(0, dpred + row, pred + row, target + i * outputs, s, criterion.code,
                                                parameter, <real> row_scale)
        else:
            weights = sample_weight + i * outputs if criterion.weight_columns > 1 else NULL
            loss += row_scale * elementwise_entries(criterion, dpred + row, pred + row, target + i * outputs, weights,
                                                    s, <real> row_scale)
    return loss if weighted else scale * loss


cdef void thread_sample_losses(real *losses, const Criterion *criterion, real *dpred, const real *pred, Strips s,
                               const void *targets, const real *sample_weight, intp batch,
                               const Thread *thread) noexcept nogil:
    """Every sample's loss, times its weight, and its gradient: a thread's rows one by one."""
    cdef Range rows = thread_rows(batch, thread)
    cdef intp i
    for i in range(rows.begin, rows.end):
        losses[i] = <real> loss_rows(criterion, dpred, pred, s, targets, sample_weight,
                                     loss_scale(criterion, 1, s.count * s.width), i, i + 1)


cdef void thread_loss(double *partial, const Criterion *criterion, real *dpred, const real *pred, Strips s,
                      const void *targets, const real *sample_weight, double scale, intp batch,
                      const Thread *thread) noexcept nogil:
    """A thread's rows, chunk by chunk; partial (CHUNKS,) gets each chunk's part of the loss."""
    cdef Range chunks = thread_chunks(batch, thread)
    cdef intp chunk, rows = chunk_rows(batch)
    for chunk in range(chunks.begin, chunks.end):
        partial[chunk] = loss_rows(criterion, dpred, pred, s, targets, sample_weight, scale, chunk * rows,
                                   min(batch, (chunk + 1) * rows))


cdef intp count_correct(const Criterion *criterion, const real *pred, Strips s, const void *targets, intp begin,
                        intp end) noexcept nogil:
    """Rows whose largest logit is the label's, or whose every output is on its target's side; 0 for a regression."""
    cdef const real *target = <const real *> targets
    cdef const real *row
    cdef intp outputs = s.count * s.width, i, q, j, label, correct = 0
    cdef real top, t
    cdef bint right
    if criterion.code == CROSS_ENTROPY:
        for i in range(begin, end):
            row = pred + i * s.width
            top, label = row[0], 0
            for q in range(s.count):
                top = largest(top, row + q * s.distance, s.width)
            if criterion.soft:
                for j in range(1, outputs):
                    label = j if target[i * outputs + j] > target[i * outputs + label] else label
            else:
                label = (<const int64_t *> targets)[i]
            right = row[entry(s, label)] == top
            for q in range(s.count):  # the first of the largest counts
                for j in range(min(s.width, label - q * s.width)):
                    right = right & (row[q * s.distance + j] != top)
            correct += right
    elif criterion.code == BINARY_CROSS_ENTROPY:
        for i in range(begin, end):
            row = pred + i * s.width
            right = True
            for j in range(outputs):
                t = target[i * outputs + j]
                right = right and ((row[entry(s, j)] > 0) == (t > <real> 0.5) or (criterion.missing and t != t))
            correct += right
    return correct
