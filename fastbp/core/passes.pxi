# The forward and the backward pass of a thread's rows over all layers.
#
# A step has two parts. In the first, every thread takes its own rows of the batch through all layers and back to the
# gradients of the activations; batch norm waits at barriers within it and so does, in an epoch, a wide layer, whose
# columns are shared instead of its rows (by_columns). In the second, after a barrier, every thread computes the
# gradients of its own blocks of the weights and, in the engine, applies them.

cdef void fill_with_nan(real *y, Layout layout, intp begin, intp end, intp n) noexcept nogil:
    """What a layer kind without a branch below gives: NaN, which ends the training."""
    cdef intp q, j
    for q in range(strip_count(layout, n, y)):
        for j in range(begin * layout.row, end * layout.row):
            y[q * layout.panel + j] = NAN


cdef void forward_rows(Net *net, Thread *thread, intp begin, intp end, const real *witness) noexcept nogil:
    """A thread's rows through all layers; the result is the last layer's y."""
    cdef int i
    cdef Layer *layer
    cdef const real *x
    cdef real *y
    for i in range(net.count):
        layer = &net.layers[i]
        x, y = layer_input(net, i, witness), <real *> layer.y
        if layer.op.kind == DENSE:
            if layer.by_columns and i > 0 and not net.layers[i - 1].by_columns:
                barrier(thread)
            dense_forward_rows(net, i, thread, x, begin, end)
            if layer.by_columns:
                barrier(thread)
        elif layer.op.kind == ACTIVATION:
            activation_forward_rows(y, x, net.layout, layer.op.activation, begin, end, layer.op.outputs)
        elif layer.op.kind == DROPOUT:
            dropout_rows(y, x, net.layout, layer.op.p if net.training else 0, layer.op.key, net.step, begin, end,
                         layer.op.outputs)
        elif layer.op.kind == BATCHNORM:
            thread_batchnorm_forward(net, i, x, thread)
        elif layer.op.kind == EMBEDDING:
            embedding_forward_rows(net, y, x, begin, end)
        elif layer.op.kind == LAYERNORM:
            layernorm_forward_rows(y, <real *> layer.moments, x, net.layout, <real *> layer.weight,
                                   <real *> layer.bias, layer.op.eps, begin, end, layer.op.inputs)
        else:
            fill_with_nan(y, net.layout, begin, end, layer.op.outputs)
        charge_time(net, thread, i, IN_FORWARD)


cdef void backward_rows(Net *net, Thread *thread, intp begin, intp end, const real *witness) noexcept nogil:
    """The gradients of a thread's rows, from the last layer's dy down to the first layer's dy or to net.dx."""
    cdef int i, j
    cdef Layer *layer
    cdef real *dx
    for j in range(net.count):
        i = net.count - 1 - j
        layer = &net.layers[i]
        dx = <real *> (net.layers[i - 1].dy if i > 0 else net.dx)
        if layer.op.activation != LINEAR and (j == 0 or net.layers[i + 1].op.input_activation == LINEAR):
            activation_backward_rows(net, i, begin, end, witness)
        if layer.op.kind == BATCHNORM:
            thread_batchnorm_backward(net, i, dx, thread)
        elif dx == NULL or layer.op.kind == ACTIVATION:  # an activation's dx is its dy
            pass
        elif layer.op.kind == DENSE:
            dense_backward_rows(net, i, thread, dx, begin, end)
        elif layer.op.kind == DROPOUT:
            dropout_rows(dx, <const real *> layer.dy, net.layout, layer.op.p, layer.op.key, net.step, begin, end,
                         layer.op.outputs)
        elif layer.op.kind == EMBEDDING:
            embedding_backward_rows(net, dx, begin, end)
        elif layer.op.kind == LAYERNORM:
            layernorm_backward_rows(dx, <const real *> layer.dy, <real *> layer.moments,
                                    layer_input(net, i, witness), net.layout, <real *> layer.weight, begin, end,
                                    layer.op.inputs)
        else:
            fill_with_nan(dx, net.layout, begin, end, layer.op.inputs)
        charge_time(net, thread, i, IN_DX)


cdef void commit_statistics(Net *net, const Thread *thread, const real *witness) noexcept nogil:
    """Update batch norm's running statistics, once it is sure that the step is applied."""
    cdef Layer *layer
    cdef Range columns
    for layer in net.layers[:net.count]:
        if layer.op.kind == BATCHNORM:
            columns = thread_part(layer.op.inputs, thread)
            update_running_statistics(<real *> layer.stats, layer.op.momentum, layer.op.eps, net.batch,
                                      layer.op.inputs, columns.begin, columns.end)
