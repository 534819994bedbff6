# Activations and their derivatives, a row at a time: the epilogues of the products and the loops of `Activation`.
#
# Each is a scalar formula; the loop around it is what the compiler vectorises. A derivative is written in terms of the
# output y where that is possible, so that z, the input, is kept only for GELU and SiLU. NaN passes through every one.

cdef enum Activation:  # the codes of fastbp.core.plan.ACTIVATIONS
    LINEAR, RELU, LEAKY_RELU, ELU, GELU, SILU, TANH, SIGMOID, SOFTPLUS


cdef extern from "transcendentals.h" nogil:
    float exp_float(float x)
    double exp_double(double x)
    float expm1_float(float x)
    double expm1_double(double x)
    double log_double(double x)
    float log1p_float(float x)
    double log1p_double(double x)
    float tanh_float(float x)
    double tanh_double(double x)
    float erf_float(float x)
    double erf_double(double x)


cdef inline real exp_(real x) noexcept nogil:
    return exp_float(x) if real is float else exp_double(x)


cdef inline real tanh_(real x) noexcept nogil:
    return tanh_float(x) if real is float else tanh_double(x)


cdef inline real expm1_(real x) noexcept nogil:
    """exp(x) - 1 for x below 80."""
    return expm1_float(x) if real is float else expm1_double(x)


cdef inline real log1p_(real x) noexcept nogil:
    """log(1 + x) for x from 0 to 1."""
    return log1p_float(x) if real is float else log1p_double(x)


cdef inline real erf_(real x) noexcept nogil:
    return erf_float(x) if real is float else erf_double(x)


cdef inline real sqrt_(real x) noexcept nogil:
    return sqrtf(x) if real is float else sqrt(x)


cdef inline real abs_(real x) noexcept nogil:
    return fabsf(x) if real is float else fabs(x)


cdef inline real sigmoid(real x) noexcept nogil:
    # exp(-|x|) cannot overflow
    cdef real e = exp_(-abs_(x))
    return 1 / (1 + e) if x >= 0 else e / (1 + e)


cdef inline real softplus(real x) noexcept nogil:
    return log1p_(exp_(-abs_(x))) + (0 if x < 0 else x)


cdef inline real normal_cdf(real x) noexcept nogil:
    return <real> 0.5 * (1 + erf_(x * <real> 0.7071067811865476))


cdef inline real normal_pdf(real x) noexcept nogil:
    return <real> 0.3989422804014327 * exp_(-<real> 0.5 * x * x)


cdef void activate(int kind, real *y, const real *z, intp n) noexcept nogil:
    """y (n,) = activation(z (n,)); y may be z."""
    cdef intp j
    if kind == RELU:
        for j in range(n):
            y[j] = 0 if z[j] < 0 else z[j]
    elif kind == LEAKY_RELU:
        for j in range(n):
            y[j] = <real> 0.01 * z[j] if z[j] < 0 else z[j]
    elif kind == ELU:
        for j in range(n):
            y[j] = expm1_(z[j]) if z[j] < 0 else z[j]
    elif kind == GELU:
        for j in range(n):
            y[j] = z[j] * normal_cdf(z[j])
    elif kind == SILU:
        for j in range(n):
            y[j] = z[j] * sigmoid(z[j])
    elif kind == TANH:
        for j in range(n):
            y[j] = tanh_(z[j])
    elif kind == SIGMOID:
        for j in range(n):
            y[j] = sigmoid(z[j])
    elif kind == SOFTPLUS:
        for j in range(n):
            y[j] = softplus(z[j])
    elif y != z:
        memcpy(y, z, n * sizeof(real))


cdef void multiply_by_derivative(int kind, real *dz, const real *dy, const real *y, const real *z,
                                 intp n) noexcept nogil:
    """dz (n,) = dy (n,) * activation'(z), from the output y or, for GELU and SiLU, the input z; dz may be dy."""
    cdef intp j
    cdef real s
    if kind == RELU:
        for j in range(n):
            dz[j] = 0 if y[j] <= 0 else dy[j]
    elif kind == LEAKY_RELU:
        for j in range(n):
            dz[j] = dy[j] if y[j] > 0 else <real> 0.01 * dy[j]
    elif kind == ELU:
        for j in range(n):
            dz[j] = dy[j] if y[j] > 0 else dy[j] * (y[j] + 1)
    elif kind == GELU:
        for j in range(n):
            dz[j] = dy[j] * (normal_cdf(z[j]) + z[j] * normal_pdf(z[j]))
    elif kind == SILU:
        for j in range(n):
            s = sigmoid(z[j])
            dz[j] = dy[j] * (s + z[j] * s * (1 - s))
    elif kind == TANH:
        for j in range(n):
            dz[j] = dy[j] * (1 - y[j] * y[j])
    elif kind == SIGMOID:
        for j in range(n):
            dz[j] = dy[j] * (y[j] * (1 - y[j]))
    elif kind == SOFTPLUS:
        for j in range(n):
            dz[j] = dy[j] * -expm1_(-y[j])
    elif dz != dy:
        memcpy(dz, dy, n * sizeof(real))
