# The three products of training: y = x W, dx = dy W^T and dW = x^T dy.
#
# All are blocked as in Goto & van de Geijn 2008: while a block of k is computed, its panel of B (48 KiB on AVX-512) and
# its rows of A stay in L2. The cut along k depends on k alone and a tile sums in the order of k, so neither the number
# of threads nor the caller changes a bit. A tile's epilogue in registers adds the bias and applies ReLU or its
# derivative; other activations follow while the tile is still in L1.

cdef extern from "microkernel.h" nogil:
    ctypedef struct Prefetch:
        const char *first
        const char *second
        intp step
    ctypedef struct TileEpilogue:
        const void *initial
        const void *partial
        bint accumulate
        bint relu
        const void *gate
    void tile_float(int rows, int vectors, bint transposed, intp k, const float *a, intp a_panel, const float *b,
                    intp b_row, float *c, intp c_row, const TileEpilogue *epilogue, Prefetch prefetch)
    void tile_double(int rows, int vectors, bint transposed, intp k, const double *a, intp a_panel, const double *b,
                     intp b_row, double *c, intp c_row, const TileEpilogue *epilogue, Prefetch prefetch)
    void dots_float(intp rows, intp k, const float *a, intp a_panel, const float *b, float *c, float start)
    void dots_double(intp rows, intp k, const double *a, intp a_panel, const double *b, double *c, double start)
    const int WIDE_ROWS
    const int WIDE_SUMS
    void wide_float(int rows, int vectors, intp k, const float *a, intp a_panel, const float *b, intp b_row, float *c,
                    intp c_panel, const TileEpilogue *epilogue)
    void wide_double(int rows, int vectors, intp k, const double *a, intp a_panel, const double *b, intp b_row,
                     double *c, intp c_panel, const TileEpilogue *epilogue)
    double peak_float(intp repeats, float *sink)
    double peak_double(intp repeats, double *sink)

cdef enum:
    BLOCK_K = 384           # a multiple of every PANEL
    BLOCK_ROWS_BYTES = 672  # of one column of A: 168 rows of float32
    BLOCK_COLUMNS_BYTES = 512  # of one row of dW: 128 columns of float32
    IN_PLACE_BYTES = 256   # rows of W up to this long are read where they are, longer ones from panels
    FEW_ROWS_OF_EPOCH = 8   # up to which an epoch packs no weight
    FEW_TILES = 2           # so high are rows for which a weight that nobody has packed is read in the order it lies in
    STRIP = 64              # rows of it at a time, a multiple of every PANEL
    STRIP_BYTES = 32768     # of the sums of the strips before
    ROWS_PER_PACKING = 504  # of x, which stay in L2 while the panels of such a weight pass through it
    PACKED_BYTES = 49152    # of a block of a panel, BLOCK_K rows of two vectors

ctypedef enum EpilogueAction:
    NO_ACTION, BIAS_ACTIVATION, DERIVATIVE

cdef struct Epilogue:  # what is done to a product; the pointers are to whole matrices in the layout of the output
    EpilogueAction action
    bint accumulate    # whether it is added to the output first
    int activation
    const void *bias   # (n,) or NULL
    const void *y      # the activation's output, for its derivative
    void *z            # its input, or NULL where the activation does not need it


cdef struct PrefetchPlan:  # memory that is used after a product: each of its first three tiles prefetches two pieces
    const char *pieces[6]
    intp bytes[3]  # of each of a tile's two pieces


cdef inline intp block_depth(intp k, const real *witness) noexcept nogil:
    """The depth of the blocks that k is cut into: nearly equal, in whole panels."""
    cdef intp blocks = max(1, ceil_div(k, BLOCK_K))
    return max(1, ceil_div(ceil_div(k, blocks), panel_width(witness))) * panel_width(witness)


cdef inline void run_tile(int rows, int vectors, bint transposed, intp k, const real *a, intp a_panel, const real *b,
                          intp b_row, real *c, intp c_row, const TileEpilogue *epilogue,
                          Prefetch prefetch) noexcept nogil:
    if real is float:
        tile_float(rows, vectors, transposed, k, a, a_panel, b, b_row, c, c_row, epilogue, prefetch)
    else:
        tile_double(rows, vectors, transposed, k, a, a_panel, b, b_row, c, c_row, epilogue, prefetch)


cdef inline bint fused_in_tile(const Epilogue *epilogue) noexcept nogil:
    """Whether the tile itself applies the activation or its derivative: ReLU, unless its input has to be kept."""
    return epilogue.activation == RELU and (epilogue.action == DERIVATIVE or epilogue.z == NULL)


cdef inline TileEpilogue tile_epilogue(const Epilogue *epilogue, bint first, bint last, intp offset, intp column,
                                       const real *witness) noexcept nogil:
    """The tile's part of the epilogue: it adds the bias in the first block of k and applies ReLU in the last."""
    cdef TileEpilogue tile
    cdef bint relu = last and fused_in_tile(epilogue)
    tile.partial = NULL
    tile.accumulate = not first or epilogue.accumulate
    tile.initial = <const real *> epilogue.bias + column if first and epilogue.bias != NULL else NULL
    tile.relu = relu and epilogue.action == BIAS_ACTIVATION
    tile.gate = <const real *> epilogue.y + offset if relu and epilogue.action == DERIVATIVE else NULL
    return tile


cdef inline void apply_epilogue(real *c, intp rows, const Epilogue *epilogue, intp offset) noexcept nogil:
    """Apply the rest of the epilogue to rows of a panel, which begin at this offset in the matrix."""
    cdef intp n = rows * panel_width(c)
    cdef real *z = <real *> epilogue.z
    if epilogue.action == NO_ACTION or fused_in_tile(epilogue):
        return
    if epilogue.action == DERIVATIVE:
        multiply_by_derivative(epilogue.activation, c, c, <const real *> epilogue.y + offset, z + offset, n)
        return
    if z != NULL:
        memcpy(z + offset, c, n * sizeof(real))
    activate(epilogue.activation, c, c, n)


cdef void multiply_vector(real *c, const real *a, Layout layout, const real *b, intp begin, intp end, intp k,
                          const Epilogue *epilogue) noexcept nogil:
    """Rows begin..end of c (m, 1) = activation(a (m, k) @ b (k,) + bias)."""
    cdef real initial = (<const real *> epilogue.bias)[0] if epilogue.bias != NULL else 0
    cdef intp at = begin * layout.row, i
    if real is float:
        dots_float(end - begin, k, a + at, layout.panel, b, c + at, initial)
    else:
        dots_double(end - begin, k, a + at, layout.panel, b, c + at, initial)
    for i in range(begin, end):
        at = i * layout.row
        if epilogue.z != NULL:
            (<real *> epilogue.z)[at] = c[at]
        activate(epilogue.activation, c + at, c + at, 1)


cdef inline void multiply_panel(real *c, const real *a, Layout layout, const real *b, intp b_row, const real *next_b,
                                intp next_row, intp i0, intp i1, intp q, intp n, intp p, intp depth, intp k, intp s,
                                intp strip, real *waiting, const Epilogue *epilogue) noexcept nogil:
    """Rows s..s+strip of the block p..p+depth of k, of rows i0..i1 and panel q of c (., n) = a (., k) @ b, in panels.

    b is where row s of the panel lies, next_b what is prefetched. Unless the strip is a whole block, the sums of the
    strips before are in waiting, as those of the last one go to c.
    """
    cdef intp width = panel_width(c), tiles = ceil_div(i1 - i0, MAX_ROWS), t, r0, r1
    cdef int vectors = 1 if n - q * width <= lanes(c) else 2
    cdef bint first = s == p, last = s + strip >= min(k, p + depth)
    cdef Prefetch prefetch
    cdef TileEpilogue tile
    cdef real *out
    cdef real *sums
    prefetch.step = TURN * next_row * <intp> sizeof(real)
    prefetch.first = <const char *> next_b
    prefetch.second = prefetch.first + (64 if TURN == 1 else next_row * <intp> sizeof(real))
    for t in range(tiles):
        r0, r1 = i0 + t * (i1 - i0) // tiles, i0 + (t + 1) * (i1 - i0) // tiles
        out, sums = c + q * layout.panel + r0 * width, waiting + (r0 - i0) * width
        tile = tile_epilogue(epilogue, p == 0, p + depth >= k, out - c, q * width, c)
        if not first:
            tile.initial, tile.partial = NULL, sums
        if not last:
            tile.accumulate, tile.relu, tile.gate = False, False, NULL
        run_tile(<int> (r1 - r0), vectors, False, strip, a + s // width * layout.panel + r0 * width, layout.panel, b,
                 b_row, out if last else sums, width, &tile, prefetch)
        if last and p + depth >= k:
            apply_epilogue(out, r1 - r0, epilogue, out - c)


cdef inline void multiply_block(real *c, const real *a, Layout layout, const real *b, Layout b_layout, intp i0, intp i1,
                                intp n, intp p, intp depth, intp k, const Epilogue *epilogue) noexcept nogil:
    """The part p..p+depth of k of rows i0..i1 of a product."""
    cdef intp q
    for q in range(ceil_div(n, panel_width(c))):
        multiply_panel(c, a, layout, b + q * b_layout.panel + p * b_layout.row, b_layout.row,
                       b + (q + 1) * b_layout.panel + p * b_layout.row, b_layout.row, i0, i1, q, n, p, depth, k, p,
                       min(depth, k - p), NULL, epilogue)


cdef void multiply_rows(real *c, const real *a, Layout layout, const real *b, Layout b_layout, intp begin, intp end,
                        intp n, intp k, const Epilogue *epilogue) noexcept nogil:
    """Rows begin..end of c (m, n) = a (m, k) @ b (k, n), then the epilogue; c and a are in panels."""
    cdef intp depth = block_depth(k, c), block = BLOCK_ROWS_BYTES // <intp> sizeof(real), p = 0, i0
    if b_layout.row == 1:  # a weight of one column, read in place
        multiply_vector(c, a, layout, b, begin, end, k, epilogue)
        return
    while p == 0 or p < k:
        i0 = begin
        while i0 < end:
            multiply_block(c, a, layout, b, b_layout, i0, min(i0 + block, end), n, p, depth, k, epilogue)
            i0 += block
        p += depth


cdef inline void *on_cache_line(char *memory) noexcept nogil:
    """The first address from this one on at which a cache line begins."""
    return memory + (64 - <size_t> memory % 64) % 64


cdef void multiply_few_rows(real *c, const real *a, Layout layout, const real *w, intp w_row, bint transposed,
                            intp begin, intp end, intp n, intp k, const Epilogue *epilogue) noexcept nogil:
    """`multiply_in_place` for few rows: STRIP rows of b at a time, so that memory is read in the order it lies in.

    The sums of the strips before wait beside it; a strip that is transposed is one panel wide.
    """
    cdef char memory[STRIP_BYTES + STRIP * MAX_PANEL * 4 + 64]
    cdef real *sums = <real *> on_cache_line(&memory[0])
    cdef real *turned = sums + STRIP_BYTES // <intp> sizeof(real)
    cdef intp width = panel_width(c), depth = block_depth(k, c), panels = ceil_div(n, width), q0 = 0, q, p, s, strip
    cdef intp group = 1 if transposed else STRIP_BYTES // <intp> sizeof(real) // (end - begin) // width
    cdef const real *b
    cdef const real *next_b
    while q0 < panels:
        s = p = 0
        while p == 0 or p < k:
            strip = min(<intp> STRIP, min(k, p + depth) - s)
            for q in range(q0, min(panels, q0 + group)):
                b, next_b = w + s * w_row + q * width, w + s * w_row + (q + 1) * width
                if transposed:
                    transpose(turned, width, w + q * width * w_row + s, w_row, min(width, n - q * width), strip)
                    b, next_b = turned, w + q * width * w_row + s + STRIP
                multiply_panel(c, a, layout, b, width if transposed else w_row, next_b, w_row, begin, end, q, n, p,
                               depth, k, s, strip, sums + (q - q0) * (end - begin) * width, epilogue)
            s += strip
            if s >= min(k, p + depth):
                p += depth
        q0 += group


cdef inline int wide_vectors(intp rows, intp left) noexcept nogil:
    """How many vectors of c one tile of `multiply_wide` computes, of those that are left."""
    cdef int vectors = 16
    while vectors > 2 and (vectors > left or vectors * rows > WIDE_SUMS):
        vectors //= 2
    return vectors


cdef void multiply_wide(real *c, const real *a, Layout layout, const real *w, intp w_row, intp begin, intp end, intp n,
                        intp k, const Epilogue *epilogue) noexcept nogil:
    """`multiply_in_place` for up to WIDE_ROWS rows, b as it lies, by tiles of several panels."""
    cdef intp width = panel_width(c), depth = block_depth(k, c), q = 0, p, i, at
    cdef int vectors
    cdef TileEpilogue tile
    cdef const real *b
    cdef real *out
    while q < ceil_div(n, width):
        vectors = wide_vectors(end - begin, ceil_div(n, lanes(c)) - 2 * q)
        out, p = c + q * layout.panel + begin * width, 0
        while p == 0 or p < k:
            b, at = w + p * w_row + q * width, p // width * layout.panel + begin * width
            if vectors == 2:
                multiply_panel(c, a, layout, b, w_row, b + width, w_row, begin, end, q, n, p, depth, k, p,
                               min(depth, k - p), NULL, epilogue)
            else:
                tile = tile_epilogue(epilogue, p == 0, p + depth >= k, out - c, q * width, c)
                if real is float:
                    wide_float(<int> (end - begin), vectors, min(depth, k - p), a + at, layout.panel, b, w_row, out,
                               layout.panel, &tile)
                else:
                    wide_double(<int> (end - begin), vectors, min(depth, k - p), a + at, layout.panel, b, w_row, out,
                                layout.panel, &tile)
            p += depth
        for i in range(vectors // 2 if vectors > 2 else 0):
            apply_epilogue(out + i * layout.panel, end - begin, epilogue, out + i * layout.panel - c)
        q += vectors // 2


cdef inline void pack_panel(real *out, const real *w, intp w_row, bint transposed, intp q, intp n, intp p,
                            intp depth) noexcept nogil:
    """Rows p..p+depth of panel q of b (k, n), which is w or, transposed, w^T."""
    cdef intp width = panel_width(out), columns = min(width, n - q * width), s
    cdef Layout packed
    packed.row = packed.panel = width
    if not transposed:
        copy_rows(out, packed, w + p * w_row + q * width, in_rows(w_row, out), 0, depth, columns)
        return
    for s in range(ceil_div(depth, STRIP)):  # so much fits L1: its lines are written four numbers at a time
        transpose(out + s * STRIP * width, width, w + q * width * w_row + p + s * STRIP, w_row, columns,
                  min(<intp> STRIP, depth - s * STRIP))


cdef void multiply_by_panels(real *c, const real *a, Layout layout, const real *w, intp w_row, bint transposed,
                             intp begin, intp end, intp n, intp k, const Epilogue *epilogue) noexcept nogil:
    """`multiply_in_place` for many rows: a block of a panel of b is packed, and used for all rows while it is in L2."""
    cdef char memory[PACKED_BYTES + 64]
    cdef real *panel = <real *> on_cache_line(&memory[0])
    cdef intp width = panel_width(c), depth = block_depth(k, c), i0 = begin, i1, p, q
    cdef intp next_row = 0 if transposed else w_row  # the hardware predicts how a transposed one is read
    while i0 < end:
        i1, p = min(end, i0 + ROWS_PER_PACKING), 0
        while p == 0 or p < k:
            for q in range(ceil_div(n, width)):
                pack_panel(panel, w, w_row, transposed, q, n, p, min(depth, k - p))
                multiply_panel(c, a, layout, panel, width, w + p * w_row + (q + 1) * width, next_row, i0, i1, q, n, p,
                               depth, k, p, min(depth, k - p), NULL, epilogue)
            p += depth
        i0 = i1


cdef void multiply_in_place(real *c, const real *a, Layout layout, const real *w, intp w_row, bint transposed,
                            intp begin, intp end, intp n, intp k, const Epilogue *epilogue) noexcept nogil:
    """As `multiply_rows`, bit for bit, of b that is w (k, n) or, transposed, w (n, k)^T, in rows that are w_row apart.

    Nobody has packed w: it is used for this pass alone.
    """
    if begin >= end:  # a thread without rows
        return
    if end - begin <= WIDE_ROWS and not transposed:
        multiply_wide(c, a, layout, w, w_row, begin, end, n, k, epilogue)
    elif end - begin <= FEW_TILES * MAX_ROWS:
        multiply_few_rows(c, a, layout, w, w_row, transposed, begin, end, n, k, epilogue)
    else:
        multiply_by_panels(c, a, layout, w, w_row, transposed, begin, end, n, k, epilogue)


cdef void multiply_columns(real *c, Layout c_layout, const real *a, const real *b, Layout layout, intp rows,
                           intp columns, intp k, const PrefetchPlan *plan) noexcept nogil:
    """c (rows, columns) = a^T b: up to PANEL columns of a (k, .) and b (k, .), both in panels that begin there.

    Its tiles prefetch what the plan says.
    """
    cdef real tile[MAX_TILE]
    cdef intp width = panel_width(c), depth = block_depth(k, c), tiles = ceil_div(rows, MAX_ROWS)
    cdef intp q, t, p, r0, r1, i, n
    cdef int vectors
    cdef bint whole
    cdef Prefetch prefetch
    cdef TileEpilogue epilogue
    cdef real *out
    epilogue.initial, epilogue.partial, epilogue.relu, epilogue.gate = NULL, NULL, False, NULL
    for q in range(ceil_div(columns, width)):
        n = min(width, columns - q * width)
        vectors = 1 if n <= lanes(c) else 2
        whole = n == vectors * lanes(c) or c_layout.row == width  # a tile wider than c goes through the stack
        for t in range(tiles):
            r0, r1 = t * rows // tiles, (t + 1) * rows // tiles
            out = c + r0 * c_layout.row + q * c_layout.panel
            prefetch.first, prefetch.second = plan.pieces[2 * t % 6], plan.pieces[2 * t % 6 + 1]
            prefetch.step = TURN * ceil_div(plan.bytes[t % 3], max(1, k))
            p = 0
            while p == 0 or p < k:
                epilogue.accumulate = p > 0
                run_tile(<int> (r1 - r0), vectors, True, min(depth, k - p), a + p * width + r0, 0,
                         b + q * layout.panel + p * width, width, out if whole else tile,
                         c_layout.row if whole else width, &epilogue, prefetch)
                p += depth
                prefetch.first = prefetch.first + depth // TURN * prefetch.step
                prefetch.second = prefetch.second + depth // TURN * prefetch.step
            if not whole:
                for i in range(r1 - r0):
                    copy_run(out + i * c_layout.row, tile + i * width, n)


cdef void column_sums(real *sums, const real *b, Layout layout, intp columns, intp k) noexcept nogil:
    """sums (columns,) = the column sums of b (k, columns) in panels, a vector at a time, in four interleaved chains."""
    cdef real acc[4][MAX_TILE]
    cdef const real *column
    cdef intp width = panel_width(b), lane = lanes(b), v, p, i, j
    for v in range(ceil_div(columns, lane)):
        column = b + v // 2 * layout.panel + v % 2 * lane
        for i in range(4):
            for j in range(lane):
                acc[i][j] = 0
        for p in range(0, k - 3, 4):
            for i in range(4):
                for j in range(lane):
                    acc[i][j] += column[(p + i) * width + j]
        for p in range(k - k % 4, k):
            for j in range(lane):
                acc[0][j] += column[p * width + j]
        for j in range(lane):
            acc[0][j] = (acc[0][j] + acc[1][j]) + (acc[2][j] + acc[3][j])
        copy_run(sums + v * lane, &acc[0][0], min(lane, columns - v * lane))
