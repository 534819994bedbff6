/* The register tile: C[rows, cols] = A[rows, k] @ B[k, cols], and the transpose that packs its operands.
 *
 * The compiler is told the vector width by -m flags alone; this file turns it into the table below. A tile is up to
 * MAX_ROWS rows of up to two vectors, held in registers for the whole of k: 14 x 2 accumulators, two vectors of B and
 * one broadcast use 31 of AVX-512's and NEON's 32 registers, 6 x 2 use 15 of the 16 of AVX2 and SSE2. Every height has
 * a function of its own, so that a product is cut into tiles of nearly equal height and no edge is computed for the bin.
 *
 * Operands lie in panels (panels.pxi): PANEL columns of a matrix, one row after the other. The step between two rows
 * of a panel is a constant of the machine, so the addresses of a tile's rows need no registers.
 *
 * Fused multiply-add is spelled out and contraction is otherwise off: an element has the same bits in whichever tile
 * it falls, which is why results do not depend on the number of threads.
 */
#ifndef FASTBP_MICROKERNEL_H
#define FASTBP_MICROKERNEL_H

#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define TARGET "avx512"
#define VECTOR_BYTES 64
#define MAX_ROWS 14
#define FMA_float(a, b, c) ((vec_float)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define FMA_double(a, b, c) ((vec_double)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define TARGET "avx2"
#define VECTOR_BYTES 32
#define MAX_ROWS 6
#define FMA_float(a, b, c) ((vec_float)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define FMA_double(a, b, c) ((vec_double)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#elif defined(__aarch64__)
#include <arm_neon.h>
#define TARGET "neon"
#define VECTOR_BYTES 16
#define MAX_ROWS 14
#define FMA_float(a, b, c) ((vec_float)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define FMA_double(a, b, c) ((vec_double)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b)))
#else
#define TARGET "generic"
#define VECTOR_BYTES 16
#define MAX_ROWS 6
#define FMA_float(a, b, c) ((a) * (b) + (c))
#define FMA_double(a, b, c) ((a) * (b) + (c))
#endif

/* Unaligned, may-alias vectors: plain array memory can be read through them. */
typedef float vec_float __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef double vec_double __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
typedef int vec_mask __attribute__((vector_size(16)));
typedef float quad_float __attribute__((vector_size(16), aligned(4), may_alias));
typedef double pair_double __attribute__((vector_size(16), aligned(8), may_alias));
typedef long long pair_mask __attribute__((vector_size(16)));

#define LANES(T) ((long)(VECTOR_BYTES / sizeof(T)))
#define PANEL(T) (2 * LANES(T))
#define MAX_TILE (MAX_ROWS * 2 * (VECTOR_BYTES / 4))
#define INLINE static inline __attribute__((always_inline))

/* acc += outer product of `rows` numbers, A_STEP apart from a on, with a row of B. Two lines are asked for on the side. */
#define RANK_ONE(T, A_STEP)                                                                                           \
    {                                                                                                                 \
        vec_##T row[2];                                                                                               \
        _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) row[v] = *(const vec_##T *)(b + v * LANES(T));      \
        _Pragma("GCC unroll 14") for (int i = 0; i < rows; i++) {                                                     \
            const vec_##T spread = a[i * (A_STEP)] - (vec_##T){0};                                                    \
            _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) acc[i][v] = FMA_##T(spread, row[v], acc[i][v]); \
        }                                                                                                             \
        b += b_row;                                                                                                   \
        __builtin_prefetch(ahead.one, 0, 2);                                                                          \
        __builtin_prefetch(ahead.two, 0, 2);                                                                          \
        ahead.one += ahead.step;                                                                                      \
        ahead.two += ahead.step;                                                                                      \
    }

/* What will be needed soon: a tile spreads the requests over its k steps, where the hardware does not foresee them. */
typedef struct {
    const char *one, *two;
    long step; /* bytes */
} Ahead;

/* C (rows, vectors * LANES), c_row apart, = or += A @ B, whose rows are b_row apart. A is `rows` rows of a matrix in
 * panels that lie a_panel apart, or, transposed, `rows` columns of one panel. rows, vectors and transposed are
 * compile-time constants wherever this is inlined, so that acc lives in registers. */
#define DEFINE_TILE(T)                                                                                                \
    INLINE void tile_fixed_##T(const int rows, const int vectors, const int transposed, long k, const T *a,           \
                               long a_panel, const T *b, long b_row, T *c, long c_row, int add, Ahead ahead)          \
    {                                                                                                                 \
        vec_##T acc[MAX_ROWS][2];                                                                                     \
        _Pragma("GCC unroll 14") for (int i = 0; i < rows; i++)                                                       \
            _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) {                                               \
                acc[i][v] = (vec_##T){0};                                                                             \
                if (!transposed) __builtin_prefetch(c + i * c_row + v * LANES(T), 1);                                 \
            }                                                                                                         \
        if (transposed)                                                                                               \
            for (long p = 0; p < k; p++, a += PANEL(T)) RANK_ONE(T, 1)                                                \
        else                                                                                                          \
            for (; k > 0; k -= PANEL(T), a += a_panel - PANEL(T)) {                                                   \
                const T *end = a + PANEL(T), *stop = k < PANEL(T) ? a + k : end;                                      \
                for (; a < stop; a++) RANK_ONE(T, PANEL(T))                                                           \
                a = end;                                                                                              \
            }                                                                                                         \
        _Pragma("GCC unroll 14") for (int i = 0; i < rows; i++)                                                       \
            _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) {                                               \
                vec_##T *out = (vec_##T *)(c + i * c_row + v * LANES(T));                                             \
                if (add) acc[i][v] = *out + acc[i][v];                                                                \
                *out = acc[i][v];                                                                                     \
            }                                                                                                         \
    }                                                                                                                 \
    static void tile_##T(int rows, int vectors, int transposed, long k, const T *a, long a_panel, const T *b,         \
                         long b_row, T *c, long c_row, int add, Ahead ahead)                                          \
    {                                                                                                                 \
        switch ((rows * 2 + vectors - 1) * 2 + transposed) {                                                          \
            ROWS_OF_THIS_MACHINE(T)                                                                                   \
        }                                                                                                             \
    }

#define CASE(T, rows, vectors, transposed)                                                                            \
    case ((rows) * 2 + (vectors) - 1) * 2 + (transposed):                                                             \
        tile_fixed_##T(rows, vectors, transposed, k, a, a_panel, b, b_row, c, c_row, add, ahead);                            \
        break;
#define ROW(T, r) CASE(T, r, 1, 0) CASE(T, r, 2, 0) CASE(T, r, 1, 1) CASE(T, r, 2, 1)
#define ROWS_TO_6(T) ROW(T, 1) ROW(T, 2) ROW(T, 3) ROW(T, 4) ROW(T, 5) ROW(T, 6)
#if MAX_ROWS == 14
#define ROWS_OF_THIS_MACHINE(T)                                                                                       \
    ROWS_TO_6(T) ROW(T, 7) ROW(T, 8) ROW(T, 9) ROW(T, 10) ROW(T, 11) ROW(T, 12) ROW(T, 13) ROW(T, 14)
#else
#define ROWS_OF_THIS_MACHINE(T) ROWS_TO_6(T)
#endif

DEFINE_TILE(float)
DEFINE_TILE(double)

/* out[j * ld_out + i] = in[i * ld_in + j] for a square block that fills whole 16-byte vectors: the inner step of
 * packing an operand that is stored the other way round. */
#ifdef __clang__
#define SHUFFLE(a, b, mask, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, mask, ...) __builtin_shuffle(a, b, (mask){__VA_ARGS__})
#endif
#define SQUARE_float 4
#define SQUARE_double 2

INLINE void transpose_square_float(float *out, long ld_out, const float *in, long ld_in)
{
    const quad_float r0 = *(const quad_float *)(in), r1 = *(const quad_float *)(in + ld_in);
    const quad_float r2 = *(const quad_float *)(in + 2 * ld_in), r3 = *(const quad_float *)(in + 3 * ld_in);
    const quad_float low01 = SHUFFLE(r0, r1, vec_mask, 0, 4, 1, 5), high01 = SHUFFLE(r0, r1, vec_mask, 2, 6, 3, 7);
    const quad_float low23 = SHUFFLE(r2, r3, vec_mask, 0, 4, 1, 5), high23 = SHUFFLE(r2, r3, vec_mask, 2, 6, 3, 7);
    *(quad_float *)(out) = SHUFFLE(low01, low23, vec_mask, 0, 1, 4, 5);
    *(quad_float *)(out + ld_out) = SHUFFLE(low01, low23, vec_mask, 2, 3, 6, 7);
    *(quad_float *)(out + 2 * ld_out) = SHUFFLE(high01, high23, vec_mask, 0, 1, 4, 5);
    *(quad_float *)(out + 3 * ld_out) = SHUFFLE(high01, high23, vec_mask, 2, 3, 6, 7);
}

INLINE void transpose_square_double(double *out, long ld_out, const double *in, long ld_in)
{
    const pair_double r0 = *(const pair_double *)(in), r1 = *(const pair_double *)(in + ld_in);
    *(pair_double *)(out) = SHUFFLE(r0, r1, pair_mask, 0, 2);
    *(pair_double *)(out + ld_out) = SHUFFLE(r0, r1, pair_mask, 1, 3);
}

/* The peak that kernels are measured against: fused multiply-adds on registers alone, 2 * MAX_ROWS chains of them.
 * Returns the operations done; sink keeps the compiler from removing them. */
#define DEFINE_PEAK(T)                                                                                                \
    static double peak_##T(long repeats, T *sink)                                                                     \
    {                                                                                                                 \
        vec_##T acc[2 * MAX_ROWS];                                                                                    \
        vec_##T scale = (T)0.999 - (vec_##T){0}, shift = (T)0.001 - (vec_##T){0};                                     \
        _Pragma("GCC unroll 28") for (int i = 0; i < 2 * MAX_ROWS; i++) acc[i] = (T)i - (vec_##T){0};                 \
        for (long p = 0; p < repeats; p++) {                                                                          \
            _Pragma("GCC unroll 28") for (int i = 0; i < 2 * MAX_ROWS; i++)                                           \
                acc[i] = FMA_##T(acc[i], scale, shift);                                                               \
        }                                                                                                             \
        for (int i = 1; i < 2 * MAX_ROWS; i++) acc[0] += acc[i];                                                      \
        memcpy(sink, &acc[0], sizeof acc[0]);                                                                         \
        return 2.0 * LANES(T) * 2 * MAX_ROWS * (double)repeats;                                                       \
    }

DEFINE_PEAK(float)
DEFINE_PEAK(double)

#endif
