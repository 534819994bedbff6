# Copy and add: how the branches of a network are joined. A Concatenate copies each to its columns, a Residual adds.
#
# Where the network has laid a branch's result inside of the joined slot, there is nothing to copy.

cdef void copy_forward_rows(Net *net, Layer *layer, Thread *thread, intp begin, intp end,
                            const real *witness) noexcept nogil:
    """Columns of dst = src."""
    cdef Slot *src = src_slot(net, layer)
    cdef Slot *dst = dst_slot(net, layer)
    copy_columns(<real *> dst.value, dst.layout, layer.op.column, <const real *> src.value, src.layout, 0, begin, end,
                 layer.op.inputs, False)


cdef void add_forward_rows(Net *net, Layer *layer, Thread *thread, intp begin, intp end,
                           const real *witness) noexcept nogil:
    """dst += src."""
    cdef Slot *src = src_slot(net, layer)
    cdef Slot *dst = dst_slot(net, layer)
    copy_columns(<real *> dst.value, dst.layout, layer.op.column, <const real *> src.value, src.layout, 0, begin, end,
                 layer.op.inputs, True)


cdef void copy_backward_rows(Net *net, Layer *layer, Thread *thread, void *dx, intp begin, intp end,
                             const real *witness) noexcept nogil:
    """dx = the columns of dy, or is added to."""
    cdef Slot *dst = dst_slot(net, layer)
    if dx != NULL:
        copy_columns(<real *> dx, src_slot(net, layer).layout, 0, <const real *> dst.grad, dst.layout, layer.op.column,
                     begin, end, layer.op.inputs, layer.op.accumulates)


cdef void copy_kind(LayerKind *kind, const real *witness) noexcept:
    kind.forward, kind.backward = <Forward> copy_forward_rows[real], <Backward> copy_backward_rows[real]
    kind.adds_gradient = True


cdef void add_kind(LayerKind *kind, const real *witness) noexcept:
    kind.forward, kind.backward = <Forward> add_forward_rows[real], <Backward> copy_backward_rows[real]
    kind.adds_gradient = True


register_kind("copy", <FillKind> copy_kind[float], <FillKind> copy_kind[double])
register_kind("add", <FillKind> add_kind[float], <FillKind> add_kind[double])
