# A model as the engine sees it: the records of its plan, and where the arrays of its layers lie.

cpdef enum _Kind:  # checked against plan.KINDS when the package is imported
    DENSE, ACTIVATION, DROPOUT, BATCHNORM, LAYERNORM, EMBEDDING

cdef struct Op:  # plan.OP
    int32_t kind, activation, input_activation, numeric
    int64_t inputs, outputs, weight, bias, stats
    double p, eps, momentum
    uint64_t key

cdef struct Table:  # plan.TABLE
    int64_t rows, dim, offset, columns

cdef struct Layer:
    Op op
    void *weight       # (I, O), row by row, as the user sees it; of an embedding, where the flat buffer begins
    void *bias         # (O,)
    void *dweight
    void *dbias
    void *stats
    void *panels       # weight in panels; NULL where its rows are read in place
    void *transposed   # weight^T in panels; NULL where no dx is needed
    void *y            # (B, O): the layer's output, in panels, as everything below
    void *z            # the activation's input, where its derivative needs it
    void *moments      # layer norm: mean and 1/std of each row, (B, 2)
    void *dy           # the gradient of y; once the activation's derivative is applied, of z
    bint by_columns    # in an epoch: a thread computes its columns of y for all rows (choose_partition in network.pxi)

cdef struct Net:
    Layer *layers
    int count
    const Table *tables  # of the embedding, if there is one; it is the first layer
    int table_count
    void *x            # the batch in panels
    void *dx           # its gradient, or NULL
    intp batch
    Layout layout      # of all that has a row per sample
    uint64_t step      # selects dropout's masks
    bint training
    double *times      # seconds by phase, which thread 0 adds up for a profile, or NULL
    double charged     # when it last did
    int *stop          # the flag that ends the work early, or NULL where nothing does
    double polled, unpolled  # when thread 0 last checked for signals, and the operations since it read the clock


cdef inline const real *layer_input(Net *net, int i, const real *witness) noexcept nogil:
    return <const real *> (net.x if i == 0 else net.layers[i - 1].y)


cdef inline const real *activation_input(Net *net, int i, const real *witness) noexcept nogil:
    """What layer i's activation was applied to, where that was kept."""
    return layer_input(net, i, witness) if net.layers[i].op.kind == ACTIVATION else <const real *> net.layers[i].z
