# How elementwise work is shared: fixed chunks, so that neither a sum nor a vector loop's tail depends on the team.

cdef enum:
    CHUNKS = 64          # partial sums of a reduction, combined in order
    CHUNK_ELEMENTS = 4096  # of an elementwise loop: two or three arrays of them fit L1

cdef double ELEMENTS_PER_THREAD = 65536.0  # below this a team costs more than it gives


cdef inline int team_for(double elements, int threads) noexcept nogil:
    return <int> max(1.0, min(<double> threads, elements / ELEMENTS_PER_THREAD))


cdef inline long chunk_begin(long chunk, long n) noexcept nogil:
    """Where chunk number `chunk` of CHUNKS nearly equal ones begins in n items."""
    return chunk * n // CHUNKS


cdef inline double total(const double *partial) noexcept nogil:
    cdef double result = 0
    cdef int i
    for i in range(CHUNKS):
        result += partial[i]
    return result
