# How a team partitions work: nearly equal parts of items, one for each thread, and the samples of a batch in chunks.
#
# A sum over a batch is taken chunk by chunk and the chunks are added in their order. The chunks follow from the batch
# alone, so that the sum has the same bits for any number of threads.

cdef enum:
    CHUNKS = 64         # at most so many partial sums, and so many threads with samples
    ROWS_PER_CHUNK = 8  # at least
    ROWS_PER_WEIGHT = 8  # reading a weight takes as long as its products with so many rows

cdef double OPERATIONS_PER_THREAD_AND_CALL = 1e6  # a call has to wake its threads, which takes microseconds
cdef double RELUCTANCE = 5  # a team that nobody has asked for has so many times the work


cdef inline int team_size(double operations, double per_thread, int threads) noexcept nogil:
    """Of at most so many threads, how many have enough to do."""
    return <int> max(1.0, min(<double> min(threads, <int> CHUNKS), operations / per_thread))


cdef inline int call_team(double operations, int threads) noexcept nogil:
    """The threads of one pass; a negative number is a limit, up to which more than one has to pay."""
    if threads < 0:
        return team_size(operations, RELUCTANCE * OPERATIONS_PER_THREAD_AND_CALL, -threads)
    return team_size(operations, OPERATIONS_PER_THREAD_AND_CALL, threads)


cdef struct Range:
    intp begin, end


cdef inline intp ceil_div(intp a, intp b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Range part(intp items, intp number, intp parts) noexcept nogil:
    """Part `number` of nearly equal parts of 0..items."""
    cdef Range r
    r.begin, r.end = number * items // parts, (number + 1) * items // parts
    return r


cdef inline Range thread_part(intp items, const Thread *thread) noexcept nogil:
    """The items of this thread."""
    return part(items, thread.number, thread.team_size)


cdef inline intp chunk_rows(intp batch) noexcept nogil:
    return max(<intp> ROWS_PER_CHUNK, ceil_div(batch, CHUNKS))


cdef inline Range thread_chunks(intp batch, const Thread *thread) noexcept nogil:
    return thread_part(ceil_div(batch, chunk_rows(batch)), thread)


cdef inline Range thread_rows(intp batch, const Thread *thread) noexcept nogil:
    """The samples of this thread: whole chunks, so that it sums each of them alone."""
    cdef Range r = thread_chunks(batch, thread)
    r.begin, r.end = min(batch, r.begin * chunk_rows(batch)), min(batch, r.end * chunk_rows(batch))
    return r
