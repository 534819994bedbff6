# Activation: as the derivative of any op's result, and as a layer of its own, over rows in any layout.

cdef inline intp strip_count(Layout layout, intp n, const real *witness) noexcept nogil:
    """How many contiguous strips some rows of n columns lie in."""
    return 1 if layout.panel == panel_width(witness) else ceil_div(n, panel_width(witness))


cdef void apply_derivative(Net *net, Layer *layer, intp begin, intp end, const real *witness) noexcept nogil:
    """The gradient of dst becomes that of what the op's activation was applied to."""
    cdef Slot *dst = dst_slot(net, layer)
    cdef real *dy = <real *> dst.grad
    cdef const real *y = <const real *> dst.value
    cdef const real *z = slot_value(net, layer.op.z, witness)
    cdef intp q, at
    for q in range(strip_count(dst.layout, layer.op.outputs, witness)):
        at = q * dst.layout.panel + begin * dst.layout.row
        multiply_by_derivative(layer.op.activation, dy + at, dy + at, y + at, z + at if z != NULL else z,
                               (end - begin) * dst.layout.row)


cdef void activation_forward_rows(Net *net, Layer *layer, Thread *thread, intp begin, intp end,
                                  const real *witness) noexcept nogil:
    cdef Slot *dst = dst_slot(net, layer)
    cdef const real *x = <const real *> src_slot(net, layer).value
    cdef intp q, at
    for q in range(strip_count(dst.layout, layer.op.outputs, witness)):
        at = q * dst.layout.panel + begin * dst.layout.row
        activate(layer.op.activation, <real *> dst.value + at, x + at, (end - begin) * dst.layout.row)


cdef void activation_backward_rows(Net *net, Layer *layer, Thread *thread, void *dx, intp begin, intp end,
                                   const real *witness) noexcept nogil:
    """dy has the derivative already, so dx is dy, mostly in the same memory."""
    cdef Slot *dst = dst_slot(net, layer)
    if dx != NULL:
        copy_columns(<real *> dx, src_slot(net, layer).layout, 0, <const real *> dst.grad, dst.layout, 0, begin, end,
                     layer.op.inputs, layer.op.accumulates)


cdef void activation_kind(LayerKind *kind, const real *witness) noexcept:
    kind.forward, kind.backward = <Forward> activation_forward_rows[real], <Backward> activation_backward_rows[real]
    kind.adds_gradient = True


register_kind("activation", <FillKind> activation_kind[float], <FillKind> activation_kind[double])
