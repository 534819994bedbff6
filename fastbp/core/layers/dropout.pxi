# Dropout (Srivastava et al. 2014). A mask follows from a counter, so it is the same for every team and is not kept.

cdef void dropout_rows(real *y, const real *x, Layout layout, double p, uint64_t key, uint64_t step, intp begin,
                       intp end, intp n) noexcept nogil:
    """y (B, n) = x * mask / (1 - p); the backward pass computes the same mask again."""
    cdef uint64_t golden = 0x9E3779B97F4A7C15, start = mix(key + golden * step)
    cdef uint64_t threshold = <uint64_t> (p * 4294967296.0)
    cdef real scale = <real> (1 / (1 - p))
    cdef intp width = panel_width(x), i, q, j, first, at
    for i in range(begin, end):
        for q in range(ceil_div(n, width)):
            at = i * layout.row + q * layout.panel
            first = i * n + q * width + 1
            for j in range(min(width, n - q * width)):
                y[at + j] = x[at + j] * scale if mix(start + golden * <uint64_t> (first + j)) >> 32 >= threshold else 0


cdef void dropout_forward_rows(Net *net, Layer *layer, Thread *thread, intp begin, intp end,
                               const real *witness) noexcept nogil:
    """In inference nothing: dst shows the value of src, or, where it is a part of another slot, a copy of it."""
    cdef Slot *src = src_slot(net, layer)
    cdef Slot *dst = dst_slot(net, layer)
    if net.training:
        dropout_rows(<real *> dst.value, <const real *> src.value, dst.layout, layer.op.p, layer.op.key, net.step,
                     begin, end, layer.op.outputs)
    else:
        copy_columns(<real *> dst.value, dst.layout, 0, <const real *> src.value, src.layout, 0, begin, end,
                     layer.op.outputs, False)


cdef void dropout_backward_rows(Net *net, Layer *layer, Thread *thread, void *dx, intp begin, intp end,
                                const real *witness) noexcept nogil:
    cdef Slot *dst = dst_slot(net, layer)
    if dx != NULL:
        dropout_rows(<real *> dx, <const real *> dst.grad, dst.layout, layer.op.p, layer.op.key, net.step, begin, end,
                     layer.op.outputs)


cdef void dropout_kind(LayerKind *kind, const real *witness) noexcept:
    kind.forward, kind.backward = <Forward> dropout_forward_rows[real], <Backward> dropout_backward_rows[real]


register_kind("dropout", <FillKind> dropout_kind[float], <FillKind> dropout_kind[double])
