# Activations and their derivatives over vectors: for the epilogues of the products and for the layer `Activation`.
#
# Each is a scalar formula in a loop that the compiler vectorises. A derivative uses the output y where it can, so that
# the input z is kept only for activations that need it (`needs_input` in plan.ACTIVATIONS). All pass NaN on.
#
# To add one: a code here, a branch with its two loops below, an entry in plan.ACTIVATIONS, and one in
# reference/activations.py.

cpdef enum _Activation:  # checked against plan.ACTIVATIONS when the package is imported
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


cdef void apply_activation(int code, real *out, const real *dy, const real *y, const real *z, intp n) noexcept nogil:
    """out (n,) = activation(z (n,)) or, where dy is given, dy * activation'(z), from the output y or the input z.

    out may be z, or dy.
    """
    cdef bint forward = dy == NULL
    cdef intp j
    cdef real s
    if code == RELU:
        if forward:
            for j in range(n):
                out[j] = 0 if z[j] < 0 else z[j]
        else:
            for j in range(n):
                out[j] = 0 if y[j] <= 0 else dy[j]
    elif code == LEAKY_RELU:
        if forward:
            for j in range(n):
                out[j] = <real> 0.01 * z[j] if z[j] < 0 else z[j]
        else:
            for j in range(n):
                out[j] = dy[j] if y[j] > 0 else <real> 0.01 * dy[j]
    elif code == ELU:
        if forward:
            for j in range(n):
                out[j] = expm1_(z[j]) if z[j] < 0 else z[j]
        else:
            for j in range(n):
                out[j] = dy[j] if y[j] > 0 else dy[j] * (y[j] + 1)
    elif code == GELU:
        if forward:
            for j in range(n):
                out[j] = z[j] * normal_cdf(z[j])
        else:
            for j in range(n):
                out[j] = dy[j] * (normal_cdf(z[j]) + z[j] * normal_pdf(z[j]))
    elif code == SILU:
        if forward:
            for j in range(n):
                out[j] = z[j] * sigmoid(z[j])
        else:
            for j in range(n):
                s = sigmoid(z[j])
                out[j] = dy[j] * (s + z[j] * s * (1 - s))
    elif code == TANH:
        if forward:
            for j in range(n):
                out[j] = tanh_(z[j])
        else:
            for j in range(n):
                out[j] = dy[j] * (1 - y[j] * y[j])
    elif code == SIGMOID:
        if forward:
            for j in range(n):
                out[j] = sigmoid(z[j])
        else:
            for j in range(n):
                out[j] = dy[j] * (y[j] * (1 - y[j]))
    elif code == SOFTPLUS:
        if forward:
            for j in range(n):
                out[j] = softplus(z[j])
        else:
            for j in range(n):
                out[j] = dy[j] * -expm1_(-y[j])
    elif code == LINEAR:
        if forward and out != z:
            memcpy(out, z, n * sizeof(real))
        elif not forward and out != dy:
            memcpy(out, dy, n * sizeof(real))
    else:  # a code without a branch here: NaN ends the training
        for j in range(n):
            out[j] = NAN


cdef inline void activate(int code, real *y, const real *z, intp n) noexcept nogil:
    """y (n,) = activation(z (n,)); y may be z."""
    apply_activation(code, y, <const real *> NULL, <const real *> NULL, z, n)


cdef inline void multiply_by_derivative(int code, real *dz, const real *dy, const real *y, const real *z,
                                        intp n) noexcept nogil:
    """dz (n,) = dy (n,) * activation'(z), from the output y or, where the activation needs it, z; dz may be dy."""
    apply_activation(code, dz, dy, y, z, n)
