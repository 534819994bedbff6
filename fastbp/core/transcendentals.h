/* exp, log, tanh and erf as formulas without branches, so that the loops around them are vectorised like any other.
 *
 * Each is written once for both dtypes; the tables below have the coefficients. At most 2 units in the last place off
 * in float32 and 4 in float64 (tests/core/test_transcendentals.py), NaN in, NaN out.
 */
#ifndef FASTBP_TRANSCENDENTALS_H
#define FASTBP_TRANSCENDENTALS_H

#include <float.h>
#include <math.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__FMA__) || defined(__aarch64__)
#define MADD_float(a, b, c) __builtin_fmaf(a, b, c)
#define MADD_double(a, b, c) __builtin_fma(a, b, c)
#else
#define MADD_float(a, b, c) ((a) * (b) + (c))
#define MADD_double(a, b, c) ((a) * (b) + (c))
#endif

/* (exp(r) - 1 - r) / r^2 by Taylor, for |r| <= ln(2) / 2. */
static const float EXP_float[] = {
    0.5f, 0.16666666666666666f, 0.041666666666666664f, 0.008333333333333333f, 0.001388888888888889f,
    0.0001984126984126984f};
static const double EXP_double[] = {
    0.5, 0.16666666666666666, 0.041666666666666664, 0.008333333333333333, 0.001388888888888889,
    0.0001984126984126984, 2.48015873015873e-05, 2.7557319223985893e-06, 2.755731922398589e-07,
    2.505210838544172e-08, 2.08767569878681e-09, 1.6059043836821613e-10};
/* (atanh(s) / s - 1) / s^2 by Taylor: LOG for |s| <= 0.172, LOG1P for s <= 1/3. */
static const float LOG_float[] = {
    0.3333333333333333f, 0.2f, 0.14285714285714285f, 0.1111111111111111f, 0.09090909090909091f};
static const double LOG_double[] = {
    0.3333333333333333, 0.2, 0.14285714285714285, 0.1111111111111111, 0.09090909090909091, 0.07692307692307693,
    0.06666666666666667, 0.058823529411764705, 0.05263157894736842, 0.047619047619047616};
static const float LOG1P_float[] = {
    0.3333333333333333f, 0.2f, 0.14285714285714285f, 0.1111111111111111f, 0.09090909090909091f,
    0.07692307692307693f, 0.06666666666666667f, 0.058823529411764705f};
static const double LOG1P_double[] = {
    0.3333333333333333, 0.2, 0.14285714285714285, 0.1111111111111111, 0.09090909090909091, 0.07692307692307693,
    0.06666666666666667, 0.058823529411764705, 0.05263157894736842, 0.047619047619047616, 0.043478260869565216,
    0.04, 0.037037037037037035, 0.034482758620689655, 0.03225806451612903, 0.030303030303030304,
    0.02857142857142857};
/* erf(x) / x - 1 in x^2 for |x| <= 1.25; -log(erfc(x)) in a variable from -1 to 1 for x from 1.25 to
 * ERF_END; (tanh(x) / x - 1) / x^2 in x^2 for |x| <= 0.55: polynomials through the Chebyshev points. */
#define ERF_END_float 4.0f
#define ERF_END_double 6.0
static const float ERF_NEAR_float[] = {
    0.1283791671f, -0.3761263889f, 0.1128379132f, -0.0268661416f, 0.005223855562f, -0.000854536474f,
    0.000120112161f, -1.451341592e-5f, 1.407131368e-6f, -8.182766758e-8f};
static const double ERF_NEAR_double[] = {
    0.1283791670955125739, -0.3761263890318375246, 0.1128379167095512572, -0.02686617064513124598,
    0.005223977625442113658, -0.0008548327023445076306, 0.0001205533298149283056, -0.00001492565034779328732,
    1.646211409256011828e-6, -1.636583950628197631e-7, 1.4807119425983944e-8, -1.228977636237365422e-9,
    9.416577968236517183e-11, -6.67513137773976575e-12, 4.309983893266277181e-13, -2.33507875041568962e-14,
    7.890053404538255622e-16};
static const float TANH_float[] = {
    -0.333333333f, 0.133333242f, -0.05396470045f, 0.02181844913f, -0.008526333058f, 0.002526390711f};
static const double TANH_double[] = {
    -0.3333333333333333331, 0.1333333333333331206, -0.05396825396822037454, 0.02186948853407390774,
    -0.00886323546314680007, 0.003592126769962634705, -0.00145581909715135121, 0.0005899052969492732996,
    -0.0002384727248015252131, 0.00009455133052924857978, -0.000033720801120463164, 7.874274345344419256e-6};
static const float ERF_FAR_float[] = {
    8.490669398f, 7.685076765f, 1.791878465f, 0.02557551346f, -0.006861313667f, 0.001804285124f,
    -0.0004508187602f, 0.0001035965613f, -1.974402355e-5f, 2.165435306e-6f};
static const double ERF_FAR_double[] = {
    15.03581536463928053, 17.83156211703471515, 5.463698665488035641, 0.06444927401603731415,
    -0.02504242698777986835, 0.009840212567490080073, -0.003809422826931892353, 0.001426664860769633728,
    -0.0005074504165560717918, 0.0001669729744207143852, -0.00004828201047310700207, 0.00001058604369520592127,
    -4.380118612550660303e-7, -1.342550620976678505e-6, 1.085332813903603416e-6, -6.04734584861867584e-7,
    2.810563117107242523e-7, -1.145006186759137786e-7, 4.109559474621584387e-8, -1.119363545678362635e-8,
    8.525446767534647989e-10, 4.859601530803471352e-10, -1.221977024808091793e-10, 5.012810160166779545e-10,
    -5.16024269680441862e-10, 1.457220288222402599e-10};

/* Words of the same size, the exponent's place and bias, 1.5 * 2^mantissa (adding it rounds to an integer), the parts of
 * ln 2 (the first is exact when multiplied with an exponent), and where exp has long become 0 or infinite. */
typedef int32_t word_float;
typedef int64_t word_double;
#define MANTISSA_float 23
#define MANTISSA_double 52
#define BIAS_float 127
#define BIAS_double 1023
#define ROUNDER_float 12582912.0f
#define ROUNDER_double 6755399441055744.0
#define LN2_HIGH_float 0.693359375f
#define LN2_HIGH_double 6.93147180369123816490e-01
#define LN2_LOW_float -2.12194440e-4f
#define LN2_LOW_double 1.90821492927058770002e-10
#define EXP_LEAST_float -105.0f
#define EXP_LEAST_double -750.0
#define EXP_MOST_float 90.0f
#define EXP_MOST_double 712.0
#define LARGEST_float FLT_MAX
#define LARGEST_double DBL_MAX
#define ABS_float __builtin_fabsf
#define ABS_double __builtin_fabs
#define COPYSIGN_float __builtin_copysignf
#define COPYSIGN_double __builtin_copysign
#define ROOT_HALF_float 0x3f3504f3
#define ROOT_HALF_double 0x3fe6a09e667f3bcdLL

#define POLYNOMIAL(T, result, table, x)                                                                               \
    T result = table[sizeof table / sizeof table[0] - 1];                                                             \
    _Pragma("GCC unroll 32") for (int i = (int)(sizeof table / sizeof table[0]) - 2; i >= 0; i--)                     \
        result = MADD_##T(result, x, table[i]);

#define DEFINE_TRANSCENDENTALS(T)                                                                                     \
    typedef union {                                                                                                   \
        T value;                                                                                                      \
        word_##T bits;                                                                                                \
    } cast_##T;                                                                                                       \
    INLINE T power_of_two_##T(word_##T n)                                                                             \
    {                                                                                                                 \
        const cast_##T c = {.bits = (n + BIAS_##T) << MANTISSA_##T};                                                  \
        return c.value;                                                                                               \
    }                                                                                                                 \
    /* x = n ln 2 + r: returns exp(r) - 1, and 2^n as a product, because n may be one too large for an exponent. */   \
    INLINE T reduced_exp_##T(T x, T *half, T *rest)                                                                   \
    {                                                                                                                 \
        const cast_##T k = {MADD_##T(x, (T)1.44269504088896340736, ROUNDER_##T)}, zero = {ROUNDER_##T};               \
        const word_##T n = k.bits - zero.bits, h = (n + 2048) / 2 - 1024;                                             \
        const T whole = k.value - ROUNDER_##T;                                                                        \
        const T r = MADD_##T(whole, -LN2_LOW_##T, MADD_##T(whole, -LN2_HIGH_##T, x));                                 \
        POLYNOMIAL(T, p, EXP_##T, r)                                                                                  \
        *half = power_of_two_##T(h);                                                                                  \
        *rest = power_of_two_##T(n - h);                                                                              \
        return MADD_##T(r * r, p, r);                                                                                 \
    }                                                                                                                 \
    INLINE T exp_##T(T x)                                                                                             \
    {                                                                                                                 \
        T half, rest;                                                                                                 \
        x = x < EXP_LEAST_##T ? EXP_LEAST_##T : x > EXP_MOST_##T ? EXP_MOST_##T : x;                                  \
        const T q = reduced_exp_##T(x, &half, &rest);                                                                 \
        return (1 + q) * half * rest;                                                                                 \
    }                                                                                                                 \
    /* exp(x) - 1 for x below the range where exp overflows. */                                                       \
    INLINE T expm1_##T(T x)                                                                                           \
    {                                                                                                                 \
        T half, rest;                                                                                                 \
        x = x < -60 ? -60 : x > 80 ? 80 : x;                                                                          \
        const T q = reduced_exp_##T(x, &half, &rest), scale = half * rest;                                            \
        return MADD_##T(q, scale, scale - 1);                                                                         \
    }                                                                                                                 \
    /* log(2^n m) = n ln 2 + f - (f^2 / 2 - s (f^2 / 2 + R)), f = m - 1, s = f / (2 + f) (fdlibm's arrangement). */   \
    INLINE T log_##T(T x)                                                                                             \
    {                                                                                                                 \
        cast_##T c = {x};                                                                                             \
        const word_##T n = (c.bits - ROOT_HALF_##T) >> MANTISSA_##T;                                                  \
        c.bits -= n * ((word_##T)1 << MANTISSA_##T);                                                                  \
        const T f = c.value - 1, s = f / (2 + f), z = s * s, square = (T)0.5 * f * f, k = (T)(int32_t)n;              \
        POLYNOMIAL(T, p, LOG_##T, z)                                                                                  \
        const T tail = s * (square + 2 * z * p);                                                                      \
        const T result = k * LN2_HIGH_##T - ((square - (tail + k * LN2_LOW_##T)) - f);                                \
        return x > 0 ? (x > LARGEST_##T ? x : result)                                                               \
                     : x == 0 ? -(T)INFINITY : (T)NAN;                                                                \
    }                                                                                                                 \
    /* log(1 + x) for x from 0 to 1: 2 atanh(x / (2 + x)). */                                                         \
    INLINE T log1p_##T(T x)                                                                                           \
    {                                                                                                                 \
        const T s = x / (2 + x), z = s * s;                                                                           \
        POLYNOMIAL(T, p, LOG1P_##T, z)                                                                                \
        return x - s * (x - 2 * z * p);                                                                               \
    }                                                                                                                 \
    INLINE T tanh_##T(T x)                                                                                            \
    {                                                                                                                 \
        const T a = ABS_##T(x), e = expm1_##T(2 * (a > 22 ? 22 : a)), z = a * a;                                      \
        POLYNOMIAL(T, p, TANH_##T, z)                                                                                 \
        return COPYSIGN_##T(a < (T)0.55 ? MADD_##T(a * z, p, a) : e / (e + 2), x);                                    \
    }                                                                                                                 \
    INLINE T erf_##T(T x)                                                                                             \
    {                                                                                                                 \
        const T a = ABS_##T(x), b = a > ERF_END_##T ? ERF_END_##T : a, z = b * b;                                     \
        const T t = (2 * b - (ERF_END_##T + (T)1.25)) / (ERF_END_##T - (T)1.25);                                        \
        POLYNOMIAL(T, near_, ERF_NEAR_##T, z)                                                                         \
        POLYNOMIAL(T, far_, ERF_FAR_##T, t)                                                                           \
        return COPYSIGN_##T(a < (T)1.25 ? MADD_##T(a, near_, a) : 1 - exp_##T(-far_), x);                                          \
    }

DEFINE_TRANSCENDENTALS(float)
DEFINE_TRANSCENDENTALS(double)

#endif
