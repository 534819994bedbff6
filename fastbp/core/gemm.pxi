# The matrix product behind all three products of training: x W, dy W^T and x^T dy.
#
# One blocked algorithm (Goto & van de Geijn 2008): blocks of B and of A are packed into panels that the register tile
# reads in order, whatever their strides were, so the three orientations differ only in the strides passed in. The
# output is cut into a grid of rectangles, one per thread; each thread packs for itself and waits for nobody. The cut
# along k depends on k alone and a tile sums in the order of k, so the number of threads does not change a bit.
# What follows a product (bias, activation, its derivative) is applied to a tile while it is still in L1.

cdef extern from "microkernel.h" nogil:
    const char *TARGET
    const int VECTOR_BYTES
    const int MAX_ROWS
    const int MAX_TILE
    const int SQUARE_float
    const int SQUARE_double
    void tile_float(int rows, int vectors, long k, const float *a, const float *b, float *c, long ldc, bint add)
    void tile_double(int rows, int vectors, long k, const double *a, const double *b, double *c, long ldc, bint add)
    void transpose_square_float(float *out, long ld_out, const float *src, long ld_in)
    void transpose_square_double(double *out, long ld_out, const double *src, long ld_in)
    void prefetch "__builtin_prefetch" (const void *address)
    double peak_float(long repeats, float *sink)
    double peak_double(long repeats, double *sink)

# Block sizes in bytes of one packed row or column of k, so that float32 and float64 fill the caches alike:
# a panel of B (48 KiB on AVX-512) streams through L1, the block of A stays in L2, the block of B in L3.
cdef enum:
    BLOCK_K = 384
    BLOCK_M_BYTES = 672   # 168 rows of float32
    BLOCK_N_BYTES = 8192  # 2048 columns of float32
    MAX_CUTS = 169        # a block has no more tiles than rows
    ROWS_AHEAD = 8        # how far packing asks for memory in advance
# Starting and joining a team costs a few microseconds: below this many operations per thread it does not pay.
cdef double OPERATIONS_PER_THREAD = 5e5

# What happens to a finished tile. The pointers address whole matrices laid out like the output.
ctypedef enum After:
    NOTHING, BIAS_ACTIVATION, DERIVATIVE

cdef struct Epilogue:
    After after
    int activation
    void *bias   # (n,) or NULL
    void *y      # the activation's output (derivative)
    void *z      # its input, or NULL where the activation does not need it


cdef inline long ceil_div(long a, long b) noexcept nogil:
    return (a + b - 1) // b


cdef inline int lanes(real *_) noexcept nogil:
    return VECTOR_BYTES // <int> sizeof(real)


cdef inline long block_columns(long itemsize) noexcept nogil:
    return BLOCK_N_BYTES // itemsize


cdef inline long block_rows(long itemsize) noexcept nogil:
    return BLOCK_M_BYTES // itemsize


cdef long scratch_per_thread(long m, long n, long k, long itemsize) noexcept nogil:
    """Bytes of packed A and B blocks for an (m, k) x (k, n) product, a multiple of 64."""
    cdef long depth = min(k, BLOCK_K)
    cdef long columns = min(n, block_columns(itemsize)) + 2 * VECTOR_BYTES // itemsize
    cdef long rows = min(m, block_rows(itemsize)) + MAX_ROWS
    return ceil_div(depth * columns * itemsize, 64) * 64 + ceil_div(depth * rows * itemsize, 64) * 64


cdef inline void copy_run(real *out, const real *src, long n) noexcept nogil:
    """out (n,) = src (n,) by whole vectors, the last one overlapping the one before it."""
    cdef long i = 0, quad = 16 // <long> sizeof(real), lane = lanes(out)
    if n < quad:
        for i in range(n):
            out[i] = src[i]
        return
    while i + lane <= n:
        memcpy(out + i, src + i, VECTOR_BYTES)
        i += lane
    while i + quad <= n:
        memcpy(out + i, src + i, 16)
        i += quad
    memcpy(out + n - quad, src + n - quad, 16)


cdef inline void fetch_run(const real *src, long n) noexcept nogil:
    """Ask for src (n,): the hardware does not foresee short runs that lie a row apart."""
    cdef long i = 0
    while i < n:
        prefetch(src + i)
        i += 64 // <long> sizeof(real)


cdef void pack_panel(real *panel, const real *src, long extent, long width, long k,
                     long stride, long stride_k) noexcept nogil:
    """panel[p, i] = src[i * stride + p * stride_k] for i < extent, zero up to width."""
    cdef long i = 0, p, q, square
    if stride == 1:
        for p in range(k):
            fetch_run(src + (p + ROWS_AHEAD) * stride_k, extent)
            copy_run(panel + p * width, src + p * stride_k, extent)
            for i in range(extent, width):
                panel[p * width + i] = 0
        return
    square = SQUARE_float if real is float else SQUARE_double
    while i + square <= extent and stride_k == 1:
        p = 0
        while p + square <= k:
            if real is float:
                transpose_square_float(panel + p * width + i, width, src + i * stride + p, stride)
            else:
                transpose_square_double(panel + p * width + i, width, src + i * stride + p, stride)
            p += square
        for q in range(i, i + square):
            for p in range(k - k % square, k):
                panel[p * width + q] = src[q * stride + p]
        i += square
    for q in range(i, width):
        for p in range(k):
            panel[p * width + q] = src[q * stride + p * stride_k] if q < extent else 0


cdef void pack_rows(real *packed, const real *a, long row_a, long col_a, const long *cut, long tiles,
                    long k) noexcept nogil:
    """The panels of tiles whose first rows, counted from a's, are cut[0..tiles]; a's strides are row_a and col_a."""
    cdef long p, t
    if row_a != 1:
        for t in range(tiles):
            pack_panel(packed + cut[t] * k, a + cut[t] * row_a, cut[t + 1] - cut[t], cut[t + 1] - cut[t], k, row_a,
                       col_a)
        return
    for p in range(k):  # x^T: all tiles' columns at once, because they lie side by side and the next k far away
        fetch_run(a + (p + ROWS_AHEAD) * col_a, cut[tiles])
        for t in range(tiles):
            copy_run(packed + cut[t] * k + p * (cut[t + 1] - cut[t]), a + p * col_a + cut[t], cut[t + 1] - cut[t])


cdef void add_column_sums(real *sums, const real *panel, long extent, long width, long k, bint first) noexcept nogil:
    """sums[i] (+)= panel[:, i].sum(): a bias gradient, read off the panel that was just packed."""
    cdef real acc[MAX_TILE]
    cdef long i, p
    for i in range(width):
        acc[i] = 0
    for p in range(k):
        for i in range(width):
            acc[i] += panel[p * width + i]
    for i in range(extent):
        sums[i] = acc[i] if first else sums[i] + acc[i]


cdef inline void run_tile(real *c, long ldc, const real *a, const real *b, int rows, long columns, long width, long k,
                          bint add) noexcept nogil:
    """c (rows, columns) = or += a (k, rows) @ b (k, width); a tile wider than c goes through the stack."""
    cdef real tile[MAX_TILE]
    cdef real *out = c if columns == width else tile
    cdef long ld = ldc if columns == width else width, i, j
    cdef int vectors = <int> (width // lanes(c))
    if real is float:
        tile_float(rows, vectors, k, a, b, out, ld, add and out == c)
    else:
        tile_double(rows, vectors, k, a, b, out, ld, add and out == c)
    if out != c:
        for i in range(rows):
            for j in range(columns):
                c[i * ldc + j] = c[i * ldc + j] + tile[i * width + j] if add else tile[i * width + j]


cdef inline void finish_tile(real *c, long ldc, long rows, long columns, Epilogue *epilogue, long offset,
                             long column) noexcept nogil:
    """Apply the epilogue to a tile of c; offset and column say where in the matrix it lies."""
    cdef long i, j
    cdef real *out
    cdef real *bias = <real *> epilogue.bias
    cdef real *y = <real *> epilogue.y
    cdef real *z = <real *> epilogue.z
    for i in range(rows):
        out = c + i * ldc
        if epilogue.after == DERIVATIVE:
            multiply_by_derivative(epilogue.activation, out, out, y + offset + i * ldc, z + offset + i * ldc, columns)
            continue
        if bias != NULL:
            for j in range(columns):
                out[j] += bias[column + j]
        if z != NULL:
            memcpy(z + offset + i * ldc, out, columns * sizeof(real))
        activate(epilogue.activation, out, out, columns)


cdef void gemm_block(real *c, long ldc, const real *a, long row_a, long col_a, const real *b, long row_b, long col_b,
                     long m0, long m1, long n0, long n1, long k, Epilogue *epilogue, real *sums,
                     char *scratch) noexcept nogil:
    """One thread's rectangle c[m0:m1, n0:n1] of the product; sums, if any, gets the column sums of b[:, n0:n1]."""
    cdef int lane = lanes(c)
    cdef long panel_width = 2 * lane, k_blocks = max(1, ceil_div(k, BLOCK_K))
    cdef long m_blocks = ceil_div(m1 - m0, block_rows(sizeof(real)))
    cdef long jb, jc, pb, jr, nc, width, columns, kb, p0, kc, mb, i0, i1, tiles, t, r0, r1
    cdef long cut[MAX_CUTS]  # the first rows of the block's tiles, and its end
    cdef real *packed_b = <real *> scratch
    cdef real *packed_a
    for jb in range(ceil_div(n1 - n0, block_columns(sizeof(real)))):
        jc = n0 + jb * block_columns(sizeof(real))
        nc = min(n1 - jc, block_columns(sizeof(real)))
        for kb in range(k_blocks):
            p0 = kb * k // k_blocks
            kc = (kb + 1) * k // k_blocks - p0
            for pb in range(ceil_div(nc, panel_width)):
                jr = pb * panel_width
                columns = min(nc - jr, panel_width)
                width = lane if columns <= lane else panel_width
                pack_panel(packed_b + jr * kc, b + p0 * row_b + (jc + jr) * col_b, columns, width, kc, col_b, row_b)
                if sums != NULL:
                    add_column_sums(sums + jc + jr, packed_b + jr * kc, columns, width, kc, kb == 0)
            packed_a = <real *> (scratch + ceil_div(ceil_div(nc, lane) * lane * kc * <long> sizeof(real), 64) * 64)
            for mb in range(m_blocks):
                i0 = m0 + mb * (m1 - m0) // m_blocks
                i1 = m0 + (mb + 1) * (m1 - m0) // m_blocks
                tiles = ceil_div(i1 - i0, MAX_ROWS)
                for t in range(tiles + 1):
                    cut[t] = t * (i1 - i0) // tiles
                pack_rows(packed_a, a + i0 * row_a + p0 * col_a, row_a, col_a, cut, tiles, kc)
                for pb in range(ceil_div(nc, panel_width)):
                    jr = pb * panel_width
                    columns = min(nc - jr, panel_width)
                    width = lane if columns <= lane else panel_width
                    for t in range(tiles):
                        r0, r1 = i0 + cut[t], i0 + cut[t + 1]
                        run_tile(c + r0 * ldc + jc + jr, ldc, packed_a + (r0 - i0) * kc, packed_b + jr * kc,
                                 <int> (r1 - r0), columns, width, kc, kb > 0)
                        if kb == k_blocks - 1 and epilogue.after != NOTHING:
                            finish_tile(c + r0 * ldc + jc + jr, ldc, r1 - r0, columns, epilogue, r0 * ldc + jc + jr,
                                        jc + jr)


cdef void gemm(real *c, long ldc, const real *a, long row_a, long col_a, const real *b, long row_b, long col_b,
               long m, long n, long k, Epilogue *epilogue, real *sums, char *scratch, int threads) noexcept nogil:
    """c (m, n) = a (m, k) @ b (k, n), strides in elements, then the epilogue; sums (n,) = b.sum(axis=0) or NULL.

    The grid of rectangles is the one whose threads together pack least: smallest m / grid_m + n / grid_n.
    """
    cdef long panel = 2 * lanes(c), grid_m = 1, grid_n = 1, candidate, bytes_each, m0, m1, n0, n1
    cdef double cost, best = -1
    cdef int t, team = <int> min(<double> threads, 2.0 * m * n * k / OPERATIONS_PER_THREAD)
    if team <= 1:
        gemm_block(c, ldc, a, row_a, col_a, b, row_b, col_b, 0, m, 0, n, k, epilogue, sums, scratch)
        return
    for candidate in range(1, team + 1):
        if team % candidate == 0:
            cost = <double> ceil_div(m, candidate) + <double> ceil_div(ceil_div(n, panel), team // candidate) * panel
            if best < 0 or cost < best:
                best, grid_m, grid_n = cost, candidate, team // candidate
    bytes_each = scratch_per_thread(m, n, k, sizeof(real))
    for t in prange(team, num_threads=team, schedule="static", chunksize=1):
        m0 = (t // grid_n) * m // grid_m
        m1 = (t // grid_n + 1) * m // grid_m
        n0 = min(n, (t % grid_n) * ceil_div(n, panel) // grid_n * panel)
        n1 = min(n, (t % grid_n + 1) * ceil_div(n, panel) // grid_n * panel)
        gemm_block(c, ldc, a, row_a, col_a, b, row_b, col_b, m0, m1, n0, n1, k, epilogue,
                   sums if t < grid_n else NULL, scratch + t * bytes_each)
