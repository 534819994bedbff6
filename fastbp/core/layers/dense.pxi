# Dense: y = activation(x @ weight + bias). Rows forward and back, and a block of the weight's gradient.

cdef void dense_forward_rows(Net *net, int i, Thread *thread, const real *x, intp begin, intp end) noexcept nogil:
    """y = activation(x @ weight + bias), a thread's rows; or, by_columns, its columns of all rows."""
    cdef Layer *layer = &net.layers[i]
    cdef Op *op = &layer.op
    cdef Epilogue epilogue
    cdef const real *weight = <const real *> (layer.weight if layer.panels == NULL else layer.panels)
    cdef Layout weight_layout = in_rows(op.outputs, x) if layer.panels == NULL else in_panels(op.inputs, x)
    cdef intp width = panel_width(x), panels = ceil_div(op.outputs, width), first = 0, columns = op.outputs
    cdef Range own
    if is_set(net.stop):
        return
    if layer.by_columns:
        own = thread_part(panels, thread)
        first, columns = own.begin, min(columns, own.end * width) - own.begin * width
        begin, end = 0, net.batch
    epilogue.action = BIAS_ACTIVATION
    epilogue.activation = op.activation
    epilogue.bias = <const real *> layer.bias + first * width if layer.bias != NULL else NULL
    epilogue.y, epilogue.z = NULL, <real *> layer.z + first * net.layout.panel if layer.z != NULL else NULL
    multiply_rows(<real *> layer.y + first * net.layout.panel, x, net.layout, weight + first * weight_layout.panel,
                  weight_layout, begin, end, columns, op.inputs, &epilogue)
    poll_signals(net, thread, 2.0 * (end - begin) * op.inputs * columns)


cdef void dense_backward_rows(Net *net, int i, Thread *thread, real *dx, intp begin, intp end) noexcept nogil:
    """dx = dy @ weight^T, times the derivative of the activation that gave x."""
    cdef Layer *layer = &net.layers[i]
    cdef Op *op = &layer.op
    cdef Epilogue epilogue
    cdef Layout weight_layout = in_panels(op.outputs, dx)
    cdef intp first = 0  # of its panels
    if is_set(net.stop):
        return
    if i > 0 and net.layers[i - 1].op.kind == EMBEDDING and net.dx == NULL:  # only the tables' columns are needed
        first = net.layers[i - 1].op.numeric // panel_width(dx)
    epilogue.action = DERIVATIVE if op.input_activation != LINEAR else NO_ACTION
    epilogue.activation = op.input_activation
    epilogue.bias, epilogue.y = NULL, <const void *> layer_input(net, i, dx)
    epilogue.z = <void *> activation_input(net, i - 1, dx) if i > 0 else NULL
    multiply_rows(dx + first * net.layout.panel, <const real *> layer.dy, net.layout,
                  <const real *> layer.transposed + first * weight_layout.panel, weight_layout, begin, end,
                  op.inputs - first * panel_width(dx), op.outputs, &epilogue)
    poll_signals(net, thread, 2.0 * (end - begin) * op.inputs * op.outputs)


cdef void block_gradient(Net *net, int i, Block b, real *gradient, Layout gradient_layout,
                         const PrefetchPlan *plan) noexcept nogil:
    """The block's part of dweight goes to `gradient`, its part of dbias to the flat gradients."""
    cdef Layer *layer = &net.layers[i]
    cdef intp width = panel_width(gradient)
    cdef const real *dy = <const real *> layer.dy + b.j0 // width * net.layout.panel
    cdef const real *x = layer_input(net, i, gradient) + b.i0 // width * net.layout.panel
    if layer.op.outputs == 1:  # dy^T x fills the vectors, and a column in rows is a row
        multiply_columns(gradient, in_rows(b.i1 - b.i0, gradient), dy, x, net.layout, 1, b.i1 - b.i0, net.batch, plan)
    else:
        multiply_columns(gradient, gradient_layout, x, dy, net.layout, b.i1 - b.i0, b.j1 - b.j0, net.batch, plan)
    if b.i0 == 0 and layer.dbias != NULL:
        column_sums(<real *> layer.dbias + b.j0, dy, net.layout, b.j1 - b.j0, net.batch)
