# A program as the engine sees it: ops and slots, where their arrays lie, and what a layer kind does.
#
# A slot is a value (rows x width) with its gradient, in a layout of its own; an op reads one and writes one. What an op
# does stands in the record of its kind, which a file of layers/ fills: the engine calls its functions a few times per
# layer and step, and knows no kind by name.

cdef struct Op:  # plan.OP
    char kind[16]
    int32_t src, dst, z, input_z, activation, input_activation, derivative, accumulates
    int64_t numeric, column, inputs, outputs, weight, bias, stats, begin, end
    double p, eps, momentum
    uint64_t key

cdef struct SlotPlan:  # plan.SLOT
    int64_t width, column, first
    int32_t parent, keeps_value, source, learned

cdef struct Table:  # plan.TABLE
    int64_t rows, dim, offset, columns

cdef struct Slot:
    SlotPlan plan
    Layout layout
    intp rows
    void *value
    void *grad         # NULL where no op computes it
    intp first         # the first column of grad that is needed
    void *own_value    # their memory, where they are not part of another slot's
    void *own_grad

cdef struct Net
cdef struct Layer
cdef struct Arena
cdef struct WeightPass

ctypedef void (*Reserve)(Net *net, Layer *layer, Arena *arena, bint backward, const void *witness) noexcept nogil
ctypedef void (*Pack)(Net *net, Layer *layer, const Thread *thread, const WeightPass *work, bint forward, bint backward,
                      const void *witness) noexcept nogil
ctypedef void (*Forward)(Net *net, Layer *layer, Thread *thread, intp begin, intp end,
                         const void *witness) noexcept nogil
ctypedef void (*Backward)(Net *net, Layer *layer, Thread *thread, void *dx, intp begin, intp end,
                          const void *witness) noexcept nogil
ctypedef void (*Weights)(Net *net, Layer *layer, const Thread *thread, WeightPass *work,
                         const void *witness) noexcept nogil
ctypedef void (*Commit)(Net *net, Layer *layer, const Thread *thread, const void *witness) noexcept nogil
ctypedef void (*Unpack)(Net *net, Layer *layer, const Thread *thread, const WeightPass *work,
                        const void *witness) noexcept nogil
ctypedef intp (*Check)(Net *net, Layer *layer, intp begin, intp end, const void *witness) noexcept nogil
ctypedef Range (*Columns)(const Layer *layer, const Thread *thread, const void *witness) noexcept nogil
ctypedef double (*Operations)(const Op *op) noexcept nogil

cdef struct LayerKind:     # functions are NULL where there is nothing to do; begin..end are a thread's samples
    Reserve reserve        # its own memory: for a forward pass, or what a backward pass needs besides
    Pack pack              # bring copies of the weight up to date; in an epoch, once before its steps
    Forward forward        # dst = f(src)
    Backward backward      # dx, the gradient of src, which is NULL where nobody needs it
    Weights weights        # a thread's part of the weights: gradients, update, or both block by block
    Commit commit          # statistics, once it is sure that the step is applied
    Unpack unpack          # after an epoch's steps: copies of the weight -> weight
    Check check            # of src, if that is the model's input: ids that no table has become 0; the last such row
    Columns input_columns  # likewise: what a thread reads of all samples; NULL for all
    Operations operations  # of a forward pass, for one sample
    bint by_columns        # a thread computes its columns for all samples: it waits for the others before and after
    bint splits_columns    # its passes can be shared by columns, see choose_partition
    bint adds_gradient     # its backward can add to a gradient (Op.accumulates); for others the engine adds

cdef struct Layer:
    Op op
    const LayerKind *kind
    void *weight       # (I, O), row by row, as the user sees it
    void *bias         # (O,)
    void *dweight
    void *dbias
    void *stats
    void *own_panels      # memory for the weight in panels, and for its transpose in panels; NULL where neither is used
    void *own_transposed
    void *panels       # the weight in panels; NULL where it is read in place
    void *transposed   # weight^T in panels; NULL where no dx is needed or the weight is read in place
    void *moments      # of batch norm: the batch's variance, float64 (n,); of layer norm: rows' mean and 1/std, (B, 2)
    char *used         # of a layer on sparse rows: for every row of the weight, whether the step's gradient has it
    void *partial      # its dx, which is then added to the gradient of src; NULL where it is that gradient
    bint by_columns    # as LayerKind.by_columns, or a dense layer's choice, see choose_partition
    bint dx_by_columns  # likewise, of the backward pass
    intp first_block   # of its weight, among those of all layers

cdef struct Net:
    Layer *layers
    int count
    Slot *slots        # slot 0 is the input; in an epoch every thread has slots of its own
    int slot_count
    bint is_sparse     # whether the input is sparse rows, which slot 0 then has no copy of
    SparseRows sparse
    void *values       # all parameters, flat
    void *grads
    const Table *tables  # of the embedding, if there is one; it is the first layer
    int table_count
    intp batch         # samples
    uint64_t step      # selects dropout's masks
    bint packs         # whether weights are packed: in an epoch; others are read where they lie
    bint has_panels    # whether there is memory for packed weights
    bint training
    bint input_gradient       # whether a backward pass computes the gradient of the input
    bint parameter_gradients  # whether it computes those of the parameters
    double *times      # seconds by phase, which thread 0 adds up for a profile, or NULL
    double charged     # when it last did
    int *stop          # the flag that ends the work early, or NULL where nothing does
    double polled, unpolled  # when thread 0 last checked for signals, and the operations since it read the clock

cdef struct NextBatch:  # rows of the data that the next step reads, which the products of this one prefetch
    const char *features
    int64_t *rows
    intp prefetched, count  # of how many rows they are prefetched, of how many
    intp begin, end         # the thread's own rows
    intp left, right        # the columns that it needs of all others

cdef struct WeightPass:  # what is done with the weights
    bint gradients      # compute the gradients
    bint updates        # apply them
    bint in_memory      # the gradients go to the flat buffer, not only through the thread's block of memory
    bint sparse         # tables' gradients are zero outside of a step: it clears the rows that it has used, ...
    bint keep           # ... but for those of the last step
    double grad_scale
    const Update *update  # of the epoch, or NULL outside of one
    bint state_in_blocks  # whether the state vectors of weights in panels are in the order of their blocks
    void *block         # the thread's: a block of gradients, or some rows of the longest state vector
    double *squares     # for every block of a weight, the sum of its squares before the update, or NULL
    NextBatch *next     # or NULL

cdef struct Arena:  # memory that is given out piece by piece; without a base its size is only counted
    char *base
    size_t size


cdef inline void *take(Arena *arena, size_t count) noexcept nogil:
    """So many bytes, from a cache line on."""
    cdef void *piece = arena.base + arena.size if arena.base != NULL else NULL
    arena.size += (count + 63) // 64 * 64
    return piece


cdef inline Slot *src_slot(Net *net, const Layer *layer) noexcept nogil:
    return &net.slots[layer.op.src]


cdef inline Slot *dst_slot(Net *net, const Layer *layer) noexcept nogil:
    return &net.slots[layer.op.dst]


cdef inline const real *slot_value(Net *net, int slot, const real *witness) noexcept nogil:
    return <const real *> net.slots[slot].value if slot >= 0 else NULL


# The kinds, by number; the core gives out the numbers.

cdef enum:
    MAX_KINDS = 32

cdef dict KINDS = {}  # name to number
cdef LayerKind FLOAT_KINDS[MAX_KINDS]
cdef LayerKind DOUBLE_KINDS[MAX_KINDS]

ctypedef void (*FillKind)(LayerKind *kind, const void *witness) noexcept


cdef register_kind(str name, FillKind fill_float, FillKind fill_double):
    """A layer kind under its name in a program; the functions fill its record for float and for double."""
    assert len(KINDS) < MAX_KINDS
    fill_float(&FLOAT_KINDS[len(KINDS)], NULL)
    fill_double(&DOUBLE_KINDS[len(KINDS)], NULL)
    KINDS[name] = len(KINDS)


cdef const LayerKind *find_kind(str name, intp size) except NULL:
    """The record of a kind, for numbers of so many bytes."""
    if name not in KINDS:
        raise ValueError(f"ops: expected a layer kind among {', '.join(KINDS)}, got {name!r}")
    number = <int> KINDS[name]
    return &FLOAT_KINDS[number] if size == 4 else &DOUBLE_KINDS[number]


cdef str kind_name(const Op *op):
    return op.kind[:sizeof(op.kind)].rstrip(b"\0").decode()
