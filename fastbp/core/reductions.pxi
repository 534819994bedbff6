# Sums over vectors, in a fixed order: of squares for the gradient's norm, of partial sums, and whether all is finite.

cdef inline double total(const double *partial, intp count) noexcept nogil:
    """Partial sums, added in their order."""
    cdef double result = 0
    cdef intp i
    for i in range(count):
        result += partial[i]
    return result


cdef double squared_norm_chunk(const real *x, intp n) noexcept nogil:
    """Eight sums side by side: in a single one every addition would wait four cycles for the one before."""
    cdef double sums[8]
    cdef intp i, j
    for j in range(8):
        sums[j] = 0
    for i in range(n // 8):
        for j in range(8):
            sums[j] += <double> x[8 * i + j] * <double> x[8 * i + j]
    for i in range(n - n % 8, n):
        sums[0] += <double> x[i] * <double> x[i]
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


cdef void thread_scale(real *x, double factor, intp n, const Thread *thread) noexcept nogil:
    """This thread's part of x (n,) *= factor."""
    cdef Range own = thread_part(n, thread)
    cdef intp i
    for i in range(own.begin, own.end):
        x[i] *= <real> factor


cdef inline bint is_finite(double x) noexcept nogil:
    return x - x == 0


cdef bint all_finite_vector(const real *x, intp n) noexcept nogil:
    """x - x is zero for finite x and NaN otherwise; adding them up keeps a NaN."""
    cdef real sums[16]
    cdef real result = 0
    cdef intp i, j
    for j in range(16):
        sums[j] = 0
    for i in range(n // 16):
        for j in range(16):
            sums[j] += x[16 * i + j] - x[16 * i + j]
    for i in range(n - n % 16, n):
        result += x[i] - x[i]
    for j in range(16):
        result += sums[j]
    return result == 0
