# The epoch: gather, forward, loss, backward, update, batch after batch, without the GIL and without a Python object.
#
# It calls the very functions that the explicit loop reaches through the doors of kernels.pyx, in the same order with
# the same arguments; that is why both give the same bits.

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    const int TIME_UTC
    int timespec_get(timespec *now, int base)

cdef double SECONDS_BETWEEN_SIGNAL_CHECKS = 0.05

cdef enum:
    CROSS_ENTROPY = -1  # beside the codes of ElementwiseLoss

cdef struct Criterion:
    int kind
    double parameter
    const void *weight  # (classes,) or NULL

cdef struct Data:
    const void *features      # (samples, inputs)
    const char *targets       # (samples,) labels or (samples, outputs)
    const int64_t *order      # the epoch's rows, batch after batch
    long samples, batch_size, inputs, outputs, target_bytes

cdef struct Batch:
    void *features
    char *targets
    void *pred
    void *dpred

cdef struct Progress:
    double loss               # summed over samples
    long correct, steps


cdef inline double now() noexcept nogil:
    cdef timespec t
    timespec_get(&t, TIME_UTC)
    return t.tv_sec + 1e-9 * t.tv_nsec


cdef void gather(Batch *batch, const Data *data, long first, long count, const real *_, int threads) noexcept nogil:
    """Copy the features and targets of the rows that order names from `first` on."""
    cdef long i, row
    cdef long width = data.inputs * <long> sizeof(real)
    for i in prange(count, num_threads=team_for(count * data.inputs, threads), schedule="static"):
        row = data.order[first + i]
        memcpy(<char *> batch.features + i * width, <const char *> data.features + row * width, width)
        memcpy(batch.targets + i * data.target_bytes, data.targets + row * data.target_bytes, data.target_bytes)


cdef long count_correct(const real *pred, const char *targets, int kind, long count, long outputs) noexcept nogil:
    """Rows whose largest logit is the label's, or whose every output is on its target's side; 0 for a regression."""
    cdef const int64_t *labels = <const int64_t *> targets
    cdef const real *target = <const real *> targets
    cdef long i, j, best, correct = 0
    cdef bint right
    if kind == CROSS_ENTROPY:
        for i in range(count):
            best = 0
            for j in range(1, outputs):
                if pred[i * outputs + j] > pred[i * outputs + best]:
                    best = j
            correct += best == labels[i]
    elif kind == BINARY_CROSS_ENTROPY:
        for i in range(count):
            right = True
            for j in range(i * outputs, (i + 1) * outputs):
                right = right and (pred[j] > 0) == (target[j] > <real> 0.5)
            correct += right
    return correct


cdef double loss_of(const Criterion *criterion, Batch *batch, long count, long outputs, const real *_,
                    int threads) noexcept nogil:
    """The batch's loss; its gradient goes into batch.dpred."""
    if criterion.kind == CROSS_ENTROPY:
        return cross_entropy_(<real *> batch.dpred, <const real *> batch.pred, <const int64_t *> batch.targets,
                              <const real *> criterion.weight, criterion.parameter, count, outputs, threads)
    return elementwise_loss_(<real *> batch.dpred, <const real *> batch.pred, <const real *> batch.targets,
                             criterion.kind, criterion.parameter, count * outputs, threads)


cdef int train_epoch(Buffers *net, Batch *batch, const Data *data, const Criterion *criterion, Update *update,
                     const double *lrs, double clip_norm, uint64_t step, long parameters, Progress *progress,
                     const real *like, int threads) except -1 nogil:
    """All batches of data.order; progress says how far it came when a signal stops it between two steps."""
    cdef long first, count
    cdef double checked = now(), loss
    while progress.steps * data.batch_size < data.samples:
        first = progress.steps * data.batch_size
        count = min(data.batch_size, data.samples - first)
        gather(batch, data, first, count, like, threads)
        forward_pass(net, <real *> batch.pred, <const real *> batch.features, count, step + progress.steps, True,
                     threads)
        loss = loss_of(criterion, batch, count, data.outputs, like, threads)
        backward_pass(net, <real *> NULL, <const real *> batch.dpred, <const real *> batch.features, count,
                      step + progress.steps, threads)
        update.lr = lrs[progress.steps]
        update.grad_scale = 1
        if clip_norm > 0:
            update.grad_scale = min(1.0, clip_norm / (
                sqrt(squared_norm_(<const real *> net.grads, parameters, threads)) + 1e-6))
        apply_update(update, <real *> net.values, <const real *> net.grads, parameters, threads)
        update.step += 1
        progress.steps += 1
        progress.loss += loss * count
        progress.correct += count_correct(<const real *> batch.pred, batch.targets, criterion.kind, count,
                                          data.outputs)
        if now() - checked > SECONDS_BETWEEN_SIGNAL_CHECKS:
            with gil:
                PyErr_CheckSignals()
            checked = now()
    return 0
