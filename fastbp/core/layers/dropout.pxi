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
