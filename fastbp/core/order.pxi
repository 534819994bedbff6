# The order of an epoch: a pseudo-random permutation that is computed row by row and takes no memory.
#
# A Feistel network (Luby & Rackoff 1988) permutes the numbers of so many bits; numbers beyond the last row are sent
# through it again until they fall inside (cycle walking, Black & Rogaway 2002), which keeps it a permutation. The
# reference gives the same order. Instead of a key, a caller may give row numbers, which need not contain every row.

cdef inline uint64_t mix(uint64_t h) noexcept nogil:
    """SplitMix64's output function (Steele, Lea & Flood 2014)."""
    h = (h ^ (h >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    h = (h ^ (h >> 27)) * <uint64_t> 0x94D049BB133111EB
    return h ^ (h >> 31)


cdef enum:
    ROUNDS = 4
    FEWEST_BITS = 8  # smaller domains would have too few permutations

cdef struct Shuffle:
    intp samples
    int low_bits, high_bits
    uint32_t key[ROUNDS]
    bint identity
    const int64_t *given  # the row numbers themselves, or NULL


cdef init_shuffle(Shuffle *s, intp samples, order):
    """order is a key below 2**64, row numbers (n,) int64, or None for the rows as they lie."""
    cdef int i, bits = FEWEST_BITS
    cdef uint64_t key
    s.samples, s.identity, s.given = samples, order is None, NULL
    if order is None:
        return
    if not isinstance(order, int):
        s.samples, s.given = len(order), <const int64_t *> address(order)
        return
    while bits < 62 and samples > <int64_t> 1 << bits:
        bits += 1
    s.low_bits, s.high_bits = bits // 2, bits - bits // 2
    key = order
    for i in range(ROUNDS):
        s.key[i] = <uint32_t> (mix(key + <uint64_t> 0x9E3779B97F4A7C15 * <uint64_t> (i + 1)) >> 32)


cdef inline uint32_t scramble(uint32_t h) noexcept nogil:
    h = (h ^ (h >> 16)) * <uint32_t> 0x7FEB352D
    h = (h ^ (h >> 15)) * <uint32_t> 0x846CA68B
    return h ^ (h >> 16)


cdef inline uint64_t feistel(const Shuffle *s, uint64_t x) noexcept nogil:
    cdef uint32_t low_mask = (<uint32_t> 1 << s.low_bits) - 1, high_mask = (<uint32_t> 1 << s.high_bits) - 1
    cdef uint32_t low = <uint32_t> x & low_mask, high = <uint32_t> (x >> s.low_bits)
    high ^= scramble(low ^ s.key[0]) & high_mask
    low ^= scramble(high ^ s.key[1]) & low_mask
    high ^= scramble(low ^ s.key[2]) & high_mask
    low ^= scramble(high ^ s.key[3]) & low_mask
    return <uint64_t> high << s.low_bits | low


cdef void shuffled(const Shuffle *s, int64_t *rows, intp first, intp count) noexcept nogil:
    """rows (count,) = the epoch's rows number first..first+count."""
    cdef intp i
    cdef uint64_t x
    for i in range(count):
        rows[i] = s.given[first + i] if s.given != NULL else first + i
    if s.identity or s.given != NULL:
        return
    for i in range(count):  # all at once: this loop is vectorised, the walk is not
        rows[i] = <int64_t> feistel(s, <uint64_t> rows[i])
    for i in range(count):
        x = <uint64_t> rows[i]
        while x >= <uint64_t> s.samples:
            x = feistel(s, x)
        rows[i] = <int64_t> x
