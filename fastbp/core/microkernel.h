/* The register tile: C[rows, cols] = A[rows, k] @ B[k, cols], and the transpose that packs its operands.
 *
 * The -m flags alone tell the compiler the vector width; this file turns them into the table below. A tile is up to
 * MAX_ROWS rows of up to two vectors, held in registers for the whole of k: 14 x 2 accumulators, two vectors of B and
 * one broadcast use 31 of AVX-512's and NEON's 32 registers, 6 x 2 use 15 of the 16 of AVX2 and SSE2. Every height has
 * a function of its own, so that a product is cut into tiles of nearly equal height and no row is computed in vain.
 *
 * Operands lie in panels (panels.pxi): PANEL columns of a matrix, one row after the other. The step between two rows
 * of a panel is a constant of the machine, so the addresses of a tile's rows need no registers.
 *
 * Fused multiply-add is spelled out and contraction is otherwise off: an element has the same bits in whichever tile
 * it falls, which is why results do not depend on the number of threads.
 */
#ifndef FASTBP_MICROKERNEL_H
#define FASTBP_MICROKERNEL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define TARGET "avx512"
#define VECTOR_BYTES 64
#define MAX_ROWS 14
#define UNROLL 2
#define TURN 1
#define FMA_float(a, b, c) ((vec_float)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define FMA_double(a, b, c) ((vec_double)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define TARGET "avx2"
#define VECTOR_BYTES 32
#define MAX_ROWS 6
#define UNROLL 4
#define TURN 2
#define FMA_float(a, b, c) ((vec_float)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define FMA_double(a, b, c) ((vec_double)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#elif defined(__aarch64__)
#include <arm_neon.h>
#define TARGET "neon"
#define VECTOR_BYTES 16
#define MAX_ROWS 14
#define UNROLL 2
#define TURN 2
#define FMA_float(a, b, c) ((vec_float)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define FMA_double(a, b, c) ((vec_double)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b)))
#else
#define TARGET "generic"
#define VECTOR_BYTES 16
#define MAX_ROWS 6
#define UNROLL 4
#define TURN 2
#define FMA_float(a, b, c) ((a) * (b) + (c))
#define FMA_double(a, b, c) ((a) * (b) + (c))
#endif

typedef ptrdiff_t intp; /* as in kernels.pyx */

/* Unaligned, may-alias vectors: plain array memory can be read through them. */
typedef float vec_float __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef double vec_double __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
typedef int bits_float __attribute__((vector_size(VECTOR_BYTES)));
typedef long long bits_double __attribute__((vector_size(VECTOR_BYTES)));
typedef int vec_mask __attribute__((vector_size(16)));
typedef float part_float __attribute__((vector_size(16), aligned(4), may_alias));
typedef double part_double __attribute__((vector_size(16), aligned(8), may_alias));
typedef long long pair_mask __attribute__((vector_size(16)));

#define LANES(T) ((intp)(VECTOR_BYTES / sizeof(T)))
#define PANEL(T) (2 * LANES(T))
#define MAX_TILE (MAX_ROWS * 2 * (VECTOR_BYTES / 4))
#define INLINE static inline __attribute__((always_inline))

#define EACH(rows, vectors)                                                                                           \
    _Pragma("GCC unroll 14") for (int i = 0; i < rows; i++) _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++)

/* acc += outer product of `rows` numbers, A_STEP apart from a on, with a row of B. */
#define RANK_ONE(T, A_STEP, a, b)                                                                                     \
    {                                                                                                                 \
        vec_##T row[2];                                                                                               \
        _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) row[v] = *(const vec_##T *)((b) + v * LANES(T));    \
        _Pragma("GCC unroll 14") for (int i = 0; i < rows; i++) {                                                     \
            const vec_##T spread = (a)[i * (A_STEP)] - (vec_##T){0};                                                  \
            _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) acc[i][v] = FMA_##T(spread, row[v], acc[i][v]); \
        }                                                                                                             \
    }

/* UNROLL steps of k: one at a time, the loop's own instructions would cost AVX2 a fifth of its peak. */
#define RANK_UNROLL(T, A_STEP, A_NEXT)                                                                                \
    {                                                                                                                 \
        _Pragma("GCC unroll 4") for (int u = 0; u < UNROLL; u++) {                                                    \
            RANK_ONE(T, A_STEP, a + u * (A_NEXT), b + u * b_row)                                                      \
            if (u % TURN == 0) {                                                                                      \
                __builtin_prefetch(prefetch.first + u / TURN * prefetch.step, 0, 2);                                  \
                __builtin_prefetch(prefetch.second + u / TURN * prefetch.step, 0, 2);                                 \
            }                                                                                                         \
        }                                                                                                             \
        a += UNROLL * (A_NEXT);                                                                                       \
        b += UNROLL * b_row;                                                                                          \
        prefetch.first += UNROLL / TURN * prefetch.step;                                                              \
        prefetch.second += UNROLL / TURN * prefetch.step;                                                             \
    }

/* Two streams of memory that is used after this product. A tile prefetches a cache line of each in every TURN steps of
 * k, in which it reads two lines of B, because the hardware does not predict these accesses. */
typedef struct {
    const char *first, *second;
    intp step; /* bytes between two lines of a stream */
} Prefetch;

/* What a tile does besides the product, all of it in registers; partial and gate are for operands in rows alone. */
typedef struct {
    const void *initial; /* what every row of sums starts from (the bias), NULL for zero */
    const void *partial; /* laid out as C: what the sums start from instead, those of the k before; or NULL */
    int accumulate;      /* whether the sums are added to C */
    int relu;            /* whether negative results become zero */
    const void *gate;    /* laid out as C: where it is not positive the result is zero (ReLU's derivative), or NULL */
} TileEpilogue;

#define ZERO_WHERE(T, condition, value) ((vec_##T)((bits_##T)(value) & ~(bits_##T)(condition)))

/* C (rows, vectors * LANES), c_row apart, = A @ B, whose rows are b_row apart. A is `rows` rows of a matrix in
 * panels that lie a_panel apart, or, transposed, `rows` columns of one panel. rows, vectors and transposed are
 * compile-time constants wherever this is inlined, so that acc lives in registers. */
#define DEFINE_TILE(T)                                                                                                \
    INLINE void tile_fixed_##T(const int rows, const int vectors, const int transposed, intp k, const T *a,           \
                               intp a_panel, const T *b, intp b_row, T *c, intp c_row,                                \
                               const TileEpilogue *epilogue, Prefetch prefetch)                                       \
    {                                                                                                                 \
        vec_##T acc[MAX_ROWS][2], initial[2] = {(vec_##T){0}, (vec_##T){0}};                                          \
        if (epilogue->initial)                                                                                        \
            _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++)                                                 \
                initial[v] = *(const vec_##T *)((const T *)epilogue->initial + v * LANES(T));                         \
        EACH(rows, vectors) {                                                                                         \
            acc[i][v] = initial[v];                                                                                   \
            if (!transposed) __builtin_prefetch(c + i * c_row + v * LANES(T), 1);                                     \
        }                                                                                                             \
        if (!transposed && epilogue->partial)                                                                         \
            EACH(rows, vectors) acc[i][v] = ((const vec_##T *)((const T *)epilogue->partial + i * c_row))[v];         \
        if (transposed) {                                                                                             \
            for (; k >= UNROLL; k -= UNROLL) RANK_UNROLL(T, 1, PANEL(T))                                              \
            for (; k > 0; k--, a += PANEL(T), b += b_row) RANK_ONE(T, 1, a, b)                                        \
        } else                                                                                                        \
            for (; k > 0; k -= PANEL(T), a += a_panel - PANEL(T)) {                                                   \
                const T *end = a + PANEL(T), *stop = k < PANEL(T) ? a + k : end;                                      \
                while (a + UNROLL <= stop) RANK_UNROLL(T, PANEL(T), 1)                                                \
                for (; a < stop; a++, b += b_row) RANK_ONE(T, PANEL(T), a, b)                                         \
                a = end;                                                                                              \
            }                                                                                                         \
        EACH(rows, vectors)                                                                                           \
            if (epilogue->accumulate) acc[i][v] = *(vec_##T *)(c + i * c_row + v * LANES(T)) + acc[i][v];             \
        if (epilogue->relu) EACH(rows, vectors) acc[i][v] = ZERO_WHERE(T, acc[i][v] < (vec_##T){0}, acc[i][v]);       \
        if (!transposed && epilogue->gate) {                                                                          \
            const T *gate = (const T *)epilogue->gate;                                                                \
            EACH(rows, vectors) acc[i][v] = ZERO_WHERE(                                                               \
                T, *(const vec_##T *)(gate + i * c_row + v * LANES(T)) <= (vec_##T){0}, acc[i][v]);                   \
        }                                                                                                             \
        EACH(rows, vectors) *(vec_##T *)(c + i * c_row + v * LANES(T)) = acc[i][v];                                   \
    }                                                                                                                 \
    static void tile_##T(int rows, int vectors, int transposed, intp k, const T *a, intp a_panel, const T *b,         \
                         intp b_row, T *c, intp c_row, const TileEpilogue *epilogue, Prefetch prefetch)               \
    {                                                                                                                 \
        switch ((rows * 2 + vectors - 1) * 2 + transposed) {                                                          \
            ROWS_OF_THIS_MACHINE(T)                                                                                   \
        }                                                                                                             \
    }

#define CASE(T, rows, vectors, transposed)                                                                            \
    case ((rows) * 2 + (vectors) - 1) * 2 + (transposed):                                                             \
        tile_fixed_##T(rows, vectors, transposed, k, a, a_panel, b, b_row, c, c_row, epilogue, prefetch);             \
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

/* C (rows, vectors * LANES) = A @ B as in DEFINE_TILE, for one to three rows: so few sums would wait for each other in a
 * tile, so it is as wide as the registers allow. C lies in panels, c_panel apart; B is read row by row, in the order it
 * lies in memory, and a few rows ahead are prefetched. */
#define WIDE_ROWS 3
#define WIDE_SUMS (MAX_ROWS == 14 ? 16 : 12)
#define WIDE_AHEAD 4

#define WIDE(rows, vectors)                                                                                           \
    _Pragma("GCC unroll 3") for (int i = 0; i < rows; i++) _Pragma("GCC unroll 16") for (int v = 0; v < vectors; v++)
#define WIDE_CASE(T, rows, vectors)                                                                                   \
    case (rows) * 32 + (vectors):                                                                                     \
        wide_fixed_##T(rows, vectors, k, a, a_panel, b, b_row, c, c_panel, epilogue);                                 \
        break;

#define DEFINE_WIDE(T)                                                                                                \
    INLINE void wide_fixed_##T(const int rows, const int vectors, intp k, const T *a, intp a_panel, const T *b,       \
                               intp b_row, T *c, intp c_panel, const TileEpilogue *epilogue)                          \
    {                                                                                                                 \
        vec_##T sum[WIDE_ROWS][16];                                                                                   \
        WIDE(rows, vectors)                                                                                           \
            sum[i][v] = epilogue->initial ? *(const vec_##T *)((const T *)epilogue->initial + v * LANES(T))           \
                                          : (vec_##T){0};                                                             \
        for (; k > 0; k -= PANEL(T), a += a_panel)                                                                    \
            for (intp p = 0; p < (k < PANEL(T) ? k : PANEL(T)); p++, b += b_row) {                                    \
                for (int line = 0; line < vectors * VECTOR_BYTES; line += 64)                                         \
                    __builtin_prefetch((const char *)(b + WIDE_AHEAD * b_row) + line);                                \
                WIDE(rows, vectors)                                                                                   \
                    sum[i][v] = FMA_##T(a[i * PANEL(T) + p] - (vec_##T){0}, *(const vec_##T *)(b + v * LANES(T)),     \
                                        sum[i][v]);                                                                   \
            }                                                                                                         \
        WIDE(rows, vectors) {                                                                                         \
            vec_##T *to = (vec_##T *)(c + v / 2 * c_panel + i * PANEL(T) + v % 2 * LANES(T));                         \
            if (epilogue->accumulate) sum[i][v] = *to + sum[i][v];                                                    \
            *to = epilogue->relu ? ZERO_WHERE(T, sum[i][v] < (vec_##T){0}, sum[i][v]) : sum[i][v];                    \
        }                                                                                                             \
    }                                                                                                                 \
    static void wide_##T(int rows, int vectors, intp k, const T *a, intp a_panel, const T *b, intp b_row, T *c,       \
                         intp c_panel, const TileEpilogue *epilogue)                                                  \
    {                                                                                                                 \
        switch (rows * 32 + vectors) {                                                                                \
            WIDE_CASE(T, 1, 16) WIDE_CASE(T, 1, 8) WIDE_CASE(T, 1, 4)                                                 \
            WIDE_CASE(T, 2, 8) WIDE_CASE(T, 2, 4) WIDE_CASE(T, 3, 4)                                                  \
        }                                                                                                             \
    }

DEFINE_WIDE(float)
DEFINE_WIDE(double)

static inline void prefetch_line(const char *p) { __builtin_prefetch(p); }
static inline void prefetch_for_writing(const char *p) { __builtin_prefetch(p, 1); }

/* out[j * ld_out + i] = in[i * ld_in + j] for a square block that fills whole 16-byte vectors: the inner step of
 * packing an operand that is stored the other way round. */
#ifdef __clang__
#define SHUFFLE(a, b, mask, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, mask, ...) __builtin_shuffle(a, b, (mask){__VA_ARGS__})
#endif
#define SQUARE_float 4
#define SQUARE_double 2

INLINE void transpose_square_float(float *out, intp ld_out, const float *in, intp ld_in)
{
    const part_float r0 = *(const part_float *)(in), r1 = *(const part_float *)(in + ld_in);
    const part_float r2 = *(const part_float *)(in + 2 * ld_in), r3 = *(const part_float *)(in + 3 * ld_in);
    const part_float low01 = SHUFFLE(r0, r1, vec_mask, 0, 4, 1, 5), high01 = SHUFFLE(r0, r1, vec_mask, 2, 6, 3, 7);
    const part_float low23 = SHUFFLE(r2, r3, vec_mask, 0, 4, 1, 5), high23 = SHUFFLE(r2, r3, vec_mask, 2, 6, 3, 7);
    *(part_float *)(out) = SHUFFLE(low01, low23, vec_mask, 0, 1, 4, 5);
    *(part_float *)(out + ld_out) = SHUFFLE(low01, low23, vec_mask, 2, 3, 6, 7);
    *(part_float *)(out + 2 * ld_out) = SHUFFLE(high01, high23, vec_mask, 0, 1, 4, 5);
    *(part_float *)(out + 3 * ld_out) = SHUFFLE(high01, high23, vec_mask, 2, 3, 6, 7);
}

INLINE void transpose_square_double(double *out, intp ld_out, const double *in, intp ld_in)
{
    const part_double r0 = *(const part_double *)(in), r1 = *(const part_double *)(in + ld_in);
    *(part_double *)(out) = SHUFFLE(r0, r1, pair_mask, 0, 2);
    *(part_double *)(out + ld_out) = SHUFFLE(r0, r1, pair_mask, 1, 3);
}

/* c[i * PANEL] = start + row i of A . b, for A (rows, k) in panels: a tile would fill one lane of its vectors. SQUARE
 * rows at a time, whose partial sums are added by transposing them. */
#define DEFINE_DOTS(T)                                                                                                \
    static void dots_##T(intp rows, intp k, const T *a, intp a_panel, const T *b, T *c, T start)                      \
    {                                                                                                                 \
        const intp whole = k / LANES(T);                                                                              \
        T sums[SQUARE_##T * SQUARE_##T] = {0}, turned[SQUARE_##T * SQUARE_##T];                                       \
        for (intp first = 0; first < rows; first += SQUARE_##T) {                                                     \
            const intp count = rows - first < SQUARE_##T ? rows - first : SQUARE_##T;                                 \
            for (intp i = 0; i < count; i++) {                                                                        \
                const T *row = a + (first + i) * PANEL(T);                                                            \
                vec_##T even = {0}, odd = {0};                                                                        \
                for (intp v = 0; v < whole; v += 2) {                                                                 \
                    const T *at = row + v / 2 * a_panel;                                                              \
                    even = FMA_##T(*(const vec_##T *)at, *(const vec_##T *)(b + v * LANES(T)), even);                 \
                    if (v + 1 < whole)                                                                                \
                        odd = FMA_##T(*(const vec_##T *)(at + LANES(T)),                                              \
                                      *(const vec_##T *)(b + (v + 1) * LANES(T)), odd);                               \
                }                                                                                                     \
                even += odd;                                                                                          \
                part_##T part[VECTOR_BYTES / 16];                                                                     \
                memcpy(part, &even, VECTOR_BYTES);                                                                    \
                for (int j = 1; j < VECTOR_BYTES / 16; j++) part[0] += part[j];                                       \
                for (intp p = whole * LANES(T); p < k; p++)                                                           \
                    part[0][0] += row[p / PANEL(T) * a_panel + p % PANEL(T)] * b[p];                                  \
                memcpy(sums + i * SQUARE_##T, part, 16);                                                              \
            }                                                                                                         \
            transpose_square_##T(turned, SQUARE_##T, sums, SQUARE_##T);                                               \
            part_##T total = start - (part_##T){0};                                                                   \
            for (int j = 0; j < SQUARE_##T; j++) total += *(const part_##T *)(turned + j * SQUARE_##T);               \
            for (intp i = 0; i < count; i++) c[(first + i) * PANEL(T)] = total[i];                                    \
        }                                                                                                             \
    }

DEFINE_DOTS(float)
DEFINE_DOTS(double)

/* out (n,) += src (n,): whole vectors, then parts of 16 bytes, then the rest. */
#define DEFINE_ADD_RUN(T)                                                                                             \
    INLINE void add_run_##T(T *out, const T *src, intp n)                                                             \
    {                                                                                                                 \
        intp i = 0;                                                                                                   \
        for (; i + LANES(T) <= n; i += LANES(T)) *(vec_##T *)(out + i) += *(const vec_##T *)(src + i);                \
        for (; i + SQUARE_##T <= n; i += SQUARE_##T) *(part_##T *)(out + i) += *(const part_##T *)(src + i);          \
        for (; i < n; i++) out[i] += src[i];                                                                          \
    }

DEFINE_ADD_RUN(float)
DEFINE_ADD_RUN(double)

/* A row of sparse A (., k) @ B (k, n): the sum of its entries, each times a row of B, b_row apart, from initial (n,) or
 * zero on. It goes to out, whose panels lie out_panel apart. SPARSE_VECTORS sums at a time are independent, which hides
 * the latency of an addition; rows of B come in no order that the hardware predicts, so they are prefetched. A column
 * that B has no row for counts nothing. vectors is a compile-time constant, so that sum lives in registers. */
#define SPARSE_VECTORS 8
#define SPARSE_AHEAD 8 /* entries */

#define DEFINE_SPARSE(T)                                                                                              \
    INLINE void sparse_fixed_##T(const int vectors, T *out, intp out_panel, const T *values, const int32_t *columns,  \
                                 intp count, intp k, const T *b, intp b_row, const T *initial)                        \
    {                                                                                                                 \
        vec_##T sum[SPARSE_VECTORS];                                                                                  \
        _Pragma("GCC unroll 8") for (int v = 0; v < vectors; v++)                                                     \
            sum[v] = initial ? *(const vec_##T *)(initial + v * LANES(T)) : (vec_##T){0};                             \
        for (intp e = 0; e < count; e++) {                                                                            \
            const intp column = columns[e], ahead = columns[e + SPARSE_AHEAD < count ? e + SPARSE_AHEAD : e];         \
            if ((size_t)column >= (size_t)k) continue;                                                                \
            for (int line = 0; line < vectors * VECTOR_BYTES; line += 64)                                             \
                __builtin_prefetch((const char *)(b + ahead * b_row) + line);                                         \
            const vec_##T spread = values[e] - (vec_##T){0};                                                          \
            _Pragma("GCC unroll 8") for (int v = 0; v < vectors; v++)                                                 \
                sum[v] = FMA_##T(spread, *(const vec_##T *)(b + column * b_row + v * LANES(T)), sum[v]);              \
        }                                                                                                             \
        _Pragma("GCC unroll 8") for (int v = 0; v < vectors; v++)                                                     \
            *(vec_##T *)(out + v / 2 * out_panel + v % 2 * LANES(T)) = sum[v];                                        \
    }                                                                                                                 \
    static void sparse_row_##T(T *out, intp out_panel, const T *values, const int32_t *columns, intp count, intp k,   \
                               const T *b, intp b_row, intp n, const T *initial)                                      \
    {                                                                                                                 \
        for (intp j = 0; j < n; j += SPARSE_VECTORS * LANES(T), out += SPARSE_VECTORS / 2 * out_panel) {              \
            const intp left = (n - j + LANES(T) - 1) / LANES(T);                                                      \
            const T *from = initial ? initial + j : initial;                                                          \
            switch (left < SPARSE_VECTORS ? left : SPARSE_VECTORS) {                                                  \
                SPARSE_CASE(T, 1) SPARSE_CASE(T, 2) SPARSE_CASE(T, 3) SPARSE_CASE(T, 4)                               \
                SPARSE_CASE(T, 5) SPARSE_CASE(T, 6) SPARSE_CASE(T, 7) SPARSE_CASE(T, 8)                               \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    /* out (n,) += scale * src, n elements in panels that lie src_panel apart. */                                     \
    static void add_scaled_##T(T *out, const T *src, intp src_panel, T scale, intp n)                                 \
    {                                                                                                                 \
        const vec_##T spread = scale - (vec_##T){0};                                                                  \
        const part_##T part = scale - (part_##T){0};                                                                  \
        intp i = 0;                                                                                                   \
        for (; n - i >= PANEL(T); i += PANEL(T), src += src_panel)                                                    \
            _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++) {                                                     \
                vec_##T *to = (vec_##T *)(out + i + v * LANES(T));                                                    \
                *to = FMA_##T(spread, *(const vec_##T *)(src + v * LANES(T)), *to);                                   \
            }                                                                                                         \
        if (n - i >= LANES(T)) {                                                                                      \
            *(vec_##T *)(out + i) = FMA_##T(spread, *(const vec_##T *)src, *(vec_##T *)(out + i));                    \
            i += LANES(T), src += LANES(T);                                                                           \
        }                                                                                                             \
        for (; n - i >= SQUARE_##T; i += SQUARE_##T, src += SQUARE_##T)                                               \
            *(part_##T *)(out + i) += part * *(const part_##T *)src;                                                  \
        for (; i < n; i++, src++) out[i] += scale * *src;                                                             \
    }

#define SPARSE_CASE(T, vectors)                                                                                       \
    case vectors:                                                                                                     \
        sparse_fixed_##T(vectors, out, out_panel, values, columns, count, k, b + j, b_row, from);                     \
        break;

DEFINE_SPARSE(float)
DEFINE_SPARSE(double)

/* The peak that kernels are measured against: fused multiply-adds on registers alone, 2 * MAX_ROWS chains of them.
 * Returns the operations done; sink keeps the compiler from removing them. */
#define DEFINE_PEAK(T)                                                                                                \
    static double peak_##T(intp repeats, T *sink)                                                                     \
    {                                                                                                                 \
        vec_##T acc[2 * MAX_ROWS];                                                                                    \
        vec_##T scale = (T)0.999 - (vec_##T){0}, shift = (T)0.001 - (vec_##T){0};                                     \
        _Pragma("GCC unroll 28") for (int i = 0; i < 2 * MAX_ROWS; i++) acc[i] = (T)i - (vec_##T){0};                 \
        for (intp p = 0; p < repeats; p++) {                                                                          \
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
