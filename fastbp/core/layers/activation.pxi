# Activation as a layer of its own, over rows in any layout.

cdef inline intp strip_count(Layout layout, intp n, const real *witness) noexcept nogil:
    """How many contiguous strips some rows of n columns lie in."""
    return 1 if layout.panel == panel_width(witness) else ceil_div(n, panel_width(witness))


cdef void activation_forward_rows(real *y, const real *z, Layout layout, int code, intp begin, intp end,
                                  intp n) noexcept nogil:
    cdef intp q
    for q in range(strip_count(layout, n, z)):
        activate(code, y + q * layout.panel + begin * layout.row, z + q * layout.panel + begin * layout.row,
                 (end - begin) * layout.row)


cdef void activation_backward_rows(Net *net, int i, intp begin, intp end, const real *witness) noexcept nogil:
    """dy becomes the gradient of the activation's input."""
    cdef Layer *layer = &net.layers[i]
    cdef real *dy = <real *> layer.dy
    cdef const real *y = <const real *> layer.y
    cdef const real *z = activation_input(net, i, witness)
    cdef intp q, at
    for q in range(strip_count(net.layout, layer.op.outputs, witness)):
        at = q * net.layout.panel + begin * net.layout.row
        multiply_by_derivative(layer.op.activation, dy + at, dy + at, y + at, z + at, (end - begin) * net.layout.row)
